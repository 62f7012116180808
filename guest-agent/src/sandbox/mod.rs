//! What is built around a payload, network apart.
//!
//! Three processes: the daemon ([`Sandbox`] here), one single-threaded [`forker`] for all payloads, and each payload's own
//! [`init`], PID 1 of its namespace. Nothing forks in a process with threads. All namespaces but the user namespace belong to the VM's
//! real root: whatever a payload becomes inside its user namespace, it has no power over them.
//!
//! A sandbox can be prepared before its payload is known: everything up to the point where PID 1 has given up its rights needs
//! only a lease.

pub mod executable;
mod failure;
pub mod forker;
pub mod init;
pub mod landlock;
pub mod manifest;
pub mod mounts;
pub mod owners;
pub mod places;
pub mod rootless;
pub mod scratch;
pub mod seccomp;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use vestigo_model::{Executable, Exit};

use self::forker::Forker;
pub use self::{
    failure::StepError,
    mounts::{Extra, Template},
};
use crate::{
    protocol::{Refusal, code},
    sys,
    wire::{Channel, WireError},
};

/// Uid and gid of every payload in its own eyes.
pub const INSIDE: u32 = 1000;
/// Its home, on the VM's disk.
pub const HOME: &str = "/work";
/// Host name inside, unless another is asked for.
pub const HOSTNAME: &str = "payload";
/// Longest time that building may take before the agent gives up.
const BUILD_PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for killed processes to be gone. What is stuck in the kernel for longer is reported and left.
const DEATH_PATIENCE: Duration = Duration::from_secs(20);

/// What PID 1 has to know to prepare. Descriptors ride along in this order: the doors, the mounts of the home and the two temporary folders, one
/// for each [`Extra::Tree`], then the foreign root if there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How many files of cgroups (v1, `tasks`) it is to enter by.
    pub doors: usize,
    /// Mounts that the payload asks for.
    pub extras: Vec<Extra>,
    /// Another system's root takes the place of the VM's.
    pub foreign: bool,
    /// The payload may make user namespaces.
    pub nested: bool,
    /// Host name inside.
    pub hostname: String,
}

impl Default for Plan {
    fn default() -> Self {
        Self { doors: 0, extras: Vec::new(), foreign: false, nested: false, hostname: HOSTNAME.to_owned() }
    }
}

/// What PID 1 is to run. Standard input, output and error ride along, then what the payload is to find at its descriptors
/// 3 and above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub directory: PathBuf,
    /// The first of the further descriptors is its token; it finds it by BEARER_TOKEN_FILE.
    pub token: bool,
}

/// What will run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// The program.
    pub executable: Executable,
    /// The program that reads it, if it is a script.
    pub interpreter: Option<Executable>,
}

/// Inside → daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// The user namespace waits for its maps.
    Unmapped,
    /// All is built, and every right given up; this is what Landlock adds for the payload.
    Prepared(landlock::Applied),
    /// A program is found that nobody seems to be able to change. It rides along: whose it is cannot be seen from inside. At most once
    /// for a program, twice for a script.
    Found,
    /// This is what will run (and the interpreter of a script), and nobody can change it any more.
    Ready(Programs),
    /// The program has been executed.
    Started,
    /// It will not run, and why.
    Failed {
        /// Exit code for the pilot.
        code: u8,
        /// One sentence.
        reason: String,
    },
    /// The first process ended, so everything ends.
    Ended(Exit),
}

/// Daemon → inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// The maps are written.
    Mapped,
    /// This is the payload.
    Run(Run),
    /// About the program that was found.
    Settle {
        /// Really nobody can change it where it lies: no copy is needed.
        fixed: bool,
    },
    /// Run it.
    Go,
    /// Pass this signal to the payload.
    Signal(Signal),
}

/// A signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// As in signal(7).
    pub number: i32,
}

/// Ends a whole payload. Can be kept by whoever may have to.
#[derive(Debug, Clone)]
pub struct Killer(Arc<OwnedFd>);

impl Killer {
    /// PID 1 dies, and with it everything in its namespace.
    pub fn kill(&self) {
        let _ = sys::signal_process(&*self.0, nix::sys::signal::Signal::SIGKILL);
    }

    /// Whether it is dead, and with it everything: the kernel lets PID 1 end only after all others of its namespace.
    #[must_use]
    pub fn dead_within(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, wait) {
                Ok(0) if left.is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    }
}

/// A payload's sandbox, from the daemon's side. Dropping it kills what is inside and waits until it is dead.
#[derive(Debug)]
pub struct Sandbox {
    killer: Killer,
    talk: Channel,
    /// Its mount namespace. Whoever lets go of it last waits milliseconds for the kernel to take it apart; that is not to be
    /// its last process, whose end the pilot waits for.
    _mounts: Option<OwnedFd>,
    landlock: Option<landlock::Applied>,
}

