//! How happenings are written down.

use vestigo_model::{DomainUuid, Event, EventKind, Fact, HostId, Timestamp};

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

/// News of a disk.
pub(super) fn of_disk(host: &HostId, outcome: Outcome, now: Timestamp) -> Fact {
    type Detail = Vec<(&'static str, String)>;
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
