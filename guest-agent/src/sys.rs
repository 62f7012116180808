//! The kernel calls that `nix` has no safe form for. The only module of this crate with `unsafe`.
#![allow(unsafe_code)]

pub mod probe;

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{SigHandler, Signal},
    unistd::{ForkResult, Pid},
};

/// Takes a descriptor that the kernel has just handed to this process.
#[must_use]
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass only descriptors that the kernel has just made for us and nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Another descriptor, from 3 upwards and closed by exec, of what the caller of this process left open under a number: it shares the
/// offset and needs no right to open it anew.
///
/// # Errors
/// As fcntl(2); EBADF if the number is not open.
pub fn duplicate(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers; the descriptor stays whoever's it is.
    Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }).map(adopt)
}

/// Columns of a terminal; `None` for anything else.
#[must_use]
pub fn terminal_width(fd: impl AsFd) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call writes one `winsize`, which outlives it.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Forks. Only for the sandbox's own processes, which have one thread: they descend from a re-executed process.
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

/// Lets the kernel clear children away as they end.
///
/// # Errors
/// As sigaction(2).
pub fn ignore_children() -> Result<(), Errno> {
    // SAFETY: SIG_IGN installs no code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map(drop)
}

/// Marks every descriptor from `first` upwards to be closed by exec.
///
/// # Errors
/// As close_range(2); ENOSYS before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: the call changes descriptor flags only.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Closes every descriptor from 3 upwards but this one. Only for a process that has just been forked and will never return
/// into the code whose descriptors these were.
///
/// # Errors
/// As close_range(2); ENOSYS before Linux 5.9.
pub fn close_all_but(kept: impl AsFd) -> Result<(), Errno> {
    let kept = libc::c_uint::try_from(kept.as_fd().as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let ranges = [(3, kept.saturating_sub(1)), (kept.max(2) + 1, u32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: the caller promises that nothing which owns these descriptors is used or dropped any more.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    }
    Ok(())
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

/// Forks into new namespaces (`CLONE_NEW*`), and into a cgroup from the first moment if one is given. The parent gets the
/// child's number and a descriptor that means this process for ever; the child gets `None`. Same condition as
/// [`fork_single_threaded`].
///
/// # Errors
/// As clone3(2).
pub fn clone_single_threaded(
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Option<(Pid, OwnedFd)>, Errno> {
    let mut pidfd: RawFd = -1;
    let mut flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    if cgroup.is_some() {
        // CLONE_INTO_CGROUP
        flags |= 1 << 33;
    }
    let number = |fd: RawFd| u64::try_from(fd).map_err(|_| Errno::EBADF);
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
    // cgroup. No stack: like fork.
    let arguments: [u64; 11] = [
        flags,
        (&raw mut pidfd).addr() as u64,
        0,
        0,
        u64::from(libc::SIGCHLD.cast_unsigned()),
        0,
        0,
        0,
        0,
        0,
        cgroup.map_or(Ok(0), |fd| number(fd.as_raw_fd()))?,
    ];
    // SAFETY: the structure has the layout and size that the call is told; `pidfd` outlives it; the process has one thread,
    // so the child's copy of memory is whole and no lock in it is held.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) });
    let pid = match pid {
        // Hidden by the filter of a sandbox around us, which cannot look into its arguments.
        Err(Errno::ENOSYS) if cgroup.is_none() => {
            let flags = libc::c_long::from(namespaces | libc::CLONE_PIDFD | libc::SIGCHLD);
            let pidfd = &raw mut pidfd;
            // SAFETY: as above. No stack of its own: like fork. The last arguments, whose order differs between machines, are
            // not used.
            Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, pidfd, 0_usize, 0_usize) })?
        }
        other => other?,
    };
    if pid == 0 {
        return Ok(None);
    }
    let pid = Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?);
    Ok(Some((pid, adopt(pidfd))))
}

/// Sends a signal to the process that a descriptor means.
///
/// # Errors
/// As pidfd_send_signal(2); ESRCH when it is gone.
pub fn signal_process(process: impl AsFd, signal: Signal) -> Result<(), Errno> {
    let fd = process.as_fd().as_raw_fd();
    // SAFETY: plain numbers and a null pointer, which means "as kill(2) would say it".
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as libc::c_int, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    Errno::result(done).map(drop)
}

/// The mount at `path` below `directory` (at the directory itself if it is empty) as a detached copy, with all that is
/// mounted below it if `recursive`. A symbolic link at the end is not followed.
///
/// # Errors
/// As open_tree(2).
pub fn clone_mount(directory: impl AsFd, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let more = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | if recursive { libc::AT_RECURSIVE } else { 0 };
    flags |= more.cast_unsigned();
    let fd = directory.as_fd().as_raw_fd();
    // SAFETY: the path is a C string that outlives the call.
    let tree = Errno::result(unsafe { libc::syscall(libc::SYS_open_tree, fd, path.as_ptr(), flags) })?;
    Ok(adopt(RawFd::try_from(tree).map_err(|_| Errno::EBADF)?))
}

/// Puts a detached mount on what `at` (a descriptor, O_PATH is enough) means.
///
/// # Errors
/// As move_mount(2).
pub fn attach_mount(tree: impl AsFd, at: impl AsFd) -> Result<(), Errno> {
    // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    const BOTH_EMPTY: libc::c_uint = 0x04 | 0x40;
    let (tree, at) = (tree.as_fd().as_raw_fd(), at.as_fd().as_raw_fd());
    // SAFETY: both paths are C strings that outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), at, c"".as_ptr(), BOTH_EMPTY) };
    Errno::result(done).map(drop)
}

/// What a mount forbids (`MOUNT_ATTR_*` of linux/mount.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountRules(u64);

impl MountRules {
    /// Nothing can be written.
    pub const READ_ONLY: Self = Self(1);
    /// Set-user-id bits and file capabilities mean nothing, and device nodes are only files.
    pub const NO_PRIVILEGE: Self = Self(2 | 4);
    /// No set-user-id, but devices.
    pub const NO_SUID: Self = Self(2);
    /// Nothing can be executed.
    pub const NO_EXEC: Self = Self(8);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Adds rules to a mount, and to all below it if `recursive`, and cuts its ties to where it was copied from in one direction:
/// what is mounted there later still appears (automounted CVMFS), nothing goes back. With a user namespace, files of one owner
/// show as another's (its maps say which).
///
/// # Errors
/// As mount_setattr(2); EINVAL where the file system cannot show other owners.
pub fn rule_mount(
    tree: impl AsFd,
    rules: MountRules,
    recursive: bool,
    owners: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    const IDMAP: u64 = 0x0010_0000;
    let namespace = owners.map_or(Ok(0), |fd| u64::try_from(fd.as_raw_fd()).map_err(|_| Errno::EBADF))?;
    let set = rules.0 | if owners.is_some() { IDMAP } else { 0 };
    // struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
    let attributes: [u64; 4] = [set, 0, libc::MS_SLAVE, namespace];
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let fd = tree.as_fd().as_raw_fd();
    // SAFETY: the structure has the layout and size that the call is told, and outlives it.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, attributes.as_ptr(), size_of_val(&attributes))
    };
    Errno::result(done).map(drop)
}
