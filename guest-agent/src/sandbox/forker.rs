//! The single-threaded process that every sandbox descends from. It is this program, executed again as root, and lives as
//! long as the daemon: it builds the template of all file trees once, moves into it, and from then on only forks.
//!
//! The daemon has threads and a large memory, so it must not fork itself; a process of its own for every payload would cost
//! more than the namespaces do.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    libc,
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::{Pid, dup2_stdin},
};
use serde::{Deserialize, Serialize};

use super::{
    failure::{StepError, step},
    init::{self, Filters},
    mounts::{self, Template},
};
use crate::{
    sys,
    wire::{Channel, WireError},
};

/// The hidden sub-command that [`run`] answers to.
pub const VERB: &str = "sandbox-forker";
/// Longest time that the template or a fork may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Daemon → forker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "errand", rename_all = "kebab-case")]
enum Errand {
    /// PID 1 of a payload. The channel to it, its network namespace and, if so, its cgroup ride along.
    Init {
        /// Whether a cgroup (v2) rides along.
        cgroup: bool,
    },
    /// A process that does nothing but hold a user namespace.
    Holder,
}

/// Forker → daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
enum Answer {
    /// The template stands.
    Ready,
    /// Forked; the descriptor that means the process rides along.
    Born {
        /// Its number in the VM.
        pid: i32,
    },
    /// Not done, and why.
    Failed {
        /// One sentence.
        reason: String,
    },
}

/// The forker is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ForkerError {
    /// It cannot be started.
    #[error("the forker of sandboxes cannot be started: {0}")]
    Start(io::Error),
    /// It is gone or does not answer.
    #[error("the forker of sandboxes does not answer: {0}")]
    Wire(#[from] WireError),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A process that the forker made.
#[derive(Debug)]
pub struct Born {
    /// Its number in the VM.
    pub pid: Pid,
    /// It, whatever becomes of the number.
    pub process: OwnedFd,
}

#[derive(Debug)]
struct Running {
    control: Channel,
    process: Child,
}

/// The daemon's side. A forker that dies takes its payloads with it; the next one is started when it is needed.
#[derive(Debug)]
pub struct Forker {
    template: Template,
    running: Mutex<Option<Running>>,
}

impl Forker {
    /// Starts it.
    ///
    /// # Errors
    /// [`ForkerError`].
    pub fn start(template: Template) -> Result<Self, ForkerError> {
        let running = Running::start(&template)?;
        Ok(Self { template, running: Mutex::new(Some(running)) })
    }

    /// Makes PID 1 of a sandbox.
    ///
    /// # Errors
    /// [`ForkerError`].
    pub fn init(
        &self,
        talk: BorrowedFd<'_>,
        network: BorrowedFd<'_>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Born, ForkerError> {
        let fds: Vec<_> = [talk, network].into_iter().chain(cgroup).collect();
        self.errand(Errand::Init { cgroup: cgroup.is_some() }, &fds)
    }

    /// Makes a process that holds a user namespace until it is killed.
    ///
    /// # Errors
    /// [`ForkerError`].
    pub fn holder(&self) -> Result<Born, ForkerError> {
        self.errand(Errand::Holder, &[])
    }

    fn errand(&self, errand: Errand, fds: &[BorrowedFd<'_>]) -> Result<Born, ForkerError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let forker = match running.take() {
            Some(forker) => running.insert(forker),
            None => running.insert(Running::start(&self.template)?),
        };
        let result = forker.ask(errand, fds);
        if matches!(result, Err(ForkerError::Wire(_))) {
            *running = None;
        }
        result
    }
}

impl Running {
    fn start(template: &Template) -> Result<Self, ForkerError> {
        let (mut control, far) = Channel::pair().map_err(ForkerError::Start)?;
        let process = Command::new("/proc/self/exe")
            .arg(VERB)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(ForkerError::Start)?;
        control.send(template, &[])?;
        match control.receive_within(PATIENCE)? {
            Answer::Ready => Ok(Self { control, process }),
            Answer::Failed { reason } => Err(ForkerError::Refused(reason)),
            Answer::Born { .. } => Err(ForkerError::Refused("the forker speaks another language".into())),
        }
    }

    fn ask(&mut self, errand: Errand, fds: &[BorrowedFd<'_>]) -> Result<Born, ForkerError> {
        self.control.send(&errand, fds)?;
        match self.control.receive_within(PATIENCE)? {
            Answer::Born { pid } => {
                let process = self.control.take_fd().ok_or(WireError::Closed)?;
                Ok(Born { pid: Pid::from_raw(pid), process })
            }
            Answer::Failed { reason } => Err(ForkerError::Refused(reason)),
            Answer::Ready => Err(ForkerError::Refused("the forker speaks another language".into())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The hidden sub-command. Returns the process's exit code.
#[must_use]
pub fn run() -> u8 {
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut control = Channel::new(UnixStream::from(control));
    let Ok(template) = control.receive::<Template>() else { return 1 };
    let answer = match settle_in(&template) {
        Ok(()) => Answer::Ready,
        Err(error) => Answer::Failed { reason: format!("the sandbox's file tree could not be built: {error}") },
    };
    if control.send(&answer, &[]).is_err() || answer != Answer::Ready {
        return 1;
    }
    let filters = Filters::compile();
    // The daemon's end is ours.
    while let Ok(errand) = control.receive::<Errand>() {
        let (answer, process) = match carry_out(errand, &mut control, &filters) {
            Ok(Born { pid, process }) => (Answer::Born { pid: pid.as_raw() }, Some(process)),
            Err(error) => (Answer::Failed { reason: error.to_string() }, None),
        };
        let fds: Vec<_> = process.iter().map(AsFd::as_fd).collect();
        if control.send(&answer, &fds).is_err() {
            return 1;
        }
    }
    0
}

fn settle_in(template: &Template) -> Result<(), StepError> {
    // Not tied to its parent by a signal, which would come with the end of the very thread that started it: it sees the
    // daemon's end as the end of the line.
    // The daemon is among the last that a kernel without memory may kill; its payloads are not.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    umask(Mode::from_bits_truncate(0o022));
    // Nobody here asks how a child ended: the daemon knows by its descriptor that it did.
    sys::ignore_children().map_err(step("leave children to the kernel"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(step("make a mount namespace"))?;
    mounts::template(template)?;
    let null = open("/dev/null", OFlag::O_RDWR, Mode::empty()).map_err(step("open /dev/null"))?;
    // Children must not hold the line to the daemon.
    dup2_stdin(&null).map_err(step("let go of the line"))
}

fn carry_out(errand: Errand, control: &mut Channel, filters: &Filters) -> Result<Born, StepError> {
    let mut next = || control.take_fd().ok_or_else(|| step("take descriptors")(io::Error::other("too few came")));
    match errand {
        Errand::Init { cgroup } => {
            let (talk, network) = (next()?, next()?);
            let cgroup = if cgroup { Some(next()?) } else { None };
            const NAMESPACES: libc::c_int =
                libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
            match sys::clone_single_threaded(NAMESPACES, cgroup.as_ref().map(AsFd::as_fd)).map_err(step("fork"))? {
                Some((pid, process)) => Ok(Born { pid, process }),
                None => {
                    control.close();
                    init::run(Channel::new(UnixStream::from(talk)), network, filters)
                }
            }
        }
        Errand::Holder => match sys::clone_single_threaded(libc::CLONE_NEWUSER, None).map_err(step("fork"))? {
            Some((pid, process)) => Ok(Born { pid, process }),
            None => {
                control.close();
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                loop {
                    nix::unistd::pause();
                }
            }
        },
    }
}
