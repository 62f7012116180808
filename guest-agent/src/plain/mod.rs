//! `guest-agent exec --plain`: a payload without the daemon and without root, wherever ordinary users may make user
//! namespaces. The sandbox is built and locked by the same code as the daemon's; what only root can do is left out, and the
//! status document says so rule by rule: no ports of its own, no record at the hypervisor, no acknowledgement.

mod folder;
mod manifest;
mod wish;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{signal::Signal, signalfd::SignalFd},
};
use serde::Serialize;
use vestigo_model::{Enforcement, Executable, Exit, Lease, PayloadUid};

use self::{folder::Folder, wish::Wish};
use crate::{
    cli::Exec,
    client,
    protocol::Refusal,
    sandbox::{self, Programs, Sandbox},
};

/// The status document: as the daemon's, and what nobody else holds about this run.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Started {
        uid: PayloadUid,
        /// Always `plain`; the daemon's documents have no such member.
        mode: &'a str,
        /// None: what it sends is nobody's.
        leases: [Lease; 0],
        /// Never.
        acknowledged: bool,
        executable: &'a Executable,
        #[serde(skip_serializing_if = "Option::is_none")]
        interpreter: Option<&'a Executable>,
        isolation: &'a BTreeMap<String, Enforcement>,
    },
    Refused {
        code: u8,
        reason: &'a str,
    },
    Ended {
        uid: PayloadUid,
        exit: Exit,
    },
}

/// The document's file, if somebody reads it.
struct Document(Option<File>);

impl Document {
    fn write(&mut self, event: &Event<'_>) -> Result<(), Refusal> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        file.write_all(&line).map_err(|e| Refusal::caller(format!("the status document cannot be written: {e}")))
    }
}

/// Runs a payload and gives its exit code.
///
/// # Errors
/// It did not run; the sentence says what to do.
pub fn run(options: Exec) -> Result<u8, Refusal> {
    let mut document = Document(options.json_status_fd.map(client::status_file).transpose()?);
    let signals = client::watch_signals().map_err(|e| Refusal::system(format!("signals cannot be watched: {e}")))?;
    let result = payload(options, &signals, &mut document);
    if let Err(Refusal { code, reason }) = &result {
        document.write(&Event::Refused { code: *code, reason })?;
    }
    result
}

fn payload(options: Exec, signals: &SignalFd, document: &mut Document) -> Result<u8, Refusal> {
    let wish = Wish::of(options)?;
    let stdio = stdio()?;
    let folder = Folder::make(wish.resolvers())?;
    let uid = PayloadUid(uuid::Uuid::new_v4());
    let mut sandbox = Sandbox::rootless(&wish.rootless(folder.path()))?;
    let programs = sandbox.load(wish.to_run(uid), &stdio.each_ref().map(AsFd::as_fd))?;
    // Nothing but the payload keeps the pilot's pipes open.
    drop(stdio);
    let isolation = manifest::manifest(&wish.facts(sandbox.landlock()));
    sandbox.go()?;
    let Programs { executable, interpreter } = &programs;
    document.write(&Event::Started {
        uid,
        mode: "plain",
        leases: [],
        acknowledged: false,
        executable,
        interpreter: interpreter.as_ref(),
        isolation: &isolation,
    })?;
    eprintln!("guest-agent: --plain: {uid} runs without ports of its own, and the hypervisor has no record of it");
    let exit = attend(&mut sandbox, signals);
    let finished = sandbox.finish();
    let exit = exit.or_else(|| sandbox.ended()).unwrap_or(Exit::Signal(Signal::SIGKILL as i32));
    if finished.is_err() {
        eprintln!("guest-agent: processes of the payload cannot be killed: they are stuck in the kernel");
    }
    document.write(&Event::Ended { uid, exit })?;
    folder.remove();
    Ok(client::exit_code(exit))
}

/// Copies of the caller's, for the payload: what the daemon refuses is refused here too.
fn stdio() -> Result<[OwnedFd; 3], Refusal> {
    let copy = |fd: io::Result<OwnedFd>| {
        fd.map_err(|_| Refusal::caller("standard input, output or error is closed; redirect it to /dev/null"))
    };
    let fds = [
        copy(io::stdin().as_fd().try_clone_to_owned())?,
        copy(io::stdout().as_fd().try_clone_to_owned())?,
        copy(io::stderr().as_fd().try_clone_to_owned())?,
    ];
    for (fd, name) in fds.iter().zip(["input", "output", "error"]) {
        sandbox::places::check_stream(fd, name)?;
    }
    Ok(fds)
}

/// Passes signals on until the payload has ended.
fn attend(sandbox: &mut Sandbox, signals: &SignalFd) -> Option<Exit> {
    loop {
        while let Ok(Some(info)) = signals.read_signal() {
            sandbox.signal(i32::try_from(info.ssi_signo).unwrap_or(libc::SIGTERM));
        }
        if sandbox.talk().has_message() {
            return sandbox.ended();
        }
        let wanted = PollFlags::POLLIN;
        let mut fds = [PollFd::new(sandbox.talk().as_fd(), wanted), PollFd::new(signals.as_fd(), wanted)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        let [talk, _] = fds;
        if talk.any().unwrap_or(false) {
            return sandbox.ended();
        }
    }
}
