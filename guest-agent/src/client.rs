//! `guest-agent exec` and `status`: thin clients of the daemon. `exec` stays for as long as its payload, hands signals on,
//! and takes the payload with it when it dies.

use std::{
    env, fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use vestigo_model::{Exit, PilotId, User};

use crate::{
    cgroup::Limits,
    cli::{Exec, Openings, StatusArgs},
    identity::{discovery, sshsig, task},
    protocol::{ExecRequest, Message, Refusal, Reply, Request, Secret, Signed, code},
    shape::{Bind, Shape},
    sys,
    wire::{Channel, WireError},
};

/// Signals that a pilot means for its payload.
const FORWARDED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT];

/// Runs a payload. The result is the process's exit code; a refusal's sentence is on standard error by then.
#[must_use]
pub fn exec(options: Exec) -> u8 {
    match run(options) {
        Ok(code) => code,
        Err(Refusal { code, reason }) => {
            eprintln!("guest-agent: {reason}");
            code
        }
    }
}

/// The same, without saying why not.
///
/// # Errors
/// The payload did not run.
pub fn run(options: Exec) -> Result<u8, Refusal> {
    if options.plain {
        return crate::plain::run(options);
    }
    // First of all, while the numbers that are open are the caller's.
    let mut document = Document::new(options.json_status_fd)?;
    let result = payload(options, &mut document);
    if let Err(refusal) = &result {
        document.refused(refusal);
    }
    result
}

fn payload(options: Exec, document: &mut Document) -> Result<u8, Refusal> {
    let signals = watch_signals().map_err(|e| Refusal::system(format!("signals cannot be watched: {e}")))?;
    let socket = options.socket.clone();
    let (shape, files) = shape(&options.openings)?;
    let request = request(options, shape)?;
    // Last: the daemon does not wait long for what a connection wants.
    let mut daemon = connect(&socket)?;
    send(&mut daemon, request, &files)?;
    loop {
        forward_signals(&mut daemon, &signals)?;
        let reply = match daemon.receive::<Reply>() {
            Ok(reply) => reply,
            Err(error) => return Err(lost(&error)),
        };
        document.write(&reply)?;
        match reply {
            Reply::Started { .. } | Reply::Status(_) => {}
            Reply::Refused { code, reason } => return Err(Refusal { code, reason }),
            Reply::Ended { banned: Some(ban), .. } => {
                return Err(Refusal::policy(format!("the payload was killed by the hypervisor's ban: {ban}")));
            }
            Reply::Ended { exit, .. } => return Ok(exit_code(exit)),
        }
    }
}

fn lost(error: &WireError) -> Refusal {
    Refusal::system(format!("the agent's daemon went away ({error}); what it ran is killed; see its log"))
}

pub(crate) fn watch_signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    FORWARDED.into_iter().for_each(|signal| mask.add(signal));
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The status document, if somebody reads it.
struct Document {
    file: Option<fs::File>,
    /// How the payload ended, or why it did not run, is in it.
    complete: bool,
}

impl Document {
    fn new(number: Option<u32>) -> Result<Self, Refusal> {
        Ok(Self { file: number.map(status_file).transpose()?, complete: false })
    }

    fn write(&mut self, reply: &Reply) -> Result<(), Refusal> {
        let Some(file) = &mut self.file else { return Ok(()) };
        self.complete = matches!(reply, Reply::Refused { .. } | Reply::Ended { .. });
        let mut line = serde_json::to_vec(reply).unwrap_or_default();
        line.push(b'\n');
        file.write_all(&line).map_err(|e| {
            // Not again.
            self.complete = true;
            Refusal::caller(format!("the status document cannot be written: {e}"))
        })
    }

    /// What the client itself refuses is in the document like what the daemon refuses.
    fn refused(&mut self, refusal: &Refusal) {
        if !self.complete {
            let Refusal { code, reason } = refusal.clone();
            // The sentence on standard error is the one that matters.
            let _ = self.write(&Reply::Refused { code, reason });
        }
    }
}

/// Writes the refusal of a call that never became a request.
pub(crate) fn document_refusal(number: u32, refusal: &Refusal) {
    if let Ok(mut document) = Document::new(Some(number)) {
        document.refused(refusal);
    }
}

