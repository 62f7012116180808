//! One request from its first line to the end of its payload: validate → lease → network → sandbox → record → acknowledged →
//! run → end. Every step has a guard that undoes it, in the opposite order, however the request ends.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Instant,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        socket::{AddressFamily, SockaddrLike, SockaddrStorage, UnixCredentials, getsockname},
        stat::{SFlag, fstat},
    },
};
use tracing::{info, warn};
use vestigo_model::{
    Clock, Executable, Exit, Lease, PayloadClaim, PayloadUid, PilotId, SystemClock, Trust, link::Claim,
};

use super::{
    peer_name, refuse,
    state::{Shared, State},
};
use crate::{
    config::FailMode,
    lease::Slot,
    link::{Receipt, session::Verdict},
    network::{Namespace, Plan},
    protocol::{ExecRequest, Message, Refusal, Reply},
    sandbox::{
        self, Sandbox,
        executable::SEARCH,
        manifest::{Facts, manifest},
        scratch::Scratch,
    },
    status::LivePayload,
    wire::Channel,
};

/// Longest command line in a record, and most arguments. The host refuses more than twice that, or more than that.
const COMMAND_BYTES: usize = 4096;
const COMMAND_ARGUMENTS: usize = 1024;
/// Variables that the sandbox sets itself.
const RESERVED: [&str; 5] = ["PATH", "HOME", "VESTIGO_PAYLOAD_UID", "USER", "LOGNAME"];

/// Serves one request.
pub(super) fn run(state: &Shared, client: &mut Channel, peer: UnixCredentials, request: ExecRequest) {
    let uid = PayloadUid(uuid::Uuid::new_v4());
    let who = format!("{} of {} ({})", request.payload, request.user, request.vo);
    match Started::new(state, client, peer, uid, request) {
        Ok(started) => {
            let exit = started.attend(client);
            info!(%uid, payload = who, caller = peer_name(peer), %exit, "payload ended");
        }
        Err(refusal) => {
            info!(%uid, payload = who, caller = peer_name(peer), reason = refusal.reason, code = refusal.code, "payload refused");
            refuse(client, refusal);
        }
    }
}

/// The lease and all that hangs on it.
struct Leased<'a> {
    state: &'a State,
    slot: Slot,
    plan: Plan,
    /// Kept until the interface is removed: without it the kernel takes both away when the last process dies, and
    /// whether a packet was ever sent is lost.
    namespace: Option<Namespace>,
    uid: PayloadUid,
}

impl<'a> Leased<'a> {
    fn new(state: &'a State, live: impl FnOnce(Lease) -> LivePayload) -> Result<Self, Refusal> {
        let slot = state.allocate().map_err(|e| Refusal::system(e.to_string()))?;
        let plan = state.plan(slot);
        let live = live(Lease::Ports(plan.ports));
        let uid = live.uid;
        state.enter(live);
        Ok(Self { state, slot, plan, namespace: None, uid })
    }

    fn network(&mut self) -> Result<(), Refusal> {
        let namespace = self.state.networks().add(&self.plan);
        self.namespace =
            Some(namespace.map_err(|e| Refusal::system(format!("the payload's network could not be made: {e}")))?);
        Ok(())
    }
}

impl Leased<'_> {
    fn leases(&self) -> Vec<Lease> {
        self.namespace.as_ref().map_or_else(Vec::new, Namespace::leases)
    }
}

impl Drop for Leased<'_> {
    fn drop(&mut self) {
        let used = self.namespace.is_some() && self.state.networks().remove(&self.plan);
        self.state.release(self.slot, used);
        self.state.leave(self.uid);
    }
}

/// A payload that runs. Fields are dropped in this order: first the processes, then their files, then their network.
struct Started<'a> {
    sandbox: Sandbox,
    _scratch: Scratch,
    leased: Leased<'a>,
    uid: PayloadUid,
}

