//! PID 1 of a payload: makes the payload's own mounts, gives up every right, and waits. Once a payload comes it opens the
//! program, waits for the daemon's word, runs it, reaps, passes signals on. When the first process ends it ends too, and the kernel
//! kills the rest.
//!
//! It cannot be traced or read by the payload, though both have the same uid: it is not dumpable.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{
        Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execveat, pipe2, setgroups, sethostname, setresgid,
        setresuid, setsid,
    },
};
use vestigo_model::Exit;

use super::{
    HOME, INSIDE, Order, Plan, Report, Run,
    executable::{self, Found, Loaded, Program},
    failure::{StepError, step},
    landlock,
    mounts::{self, Extra},
    owners,
    rootless::Rootless,
    seccomp::{Filter, Mode},
};
use crate::{
    protocol::{Refusal, code},
    sys,
    wire::{Channel, WireError},
};

/// The system call filters, compiled once for all payloads.
pub(super) struct Filters {
    strict: Filter,
    nested: Filter,
}

impl Filters {
    pub(super) fn compile() -> Self {
        Self { strict: Filter::compile(Mode::Strict), nested: Filter::compile(Mode::Nested) }
    }
}

/// Closes what is left open after ids and rights are gone: PID 1 itself needs none of it any more, and the payload inherits it.
fn lock(plan: &Plan, filters: &Filters) -> Result<landlock::Applied, Refusal> {
    let failed = |error: String| Refusal { code: code::AGENT, reason: error };
    let (mode, filter) = if plan.nested { (Mode::Nested, &filters.nested) } else { (Mode::Strict, &filters.strict) };
    let own = [HOME, "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"].map(PathBuf::from);
    // What is mounted read-only stays so, whatever is allowed here.
    let extras = plan.extras.iter().map(|extra| match extra {
        Extra::Tree(path) | Extra::Tmpfs(path) => path.clone(),
    });
    let writable: Vec<PathBuf> = own.into_iter().chain(extras).collect();
    let writable: Vec<&Path> = writable.iter().map(PathBuf::as_path).collect();
    let rules = landlock::prepare(&writable, mode).map_err(|e| failed(e.to_string()))?;
    rules.restrict().map_err(|e| failed(e.to_string()))?;
    filter.apply().map_err(|e| failed(e.to_string()))?;
    Ok(rules.applied().clone())
}

/// Never returns; what it has to say goes through the channel.
pub(super) fn run(talk: Channel, network: OwnedFd, filters: &Filters) -> ! {
    end(talk, |talk| live(talk, network, filters))
}

/// The same for a sandbox that no root stands behind: the caller's own child, in namespaces that are the caller's.
pub(super) fn run_rootless(talk: Channel, wish: &Rootless) -> ! {
    end(talk, |talk| live_rootless(talk, wish))
}

fn end(mut talk: Channel, live: impl FnOnce(&mut Channel) -> Result<(), Refusal>) -> ! {
    let status = match live(&mut talk) {
        Ok(()) => 0,
        Err(Refusal { code, reason }) => {
            let _ = talk.send(&Report::Failed { code, reason }, &[]);
            1
        }
    };
    sys::exit_now(status)
}

fn live(talk: &mut Channel, network: OwnedFd, filters: &Filters) -> Result<(), Refusal> {
    begin().map_err(failed)?;
    let Ok(plan) = talk.receive::<Plan>() else { return Ok(()) };
    prepare(&plan, talk, &network).map_err(failed)?;
    drop(network);
    confine(&plan, talk).map_err(failed)?;
    attend(&plan, talk, filters)
}

fn live_rootless(talk: &mut Channel, wish: &Rootless) -> Result<(), Refusal> {
    begin().map_err(failed)?;
    // Until the maps are written nothing here belongs to anybody.
    let Ok(Order::Mapped) = talk.receive() else { return Ok(()) };
    wish.build()?;
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(step("make a user namespace"))
        .and_then(|()| owners::map_myself())
        .and_then(|()| renounce(&wish.plan))
        .map_err(failed)?;
    attend(&wish.plan, talk, &Filters::compile())
}

fn failed(error: StepError) -> Refusal {
    match error.callers {
        true => Refusal::caller(error.to_string()),
        false => Refusal { code: code::AGENT, reason: format!("the sandbox could not be built: {error}") },
    }
}

fn begin() -> Result<(), StepError> {
    // With the end of who made it, everything here ends: the forker's, which is the daemon's, or the caller's.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie to its parent"))?;
    sys::default_signals().map_err(step("reset signals"))
}