/// Another descriptor of what the caller has open under this number: the offset stays common, and sockets work too. To be called
/// before this process opens anything itself, which could get the number.
pub(crate) fn status_file(number: u32) -> Result<fs::File, Refusal> {
    let bad = |why: String| {
        Refusal::caller(format!(
            "--json-status-fd {number}: {why}; open it for writing before the call, as in {number}>>status.json"
        ))
    };
    let copy = i32::try_from(number).map_err(|_| bad("no such descriptor".to_owned()))?;
    let copy = sys::duplicate(copy).map_err(|e| bad(e.desc().to_owned()))?;
    let mode = fcntl(&copy, FcntlArg::F_GETFL).map_err(|e| bad(e.desc().to_owned()))? & libc::O_ACCMODE;
    if mode == libc::O_RDONLY { Err(bad("open for reading only".to_owned())) } else { Ok(copy.into()) }
}

/// What is opened in the sandbox, and the files for it in their order: opened with the caller's own rights, so that the daemon never
/// looks a path up.
///
/// # Errors
/// A sentence for the caller.
pub fn shape(openings: &Openings) -> Result<(Shape, Vec<OwnedFd>), Refusal> {
    let mut files = Vec::new();
    for (name, folder) in [("--rootfs", &openings.rootfs), ("--work", &openings.work)] {
        if let Some(folder) = folder {
            files.push(open(folder).map_err(|e| {
                Refusal::caller(format!("{name} {}: {e}; give a folder that you can read", folder.display()))
            })?);
        }
    }
    let mut binds = Vec::new();
    for (writable, texts) in [(true, &openings.bind), (false, &openings.ro_bind)] {
        for text in texts {
            let (source, target) = text.split_once(':').unwrap_or((text, text));
            let source = Path::new(source);
            files.push(open(source).map_err(|e| {
                Refusal::caller(format!("{}: {e}; bind a folder or file that you can read", source.display()))
            })?);
            binds.push(Bind { target: target.into(), writable });
        }
    }
    let shape = Shape {
        rootfs: openings.rootfs.is_some(),
        work: openings.work.is_some(),
        binds,
        tmpfs: openings.tmpfs.clone(),
        nested: openings.nested,
        directory: openings.chdir.clone(),
        hostname: openings.hostname.clone(),
        limits: Limits { memory: openings.memory, pids: openings.pids, cpu: openings.cpus },
    };
    Ok((shape, files))
}

/// Not more than needed: opening a device or a queue would do something, or wait.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let about = fs::metadata(path)?;
    if !about.is_dir() && !about.is_file() {
        return Err(io::Error::other("neither a folder nor a file"));
    }
    fs::File::open(path).map(Into::into)
}

fn connect(socket: &Path) -> Result<Channel, Refusal> {
    let stream = UnixStream::connect(socket).map_err(|e| {
        Refusal::system(format!(
            "no agent answers at {} ({e}); start `guest-agent daemon` as root in this VM",
            socket.display()
        ))
    })?;
    Ok(Channel::new(stream))
}

fn request(options: Exec, shape: Shape) -> Result<ExecRequest, Refusal> {
    let text = |text: std::ffi::OsString| {
        text.into_string()
            .map_err(|bad| Refusal::caller(format!("{} is not UTF-8; the record could not hold it", bad.display())))
    };
    let pair = |text: &String| {
        let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| Refusal::caller(format!("--env {text}: write it as KEY=VALUE")))
    };
    let identity = options.identity;
    let pilot = match identity.pilot_id {
        Some(pilot) => Some(pilot),
        None => env::var("VESTIGO_PILOT_ID")
            .ok()
            .map(PilotId::new)
            .transpose()
            .map_err(|e| Refusal::caller(format!("VESTIGO_PILOT_ID: {e}")))?,
    };
    let token = identity.token_file.as_deref().map(token).transpose()?;
    // Only a token could be one of them.
    let pilot_tokens = match token {
        Some(_) => discovery::own_marks()
            .map_err(|e| Refusal::caller(format!("your own token cannot be read to tell it apart: {e}")))?,
        None => Vec::new(),
    };
    Ok(ExecRequest {
        payload: identity.payload_id,
        user: identity.user_issuer.zip(identity.user_subject).map(|(issuer, subject)| User { issuer, subject }),
        vo: identity.vo,
        pilot,
        trust: identity.trust.map(Into::into),
        task: identity.task.map(|task| signed(&task, identity.task_signature.as_deref())).transpose()?,
        token,
        pilot_tokens,
        command: options.command.into_iter().map(text).collect::<Result<_, _>>()?,
        env: options.env.iter().map(pair).collect::<Result<_, _>>()?,
        shape,
    })
}

