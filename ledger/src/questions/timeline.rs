//! *What did this VM, or this user, do, in order?*

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vestigo_model::{
    DomainUuid, EventKind, Flow, HostId, Instance, InstanceId, Label, Payload, PayloadUid, TimeRange, Timestamp,
};

use super::{
    TOLERANCE, View,
    coverage::{self, WindowCoverage},
    lease,
    parts::{GuestClaims, HostFacts, Totals},
    who::EventSeen,
};

/// Most moments of an answer, the earliest.
pub const MOMENTS: usize = 10_000;

/// Whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A VM's, by its cloud id: everything in it.
    Instance(InstanceId),
    /// A user's: his payloads, and of their VMs only when these began and ended.
    User {
        /// The name (or pseudonym).
        subject: Label,
        /// Who vouches for it; without it, every issuer that uses the name.
        issuer: Option<Label>,
    },
}

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineQuestion {
    /// Whose.
    pub subject: Subject,
    /// When.
    pub range: TimeRange,
}

/// What was at a moment. Host facts and guest claims are never in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Happening {
    /// A host fact: the VM began.
    InstanceStarted {
        /// The VM.
        host_facts: Box<HostFacts>,
    },
    /// A host fact: the VM ended (when and why is in it).
    InstanceEnded {
        /// The VM.
        host_facts: Box<HostFacts>,
    },
    /// A guest claim: a run began (host's clock when that arrived).
    PayloadStarted {
        /// What the guest said.
        guest_claims: Box<GuestClaims>,
    },
    /// A guest claim: a run ended (host's clock when that arrived).
    PayloadEnded {
        /// What the guest said.
        guest_claims: Box<GuestClaims>,
    },
    /// A guest claim that contradicts an earlier one under its run id.
    PayloadContradicted {
        /// What the guest said.
        guest_claims: Box<GuestClaims>,
    },
    /// What the host recorded; its particulars may hold words of a guest.
    Event {
        /// The event.
        event: EventSeen,
    },
}

/// A moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Host's clock.
    pub time: Timestamp,
    /// The hypervisor.
    pub host: HostId,
    /// The VM's domain.
    pub domain: DomainUuid,
    /// What was.
    #[serde(flatten)]
    pub happening: Happening,
}

/// What flowed, in sum, of one run or of what no run is known for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSum {
    /// The hypervisor.
    pub host: HostId,
    /// The VM's domain.
    pub domain: DomainUuid,
    /// The run; `None`: only the VM is certain.
    pub payload: Option<PayloadUid>,
    /// First packet in the range.
    pub first: Timestamp,
    /// Last packet in the range.
    pub last: Timestamp,
    /// Sums; without records inside tunnels.
    pub totals: Totals,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineAnswer {
    /// By time, at most [`MOMENTS`].
    pub moments: Vec<Moment>,
    /// How many there are.
    pub moments_total: usize,
    /// By VM and run.
    pub flows: Vec<FlowSum>,
    /// What could be seen.
    pub coverage: WindowCoverage,
}

/// Takes the flows of the VMs one by one.
pub(super) struct Historian<'a> {
    question: &'a TimelineQuestion,
    view: &'a View,
    /// Of a user: his runs.
    runs: BTreeSet<(&'a HostId, DomainUuid, PayloadUid)>,
    sums: BTreeMap<(HostId, DomainUuid, Option<PayloadUid>), FlowSum>,
}

impl<'a> Historian<'a> {
    pub(super) fn new(question: &'a TimelineQuestion, view: &'a View) -> Self {
        let mine = view.facts.payloads.iter().filter(|payload| is_subjects(question, payload));
        let runs = mine.map(|payload| (&payload.host, payload.domain, payload.claim.uid)).collect();
        Self { question, view, runs, sums: BTreeMap::new() }
    }

    /// Takes a flow of one of the VMs, whosever it is.
    pub(super) fn take(&mut self, flow: &Flow) {
        if flow.notes.tunnel.is_some() {
            return;
        }
        let payload = lease::standing(flow, &self.view.facts, TOLERANCE).payload;
        let of_vm = matches!(self.question.subject, Subject::Instance(_));
        if !of_vm && !payload.is_some_and(|uid| self.runs.contains(&(&flow.host, flow.domain, uid))) {
            return;
        }
        let key = (flow.host.clone(), flow.domain, payload);
        let sum = self.sums.entry(key).or_insert_with(|| FlowSum {
            host: flow.host.clone(),
            domain: flow.domain,
            payload,
            first: flow.first,
            last: flow.last,
            totals: Totals::default(),
        });
        sum.first = sum.first.min(flow.first);
        sum.last = sum.last.max(flow.last);
        sum.totals.add(flow);
    }

