//! The single-threaded process between daemon and payload. It is this program, executed again, with root's rights: it makes
//! the namespaces and the mounts, forks PID 1 into them, writes its id maps, and stays to kill it.
//!
//! It ends only when PID 1 is gone, so its end proves that the whole payload is dead.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode, umask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sethostname},
};

use super::{Plan, Report, init, mounts, owners};
use crate::{protocol::code, sys, wire::Channel};

/// Why a sandbox cannot be built: the step and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct StageError {
    /// What was tried.
    pub step: String,
    /// Why not.
    pub source: io::Error,
}

/// Names a step for its error.
pub(super) fn step<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> StageError {
    move |error| StageError { step: step.into(), source: error.into() }
}

/// The descriptors of a plan.
pub(super) struct Fds {
    pub talk: Channel,
    pub stdio: [OwnedFd; 3],
}

/// The hidden sub-command. Returns the stage's own exit code, which says nothing about the payload.
#[must_use]
pub fn run() -> u8 {
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut control = Channel::new(UnixStream::from(control));
    let Ok(plan) = control.receive::<Plan>() else { return 1 };
    let Some(mut fds) = take_fds(&mut control) else { return 1 };
    let network = fds.1;
    let work = control.take_fd();
    match prepare(&plan, &network, work) {
        Ok(()) => {}
        Err(error) => {
            report_failure(&mut fds.0.talk, &error);
            return 1;
        }
    }
    drop(network);
    supervise(&plan, control, fds.0)
}

fn take_fds(control: &mut Channel) -> Option<(Fds, OwnedFd)> {
    let talk = Channel::new(UnixStream::from(control.take_fd()?));
    let network = control.take_fd()?;
    let stdio = [control.take_fd()?, control.take_fd()?, control.take_fd()?];
    Some((Fds { talk, stdio }, network))
}

pub(super) fn report_failure(talk: &mut Channel, error: &StageError) {
    let reason = format!("the sandbox could not be built: {error}");
    let _ = talk.send(&Report::Failed { code: code::AGENT, reason }, &[]);
}

/// Everything that the stage does before there is a PID 1.
fn prepare(plan: &Plan, network: &OwnedFd, work: Option<OwnedFd>) -> Result<(), StageError> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie to the daemon"))?;
    // The daemon is among the last that a kernel without memory may kill; its payloads are not.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    umask(Mode::from_bits_truncate(0o022));
    // Still in the VM's own mount namespace: a mount can be copied only where it stands.
    let work = match (work, plan.work_owner) {
        (Some(directory), Some(owner)) => Some(owners::mapped(&directory, owner, plan.outside)?),
        _ => None,
    };
    setns(network, CloneFlags::CLONE_NEWNET).map_err(step("enter the network namespace"))?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).map_err(step("make namespaces"))?;
    sethostname(&plan.hostname).map_err(step("name the host"))?;
    sys::new_session_keyring().map_err(step("leave the session keyring"))?;
    mounts::build(plan)?;
    if let Some(tree) = work {
        let at = plan.root.join(super::HOME.trim_start_matches('/'));
        let at = CString::new(at.as_os_str().as_encoded_bytes())
            .map_err(|e| step("name the work directory")(io::Error::other(e)))?;
        sys::attach_mount(tree, &at).map_err(step("mount the work directory"))?;
    }
    Ok(())
}

/// Forks PID 1, maps its ids, and waits for its end or the daemon's.
fn supervise(plan: &Plan, control: Channel, mut fds: Fds) -> u8 {
    match supervise_until_dead(plan, &control, &mut fds) {
        Ok(()) => 0,
        Err(error) => {
            report_failure(&mut fds.talk, &error);
            1
        }
    }
}

fn supervise_until_dead(plan: &Plan, control: &Channel, fds: &mut Fds) -> Result<(), StageError> {
    let ended = block_sigchld().map_err(step("watch for the end"))?;
    let proc = open_proc()?;
    let (near, far) = UnixStream::pair().map_err(step("socket pair"))?;
    let Some(pid) = sys::fork_single_threaded().map_err(step("fork"))? else {
        drop(near);
        // PID 1 must not hold the life line: the stage notices the daemon's end by it.
        let _ = nix::unistd::dup2_stdin(&fds.stdio[0]);
        init::run(plan, fds, far)
    };
    drop(far);
    let result = map_ids(&proc, pid, plan.outside, near);
    // From here on only PID 1 speaks to the daemon, so that its end is seen as the end of the line.
    if let Ok((talk, _)) = UnixStream::pair() {
        let mut talk = std::mem::replace(&mut fds.talk, Channel::new(talk));
        if let Err(error) = &result {
            report_failure(&mut talk, error);
        }
    }
    if result.is_err() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    wait_for_end(pid, control, &ended).map_err(step("wait"))
}

fn block_sigchld() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// PID 1 is our child and not reaped, so its number cannot become somebody else's while we write.
fn map_ids(proc: &OwnedFd, pid: Pid, outside: u32, mut near: UnixStream) -> Result<(), StageError> {
    use io::{Read, Write};
    let mut byte = [0];
    near.read_exact(&mut byte).map_err(step("wait for the user namespace"))?;
    owners::write_maps(proc, pid, &format!("{} {outside} 1", super::INSIDE))?;
    near.write_all(&byte).map_err(step("let PID 1 go on"))
}

fn wait_for_end(pid: Pid, control: &Channel, ended: &SignalFd) -> nix::Result<()> {
    let mut alive = true;
    loop {
        if !matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG))?, WaitStatus::StillAlive) {
            return Ok(());
        }
        let mut fds = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        if alive {
            fds.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut fds, PollTimeout::NONE);
        // The daemon never writes a second message: whatever comes is its end, or its wish that this ends.
        if fds.get(1).and_then(PollFd::any).unwrap_or(false) {
            alive = false;
            kill(pid, Signal::SIGKILL)?;
        }
        let _ = ended.read_signal();
    }
}

/// `/proc` of the VM, kept open: PID 1 shares our mount namespace, so its pivot takes the path away from us too.
pub(super) fn open_proc() -> Result<OwnedFd, StageError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open("/proc", flags, Mode::empty()).map_err(step("open /proc"))
}
