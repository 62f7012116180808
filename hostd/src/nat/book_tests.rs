#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::net::SocketAddr;

use proptest::prelude::*;
use vestigo_model::{Attribution, Direction, DomainUuid, Expected, FlowNotes, Initiator, InstanceId, Quality, TapName};

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn end(text: &str) -> End {
    let end: SocketAddr = text.parse().unwrap();
    (end.ip(), end.port())
}

fn entry(original: (&str, &str), reply: (&str, &str)) -> Entry {
    let pair = |(a, b): (&str, &str)| (end(a), end(b));
    Entry { proto: 6, zone: 0, original: pair(original), reply: pair(reply), id: Some(1), began: None, ended: None }
}

const VM: &str = "10.0.0.5:41000";
const WEB: &str = "192.0.2.9:443";
const PUBLIC: &str = "198.51.100.1:61000";

fn masqueraded() -> Entry {
    entry((VM, WEB), (WEB, PUBLIC))
}

fn flow(local: &str, peer: &str, direction: Direction, (first, last): (i64, i64)) -> Flow {
    let (orig, resp) = match direction {
        Direction::Outgoing => (end(local), end(peer)),
        Direction::Incoming => (end(peer), end(local)),
    };
    Flow {
        host: host(),
        tap: TapName::new("vnet0").unwrap(),
        domain: DomainUuid(uuid::Uuid::nil()),
        instance: InstanceId::new("i").unwrap(),
        vo: None,
        direction,
        orig_ip: orig.0,
        orig_port: orig.1,
        resp_ip: resp.0,
        resp_port: resp.1,
        proto: 6,
        vlan: None,
        first: at(first),
        last: at(last),
        orig_packets: 1,
        orig_bytes: 40,
        resp_packets: 0,
        resp_bytes: 0,
        orig_flags: 2,
        resp_flags: 0,
        end_reason: EndReason::Active,
        initiator: Initiator::Seen,
        src_expected: Expected::Unknown,
        post_nat: None,
        notes: FlowNotes::default(),
        attribution: Attribution { quality: Quality::Instance, payload: None, reason: String::new() },
    }
}

fn out(first: i64, last: i64) -> Flow {
    flow(VM, WEB, Direction::Outgoing, (first, last))
}

fn host() -> HostId {
    HostId::new("hv1").unwrap()
}

fn book() -> Book {
    Book::new(BookOptions::default())
}

fn due(book: &mut Book, now: i64) -> Vec<Translation> {
    book.due(&host(), |space| Label::cut(&format!("ns{space}")), at(now), Instant::now())
}

fn seen(nat: Option<PostNat>) -> Option<String> {
    nat.map(|nat| SocketAddr::new(nat.ip, nat.port).to_string())
}

#[test]
fn a_flow_gets_the_tuple_of_its_translation_until_its_last_record() {
    let mut book = book();
    book.began(1, &masqueraded(), at(99), at(100));
    assert_eq!(seen(book.translate(&out(100, 101), false)).as_deref(), Some(PUBLIC));
    book.ended(1, &masqueraded(), at(110));
    book.prune(at(200));
    let mut last = out(101, 105);
    last.end_reason = EndReason::Idle;
    assert_eq!(seen(book.translate(&last, true)).as_deref(), Some(PUBLIC), "records come later than the end");
    assert_eq!(due(&mut book, 300), [], "a record tells it");
    assert_eq!(book.translate(&out(111, 112), false), None, "not after it ended");
    assert_eq!(book.translate(&out(50, 60), false), None, "nor before it began");
    book.prune(at(140));
    assert_eq!(book.len(), 0, "its last record is written");
    assert_eq!(book.faces.len() + book.owners.len() + book.live.len() + book.ended.len(), 0);
}

#[test]
fn plain_connections_are_none_of_ours() {
    let mut book = book();
    book.began(1, &entry((VM, WEB), (WEB, VM)), at(99), at(100));
    book.listed(1, &entry((VM, WEB), (WEB, VM)), at(99), at(100));
    book.ended(1, &entry((VM, WEB), (WEB, VM)), at(100));
    assert!(book.is_empty());
}