    pub(super) fn finish(self) -> TimelineAnswer {
        let mut moments = Vec::new();
        let facts = &self.view.facts;
        let vms: Vec<&Instance> = facts.instances.iter().filter(|one| self.is_vm(one)).collect();
        for instance in &vms {
            of_instance(instance, &mut moments);
        }
        for payload in facts.payloads.iter().filter(|payload| self.is_run(payload)) {
            of_payload(payload, &mut moments);
        }
        for payload in facts.conflicting.iter().filter(|payload| self.is_run(payload)) {
            let guest_claims = Box::new(GuestClaims::new(payload));
            moments.push(moment(payload, payload.received, Happening::PayloadContradicted { guest_claims }));
        }
        self.events(&vms, &mut moments);
        let range = self.question.range;
        moments.retain(|moment| range.touches(moment.time, Some(moment.time)));
        moments.sort_by_key(|moment| moment.time);
        let moments_total = moments.len();
        moments.truncate(MOMENTS);
        let shown = vms.iter().map(|one| (one.host.clone(), one.domain)).collect();
        let coverage = coverage::summarise(range, facts, self.view.extent, &shown, &self.view.reach);
        TimelineAnswer { moments, moments_total, flows: self.sums.into_values().collect(), coverage }
    }

    fn is_vm(&self, instance: &Instance) -> bool {
        match &self.question.subject {
            Subject::Instance(id) => instance.id == *id,
            Subject::User { .. } => {
                let life = TimeRange {
                    from: instance.start,
                    to: instance.end.map_or(Timestamp::from_nanos(i64::MAX), |e| e.time),
                };
                let there = |p: &&Payload| p.host == instance.host && p.domain == instance.domain;
                let mut mine = self.view.facts.payloads.iter().filter(there).filter(|p| self.is_run(p));
                mine.any(|payload| life.touches(payload.received, Some(payload.received)))
            }
        }
    }

    /// Whether the payload (or a conflicting claim under its run) is the subject's.
    fn is_run(&self, payload: &Payload) -> bool {
        self.runs.contains(&(&payload.host, payload.domain, payload.claim.uid))
            || is_subjects(self.question, payload) && self.is_of_vm(payload)
    }

    fn is_of_vm(&self, payload: &Payload) -> bool {
        let mut instances = self.view.facts.instances.iter();
        match &self.question.subject {
            Subject::Instance(id) => {
                instances.any(|i| i.id == *id && i.host == payload.host && i.domain == payload.domain)
            }
            Subject::User { .. } => true,
        }
    }

    /// Of a VM all events; of a user none: they are of VMs, not of persons.
    fn events(&self, vms: &[&Instance], moments: &mut Vec<Moment>) {
        if !matches!(self.question.subject, Subject::Instance(_)) {
            return;
        }
        for event in self.view.facts.events.iter().filter(|event| event.what != EventKind::NatBinding) {
            let Some(domain) = event.domain else { continue };
            if vms.iter().any(|vm| vm.host == event.host && vm.domain == domain) {
                let (host, happening) = (event.host.clone(), Happening::Event { event: EventSeen::new(event) });
                moments.push(Moment { time: event.time, host, domain, happening });
            }
        }
    }
}

fn is_subjects(question: &TimelineQuestion, payload: &Payload) -> bool {
    match &question.subject {
        Subject::Instance(_) => true,
        Subject::User { subject, issuer } => {
            payload.claim.holder.is_payload()
                && payload.claim.user.subject == *subject
                && issuer.as_ref().is_none_or(|issuer| payload.claim.user.issuer == *issuer)
        }
    }
}

fn of_instance(instance: &Instance, moments: &mut Vec<Moment>) {
    let at = |time, happening| Moment { time, host: instance.host.clone(), domain: instance.domain, happening };
    let host_facts = Box::new(HostFacts::of_instance(instance));
    if let Some(end) = instance.end {
        moments.push(at(end.time, Happening::InstanceEnded { host_facts: host_facts.clone() }));
    }
    moments.push(at(instance.start, Happening::InstanceStarted { host_facts }));
}

fn of_payload(payload: &Payload, moments: &mut Vec<Moment>) {
    let guest_claims = Box::new(GuestClaims::new(payload));
    if let Some(end) = payload.end {
        let ended = Happening::PayloadEnded { guest_claims: guest_claims.clone() };
        moments.push(moment(payload, end.received, ended));
    }
    moments.push(moment(payload, payload.received, Happening::PayloadStarted { guest_claims }));
}

fn moment(payload: &Payload, time: Timestamp, happening: Happening) -> Moment {
    Moment { time, host: payload.host.clone(), domain: payload.domain, happening }
}
