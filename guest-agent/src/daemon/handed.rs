//! What a client hands over with its request: open files, each judged before anything is made of it.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        socket::UnixCredentials,
        stat::{SFlag, fstat},
    },
};

use crate::{
    protocol::Refusal,
    sandbox::{forker::Forker, mounts, owners, places},
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
            places::check_stream(fd, name)?;
        }
        let rootfs = if shape.rootfs { Some(Shown::folder(next()?, caller, "--rootfs", false)?) } else { None };
        let work = if shape.work { Some(Shown::folder(next()?, caller, "--work", true)?) } else { None };
        let mut binds = Vec::new();
        for Bind { target, writable } in &shape.binds {
            let source = next()?;
            let (path, target) = (places::path(&source), target.as_path());
            let name = if path == target {
                target.display().to_string()
            } else {
                format!("{} (to be {})", path.display(), target.display())
            };
            binds.push(Shown::check(source, caller, &name, *writable)?);
        }
        Ok(Self { stdio, rootfs, work, binds })
    }

    /// What the payload may write to and is the caller's, opened a second time.
    ///
    /// # Errors
    /// No more descriptors.
    pub(super) fn writable(&self) -> Result<Vec<OwnedFd>, Refusal> {
        let shown = self.work.iter().chain(&self.binds).filter(|shown| shown.writable);
        shown
            .map(|shown| shown.fd.try_clone().map_err(|e| Refusal::system(format!("a folder cannot be kept: {e}"))))
            .collect()
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
        if writable && kind == SFlag::S_IFREG && about.st_nlink > 1 {
            return Err(Refusal::policy(format!(
                "{name} has more than one name (hard links), and payloads of others could have it by another; give a copy"
            )));
        }
        let owner = (mine && peer.uid() != 0).then(|| (peer.uid(), peer.gid()));
        let shown = Self { fd, owner, writable };
        places::check(&shown.fd, name)?;
        places::check_apart(&shown.fd, caller.own, name)?;
        Ok(shown)
    }

    fn detach(&self, forker: &Forker, outside: u32) -> Result<OwnedFd, Refusal> {
        let system = |e: crate::sandbox::StepError| Refusal::system(e.to_string());
        let owners = self.owner.map(|owner| owners::mapped(forker, owner, outside)).transpose().map_err(system)?;
        let rules =
            if self.writable { MountRules::NO_PRIVILEGE } else { MountRules::NO_PRIVILEGE.and(MountRules::READ_ONLY) };
        // What is mounted below comes along if all of it is as a stranger's anyway: /cvmfs is a folder of mounts. The rest of
        // the VM's tree hangs below / alone, which is refused.
        let recursive = self.owner.is_none() && !self.writable;
        mounts::detach(self.fd.as_fd(), rules, recursive, owners.as_ref().map(AsFd::as_fd)).map_err(system)
    }
}
