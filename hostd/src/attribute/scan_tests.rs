//! The indexed book answers as a plain scan over all payloads does: the rules as they are read, kept here.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use proptest::prelude::*;
use uuid::Uuid;
use vestigo_model::*;

use super::{
    tests::{at, flow, payload},
    *,
};

/// The rules, read off one by one.
struct Scan(Vec<Payload>);

impl Scan {
    fn attribute(&self, flow: &Flow, began: Timestamp) -> (Quality, Option<PayloadUid>, &'static str) {
        let covering = flow.marked(&self.0);
        let then: Vec<&Payload> = covering.iter().copied().filter(|one| one.held_leases_at(flow.first)).collect();
        let stays = |one: &&&Payload| !then.iter().any(|other| self.before_the_vm_was_empty(one, other, flow.first));
        let left: Vec<&&Payload> = then.iter().filter(stays).collect();
        let instance = |reason| (Quality::Instance, None, reason);
        match left.as_slice() {
            [one] if held_when_begun(one, &covering, began) => (Quality::Lease, Some(one.claim.uid), ""),
            [_] => instance(BEGAN_BEFORE),
            [_, ..] => instance("contested-lease"),
            [] if covering.iter().any(|payload| excuses(payload, flow)) => instance("no-lease-then"),
            [] if self.reaches_over_leases(flow) => instance("folded-over-several-leases"),
            [] => instance("agent-absent"),
        }
    }

    fn before_the_vm_was_empty(&self, one: &Payload, other: &Payload, at: Timestamp) -> bool {
        let Some(end) = one.end else { return false };
        let lost = self.0.iter().filter_map(|payload| payload.end).filter(|end| end.exit == Exit::Lost);
        let mut lost = lost.map(|lost| lost.received);
        lost.any(|time| end.received <= time && time <= other.received && time <= at)
    }

    fn reaches_over_leases(&self, flow: &Flow) -> bool {
        let Some(range) = flow.trace().ports.filter(|range| range.first != range.last) else { return false };
        self.0.iter().any(|payload| payload.claim.leases.iter().any(|lease| overlap(Lease::Ports(range), *lease)))
    }

    fn contested(&self, payload: &Payload) -> Option<PayloadUid> {
        let own = |payload: &Payload| !payload.claim.holder.is_payload();
        let shared = |other: &Payload, lease: Lease| own(payload) && own(other) && matches!(lease, Lease::Address(_));
        let overlaps = |other: &Payload| {
            let ours = payload.claim.leases.iter().filter(|lease| !shared(other, **lease));
            ours.into_iter().any(|ours| other.claim.leases.iter().any(|theirs| overlap(*ours, *theirs)))
        };
        let now = payload.received;
        let rests = |other: &Payload| {
            other.held_leases_at(now + REST_TOLERANCE) && !self.before_the_vm_was_empty(other, payload, now)
        };
        let held = |other: &&Payload| other.end.is_none() || rests(other);
        self.0
            .iter()
            .filter(|other| other.claim.uid != payload.claim.uid)
            .find(|other| held(other) && overlaps(other))
            .map(|other| other.claim.uid)
    }

    fn live_own(&self, holder: Holder) -> Option<PayloadUid> {
        let live = |one: &&Payload| !holder.is_payload() && one.claim.holder == holder && one.end.is_none();
        self.0.iter().find(live).map(|one| one.claim.uid)
    }

    fn enter(&mut self, payload: Payload) {
        match self.0.iter_mut().find(|known| known.claim.uid == payload.claim.uid) {
            Some(known) => *known = payload,
            None => self.0.push(payload),
        }
    }
}

fn held_when_begun(payload: &Payload, covering: &[&Payload], began: Timestamp) -> bool {
    let holder = payload.claim.holder;
    let before = |other: &&Payload| other.claim.holder == holder && other.held_leases_at(began);
    payload.received <= began || (!holder.is_payload() && covering.iter().any(before))
}

fn excuses(payload: &Payload, flow: &Flow) -> bool {
    flow.first < payload.received
        || payload.end.is_none_or(|end| !end.silent && flow.first <= end.received + LEASE_REST)
}

fn overlap(a: Lease, b: Lease) -> bool {
    use Lease::{Address, Ports};
    match (a, b) {
        (Ports(a), Ports(b)) => a.first <= b.last && b.first <= a.last,
        (Address(a), Address(b)) => a == b,
        _ => false,
    }
}