#[test]
fn a_vm_that_is_called_by_a_floating_address_answers_under_it() {
    let mut book = book();
    let floating = entry(("192.0.2.9:555", "198.51.100.7:22"), ("10.0.0.5:22", "192.0.2.9:555"));
    book.began(1, &floating, at(99), at(100));
    let called = flow("10.0.0.5:22", "192.0.2.9:555", Direction::Incoming, (100, 100));
    assert_eq!(seen(book.translate(&called, false)).as_deref(), Some("198.51.100.7:22"));
    assert_eq!(due(&mut book, 200), [], "the caller's own address is nobody's secret");
    // A wrong guess of who began changes nothing.
    let guessed = flow("10.0.0.5:22", "192.0.2.9:555", Direction::Outgoing, (100, 100));
    assert_eq!(seen(book.translate(&guessed, false)).as_deref(), Some("198.51.100.7:22"));
}

#[test]
fn a_hairpin_between_two_vms_is_known_to_both_and_told_for_its_other_ends() {
    let mut book = book();
    let hairpin = entry(("10.0.0.6:40000", "198.51.100.7:80"), ("10.0.0.5:8080", "10.0.0.1:50000"));
    book.began(1, &hairpin, at(99), at(100));
    let caller = flow("10.0.0.6:40000", "198.51.100.7:80", Direction::Outgoing, (100, 100));
    let called = flow("10.0.0.5:8080", "10.0.0.1:50000", Direction::Incoming, (100, 100));
    assert_eq!(seen(book.translate(&caller, false)).as_deref(), Some("10.0.0.1:50000"));
    assert_eq!(seen(book.translate(&called, false)).as_deref(), Some("198.51.100.7:80"));
    let told = due(&mut book, 101);
    assert_eq!((told.len(), told[0].why.as_str()), (1, "both-ends"));
    assert_eq!(told[0].faces()[1].public_peer, end("10.0.0.6:40000"));
}

#[test]
fn where_two_fit_none_is_chosen_and_both_are_told() {
    let mut book = book();
    let (a, mut b) = (masqueraded(), entry((VM, WEB), (WEB, "198.51.100.1:61001")));
    b.zone = 2;
    book.began(1, &a, at(99), at(100));
    book.began(1, &b, at(99), at(100));
    assert_eq!(book.translate(&out(100, 101), false), None);
    let told = due(&mut book, 101);
    let whys: Vec<_> = told.iter().map(|t| (t.zone, t.reply.1.1, t.why.as_str())).collect();
    assert_eq!(whys, [(0, 61000, "several"), (2, 61001, "several")]);
    assert_eq!(due(&mut book, 102), [], "once in ten minutes");
    book.ended(1, &a, at(103));
    let told = due(&mut book, 104);
    assert_eq!(told.len(), 1, "and at its end");
    assert!(told[0].ended && told[0].until == at(103));
    assert_eq!(seen(book.translate(&out(110, 111), true)).as_deref(), Some("198.51.100.1:61001"), "one is left");
    // Other ports: known apart whatever the zones.
    let other = flow("10.0.0.5:41001", WEB, Direction::Outgoing, (100, 101));
    assert_eq!(book.translate(&other, false), None);
}

#[test]
fn one_that_no_record_takes_up_is_told_and_one_that_came_late_too() {
    let mut book = book();
    book.began(1, &masqueraded(), at(99), at(100));
    assert_eq!(due(&mut book, 110), [], "its record may still come");
    let told = due(&mut book, 115);
    assert_eq!((told.len(), told[0].why.as_str(), told[0].namespace.as_str()), (1, "no-flow", "ns1"));
    assert_eq!((told[0].not_before, told[0].until, told[0].ended), (Some(at(98)), at(115), false));
    assert_eq!(due(&mut book, 650), []);
    assert_eq!(due(&mut book, 655).len(), 1, "again, while it goes on");

    // Found by a dump after its event was lost: the first record of the flow went without it.
    let mut book = self::book();
    book.synced(1, at(50), at(50));
    book.listed(1, &masqueraded(), at(130), at(130));
    assert_eq!(seen(book.translate(&out(125, 135), true)).as_deref(), Some(PUBLIC));
    let told = due(&mut book, 136);
    assert_eq!((told.len(), told[0].why.as_str(), told[0].not_before), (1, "late", Some(at(50))));

    // Known by its end alone.
    let mut book = self::book();
    book.synced(1, at(50), at(50));
    book.ended(1, &masqueraded(), at(150));
    let told = due(&mut book, 170);
    assert_eq!((told.len(), told[0].why.as_str(), told[0].until, told[0].ended), (1, "no-flow", at(150), true));
}