fn failed(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal { code: code::AGENT, reason: format!("the sandbox could not be built: {what}: {error}") }
}

/// What a sandbox stands on.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// Its network namespace.
    pub network: BorrowedFd<'a>,
    /// Its cgroup of version 2, if the VM has such.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The payload's uid and gid in the VM.
    pub outside: u32,
}

impl Sandbox {
    /// Builds a sandbox up to the point where a payload can be named.
    /// `fds` are the plan's descriptors.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn prepare(forker: &Forker, ground: Ground<'_>, plan: &Plan, fds: &[BorrowedFd<'_>]) -> Result<Self, Refusal> {
        let (talk, inside) = Channel::pair().map_err(|e| failed("socket pair", e))?;
        let born = forker.init(inside.as_fd(), ground.network, ground.cgroup).map_err(|e| failed("fork", e))?;
        drop(inside);
        let killer = Killer(Arc::new(born.process.try_clone().map_err(|e| failed("copy a descriptor", e))?));
        let mounts_of = |born| owners::namespace(born, "mnt").map_err(|e| failed("open its mount namespace", e));
        let mut sandbox = Self { killer, talk, _mounts: Some(mounts_of(&born)?), landlock: None };
        sandbox.talk.send(plan, fds).map_err(|e| failed("tell the inside", e))?;
        sandbox.expect(&Report::Unmapped)?;
        owners::map_payload(&born, ground.outside).map_err(|e| failed("map ids", e))?;
        sandbox.order(&Order::Mapped, &[])?;
        match sandbox.report()? {
            Report::Prepared(applied) => sandbox.landlock = Some(applied),
            other => return Err(failed("unexpected report", format!("{other:?}"))),
        }
        Ok(sandbox)
    }

    fn order(&mut self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<(), Refusal> {
        self.talk.send(order, fds).map_err(|e| failed("tell the inside", e))
    }

    fn report(&mut self) -> Result<Report, Refusal> {
        match self.talk.receive_within(BUILD_PATIENCE) {
            Ok(Report::Failed { code, reason }) => Err(Refusal { code, reason }),
            Ok(report) => Ok(report),
            Err(error) => Err(failed("no report from inside", error)),
        }
    }

    fn expect(&mut self, wanted: &Report) -> Result<(), Refusal> {
        match self.report()? {
            report if report == *wanted => Ok(()),
            other => Err(failed("unexpected report", format!("{other:?}"))),
        }
    }

    /// Names the payload and waits until what is to run is open and hashed: the program, and the interpreter if it is a script.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn load(&mut self, run: Run, fds: &[BorrowedFd<'_>]) -> Result<Programs, Refusal> {
        self.order(&Order::Run(run), fds)?;
        loop {
            match self.report()? {
                Report::Found => {
                    let program = self.talk.take_fd();
                    let fixed = program.is_some_and(|program| executable::only_root_changes(program.as_fd()));
                    self.order(&Order::Settle { fixed }, &[])?;
                }
                Report::Ready(programs) => return Ok(programs),
                other => return Err(failed("unexpected report", format!("{other:?}"))),
            }
        }
    }

    /// Lets the program run.
    ///
    /// # Errors
    /// It could not be executed after all.
    pub fn go(&mut self) -> Result<(), Refusal> {
        self.order(&Order::Go, &[])?;
        self.expect(&Report::Started)
    }

    /// Passes a signal on.
    pub fn signal(&mut self, number: i32) {
        let _ = self.talk.send(&Order::Signal(Signal { number }), &[]);
    }

    /// For poll(2): readable when the payload has ended.
    #[must_use]
    pub const fn talk(&self) -> &Channel {
        &self.talk
    }

    /// How it ended; call when [`Self::talk`] is readable. `None` when it was killed from outside.
    pub fn ended(&mut self) -> Option<Exit> {
        match self.talk.receive_within(Duration::from_secs(1)) {
            Ok(Report::Ended(exit)) => Some(exit),
            Ok(_)
            | Err(
                WireError::Closed
                | WireError::TimedOut
                | WireError::TooLong
                | WireError::Malformed(_)
                | WireError::Io(_),
            ) => None,
        }
    }

    /// What Landlock adds, for the manifest.
    #[must_use]
    pub const fn landlock(&self) -> Option<&landlock::Applied> {
        self.landlock.as_ref()
    }

    /// A handle to end it.
    #[must_use]
    pub fn killer(&self) -> Killer {
        self.killer.clone()
    }

    /// Kills what still lives and waits until everything is dead.
    ///
    /// # Errors
    /// Something is stuck in the kernel.
    pub fn finish(&mut self) -> io::Result<()> {
        self.killer.kill();
        if self.killer.dead_within(DEATH_PATIENCE) { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.finish().is_err() {
            tracing::error!("processes of a payload cannot be killed: they are stuck in the kernel");
        }
    }
}
