//! What the book says of a flow, case by case.
#![allow(clippy::unwrap_used)]
use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;
use vestigo_model::*;

use super::{held::MAX_PAYLOADS, *};

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

pub(super) fn payload(domain: u128, uid: u128, first: u16, from: i64, until: Option<i64>) -> Payload {
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

pub(super) fn flow(domain: u128, port: u16, time: i64) -> Flow {
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
    let hidden = |initiator, began| {
        let mut flow = Flow { orig_port: 0, resp_port: 0, initiator, ..flow(1, 0, 150) };
        flow.attribution = book.attribute(&flow, at(150), AgentState::Present);
        book.contradicts(&flow, at(began), at(90))
    };
    assert!(hidden(Initiator::Inferred, 150), "TCP behind headers that nobody can read");
    assert!(!hidden(Initiator::Inferred, 80), "it may be older than the watch");
    assert!(!hidden(Initiator::Unknown, 150), "fragments whose first was not seen");
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

#[test]
fn fat_claims_are_bounded_by_their_bytes() {
    let domain = DomainUuid(Uuid::from_u128(1));
    let fat = |uid: u128, until| {
        let mut fat = payload(1, uid, 20_480, 100, until);
        fat.claim.command = vec!["x".repeat(8192)];
        let how = Label::new("y".repeat(120)).unwrap();
        let rule = |n: u32| (format!("R-{n}"), Enforcement { state: RuleState::Enforced, how: how.clone() });
        fat.claim.isolation = (0..128).map(rule).collect();
        fat
    };
    let mut book = LeaseBook::new();
    let live = (0..).take_while(|uid| {
        let fits = book.full(domain, &fat(*uid, None).claim).is_none();
        if fits {
            assert_eq!(book.enter(fat(*uid, None)), 0);
        }
        fits
    });
    let live = live.count();
    assert!((200..MAX_LIVE).contains(&live), "{live}");
    assert!(book.full(domain, &fat(0, None).claim).unwrap().contains("fills 16 MiB already"));
    let forgotten: usize = (1000..2000).map(|uid| book.enter(fat(uid, Some(200)))).sum();
    assert!(forgotten > 0 && book.bytes(domain) <= held::MAX_BYTES);
    assert_eq!(book.live(domain), live, "those that live are never forgotten for others");
    assert_eq!(book.of_domain(domain).count() + forgotten, live + 1000);
}

#[test]
fn a_folded_record_over_several_leases_is_the_vms_and_no_contradiction() {
    let mut book = LeaseBook::new();
    book.enter(own(1, 1, Holder::System, 1024, 100));
    book.enter(payload(1, 10, 20_480, 100, None));
    let folded = |book: &LeaseBook, first, last_port| {
        let mut flow = flow(1, first, 150);
        flow.notes.folded = Some(Folded { flows: 9, last_port });
        flow.attribution = book.attribute(&flow, at(150), AgentState::Present);
        (flow.attribution.payload.map(|uid| uid.0.as_u128()), flow.attribution.reason)
    };
    assert_eq!(folded(&book, 20_480, 21_503), (Some(10), String::new()));
    assert_eq!(folded(&book, 2047, 2060), (None, "folded-over-several-leases".into()));
    assert_eq!(folded(&book, 60_000, 60_100), (None, OUTSIDE.into()));
}
