//! PID 1 of a payload: enters the new root, gives up every right, opens the program, waits for the daemon's word, runs it,
//! reaps, passes signals on. When the first process ends it ends too, and the kernel kills the rest.
//!
//! It cannot be traced or read by the payload, though both have the same uid: it is not dumpable.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    io::{Read, Write},
    os::fd::AsFd,
    os::unix::net::UnixStream,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{
        Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execveat, pipe2, setgroups, setresgid, setresuid, setsid,
    },
};
use vestigo_model::Exit;

use super::{
    INSIDE, Order, Plan, Report,
    executable::{self, Program},
    mounts,
    stage::{Fds, StageError, report_failure, step},
};
use crate::{
    protocol::{Refusal, code},
    sys,
    wire::Channel,
};

/// Never returns; what it has to say goes through the channel.
pub(super) fn run(plan: &Plan, fds: &mut Fds, parent: UnixStream) -> ! {
    if let Err(error) = confine(plan, parent) {
        report_failure(&mut fds.talk, &error);
        sys::exit_now(1)
    }
    let status = match serve(plan, fds) {
        Ok(()) => 0,
        Err(Refusal { code, reason }) => {
            let _ = fds.talk.send(&Report::Failed { code, reason }, &[]);
            1
        }
    };
    sys::exit_now(status)
}

/// Into the new root, and out of every right.
fn confine(plan: &Plan, mut parent: UnixStream) -> Result<(), StageError> {
    mounts::enter(&plan.root)?;
    setgroups(&[]).map_err(step("drop groups"))?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(step("make a user namespace"))?;
    let mut byte = [0];
    parent.write_all(&byte).map_err(step("ask for id maps"))?;
    parent.read_exact(&mut byte).map_err(step("wait for id maps"))?;
    let (user, group) = (Uid::from_raw(INSIDE), Gid::from_raw(INSIDE));
    setresgid(group, group, group).map_err(step("become the payload's group"))?;
    setresuid(user, user, user).map_err(step("become the payload's user"))?;
    // Nested user namespaces may be of use to a payload, network namespaces of its own making only to an attack.
    fs::write("/proc/sys/user/max_net_namespaces", "0").map_err(step("forbid nested network namespaces"))?;
    sys::drop_capabilities().map_err(step("drop capabilities"))?;
    prctl::set_no_new_privs().map_err(step("renounce new privileges"))?;
    prctl::set_dumpable(false).map_err(step("close to tracing"))?;
    // After the change of ids, which clears it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie to the stage"))
}

fn serve(plan: &Plan, fds: &mut Fds) -> Result<(), Refusal> {
    let agent =
        |what: &'static str| move |error: Errno| Refusal { code: code::AGENT, reason: format!("{what}: {error}") };
    let name = plan.command.first().ok_or_else(|| Refusal::caller("no command is given"))?;
    let found = executable::open(name)?;
    if fds.talk.send(&Report::Found, &[found.file.as_fd()]).is_err() {
        return Ok(());
    }
    let Ok(Order::Settle { fixed }) = fds.talk.receive() else { return Ok(()) };
    let program = found.settle(fixed)?;
    let signals = watch_signals().map_err(agent("watch signals"))?;
    if fds.talk.send(&Report::Ready(program.executable.clone()), &[]).is_err() {
        return Ok(());
    }
    // The daemon went away, or decided against it.
    let Ok(Order::Go) = fds.talk.receive() else { return Ok(()) };
    let (payload, mut failure) = spawn(plan, fds, &program).map_err(agent("start the payload"))?;
    drop(program);
    let mut errno = [0; 4];
    if failure.read_exact(&mut errno).is_ok() {
        return Err(exec_failed(name, Errno::from_raw(i32::from_ne_bytes(errno))));
    }
    let _ = fds.talk.send(&Report::Started, &[]);
    if let Some(exit) = watch(payload, &mut fds.talk, &signals) {
        let _ = fds.talk.send(&Report::Ended(exit), &[]);
    }
    Ok(())
}

fn exec_failed(name: &str, errno: Errno) -> Refusal {
    let why = match errno {
        Errno::ENOENT => "its interpreter is not there inside the sandbox",
        Errno::ENOEXEC => "not a program this machine can run; a script needs #! in its first line",
        Errno::E2BIG => "arguments and environment are too long",
        _ => errno.desc(),
    };
    Refusal { code: code::NOT_EXECUTABLE, reason: format!("{name}: {why}") }
}

fn watch_signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Forks the payload. The pipe gives an errno if exec fails and ends empty if it succeeds.
fn spawn(plan: &Plan, fds: &Fds, program: &Program) -> nix::Result<(Pid, fs::File)> {
    let (failure, fail) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(payload) = sys::fork_single_threaded()? {
        drop(fail);
        return Ok((payload, failure.into()));
    }
    let Err(errno) = become_payload(plan, fds, program);
    let mut fail = fs::File::from(fail);
    let _ = fail.write_all(&(errno as i32).to_ne_bytes());
    sys::exit_now(127)
}

fn become_payload(plan: &Plan, fds: &Fds, program: &Program) -> nix::Result<Infallible> {
    setsid()?;
    let [input, output, error] = &fds.stdio;
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    dup2_stderr(error)?;
    sys::close_on_exec_from(3)?;
    if program.script {
        // The interpreter reads /dev/fd/N: this one descriptor, open for reading, stays.
        fcntl(&program.file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    sys::default_signals()?;
    SigSet::empty().thread_set_mask()?;
    let text = |text: &String| CString::new(text.as_str()).map_err(|_| Errno::EINVAL);
    let arguments = plan.command.iter().map(text).collect::<nix::Result<Vec<_>>>()?;
    let pairs = plan.env.iter().map(|(key, value)| text(&format!("{key}={value}")));
    let environment = pairs.collect::<nix::Result<Vec<_>>>()?;
    execveat(&program.file, c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH)
}

/// Reaps everything until the first process ends. `None` when the daemon went away.
fn watch(payload: Pid, talk: &mut Channel, signals: &SignalFd) -> Option<Exit> {
    loop {
        while let Ok(Some(_)) = signals.read_signal() {}
        if let Some(exit) = reap(payload) {
            return Some(exit);
        }
        if !talk.has_message() {
            let wanted = PollFlags::POLLIN;
            let mut fds = [PollFd::new(signals.as_fd(), wanted), PollFd::new(talk.as_fd(), wanted)];
            let _ = poll(&mut fds, PollTimeout::NONE);
            if !fds.get(1).and_then(PollFd::any).unwrap_or(false) {
                continue;
            }
        }
        match talk.receive() {
            Ok(Order::Signal(signal)) => pass_on(payload, signal.number),
            Ok(Order::Go | Order::Settle { .. }) => {}
            Err(_) => return None,
        }
    }
}

fn pass_on(payload: Pid, number: i32) {
    if let Ok(signal) = Signal::try_from(number) {
        // The whole session's first process group; a group that is gone leaves the process itself.
        let group = Pid::from_raw(-payload.as_raw());
        let _ = kill(group, signal).or_else(|_| kill(payload, signal));
    }
}

fn reap(payload: Pid) -> Option<Exit> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == payload => return Some(Exit::Code(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == payload => return Some(Exit::Signal(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}
