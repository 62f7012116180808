//! Which payload a flow belongs to: arithmetic over the leases that a VM's agent has announced. Pure.
//!
//! A flow at the tap carries the VM's address and port; a lease says which ports (or which address) were whose, and when.
//! Nothing is guessed: where no lease or more than one fits, only the VM is certain, and the reason says why.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use vestigo_model::{
    Attribution, BEGAN_BEFORE, DomainUuid, Exit, Flow, Holder, Initiator, LEASE_REST, Lease, Payload, PayloadUid,
    PortBlock, Quality, Timestamp,
};

use crate::{decode::proto, unleased};

/// Reason of a flow that the VM began from no lease, though its agent has leases for everything.
pub const OUTSIDE: &str = "outside-every-lease";
/// Most payloads remembered for one VM, live and rested; the oldest ended ones go first.
const MAX_PAYLOADS: usize = 2048;
/// Most payloads that may be live in one VM at once; more are refused. Below [`MAX_PAYLOADS`], so that one that has ended can always
/// go.
pub const MAX_LIVE: usize = 1024;

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

/// The leases of every VM on this host.
#[derive(Debug, Default)]
pub struct LeaseBook {
    payloads: HashMap<DomainUuid, VecDeque<Payload>>,
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

/// A new announcement comes this much before another lease has rested, at most: agents and hostd do not count from the same
/// moment.
const REST_TOLERANCE: Duration = Duration::from_secs(5);

impl LeaseBook {
    /// An empty book.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters a payload, or its end: the snapshot replaces the one before.
    pub fn enter(&mut self, payload: Payload) {
        if !payload.claim.holder.is_payload() && payload.end.is_none() {
            let new = || OwnPart { since: payload.received, ports: Vec::new() };
            let part = self.own.entry((payload.domain, payload.claim.holder)).or_insert_with(new);
            part.ports = ports_of(&payload);
        }
        let held = self.payloads.entry(payload.domain).or_default();
        if let Some(known) = held.iter_mut().find(|known| known.claim.uid == payload.claim.uid) {
            *known = payload;
            return;
        }
        if held.len() >= MAX_PAYLOADS {
            let oldest_ended = held.iter().position(|payload| payload.end.is_some()).unwrap_or(0);
            held.remove(oldest_ended);
        }
        held.push_back(payload);
    }

    /// A payload by its uid.
    #[must_use]
    pub fn payload(&self, domain: DomainUuid, uid: PayloadUid) -> Option<&Payload> {
        self.payloads.get(&domain)?.iter().find(|payload| payload.claim.uid == uid)
    }

    /// Every payload remembered for the VM.
    pub fn of_domain(&self, domain: DomainUuid) -> impl Iterator<Item = &Payload> {
        self.payloads.get(&domain).into_iter().flatten()
    }

    /// Payloads of the VM that have not ended. Its own parts are none.
    #[must_use]
    pub fn live(&self, domain: DomainUuid) -> usize {
        self.of_domain(domain).filter(|payload| payload.end.is_none() && payload.claim.holder.is_payload()).count()
    }

    /// The claim that stands for this part of the VM's own traffic. `None` for payloads, of which there are many.
    #[must_use]
    pub fn live_own(&self, domain: DomainUuid, holder: Holder) -> Option<&Payload> {
        self.of_domain(domain)
            .find(|payload| !holder.is_payload() && payload.claim.holder == holder && payload.end.is_none())
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
        let own = |payload: &Payload| !payload.claim.holder.is_payload();
        let shared = |other: &Payload, lease: Lease| own(payload) && own(other) && matches!(lease, Lease::Address(_));
        let overlaps = |other: &Payload| {
            let ours = payload.claim.leases.iter().filter(|lease| !shared(other, **lease));
            ours.into_iter().any(|ours| other.claim.leases.iter().any(|theirs| overlap(*ours, *theirs)))
        };
        let now = payload.received;
        let held = |other: &Payload| {
            let rests =
                other.held_leases_at(now + REST_TOLERANCE) && !self.before_the_vm_was_empty(other, payload, now);
            other.end.is_none() || rests
        };
        self.of_domain(payload.domain)
            .find(|other| other.claim.uid != payload.claim.uid && held(other) && overlaps(other))
            .map(|other| other.claim.uid)
    }

