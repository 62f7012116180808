//! One request from its first line to the end of its payload: validate → lease → network → sandbox → record → acknowledged →
//! run → end. Every step has a guard that undoes it, in the opposite order, however the request ends.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{signal::Signal, socket::UnixCredentials},
};
use tracing::{debug, info, warn};
use vestigo_model::{
    Access, Caller, Clock, Enforcement, Exit, Holder, Label, Lease, PayloadClaim, PayloadUid, PilotId, SystemClock,
    Timestamp, User,
    link::{Claim, PayloadRefused},
};

use super::{
    bans,
    berth::{self, Berth},
    evidence::{Identified, identify},
    folders::Hold,
    handed::{self, Descriptors},
    peer_name,
    record::{await_host, end, record},
    refuse,
    state::{Shared, State},
};
use crate::{
    cgroup::{Group, Limits},
    environment,
    identity::token,
    protocol::{ExecRequest, Message, Refusal, Reply},
    sandbox::{
        self, Extra, Programs,
        manifest::{Facts, manifest},
    },
    shape::Shape,
    status::LivePayload,
    wire::Channel,
};

/// Longest command line in a record, and most arguments. The host refuses more than twice that, or more than that.
const COMMAND_BYTES: usize = 4096;
const COMMAND_ARGUMENTS: usize = 1024;

/// How long a client that was told everything may take to go away before what its payload left is tidied up.
const PARTING: Duration = Duration::from_millis(20);

/// Serves one request.
pub(super) fn run(
    state: &Shared,
    client: &mut Channel,
    peer: UnixCredentials,
    connected: Timestamp,
    request: ExecRequest,
) {
    let uid = PayloadUid(uuid::Uuid::new_v4());
    let who = match &request.user {
        Some(user) => format!("{} of {user} ({})", request.payload, request.vo),
        None => format!("{} ({})", request.payload, request.vo),
    };
    let caller = Caller { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() };
    let asked = Asked { uid, caller, connected, request };
    match Started::new(state, client, peer, &asked) {
        Ok(started) => {
            let exit = started.attend(client);
            info!(%uid, payload = who, caller = peer_name(peer), %exit, "payload ended");
        }
        Err(refusal) => {
            info!(%uid, payload = who, caller = peer_name(peer), reason = refusal.reason, code = refusal.code, "payload refused");
            state.small_talk.say(&state.link, asked.refused(&refusal));
            refuse(client, refusal);
        }
    }
}

/// A request and what is known about it without asking anybody.
struct Asked {
    uid: PayloadUid,
    caller: Caller,
    connected: Timestamp,
    request: ExecRequest,
}

impl Asked {
    /// What can be judged before anything is made.
    fn check(&self) -> Result<PilotId, Refusal> {
        let request = &self.request;
        request.shape.check()?;
        environment::check(&request.env, request.task.is_some())?;
        if request.task.is_some() {
            request.shape.check_for_task()?;
        }
        if request.command.first().is_none_or(String::is_empty) {
            return Err(Refusal::caller("no command is given; write it after --"));
        }
        if request.command.iter().any(|argument| argument.contains('\0')) {
            return Err(Refusal::caller("a NUL byte stands in the command; remove it"));
        }
        self.pilot()
    }

    fn pilot(&self) -> Result<PilotId, Refusal> {
        match &self.request.pilot {
            Some(pilot) => Ok(pilot.clone()),
            None => PilotId::new(format!("uid:{}", self.caller.uid)).map_err(|e| Refusal::system(e.to_string())),
        }
    }

    fn refused(&self, refusal: &Refusal) -> Claim {
        let nobody = || User { issuer: Label::cut("unnamed"), subject: Label::cut("unnamed") };
        let request = &self.request;
        let Ok(pilot) = self.pilot() else { return Claim::Alarm { what: Label::cut(&refusal.reason) } };
        Claim::PayloadRefused(PayloadRefused {
            uid: self.uid,
            caller: self.caller,
            pilot,
            payload: request.payload.clone(),
            user: request.user.clone().unwrap_or_else(nobody),
            vo: request.vo.clone(),
            code: refusal.code,
            reason: Label::cut(&refusal.reason),
        })
    }
}

