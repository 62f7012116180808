//! Which payload a flow belongs to: arithmetic over the leases that a VM's agent has announced. Pure.
//!
//! A flow at the tap carries the VM's address and port; a lease says which ports (or which address) were whose, and when.
//! Nothing is guessed: where no lease or more than one fits, only the VM is certain, and the reason says why.

mod held;
mod ports;
mod weight;

use std::{collections::HashMap, time::Duration};

use vestigo_model::{
    Attribution, BEGAN_BEFORE, DomainUuid, Flow, Holder, Initiator, LEASE_REST, Lease, Payload, PayloadClaim,
    PayloadUid, PortBlock, Quality, Timestamp,
};

use crate::{decode::proto, unleased};

use held::{Found, Held};

/// Reason of a flow that the VM began from no lease, though its agent has leases for everything.
pub const OUTSIDE: &str = "outside-every-lease";
/// Most payloads that may be live in one VM at once; more are refused. Below the number that is remembered, so that one that has ended
/// can always go.
pub const MAX_LIVE: usize = 1024;

/// A new announcement comes this much before another lease has rested, at most: agents and hostd do not count from the same
/// moment.
const REST_TOLERANCE: Duration = Duration::from_secs(5);

/// What hostd knows of a VM's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// Never heard.
    Absent,
    /// Introduced itself, then fell silent.
    Silent,
    /// Speaks.
    Present,
}

impl AgentState {
    /// The word used in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Silent => "silent",
            Self::Present => "present",
        }
    }
}

/// The leases of every VM on this host.
#[derive(Debug, Default)]
pub struct LeaseBook {
    held: HashMap<DomainUuid, Held>,
    /// What the VM's own parts announced since its kernel started, by libvirt's word. No guest can unsay it.
    own: HashMap<(DomainUuid, Holder), OwnPart>,
}

/// A part of the VM's own traffic, in one life of its kernel.
#[derive(Debug)]
struct OwnPart {
    /// When it was first announced.
    since: Timestamp,
    /// The ports announced last. Addresses come and go by themselves.
    ports: Vec<PortBlock>,
}

impl LeaseBook {
    /// An empty book.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters a payload, or its end: the snapshot replaces the one before. How many of the VM's others were forgotten for it.
    pub fn enter(&mut self, payload: Payload) -> usize {
        if !payload.claim.holder.is_payload() && payload.end.is_none() {
            let new = || OwnPart { since: payload.received, ports: Vec::new() };
            let part = self.own.entry((payload.domain, payload.claim.holder)).or_insert_with(new);
            part.ports = ports_of(&payload);
        }
        self.held.entry(payload.domain).or_default().enter(payload)
    }

    /// A payload by its uid.
    #[must_use]
    pub fn payload(&self, domain: DomainUuid, uid: PayloadUid) -> Option<&Payload> {
        self.held.get(&domain)?.get(uid)
    }

    /// Every payload remembered for the VM.
    pub fn of_domain(&self, domain: DomainUuid) -> impl Iterator<Item = &Payload> {
        self.held.get(&domain).into_iter().flat_map(Held::iter)
    }

    /// Everything of the VM that has not ended, its own parts among it.
    pub fn live_of(&self, domain: DomainUuid) -> impl Iterator<Item = &Payload> {
        self.held.get(&domain).into_iter().flat_map(Held::iter_live)
    }

    /// Payloads of the VM that have not ended. Its own parts are none.
    #[must_use]
    pub fn live(&self, domain: DomainUuid) -> usize {
        self.held.get(&domain).map_or(0, Held::live)
    }

    /// Bytes that the VM's payloads take here, about.
    #[must_use]
    pub fn bytes(&self, domain: DomainUuid) -> usize {
        self.held.get(&domain).map_or(0, Held::bytes)
    }

    /// Why this payload cannot live in the VM beside those that do: there are too many, or too much is claimed of them.
    #[must_use]
    pub fn full(&self, domain: DomainUuid, claim: &PayloadClaim) -> Option<String> {
        self.held.get(&domain)?.full(claim)
    }

    /// The claim that stands for this part of the VM's own traffic. `None` for payloads, of which there are many.
    #[must_use]
    pub fn live_own(&self, domain: DomainUuid, holder: Holder) -> Option<&Payload> {
        self.held.get(&domain)?.live_own(holder)
    }

