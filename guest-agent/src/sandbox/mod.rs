//! What is built around a payload, network apart.
//!
//! Three processes: the daemon ([`Sandbox`] here), one re-executed single-threaded [`stage`] per payload that makes
//! namespaces and mounts and lives as long as they do, and the payload's own [`init`], PID 1 of its namespace. Nothing forks in
//! a process with threads. All namespaces but the user namespace belong to the VM's real root: whatever a payload becomes
//! inside its user namespace, it has no power over them.

pub mod executable;
pub mod init;
pub mod landlock;
pub mod manifest;
pub mod mounts;
pub mod owners;
pub mod scratch;
pub mod seccomp;
pub mod stage;

use std::{
    io,
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Executable, Exit};

use crate::{
    protocol::{Refusal, code},
    wire::{Channel, WireError},
};

/// The hidden sub-command that [`stage`] answers to.
pub const STAGE: &str = "sandbox-stage";
/// Uid and gid of every payload in its own eyes.
pub const INSIDE: u32 = 1000;
/// Its home, on the VM's disk.
pub const HOME: &str = "/work";
/// Longest time that building may take before the agent gives up.
const BUILD_PATIENCE: Duration = Duration::from_secs(60);

/// Everything a stage has to know. Descriptors ride along in this order: the channel to PID 1, the network namespace,
/// standard input, output, error, then the work directory if `work_owner` is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// An empty folder to build the root on.
    pub root: PathBuf,
    /// The payload's folder on the VM's disk.
    pub scratch: PathBuf,
    /// Its uid and gid outside.
    pub outside: u32,
    /// Owner (uid, gid) of the work directory that takes the place of the scratch home.
    pub work_owner: Option<(u32, u32)>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// More folders to show, read-only.
    pub expose: Vec<PathBuf>,
    /// Host name inside.
    pub hostname: String,
}

/// Inside → daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// All is built and the program is found. It rides along: whose it is cannot be seen from inside.
    Found,
    /// This is what will run, and nobody can change it any more.
    Ready(Executable),
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Hash the program.
    Settle {
        /// Nobody can change it where it lies: no copy is needed.
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
pub struct Killer(Arc<UnixStream>);

impl Killer {
    /// The stage kills PID 1, and with it everything, as soon as it sees this.
    pub fn kill(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A payload's sandbox, from the daemon's side. Dropping it kills what is inside and waits until it is dead.
#[derive(Debug)]
pub struct Sandbox {
    stage: Child,
    life: Killer,
    talk: Channel,
}

fn failed(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal { code: code::AGENT, reason: format!("the sandbox could not be built: {what}: {error}") }
}

impl Sandbox {
    /// Builds a sandbox and waits until the program to run is open and hashed in it. The calling thread must outlive it:
    /// the stage is killed when the thread ends.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn build(plan: &Plan, fds: &[BorrowedFd<'_>]) -> Result<(Self, Executable), Refusal> {
        let (mut control, far) = Channel::pair().map_err(|e| failed("socket pair", e))?;
        let (talk, inside) = Channel::pair().map_err(|e| failed("socket pair", e))?;
        let stage = Command::new("/proc/self/exe")
            .arg(STAGE)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| failed("start the stage", e))?;
        let life = Killer(Arc::new(control.stream().try_clone().map_err(|e| failed("socket", e))?));
        let mut sandbox = Self { stage, life, talk };
        let mut all = vec![inside.as_fd()];
        all.extend_from_slice(fds);
        control.send(plan, &all).map_err(|e| failed("tell the stage", e))?;
        drop(inside);
        let mut report = sandbox.talk.receive_within(BUILD_PATIENCE);
        if let Ok(Report::Found) = report {
            let program = sandbox.talk.take_fd();
            let fixed = program.is_some_and(|program| executable::only_root_changes(program.as_fd()));
            sandbox.talk.send(&Order::Settle { fixed }, &[]).map_err(|e| failed("tell the inside", e))?;
            report = sandbox.talk.receive_within(BUILD_PATIENCE);
        }
        match report {
            Ok(Report::Ready(executable)) => Ok((sandbox, executable)),
            Ok(Report::Failed { code, reason }) => Err(Refusal { code, reason }),
            Ok(other) => Err(failed("unexpected report", format!("{other:?}"))),
            Err(error) => Err(failed("no report from inside", error)),
        }
    }

    /// Lets the program run.
    ///
    /// # Errors
    /// It could not be executed after all.
    pub fn go(&mut self) -> Result<(), Refusal> {
        self.talk.send(&Order::Go, &[]).map_err(|e| failed("start the payload", e))?;
        match self.talk.receive_within(BUILD_PATIENCE) {
            Ok(Report::Started) => Ok(()),
            Ok(Report::Failed { code, reason }) => Err(Refusal { code, reason }),
            Ok(other) => Err(failed("unexpected report", format!("{other:?}"))),
            Err(error) => Err(failed("start the payload", error)),
        }
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

    /// A handle to end it.
    #[must_use]
    pub fn killer(&self) -> Killer {
        self.life.clone()
    }

    /// Kills what still lives and waits until everything is dead: the stage ends only after PID 1, and PID 1 only after
    /// every process of its namespace.
    ///
    /// # Errors
    /// As waitpid(2).
    pub fn finish(&mut self) -> io::Result<()> {
        self.life.kill();
        self.stage.wait().map(drop)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}