fn token(path: &Path) -> Result<Secret, Refusal> {
    let bad = |e: String| {
        Refusal::caller(format!(
            "--token-file {}: {e}; give a file with the payload's token that you can read",
            path.display()
        ))
    };
    let bytes = discovery::read_token(path).map_err(|e| bad(e.to_string()))?;
    String::from_utf8(bytes).map(Secret).map_err(|_| bad("not text, so it is no token".into()))
}

fn signed(task: &Path, signature: Option<&Path>) -> Result<Signed, Refusal> {
    let beside = || {
        let mut name = task.as_os_str().to_owned();
        name.push(".sig");
        PathBuf::from(name)
    };
    let signature = signature.map_or_else(beside, Path::to_owned);
    let read = |path: &Path, most: usize| {
        let bad = |e: String| Refusal::caller(format!("{}: {e}; see `guest-agent task --help`", path.display()));
        let file = fs::File::open(path).map_err(|e| bad(e.to_string()))?;
        let mut text = String::new();
        file.take(most as u64 + 1).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
        if text.len() > most { Err(bad(format!("longer than {most} bytes"))) } else { Ok(text) }
    };
    Ok(Signed { statement: read(task, task::MAX_STATEMENT)?, signature: read(&signature, sshsig::MAX_SIGNATURE)? })
}

fn send(daemon: &mut Channel, request: ExecRequest, files: &[OwnedFd]) -> Result<(), Refusal> {
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    let mut fds: Vec<BorrowedFd<'_>> = vec![input.as_fd(), output.as_fd(), error.as_fd()];
    fds.extend(files.iter().map(AsFd::as_fd));
    match daemon.send(&Request::Exec(Box::new(request)), &fds) {
        Ok(()) => Ok(()),
        Err(WireError::TooLong) => {
            Err(Refusal::caller("command and environment are longer than 256 KiB; put them into a file"))
        }
        Err(WireError::Io(error)) if error.raw_os_error() == Some(libc::EBADF) => {
            Err(Refusal::caller("standard input, output or error is closed; redirect it to /dev/null"))
        }
        // It may have said why before it closed: that is read next.
        Err(error) if hung_up(&error) => Ok(()),
        Err(error) => Err(lost(&error)),
    }
}

fn hung_up(error: &WireError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error, WireError::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset))
}

/// Waits until the daemon has something to say, handing signals on meanwhile.
fn forward_signals(daemon: &mut Channel, signals: &SignalFd) -> Result<(), Refusal> {
    while !daemon.has_message() {
        let wanted = PollFlags::POLLIN;
        let mut fds = [PollFd::new(daemon.as_fd(), wanted), PollFd::new(signals.as_fd(), wanted)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        let ready = fds.first().and_then(PollFd::any).unwrap_or(false);
        while let Ok(Some(info)) = signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).unwrap_or(libc::SIGTERM);
            match daemon.send(&Message::Signal { signal }, &[]) {
                Err(error) if !hung_up(&error) => return Err(lost(&error)),
                _ => {}
            }
        }
        if ready {
            break;
        }
    }
    Ok(())
}

/// The payload's own code, 128 + N for a signal.
pub(crate) fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(status) => u8::try_from(status).unwrap_or(u8::MAX),
        Exit::Signal(number) => u8::try_from(number).map_or(u8::MAX, |n| n.saturating_add(128)),
        Exit::NotStarted | Exit::Lost => code::AGENT,
    }
}

/// Asks the daemon how it is and prints the answer.
///
/// # Errors
/// A sentence for the caller.
pub fn status(options: &StatusArgs) -> Result<(), Refusal> {
    let mut daemon = connect(&options.socket)?;
    match daemon.send(&Request::Status, &[]) {
        Err(error) if !hung_up(&error) => return Err(lost(&error)),
        _ => {}
    }
    let status = match daemon.receive::<Reply>().map_err(|e| lost(&e))? {
        Reply::Status(status) => status,
        Reply::Refused { code, reason } => return Err(Refusal { code, reason }),
        Reply::Started { .. } | Reply::Ended { .. } => {
            return Err(Refusal::system("the agent's daemon did not answer the question; is it of another version?"));
        }
    };
    let text = if options.json {
        serde_json::to_string(&status).map_err(|e| Refusal::system(e.to_string()))? + "\n"
    } else {
        status.to_string()
    };
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(())
}
