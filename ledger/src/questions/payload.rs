//! *What is the whole story of this run?* Start, isolation, lease, every flow, events, end, and what contradicts it.

use serde::{Deserialize, Serialize};
use vestigo_model::{DomainUuid, EventKind, Flow, HostId, PayloadUid, Quality, TimeRange};

use super::{
    TOLERANCE, View,
    coverage::{self, WindowCoverage},
    lease,
    parts::{FlowSeen, GuestClaims, HostFacts, MatchedOn, Totals, conflict_note, vo_contradiction},
    who::EventSeen,
};

/// Events and conflicting claims shown; their totals count all.
const SHOWN: usize = 100;

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadQuestion {
    /// The run.
    pub uid: PayloadUid,
    /// Most flow records listed per story, the earliest; sums count all.
    pub flows: usize,
}

/// The run in one VM. A uid belongs to a VM: another guest may have used the same one, by chance never, on purpose perhaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The VM in which it was announced; `None` when the ledgers hold no record of the VM.
    pub host_facts: Option<HostFacts>,
    /// The hypervisor.
    pub host: HostId,
    /// The VM's domain.
    pub domain: DomainUuid,
    /// What the guest said: user, program, leases, isolation, start and end.
    pub guest_claims: GuestClaims,
    /// What it said later under the same run id, and different: the first claim holds. At most a hundred.
    pub later_claims: Vec<GuestClaims>,
    /// From the earliest that it can have run to the last that its leases can have marked; to what the ledger speaks of while it runs.
    pub window: TimeRange,
    /// Its flow records by first packet, as many as asked for.
    pub flows: Vec<FlowSeen>,
    /// How many there are.
    pub flows_total: u64,
    /// Sums over all of them but those that are folded or inside tunnels.
    pub totals: Totals,
    /// Records that stand for many conversations, all of the run's leases.
    pub folded: u64,
    /// Records of packets inside tunnels: counted with the tunnel's own flow.
    pub inside_tunnels: u64,
    /// Of the flow records, those that only the guest's own clock gives to the run.
    pub claimed_late: u64,
    /// What happened in its VM meanwhile: contradictions, spoofing, bans, alarms, what its agent saw; at most a hundred.
    pub events: Vec<EventSeen>,
    /// How many there are.
    pub events_total: usize,
    /// Contradictions and cautions.
    pub notes: Vec<String>,
    /// What could be seen of its host.
    pub coverage: WindowCoverage,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadAnswer {
    /// One per VM that used the run id; more than one is remarkable.
    pub stories: Vec<Story>,
}

/// Takes the flows of the run's VM one by one.
pub(super) struct Teller<'a> {
    question: &'a PayloadQuestion,
    view: &'a View,
    window: TimeRange,
    /// By first packet, only the earliest.
    flows: std::collections::BTreeMap<(vestigo_model::Timestamp, u64), FlowSeen>,
    count: u64,
    totals: Totals,
    folded: u64,
    inside_tunnels: u64,
    claimed_late: u64,
}

impl<'a> Teller<'a> {
    pub(super) fn new(question: &'a PayloadQuestion, window: TimeRange, view: &'a View) -> Self {
        Self {
            question,
            view,
            window,
            flows: std::collections::BTreeMap::new(),
            count: 0,
            totals: Totals::default(),
            folded: 0,
            inside_tunnels: 0,
            claimed_late: 0,
        }
    }

    /// Takes a flow of the VM, whosever it is.
    pub(super) fn take(&mut self, flow: &Flow) {
        let attribution = lease::standing(flow, &self.view.facts, TOLERANCE);
        if attribution.payload != Some(self.question.uid) {
            return;
        }
        self.count += 1;
        self.claimed_late += u64::from(attribution.quality == Quality::ClaimedLate);
        match (flow.notes.tunnel, flow.notes.folded) {
            (Some(_), _) => self.inside_tunnels += 1,
            (None, Some(_)) => self.folded += 1,
            (None, None) => self.totals.add(flow),
        }
        let on = if flow.notes.folded.is_some() { MatchedOn::Folded } else { MatchedOn::Address };
        self.flows.insert((flow.first, self.count), FlowSeen::new(flow, on));
        if self.flows.len() > self.question.flows {
            self.flows.pop_last();
        }
    }

    /// The story of the payload in that VM; `None` when the view does not hold it.
    pub(super) fn finish(self, host: &HostId, domain: DomainUuid) -> Option<Story> {
        let facts = &self.view.facts;
        let uid = self.question.uid;
        let is_it = |p: &&vestigo_model::Payload| p.host == *host && p.domain == domain && p.claim.uid == uid;
        let payload = facts.payloads.iter().find(is_it)?;
        let instances = facts.instances.iter().filter(|i| i.host == *host && i.domain == domain);
        let instance = instances.filter(|i| i.start <= payload.received).max_by_key(|i| i.start);
        let conflicting = facts.conflicting_with(host, domain, uid);
        let mut notes: Vec<String> =
            vo_contradiction(instance.and_then(|i| i.vo.as_ref()), &payload.claim).into_iter().collect();
        notes.extend(conflict_note(conflicting));
        if self.claimed_late > 0 {
            notes.push("some flows are given to the run by the guest's own clock alone (claimed-late)".to_owned());
        }
        let routine = [EventKind::NatBinding, EventKind::HostStarted, EventKind::HostStopped];
        let of_vm = |event: &&vestigo_model::Event| event.host == *host && event.domain == Some(domain);
        let events: Vec<_> = facts.events.iter().filter(of_vm).filter(|event| !routine.contains(&event.what)).collect();
        let shown = [(host.clone(), domain)].into();
        let coverage = coverage::summarise(self.window, facts, self.view.extent, &shown, &self.view.reach);
        Some(Story {
            host_facts: instance.map(HostFacts::of_instance),
            host: host.clone(),
            domain,
            guest_claims: GuestClaims::new(payload),
            later_claims: conflicting.iter().take(SHOWN).map(GuestClaims::new).collect(),
            window: self.window,
            flows: self.flows.into_values().collect(),
            flows_total: self.count,
            totals: self.totals,
            folded: self.folded,
            inside_tunnels: self.inside_tunnels,
            claimed_late: self.claimed_late,
            events_total: events.len(),
            events: events.into_iter().take(SHOWN).map(EventSeen::new).collect(),
            notes,
            coverage,
        })
    }
}