/// A payload in the list of those that live, until this is dropped.
struct Listed<'a> {
    state: &'a State,
    uid: PayloadUid,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.state.live.leave(self.uid);
    }
}

/// How long the steps of a start took, for whoever runs the agent with VESTIGO_LOG=debug.
struct Steps {
    begin: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn new() -> Self {
        Self { begin: Instant::now(), done: Vec::with_capacity(8) }
    }

    fn done(&mut self, step: &'static str) {
        self.done.push((step, self.begin.elapsed()));
    }
}

/// A payload that runs.
struct Started<'a> {
    berth: Berth,
    listed: Listed<'a>,
    _folders: Hold,
}

impl<'a> Started<'a> {
    fn new(state: &'a Shared, client: &mut Channel, peer: UnixCredentials, asked: &Asked) -> Result<Self, Refusal> {
        let Asked { uid, request, .. } = asked;
        let mut steps = Steps::new();
        let pilot = asked.check()?;
        let own = [state.config.state_dir.as_path(), state.config.scratch_dir.as_path()];
        let fds = Descriptors::take(client, &handed::Caller { peer, own: &own }, &request.shape)?;
        let identified = identify(&state.trust(), &state.config, request, &pilot, SystemClock.now())?;
        let authenticated = SystemClock.now();
        steps.done("identified");
        let folders = state.folders.hold(*uid, &identified.user, fds.writable()?)?;
        await_host(state)?;
        let limits = state.limits(request.shape.limits)?;
        let mut berth = moor(state, &request.shape, &fds)?;
        steps.done("sandbox");
        berth.name(*uid, &limits)?;
        let listed = Listed { state, uid: *uid };
        let reach = berth.reach().ok_or_else(|| Refusal::system("the payload has no lease"))?;
        state.live.enter(shown(asked, &identified, &pilot, berth.leases()), reach);
        let programs = load(&mut berth, request, *uid, &fds)?;
        steps.done("hashed");
        // Nothing but the payload keeps the pilot's pipes open.
        drop(fds);
        if let Some(task) = &identified.task {
            task.permits(&programs.executable.sha256).map_err(|e| Refusal::policy(e.to_string()))?;
        }
        let access = Access {
            caller: asked.caller,
            connected: asked.connected,
            authenticated,
            authorized: SystemClock.now(),
            runs_as: berth.outside(),
        };
        let isolation = manifest(&facts(state, request, &identified, &berth, limits));
        let claim = claim(asked, identified, pilot, programs, berth.leases(), access, isolation);
        if let Some(reason) = bans::refusal(state, &claim) {
            return Err(Refusal::policy(reason));
        }
        let (user, trust, isolation) = (claim.user.clone(), claim.trust, claim.isolation.clone());
        let acknowledged = record(state, client, claim)?;
        steps.done("acknowledged");
        if let Err(refusal) = berth.sandbox.go() {
            end(state, *uid, Exit::NotStarted, true);
            // A ban that came after it was judged has killed it where it stood.
            let banned =
                state.live.banned(*uid).map(|ban| Refusal::policy(format!("refused by the hypervisor's ban {ban}")));
            return Err(banned.unwrap_or(refusal));
        }
        steps.done("runs");
        debug!(%uid, steps = ?steps.done, "how long a start took");
        info!(%uid, caller = peer_name(peer), acknowledged, "payload started");
        // A client that is gone is noticed in a moment.
        let started = Reply::Started { uid: *uid, leases: berth.leases(), acknowledged, user, trust, isolation };
        let _ = client.send(&started, &[]);
        Ok(Self { berth, listed, _folders: folders })
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
        let mut steps = Steps::new();
        let finished = self.berth.sandbox.finish();
        steps.done("dead");
        // Its exit may have been on the way while the client left.
        let exit = exit.or_else(|| self.berth.sandbox.ended()).unwrap_or(Exit::Signal(Signal::SIGKILL as i32));
        if let Err(error) = finished {
            warn!(uid = %self.listed.uid, %error, "the end of a sandbox could not be seen");
        }
        let usage = self.berth.group.as_ref().map(Group::events).unwrap_or_default();
        // On record before the pilot hears it: whatever happens to this agent then, nobody is told two ends.
        end(self.listed.state, self.listed.uid, exit, self.berth.fall_silent());
        steps.done("recorded");
        debug!(uid = %self.listed.uid, steps = ?steps.done, "how long an end took");
        // From here on no ban ends it any more.
        let banned = self.listed.state.live.leave(self.listed.uid);
        let _ = client.send(&Reply::Ended { uid: self.listed.uid, exit, usage, banned }, &[]);
        // Tidying up would take the processor that it ends on.
        client.hung_up_within(PARTING);
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
            // Half a message must not hide the payload's end.
            match client.receive_if_there::<Message>() {
                Ok(Some(Message::Signal { signal })) => return Event::Signal(signal),
                Ok(None) => {}
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

fn shown(asked: &Asked, identified: &Identified, pilot: &PilotId, leases: Vec<Lease>) -> LivePayload {
    LivePayload {
        uid: asked.uid,
        payload: asked.request.payload.clone(),
        pilot: pilot.clone(),
        user: identified.user.clone(),
        vo: asked.request.vo.clone(),
        leases,
        since: SystemClock.now(),
        caller_uid: asked.caller.uid,
        caller_pid: asked.caller.pid,
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

/// Names the payload to its sandbox.
fn load(berth: &mut Berth, request: &ExecRequest, uid: PayloadUid, fds: &Descriptors) -> Result<Programs, Refusal> {
    let sealed = request.token.as_ref().map(|secret| token::sealed(secret.0.as_bytes())).transpose();
    let sealed = sealed.map_err(|e| Refusal::system(format!("the token cannot be handed over: {e}")))?;
    let run = sandbox::Run {
        command: request.command.clone(),
        env: environment::whole(&request.env, &uid.to_string()),
        directory: request.shape.directory.clone().unwrap_or_else(|| sandbox::HOME.into()),
        token: sealed.is_some(),
    };
    let fds: Vec<_> = fds.stdio.iter().chain(&sealed).map(AsFd::as_fd).collect();
    berth.sandbox.load(run, &fds)
}

fn facts(state: &State, request: &ExecRequest, identified: &Identified, berth: &Berth, limits: Limits) -> Facts {
    Facts {
        shape: request.shape.clone(),
        exposed: !state.config.expose.is_empty(),
        limits,
        landlock: berth.sandbox.landlock().cloned(),
        token: identified.token.as_ref().map(|token| token.claims.is_some()),
        ipv6: berth.leases().iter().any(|lease| matches!(lease, Lease::Address(_))),
    }
}

fn claim(
    asked: &Asked,
    identified: Identified,
    pilot: PilotId,
    Programs { executable, interpreter }: Programs,
    leases: Vec<Lease>,
    access: Access,
    isolation: BTreeMap<String, Enforcement>,
) -> PayloadClaim {
    let (task, token) = (identified.task_mark(), identified.token_mark());
    PayloadClaim {
        uid: asked.uid,
        holder: Holder::Payload,
        pilot,
        payload: asked.request.payload.clone(),
        user: identified.user,
        vo: asked.request.vo.clone(),
        trust: identified.trust,
        task,
        token,
        access: Some(access),
        executable: Some(executable),
        interpreter,
        command: cut(asked.request.command.clone()),
        leases,
        isolation,
        withheld: None,
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