/// The rest is the same for all: locked up, and then at the payload's service.
fn attend(plan: &Plan, talk: &mut Channel, filters: &Filters) -> Result<(), Refusal> {
    let applied = lock(plan, filters)?;
    if talk.send(&Report::Prepared(applied), &[]).is_err() {
        return Ok(());
    }
    // The daemon went away, or has no use for this one.
    let Ok(Order::Run(run)) = talk.receive() else { return Ok(()) };
    let Some(stdio) = stdio(talk) else { return Ok(()) };
    serve(&run, talk, stdio)
}

fn stdio(talk: &mut Channel) -> Option<Vec<OwnedFd>> {
    // Standard input, output, error, and what else the payload is to find at 3 and above.
    let fds: Vec<OwnedFd> = std::iter::from_fn(|| talk.take_fd()).collect();
    (fds.len() >= 3).then_some(fds)
}

/// Everything that needs the VM's root.
fn prepare(plan: &Plan, talk: &mut Channel, network: &OwnedFd) -> Result<(), StepError> {
    let mut next = || talk.take_fd().ok_or_else(|| step("take the mounts")(io::Error::other("too few came")));
    for _ in 0..plan.doors {
        // "0" is whoever writes: nobody else has to stop for a process with one thread that moves itself.
        fs::File::from(next()?).write_all(b"0").map_err(step("enter a cgroup"))?;
    }
    setns(network, CloneFlags::CLONE_NEWNET).map_err(step("enter the network namespace"))?;
    // Only now that it stands in its own cgroups, so that these are the roots of what it sees.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(step("make a cgroup namespace"))?;
    sethostname(&plan.hostname).map_err(step("name the host"))?;
    sys::new_session_keyring().map_err(step("leave the session keyring"))?;
    let private = [next()?, next()?, next()?, next()?];
    let mut extras = Vec::new();
    for extra in &plan.extras {
        let tree = if matches!(extra, Extra::Tree(_)) { Some(next()?) } else { None };
        extras.push((extra.clone(), tree));
    }
    let foreign = if plan.foreign { Some(next()?) } else { None };
    mounts::dress(&private, extras, foreign, None)
}

/// Out of every right.
fn confine(plan: &Plan, talk: &mut Channel) -> Result<(), StepError> {
    setgroups(&[]).map_err(step("drop groups"))?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(step("make a user namespace"))?;
    let lost = |error: WireError| step("wait for id maps")(io::Error::other(error));
    talk.send(&Report::Unmapped, &[]).map_err(lost)?;
    let Order::Mapped = talk.receive().map_err(lost)? else {
        return Err(step("wait for id maps")(io::Error::other("another order came")));
    };
    renounce(plan)
}

/// In the payload's own user namespace: becomes the payload's user, and gives up what is left.
fn renounce(plan: &Plan) -> Result<(), StepError> {
    let (user, group) = (Uid::from_raw(INSIDE), Gid::from_raw(INSIDE));
    setresgid(group, group, group).map_err(step("become the payload's group"))?;
    setresuid(user, user, user).map_err(step("become the payload's user"))?;
    // Nested user namespaces can be of use to a payload and are opened by a flag; network namespaces of its own making only
    // to an attack.
    limit_namespaces("net", "0")?;
    limit_namespaces("user", if plan.nested { "16" } else { "0" })?;
    forbid_core_dumps()?;
    sys::drop_capabilities().map_err(step("drop capabilities"))?;
    prctl::set_no_new_privs().map_err(step("renounce new privileges"))?;
    prctl::set_dumpable(false).map_err(step("close to tracing"))?;
    // After the change of ids, which clears it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("tie to its parent"))
}

/// A crash would leave the payload's memory in a file, or hand it to a program of the VM's root, which runs outside. One byte is
/// less than any file, and the kernel's sign that no such program is to be run: at 0 it runs.
fn forbid_core_dumps() -> Result<(), StepError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).map_err(step("forbid core dumps"))?;
    let most = hard.min(1);
    setrlimit(Resource::RLIMIT_CORE, most, most).map_err(step("forbid core dumps"))
}

fn limit_namespaces(kind: &str, most: &str) -> Result<(), StepError> {
    fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), most).map_err(step("limit nested namespaces"))
}

