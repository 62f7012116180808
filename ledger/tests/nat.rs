//! Questions about public addresses: what flow records carry, and what the host told of its translations apart from them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::{net::SocketAddr, time::Duration};

use fixture::*;
use tempfile::TempDir;
use vestigo_ledger::{
    Ledger, Writer, WriterOptions,
    questions::{
        ips::{AddressKind, IpsQuestion},
        parts::MatchedOn,
        who::{WhoAnswer, WhoQuestion},
    },
};
use vestigo_model::{Basis, CoverageState, End, Fact, Flow, Instance, Label, Learnt, TimeRange, Translation, Vo};

/// What a test's host wrote; sealed or live, answers must be the same.
fn ledger(facts: Vec<Fact>, flows: &[Flow], seal: bool) -> (TempDir, Ledger) {
    let folder = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let mut writer = Writer::open(folder.path(), options).unwrap().0;
    let facts: Vec<_> = facts.into_iter().map(|fact| record(at("14:05:00"), fact)).collect();
    writer.append(&facts, flows).unwrap();
    if seal {
        writer.seal(at("14:05:01")).unwrap().expect("a segment");
    }
    let ledger = Ledger::open_folders(&[folder.path().to_owned()]).unwrap();
    (folder, ledger)
}

fn end(text: &str) -> End {
    let end: SocketAddr = text.parse().unwrap();
    (end.ip(), end.port())
}

const PEER: &str = "192.0.2.9:443";

/// A call of a VM's out to the peer of the fixture's flows.
fn masqueraded(vm: &str, public: &str, why: &str, (from, to): (&str, &str)) -> Translation {
    Translation {
        host: host("hv1"),
        namespace: Label::new("host").unwrap(),
        zone: 0,
        proto: 6,
        original: (end(vm), end(PEER)),
        reply: (end(PEER), end(public)),
        not_before: Some(at(from)),
        until: at(to),
        ended: false,
        why: Label::new(why).unwrap(),
    }
}

fn told(translation: &Translation) -> Fact {
    Fact::Event(translation.event())
}

fn question(clock: &str, address: &str, port: Option<u16>) -> WhoQuestion {
    WhoQuestion {
        range: TimeRange::around(at(clock), Duration::from_secs(2)),
        ip: ip(address),
        port,
        peer: None,
        proto: None,
        instance: None,
    }
}

fn names(answer: &WhoAnswer) -> Vec<&str> {
    answer.candidates.iter().map(|candidate| candidate.host_facts.instance.as_str()).collect()
}

fn two_tenants() -> (Instance, Instance) {
    (instance("hv1", 1, Some("atlas"), "10.0.0.5"), instance("hv1", 2, Some("cms"), "10.0.0.5"))
}

#[test]
fn all_records_of_a_flow_are_found_though_the_first_went_without_its_translation() {
    let (vm, _) = two_tenants();
    let first = flow(&vm, 41022, "14:03:22", Some(1));
    let second = translated(flow(&vm, 41022, "14:03:24", Some(1)), "198.51.100.1", 61022);
    let late = masqueraded("10.0.0.5:41022", "198.51.100.1:61022", "late", ("14:00:00", "14:03:24"));
    for seal in [false, true] {
        let lease = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
        let facts = vec![Fact::Instance(vm.clone()), Fact::Payload(lease), told(&late)];
        let (_folder, ledger) = ledger(facts, &[first.clone(), second.clone()], seal);
        let answer = ledger.who(&question("14:03:23", "198.51.100.1", Some(61022))).unwrap();
        assert_eq!(names(&answer), ["vm-1"]);
        let candidate = &answer.candidates[0];
        assert_eq!((candidate.totals.flows, candidate.totals.bytes_out), (2, 2000), "sealed: {seal}");
        assert_eq!(candidate.guest_claims.as_ref().unwrap().user.subject.as_str(), "alice");
        for flow in &candidate.flows {
            assert_eq!(flow.matched_on, MatchedOn::PostNat);
            assert_eq!(flow.post_nat.map(|nat| nat.port), Some(61022), "also where the record does not say it");
        }
        assert!(candidate.notes[0].contains("account of its translations"), "{:?}", candidate.notes);
        // Another port of the address is somebody else's.
        assert_eq!(names(&ledger.who(&question("14:03:23", "198.51.100.1", Some(61023))).unwrap()), [""; 0]);
    }
}

