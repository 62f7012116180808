//! User namespaces: the one that a payload lives in, and the one that describes whose files its work directory shows.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    os::unix::net::UnixStream,
};

use nix::{
    fcntl::{OFlag, openat},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, kill},
        stat::Mode,
        wait::waitpid,
    },
    unistd::Pid,
};

use super::stage::{StageError, open_proc, step};
use crate::sys;

/// Writes the maps of a child's user namespace, the same for users and groups. `setgroups` is denied first: dropping a
/// group could otherwise gain what that group is refused.
pub(super) fn write_maps(proc: &OwnedFd, pid: Pid, map: &str) -> Result<(), StageError> {
    write_maps_of(proc, pid, map, map)
}

fn write_maps_of(proc: &OwnedFd, pid: Pid, users: &str, groups: &str) -> Result<(), StageError> {
    for (name, text) in [("setgroups", "deny"), ("gid_map", groups), ("uid_map", users)] {
        let path = format!("{pid}/{name}");
        let file = openat(proc, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
        let file = file.map_err(step(format!("open {name}")))?;
        // One write: the kernel takes a map whole or not at all.
        File::from(file).write_all(text.as_bytes()).map_err(step(format!("write {name}")))?;
    }
    Ok(())
}

/// A copy of the mount below a directory in which the files of `owner` are the payload's, and files that the payload makes
/// are `owner`'s. The directory came as a descriptor from its owner, so no path is looked up with root's rights.
pub(super) fn mapped(directory: &OwnedFd, owner: (u32, u32), outside: u32) -> Result<OwnedFd, StageError> {
    let namespace = namespace(&format!("{} {outside} 1", owner.0), &format!("{} {outside} 1", owner.1))?;
    let tree = sys::clone_mount(directory).map_err(step("copy the mount of the work directory"))?;
    sys::map_owners(&tree, &namespace)
        .map_err(step("map the owner of the work directory (its file system may not support it)"))?;
    Ok(tree)
}

/// A user namespace nobody lives in, with these maps.
fn namespace(users: &str, groups: &str) -> Result<OwnedFd, StageError> {
    let (mut near, mut far) = UnixStream::pair().map_err(step("socket pair"))?;
    let Some(pid) = sys::fork_single_threaded().map_err(step("fork"))? else {
        drop(near);
        let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
        let _ = far.write_all(&[u8::from(made)]);
        let _ = far.read(&mut [0]);
        sys::exit_now(0)
    };
    drop(far);
    let mut made = [0];
    let proc = open_proc()?;
    let result = near
        .read_exact(&mut made)
        .map_err(step("wait for a user namespace"))
        .and_then(|()| write_maps_of(&proc, pid, users, groups))
        .and_then(|()| File::open(format!("/proc/{pid}/ns/user")).map_err(step("open a user namespace")));
    let _ = kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
    Ok(result?.into())
}
