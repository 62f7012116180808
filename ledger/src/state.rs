//! The facts that still hold: what a new generation of the log begins with, and what a restarted hostd needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use vestigo_model::{
    BootId, DomainUuid, Fact, FactRecord, Flow, Instance, LinkPosition, Payload, PayloadUid, Timestamp,
};

use crate::entry::{CarriedLink, Entry};

/// How long a fact is carried on after its end: flows of it may still be written (idle and active timeout, FIN wait).
pub(crate) const KEPT_AFTER_END: Duration = Duration::from_secs(3600);
/// How long the chain position of a VM that is gone is carried on: a saved VM comes back with the same boot.
const LINK_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// The last record under each key.
#[derive(Debug, Default)]
pub(crate) struct State {
    instances: BTreeMap<(DomainUuid, Timestamp), FactRecord>,
    payloads: BTreeMap<(DomainUuid, PayloadUid), FactRecord>,
    links: BTreeMap<(DomainUuid, BootId), CarriedLink>,
    pub(crate) last_recorded: Option<Timestamp>,
}

impl State {
    /// Takes an entry of the log.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Header(header) => self.last_recorded = self.last_recorded.max(header.last_recorded),
            Entry::Carried(record) | Entry::Fact(record) => self.apply_fact(record),
            Entry::Link(link) => self.apply_link(link.clone()),
            Entry::Flow(flow) => self.apply_flow(flow),
        }
    }

    /// Takes a flow: it is only a sign of life here.
    pub(crate) fn apply_flow(&mut self, flow: &Flow) {
        self.last_recorded = self.last_recorded.max(Some(flow.last));
    }

    /// Takes a fact.
    pub(crate) fn apply_fact(&mut self, record: &FactRecord) {
        self.last_recorded = self.last_recorded.max(Some(record.recorded));
        if let Some(link) = &record.link {
            self.apply_link(CarriedLink { recorded: record.recorded, link: link.clone() });
        }
        match &record.fact {
            Fact::Instance(instance) => {
                self.instances.insert((instance.domain, instance.start), record.clone());
            }
            Fact::Payload(payload) => {
                self.payloads.insert((payload.domain, payload.claim.uid), record.clone());
            }
            Fact::Coverage(_) | Fact::Event(_) => {}
        }
    }

    /// The furthest position counts, not the last written: a carried fact brings an old one.
    fn apply_link(&mut self, link: CarriedLink) {
        let key = (link.link.domain, link.link.boot);
        if self.links.get(&key).is_none_or(|known| known.link.seq <= link.link.seq) {
            self.links.insert(key, link);
        }
    }

    /// Forgets what no later record can need.
    pub(crate) fn prune(&mut self, now: Timestamp) {
        let fresh = |end: Timestamp| now.since(end) <= KEPT_AFTER_END;
        self.instances.retain(|_, record| instance_end(record).is_none_or(fresh));
        let domains: BTreeSet<DomainUuid> = self.instances.keys().map(|(domain, _)| *domain).collect();
        self.payloads.retain(|(domain, _), record| match payload_end(record) {
            Some(end) => fresh(end),
            None => domains.contains(domain) || fresh(record.recorded),
        });
        self.links.retain(|(domain, _), link| domains.contains(domain) || now.since(link.recorded) <= LINK_KEPT);
    }

    /// Everything a new generation begins with.
    pub(crate) fn facts(&self) -> impl Iterator<Item = &FactRecord> {
        self.instances.values().chain(self.payloads.values())
    }

    /// The chain positions, one per boot of a guest.
    pub(crate) fn links(&self) -> impl Iterator<Item = &CarriedLink> {
        self.links.values()
    }

    /// Instances that have not ended.
    pub(crate) fn open_instances(&self) -> Vec<Instance> {
        let instances = self.instances.values().filter_map(|record| match &record.fact {
            Fact::Instance(instance) if instance.end.is_none() => Some(instance.clone()),
            _ => None,
        });
        instances.collect()
    }

    /// Payloads that have not ended or ended within the hour before the last record.
    pub(crate) fn live_payloads(&self) -> Vec<Payload> {
        let last = self.last_recorded.unwrap_or(Timestamp::from_nanos(0));
        let payloads = self.payloads.values().filter_map(|record| match &record.fact {
            Fact::Payload(payload) => Some(payload),
            _ => None,
        });
        payloads.filter(|p| p.end.is_none_or(|end| last.since(end.received) <= KEPT_AFTER_END)).cloned().collect()
    }

    /// The chain positions alone.
    pub(crate) fn link_positions(&self) -> Vec<LinkPosition> {
        self.links.values().map(|link| link.link.clone()).collect()
    }
}

fn instance_end(record: &FactRecord) -> Option<Timestamp> {
    match &record.fact {
        Fact::Instance(instance) => instance.end.map(|end| end.time.max(record.recorded)),
        _ => None,
    }
}

fn payload_end(record: &FactRecord) -> Option<Timestamp> {
    match &record.fact {
        Fact::Payload(payload) => payload.end.map(|end| end.received),
        _ => None,
    }
}