#[test]
fn where_flows_of_two_vms_fit_both_are_named_and_it_is_said_that_one_only_had_it() {
    let (atlas, cms) = two_tenants();
    let flows = [flow(&atlas, 41022, "14:03:22", None), flow(&cms, 41022, "14:03:22", None)];
    let mut zones = ["198.51.100.1:61022", "198.51.100.1:61023"]
        .map(|public| masqueraded("10.0.0.5:41022", public, "several", ("14:03:21", "14:03:25")));
    zones[1].zone = 2;
    let facts = vec![Fact::Instance(atlas), Fact::Instance(cms), told(&zones[0]), told(&zones[1])];
    let (_folder, ledger) = ledger(facts, &flows, true);
    for port in [Some(61022), Some(61023), None] {
        let answer = ledger.who(&question("14:03:23", "198.51.100.1", port)).unwrap();
        assert_eq!(names(&answer), ["vm-1", "vm-2"]);
        for candidate in &answer.candidates {
            assert!(candidate.notes.iter().any(|note| note.contains("which cannot be told")), "{:?}", candidate.notes);
        }
    }
    let answer = ledger.who(&question("14:03:23", "198.51.100.1", Some(61023))).unwrap();
    assert_eq!((answer.translations.len(), answer.translations[0].zone), (1, 2));
    let ips = ledger.ips(&ips("atlas")).unwrap();
    let public = ips.rows.iter().find(|row| row.kind == AddressKind::PostNat).unwrap();
    assert_eq!((public.ip, public.certain, public.used), (ip("198.51.100.1"), false, true));
}

fn ips(vo: &str) -> IpsQuestion {
    let range = TimeRange { from: at("14:00:00"), to: at("14:10:00") };
    IpsQuestion { vo: Vo::new(vo).unwrap(), range, pilot: None }
}

/// Records that carry the same public tuple: one VM's NAT, another VM's copy of the packets.
#[test]
fn a_record_of_another_vm_with_the_same_tuple_makes_neither_certain() {
    let (atlas, cms) = two_tenants();
    let flows = [&atlas, &cms].map(|vm| translated(flow(vm, 41022, "14:03:22", None), "198.51.100.1", 61022));
    let (_folder, ledger) = ledger(vec![Fact::Instance(atlas), Fact::Instance(cms)], &flows, false);
    let answer = ledger.who(&question("14:03:23", "198.51.100.1", Some(61022))).unwrap();
    assert_eq!(names(&answer), ["vm-1", "vm-2"]);
    assert!(answer.candidates.iter().all(|one| one.notes.iter().any(|note| note.contains("which cannot be told"))));
}

/// A guest that sends from many addresses through the host's translation hides no other VM behind them.
#[test]
fn however_many_addresses_stand_behind_a_public_one_each_is_looked_for() {
    let vm = instance("hv1", 1, Some("atlas"), "10.0.9.9");
    let flow = flow(&vm, 41022, "14:03:22", None);
    let mut facts = vec![Fact::Instance(vm)];
    let span = ("14:03:21", "14:03:25");
    facts.push(told(&masqueraded("10.0.9.9:41022", "198.51.100.1:61022", "late", span)));
    let stray = |n| masqueraded(&format!("10.0.0.{n}:9"), &format!("198.51.100.1:{n}"), "no-flow", span);
    facts.extend((1..200).map(|n| told(&stray(n))));
    let (_folder, ledger) = ledger(facts, &[flow], true);
    let answer = ledger.who(&question("14:03:23", "198.51.100.1", None)).unwrap();
    assert_eq!((names(&answer), answer.candidates[0].totals.flows), (vec!["vm-1"], 1));
}

