//! A sandbox that nobody with rights stands behind: the caller forks it itself, into a user namespace of its own and
//! namespaces that belong to that.
//!
//! What is one payload's, and how it is locked up, is the same code as for the daemon's sandboxes; this is only what has to be done
//! differently. The kernel locks together all mounts that a user namespace gets from outside, so they are copied with all
//! that lies below them, and what the caller opened before the fork belongs to another mount namespace: it is opened again here, with
//! the same rights. A fresh `/proc` is allowed only as long as the VM's is still there.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        stat::{Mode, SFlag, fstat, umask},
    },
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout, sethostname},
};

use super::{
    INSIDE, Killer, Order, Plan, Report, Sandbox, StepError, failed,
    failure::step,
    forker::Born,
    init,
    mounts::{self, Extra, Template},
    owners, places, scratch,
};
use crate::{
    network::netlink::{Change, Netlink},
    protocol::Refusal,
    sys::{self, MountRules},
    wire::Channel,
};

/// File with the name servers, in the scratch folder.
pub const RESOLVERS: &str = "resolv.conf";
/// Folder to build on, in the scratch folder.
pub const ROOT: &str = "root";

/// A folder or file of the VM, by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// The payload may write. Then it has to be the caller's own.
    pub writable: bool,
}

/// What is wanted. Nothing of it is sent: the sandbox's PID 1 is a fork of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootless {
    /// As for the daemon's sandboxes; without doors.
    pub plan: Plan,
    /// What stands at each [`Extra::Tree`] of the plan, in its order.
    pub trees: Vec<Source>,
    /// Another system's root, if the plan says so.
    pub rootfs: Option<PathBuf>,
    /// A folder of the caller's as home.
    pub work: Option<PathBuf>,
    /// A [`scratch::Scratch`] of the caller's, with a file [`RESOLVERS`] and an empty folder [`ROOT`] in it.
    pub scratch: PathBuf,
    /// The VM's network, instead of an empty one.
    pub host_network: bool,
    /// Most processes and threads.
    pub pids: Option<u32>,
}

impl Sandbox {
    /// Builds a sandbox without rights, up to the point where a payload can be named. Only for a process with one thread.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn rootless(wish: &Rootless) -> Result<Self, Refusal> {
        let (talk, inside) = Channel::pair().map_err(|e| failed("socket pair", e))?;
        let mut namespaces =
            libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if !wish.host_network {
            namespaces |= libc::CLONE_NEWNET;
        }
        let (pid, process) = match sys::clone_single_threaded(namespaces, None) {
            Ok(Some(born)) => born,
            Ok(None) => enter(inside, wish),
            Err(errno) => return Err(no_namespaces(errno, wish.host_network)),
        };
        drop(inside);
        let born = Born { pid, process };
        let killer = Killer(Arc::new(born.process.try_clone().map_err(|e| failed("copy a descriptor", e))?));
        let mut sandbox = Self { killer, talk, _mounts: None, landlock: None };
        owners::map_own(&born).map_err(|e| closed_namespaces(&e.to_string()))?;
        sandbox.order(&Order::Mapped, &[])?;
        match sandbox.report() {
            Ok(Report::Prepared(applied)) => sandbox.landlock = Some(applied),
            Ok(other) => return Err(failed("unexpected report", format!("{other:?}"))),
            Err(refusal) if restricted() => return Err(closed_namespaces(&refusal.reason)),
            Err(refusal) => return Err(refusal),
        }
        Ok(sandbox)
    }
}

/// In the child. What it inherited is the caller's business.
fn enter(inside: UnixStream, wish: &Rootless) -> ! {
    if sys::close_all_but(&inside).is_err() {
        sys::exit_now(1);
    }
    init::run_rootless(Channel::new(inside), wish)
}

/// The kernel made no namespaces.
fn no_namespaces(errno: Errno, host_network: bool) -> Refusal {
    match errno {
        Errno::EPERM if !host_network => closed_namespaces(
            "the kernel does not permit it; inside of another sandbox, which allows no new networks, add --net host",
        ),
        Errno::ENOSPC => closed_namespaces("user.max_user_namespaces, or another limit on namespaces, is reached"),
        other => closed_namespaces(other.desc()),
    }
}

/// Whether this VM gives namespaces that are of no use (Ubuntu from 23.10 on).
fn restricted() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_ok_and(|on| on.trim() == "1")
}

fn closed_namespaces(why: &str) -> Refusal {
    Refusal::system(format!(
        "--plain needs user namespaces for ordinary users, and this VM does not give them ({why}); let root run `guest-agent daemon`, or set \
         user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0 where these exist"
    ))
}