#[test]
fn an_event_that_waited_long_covers_the_time_that_it_waited() {
    let mut book = book();
    // hostd was stopped for 20 s: the event may be as old.
    book.began(1, &masqueraded(), at(100), at(120));
    assert_eq!(seen(book.translate(&out(101, 101), false)).as_deref(), Some(PUBLIC));
}

#[test]
fn a_dump_ends_what_it_lacks_and_brings_back_nothing_that_ended_under_it() {
    let mut book = book();
    book.began(1, &masqueraded(), at(99), at(100));
    book.began(2, &masqueraded(), at(99), at(100));
    book.ended(1, &masqueraded(), at(200));
    book.listed(1, &masqueraded(), at(199), at(201));
    book.synced(1, at(199), at(202));
    assert_eq!(book.live.len(), 1, "another namespace is another thing");
    // One that began while the dump was read is not in it and lives.
    let young = entry((VM, "192.0.2.9:80"), ("192.0.2.9:80", PUBLIC));
    book.began(2, &young, at(300), at(300));
    book.synced(2, at(299), at(301));
    assert_eq!(book.live.len(), 1, "the old one is gone, the young one is there");
    assert!(book.translate(&flow(VM, "192.0.2.9:80", Direction::Outgoing, (400, 400)), false).is_some());
    // Missed by a dump, seen by the next: it lives again.
    book.synced(2, at(410), at(411));
    book.listed(2, &young, at(500), at(500));
    assert!(book.translate(&flow(VM, "192.0.2.9:80", Direction::Outgoing, (505, 505)), false).is_some());
}

#[test]
fn another_connection_under_the_same_tuple_ends_the_earlier_one() {
    let mut book = book();
    book.began(1, &masqueraded(), at(99), at(100));
    let again = Entry { id: Some(2), ..entry((VM, WEB), (WEB, "198.51.100.1:61001")) };
    book.began(1, &again, at(199), at(200));
    assert_eq!(seen(book.translate(&out(150, 151), false)).as_deref(), Some(PUBLIC));
    assert_eq!(seen(book.translate(&out(210, 211), false)).as_deref(), Some("198.51.100.1:61001"));
}

#[test]
fn the_book_is_bounded_fair_and_counts_what_it_leaves_out() {
    let mut book = Book::new(BookOptions { max: 8, ..BookOptions::default() });
    let of = |vm: &str, port: u16| entry((&format!("{vm}:{port}"), WEB), (WEB, &format!("198.51.100.1:{port}")));
    (1..=100).for_each(|port| book.began(1, &of("10.0.0.5", port), at(1), at(1)));
    assert_eq!((book.len(), book.take_left().refused), (2, 98), "a quarter for one address");
    for n in 6..=8 {
        (1..=2).for_each(|port| book.began(1, &of(&format!("10.0.0.{n}"), port), at(1), at(1)));
    }
    assert_eq!((book.len(), book.take_left().refused), (8, 0));
    book.began(1, &of("10.0.0.9", 1), at(1), at(1));
    assert_eq!((book.len(), book.take_left().refused), (8, 1), "full of live ones");
    book.ended(1, &of("10.0.0.6", 1), at(2));
    book.began(1, &of("10.0.0.5", 3), at(2), at(2));
    let left = book.take_left();
    assert_eq!((book.len(), left.refused, left.untold), (8, 1, 0), "who has its share costs no other what it had");
    book.began(1, &of("10.0.0.9", 1), at(3), at(3));
    let left = book.take_left();
    assert_eq!((book.len(), left.refused, left.untold), (8, 0, 1), "an ended one makes room, and was never told");
    assert_eq!(book.faces.len(), 16);
}