    /// Forgets payloads whose leases have rested by `now`, as no new flow can be theirs.
    pub fn prune(&mut self, now: Timestamp) {
        for held in self.payloads.values_mut() {
            held.retain(|payload| payload.end.is_none_or(|end| now <= end.received + LEASE_REST + LEASE_REST));
        }
        self.payloads.retain(|_, held| !held.is_empty());
    }

    /// Attributes a flow by what is known now. `began` is the first packet of the whole flow, of which this may be a later part.
    #[must_use]
    pub fn attribute(&self, flow: &Flow, began: Timestamp, agent: AgentState) -> Attribution {
        let covering = flow.marked(self.of_domain(flow.domain));
        let then: Vec<&Payload> =
            covering.iter().copied().filter(|payload| payload.held_leases_at(flow.first)).collect();
        let mut then =
            then.iter().filter(|one| !then.iter().any(|other| self.before_the_vm_was_empty(one, other, flow.first)));
        match (then.next(), then.next()) {
            (Some(payload), None) if held_when_begun(payload, &covering, began) => {
                Attribution { quality: Quality::Lease, payload: Some(payload.claim.uid), reason: String::new() }
            }
            (Some(_), None) => only_the_vm(BEGAN_BEFORE),
            (Some(_), Some(_)) => only_the_vm("contested-lease"),
            (None, _) if covering.iter().any(|payload| excuses(payload, flow)) => only_the_vm("no-lease-then"),
            (None, _) => only_the_vm(match agent {
                AgentState::Absent => "agent-absent",
                AgentState::Silent => "agent-silent",
                AgentState::Present => self.why_unmarked(flow, began),
            }),
        }
    }

    /// Whether the one had ended before the VM's kernel, or its agent, was last lost, and the other came after that. A new life of the
    /// VM knows nothing of ports that rest, and nothing of what came before can still send: only within one life does a lease rest.
    fn before_the_vm_was_empty(&self, one: &Payload, other: &Payload, at: Timestamp) -> bool {
        let Some(end) = one.end else { return false };
        let empty = self.of_domain(one.domain).filter_map(|payload| payload.end).filter(|end| end.exit == Exit::Lost);
        let mut empty = empty.map(|lost| lost.received);
        empty.any(|time| end.received <= time && time <= other.received && time <= at)
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
            (Initiator::Inferred, proto) => proto != proto::TCP && began > watched,
            (Initiator::Unknown, _) => false,
        };
        flow.attribution.reason == OUTSIDE && begun_by_vm && self.own_since(flow.domain).is_some()
    }
}

/// Whether the lease was announced before the flow began. An agent that was started anew announces the VM's own parts
/// again; they are the same as before.
fn held_when_begun(payload: &Payload, covering: &[&Payload], began: Timestamp) -> bool {
    let holder = payload.claim.holder;
    let before = |other: &&Payload| other.claim.holder == holder && other.held_leases_at(began);
    payload.received <= began || (!holder.is_payload() && covering.iter().any(before))
}

/// Whether a lease that the payload did not hold explains the flow all the same: it was announced later, or its payload was lost a
/// moment ago. One that has rested, or never sent anything, explains nothing: its ports were nobody's.
fn excuses(payload: &Payload, flow: &Flow) -> bool {
    flow.first < payload.received
        || payload.end.is_none_or(|end| !end.silent && flow.first <= end.received + LEASE_REST)
}

fn ports_of(payload: &Payload) -> Vec<PortBlock> {
    let mut ports: Vec<PortBlock> = payload
        .claim
        .leases
        .iter()
        .filter_map(|lease| match lease {
            Lease::Ports(block) => Some(*block),
            Lease::Address(_) => None,
        })
        .collect();
    ports.sort_unstable();
    ports
}

fn only_the_vm(reason: &str) -> Attribution {
    Attribution { quality: Quality::Instance, payload: None, reason: reason.to_owned() }
}

