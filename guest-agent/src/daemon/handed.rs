//! What a client hands over with its request: open files, each judged before anything is made of it.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        socket::{AddressFamily, SockaddrLike, SockaddrStorage, UnixCredentials, getsockname},
        stat::{SFlag, fstat, stat},
    },
};

use crate::{
    protocol::Refusal,
    sandbox::{forker::Forker, mounts, owners},
    shape::{Bind, Shape},
    sys::MountRules,
    wire::Channel,
};

/// A folder or file for the payload.
struct Shown {
    fd: OwnedFd,
    /// Its owner, if that is the caller: then the payload meets it with the caller's rights, else with a stranger's.
    owner: Option<(u32, u32)>,
    writable: bool,
}

/// Who hands something over, and to whose agent.
pub(super) struct Caller<'a> {
    pub peer: UnixCredentials,
    /// Folders of the agent's.
    pub own: &'a [&'a Path],
}

/// All of it.
pub(super) struct Descriptors {
    pub stdio: [OwnedFd; 3],
    rootfs: Option<Shown>,
    work: Option<Shown>,
    binds: Vec<Shown>,
    /// Paths that the payload may write to and that are the caller's.
    pub writable: Vec<PathBuf>,
}

impl Descriptors {
    pub(super) fn take(client: &mut Channel, caller: &Caller<'_>, shape: &Shape) -> Result<Self, Refusal> {
        let missing = || {
            Refusal::caller(
                "a file that should come with the request is missing; use `guest-agent exec` of the same version",
            )
        };
        let mut next = || client.take_fd().ok_or_else(missing);
        let stdio = [next()?, next()?, next()?];
        for (fd, name) in stdio.iter().zip(["input", "output", "error"]) {
            check_stdio(fd, name)?;
        }
        let rootfs = if shape.rootfs { Some(Shown::folder(next()?, caller, "--rootfs", false)?) } else { None };
        let work = if shape.work { Some(Shown::folder(next()?, caller, "--work", true)?) } else { None };
        let mut binds = Vec::new();
        for Bind { target, writable } in &shape.binds {
            binds.push(Shown::check(next()?, caller, &target.display().to_string(), *writable)?);
        }
        let writable = work.iter().chain(&binds).filter(|shown| shown.writable).map(Shown::path).collect();
        Ok(Self { stdio, rootfs, work, binds, writable })
    }

    /// Everything that [`crate::sandbox::Plan`] wants for this, in its order.
    pub(super) fn mounts(&self, forker: &Forker, outside: u32, private: [OwnedFd; 4]) -> Result<Vec<OwnedFd>, Refusal> {
        let detach = |shown: &Shown| shown.detach(forker, outside);
        let [home, tmp, var_tmp, resolvers] = private;
        let home = self.work.as_ref().map_or(Ok(home), detach)?;
        let mut all = vec![home, tmp, var_tmp, resolvers];
        for shown in self.binds.iter().chain(&self.rootfs) {
            all.push(detach(shown)?);
        }
        Ok(all)
    }
}

impl Shown {
    fn folder(fd: OwnedFd, caller: &Caller<'_>, name: &str, writable: bool) -> Result<Self, Refusal> {
        let about = fstat(&fd).map_err(|e| Refusal::caller(format!("{name} is unusable: {e}")))?;
        if SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
            return Err(Refusal::caller(format!("{name} is not a folder; give one")));
        }
        Self::check(fd, caller, name, writable)
    }

    /// What a payload may write to must be the caller's own: its files there will be the caller's.
    fn check(fd: OwnedFd, caller: &Caller<'_>, name: &str, writable: bool) -> Result<Self, Refusal> {
        let peer = caller.peer;
        let unusable = |e: nix::errno::Errno| Refusal::caller(format!("{name} is unusable: {e}"));
        let about = fstat(&fd).map_err(unusable)?;
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(unusable)?;
        if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
            return Err(Refusal::caller(format!("{name} came as a mere path; open it for reading")));
        }
        let kind = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFDIR && kind != SFlag::S_IFREG {
            return Err(Refusal::caller(format!("{name} is neither a folder nor a file; give one of these")));
        }
        let mine = about.st_uid == peer.uid();
        if writable && peer.uid() == 0 {
            return Err(Refusal::policy(format!(
                "{name} would let a payload make root's files; call as an ordinary user, or leave it out"
            )));
        }
        if writable && !mine {
            return Err(Refusal::policy(format!(
                "{name} belongs to uid {}, not to the caller (uid {}); give one of your own",
                about.st_uid,
                peer.uid()
            )));
        }
        let owner = (mine && peer.uid() != 0).then(|| (peer.uid(), peer.gid()));
        let shown = Self { fd, owner, writable };
        shown.check_place(about.st_dev, caller.own, name)?;
        Ok(shown)
    }

    /// Sockets, devices and processes of the VM are no files for payloads.
    fn check_place(&self, device: u64, own: &[&Path], name: &str) -> Result<(), Refusal> {
        self.check_agents(device, own, name)?;
        let own = stat("/").map(|root| root.st_dev).ok();
        let path = self.path();
        let secret = ["/dev", "/proc", "/sys", "/run", "/var/run"].iter().any(|place| {
            let same_mount = stat(*place).is_ok_and(|about| about.st_dev == device && Some(device) != own);
            same_mount || path.starts_with(place)
        });
        if secret {
            return Err(Refusal::policy(format!(
                "{name} lies below /dev, /proc, /sys or /run of the VM, which no payload gets; copy what is needed elsewhere"
            )));
        }
        Ok(())
    }

    /// Nor is what the agent keeps: its socket, its records, the homes of other payloads.
    fn check_agents(&self, device: u64, own: &[&Path], name: &str) -> Result<(), Refusal> {
        let path = self.path();
        let holds = |folder: &&&Path| {
            let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
            // What is mounted below the folder shown is not shown with it.
            let inside = folder.starts_with(&path) && stat(&folder).is_ok_and(|about| about.st_dev == device);
            inside || path.starts_with(folder)
        };
        match own.iter().find(holds) {
            Some(folder) => Err(Refusal::policy(format!(
                "{name} is or holds {}, which is the agent's own; show a folder apart from it",
                folder.display()
            ))),
            None => Ok(()),
        }
    }

    /// As the kernel knows it.
    fn path(&self) -> PathBuf {
        fs::read_link(Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string())).unwrap_or_default()
    }

    fn detach(&self, forker: &Forker, outside: u32) -> Result<OwnedFd, Refusal> {
        let system = |e: crate::sandbox::StepError| Refusal::system(e.to_string());
        let owners = self.owner.map(|owner| owners::mapped(forker, owner, outside)).transpose().map_err(system)?;
        let rules =
            if self.writable { MountRules::NO_PRIVILEGE } else { MountRules::NO_PRIVILEGE.and(MountRules::READ_ONLY) };
        mounts::detach(self.fd.as_fd(), rules, false, owners.as_ref().map(AsFd::as_fd)).map_err(system)
    }
}

/// A directory descriptor would be a way out of the sandbox, a raw disk worse. A socket of the VM's own network would send
/// with ports that are nobody's.
fn check_stdio(fd: &OwnedFd, name: &str) -> Result<(), Refusal> {
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