/// Few values of everything, so that they meet.
fn lease() -> impl Strategy<Value = Lease> {
    let ports = |first: u16, more: u16| Lease::Ports(PortBlock { first, last: first + more });
    prop_oneof![
        4 => (0..6u16).prop_map(move |n| ports(20_480 + n * 1024, 1023)),
        3 => (20_000..23_000u16, 0..2500u16).prop_map(move |(first, more)| ports(first, more)),
        2 => (0..4u16).prop_map(|n| Lease::Address(format!("2001:db8::{n}").parse().unwrap())),
    ]
}

fn a_payload() -> impl Strategy<Value = Payload> {
    let end = prop::option::of((0..900i64, 0..3u8, any::<bool>()));
    let holder = prop_oneof![6 => Just(Holder::Payload), 1 => Just(Holder::System), 1 => Just(Holder::Pilot)];
    (0..12u128, 0..900i64, end, holder, prop::collection::vec(lease(), 0..4)).prop_map(
        |(uid, received, end, holder, leases)| {
            let mut made = payload(1, uid, 1, received, None);
            (made.claim.holder, made.claim.leases) = (holder, leases);
            made.end = end.map(|(after, how, silent)| {
                let exit = [Exit::Code(0), Exit::Lost, Exit::NotStarted][usize::from(how)];
                PayloadEnd { received: at(received + after), claimed: at(received), exit, silent }
            });
            made
        },
    )
}

fn a_flow() -> impl Strategy<Value = (Flow, Timestamp)> {
    let kind =
        (prop_oneof![Just(6u8), Just(17), Just(1), Just(58), Just(47)], any::<bool>(), 0..4u128, 0..3u8, 0..2u64);
    let folded = prop::option::weighted(0.2, 0..1100u16);
    let time = (0..2000i64, 0..400i64);
    (kind, 19_900..25_900u16, folded, time).prop_map(|((proto, outgoing, host, who, answered), port, folded, time)| {
        let mut made = flow(1, port, time.0);
        let local = if host == 3 { "10.0.0.5".to_owned() } else { format!("2001:db8::{host}") };
        (made.proto, made.orig_ip) = (proto, local.parse().unwrap());
        made.initiator = [Initiator::Seen, Initiator::Inferred, Initiator::Unknown][usize::from(who)];
        made.notes.folded = folded.map(|more| Folded { flows: 2, last_port: port + more });
        if !outgoing {
            made.direction = Direction::Incoming;
            std::mem::swap(&mut made.orig_ip, &mut made.resp_ip);
            std::mem::swap(&mut made.orig_port, &mut made.resp_port);
            made.resp_packets = answered;
        }
        (made, at(time.0 - time.1))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
    #[test]
    fn the_index_answers_as_a_scan_does(
        payloads in prop::collection::vec(a_payload(), 0..40),
        flows in prop::collection::vec(a_flow(), 1..12),
        next in a_payload(),
    ) {
        let domain = DomainUuid(Uuid::from_u128(1));
        let (mut scan, mut book) = (Scan(Vec::new()), LeaseBook::new());
        for payload in payloads {
            // A claim whose own blocks overlap is refused before it gets here.
            if payload.claim.leases_are_apart() {
                scan.enter(payload.clone());
                prop_assert_eq!(book.enter(payload), 0);
            }
        }
        for (flow, began) in &flows {
            let got = book.attribute(flow, *began, AgentState::Absent);
            let expected = scan.attribute(flow, *began);
            prop_assert_eq!((got.quality, got.payload, got.reason.as_str()), expected, "{:?}", flow);
        }
        prop_assert_eq!(book.contested(&next), scan.contested(&next));
        let live = scan.0.iter().filter(|one| one.end.is_none() && one.claim.holder.is_payload()).count();
        prop_assert_eq!(book.live(domain), live);
        prop_assert_eq!(book.live_of(domain).count(), scan.0.iter().filter(|one| one.end.is_none()).count());
        for holder in [Holder::System, Holder::Pilot, Holder::Payload] {
            prop_assert_eq!(book.live_own(domain, holder).map(|one| one.claim.uid), scan.live_own(holder));
        }
        let order: Vec<PayloadUid> = book.of_domain(domain).map(|one| one.claim.uid).collect();
        prop_assert_eq!(order, scan.0.iter().map(|one| one.claim.uid).collect::<Vec<_>>());
        book.prune(at(9999));
        scan.0.retain(|one| one.end.is_none());
        prop_assert_eq!(book.of_domain(domain).count(), scan.0.len());
    }
}
