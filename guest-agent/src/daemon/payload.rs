//! One request from its first line to the end of its payload: validate → lease → network → sandbox → record → acknowledged →
//! run → end. Every step has a guard that undoes it, in the opposite order, however the request ends.

use std::{os::fd::AsFd, time::Instant};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{signal::Signal, socket::UnixCredentials},
};
use tracing::{info, warn};
use vestigo_model::{Clock, Exit, Holder, Lease, PayloadClaim, PayloadUid, PilotId, SystemClock, Trust, link::Claim};

use super::{
    berth::{self, Berth},
    handed::Descriptors,
    peer_name, refuse,
    state::{Shared, State},
};
use crate::{
    cgroup::Group,
    config::FailMode,
    link::{Receipt, session::Verdict},
    protocol::{ExecRequest, Message, Refusal, Reply},
    sandbox::{
        self, Extra, Programs,
        executable::SEARCH,
        manifest::{Facts, manifest},
    },
    shape::Shape,
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

/// A payload in the list of those that live, until this is dropped.
struct Listed<'a> {
    state: &'a State,
    uid: PayloadUid,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.state.leave(self.uid);
    }
}

/// A payload that runs.
struct Started<'a> {
    berth: Berth,
    listed: Listed<'a>,
}

impl<'a> Started<'a> {
    fn new(
        state: &'a Shared,
        client: &mut Channel,
        peer: UnixCredentials,
        uid: PayloadUid,
        request: ExecRequest,
    ) -> Result<Self, Refusal> {
        request.shape.check()?;
        let fds = Descriptors::take(client, peer, &request.shape)?;
        let pilot = check(&request, peer)?;
        await_host(state)?;
        let limits = state.limits(request.shape.limits)?;
        let mut berth = moor(state, &request.shape, &fds)?;
        berth.name(uid, &limits)?;
        let listed = Listed { state, uid };
        state.enter(live(uid, &request, &pilot, berth.leases(), peer), berth.sandbox.killer());
        let programs = berth.sandbox.load(to_run(&request, uid), &fds.stdio.each_ref().map(AsFd::as_fd))?;
        // Nothing but the payload keeps the pilot's pipes open.
        drop(fds);
        let facts = Facts { own_work: request.shape.work, exposed: !state.config.expose.is_empty() };
        let claim = claim(uid, request, pilot, programs, berth.leases(), facts);
        let acknowledged = record(state, client, claim)?;
        if let Err(refusal) = berth.sandbox.go() {
            end(state, uid, Exit::NotStarted, true);
            return Err(refusal);
        }
        info!(%uid, caller = peer_name(peer), acknowledged, "payload started");
        // A client that is gone is noticed in a moment.
        let _ = client.send(&Reply::Started { uid, leases: berth.leases(), acknowledged }, &[]);
        Ok(Self { berth, listed })
    }

    /// Passes signals on until it ends, or its client goes away.
    fn attend(mut self, client: &mut Channel) -> Exit {
        let exit = loop {
            match self.wait(client) {
                Event::Ended => break self.berth.sandbox.ended(),
                Event::ClientGone => break None,
                Event::Signal(number) => self.berth.sandbox.signal(number),
            }
        };
        let finished = self.berth.sandbox.finish();
        // Its exit may have been on the way while the client left.
        let exit = exit.or_else(|| self.berth.sandbox.ended()).unwrap_or(Exit::Signal(Signal::SIGKILL as i32));
        if let Err(error) = finished {
            warn!(uid = %self.listed.uid, %error, "the end of a sandbox could not be seen");
        }
        let usage = self.berth.group.as_ref().map(Group::events).unwrap_or_default();
        end(self.listed.state, self.listed.uid, exit, self.berth.retire());
        let _ = client.send(&Reply::Ended { uid: self.listed.uid, exit, usage }, &[]);
        exit
    }

    fn wait(&self, client: &mut Channel) -> Event {
        loop {
            if !client.has_message() {
                let wanted = PollFlags::POLLIN;
                let mut fds =
                    [PollFd::new(self.berth.sandbox.talk().as_fd(), wanted), PollFd::new(client.as_fd(), wanted)];
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

fn live(
    uid: PayloadUid,
    request: &ExecRequest,
    pilot: &PilotId,
    leases: Vec<Lease>,
    peer: UnixCredentials,
) -> LivePayload {
    LivePayload {
        uid,
        payload: request.payload.clone(),
        pilot: pilot.clone(),
        user: request.user.clone(),
        vo: request.vo.clone(),
        leases,
        since: SystemClock.now(),
        caller_uid: peer.uid(),
        caller_pid: peer.pid(),
    }
}

/// A prepared berth, or one made to the shape.
fn moor(state: &Shared, shape: &Shape, fds: &Descriptors) -> Result<Berth, Refusal> {
    if shape.is_usual() {
        return berth::usual(state);
    }
    let extras = shape.binds.iter().map(|bind| Extra::Tree(bind.target.clone()));
    let extras = extras.chain(shape.tmpfs.iter().cloned().map(Extra::Tmpfs));
    let plan = sandbox::Plan {
        doors: 0,
        extras: extras.collect(),
        foreign: shape.rootfs,
        nested: shape.nested,
        hostname: shape.hostname.clone().unwrap_or_else(|| sandbox::HOSTNAME.to_owned()),
    };
    berth::special(state, &plan, &|outside, private| fds.mounts(&state.forker, outside, private))
}

fn to_run(request: &ExecRequest, uid: PayloadUid) -> sandbox::Run {
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
    sandbox::Run {
        command: request.command.clone(),
        env: own.chain(request.env.iter().cloned()).collect(),
        directory: request.shape.directory.clone().unwrap_or_else(|| sandbox::HOME.into()),
    }
}

fn claim(
    uid: PayloadUid,
    request: ExecRequest,
    pilot: PilotId,
    Programs { executable, interpreter }: Programs,
    leases: Vec<Lease>,
    facts: Facts,
) -> PayloadClaim {
    PayloadClaim {
        uid,
        holder: Holder::Payload,
        pilot,
        payload: request.payload,
        user: request.user,
        vo: request.vo,
        trust: request.trust,
        task: None,
        token: None,
        access: None,
        executable: Some(executable),
        interpreter,
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
                    end(state, uid, Exit::NotStarted, true);
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
                end(state, uid, Exit::NotStarted, true);
                return Err(Refusal::caller("the caller went away before the payload started"));
            }
            Answer::None | Answer::Verdict(Verdict::Unclear) if state.config.fail_mode == FailMode::Open => {
                state.link.owe(&receipt);
                return Ok(false);
            }
            Answer::None | Answer::Verdict(Verdict::Unclear) => {
                end(state, uid, Exit::NotStarted, true);
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

fn end(state: &State, uid: PayloadUid, exit: Exit, silent: bool) {
    if let Err(error) = state.link.record(Claim::PayloadEnd { uid, exit, silent }) {
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
