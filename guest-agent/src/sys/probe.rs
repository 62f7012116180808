//! Calls that only the selftest makes: most of them a sandbox must refuse.

use nix::{errno::Errno, libc};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::adopt;

/// Opens a socket of any family.
///
/// # Errors
/// As socket(2).
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers; the descriptor that comes back is ours alone.
    let fd: RawFd = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    Ok(adopt(fd))
}

/// A System V shared memory segment of one page, not attached.
#[derive(Debug)]
pub struct Segment(i32);

impl Segment {
    /// Makes one that everybody may read and write.
    ///
    /// # Errors
    /// As shmget(2).
    pub fn make(key: i32) -> Result<Self, Errno> {
        // SAFETY: plain numbers.
        Errno::result(unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o666) }).map(Self)
    }

    /// Looks for one.
    ///
    /// # Errors
    /// As shmget(2): ENOENT when there is none by that key.
    pub fn find(key: i32) -> Result<(), Errno> {
        // SAFETY: plain numbers.
        Errno::result(unsafe { libc::shmget(key, 0, 0) }).map(drop)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: IPC_RMID reads no structure.
        unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// Whether io_uring answers. Nothing is made: the call gets no place for its answer.
///
/// # Errors
/// As io_uring_setup(2); EFAULT is the answer of a kernel that would have made a ring.
pub fn io_uring() -> Result<(), Errno> {
    // SAFETY: the kernel refuses the null pointer.
    Errno::result(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) }).map(drop)
}

/// Number of the session keyring.
///
/// # Errors
/// As keyctl(2).
pub fn session_keyring() -> Result<i64, Errno> {
    const GET_KEYRING_ID: libc::c_long = 0;
    const SESSION: libc::c_long = -3;
    // SAFETY: plain numbers; no keyring is made.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION, 0) })
}

/// Pushes one byte into a terminal's input.
///
/// # Errors
/// As TIOCSTI in tty_ioctl(4).
pub fn push_input(terminal: impl AsFd, byte: u8) -> Result<(), Errno> {
    // SAFETY: the kernel reads one byte, which outlives the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSTI, &raw const byte) }).map(drop)
}
