//! User namespaces: the one that a payload lives in, and the one that describes whose files a folder of the caller's shows.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::{OFlag, openat},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{signal::Signal, stat::Mode},
};

use super::{
    INSIDE,
    failure::{StepError, step},
    forker::{Born, Forker},
};
use crate::sys;

/// Gives the payload's user namespace its one uid and gid.
pub(super) fn map_payload(born: &Born, outside: u32) -> Result<(), StepError> {
    let map = format!("{INSIDE} {outside} 1");
    write_maps(&folder(born)?, &map, &map)
}

/// Gives a namespace that the caller made without rights its one uid and gid: the caller's own.
pub(super) fn map_own(born: &Born) -> Result<(), StepError> {
    write_maps(
        &folder(born)?,
        &format!("{INSIDE} {} 1", nix::unistd::geteuid()),
        &format!("{INSIDE} {} 1", nix::unistd::getegid()),
    )
}

/// The same for the namespace that this process has just made below such a one.
pub(super) fn map_myself() -> Result<(), StepError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = nix::fcntl::open("/proc/self", flags, Mode::empty()).map_err(step("open /proc/self"))?;
    let map = format!("{INSIDE} {INSIDE} 1");
    write_maps(&folder, &map, &map)
}

/// A user namespace nobody lives in, in which `owner` is the payload's uid outside: a mount that carries it shows the owner's
/// files as the payload's, and what the payload makes there is the owner's.
///
/// # Errors
/// The step and the kernel's answer.
pub fn mapped(forker: &Forker, owner: (u32, u32), outside: u32) -> Result<OwnedFd, StepError> {
    let born = forker.holder().map_err(|e| step("make a user namespace")(io::Error::other(e)))?;
    let result = folder(&born)
        .and_then(|folder| {
            write_maps(&folder, &format!("{} {outside} 1", owner.0), &format!("{} {outside} 1", owner.1))
        })
        .and_then(|()| namespace(&born, "user"));
    let _ = sys::signal_process(&born.process, Signal::SIGKILL);
    result
}

/// One of the process's namespaces.
pub(super) fn namespace(born: &Born, kind: &str) -> Result<OwnedFd, StepError> {
    let path = format!("ns/{kind}");
    openat(folder(born)?, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open a namespace"))
}

/// The process's folder in `/proc`.
fn folder(born: &Born) -> Result<OwnedFd, StepError> {
    let path = format!("/proc/{}", born.pid);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(step("open a process"))?;
    // The folder means one process for ever. That it is ours: the number was ours when we got it, and ours still lives.
    if ended(born) {
        return Err(step("open a process")(io::Error::other("it is gone")));
    }
    Ok(folder)
}

/// Writes the maps of a process's user namespace. `setgroups` is denied first: dropping a group could otherwise gain what that
/// group is refused.
fn write_maps(folder: &OwnedFd, users: &str, groups: &str) -> Result<(), StepError> {
    for (name, text) in [("setgroups", "deny"), ("gid_map", groups), ("uid_map", users)] {
        let file = openat(folder, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
        let file = file.map_err(step(format!("open {name}")))?;
        // One write: the kernel takes a map whole or not at all.
        File::from(file).write_all(text.as_bytes()).map_err(step(format!("write {name}")))?;
    }
    Ok(())
}

fn ended(born: &Born) -> bool {
    let mut fds = [PollFd::new(born.process.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds.iter().any(|fd| fd.any().unwrap_or(false))
}