impl<'a> Started<'a> {
    fn new(
        state: &'a State,
        client: &mut Channel,
        peer: UnixCredentials,
        uid: PayloadUid,
        request: ExecRequest,
    ) -> Result<Self, Refusal> {
        let fds = Descriptors::take(client, peer, &request)?;
        let pilot = check(&request, peer)?;
        await_host(state)?;
        let mut leased = Leased::new(state, |lease| live(uid, &request, &pilot, lease, peer))?;
        leased.network()?;
        let outside = state.config.uid_base + u32::from(leased.slot.0);
        let scratch = Scratch::create(&state.config.scratch_dir, &uid.to_string(), outside).map_err(|e| {
            Refusal::system(format!("no home folder below {}: {e}", state.config.scratch_dir.display()))
        })?;
        let plan = sandbox_plan(state, &request, uid, outside, &scratch, &fds);
        let mut all: Vec<_> = leased.namespace.iter().map(Namespace::fd).collect();
        all.extend(fds.all().map(AsFd::as_fd));
        let (mut sandbox, executable) = Sandbox::build(&plan, &all)?;
        // Nothing but the payload keeps the pilot's pipes open.
        let facts = Facts { own_work: plan.work_owner.is_some(), exposed: !plan.expose.is_empty() };
        drop(fds);
        state.arm(uid, sandbox.killer());
        let leases = leased.leases();
        let claim = claim(uid, request, pilot, executable, leases.clone(), facts);
        let acknowledged = record(state, client, claim)?;
        if let Err(refusal) = sandbox.go() {
            end(state, uid, Exit::NotStarted);
            return Err(refusal);
        }
        info!(%uid, caller = peer_name(peer), acknowledged, "payload started");
        // A client that is gone is noticed in a moment.
        let _ = client.send(&Reply::Started { uid, leases, acknowledged }, &[]);
        Ok(Self { sandbox, _scratch: scratch, leased, uid })
    }

    /// Passes signals on until it ends, or its client goes away.
    fn attend(mut self, client: &mut Channel) -> Exit {
        let exit = loop {
            match self.wait(client) {
                Event::Ended => break self.sandbox.ended(),
                Event::ClientGone => break None,
                Event::Signal(number) => self.sandbox.signal(number),
            }
        };
        let finished = self.sandbox.finish();
        // Its exit may have been on the way while the client left.
        let exit = exit.or_else(|| self.sandbox.ended()).unwrap_or(Exit::Signal(Signal::SIGKILL as i32));
        if let Err(error) = finished {
            warn!(uid = %self.uid, %error, "the end of a sandbox could not be seen");
        }
        end(self.leased.state, self.uid, exit);
        let _ = client.send(&Reply::Ended { uid: self.uid, exit }, &[]);
        exit
    }

    fn wait(&self, client: &mut Channel) -> Event {
        loop {
            if !client.has_message() {
                let wanted = PollFlags::POLLIN;
                let mut fds = [PollFd::new(self.sandbox.talk().as_fd(), wanted), PollFd::new(client.as_fd(), wanted)];
                let _ = poll(&mut fds, PollTimeout::NONE);
                let [talk, _] = fds;
                if talk.any().unwrap_or(false) {
                    return Event::Ended;
                }
            }
            match client.receive::<Message>() {
                Ok(Message::Signal { signal }) => return Event::Signal(signal),
                Err(crate::wire::WireError::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Event::ClientGone,
            }
        }
    }
}

enum Event {
    Ended,
    ClientGone,
    Signal(i32),
}

/// What the client handed over.
struct Descriptors {
    stdio: [OwnedFd; 3],
    work: Option<(OwnedFd, (u32, u32))>,
}

impl Descriptors {
    fn take(client: &mut Channel, peer: UnixCredentials, request: &ExecRequest) -> Result<Self, Refusal> {
        let missing = || {
            Refusal::caller("standard input, output and error did not come with the request; use `guest-agent exec`")
        };
        let mut next = || client.take_fd().ok_or_else(missing);
        let stdio = [next()?, next()?, next()?];
        for (fd, name) in stdio.iter().zip(["input", "output", "error"]) {
            check_stdio(fd, name)?;
        }
        let work = if request.work { Some(check_work(next()?, peer)?) } else { None };
        Ok(Self { stdio, work })
    }

    fn all(&self) -> impl Iterator<Item = &OwnedFd> {
        self.stdio.iter().chain(self.work.as_ref().map(|(fd, _)| fd))
    }
}

/// A directory descriptor would be a way out of the sandbox, a raw disk worse. A socket of the VM's own network would send
/// with ports that are nobody's.
fn check_stdio(fd: &OwnedFd, name: &str) -> Result<(), Refusal> {
    let refuse =
        |what: &str| Refusal::caller(format!("standard {name} is {what}; redirect it to a file, a pipe or /dev/null"));
    let about = fstat(fd).map_err(|e| refuse(&format!("unusable ({e})")))?;
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| refuse(&format!("unusable ({e})")))?;
    let kind = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT;
    if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
        return Err(refuse("only a path"));
    }
    match kind {
        SFlag::S_IFDIR => Err(refuse("a directory")),
        SFlag::S_IFBLK => Err(refuse("a block device")),
        SFlag::S_IFSOCK if family(fd) != Some(AddressFamily::Unix) => {
            Err(refuse("a network socket, which would leave the VM outside of the payload's ports"))
        }
        SFlag::S_IFSOCK | SFlag::S_IFREG | SFlag::S_IFIFO | SFlag::S_IFCHR => Ok(()),
        // io_uring, eBPF, pidfd … have no kind at all.
        _ => Err(refuse("no file, pipe, terminal or Unix socket")),
    }
}