#[test]
fn a_scan_is_told_up_to_its_rate_and_counted_beyond() {
    let mut book = book();
    for port in 1..=1000 {
        let scan = entry((VM, &format!("192.0.2.9:{port}")), (&format!("192.0.2.9:{port}"), PUBLIC));
        book.began(1, &scan, at(99), at(100));
    }
    let neighbour = entry(("10.0.0.6:1", WEB), (WEB, "198.51.100.1:9"));
    book.began(1, &neighbour, at(99), at(100));
    let instant = Instant::now();
    let told = book.due(&host(), |_| Label::cut("ns"), at(200), instant);
    assert_eq!((told.len(), book.take_left().untold), (201, 800));
    assert!(told.iter().any(|t| t.original.0 == end("10.0.0.6:1")), "a neighbour's is told all the same");
    assert_eq!(book.due(&host(), |_| Label::cut("ns"), at(210), instant), [], "and not counted again each time");
    assert_eq!(book.take_left().untold, 0);
}

#[test]
fn a_namespace_that_goes_takes_its_translations_with_it() {
    let mut book = book();
    book.began(1, &masqueraded(), at(99), at(100));
    book.gone(1, at(150));
    assert!(book.translate(&out(120, 121), false).is_some());
    assert_eq!(book.translate(&out(151, 152), false), None);
}

#[derive(Debug, Clone)]
enum Step {
    Began(u8, u8),
    Ended(u8, u8),
    Dump(Vec<u8>),
    Gone,
    Flow(u8),
    Due,
    Prune,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..12, 0_u8..3).prop_map(|(c, id)| Step::Began(c, id)),
        3 => (0_u8..12, 0_u8..3).prop_map(|(c, id)| Step::Ended(c, id)),
        1 => prop::collection::vec(0_u8..12, 0..12).prop_map(Step::Dump),
        1 => Just(Step::Gone),
        3 => (0_u8..12).prop_map(Step::Flow),
        1 => Just(Step::Due),
        1 => Just(Step::Prune),
    ]
}

fn numbered(connection: u8, id: u8) -> Entry {
    let (vm, public) = (format!("10.0.0.{}:1", connection / 4), format!("198.51.100.1:{connection}"));
    let peer = format!("192.0.2.9:{}", connection % 4);
    Entry { id: Some(id.into()), zone: u16::from(connection % 2), ..entry((&vm, &peer), (&peer, &public)) }
}

proptest! {
    /// Whatever comes in whatever order: the indexes agree, the bounds hold, and nothing outlives its time.
    #[test]
    fn the_book_stays_whole(steps in prop::collection::vec(step(), 0..200)) {
        let mut book = Book::new(BookOptions { max: 10, ..BookOptions::default() });
        let mut now = 1000;
        for step in steps {
            now += 7;
            match step {
                Step::Began(c, id) => book.began(1, &numbered(c, id), at(now - 1), at(now)),
                Step::Ended(c, id) => book.ended(1, &numbered(c, id), at(now)),
                Step::Dump(all) => {
                    all.iter().for_each(|c| book.listed(1, &numbered(*c, 0), at(now), at(now)));
                    book.synced(1, at(now), at(now));
                }
                Step::Gone => book.gone(1, at(now)),
                Step::Flow(c) => {
                    let (local, peer) = numbered(c, 0).original;
                    let text = |(ip, port): End| SocketAddr::new(ip, port).to_string();
                    let _ = book.translate(&flow(&text(local), &text(peer), Direction::Outgoing, (now - 3, now)), c % 2 == 0);
                }
                Step::Due => drop(due(&mut book, now)),
                Step::Prune => book.prune(at(now)),
            }
            prop_assert!(book.len() <= 10);
            prop_assert_eq!(book.faces.len(), 2 * book.len());
            prop_assert!(book.live.values().all(|id| book.bindings.get(id).is_some_and(|b| b.until.is_none())));
            prop_assert_eq!(book.live.len(), book.bindings.values().filter(|b| b.until.is_none()).count());
            prop_assert_eq!(book.owners.values().map(|o| o.held).sum::<usize>(), book.len());
        }
        book.gone(1, at(now));
        book.prune(at(now + 100_000));
        prop_assert!(book.is_empty() && book.ended.is_empty() && book.faces.is_empty() && book.owners.is_empty());
    }
}