fn overlap(a: Lease, b: Lease) -> bool {
    use Lease::{Address, Ports};
    match (a, b) {
        (Ports(a), Ports(b)) => a.first <= b.last && b.first <= a.last,
        (Address(a), Address(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::BTreeMap, time::Duration};

    use uuid::Uuid;
    use vestigo_model::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn payload(domain: u128, uid: u128, first: u16, from: i64, until: Option<i64>) -> Payload {
        Payload {
            host: HostId::new("hv1").unwrap(),
            domain: DomainUuid(Uuid::from_u128(domain)),
            received: at(from),
            claimed: at(from),
            claim: PayloadClaim {
                uid: PayloadUid(Uuid::from_u128(uid)),
                holder: Holder::Payload,
                pilot: PilotId::new("p").unwrap(),
                payload: PayloadId::new("t").unwrap(),
                user: User { issuer: Label::new("i").unwrap(), subject: Label::new("s").unwrap() },
                vo: Vo::new("atlas").unwrap(),
                trust: Trust::AssertedByVo,
                task: None,
                token: None,
                access: None,
                executable: None,
                interpreter: None,
                command: vec![],
                leases: vec![Lease::Ports(PortBlock { first, last: first + 1023 })],
                isolation: BTreeMap::new(),
            },
            end: until.map(|t| PayloadEnd { received: at(t), claimed: at(t), exit: Exit::Code(0), silent: false }),
        }
    }

    fn flow(domain: u128, port: u16, time: i64) -> Flow {
        Flow {
            host: HostId::new("hv1").unwrap(),
            tap: TapName::new("vnet0").unwrap(),
            domain: DomainUuid(Uuid::from_u128(domain)),
            instance: InstanceId::new("i").unwrap(),
            vo: None,
            direction: Direction::Outgoing,
            orig_ip: "10.0.0.5".parse().unwrap(),
            orig_port: port,
            resp_ip: "192.0.2.1".parse().unwrap(),
            resp_port: 443,
            proto: 6,
            vlan: None,
            first: at(time),
            last: at(time),
            orig_packets: 1,
            orig_bytes: 40,
            resp_packets: 0,
            resp_bytes: 0,
            orig_flags: 2,
            resp_flags: 0,
            end_reason: EndReason::Idle,
            initiator: Initiator::Seen,
            src_expected: Expected::Unknown,
            community_id: String::new(),
            post_nat: None,
            notes: FlowNotes::default(),
            attribution: only_the_vm(""),
        }
    }

    fn ask(book: &LeaseBook, domain: u128, port: u16, time: i64, agent: AgentState) -> (Option<u128>, String) {
        let got = book.attribute(&flow(domain, port, time), at(time), agent);
        (got.payload.map(|uid| uid.0.as_u128()), got.reason)
    }

    #[test]
    fn by_port_by_time_by_vm() {
        let mut book = LeaseBook::new();
        book.enter(payload(1, 10, 20_480, 100, Some(200)));
        book.enter(payload(1, 11, 21_504, 100, None));
        book.enter(payload(2, 12, 20_480, 100, None));
        book.enter(payload(1, 13, 20_480, 600, None));
        let present = AgentState::Present;
        assert_eq!(ask(&book, 1, 20_500, 150, present).0, Some(10));
        assert_eq!(ask(&book, 1, 21_504, 150, present).0, Some(11));
        assert_eq!(ask(&book, 2, 20_500, 150, present).0, Some(12));
        assert_eq!(ask(&book, 1, 20_500, 700, present).0, Some(13));
        assert_eq!(ask(&book, 1, 20_500, 250, present).0, Some(10), "a late packet while the lease rests");
        assert_eq!(ask(&book, 1, 20_500, 550, present), (None, "no-lease-then".into()));
        assert_eq!(ask(&book, 1, 20_500, 99, present), (None, "no-lease-then".into()), "before it was durable");
        assert_eq!(ask(&book, 1, 1000, 150, present), (None, "outside-every-lease".into()));
        book.enter(payload(4, 14, 20_480, 100, Some(200)));
        assert_eq!(ask(&book, 4, 20_500, 500, present).0, Some(14));
        assert_eq!(ask(&book, 4, 20_500, 501, present), (None, OUTSIDE.into()), "rested: nobody's");
        let mut lost = payload(5, 15, 20_480, 100, Some(200));
        lost.end.as_mut().unwrap().exit = Exit::Lost;
        book.enter(lost.clone());
        assert_eq!(ask(&book, 5, 20_500, 201, present), (None, "no-lease-then".into()));
        assert_eq!(ask(&book, 5, 20_500, 501, present), (None, OUTSIDE.into()));
        lost.end.as_mut().unwrap().silent = true;
        book.enter(lost);
        assert_eq!(ask(&book, 5, 20_500, 201, present), (None, OUTSIDE.into()), "it never sent anything");
        assert_eq!(ask(&book, 3, 20_500, 150, AgentState::Absent), (None, "agent-absent".into()));
    }

    #[test]
    fn two_claims_to_one_block_attribute_to_none() {
        let mut book = LeaseBook::new();
        book.enter(payload(1, 10, 20_480, 100, None));
        let second = payload(1, 11, 21_000, 110, None);
        assert_eq!(book.contested(&second).map(|uid| uid.0.as_u128()), Some(10));
        book.enter(second);
        assert_eq!(ask(&book, 1, 21_100, 150, AgentState::Present), (None, "contested-lease".into()));
        assert_eq!(ask(&book, 1, 20_500, 150, AgentState::Present).0, Some(10));
    }

    #[test]
    fn a_lease_that_rests_is_contested() {
        let mut book = LeaseBook::new();
        book.enter(payload(1, 10, 20_480, 100, Some(200)));
        let next = |from| payload(1, 11, 20_480, from, None);
        assert!(book.contested(&next(250)).is_some(), "flows of either would be contested");
        assert!(book.contested(&next(494)).is_some());
        assert!(book.contested(&next(496)).is_none(), "as good as rested");
        let mut silent = payload(1, 10, 20_480, 100, Some(200));
        silent.end.as_mut().unwrap().silent = true;
        book.enter(silent);
        assert!(book.contested(&next(200)).is_none(), "it never sent anything");
        book.enter(payload(1, 10, 20_480, 100, Some(200)));
        let mut system = own(1, 1, Holder::System, 1024, 10);
        system.end = Some(PayloadEnd { received: at(240), claimed: at(240), exit: Exit::Lost, silent: false });
        book.enter(system);
        assert!(book.contested(&next(250)).is_none(), "another life of the VM");
        assert!(book.contested(&next(230)).is_some(), "before that");
    }

    #[test]
    fn nothing_that_a_guest_says_ends_what_it_announced_as_its_own() {
        let mut book = LeaseBook::new();
        let since = |book: &LeaseBook| book.own_since(DomainUuid(Uuid::from_u128(1)));
        let mut first = own(1, 1, Holder::System, 1024, 100);
        book.enter(first.clone());
        first.end = Some(PayloadEnd { received: at(200), claimed: at(200), exit: Exit::Code(0), silent: true });
        book.enter(first);
        assert_eq!(since(&book), Some(at(100)), "ended");
        let stray = |book: &LeaseBook| {
            let mut flow = flow(1, 60_000, 150);
            flow.attribution = book.attribute(&flow, at(150), AgentState::Present);
            book.contradicts(&flow, at(150), at(90))
        };
        assert!(stray(&book), "no own part is left, and still it said that it had one");
        let again = own(1, 2, Holder::System, 1024, 300);
        assert!(!book.moves_own_ports(&again));
        book.enter(again);
        assert_eq!(since(&book), Some(at(100)), "announced again");
        assert!(stray(&book));
        assert!(book.moves_own_ports(&own(1, 3, Holder::System, 50_000, 400)));
        assert!(!book.moves_own_ports(&own(1, 3, Holder::Pilot, 50_000, 400)), "its first");
        let mut elsewhere = own(1, 4, Holder::System, 1024, 400);
        elsewhere.claim.leases.retain(|lease| matches!(lease, Lease::Ports(_)));
        assert!(!book.moves_own_ports(&elsewhere), "an address may go");
        book.prune(at(9999));
        assert_eq!(since(&book), Some(at(100)));
        book.forget_own(DomainUuid(Uuid::from_u128(1)));
        assert_eq!(since(&book), None);
    }

    #[test]
    fn a_reboot_ends_the_rest_of_a_lease() {
        let mut book = LeaseBook::new();
        book.enter(payload(1, 10, 20_480, 100, Some(200)));
        book.enter(payload(1, 11, 20_480, 250, None));
        assert_eq!(ask(&book, 1, 20_500, 260, AgentState::Present), (None, "contested-lease".into()), "the same life");
        let mut system = own(1, 1, Holder::System, 1024, 10);
        system.end = Some(PayloadEnd { received: at(240), claimed: at(240), exit: Exit::Lost, silent: false });
        book.enter(system);
        assert_eq!(ask(&book, 1, 20_500, 260, AgentState::Present).0, Some(11), "another life");
        assert_eq!(ask(&book, 1, 20_500, 230, AgentState::Present).0, Some(10), "a late packet before the reboot");
        book.enter(payload(1, 12, 20_480, 255, None));
        assert_eq!(ask(&book, 1, 20_500, 260, AgentState::Present), (None, "contested-lease".into()), "two at once");
    }

    fn own(domain: u128, uid: u128, holder: Holder, first: u16, from: i64) -> Payload {
        let mut own = payload(domain, uid, first, from, None);
        own.claim.holder = holder;
        own.claim.leases.push(Lease::Address("2001:db8::1".parse().unwrap()));
        own
    }

    #[test]
    fn the_vms_own_parts_are_marked_and_are_no_payloads() {
        let mut book = LeaseBook::new();
        book.enter(own(1, 1, Holder::System, 1024, 100));
        let pilot = own(1, 2, Holder::Pilot, 2048, 110);
        assert_eq!(book.contested(&pilot), None, "they share the VM's address");
        book.enter(pilot);
        assert_eq!(book.live(DomainUuid(Uuid::from_u128(1))), 0);
        assert_eq!(book.own_since(DomainUuid(Uuid::from_u128(1))), Some(at(110)));
        assert_eq!(ask(&book, 1, 1500, 150, AgentState::Present).0, Some(1));
        assert_eq!(ask(&book, 1, 2100, 150, AgentState::Present).0, Some(2));
        assert_eq!(ask(&book, 1, 60_000, 105, AgentState::Present).1, "before-the-agent");
        assert_eq!(ask(&book, 1, 60_000, 150, AgentState::Present).1, OUTSIDE);
        let greedy = payload(1, 3, 2000, 120, None);
        assert!(book.contested(&greedy).is_some(), "a payload in the VM's own ports");
    }

    #[test]
    fn what_contradicts_a_present_agent() {
        let mut book = LeaseBook::new();
        let contradicts = |book: &LeaseBook, change: &dyn Fn(&mut Flow), began: i64| {
            let mut flow = flow(1, 60_000, began);
            change(&mut flow);
            flow.attribution = book.attribute(&flow, at(began), AgentState::Present);
            book.contradicts(&flow, at(began), at(90))
        };
        assert!(!contradicts(&book, &|_| {}, 150), "an agent that never said what the VM's own ports are");
        book.enter(own(1, 1, Holder::System, 1024, 100));
        book.enter(payload(1, 2, 20_480, 100, Some(200)));
        assert!(contradicts(&book, &|_| {}, 150));
        assert!(!contradicts(&book, &|_| {}, 99), "begun before the agent spoke");
        assert!(!contradicts(&book, &|flow| flow.orig_port = 1030, 150), "the VM's own");
        assert!(!contradicts(&book, &|flow| flow.orig_port = 20_500, 450), "a late packet while the lease rests");
        assert!(!contradicts(&book, &|flow| flow.initiator = Initiator::Inferred, 150), "TCP met in the middle");
        let udp = |flow: &mut Flow| (flow.proto, flow.initiator) = (17, Initiator::Inferred);
        assert!(contradicts(&book, &udp, 150));
        assert!(!contradicts(&book, &|flow| flow.direction = Direction::Incoming, 150), "a service of the VM");
    }

    #[test]
    fn a_flow_older_than_the_lease_is_not_the_payloads() {
        let mut book = LeaseBook::new();
        book.enter(payload(1, 10, 20_480, 100, None));
        let part = flow(1, 20_500, 160);
        assert_eq!(book.attribute(&part, at(100), AgentState::Present).payload.map(|uid| uid.0.as_u128()), Some(10));
        let got = book.attribute(&part, at(40), AgentState::Present);
        assert_eq!((got.payload, got.reason.as_str()), (None, BEGAN_BEFORE));
        // The agent was started anew: the same part of the VM, under another run id.
        let mut before = own(1, 1, Holder::System, 1024, 10);
        before.end = Some(PayloadEnd { received: at(100), claimed: at(100), exit: Exit::Lost, silent: false });
        book.enter(before);
        book.enter(own(1, 2, Holder::System, 1024, 100));
        let got = book.attribute(&flow(1, 1030, 160), at(40), AgentState::Present);
        assert_eq!(got.payload.map(|uid| uid.0.as_u128()), Some(2));
    }

    #[test]
    fn memory_is_bounded_and_rested_leases_go() {
        let mut book = LeaseBook::new();
        for n in 0..MAX_PAYLOADS as u128 + 10 {
            book.enter(payload(1, n, 20_480, 100, (n % 2 == 0).then_some(200)));
        }
        assert_eq!(book.of_domain(DomainUuid(Uuid::from_u128(1))).count(), MAX_PAYLOADS);
        book.prune(at(200) + LEASE_REST * 2 + Duration::from_secs(1));
        assert!(book.of_domain(DomainUuid(Uuid::from_u128(1))).all(|p| p.end.is_none()));
    }
}