impl Rootless {
    /// Everything that needs rights over the new namespaces, as their PID 1.
    pub(super) fn build(&self) -> Result<(), Refusal> {
        let failed = |e: StepError| if e.callers { Refusal::caller(e.to_string()) } else { failed("a step", e) };
        let (home, trees, foreign) = (self.home()?, self.trees()?, self.foreign()?);
        let mut private = self.private().map_err(failed)?;
        if let (Some(home), [first, ..]) = (home, &mut private) {
            *first = home;
        }
        self.furnish(private, trees, foreign).map_err(failed)
    }

    fn home(&self) -> Result<Option<OwnedFd>, Refusal> {
        let home = self.work.as_ref().map(|path| Source { path: path.clone(), writable: true });
        home.map(|home| home.detach("--work", true)).transpose()
    }

    fn foreign(&self) -> Result<Option<OwnedFd>, Refusal> {
        let root = self.rootfs.as_ref().map(|path| Source { path: path.clone(), writable: false });
        root.map(|root| root.detach("--rootfs", true)).transpose()
    }

    fn trees(&self) -> Result<Vec<OwnedFd>, Refusal> {
        self.trees.iter().map(|source| source.detach(&source.path.display().to_string(), false)).collect()
    }

    fn private(&self) -> Result<[OwnedFd; 4], StepError> {
        let [home, tmp, var_tmp] = scratch::mounts(&self.scratch)?;
        Ok([home, tmp, var_tmp, mounts::detach_file(&self.scratch.join(RESOLVERS))?])
    }

    fn furnish(&self, private: [OwnedFd; 4], trees: Vec<OwnedFd>, foreign: Option<OwnedFd>) -> Result<(), StepError> {
        umask(Mode::from_bits_truncate(0o022));
        let null =
            open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(step("open /dev/null"))?;
        // The pilot's pipes are for the payload alone.
        dup2_stdin(&null)
            .and_then(|()| dup2_stdout(&null))
            .and_then(|()| dup2_stderr(&null))
            .map_err(step("let go"))?;
        let root = self.scratch.join(ROOT);
        let processes = mounts::processes(&root)?;
        mounts::template(&Template { root, expose: Vec::new() })?;
        if !self.host_network {
            let up = Netlink::open().and_then(|mut netlink| netlink.apply(vec![Change::up(1)]));
            up.map_err(step("raise the loopback interface"))?;
        }
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(step("make a cgroup namespace"))?;
        sethostname(&self.plan.hostname).map_err(step("name the host"))?;
        sys::new_session_keyring().map_err(step("leave the session keyring"))?;
        self.limit()?;
        let mut trees = trees.into_iter();
        let extras = self.plan.extras.iter().map(|extra| {
            let tree = if matches!(extra, Extra::Tree(_)) { trees.next() } else { None };
            (extra.clone(), tree)
        });
        mounts::dress(&private, extras.collect(), foreign, Some(&processes))
    }

    /// Counted in the payload's own user namespace, so by payload (Linux 5.14 and newer). One more is PID 1.
    fn limit(&self) -> Result<(), StepError> {
        let Some(pids) = self.pids else { return Ok(()) };
        let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).map_err(step("limit processes"))?;
        let most = (u64::from(pids) + 1).min(hard);
        setrlimit(Resource::RLIMIT_NPROC, most, most).map_err(step("limit processes"))
    }
}

impl Source {
    /// Opens it with the caller's rights, judges it, and makes a mount of it.
    fn detach(&self, name: &str, folder: bool) -> Result<OwnedFd, Refusal> {
        let unusable =
            |e: Errno| Refusal::caller(format!("{name} cannot be opened: {e}; give a folder or file of your own"));
        // For reading: what the caller may not read is nothing to show.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = open(&self.path, flags, Mode::empty()).map_err(unusable)?;
        let about = fstat(&file).map_err(unusable)?;
        let kind = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFDIR && (folder || kind != SFlag::S_IFREG) {
            return Err(Refusal::caller(format!(
                "{name} is not a folder{}; give one",
                if folder { "" } else { " or file" }
            )));
        }
        // The caller's own id is the only one that this namespace knows.
        if self.writable && about.st_uid != INSIDE {
            return Err(Refusal::policy(format!("{name} does not belong to the caller; give one of your own")));
        }
        places::check(&file, name)?;
        let mut rules = MountRules::NO_PRIVILEGE;
        if !self.writable {
            rules = rules.and(MountRules::READ_ONLY);
        }
        mounts::detach(file.as_fd(), rules, true, None).map_err(|e| failed("a step", e))
    }
}

/// Makes what [`Rootless::scratch`] must hold besides the payload's folders.
///
/// # Errors
/// As the file system says.
pub fn furnish_scratch(scratch: &Path, resolvers: &str) -> io::Result<()> {
    use io::Write as _;
    std::fs::create_dir(scratch.join(ROOT))?;
    File::create_new(scratch.join(RESOLVERS))?.write_all(resolvers.as_bytes())
}
