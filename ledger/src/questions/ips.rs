//! *Which addresses did this VO (or this pilot of it) use?*

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use vestigo_model::{
    DomainUuid, Flow, HostId, Instance, InstanceId, Lease, Payload, PilotId, Quality, TimeRange, Timestamp, Vo,
};

use super::{
    TOLERANCE, View,
    coverage::{self, WindowCoverage},
    lease,
    nat::{Hidden, Index},
};

/// The question. The VO is the tenant's, a host fact; a VM that merely claims it is not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsQuestion {
    /// The VO.
    pub vo: Vo,
    /// When.
    pub range: TimeRange,
    /// Only this pilot: its VMs, and the flows that its payloads certainly made.
    pub pilot: Option<PilotId>,
}

/// What kind of address it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressKind {
    /// The VM's own.
    Own,
    /// What the world saw behind the hypervisor's NAT.
    PostNat,
    /// One that the VM used inside a tunnel: it means something there, and nothing outside.
    InTunnel,
}

/// One address of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsRow {
    /// The address.
    pub ip: IpAddr,
    /// The VM's own, or the translated one.
    pub kind: AddressKind,
    /// The cloud's id of the VM.
    pub instance: InstanceId,
    /// Its domain.
    pub domain: DomainUuid,
    /// The hypervisor.
    pub host: HostId,
    /// The cloud (or, for a payload's own IPv6 address, its lease) gave it this address.
    pub expected: bool,
    /// Flows with it were seen, or the host translated to it.
    pub used: bool,
    /// `false`: a translation leads here, but it fits another VM as well, or no flow of the VM shows it.
    #[serde(default = "certain")]
    pub certain: bool,
    /// First packet in the range.
    pub first: Option<Timestamp>,
    /// Last packet in the range.
    pub last: Option<Timestamp>,
    /// Flow records.
    pub flows: u64,
    /// Conversations that were folded into some of these records, at most.
    #[serde(default)]
    pub folded: u64,
    /// Bytes both ways. Those in a tunnel are counted again with the tunnel's own addresses.
    pub bytes: u64,
}

const fn certain() -> bool {
    true
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsAnswer {
    /// By address.
    pub rows: Vec<IpsRow>,
    /// With a pilot: flow records of its VMs that only the VM is certain of (or a claim made afterwards); they may be the pilot's and are not in the rows.
    pub unattributed_flows: u64,
    /// What could be seen.
    pub coverage: WindowCoverage,
}

type Key = (IpAddr, AddressKind, HostId, DomainUuid);

/// Answers the question from what the ledger gave.
#[must_use]
pub fn answer(question: &IpsQuestion, view: &View) -> IpsAnswer {
    let mut collector = Collector::new(question, view);
    view.flows.iter().for_each(|flow| collector.take(flow));
    collector.finish()
}

/// Takes flows one by one: a VO has as many as it likes.
pub(super) struct Collector<'a> {
    question: &'a IpsQuestion,
    view: &'a View,
    instances: Vec<&'a Instance>,
    /// By VM.
    of_pilot: HashMap<(&'a HostId, DomainUuid), Vec<&'a Payload>>,
    hidden: Index<'a>,
    /// Translations that a flow showed.
    shown: BTreeSet<usize>,
    rows: BTreeMap<Key, IpsRow>,
    unattributed_flows: u64,
}

impl<'a> Collector<'a> {
    pub(super) fn new(question: &'a IpsQuestion, view: &'a View) -> Self {
        let mut of_pilot: HashMap<_, Vec<&Payload>> = HashMap::new();
        for payload in payloads(question, view) {
            of_pilot.entry((&payload.host, payload.domain)).or_default().push(payload);
        }
        let instances: Vec<&Instance> = view
            .facts
            .instances
            .iter()
            .filter(|i| i.vo.as_ref() == Some(&question.vo))
            .filter(|i| question.range.touches(i.start, i.end.map(|end| end.time)))
            .filter(|i| question.pilot.is_none() || of_pilot.contains_key(&(&i.host, i.domain)))
            .collect();
        let mut rows = BTreeMap::new();
        for instance in &instances {
            let payloads = of_pilot.get(&(&instance.host, instance.domain));
            expect(instance, payloads.map(Vec::as_slice).unwrap_or_default(), &mut rows);
        }
        let hidden = Index::new(&view.translations);
        Self { question, view, instances, of_pilot, hidden, shown: BTreeSet::new(), rows, unattributed_flows: 0 }
    }

    pub(super) fn take(&mut self, flow: &Flow) {
        self.shown.extend(self.hidden.fitting(flow).map(|(number, _)| number));
        match self.belongs(flow) {
            Belongs::Yes => {
                count(flow, &mut self.rows);
                told(flow, &self.hidden, &mut self.rows);
            }
            Belongs::Perhaps => self.unattributed_flows += 1,
            Belongs::No => {}
        }
    }

    pub(super) fn finish(mut self) -> IpsAnswer {
        if self.question.pilot.is_none() {
            behind(&self.instances, &self.shown, &self.hidden, &mut self.rows);
        }
        let (rows, view) = (self.rows, self.view);
        let shown: BTreeSet<_> = rows.values().map(|row| (row.host.clone(), row.domain)).collect();
        let coverage = coverage::summarise(self.question.range, &view.facts, view.extent, &shown, &view.reach);
        IpsAnswer { rows: rows.into_values().collect(), unattributed_flows: self.unattributed_flows, coverage }
    }

    fn belongs(&self, flow: &Flow) -> Belongs {
        // An address is a VM's own when it sends from it; what is sent to a group or to a neighbour's guess is not, nor is "none
        // yet" (`::`, `0.0.0.0`).
        if flow.sent_by_vm() == 0 || flow.local().0.is_unspecified() {
            return Belongs::No;
        }
        if self.question.pilot.is_none() {
            return Belongs::Yes;
        }
        let Some(of_vm) = self.of_pilot.get(&(&flow.host, flow.domain)) else { return Belongs::No };
        let attribution = lease::standing(flow, &self.view.facts, TOLERANCE);
        let is_one = |uid| of_vm.iter().any(|payload| payload.claim.uid == uid);
        match attribution.payload {
            Some(uid) if attribution.quality == Quality::ClaimedLate && is_one(uid) => Belongs::Perhaps,
            Some(uid) if attribution.quality != Quality::ClaimedLate && is_one(uid) => Belongs::Yes,
            None => Belongs::Perhaps,
            Some(_) => Belongs::No,
        }
    }
}

/// The pilot's payloads in the range; without a pilot all payloads of the VO's VMs, for their IPv6 addresses.
fn payloads<'a>(question: &IpsQuestion, view: &'a View) -> Vec<&'a Payload> {
    let is = |p: &Payload, pilot: &PilotId| p.claim.pilot == *pilot && p.claim.holder.is_payload();
    let pilot = |p: &&Payload| question.pilot.as_ref().is_none_or(|pilot| is(p, pilot));
    let then = |p: &&Payload| question.range.touches(p.received.min(p.claimed), p.end.map(|end| end.received));
    view.facts.payloads.iter().filter(pilot).filter(then).collect()
}

