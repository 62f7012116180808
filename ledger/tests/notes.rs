//! What few flows have, in the answers: folded conversations, tunnels, ICMP errors, SciTags.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::time::Duration;

use fixture::*;
use vestigo_ledger::{
    Ledger, Writer, WriterOptions,
    questions::{
        ips::{AddressKind, IpsQuestion},
        parts::MatchedOn,
        who::{Candidate, WhoAnswer, WhoQuestion},
    },
};
use vestigo_model::{Fact, Flow, Folded, Instance, SciTag, SciTagSource, TimeRange, Tunnel, Tuple, Vo};

/// Asked live and sealed, which must say the same.
fn ask(vm: &Instance, flows: &[Flow], question: &WhoQuestion) -> WhoAnswer {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    writer.append(&[record(at("14:00:00"), Fact::Instance(vm.clone()))], flows).unwrap();
    let who = || Ledger::open_folders(&[root.path().to_owned()]).unwrap().who(question).unwrap();
    let live = who();
    writer.seal(at("14:05:00")).unwrap().expect("a segment");
    assert_eq!(live, who());
    live
}

fn question(port: Option<u16>) -> WhoQuestion {
    WhoQuestion {
        range: TimeRange::around(at("14:03:22"), Duration::from_secs(2)),
        ip: ip("10.0.0.5"),
        port,
        peer: None,
        proto: None,
        instance: None,
    }
}

fn vm() -> Instance {
    instance("hv1", 1, Some("atlas"), "10.0.0.5")
}

fn folded(first: u16, last_port: u16, flows: u64) -> Flow {
    let mut flow = flow(&vm(), first, "14:03:22", None);
    (flow.resp_ip, flow.resp_port) = (ip("0.0.0.0"), 0);
    flow.notes.folded = Some(Folded { flows, last_port });
    flow
}

fn only(answer: WhoAnswer) -> Candidate {
    assert_eq!(answer.candidates.len(), 1, "{answer:#?}");
    answer.candidates.into_iter().next().unwrap()
}

#[test]
fn a_folded_record_matches_its_range_of_ports_and_whatever_peer() {
    let flows = [folded(2048, 3071, 900), folded(4096, 5119, 100)];
    let mut asked = question(Some(2500));
    asked.peer = Some((ip("192.0.2.77"), Some(22)));
    let candidate = only(ask(&vm(), &flows, &asked));
    assert_eq!((candidate.flows.len(), candidate.flows[0].matched_on), (1, MatchedOn::Folded));
    assert_eq!(candidate.totals.flows, 0, "none that is told apart");
    let sum = candidate.folded.unwrap();
    assert_eq!((sum.conversations, sum.totals.flows, sum.totals.packets_out), (900, 1, 10));
    let note = &candidate.notes[0];
    assert!(
        note.contains("up to 900 were folded into 1 record") && note.contains("192.0.2.77 may or may not"),
        "{note}"
    );
    let outside = ask(&vm(), &flows, &question(Some(3072)));
    assert!(outside.candidates.iter().all(|candidate| candidate.flows.is_empty()), "only given the address");
    assert_eq!(only(ask(&vm(), &flows, &question(None))).folded.unwrap().conversations, 1000);
}

#[test]
fn what_certainly_matches_comes_before_what_may() {
    let other = flow(&vm(), 2500, "14:03:23", None);
    let candidate = only(ask(&vm(), &[folded(2048, 3071, 900), other], &question(Some(2500))));
    let on: Vec<_> = candidate.flows.iter().map(|flow| flow.matched_on).collect();
    assert_eq!(on, [MatchedOn::Address, MatchedOn::Folded]);
    assert_eq!((candidate.totals.flows, candidate.folded.unwrap().totals.flows), (1, 1));
}

#[test]
fn nobody_is_the_peer_of_folded_conversations() {
    let mut asked = question(None);
    asked.ip = ip("0.0.0.0");
    let answer = ask(&vm(), &[folded(2048, 3071, 900)], &asked);
    assert!(answer.candidates.is_empty() && answer.seen_as_peer.is_empty());
}

/// A VM that sends from more addresses than the host keeps apart: any address may be in its sum, and every answer says so.
#[test]
fn a_flood_from_everywhere_is_told_whatever_address_is_asked_for() {
    let mut flood = folded(0, 0, 70_000);
    (flood.orig_ip, flood.proto) = (ip("0.0.0.0"), 255);
    let mut asked = question(Some(53));
    (asked.ip, asked.proto) = (ip("198.51.100.200"), Some(17));
    let answer = ask(&vm(), std::slice::from_ref(&flood), &asked);
    assert!(answer.candidates.is_empty(), "which is not to say that it was");
    let [one] = answer.flooded.as_slice() else { panic!("{:#?}", answer.flooded) };
    assert_eq!((one.host_facts.instance.as_str(), one.conversations, one.totals.packets_out), ("vm-1", 70_000, 10));
    asked.range = TimeRange::around(at("14:04:22"), Duration::from_secs(2));
    assert!(ask(&vm(), &[flood], &asked).flooded.is_empty(), "at another time");
}

