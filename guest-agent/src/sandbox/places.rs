//! Parts of the VM that no payload gets to see, whoever asks.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname},
        stat::{SFlag, fstat, stat},
    },
};

use crate::protocol::Refusal;

/// Sockets, devices and processes of the VM are no files for payloads.
const SECRET: [&str; 5] = ["/dev", "/proc", "/sys", "/run", "/var/run"];

/// Judges an open folder or file that is to be shown to a payload, in the mount namespace that it was opened in.
///
/// # Errors
/// A sentence for the caller.
pub fn check(open: impl AsFd, name: &str) -> Result<(), Refusal> {
    let about = fstat(&open).map_err(|e| Refusal::caller(format!("{name} is unusable: {e}")))?;
    let own = stat("/").map(|root| root.st_dev).ok();
    let path = path(open);
    if path == Path::new("/") {
        return Err(Refusal::policy(format!(
            "{name} is the whole VM, with everything that payloads must not see; give the folders that are needed"
        )));
    }
    let secret = SECRET.iter().any(|place| {
        let same_mount = stat(*place).is_ok_and(|there| there.st_dev == about.st_dev && Some(about.st_dev) != own);
        same_mount || path.starts_with(place)
    });
    if secret {
        return Err(Refusal::policy(format!(
            "{name} lies below /dev, /proc, /sys or /run of the VM, which no payload gets; copy what is needed elsewhere"
        )));
    }
    Ok(())
}

/// Judges whether it is apart from folders of the agent's: its socket, its records, the homes of other payloads. They need not lie in
/// one of the places above.
///
/// # Errors
/// A sentence for the caller.
pub fn check_apart(open: impl AsFd, own: &[&Path], name: &str) -> Result<(), Refusal> {
    let about = fstat(&open).map_err(|e| Refusal::caller(format!("{name} is unusable: {e}")))?;
    let path = path(open);
    let meets = |folder: &&&Path| {
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
        // What is mounted below the folder shown is not shown with it.
        let inside = folder.starts_with(&path) && stat(&folder).is_ok_and(|there| there.st_dev == about.st_dev);
        inside || path.starts_with(folder)
    };
    match own.iter().find(meets) {
        Some(folder) => Err(Refusal::policy(format!(
            "{name} is or holds {}, which is the agent's own; show a folder apart from it",
            folder.display()
        ))),
        None => Ok(()),
    }
}

/// Where it is, as the kernel knows it.
#[must_use]
pub fn path(open: impl AsFd) -> PathBuf {
    let number = open.as_fd().as_raw_fd().to_string();
    fs::read_link(Path::new("/proc/self/fd").join(number)).unwrap_or_default()
}

/// A directory descriptor would be a way out of the sandbox, a raw disk worse. A socket of the VM's own network would send
/// with ports that are nobody's.
///
/// # Errors
/// A sentence for the caller.
pub fn check_stream(fd: &OwnedFd, name: &str) -> Result<(), Refusal> {
    let refuse =
        |what: &str| Refusal::caller(format!("standard {name} is {what}; redirect it to a file, a pipe or /dev/null"));
    let about = fstat(fd).map_err(|e| refuse(&format!("unusable ({e})")))?;
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| refuse(&format!("unusable ({e})")))?;
    let kind = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
    if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
        return Err(refuse("only a path"));
    }
    match kind {
        SFlag::S_IFDIR => Err(refuse("a directory")),
        SFlag::S_IFBLK => Err(refuse("a block device")),
        SFlag::S_IFSOCK if family(fd) != Some(AddressFamily::Unix) => {
            Err(refuse("a network socket, which would leave the VM outside of the payload's ports"))
        }
        SFlag::S_IFSOCK | SFlag::S_IFREG | SFlag::S_IFIFO | SFlag::S_IFCHR => Ok(()),
        // io_uring, eBPF, pidfd … have no kind at all.
        _ => Err(refuse("no file, pipe, terminal or Unix socket")),
    }
}

fn family(socket: &OwnedFd) -> Option<AddressFamily> {
    getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?.family()
}
