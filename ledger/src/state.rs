//! The facts that still hold: what a new generation of the log begins with, and what a restarted hostd needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use vestigo_model::{BootId, DomainUuid, Fact, FactRecord, Instance, LinkPosition, Payload, PayloadUid, Timestamp};

use crate::{
    claims::{Later, compare},
    entry::{CarriedLink, Entry},
    tasks::{TaskRuns, TaskUse},
};

/// How long a fact is carried on after its end: flows of it may still be written (idle and active timeout, FIN wait).
pub(crate) const KEPT_AFTER_END: Duration = Duration::from_secs(3600);
/// How long the chain position of a VM that is gone is carried on: a saved VM comes back with the same boot.
const LINK_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// Most ended payloads of one VM that are carried on, the newest: a guest decides how many it starts and ends within the
/// hour, not how much every generation and segment repeats of them. The others are in the segments that they ended in.
pub(crate) const ENDED_PAYLOADS: usize = 1024;
/// Most boots of one VM whose chain position is carried on, the newest: a guest names its boots as it likes.
pub(crate) const BOOTS: usize = 16;

/// The record that holds under each key: the last of a VM, the first of a payload with its end.
#[derive(Debug, Default)]
pub(crate) struct State {
    instances: BTreeMap<(DomainUuid, Timestamp), FactRecord>,
    payloads: BTreeMap<DomainUuid, Payloads>,
    links: BTreeMap<DomainUuid, BTreeMap<BootId, CarriedLink>>,
    tasks: TaskRuns,
    pub(crate) last_recorded: Option<Timestamp>,
}

/// Payloads of one VM.
#[derive(Debug, Default)]
struct Payloads {
    records: BTreeMap<PayloadUid, FactRecord>,
    /// Those of them that have ended, by their end.
    ended: BTreeSet<(Timestamp, PayloadUid)>,
}

impl Payloads {
    fn take(&mut self, payload: &Payload, record: &FactRecord) {
        let uid = payload.claim.uid;
        let known = self.records.get(&uid).and_then(payload_of);
        if known.is_some_and(|known| compare(known, payload) != Later::End) {
            return;
        }
        self.records.insert(uid, record.clone());
        if let Some(end) = payload.end {
            self.ended.insert((end.received, uid));
        }
        if self.ended.len() > ENDED_PAYLOADS
            && let Some((_, oldest)) = self.ended.pop_first()
        {
            self.records.remove(&oldest);
        }
    }

    fn retain(&mut self, keep: impl Fn(&FactRecord) -> bool) {
        self.records.retain(|_, record| keep(record));
        self.ended.retain(|(_, uid)| self.records.contains_key(uid));
    }
}

impl State {
    /// Takes an entry of the log.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Header(header) => self.last_recorded = self.last_recorded.max(header.last_recorded),
            Entry::Carried(record) | Entry::Fact(record) => self.apply_fact(record),
            Entry::Link(link) => self.apply_link(link.clone()),
            Entry::Task(used) => _ = self.tasks.insert((**used).clone()),
            Entry::Flow(flow) => self.apply_last(flow.last),
            Entry::Flows(batch) => batch.rows.iter().for_each(|row| self.apply_last(Timestamp::from_nanos(row.last()))),
        }
    }

    /// Takes the time of a flow's last packet: a flow is only a sign of life here.
    pub(crate) fn apply_last(&mut self, last: Timestamp) {
        self.last_recorded = self.last_recorded.max(Some(last));
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
                self.payloads.entry(payload.domain).or_default().take(payload, record);
                self.tasks.apply(payload);
            }
            Fact::Coverage(_) | Fact::Event(_) => {}
        }
    }

    /// The furthest position counts, not the last written: a carried fact brings an old one.
    fn apply_link(&mut self, link: CarriedLink) {
        let boots = self.links.entry(link.link.domain).or_default();
        if boots.get(&link.link.boot).is_none_or(|known| known.link.seq <= link.link.seq) {
            boots.insert(link.link.boot, link);
        }
        if boots.len() > BOOTS
            && let Some(oldest) = boots.iter().min_by_key(|(_, link)| link.recorded).map(|(boot, _)| *boot)
        {
            boots.remove(&oldest);
        }
    }

    /// Forgets what no later record can need.
    pub(crate) fn prune(&mut self, now: Timestamp) {
        let fresh = |end: Timestamp| now.since(end) <= KEPT_AFTER_END;
        self.instances.retain(|_, record| instance_end(record).is_none_or(fresh));
        let domains: BTreeSet<DomainUuid> = self.instances.keys().map(|(domain, _)| *domain).collect();
        self.tasks.prune_beside(&domains, now);
        for (domain, payloads) in &mut self.payloads {
            payloads.retain(|record| match payload_end(record) {
                Some(end) => fresh(end),
                None => domains.contains(domain) || fresh(record.recorded),
            });
        }
        self.payloads.retain(|_, payloads| !payloads.records.is_empty());
        for (domain, boots) in &mut self.links {
            boots.retain(|_, link| domains.contains(domain) || now.since(link.recorded) <= LINK_KEPT);
        }
        self.links.retain(|_, boots| !boots.is_empty());
    }

    /// Everything a new generation begins with.
    pub(crate) fn facts(&self) -> impl Iterator<Item = &FactRecord> {
        self.instances.values().chain(self.payload_records())
    }

    fn payload_records(&self) -> impl Iterator<Item = &FactRecord> {
        self.payloads.values().flat_map(|payloads| payloads.records.values())
    }

    /// The chain positions, one per boot of a guest.
    pub(crate) fn links(&self) -> impl Iterator<Item = &CarriedLink> {
        self.links.values().flat_map(BTreeMap::values)
    }

    /// The runs of signed tasks that still count.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &TaskUse> {
        self.tasks.iter()
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
        let payloads = self.payload_records().filter_map(payload_of);
        payloads.filter(|p| p.end.is_none_or(|end| last.since(end.received) <= KEPT_AFTER_END)).cloned().collect()
    }

    /// The chain positions alone.
    pub(crate) fn link_positions(&self) -> Vec<LinkPosition> {
        self.links().map(|link| link.link.clone()).collect()
    }
}

fn instance_end(record: &FactRecord) -> Option<Timestamp> {
    match &record.fact {
        Fact::Instance(instance) => instance.end.map(|end| end.time.max(record.recorded)),
        _ => None,
    }
}

fn payload_of(record: &FactRecord) -> Option<&Payload> {
    match &record.fact {
        Fact::Payload(payload) => Some(payload),
        _ => None,
    }
}

fn payload_end(record: &FactRecord) -> Option<Timestamp> {
    payload_of(record).and_then(|payload| payload.end).map(|end| end.received)
}
