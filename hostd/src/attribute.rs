//! Which payload a flow belongs to: arithmetic over the leases that a VM's agent has announced. Pure.
//!
//! A flow at the tap carries the VM's address and port; a lease says which ports (or which address) were whose, and when.
//! Nothing is guessed: where no lease or more than one fits, only the VM is certain, and the reason says why.

use std::collections::{HashMap, VecDeque};

use vestigo_model::{Attribution, DomainUuid, Flow, LEASE_REST, Payload, PayloadUid, Quality, Timestamp};

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
}

impl LeaseBook {
    /// An empty book.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters a payload, or its end: the snapshot replaces the one before.
    pub fn enter(&mut self, payload: Payload) {
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

    /// Payloads of the VM that have not ended.
    #[must_use]
    pub fn live(&self, domain: DomainUuid) -> usize {
        self.of_domain(domain).filter(|payload| payload.end.is_none()).count()
    }

    /// Whether another live payload of the VM holds a lease that overlaps one of this one's.
    #[must_use]
    pub fn contested(&self, payload: &Payload) -> Option<PayloadUid> {
        let overlaps = |other: &Payload| {
            other.claim.leases.iter().any(|theirs| payload.claim.leases.iter().any(|ours| overlap(*ours, *theirs)))
        };
        self.of_domain(payload.domain)
            .find(|other| other.claim.uid != payload.claim.uid && other.end.is_none() && overlaps(other))
            .map(|other| other.claim.uid)
    }

    /// Forgets payloads whose leases have rested by `now`, as no new flow can be theirs.
    pub fn prune(&mut self, now: Timestamp) {
        for held in self.payloads.values_mut() {
            held.retain(|payload| payload.end.is_none_or(|end| now <= end.received + LEASE_REST + LEASE_REST));
        }
        self.payloads.retain(|_, held| !held.is_empty());
    }

    /// Attributes a flow by what is known now.
    #[must_use]
    pub fn attribute(&self, flow: &Flow, agent: AgentState) -> Attribution {
        let marks = |payload: &&Payload| payload.claim.leases.iter().any(|lease| flow.marked_by(lease));
        let covering: Vec<&Payload> = self.of_domain(flow.domain).filter(marks).collect();
        let mut then = covering.iter().filter(|payload| payload.held_leases_at(flow.first));
        match (then.next(), then.next()) {
            (Some(payload), None) => {
                Attribution { quality: Quality::Lease, payload: Some(payload.claim.uid), reason: String::new() }
            }
            (Some(_), Some(_)) => only_the_vm("contested-lease"),
            (None, _) if !covering.is_empty() => only_the_vm("no-lease-then"),
            (None, _) => only_the_vm(match agent {
                AgentState::Absent => "agent-absent",
                AgentState::Silent => "agent-silent",
                AgentState::Present => "outside-every-lease",
            }),
        }
    }
}

fn only_the_vm(reason: &str) -> Attribution {
    Attribution { quality: Quality::Instance, payload: None, reason: reason.to_owned() }
}

fn overlap(a: vestigo_model::Lease, b: vestigo_model::Lease) -> bool {
    use vestigo_model::Lease::{Address, Ports};
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
            attribution: only_the_vm(""),
        }
    }

    fn ask(book: &LeaseBook, domain: u128, port: u16, time: i64, agent: AgentState) -> (Option<u128>, String) {
        let got = book.attribute(&flow(domain, port, time), agent);
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
