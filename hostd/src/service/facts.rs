//! How happenings are written down.

use std::net::SocketAddr;

use vestigo_model::{
    BanApplied, Connection, DomainUuid, Event, EventKind, Fact, Flow, HostId, Timestamp,
    link::{Claim, PayloadRefused},
};

use crate::pin::Outcome;

/// An event.
pub(super) fn event(
    host: &HostId,
    domain: Option<DomainUuid>,
    time: Timestamp,
    what: EventKind,
    detail: impl IntoIterator<Item = (&'static str, String)>,
) -> Fact {
    let detail = detail.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Fact::Event(Event { host: host.clone(), domain, time, what, detail })
}

/// A guest's statement that says nothing usable: kept, so that its place in the chain is.
pub(super) fn link_fault(host: &HostId, domain: DomainUuid, time: Timestamp, fault: String) -> Fact {
    event(host, Some(domain), time, EventKind::LinkFault, [("fault", fault)])
}

/// Longest path in an event, in bytes.
const MAX_PATH: usize = 256;

type Detail = Vec<(&'static str, String)>;

/// A statement that is no payload.
pub(super) fn of_statement(host: &HostId, domain: DomainUuid, time: Timestamp, claim: Claim) -> Fact {
    let (what, detail) = match claim {
        Claim::PayloadRefused(refused) => (EventKind::PayloadRefused, of_refusal(refused)),
        Claim::BanApplied(applied) => (EventKind::BanApplied, of_ban(applied)),
        Claim::Alarm { what } => (EventKind::AgentAlarm, vec![("what", what.to_string())]),
        Claim::Connection(seen) => (EventKind::Connection, of_connection(seen)),
        Claim::PayloadStart(_) | Claim::PayloadEnd { .. } | Claim::Unknown => {
            return link_fault(host, domain, time, "a statement of a newer agent".into());
        }
    };
    event(host, Some(domain), time, what, detail)
}

fn of_refusal(refused: PayloadRefused) -> Detail {
    let caller = refused.caller;
    vec![
        ("run", refused.uid.to_string()),
        ("pilot", refused.pilot.into()),
        ("payload", refused.payload.into()),
        ("user-issuer", refused.user.issuer.into()),
        ("user-subject", refused.user.subject.into()),
        ("vo", refused.vo.into()),
        ("caller", format!("uid {} gid {} pid {}", caller.uid, caller.gid, caller.pid)),
        ("code", refused.code.to_string()),
        ("reason", refused.reason.into()),
    ]
}

fn of_ban(applied: BanApplied) -> Detail {
    vec![
        ("id", applied.id.into()),
        ("payloads", applied.payloads.to_string()),
        ("processes", applied.processes.to_string()),
        ("left", applied.left.to_string()),
        ("guest-received", applied.received.to_string()),
        ("guest-frozen", applied.frozen.to_string()),
        ("guest-dead", applied.dead.to_string()),
    ]
}

fn of_connection(seen: Connection) -> Detail {
    let ((pid, parent, session), (uid, euid), (gid, egid)) = (seen.pid, seen.uid, seen.gid);
    vec![
        ("run", seen.payload.to_string()),
        ("proto", seen.proto.to_string()),
        ("local", seen.local.to_string()),
        ("peer", seen.peer.to_string()),
        ("process", format!("pid {pid} parent {parent} session {session}")),
        ("user", format!("uid {uid} effective {euid}")),
        ("group", format!("gid {gid} effective {egid}")),
        ("tty", seen.tty.to_string()),
        ("executable", cut(&seen.executable, MAX_PATH).to_owned()),
    ]
}

/// At most so many bytes, at a character's border.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// A flow in words.
pub(super) fn tuple(flow: &Flow) -> String {
    let end = |ip, port| SocketAddr::new(ip, port);
    let (from, to) = (end(flow.orig_ip, flow.orig_port), end(flow.resp_ip, flow.resp_port));
    format!("protocol {} {from} to {to} at {}", flow.proto, flow.first)
}

/// News of a disk.
pub(super) fn of_disk(host: &HostId, outcome: Outcome, now: Timestamp) -> Fact {
    let id = |item: vestigo_model::ItemId| ("item", item.to_string());
    let (domain, time, what, detail): (_, _, _, Detail) = match outcome {
        Outcome::HandedOver { item, domain, disks, reason } => {
            let detail = vec![id(item), ("disks", disks.join(",")), ("reason", reason)];
            (Some(domain), now, EventKind::DiskHandedOver, detail)
        }
        Outcome::Captured { item, domain, time, vault, manifest_sha256 } => {
            let detail = vec![id(item), ("vault", vault), ("manifest-sha256", manifest_sha256.to_string())];
            (domain, time, EventKind::DiskCaptured, detail)
        }
        Outcome::Skipped { item, domain, time, policy } => {
            (domain, time, EventKind::DiskSkipped, vec![id(item), ("policy", policy)])
        }
        Outcome::Missed { item, domain, target, reason } => {
            let disk = target.map(|target| ("disk", target));
            let detail = item.map(id).into_iter().chain(disk).chain([("reason", reason)]).collect();
            (domain, now, EventKind::DiskMissed, detail)
        }
        Outcome::Released { domain, disks, reason } => {
            (Some(domain), now, EventKind::DiskReleased, vec![("disks", disks.join(",")), ("reason", reason)])
        }
    };
    event(host, domain, time, what, detail)
}