/// libvirt's NAT network: the cloud wrote no address, a DHCP server gave it.
#[test]
fn a_translation_without_any_flow_leads_to_the_vm_that_was_given_the_address_by_dhcp() {
    let (mut vm, mut before) = two_tenants();
    for (vm, since, until) in [(&mut vm, "14:02:00", None), (&mut before, "14:00:00", Some(at("14:01:00")))] {
        vm.taps[0].expected.clear();
        vm.taps[0].learnt = vec![Learnt { ip: ip("10.0.0.5"), by: Basis::Dhcp, since: at(since), until }];
    }
    let lone = masqueraded("10.0.0.5:41022", "198.51.100.1:61022", "no-flow", ("14:03:00", "14:09:00"));
    let (_folder, ledger) = ledger(vec![Fact::Instance(vm), Fact::Instance(before), told(&lone)], &[], false);
    let answer = ledger.who(&question("14:05:00", "198.51.100.1", Some(61022))).unwrap();
    assert_eq!(names(&answer), ["vm-1"], "not the one whose lease was over");
}

#[test]
fn a_translation_without_any_flow_leads_to_the_vms_that_were_given_the_address() {
    let (atlas, cms) = two_tenants();
    let other = instance("hv1", 3, None, "10.0.0.7");
    let lone = masqueraded("10.0.0.5:41022", "198.51.100.1:61022", "no-flow", ("14:03:00", "14:09:00"));
    let stray = masqueraded("10.9.9.9:1", "198.51.100.1:61099", "no-flow", ("14:03:00", "14:09:00"));
    let facts = vec![
        Fact::Instance(atlas.clone()),
        Fact::Instance(cms),
        Fact::Instance(other.clone()),
        told(&lone),
        told(&stray),
    ];
    // The same tuple at another time, and at another host's tap, is none of it.
    let mut elsewhere = flow(&atlas, 41022, "14:03:22", None);
    elsewhere.host = host("hv2");
    let flows = [flow(&atlas, 41022, "14:01:00", None), elsewhere, flow(&other, 5, "14:03:22", None)];
    for seal in [false, true] {
        let (_folder, ledger) = ledger(facts.clone(), &flows, seal);
        // Told minutes after the moment that is asked about.
        let answer = ledger.who(&question("14:03:23", "198.51.100.1", Some(61022))).unwrap();
        assert_eq!(names(&answer), ["vm-1", "vm-2"]);
        let reason = &answer.candidates[0].attribution.reason;
        assert!(reason.contains("translated 10.0.0.5:41022 to 198.51.100.1:61022"), "{reason}");
        assert_eq!(answer.candidates[0].totals.flows, 0);
        let mut asked = question("14:03:23", "198.51.100.1", Some(61022));
        asked.instance = Some(atlas.id.clone());
        assert_eq!(names(&ledger.who(&asked).unwrap()), ["vm-1"]);
        asked.proto = Some(17);
        assert_eq!(names(&ledger.who(&asked).unwrap()), [""; 0]);
        // No VM at all: the translation itself is the answer.
        let answer = ledger.who(&question("14:03:23", "198.51.100.1", Some(61099))).unwrap();
        assert_eq!((names(&answer).len(), answer.translations_total), (0, 1));
        assert_eq!(answer.translations[0].vm.to_string(), "10.9.9.9:1");
        // Before it began, and long after it ended.
        assert_eq!(names(&ledger.who(&question("14:02:50", "198.51.100.1", Some(61022))).unwrap()), [""; 0]);
        assert_eq!(names(&ledger.who(&question("14:09:10", "198.51.100.1", Some(61022))).unwrap()), [""; 0]);
        let ips = ledger.ips(&ips("atlas")).unwrap();
        let public: Vec<_> = ips.rows.iter().filter(|row| row.kind == AddressKind::PostNat).collect();
        assert_eq!((public.len(), public[0].certain, public[0].flows), (1, false, 0));
    }
}

