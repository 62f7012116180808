//! A conversation of two VMs, seen at both their taps: shown once, and never merged with what only looks the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::time::Duration;

use fixture::*;
use tempfile::TempDir;
use vestigo_ledger::{
    Ledger, Writer, WriterOptions,
    questions::{
        elsewhere::Sameness,
        who::{Candidate, WhoAnswer, WhoQuestion},
    },
};
use vestigo_model::{Direction, Expected, Fact, Flow, Instance, Label};

const OURS: &str = "10.0.0.5";
const THEIRS: &str = "10.0.0.6";

fn on(host_name: &str, number: u8, vo: &str, address: &str, network: Option<&str>) -> Instance {
    let mut vm = instance(host_name, number, Some(vo), address);
    vm.taps[0].network = network.map(|name| Label::new(name).unwrap());
    vm
}

/// A call from one VM to a port of the other, at the caller's tap and at the other's.
fn call(from: &Instance, to: &Instance) -> [Flow; 2] {
    let address = |vm: &Instance| vm.taps[0].expected[0];
    let mut here = flow(from, 41_022, "14:03:22", None);
    (here.resp_ip, here.resp_port) = (address(to), 80);
    let mut there = flow(to, 80, "14:03:22", None);
    there.direction = Direction::Incoming;
    (there.orig_ip, there.orig_port, there.resp_ip, there.resp_port) = (address(from), 41_022, address(to), 80);
    [here, there]
}

struct Ledgers {
    _folder: TempDir,
    ledger: Ledger,
}

