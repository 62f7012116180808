//! Facts as they stand: of a VM the last record under each key, of a payload the first claim and its end.

use std::collections::BTreeMap;

use vestigo_model::{
    Coverage, DomainUuid, Event, Fact, FactRecord, HostId, Instance, Payload, PayloadUid, TimeRange, Timestamp,
};

use crate::claims::Claims;

/// The facts that touch a range: of a VM the last record under each key, of a payload the first claim and its end.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    /// VMs.
    pub instances: Vec<Instance>,
    /// Payloads.
    pub payloads: Vec<Payload>,
    /// What guests claimed under the key of one of `payloads` (or at this time) although something else had been claimed
    /// under it before: by key, then by arrival. None of it is in `payloads`.
    pub conflicting: Vec<Payload>,
    /// What could be seen.
    pub coverage: Vec<Coverage>,
    /// What happened.
    pub events: Vec<Event>,
    /// Records that this version cannot read.
    pub unreadable: u64,
}

impl Facts {
    /// What the guest claimed under this key after something else had been claimed under it.
    #[must_use]
    pub fn conflicting_with(&self, host: &HostId, domain: DomainUuid, uid: PayloadUid) -> &[Payload] {
        let asked = (host, domain, uid);
        let from = self.conflicting.partition_point(|p| (&p.host, p.domain, p.claim.uid) < asked);
        let to = self.conflicting.partition_point(|p| (&p.host, p.domain, p.claim.uid) <= asked);
        self.conflicting.get(from..to).unwrap_or_default()
    }
}

/// Whether the payload ran in the range, by either clock.
pub(super) fn touches(range: &TimeRange, payload: &Payload) -> bool {
    let end = payload.end.map(|end| end.received.max(end.claimed));
    range.touches(payload.received.min(payload.claimed), end)
}

/// Later records of a VM replace earlier ones of the same key, payloads follow [`Claims`]. Events and coverage have no key: each counts once.
#[derive(Default)]
pub(super) struct Merge {
    pub(super) instances: BTreeMap<(HostId, DomainUuid, Timestamp), Instance>,
    pub(super) payloads: Claims,
    coverage: Vec<Coverage>,
    events: Vec<Event>,
    pub(super) unreadable: u64,
}

impl Merge {
    pub(super) fn take(&mut self, record: FactRecord) {
        match record.fact {
            Fact::Instance(i) => {
                self.instances.insert((i.host.clone(), i.domain, i.start), i);
            }
            Fact::Payload(payload) => self.payloads.take(payload),
            Fact::Coverage(coverage) => self.coverage.push(coverage),
            Fact::Event(event) => self.events.push(event),
        }
    }

    pub(super) fn finish(self, range: TimeRange) -> Facts {
        let of_instance = |i: &Instance| range.touches(i.start, i.end.map(|end| end.time));
        let (payloads, conflicting) = self.payloads.finish(|payload| touches(&range, payload));
        let mut facts = Facts {
            instances: self.instances.into_values().filter(of_instance).collect(),
            payloads,
            conflicting,
            coverage: self.coverage.into_iter().filter(|c| range.touches(c.from, Some(c.to))).collect(),
            events: self.events.into_iter().filter(|e| range.touches(e.time, Some(e.time))).collect(),
            unreadable: self.unreadable,
        };
        facts.coverage.sort_by_key(|c| (c.from, c.to));
        facts.events.sort_by_key(|e| e.time);
        facts
    }
}
