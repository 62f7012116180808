//! The join of flows and payloads by lease arithmetic, made again when a question is asked: a lease may have arrived after
//! the flow was recorded.
//!
//! A stored `lease` or `observed` label is kept as it is, unless it can only rest on a claim that contradicts an earlier one.
//! A flow stored as `instance` is joined only if exactly one payload of its VM held the tuple; two are never chosen between.
//! Arrival of the claim and first packet are read from one clock, the host's, so there is no tolerance between them: a lease
//! that arrived later is `claimed-late`, however little later.

use std::time::Duration;

use vestigo_model::{Attribution, BEGAN_BEFORE, Flow, Payload, PayloadUid, Quality, Timestamp};

use super::TOLERANCE;
use crate::reader::Facts;

/// The flow's attribution as it stands now, given all that is known.
pub(crate) fn standing(flow: &Flow, facts: &Facts, tolerance: Duration) -> Attribution {
    let attribution = attribute_in(flow, facts, tolerance);
    match attribution.payload {
        Some(uid) if attribution.quality == Quality::Lease && !covered(flow, facts, uid) => Attribution {
            quality: Quality::Instance,
            payload: None,
            reason: format!(
                "recorded as {} of run {uid}, but the guest had claimed something else under this run id before, and that \
                 first claim, which holds, does not cover the flow",
                attribution.quality
            ),
        },
        _ => attribution,
    }
}

/// Whether the first claim covers the flow, asked only where there is more than one: otherwise what hostd wrote stands.
fn covered(flow: &Flow, facts: &Facts, uid: PayloadUid) -> bool {
    facts.conflicting_with(&flow.host, flow.domain, uid).is_empty()
        || find(&facts.payloads, flow, uid).is_some_and(|first| holds(first, flow) && first.held_leases_at(flow.first))
}

fn attribute_in(flow: &Flow, facts: &Facts, tolerance: Duration) -> Attribution {
    if flow.attribution.payload.is_some() {
        return flow.attribution.clone();
    }
    // A run of the VM before the one that made a claim cannot be the claim's, whatever the guest's clock said.
    let mut of_vm = marked(flow, &facts.payloads);
    of_vm.retain(|payload| began(payload, facts) <= flow.first + tolerance);
    among(of_vm, flow, tolerance)
}

fn marked<'a>(flow: &Flow, payloads: &'a [Payload]) -> Vec<&'a Payload> {
    flow.marked(payloads.iter().filter(|p| p.domain == flow.domain && p.host == flow.host))
}

/// The earliest that a payload can have run: when its guest says, and neither before its VM did nor after its claim arrived. A guest
/// sets its clock as it likes.
pub(crate) fn began(payload: &Payload, facts: &Facts) -> Timestamp {
    let of_vm = facts.instances.iter().filter(|i| i.domain == payload.domain && i.host == payload.host);
    let last = of_vm.filter(|instance| instance.start <= payload.received).max_by_key(|instance| instance.start);
    // A claim that arrived after the last run that is known here is of a later one, which began after this one's end.
    let start = last.map(|instance| match instance.end {
        Some(end) if end.time + TOLERANCE < payload.received => end.time,
        _ => instance.start,
    });
    let claimed = payload.claimed.min(payload.received);
    start.map_or(claimed, |start| claimed.max(start))
}

/// The flow's attribution as it stands now, given the payloads of all VMs.
#[must_use]
pub fn attribute(flow: &Flow, payloads: &[Payload], tolerance: Duration) -> Attribution {
    if flow.attribution.payload.is_some() {
        return flow.attribution.clone();
    }
    among(marked(flow, payloads), flow, tolerance)
}