fn family(socket: &OwnedFd) -> Option<AddressFamily> {
    getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?.family()
}

/// The caller must own the directory: the payload's files in it will be the caller's.
fn check_work(fd: OwnedFd, peer: UnixCredentials) -> Result<(OwnedFd, (u32, u32)), Refusal> {
    let about = fstat(&fd).map_err(|e| Refusal::caller(format!("the work directory is unusable: {e}")))?;
    if SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
        return Err(Refusal::caller("the work directory is not a directory"));
    }
    if peer.uid() == 0 {
        return Err(Refusal::policy(
            "--work would let a payload make root's files; call as an ordinary user, or leave --work out",
        ));
    }
    if about.st_uid != peer.uid() {
        return Err(Refusal::policy(format!(
            "the work directory belongs to uid {}, not to the caller (uid {}); give one of your own",
            about.st_uid,
            peer.uid()
        )));
    }
    Ok((fd, (peer.uid(), peer.gid())))
}

/// What can be judged before anything is made.
fn check(request: &ExecRequest, peer: UnixCredentials) -> Result<PilotId, Refusal> {
    if request.trust != Trust::AssertedByVo {
        return Err(Refusal::caller("only --trust asserted-by-vo can be checked by this version; leave --trust out"));
    }
    if request.command.first().is_none_or(String::is_empty) {
        return Err(Refusal::caller("no command is given; write it after --"));
    }
    let nul = |text: &String| text.contains('\0');
    if request.command.iter().any(nul) || request.env.iter().any(|(k, v)| nul(k) || nul(v)) {
        return Err(Refusal::caller("a NUL byte stands in the command or the environment; remove it"));
    }
    for (key, _) in &request.env {
        if key.is_empty() || key.contains('=') {
            return Err(Refusal::caller(format!("{key:?} is not a variable's name; write --env KEY=VALUE")));
        }
        if RESERVED.contains(&key.as_str()) {
            return Err(Refusal::caller(format!("the variable {key} is set by the sandbox; leave it out of --env")));
        }
    }
    match &request.pilot {
        Some(pilot) => Ok(pilot.clone()),
        None => PilotId::new(format!("uid:{}", peer.uid())).map_err(|e| Refusal::system(e.to_string())),
    }
}

/// In closed mode without a host nothing is built and nothing spooled: the answer would be no in any case.
fn await_host(state: &State) -> Result<(), Refusal> {
    let closed = state.config.fail_mode == FailMode::Closed;
    if closed && !state.link.wait_connected(state.config.ack_patience()) {
        return Err(unacknowledged(state));
    }
    Ok(())
}

fn unacknowledged(state: &State) -> Refusal {
    Refusal::system(format!(
        "hostd did not acknowledge the record within {} s; payload not started; check that hostd runs on the hypervisor or set fail_mode = \"open\"",
        state.config.ack_timeout
    ))
}

fn live(uid: PayloadUid, request: &ExecRequest, pilot: &PilotId, lease: Lease, peer: UnixCredentials) -> LivePayload {
    LivePayload {
        uid,
        payload: request.payload.clone(),
        pilot: pilot.clone(),
        user: request.user.clone(),
        vo: request.vo.clone(),
        leases: vec![lease],
        since: SystemClock.now(),
        caller_uid: peer.uid(),
        caller_pid: peer.pid(),
    }
}

