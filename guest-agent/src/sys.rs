//! The kernel calls that `nix` has no safe form for. The only module of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{SigHandler, Signal},
    unistd::{ForkResult, Pid},
};

/// Takes a descriptor that the kernel has just handed to this process in a control message.
#[must_use]
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass only descriptors out of SCM_RIGHTS; the kernel made them for us and nobody else knows them.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Forks. Only for the sandbox stage, which has one thread and says so by being a re-executed process of its own.
///
/// # Errors
/// As fork(2).
pub fn fork_single_threaded() -> Result<Option<Pid>, Errno> {
    // SAFETY: the calling process has exactly one thread (see above), so no lock can be held by a thread that is gone.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends this process at once, without the exit handlers that it shares with the process it was forked from.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes no memory of ours and does not return.
    unsafe { libc::_exit(status) }
}

/// Gives every signal its default action: Rust's start-up ignores SIGPIPE, and a payload must not inherit that.
///
/// # Errors
/// As sigaction(2).
pub fn default_signals() -> Result<(), Errno> {
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: SIG_DFL installs no code of ours.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Marks every descriptor from `first` upwards to be closed by exec.
///
/// # Errors
/// As close_range(2); ENOSYS before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: the call changes descriptor flags only.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Gives up every capability for ever: bounding set, ambient set, the process's own sets, and the ways back.
///
/// # Errors
/// As prctl(2) and capset(2).
pub fn drop_capabilities() -> Result<(), Errno> {
    for capability in 0..64 {
        // SAFETY: plain numbers; an unknown capability ends the list with EINVAL.
        let done = Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) });
        match done {
            Ok(_) => {}
            Err(Errno::EINVAL) if capability > 20 => break,
            Err(error) => return Err(error),
        }
    }
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    // NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE and their locks, KEEP_CAPS_LOCKED (linux/securebits.h).
    const SECURE_BITS: libc::c_int = 0b1110_1111;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0) })?;
    // linux/capability.h, version 3: one header, two sets of three words, all zero.
    let header: [u32; 2] = [0x2008_0522, 0];
    let sets = [0u32; 6];
    // SAFETY: both arrays have the layout and size that version 3 asks for and outlive the call, which only reads them.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }).map(drop)
}

/// Leaves the session keyring that came from the VM for a new, empty one. A kernel without keyrings has none to leave.
///
/// # Errors
/// As keyctl(2).
pub fn new_session_keyring() -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    match Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) }) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Version of the kernel's Landlock interface; 0 where the kernel has none or it is not switched on.
#[must_use]
pub fn landlock_abi() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no attributes and only answers a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// The mount that a directory descriptor stands in, as a detached copy of the tree below it.
///
/// # Errors
/// As open_tree(2).
pub fn clone_mount(directory: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | 0x1000; // AT_EMPTY_PATH
    let fd = directory.as_fd().as_raw_fd();
    // SAFETY: the path is an empty C string that outlives the call.
    let tree = Errno::result(unsafe { libc::syscall(libc::SYS_open_tree, fd, c"".as_ptr(), flags) })?;
    Ok(adopt(RawFd::try_from(tree).map_err(|_| Errno::EBADF)?))
}

/// Puts a detached mount at a path.
///
/// # Errors
/// As move_mount(2).
pub fn attach_mount(tree: impl AsFd, at: &CStr) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    let fd = tree.as_fd().as_raw_fd();
    // SAFETY: both paths are C strings that outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_move_mount, fd, c"".as_ptr(), libc::AT_FDCWD, at.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    Errno::result(done).map(drop)
}

/// Makes a detached mount show files of one owner as another's (the map of the user namespace says which), without
/// set-uid programs and devices.
///
/// # Errors
/// As mount_setattr(2); EINVAL where the file system cannot do it.
pub fn map_owners(tree: impl AsFd, user_namespace: impl AsFd) -> Result<(), Errno> {
    let namespace = u64::try_from(user_namespace.as_fd().as_raw_fd()).map_err(|_| Errno::EBADF)?;
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd. MOUNT_ATTR_IDMAP | NOSUID | NODEV.
    let attributes: [u64; 4] = [0x0010_0000 | 2 | 4, 0, 0, namespace];
    let fd = tree.as_fd().as_raw_fd();
    // SAFETY: the structure has the layout and size that the call is told, and outlives it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            std::mem::size_of_val(&attributes),
        )
    };
    Errno::result(done).map(drop)
}