enum Belongs {
    Yes,
    Perhaps,
    No,
}

fn expect(instance: &Instance, payloads: &[&Payload], rows: &mut BTreeMap<Key, IpsRow>) {
    let given = instance.taps.iter().flat_map(|tap| tap.expected.iter().copied());
    let leased = payloads.iter().flat_map(|p| &p.claim.leases).filter_map(|lease| match lease {
        Lease::Address(address) => Some(IpAddr::V6(*address)),
        Lease::Ports(_) => None,
    });
    for ip in given.chain(leased) {
        let place = (&instance.id, instance.domain, &instance.host);
        row(rows, ip, AddressKind::Own, place).expected = true;
    }
}

/// The flow's translation where its record does not have it.
fn told(flow: &Flow, hidden: &Index<'_>, rows: &mut BTreeMap<Key, IpsRow>) {
    let public = |hidden: &Hidden<'_>| (hidden.public().ip, hidden.translation.why.as_str() != "several");
    let publics: BTreeMap<IpAddr, bool> = hidden.fitting(flow).map(|(_, hidden)| public(hidden)).collect();
    for (ip, certain) in publics.into_iter().filter(|(ip, _)| flow.post_nat.is_none_or(|nat| nat.ip != *ip)) {
        add(flow, (ip, AddressKind::PostNat), certain, rows);
    }
}

/// Translations of addresses that the VMs were given, where no flow shows them.
fn behind(instances: &[&Instance], seen: &BTreeSet<usize>, hidden: &Index<'_>, rows: &mut BTreeMap<Key, IpsRow>) {
    for (_, hidden) in hidden.iter().filter(|(number, _)| !seen.contains(number)) {
        for instance in instances.iter().filter(|instance| hidden.is_given_to(instance)) {
            let place = (&instance.id, instance.domain, &instance.host);
            let row = row(rows, hidden.public().ip, AddressKind::PostNat, place);
            row.certain &= row.used;
            row.used = true;
            row.last = row.last.max(Some(hidden.translation.until));
            row.first = row.first.or(hidden.translation.not_before);
        }
    }
}

fn count(flow: &Flow, rows: &mut BTreeMap<Key, IpsRow>) {
    let kind = if flow.notes.tunnel.is_some() { AddressKind::InTunnel } else { AddressKind::Own };
    let own = Some((flow.local().0, kind));
    let seen = flow.post_nat.map(|nat| (nat.ip, AddressKind::PostNat));
    for key in own.into_iter().chain(seen) {
        add(flow, key, true, rows);
    }
}

fn add(flow: &Flow, (ip, kind): (IpAddr, AddressKind), certain: bool, rows: &mut BTreeMap<Key, IpsRow>) {
    let row = row(rows, ip, kind, (&flow.instance, flow.domain, &flow.host));
    row.certain = certain || row.certain && row.used;
    row.used = true;
    row.first = Some(row.first.map_or(flow.first, |first| first.min(flow.first)));
    row.last = row.last.max(Some(flow.last));
    row.flows += 1;
    row.folded = row.folded.saturating_add(flow.notes.folded.map_or(0, |folded| folded.flows));
    row.bytes = row.bytes.saturating_add(flow.orig_bytes).saturating_add(flow.resp_bytes);
}

fn row<'a>(
    rows: &'a mut BTreeMap<Key, IpsRow>,
    ip: IpAddr,
    kind: AddressKind,
    (instance, domain, host): (&InstanceId, DomainUuid, &HostId),
) -> &'a mut IpsRow {
    let ip = ip.to_canonical();
    rows.entry((ip, kind, host.clone(), domain)).or_insert_with(|| IpsRow {
        ip,
        kind,
        instance: instance.clone(),
        domain,
        host: host.clone(),
        expected: false,
        used: false,
        certain: true,
        first: None,
        last: None,
        flows: 0,
        folded: 0,
        bytes: 0,
    })
}
