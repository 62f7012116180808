//! The join of flows and payloads by lease arithmetic, made again when a question is asked: a lease may have arrived after
//! the flow was recorded.
//!
//! A stored `lease` or `observed` label is kept as it is. A flow stored as `instance` is joined only if exactly one
//! payload of its VM held the tuple; two are never chosen between.

use std::time::Duration;

use vestigo_model::{Attribution, Flow, Payload, PayloadUid, Quality, TimeRange, Timestamp};

/// The flow's attribution as it stands now, given the payloads of all VMs.
#[must_use]
pub fn attribute(flow: &Flow, payloads: &[Payload], tolerance: Duration) -> Attribution {
    let stored = &flow.attribution;
    if stored.payload.is_some() {
        return stored.clone();
    }
    let of_vm: Vec<&Payload> =
        payloads.iter().filter(|p| p.domain == flow.domain && p.host == flow.host && holds(p, flow)).collect();
    let during: Vec<&Payload> = of_vm.iter().copied().filter(|p| ran(p, flow, Duration::ZERO)).collect();
    let near: Vec<&Payload> = of_vm.into_iter().filter(|p| ran(p, flow, tolerance)).collect();
    match (during.as_slice(), near.as_slice()) {
        ([one], _) | ([], [one]) => rejoined(one, flow, tolerance),
        ([], []) => stored.clone(),
        (many, _) if many.len() > 1 => ambiguous(many, stored, tolerance),
        (_, many) => ambiguous(many, stored, tolerance),
    }
}

fn holds(payload: &Payload, flow: &Flow) -> bool {
    payload.claim.leases.iter().any(|lease| flow.marked_by(lease))
}

/// Whether the payload ran when the flow began. Its record's arrival and the start that the guest claims both count: an
/// agent that works without hostd for a while announces its leases late.
fn ran(payload: &Payload, flow: &Flow, tolerance: Duration) -> bool {
    let start = payload.received.min(payload.claimed) - tolerance;
    let end = payload.end.map(|end| end.received + tolerance);
    TimeRange { from: flow.first, to: flow.first }.touches(start, end)
}

fn lease_of(payload: &Payload) -> String {
    let leases: Vec<String> = payload.claim.leases.iter().map(ToString::to_string).collect();
    leases.join(", ")
}

fn rejoined(payload: &Payload, flow: &Flow, tolerance: Duration) -> Attribution {
    let reason = format!(
        "joined when asked: lease {} announced {} (flow began {}, clock tolerance {} s); recorded as instance: {}",
        lease_of(payload),
        late(payload.received, flow.first),
        flow.first,
        tolerance.as_secs_f32(),
        flow.attribution.reason,
    );
    Attribution { quality: Quality::Lease, payload: Some(payload.claim.uid), reason }
}

fn late(received: Timestamp, first: Timestamp) -> String {
    let after = received.since(first);
    if after.is_zero() {
        format!("at {received}")
    } else {
        format!("late, at {received}, by the guest's clock in time")
    }
}

fn ambiguous(payloads: &[&Payload], stored: &Attribution, tolerance: Duration) -> Attribution {
    let uids: Vec<String> = payloads.iter().map(|p| p.claim.uid.to_string()).collect();
    let reason = format!(
        "{} payloads held the lease within the clock tolerance of {} s, none is chosen: {}; recorded as instance: {}",
        payloads.len(),
        tolerance.as_secs_f32(),
        uids.join(", "),
        stored.reason,
    );
    Attribution { quality: Quality::Instance, payload: None, reason }
}

/// The payload record that an attribution names.
pub(crate) fn find<'a>(payloads: &'a [Payload], flow: &Flow, uid: PayloadUid) -> Option<&'a Payload> {
    payloads.iter().find(|p| p.claim.uid == uid && p.domain == flow.domain && p.host == flow.host)
}
