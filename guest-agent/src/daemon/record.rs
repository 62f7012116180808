//! Record, acknowledge, then exec: what a start and an end have to do with the hypervisor.

use std::{
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use tracing::warn;
use vestigo_model::{Exit, PayloadClaim, PayloadUid, link::Claim};

use super::state::State;
use crate::{
    config::FailMode,
    link::{Receipt, RecordError, session::Verdict},
    protocol::Refusal,
    wire::Channel,
};

/// In closed mode without a host nothing is built and nothing spooled: the answer would be no in any case.
pub(super) fn await_host(state: &State) -> Result<(), Refusal> {
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

/// Records the start and waits for the host. `Ok(false)`: nobody acknowledged, and the agent may start all the same.
pub(super) fn record(state: &State, client: &Channel, claim: PayloadClaim) -> Result<bool, Refusal> {
    let uid = claim.uid;
    let deadline = Instant::now() + state.config.ack_patience();
    let mut said = false;
    loop {
        let receipt = state.link.record(Claim::PayloadStart(claim.clone()));
        let answer = verdict(state, client, &receipt, deadline);
        // By now it is known whether there is one.
        let ticket = match receipt.made() {
            Ok(ticket) => ticket,
            Err(error) => {
                // If only the spool failed, the session has the start all the same: say that nothing ran.
                if said || matches!(error, RecordError::Spool(_)) {
                    end(state, uid, Exit::NotStarted, true);
                }
                return Err(Refusal::system(format!(
                    "the payload cannot be recorded: {error}; payload not started; check that hostd runs on the hypervisor"
                )));
            }
        };
        said = true;
        match answer {
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
                state.link.owe(ticket);
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
        match receipt.wait(left.min(Duration::from_millis(100))) {
            Ok(verdict) => return Answer::Verdict(verdict),
            // It was not made, or the host has been silent through thousands of others.
            Err(RecvTimeoutError::Disconnected) => return Answer::None,
            Err(RecvTimeoutError::Timeout) => {}
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

pub(super) fn end(state: &State, uid: PayloadUid, exit: Exit, silent: bool) {
    if let Err(error) = state.link.record(Claim::PayloadEnd { uid, exit, silent }).made() {
        warn!(%uid, %error, "the end of a payload could not be recorded");
    }
}