    /// Since when every part of the VM that has leases of its own has announced them, whatever it announced or ended after that;
    /// `None` while none has.
    #[must_use]
    pub fn own_since(&self, domain: DomainUuid) -> Option<Timestamp> {
        [Holder::Pilot, Holder::System].iter().filter_map(|own| Some(self.own.get(&(domain, *own))?.since)).max()
    }

    /// Whether this is one of the VM's own parts and has other ports than it announced before, in one life of the VM's kernel.
    #[must_use]
    pub fn moves_own_ports(&self, payload: &Payload) -> bool {
        let part = self.own.get(&(payload.domain, payload.claim.holder));
        part.is_some_and(|part| part.ports != ports_of(payload))
    }

    /// The VM's kernel is gone, by libvirt's word: what its own parts announced was of that life.
    pub fn forget_own(&mut self, domain: DomainUuid) {
        self.own.retain(|(of, _), _| *of != domain);
    }

    /// Whether another payload of the VM holds a lease that overlaps one of this one's, or rests it still. The VM's own parts
    /// share its address.
    #[must_use]
    pub fn contested(&self, payload: &Payload) -> Option<PayloadUid> {
        self.held.get(&payload.domain)?.contested(payload)
    }

    /// Forgets payloads whose leases have rested by `now`, as no new flow can be theirs.
    pub fn prune(&mut self, now: Timestamp) {
        self.held.values_mut().for_each(|held| held.forget_ended_before(now - LEASE_REST - LEASE_REST));
        self.held.retain(|_, held| !held.is_empty());
    }

    /// Attributes a flow by what is known now. `began` is the first packet of the whole flow, of which this may be a later part.
    #[must_use]
    pub fn attribute(&self, flow: &Flow, began: Timestamp, agent: AgentState) -> Attribution {
        let held = self.held.get(&flow.domain);
        match held.map_or(Found::Nothing, |held| held.find(&flow.trace(), flow.first, began)) {
            Found::One(payload) => {
                Attribution { quality: Quality::Lease, payload: Some(payload), reason: String::new() }
            }
            Found::BeganBefore => only_the_vm(BEGAN_BEFORE),
            Found::Several => only_the_vm("contested-lease"),
            Found::Excused => only_the_vm("no-lease-then"),
            Found::Part => only_the_vm("folded-over-several-leases"),
            Found::Nothing => only_the_vm(match agent {
                AgentState::Absent => "agent-absent",
                AgentState::Silent => "agent-silent",
                AgentState::Present => self.why_unmarked(flow, began),
            }),
        }
    }

    /// Why a flow that no lease marks is none that anybody should worry about, or that it is.
    fn why_unmarked(&self, flow: &Flow, began: Timestamp) -> &'static str {
        if let Some(reason) = unleased::harmless(flow) {
            reason
        } else if self.own_since(flow.domain).is_some_and(|since| began < since) {
            "before-the-agent"
        } else {
            OUTSIDE
        }
    }

    /// Whether the flow contradicts what the VM's agent says: that nothing leaves the VM but from a lease. `watched` is
    /// since when the VM's flows are known: what a conversation met in its middle looks like says nothing.
    #[must_use]
    pub fn contradicts(&self, flow: &Flow, began: Timestamp, watched: Timestamp) -> bool {
        let begun_by_vm = match (flow.initiator, flow.proto) {
            (Initiator::Seen, _) => true,
            // Nor is a TCP conversation without ports one that was met in its middle: nobody was to read them.
            (Initiator::Inferred, proto) => (proto != proto::TCP || flow.orig_port == 0) && began > watched,
            (Initiator::Unknown, _) => false,
        };
        flow.attribution.reason == OUTSIDE && begun_by_vm && self.own_since(flow.domain).is_some()
    }
}

fn ports_of(payload: &Payload) -> Vec<PortBlock> {
    let blocks = payload.claim.leases.iter().filter_map(|lease| match lease {
        Lease::Ports(block) => Some(*block),
        Lease::Address(_) => None,
    });
    let mut blocks: Vec<PortBlock> = blocks.collect();
    blocks.sort_unstable();
    blocks
}

fn only_the_vm(reason: &str) -> Attribution {
    Attribution { quality: Quality::Instance, payload: None, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod scan_tests;