#[test]
fn a_caller_whose_other_end_is_translated_too_is_found_by_either_name_of_it() {
    let (vm, _) = two_tenants();
    // The VM calls 192.0.2.9, which is a virtual address of 203.0.113.80.
    let mut both = masqueraded("10.0.0.5:41022", "198.51.100.1:61022", "both-ends", ("14:03:00", "14:03:25"));
    both.reply.0 = end("203.0.113.80:8443");
    let record = translated(flow(&vm, 41022, "14:03:22", None), "198.51.100.1", 61022);
    let (_folder, ledger) = ledger(vec![Fact::Instance(vm), told(&both)], &[record], false);
    for (peer, found) in [("192.0.2.9", 1), ("203.0.113.80", 1), ("203.0.113.81", 0)] {
        let mut asked = question("14:03:23", "198.51.100.1", Some(61022));
        asked.peer = Some((ip(peer), None));
        assert_eq!(names(&ledger.who(&asked).unwrap()).len(), found, "{peer}");
    }
}

#[test]
fn a_told_translation_changes_nothing_for_a_question_about_something_else() {
    let (vm, _) = two_tenants();
    let one = masqueraded("10.0.0.5:41022", "198.51.100.1:61022", "late", ("14:03:00", "14:03:25"));
    let (_folder, ledger) =
        ledger(vec![Fact::Instance(vm.clone()), told(&one)], &[flow(&vm, 41022, "14:03:22", None)], false);
    let answer = ledger.who(&question("14:03:23", "10.0.0.5", Some(41022))).unwrap();
    assert_eq!((names(&answer), answer.translations.len()), (vec!["vm-1"], 0));
    assert_eq!(answer.candidates[0].flows[0].matched_on, MatchedOn::Address);
    assert_eq!(names(&ledger.who(&question("14:03:23", "198.51.100.2", None)).unwrap()), [""; 0]);
}

#[test]
fn coverage_says_whether_translation_was_followed() {
    let (vm, _) = two_tenants();
    let state = |from: &str, to: &str, state| {
        let mut coverage = coverage(&vm, from, to, state);
        (coverage.domain, coverage.tap) = (None, None);
        Fact::Coverage(coverage)
    };
    let lost = CoverageState::NatLost { count: None, place: "nat-events".to_owned() };
    let unseen = CoverageState::NatUnseen { why: "host: not permitted".to_owned() };
    let facts = vec![
        Fact::Instance(vm.clone()),
        Fact::Coverage(coverage(&vm, "14:00:00", "14:04:00", CoverageState::Ok)),
        state("14:00:00", "14:01:00", CoverageState::NatOk),
        state("14:01:00", "14:02:00", lost.clone()),
        state("14:02:00", "14:03:00", unseen.clone()),
    ];
    let (_folder, ledger) = ledger(facts, &[], true);
    let nat = |clock| {
        let coverage = ledger.who(&question(clock, "198.51.100.1", None)).unwrap().coverage;
        assert!(coverage.complete, "every packet was seen");
        let [point] = &coverage.nat[..] else { panic!("{coverage:?}") };
        let states: Vec<_> = point.statements.iter().map(|statement| statement.state.clone()).collect();
        (point.complete, states, point.gaps.len())
    };
    assert_eq!(nat("14:00:30"), (true, vec![CoverageState::NatOk], 0));
    assert_eq!(nat("14:01:30"), (false, vec![lost], 0));
    assert_eq!(nat("14:02:30"), (false, vec![unseen], 0));
    assert_eq!(nat("14:03:30"), (false, vec![], 1), "nothing was said");
}