/// One ledger a host.
fn ledgers(vms: &[&Instance], flows: &[Flow]) -> Ledgers {
    let folder = tempfile::tempdir().unwrap();
    let mut roots = Vec::new();
    for name in ["hv1", "hv2"] {
        let root = folder.path().join(name);
        let options =
            WriterOptions { host: host(name), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
        let (mut writer, _) = Writer::open(&root, options).unwrap();
        let facts = vms.iter().filter(|vm| vm.host.as_str() == name);
        let facts: Vec<_> = facts.map(|vm| record(at("14:00:00"), Fact::Instance((*vm).clone()))).collect();
        let flows: Vec<_> = flows.iter().filter(|flow| flow.host.as_str() == name).cloned().collect();
        writer.append(&facts, &flows).unwrap();
        roots.push(root);
    }
    Ledgers { _folder: folder, ledger: Ledger::open_folders(&roots).unwrap() }
}

fn who(ledgers: &Ledgers, address: &str, port: Option<u16>) -> WhoAnswer {
    let range = vestigo_model::TimeRange::around(at("14:03:22"), Duration::from_secs(2));
    let asked = WhoQuestion { range, ip: ip(address), port, peer: None, proto: None, instance: None };
    ledgers.ledger.who(&asked).unwrap()
}

fn only(answer: WhoAnswer) -> Candidate {
    assert_eq!(answer.candidates.len(), 1, "{answer:#?}");
    answer.candidates.into_iter().next().unwrap()
}

#[test]
fn two_vms_on_one_bridge_are_one_conversation_shown_once() {
    let (a, b) = (on("hv1", 1, "atlas", OURS, Some("br0")), on("hv1", 2, "cms", THEIRS, Some("br0")));
    let ledgers = ledgers(&[&a, &b], &call(&a, &b));
    let candidate = only(who(&ledgers, OURS, Some(41_022)));
    assert_eq!((candidate.flows.len(), candidate.totals.flows, candidate.totals.bytes_out), (1, 1, 1000));
    let [seen] = candidate.also_seen.as_slice() else { panic!("{:#?}", candidate.also_seen) };
    assert_eq!((seen.sameness, seen.tap.as_str(), seen.host_facts.instance.as_str()), (Sameness::Same, "tap2", "vm-2"));
    assert_eq!(seen.host_facts.vo.as_ref().unwrap().as_str(), "cms");
    assert_eq!(seen.why, "both taps are on network br0 of the host; packets and bytes agree both ways");
    assert_eq!((seen.here, seen.there), (candidate.totals, candidate.totals), "out and in are the candidate's in both");
    assert!(candidate.peers_given.is_empty(), "named already");
    // Asked the other way round, the caller is named.
    let candidate = only(who(&ledgers, THEIRS, Some(80)));
    assert_eq!(candidate.also_seen[0].host_facts.instance.as_str(), "vm-1");
    assert_eq!((candidate.totals.bytes_out, candidate.also_seen[0].there.bytes_out), (9000, 9000));
}

#[test]
fn a_loss_between_the_taps_is_told() {
    let (a, b) = (on("hv1", 1, "atlas", OURS, Some("br0")), on("hv1", 2, "cms", THEIRS, Some("br0")));
    let [here, mut there] = call(&a, &b);
    (there.orig_packets, there.orig_bytes) = (9, 900);
    let candidate = only(who(&ledgers(&[&a, &b], &[here, there]), OURS, Some(41_022)));
    let seen = &candidate.also_seen[0];
    assert_eq!((seen.sameness, candidate.totals.packets_out), (Sameness::Same, 10));
    assert!(seen.why.contains("out 10 packets, 1000 bytes here but 9 packets, 900 bytes there"), "{}", seen.why);
    assert!(!seen.why.contains("in 8"), "that way nothing is missing: {}", seen.why);
}

/// vm-1 calls a machine of its own network; vm-2, of another tenant, is called with the very same addresses and ports.
#[test]
fn two_tenants_with_the_same_private_addresses_are_never_one() {
    let (a, b) = (on("hv1", 1, "atlas", OURS, Some("br-a")), on("hv1", 2, "cms", THEIRS, Some("br-b")));
    let [here, there] = call(&a, &b);
    let mut other = there.clone();
    other.orig_bytes += 1;
    let candidate = only(who(&ledgers(&[&a, &b], &[here.clone(), other]), OURS, Some(41_022)));
    assert!(candidate.also_seen.is_empty(), "{:#?}", candidate.also_seen);
    assert!(candidate.peers_given.is_empty(), "in another network the address is somebody else");
    // With the same counters the two bridges may be joined by a router or a pair of virtual cables: said, not merged.
    let candidate = only(who(&ledgers(&[&a, &b], &[here.clone(), there.clone()]), OURS, Some(41_022)));
    assert_eq!((candidate.also_seen[0].sameness, candidate.totals.flows), (Sameness::MayBe, 1));
    assert!(candidate.also_seen[0].why.contains("different networks, br-a and br-b"));
    // Nothing is known of the networks, or they are on different hosts.
    for (host_name, network) in [("hv1", None), ("hv2", Some("br-a"))] {
        let b = on(host_name, 2, "cms", THEIRS, network);
        let [_, there] = call(&a, &b);
        let candidate = only(who(&ledgers(&[&a, &b], &[here.clone(), there]), OURS, Some(41_022)));
        assert_eq!(candidate.also_seen[0].sameness, Sameness::MayBe, "{host_name}");
        assert!(candidate.also_seen[0].why.contains("nothing shows"), "{}", candidate.also_seen[0].why);
    }
}

#[test]
fn another_time_another_port_and_another_vlan_are_another_conversation() {
    let (a, b) = (on("hv1", 1, "atlas", OURS, Some("br0")), on("hv1", 2, "cms", THEIRS, Some("br0")));
    let [here, there] = call(&a, &b);
    let changed = |change: &dyn Fn(&mut Flow)| {
        let mut other = there.clone();
        change(&mut other);
        let candidate = only(who(&ledgers(&[&a, &b], &[here.clone(), other]), OURS, Some(41_022)));
        candidate.also_seen.len()
    };
    assert_eq!(changed(&|_| {}), 1);
    assert_eq!(changed(&|flow| flow.orig_port = 41_023), 0);
    assert_eq!(changed(&|flow| flow.resp_port = 81), 0);
    assert_eq!(changed(&|flow| flow.proto = 17), 0);
    assert_eq!(changed(&|flow| flow.vlan = Some(7)), 0);
    assert_eq!(changed(&|flow| (flow.first, flow.last) = (at("14:03:26"), at("14:03:27"))), 0);
}

#[test]
fn public_addresses_that_the_cloud_gave_are_the_same_everywhere() {
    let (a, b) = (on("hv1", 1, "atlas", "203.0.113.5", None), on("hv2", 2, "cms", "203.0.113.6", None));
    let candidate = only(who(&ledgers(&[&a, &b], &call(&a, &b)), "203.0.113.5", Some(41_022)));
    assert_eq!(candidate.also_seen[0].sameness, Sameness::Same);
    // Somebody sends with an address that another VM was given: no address proves anything then.
    let c = on("hv1", 3, "lhcb", "203.0.113.7", None);
    let [mut here, there] = call(&a, &b);
    (here.domain, here.instance, here.tap, here.src_expected) =
        (c.domain, c.id.clone(), c.taps[0].name.clone(), Expected::No);
    let candidate = only(who(&ledgers(&[&a, &b, &c], &[here, there]), "203.0.113.6", Some(80)));
    let seen = &candidate.also_seen[0];
    assert_eq!((seen.host_facts.instance.as_str(), seen.sameness), ("vm-3", Sameness::MayBe), "and yet it is told");
    assert_eq!(candidate.peers_given[0].instance.as_str(), "vm-1", "whose address it is");
}

#[test]
fn the_same_through_translation_is_found_by_either_name() {
    let (a, b) = (on("hv1", 1, "atlas", OURS, None), on("hv2", 2, "cms", THEIRS, None));
    let [here, there] = call(&a, &b);
    let (mut here, mut there) = (translated(here, "203.0.113.1", 61_022), translated(there, "203.0.113.2", 80));
    here.resp_ip = ip("203.0.113.2");
    (there.orig_ip, there.orig_port) = (ip("203.0.113.1"), 61_022);
    let ledgers = ledgers(&[&a, &b], &[here, there]);
    for (address, port) in [(OURS, 41_022), ("203.0.113.1", 61_022), (THEIRS, 80), ("203.0.113.2", 80)] {
        let candidate = only(who(&ledgers, address, Some(port)));
        let [seen] = candidate.also_seen.as_slice() else { panic!("{address}: {:#?}", candidate.also_seen) };
        assert_eq!(seen.sameness, Sameness::Same, "{address}: {}", seen.why);
        assert_ne!(seen.host_facts.instance, candidate.host_facts.instance, "{address}");
    }
}

/// Both VMs stand behind one public address, so that the other's record is found under both their names.
#[test]
fn what_another_tap_counted_is_counted_once() {
    let (a, b) = (on("hv1", 1, "atlas", OURS, Some("br0")), on("hv1", 2, "cms", THEIRS, Some("br0")));
    let [here, there] = call(&a, &b);
    let here = translated(here, "203.0.113.1", 61_022);
    let other = translated(flow(&b, 41_023, "14:03:22", None), "203.0.113.1", 61_023);
    let answer = who(&ledgers(&[&a, &b], &[here, there.clone(), other]), "203.0.113.1", None);
    let candidate = answer.candidates.iter().find(|one| one.host_facts.instance.as_str() == "vm-1").unwrap();
    let [seen] = candidate.also_seen.as_slice() else { panic!("{:#?}", candidate.also_seen) };
    assert_eq!((seen.there.flows, seen.there.packets_out), (1, there.orig_packets), "{}", seen.why);
}

#[test]
fn a_frame_that_a_bridge_hands_to_everybody_makes_nobody_a_peer() {
    let (a, b) = (on("hv1", 1, "atlas", OURS, Some("br0")), on("hv1", 2, "cms", THEIRS, Some("br0")));
    let c = on("hv1", 3, "lhcb", "10.0.0.7", Some("br0"));
    let [here, mut flooded] = call(&a, &b);
    (flooded.domain, flooded.instance, flooded.tap) = (c.domain, c.id.clone(), c.taps[0].name.clone());
    (flooded.resp_packets, flooded.resp_bytes) = (0, 0);
    let candidate = only(who(&ledgers(&[&a, &b, &c], &[here, flooded]), OURS, Some(41_022)));
    assert!(candidate.also_seen.is_empty(), "{:#?}", candidate.also_seen);
    let given: Vec<_> = candidate.peers_given.iter().map(|facts| facts.instance.as_str()).collect();
    assert_eq!(given, ["vm-2"], "whose tap shows nothing of it");
}