#[test]
fn packets_inside_a_tunnel_are_shown_and_in_no_sum() {
    let outer = flow(&vm(), 50_000, "14:03:22", None);
    let mut inner = flow(&vm(), 50_000, "14:03:22", None);
    inner.notes.tunnel = Some(Tunnel::Vxlan(42));
    let candidate = only(ask(&vm(), &[outer, inner.clone()], &question(Some(50_000))));
    assert_eq!((candidate.flows.len(), candidate.totals.flows, candidate.totals.bytes_out), (2, 1, 1000));
    assert_eq!(candidate.inside_tunnels, 1);
    assert!(candidate.notes[0].contains("inside a tunnel"), "{:?}", candidate.notes);
    let alone = only(ask(&vm(), &[inner], &question(Some(50_000))));
    assert_eq!((alone.flows[0].tunnel, alone.totals.flows), (Some(Tunnel::Vxlan(42)), 0));
}

#[test]
fn an_icmp_error_says_what_it_speaks_of_and_its_flow_says_what_became_of_it() {
    let mut refused = flow(&vm(), 41_022, "14:03:22", None);
    (refused.proto, refused.notes.icmp_error) = (17, Some(0x0303));
    let candidate = only(ask(&vm(), &[refused], &question(Some(41_022))));
    let error = candidate.flows[0].icmp_error.as_ref().unwrap();
    assert_eq!((error.kind, error.code, error.words.as_str()), (3, 3, "refused: port unreachable"));

    let mut error = flow(&vm(), 0x0303, "14:03:22", None);
    (error.proto, error.direction) = (1, vestigo_model::Direction::Incoming);
    (error.orig_ip, error.resp_ip) = (error.resp_ip, error.orig_ip);
    (error.orig_port, error.resp_port) = (443, 0x0303);
    let (vm_ip, peer) = (ip("10.0.0.5"), ip("192.0.2.9"));
    error.notes.speaks_of = Some(Tuple { src_ip: vm_ip, src_port: 41_022, dst_ip: peer, dst_port: 443, proto: 17 });
    let candidate = only(ask(&vm(), std::slice::from_ref(&error), &question(None)));
    let of = candidate.flows[0].speaks_of.unwrap();
    assert_eq!(
        (of.proto, of.source.to_string(), of.destination.to_string()),
        (17, "10.0.0.5:41022".into(), "192.0.2.9:443".into())
    );
    let port = ask(&vm(), &[error], &question(Some(0x0303)));
    assert!(only(port).flows.is_empty(), "type and code are no port");
}

#[test]
fn what_the_traffic_says_of_its_vo_is_a_claim_and_may_contradict() {
    let tagged = |port, experiment| {
        let mut flow = flow(&vm(), port, "14:03:22", None);
        flow.notes.scitag = Some(SciTag { experiment, activity: 9, by: SciTagSource::FlowLabel });
        flow
    };
    let flows = [tagged(1, 2), tagged(2, 3), tagged(3, 3), tagged(3, 3)];
    let candidate = only(ask(&vm(), &flows, &question(None)));
    let claims: Vec<_> = candidate.scitags.iter().map(|c| (c.experiment, c.name.as_deref(), c.conversations)).collect();
    assert_eq!(claims, [(3, Some("cms"), 2), (2, Some("atlas"), 1)]);
    let contradictions: Vec<_> = candidate.notes.iter().filter(|note| note.starts_with("contradiction")).collect();
    assert!(contradictions.len() == 1 && contradictions[0].contains("cms"), "{:?}", candidate.notes);
}

#[test]
fn addresses_inside_tunnels_are_of_a_kind_of_their_own() {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let mut inner = flow(&vm(), 5, "14:03:22", None);
    (inner.orig_ip, inner.notes.tunnel) = (ip("172.16.0.1"), Some(Tunnel::Geneve(7)));
    writer.append(&[record(at("14:00:00"), Fact::Instance(vm()))], &[inner, folded(1024, 2047, 500)]).unwrap();
    let range = TimeRange::new(at("14:00:00"), at("15:00:00")).unwrap();
    let asked = IpsQuestion { vo: Vo::new("atlas").unwrap(), range, pilot: None };
    let rows = Ledger::open_folders(&[root.path().to_owned()]).unwrap().ips(&asked).unwrap().rows;
    let rows: Vec<_> =
        rows.iter().map(|row| (row.ip.to_string(), row.kind, row.expected, row.flows, row.folded)).collect();
    let own = ("10.0.0.5".to_owned(), AddressKind::Own, true, 1, 500);
    assert_eq!(rows, [own, ("172.16.0.1".to_owned(), AddressKind::InTunnel, false, 1, 0)]);
}