fn serve(run: &Run, talk: &mut Channel, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
    let agent =
        |what: &'static str| move |error: Errno| Refusal { code: code::AGENT, reason: format!("{what}: {error}") };
    chdir(run.directory.as_path())
        .map_err(|e| Refusal::caller(format!("{} cannot be entered in the sandbox: {e}", run.directory.display())))?;
    let name = run.command.first().ok_or_else(|| Refusal::caller("no command is given"))?;
    let Some(program) = settle(executable::open(name)?, talk)? else { return Ok(()) };
    let interpreter = match program.interpreter()? {
        Some(found) => {
            let Some(interpreter) = settle(found, talk)? else { return Ok(()) };
            Some(interpreter.not_a_script(name)?)
        }
        None => None,
    };
    let signals = watch_signals().map_err(agent("watch signals"))?;
    let programs = Loaded { program, interpreter };
    if talk.send(&Report::Ready(programs.said()), &[]).is_err() {
        return Ok(());
    }
    // While the record is on its way: the payload's process, which waits in front of its first instruction.
    let mut payload = Waiting::fork(run, &fds, &programs).map_err(agent("start the payload"))?;
    // Nothing but the payload keeps the pilot's pipes open.
    drop((programs, fds));
    // The daemon went away, or decided against it.
    let Ok(Order::Go) = talk.receive() else { return Ok(()) };
    payload.go().map_err(|errno| exec_failed(name, errno))?;
    let _ = talk.send(&Report::Started, &[]);
    if let Some(exit) = watch(payload.pid, talk, &signals) {
        let _ = talk.send(&Report::Ended(exit), &[]);
    }
    Ok(())
}

/// Whether really nobody can change a program where it lies can be seen only from outside; it is hashed while the daemon looks.
/// `None`: the daemon is gone.
fn settle(mut found: Found, talk: &mut Channel) -> Result<Option<Program>, Refusal> {
    if found.seems_fixed() {
        if talk.send(&Report::Found, &[found.file.as_fd()]).is_err() {
            return Ok(None);
        }
        let hashed = found.hash();
        let Ok(Order::Settle { fixed }) = talk.receive() else { return Ok(None) };
        if fixed {
            return found.fixed(hashed?).map(Some);
        }
    }
    found.copied().map(Some)
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

/// The payload's process before its program: it has done everything but exec.
struct Waiting {
    pid: Pid,
    word: fs::File,
    /// Gives an errno if exec fails and ends empty if it succeeds.
    failure: fs::File,
}

impl Waiting {
    fn fork(run: &Run, fds: &[OwnedFd], programs: &Loaded) -> nix::Result<Self> {
        let (failure, fail) = pipe2(OFlag::O_CLOEXEC)?;
        let (hear, word) = pipe2(OFlag::O_CLOEXEC)?;
        if let Some(pid) = sys::fork_single_threaded()? {
            return Ok(Self { pid, word: word.into(), failure: failure.into() });
        }
        // With the other end gone, silence means that nobody will ever give the word.
        drop(word);
        let Err(errno) = become_payload(run, fds, programs, hear.into());
        let _ = fs::File::from(fail).write_all(&(errno as i32).to_ne_bytes());
        sys::exit_now(127)
    }

    /// Gives the word and waits until the program runs.
    fn go(&mut self) -> Result<(), Errno> {
        self.word.write_all(b"!").map_err(|_| Errno::ESRCH)?;
        let mut errno = [0; 4];
        match self.failure.read_exact(&mut errno) {
            Ok(()) => Err(Errno::from_raw(i32::from_ne_bytes(errno))),
            Err(_) => Ok(()),
        }
    }
}

fn become_payload(run: &Run, fds: &[OwnedFd], programs: &Loaded, mut word: fs::File) -> nix::Result<Infallible> {
    setsid()?;
    let arguments = programs.arguments(&run.command);
    let text = |text: &String| CString::new(text.as_str()).map_err(|_| Errno::EINVAL);
    let arguments = arguments.iter().map(text).collect::<nix::Result<Vec<_>>>()?;
    let token =
        fds.get(3).filter(|_| run.token).map(|fd| format!("BEARER_TOKEN_FILE=/proc/self/fd/{}", fd.as_raw_fd()));
    let pairs = run.env.iter().map(|(key, value)| format!("{key}={value}"));
    let environment = pairs.chain(token).map(|pair| text(&pair)).collect::<nix::Result<Vec<_>>>()?;
    sys::close_on_exec_from(3)?;
    programs.keep_script()?;
    place_descriptors(fds)?;
    sys::default_signals()?;
    SigSet::empty().thread_set_mask()?;
    word.read_exact(&mut [0]).map_err(|_| Errno::ECANCELED)?;
    execveat(programs.runs(), c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH)
}

/// Standard input, output, error to 0, 1, 2; what else came with them keeps its number and stays open.
fn place_descriptors(fds: &[OwnedFd]) -> nix::Result<()> {
    if let [input, output, error, more @ ..] = fds {
        dup2_stdin(input)?;
        dup2_stdout(output)?;
        dup2_stderr(error)?;
        for fd in more {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
    }
    Ok(())
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
            Ok(_) => {}
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