fn among(of_vm: Vec<&Payload>, flow: &Flow, tolerance: Duration) -> Attribution {
    let stored = &flow.attribution;
    if stored.reason == BEGAN_BEFORE {
        return begun_before(&of_vm, flow, tolerance);
    }
    let held: Vec<&Payload> = of_vm.iter().copied().filter(|p| p.held_leases_at(flow.first)).collect();
    let late: Vec<&Payload> = of_vm.into_iter().filter(|p| claimed_late(p, flow, tolerance)).collect();
    match (held.as_slice(), late.as_slice()) {
        ([one], _) => by_lease(one, stored),
        ([], [one]) => by_late_claim(one, stored, tolerance),
        ([], []) => stored.clone(),
        ([], many) => ambiguous(many, stored),
        (many, _) => ambiguous(many, stored),
    }
}

/// A later part of a flow that began before the lease was announced; when, only the host's table of flows knew. It can be the
/// payload's only if the claim was late by the guest's own clock: an agent that paid its debt.
fn begun_before(of_vm: &[&Payload], flow: &Flow, tolerance: Duration) -> Attribution {
    let late = |p: &&&Payload| p.claimed + tolerance < p.received && p.held_leases_at(flow.first);
    let late: Vec<&Payload> = of_vm.iter().filter(late).copied().collect();
    match late.as_slice() {
        [one] => by_late_claim(one, &flow.attribution, tolerance),
        _ => flow.attribution.clone(),
    }
}

fn holds(payload: &Payload, flow: &Flow) -> bool {
    payload.mark(flow).is_some()
}

/// Whether the claim arrived after the flow began, and the payload ran then by the guest's own clock alone. (Or arrived so
/// shortly after that the guest's clock cannot tell.)
fn claimed_late(payload: &Payload, flow: &Flow, tolerance: Duration) -> bool {
    let begun = payload.received.min(payload.claimed) - tolerance <= flow.first && flow.first < payload.received;
    begun && payload.end.is_none_or(|end| flow.first <= end.claimed.max(payload.claimed) + end.rest() + tolerance)
}

fn lease_of(payload: &Payload) -> String {
    let leases: Vec<String> = payload.claim.leases.iter().map(ToString::to_string).collect();
    leases.join(", ")
}

// Reasons name no time of the flow: a thousand flows of one payload have one reason.

fn by_lease(payload: &Payload, stored: &Attribution) -> Attribution {
    let (lease, received) = (lease_of(payload), payload.received);
    let reason = format!(
        "joined when asked: lease {lease} announced at {received}, before the flow began; recorded as instance: {}",
        stored.reason
    );
    Attribution { quality: Quality::Lease, payload: Some(payload.claim.uid), reason }
}

fn by_late_claim(payload: &Payload, stored: &Attribution, tolerance: Duration) -> Attribution {
    let reason = format!(
        "not certain: the guest announced lease {} at {}, after the flow had begun; only the guest's own clock says that the \
         payload ran already (since {}, tolerance {} s). An agent that works without hostd for a while says so late, and so \
         does a guest that makes up a story afterwards; recorded as instance: {}",
        lease_of(payload),
        payload.received,
        payload.claimed,
        tolerance.as_secs_f32(),
        stored.reason,
    );
    Attribution { quality: Quality::ClaimedLate, payload: Some(payload.claim.uid), reason }
}

/// Payloads named when none is chosen.
const NAMED: usize = 8;

fn ambiguous(payloads: &[&Payload], stored: &Attribution) -> Attribution {
    let uids: Vec<String> = payloads.iter().take(NAMED).map(|p| p.claim.uid.to_string()).collect();
    let more = payloads.len().saturating_sub(NAMED);
    let reason = format!(
        "{} payloads claim to have held the lease then, none is chosen: {}{}; recorded as instance: {}",
        payloads.len(),
        uids.join(", "),
        if more > 0 { format!(" and {more} more") } else { String::new() },
        stored.reason,
    );
    Attribution { quality: Quality::Instance, payload: None, reason }
}

/// The payload record that an attribution names.
pub(crate) fn find<'a>(payloads: &'a [Payload], flow: &Flow, uid: PayloadUid) -> Option<&'a Payload> {
    payloads.iter().find(|p| p.claim.uid == uid && p.domain == flow.domain && p.host == flow.host)
}