fn sandbox_plan(
    state: &State,
    request: &ExecRequest,
    uid: PayloadUid,
    outside: u32,
    scratch: &Scratch,
    fds: &Descriptors,
) -> sandbox::Plan {
    let own = [
        ("PATH", SEARCH.to_owned()),
        ("HOME", sandbox::HOME.to_owned()),
        ("USER", "payload".to_owned()),
        ("LOGNAME", "payload".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TERM", "dumb".to_owned()),
        ("VESTIGO_PAYLOAD_UID", uid.to_string()),
    ];
    let given = |key: &str| request.env.iter().any(|(k, _)| k == key);
    let own = own.into_iter().filter(|(key, _)| !given(key)).map(|(key, value)| (key.to_owned(), value));
    sandbox::Plan {
        root: state.config.state_dir.join("root"),
        scratch: scratch.path().to_owned(),
        outside,
        work_owner: fds.work.as_ref().map(|(_, owner)| *owner),
        command: request.command.clone(),
        env: own.chain(request.env.iter().cloned()).collect(),
        expose: state.config.expose.clone(),
        hostname: "payload".into(),
    }
}

fn claim(
    uid: PayloadUid,
    request: ExecRequest,
    pilot: PilotId,
    executable: Executable,
    leases: Vec<Lease>,
    facts: Facts,
) -> PayloadClaim {
    PayloadClaim {
        uid,
        pilot,
        payload: request.payload,
        user: request.user,
        vo: request.vo,
        trust: request.trust,
        executable: Some(executable),
        command: cut(request.command),
        leases,
        isolation: manifest(facts),
    }
}

/// As much of the command as a record takes.
fn cut(command: Vec<String>) -> Vec<String> {
    let mut left = COMMAND_BYTES;
    let mut kept = Vec::new();
    for mut argument in command {
        if left == 0 || kept.len() == COMMAND_ARGUMENTS {
            break;
        }
        let mut end = argument.len().min(left);
        while !argument.is_char_boundary(end) {
            end -= 1;
        }
        argument.truncate(end);
        // An empty argument costs something too: there may be very many.
        left -= end.max(1).min(left);
        kept.push(argument);
    }
    kept
}

/// Records the start and waits for the host. `Ok(false)`: nobody acknowledged, and the agent may start all the same.
fn record(state: &State, client: &Channel, claim: PayloadClaim) -> Result<bool, Refusal> {
    let uid = claim.uid;
    let deadline = Instant::now() + state.config.ack_patience();
    let mut said = false;
    loop {
        let receipt = match state.link.record(Claim::PayloadStart(claim.clone())) {
            Ok(receipt) => receipt,
            Err(error) => {
                // If only the spool failed, the session has the start all the same: say that nothing ran.
                if said || matches!(error, crate::link::RecordError::Spool(_)) {
                    end(state, uid, Exit::NotStarted);
                }
                return Err(Refusal::system(format!(
                    "the payload cannot be recorded: {error}; payload not started; check that hostd runs on the hypervisor"
                )));
            }
        };
        said = true;
        match verdict(state, client, &receipt, deadline) {
            Answer::Verdict(Verdict::Acknowledged) => return Ok(true),
            Answer::Verdict(Verdict::Refused(reason)) => {
                return Err(Refusal::policy(format!("the hypervisor refused the payload: {reason}")));
            }
            // The same words again, so that the host gives its own again.
            Answer::Verdict(Verdict::Unclear) if Instant::now() < deadline => {}
            Answer::ClientGone => {
                end(state, uid, Exit::NotStarted);
                return Err(Refusal::caller("the caller went away before the payload started"));
            }
            Answer::None | Answer::Verdict(Verdict::Unclear) if state.config.fail_mode == FailMode::Open => {
                state.link.owe(&receipt);
                return Ok(false);
            }
            Answer::None | Answer::Verdict(Verdict::Unclear) => {
                end(state, uid, Exit::NotStarted);
                return Err(unacknowledged(state));
            }
        }
    }
}

enum Answer {
    Verdict(Verdict),
    ClientGone,
    None,
}

/// The host's word, as long as there is any point in waiting for it: in open mode not for a host that is not there.
fn verdict(state: &State, client: &Channel, receipt: &Receipt, deadline: Instant) -> Answer {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(verdict) = receipt.wait(left.min(std::time::Duration::from_millis(100))) {
            return Answer::Verdict(verdict);
        }
        let hopeless = state.config.fail_mode == FailMode::Open && !state.link.status().connected;
        if left.is_zero() || hopeless {
            return Answer::None;
        }
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        if fds.iter().any(|f| f.revents().is_some_and(|r| r.contains(PollFlags::POLLHUP))) {
            return Answer::ClientGone;
        }
    }
}

fn end(state: &State, uid: PayloadUid, exit: Exit) {
    if let Err(error) = state.link.record(Claim::PayloadEnd { uid, exit }) {
        warn!(%uid, %error, "the end of a payload could not be recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_long_command_is_cut_at_a_character() {
        let long = vec!["a".to_owned(), "ü".repeat(5000), "never".to_owned()];
        let kept = cut(long);
        assert_eq!(kept.first().map(String::as_str), Some("a"));
        assert!(!kept.iter().any(|a| a == "never"));
        assert!(kept.iter().map(String::len).sum::<usize>() <= super::COMMAND_BYTES);
        assert!(cut(vec![String::new(); 100_000]).len() <= 1024, "hostd refuses more");
    }
}
