//! The questions over a mixed ledger: two hosts, sealed and live, the same private address in two tenants, a late lease, an
//! unmapped VO, a coverage gap.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::{path::PathBuf, time::Duration};

use fixture::*;
use tempfile::TempDir;
use vestigo_ledger::{
    Ledger, LedgerError, Writer, WriterOptions,
    questions::{
        TOLERANCE,
        ips::AddressKind,
        ips::IpsQuestion,
        lease,
        parts::MatchedOn,
        pilots::PilotsQuestion,
        who::{WhoAnswer, WhoQuestion},
    },
};
use vestigo_model::{
    CoverageState, Direction, Exit, Expected, Fact, Initiator, InstanceId, Label, Lease, PilotId, Quality, TimeRange,
    Vo,
};

struct Site {
    _folder: TempDir,
    roots: Vec<PathBuf>,
    writers: Vec<Writer>,
}

impl Site {
    fn ledger(&self) -> Ledger {
        Ledger::open_folders(&self.roots).unwrap()
    }
}

/// hv1: vm-1 (atlas, 10.0.0.5, sealed) and vm-3 (unmapped, 10.0.0.7, live). hv2: vm-2 (cms, 10.0.0.5, live).
fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    let roots: Vec<PathBuf> = ["hv1", "hv2"].iter().map(|name| folder.path().join(name)).collect();
    let mut writers: Vec<Writer> = Vec::new();
    for (root, name) in roots.iter().zip(["hv1", "hv2"]) {
        let options =
            WriterOptions { host: host(name), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
        writers.push(Writer::open(root, options).unwrap().0);
    }
    first_host(&mut writers[0]);
    second_host(&mut writers[1]);
    Site { _folder: folder, roots, writers }
}

fn first_host(writer: &mut Writer) {
    let atlas = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let stray = instance("hv1", 3, None, "10.0.0.7");
    let facts = [
        record(at("14:00:00"), Fact::Instance(atlas.clone())),
        record(at("14:00:01"), Fact::Instance(stray.clone())),
        record(at("14:01:00"), Fact::Payload(payload(&atlas, 1, "alice", "atlas", (41000, 41999), "14:01:00"))),
        record(at("14:01:01"), Fact::Payload(payload(&atlas, 2, "bob", "atlas", (42000, 42999), "14:01:01"))),
        record(at("14:05:00"), Fact::Coverage(coverage(&atlas, "14:00:00", "14:05:00", CoverageState::Ok))),
        record(at("14:02:00"), Fact::Coverage(coverage(&stray, "14:00:00", "14:02:00", CoverageState::Nodata))),
    ];
    let world = |port, clock, payload, seen| translated(flow(&atlas, port, clock, payload), "198.51.100.1", seen);
    let flows = [world(41022, "14:03:22", Some(1), 61022), world(42022, "14:03:22", Some(2), 62022)];
    writer.append(&facts, &flows).unwrap();
    writer.seal(at("14:05:00")).unwrap().expect("a segment");
    // Live: a payload whose lease arrives after its flow, of a VM without a VO, behind an agent that ran alone.
    let mut late = payload(&stray, 3, "carol", "lhcb", (43000, 43999), "14:06:30");
    late.claimed = at("14:06:00");
    let lost = CoverageState::Lost { count: Some(7), place: "ring".to_owned() };
    writer.append(&[], &[flow(&stray, 43001, "14:06:10", None), flow(&stray, 50000, "14:06:11", None)]).unwrap();
    let facts = [
        record(at("14:06:30"), Fact::Payload(late)),
        record(at("14:07:00"), Fact::Coverage(coverage(&stray, "14:06:00", "14:07:00", lost))),
        record(at("14:07:00"), Fact::Coverage(coverage(&atlas, "14:06:00", "14:07:00", CoverageState::Ok))),
    ];
    writer.append(&facts, &[]).unwrap();
}

fn second_host(writer: &mut Writer) {
    let cms = instance("hv2", 2, Some("cms"), "10.0.0.5");
    let liar = payload(&cms, 1, "dave", "atlas", (41000, 41999), "14:01:00");
    let facts = [
        record(at("14:00:00"), Fact::Instance(cms.clone())),
        record(at("14:01:00"), Fact::Payload(liar)),
        record(at("14:05:00"), Fact::Coverage(coverage(&cms, "14:00:00", "14:05:00", CoverageState::Ok))),
    ];
    writer.append(&facts, &[flow(&cms, 41022, "14:03:22", Some(1))]).unwrap();
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

fn users(answer: &WhoAnswer) -> Vec<&str> {
    let claims = answer.candidates.iter().filter_map(|c| c.guest_claims.as_ref());
    claims.map(|claims| claims.user.subject.as_str()).collect()
}

#[test]
fn one_private_address_of_two_tenants_gives_two_candidates_and_one_when_the_instance_is_named() {
    let site = site();
    let mut asked = question("14:03:22", "10.0.0.5", Some(41022));
    let answer = site.ledger().who(&asked).unwrap();
    assert_eq!(users(&answer), ["alice", "dave"]);
    let vos: Vec<_> = answer.candidates.iter().map(|c| c.host_facts.vo.as_ref().unwrap().as_str()).collect();
    assert_eq!(vos, ["atlas", "cms"]);
    assert!(answer.candidates.iter().all(|c| c.attribution.quality == Quality::Lease && c.totals.flows == 1));
    assert_eq!(answer.candidates[0].notes, Vec::<String>::new());
    assert!(answer.candidates[1].notes[0].contains("claims VO atlas"), "{:?}", answer.candidates[1].notes);
    asked.instance = Some(InstanceId::new("vm-2").unwrap());
    assert_eq!(users(&site.ledger().who(&asked).unwrap()), ["dave"]);
}

#[test]
fn without_a_port_every_payload_of_the_address_is_a_candidate_and_mapped_addresses_are_the_same() {
    let site = site();
    let answer = site.ledger().who(&question("14:03:22", "::ffff:10.0.0.5", None)).unwrap();
    assert_eq!(users(&answer), ["alice", "bob", "dave"]);
    let mut asked = question("14:03:22", "10.0.0.5", None);
    asked.peer = Some((ip("192.0.2.9"), Some(80)));
    assert_eq!(site.ledger().who(&asked).unwrap().candidates.iter().filter(|c| c.totals.flows > 0).count(), 0);
    asked.peer = Some((ip("192.0.2.9"), Some(443)));
    asked.proto = Some(17);
    assert_eq!(users(&site.ledger().who(&asked).unwrap()), Vec::<&str>::new());
}

#[test]
fn the_public_side_of_a_translation_answers_like_the_private_one() {
    let answer = site().ledger().who(&question("14:03:23", "198.51.100.1", Some(62022))).unwrap();
    assert_eq!(users(&answer), ["bob"]);
    assert_eq!(answer.candidates[0].flows[0].matched_on, MatchedOn::PostNat);
    assert_eq!(answer.candidates[0].flows[0].vm.port, 42022);
}

#[test]
fn a_late_lease_is_no_certainty_and_says_so() {
    let site = site();
    let answer = site.ledger().who(&question("14:06:10", "10.0.0.7", Some(43001))).unwrap();
    assert_eq!(users(&answer), ["carol"]);
    let candidate = &answer.candidates[0];
    assert_eq!(candidate.attribution.quality, Quality::ClaimedLate);
    for words in ["not certain", "ports 43000-43999 at 2026-11-22T14:06:30Z", "after the flow", "2 s", "no-lease-then"]
    {
        assert!(candidate.attribution.reason.contains(words), "{words}: {}", candidate.attribution.reason);
    }
    assert!(candidate.host_facts.vo.is_none());
    assert!(candidate.notes[0].contains("mapped to no VO"), "{:?}", candidate.notes);
    // The other flow of the VM is in no lease: only the VM is certain, and the payload that ran is named as no more.
    let answer = site.ledger().who(&question("14:06:11", "10.0.0.7", Some(50000))).unwrap();
    let candidate = &answer.candidates[0];
    assert_eq!((candidate.attribution.quality, candidate.guest_claims.is_none()), (Quality::Instance, true));
    assert_eq!((candidate.ran_then.len(), candidate.said_later.len()), (0, 1), "said after the flow");
}

#[test]
fn coverage_names_losses_and_gaps() {
    let site = site();
    let answer = site.ledger().who(&question("14:06:10", "10.0.0.7", Some(43001))).unwrap();
    assert!(!answer.coverage.complete);
    assert_eq!((answer.coverage.points, answer.coverage.complete_points), (3, 1));
    let of = |name: &str| answer.coverage.details.iter().find(|point| point.instance.as_str() == name);
    let stray = of("vm-3").unwrap();
    assert!(matches!(stray.statements[0].state, CoverageState::Lost { count: Some(7), .. }));
    assert_eq!(of("vm-2").unwrap().gaps, [answer.coverage.window], "hv2 has said nothing about this window yet");
    assert!(of("vm-1").is_none(), "all is well there, and the answer does not name it");
    let mut wide = question("14:03:00", "10.0.0.7", None);
    wide.range = TimeRange::new(at("14:00:00"), at("14:07:00")).unwrap();
    let answer = site.ledger().who(&wide).unwrap();
    let stray = answer.coverage.details.iter().find(|point| point.instance.as_str() == "vm-3").unwrap();
    assert_eq!(stray.gaps, [TimeRange::new(at("14:02:00"), at("14:06:00")).unwrap()]);
    let full = site.ledger().who(&question("14:01:30", "10.0.0.5", None)).unwrap();
    assert!(full.coverage.complete);
    assert_eq!(full.coverage.ledger.unwrap().to, at("14:07:00"));
}

#[test]
fn an_address_without_a_flow_a_peer_and_a_stranger() {
    let site = site();
    let given = site.ledger().who(&question("14:01:30", "10.0.0.7", None)).unwrap();
    assert_eq!((given.candidates.len(), given.candidates[0].flows.len()), (1, 0));
    assert_eq!(given.candidates[0].attribution.quality, Quality::Instance);
    let also = site.ledger().who(&question("14:03:22", "10.0.0.5", Some(42022))).unwrap();
    assert_eq!(users(&also), ["bob"]);
    assert_eq!(also.also_given.len(), 1, "vm-2 was given the address too, but used no such port");
    let peer = site.ledger().who(&question("14:03:22", "192.0.2.9", Some(443))).unwrap();
    assert_eq!((peer.candidates.len(), peer.seen_as_peer.len()), (0, 2));
    assert_eq!(peer.seen_as_peer[0].flows, 2);
    let nobody = site.ledger().who(&question("14:03:22", "203.0.113.1", None)).unwrap();
    assert!(nobody.candidates.is_empty() && nobody.seen_as_peer.is_empty() && nobody.coverage.points == 3);
}

#[test]
fn a_spoofing_vm_is_the_candidate_and_the_owner_is_named_apart() {
    let mut site = site();
    let stray = instance("hv1", 3, None, "10.0.0.7");
    let mut spoofed = flow(&stray, 1234, "14:08:00", None);
    spoofed.orig_ip = ip("10.0.0.5");
    spoofed.src_expected = Expected::No;
    site.writers[0].append(&[], &[spoofed]).unwrap();
    let answer = site.ledger().who(&question("14:08:00", "10.0.0.5", Some(1234))).unwrap();
    assert_eq!(answer.candidates.len(), 1);
    assert_eq!(answer.candidates[0].host_facts.instance.as_str(), "vm-3");
    assert!(answer.candidates[0].notes.iter().any(|note| note.contains("had not given it")));
    assert_eq!(answer.also_given.len(), 2);
}

#[test]
fn ips_and_pilots_give_the_other_directions() {
    let site = site();
    let range = TimeRange::new(at("14:00:00"), at("15:00:00")).unwrap();
    let mut asked = IpsQuestion { vo: Vo::new("atlas").unwrap(), range, pilot: None };
    let answer = site.ledger().ips(&asked).unwrap();
    let rows: Vec<_> =
        answer.rows.iter().map(|r| (r.ip.to_string(), r.kind, r.expected, r.used, r.flows, r.bytes)).collect();
    assert_eq!(
        rows,
        [
            ("10.0.0.5".to_owned(), AddressKind::Own, true, true, 2, 20_000),
            ("198.51.100.1".to_owned(), AddressKind::PostNat, false, true, 2, 20_000),
        ]
    );
    asked.pilot = Some(PilotId::new("pilot-atlas-1").unwrap());
    assert_eq!(site.ledger().ips(&asked).unwrap().rows.len(), 2);
    asked.pilot = Some(PilotId::new("pilot-cms-9").unwrap());
    assert_eq!(site.ledger().ips(&asked).unwrap().rows.len(), 0);

    let mut asked = PilotsQuestion { subject: Label::new("dave").unwrap(), issuer: None, range: None };
    let answer = site.ledger().pilots(&asked).unwrap();
    assert_eq!(answer.rows.len(), 1);
    let row = &answer.rows[0];
    assert_eq!((row.vo.as_ref().unwrap().as_str(), row.instance.as_ref().unwrap().as_str()), ("cms", "vm-2"));
    assert_eq!((row.payloads.len(), row.notes.len()), (1, 1));
    asked.issuer = Some(Label::new("https://other.example").unwrap());
    assert_eq!(site.ledger().pilots(&asked).unwrap().rows.len(), 0);
}

#[test]
fn two_holders_of_a_lease_are_never_chosen_between_and_unanswered_packets_belong_to_nobody() {
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let one = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    let two = payload(&vm, 2, "bob", "atlas", (41000, 41999), "14:01:01");
    let asked = flow(&vm, 41022, "14:03:00", None);
    let both = lease::attribute(&asked, &[one.clone(), two], TOLERANCE);
    assert_eq!((both.quality, both.payload), (Quality::Instance, None));
    assert!(both.reason.contains(&uid(1).to_string()) && both.reason.contains(&uid(2).to_string()));
    // A neighbour VM's payload with the same uid and block has no say.
    let other = payload(&instance("hv2", 2, None, "10.0.0.5"), 9, "mallory", "x", (41000, 41999), "14:01:00");
    assert_eq!(lease::attribute(&asked, &[one.clone(), other], TOLERANCE).payload, Some(uid(1)));
    // A scan of a leased port: begun elsewhere, or never answered.
    let mut scan = asked.clone();
    (scan.orig_ip, scan.resp_ip, scan.orig_port, scan.resp_port) = (asked.resp_ip, asked.orig_ip, 443, 41022);
    scan.direction = Direction::Incoming;
    assert_eq!(lease::attribute(&scan, std::slice::from_ref(&one), TOLERANCE).payload, None);
    scan.initiator = Initiator::Inferred;
    assert_eq!(lease::attribute(&scan, std::slice::from_ref(&one), TOLERANCE).payload, Some(uid(1)));
    scan.resp_packets = 0;
    assert_eq!(lease::attribute(&scan, std::slice::from_ref(&one), TOLERANCE).payload, None);
    // An IPv6 address of its own, whoever began.
    let mut six = one;
    six.claim.leases = vec![Lease::Address("2001:db8::7".parse().unwrap())];
    scan.resp_ip = ip("2001:db8::7");
    assert_eq!(lease::attribute(&scan, &[six], TOLERANCE).payload, Some(uid(1)));
}

#[test]
fn a_lease_is_certain_only_from_its_arrival_to_the_end_of_its_rest() {
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let then = |payload: &vestigo_model::Payload, clock: &str| {
        let asked = flow(&vm, 41022, clock, None);
        lease::attribute(&asked, std::slice::from_ref(payload), TOLERANCE).quality
    };
    let mut one = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    assert_eq!(then(&one, "14:01:00"), Quality::Lease);
    assert_eq!(then(&one, "14:00:59.999999999"), Quality::ClaimedLate, "one clock needs no tolerance");
    assert_eq!(then(&one, "14:00:57"), Quality::Instance);
    one.claimed = at("13:00:00");
    assert_eq!(then(&one, "14:00:57"), Quality::ClaimedLate, "a story told afterwards");
    one.claimed = at("15:00:00");
    assert_eq!(then(&one, "14:01:01"), Quality::Lease, "the guest's clock has no say in what the host saw");
    one.claimed = at("14:01:00");
    let done = finished(one.clone(), "14:02:00", Exit::Code(0));
    assert_eq!(then(&done, "14:07:00"), Quality::Lease, "late packets");
    assert_eq!(then(&done, "14:07:01"), Quality::Instance);
    let lost = finished(one, "14:02:00", Exit::Lost);
    assert_eq!(then(&lost, "14:02:01"), Quality::Instance, "what is lost has no late packets");
    // Announced and ended late: by the guest's own clock it was over.
    let mut debt = finished(payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:30:00"), "14:31:00", Exit::Code(0));
    debt.claimed = at("14:01:00");
    debt.end.as_mut().unwrap().claimed = at("14:02:00");
    assert_eq!(then(&debt, "14:01:30"), Quality::ClaimedLate);
    assert_eq!(then(&debt, "14:10:00"), Quality::Instance);
}

#[test]
fn a_claim_made_afterwards_does_not_make_a_flow_certainly_its_pilots() {
    let site = site();
    let mut stray = instance("hv2", 4, Some("cms"), "10.0.0.8");
    stray.start = at("14:00:00");
    let mut late = payload(&stray, 5, "carol", "cms", (43000, 43999), "14:06:30");
    late.claimed = at("14:06:00");
    let mut site = site;
    let facts = [record(at("14:06:00"), Fact::Instance(stray.clone())), record(at("14:06:30"), Fact::Payload(late))];
    site.writers[1].append(&facts, &[flow(&stray, 43001, "14:06:10", None)]).unwrap();
    let range = TimeRange::new(at("14:00:00"), at("15:00:00")).unwrap();
    let pilot = Some(PilotId::new("pilot-cms-1").unwrap());
    let answer = site.ledger().ips(&IpsQuestion { vo: Vo::new("cms").unwrap(), range, pilot }).unwrap();
    assert_eq!((answer.unattributed_flows, answer.rows.iter().filter(|row| row.used).count()), (1, 0));
}

fn one_host() -> (TempDir, Writer) {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (writer, _) = Writer::open(root.path(), options).unwrap();
    (root, writer)
}

/// A guest that uses a run id again, with the ledger sealed after every record, and live altogether.
#[test]
fn the_first_claim_under_a_run_id_holds_and_the_others_are_told() {
    for sealing in [true, false] {
        let (root, mut writer) = one_host();
        let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
        let first = payload(&vm, 1, "mallory", "atlas", (41000, 41999), "14:01:00");
        let ended = finished(first.clone(), "14:05:00", Exit::Code(0));
        let again = payload(&vm, 1, "alice", "atlas", (42000, 42999), "14:06:00");
        let mut backdated = payload(&vm, 1, "bob", "atlas", (41000, 41999), "14:08:00");
        backdated.claimed = at("14:01:00");
        let steps = [
            (at("14:00:00"), Fact::Instance(vm.clone()), None),
            (at("14:01:00"), Fact::Payload(first.clone()), Some(flow(&vm, 41022, "14:03:22", Some(1)))),
            (at("14:05:00"), Fact::Payload(ended.clone()), None),
            (at("14:06:00"), Fact::Payload(again.clone()), Some(flow(&vm, 42022, "14:06:30", Some(1)))),
            (at("14:07:00"), Fact::Payload(finished(again.clone(), "14:07:00", Exit::Code(0))), None),
            (at("14:08:00"), Fact::Payload(backdated), None),
            (at("14:09:00"), Fact::Payload(finished(first, "14:09:00", Exit::Code(1))), None),
        ];
        for (recorded, fact, flow) in steps {
            writer.append(&[record(recorded, fact)], flow.as_slice()).unwrap();
            if sealing {
                writer.seal(recorded).unwrap().expect("a segment");
            }
        }
        let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
        let facts = ledger.facts(TimeRange { from: at("14:00:00"), to: at("15:00:00") }).unwrap();
        assert_eq!(facts.payloads, std::slice::from_ref(&ended), "sealing: {sealing}");
        assert_eq!(facts.conflicting.len(), 3, "another end, alice's start and end as one, bob");

        let answer = ledger.who(&question("14:03:22", "10.0.0.5", Some(41022))).unwrap();
        assert_eq!(users(&answer), ["mallory"], "sealing: {sealing}");
        let candidate = &answer.candidates[0];
        assert_eq!(candidate.attribution.quality, Quality::Lease);
        let note = "the guest later claimed something else under this run id (3 times); the first claim holds";
        assert_eq!(candidate.notes, [note]);
        let later: Vec<_> = candidate.later_claims.iter().map(|claims| claims.user.subject.as_str()).collect();
        assert_eq!(later, ["mallory", "alice", "bob"]);

        // A label that rests on the later claim names nobody: not the first claim's user, who had another block.
        let answer = ledger.who(&question("14:06:30", "10.0.0.5", Some(42022))).unwrap();
        let candidate = &answer.candidates[0];
        assert_eq!((users(&answer).len(), candidate.attribution.quality), (0, Quality::Instance));
        assert!(candidate.attribution.reason.contains("does not cover the flow"), "{}", candidate.attribution.reason);
        assert_eq!(candidate.later_claims.len(), 3);

        let mut asked = PilotsQuestion { subject: Label::new("mallory").unwrap(), issuer: None, range: None };
        let rows = ledger.pilots(&asked).unwrap().rows;
        assert_eq!((rows.len(), rows[0].payloads.len(), rows[0].later_claims.len()), (1, 1, 3));
        assert_eq!(rows[0].notes, [format!("run {}: {note}", uid(1))]);
        asked.subject = Label::new("alice").unwrap();
        assert_eq!(ledger.pilots(&asked).unwrap().rows.len(), 0);

        drop(writer);
        let options =
            WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
        let (_, recovered) = Writer::open(root.path(), options).unwrap();
        assert_eq!(recovered.payloads, [ended], "sealing: {sealing}");
    }
}

#[test]
fn a_later_claim_does_not_become_the_first_by_saying_it_ran_earlier() {
    let (root, mut writer) = one_host();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let first = payload(&vm, 1, "mallory", "atlas", (41000, 41999), "14:10:00");
    let ended = finished(first.clone(), "14:11:00", Exit::Code(0));
    let mut story = payload(&vm, 1, "alice", "atlas", (41000, 41999), "16:20:00");
    story.claimed = at("13:00:00");
    // By the time of the story the first claim is carried no longer: only its own segment has it.
    for (recorded, claim) in
        [("14:10:00", first), ("14:11:00", ended.clone()), ("16:00:00", ended), ("16:20:00", story)]
            .map(|(c, p)| (at(c), p))
    {
        writer.append(&[record(recorded, Fact::Payload(claim))], &[flow(&vm, 41022, "13:30:00", None)]).unwrap();
        writer.seal(recorded).unwrap().expect("a segment");
    }
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    let facts = ledger.facts(TimeRange { from: at("13:29:00"), to: at("13:31:00") }).unwrap();
    assert_eq!((facts.payloads.len(), facts.conflicting.len()), (0, 1));
    let answer = ledger.who(&question("13:30:00", "10.0.0.5", Some(41022))).unwrap();
    assert_eq!((users(&answer).len(), answer.candidates[0].attribution.quality), (0, Quality::Instance));
}

/// A guest that runs more short payloads than are carried on: the first of them is found all the same.
#[test]
fn a_payload_that_is_no_longer_carried_still_names_its_late_packets() {
    let (root, mut writer) = one_host();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let first = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    let start =
        [record(at("14:00:00"), Fact::Instance(vm.clone())), record(at("14:01:00"), Fact::Payload(first.clone()))];
    writer.append(&start, &[]).unwrap();
    writer.seal(at("14:01:00")).unwrap().expect("a segment");
    let ended = finished(first, "14:02:00", Exit::Code(0));
    let mut many = vec![record(at("14:02:00"), Fact::Payload(ended))];
    for number in 0..2000 {
        let mut other = payload(&vm, 2, "bob", "atlas", (50000, 50999), "14:02:30");
        other.claim.uid = nth_uid(number);
        many.push(record(at("14:02:30"), Fact::Payload(other.clone())));
        many.push(record(at("14:03:00"), Fact::Payload(finished(other, "14:03:00", Exit::Code(0)))));
    }
    writer.append(&many, &[]).unwrap();
    writer.seal(at("14:04:00")).unwrap().expect("a segment");
    let late = [flow(&vm, 41022, "14:06:00", Some(1)), flow(&vm, 41023, "14:06:00", None)];
    writer.append(&[], &late).unwrap();
    let last = writer.seal(at("14:07:00")).unwrap().expect("a segment");
    assert_eq!(last.manifest.files[2].rows, 1024, "carried payloads");
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    for port in [41022, 41023] {
        let answer = ledger.who(&question("14:06:00", "10.0.0.5", Some(port))).unwrap();
        assert_eq!(
            (users(&answer), answer.candidates[0].attribution.quality),
            (vec!["alice"], Quality::Lease),
            "{port}"
        );
        assert!(answer.candidates[0].guest_claims.as_ref().unwrap().end.is_some());
    }
    let all = ledger.facts(TimeRange { from: at("14:00:00"), to: at("15:00:00") }).unwrap();
    assert_eq!((all.payloads.len(), all.conflicting.len()), (2001, 0));
    assert!(all.payloads.iter().all(|payload| payload.end.is_some()));
    drop(writer);
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (_, recovered) = Writer::open(root.path(), options).unwrap();
    assert_eq!(recovered.payloads.len(), 1024);
}

#[test]
fn what_is_no_ledger_or_a_damaged_one_is_said() {
    let empty = tempfile::tempdir().unwrap();
    let error = Ledger::open_folders(&[empty.path().to_owned()]).unwrap_err();
    assert!(matches!(error, LedgerError::NotALedger { .. }) && error.to_string().contains("--ledger"), "{error}");
    let site = site();
    let path = site.roots[0].join("date=2026-11-22/host=hv1");
    let mut files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let flows = files.iter().find(|file| file.to_string_lossy().ends_with("-flows.parquet")).unwrap();
    let length = usize::try_from(std::fs::metadata(flows).unwrap().len()).unwrap();
    std::fs::write(flows, vec![b'x'; length]).unwrap();
    let error = site.ledger().who(&question("14:03:22", "10.0.0.5", None)).unwrap_err();
    assert!(error.to_string().contains("-flows.parquet") && error.to_string().contains("SHA-256"), "{error}");
    let manifest = files.iter().find(|file| file.to_string_lossy().ends_with(".manifest.json")).unwrap();
    std::fs::write(manifest, b"{}").unwrap();
    let error = site.ledger().who(&question("14:03:22", "10.0.0.5", None)).unwrap_err();
    assert!(error.to_string().contains("no segment manifest"), "{error}");
}

#[test]
fn a_ledger_and_its_copy_count_once() {
    let site = site();
    let roots = [site.roots[0].clone(), site.roots[0].clone()];
    let answer = Ledger::open_folders(&roots).unwrap().who(&question("14:03:22", "10.0.0.5", Some(41022))).unwrap();
    assert_eq!(answer.candidates[0].totals.flows, 1);
}

/// The file of a kind in the only segment below the root.
fn only_file(root: &std::path::Path, suffix: &str) -> PathBuf {
    let dates = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
    let day = dates.into_iter().find(|path| path.to_string_lossy().contains("date=")).unwrap();
    let host = std::fs::read_dir(day).unwrap().flatten().next().unwrap().path();
    let mut files = std::fs::read_dir(host).unwrap().flatten().map(|entry| entry.path());
    files.find(|path| path.to_string_lossy().ends_with(suffix)).unwrap()
}

#[test]
fn another_file_in_a_segments_place_is_no_answer() {
    let site = site();
    let (flows, coverage) =
        (only_file(&site.roots[0], "-flows.parquet"), only_file(&site.roots[0], "-coverage.parquet"));
    std::fs::copy(&coverage, &flows).unwrap();
    let error = site.ledger().who(&question("14:03:22", "10.0.0.5", None)).unwrap_err();
    assert!(error.to_string().contains("its manifest says"), "{error}");
}

#[test]
fn damage_in_a_live_log_makes_an_answer_incomplete() {
    let site = site();
    let log = std::fs::read_dir(site.roots[1].join("wal")).unwrap().flatten().map(|entry| entry.path()).max().unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&log, bytes).unwrap();
    let answer = site.ledger().who(&question("14:03:22", "10.0.0.5", None)).unwrap();
    assert!(answer.coverage.unreadable > 0 && !answer.coverage.complete);
}

/// A later part of a flow: hostd knew that the whole of it began before the lease.
#[test]
fn a_flow_older_than_the_lease_is_the_payloads_only_if_the_claim_was_late() {
    let asked = |claimed: &str| {
        let root = tempfile::tempdir().unwrap();
        let options =
            WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
        let (mut writer, _) = Writer::open(root.path(), options).unwrap();
        let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
        let mut payload = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:02:00");
        payload.claimed = at(claimed);
        let mut part = flow(&vm, 41022, "14:03:22", None);
        part.attribution.reason = vestigo_model::BEGAN_BEFORE.to_owned();
        let facts = [Fact::Instance(vm), Fact::Payload(payload)].map(|fact| record(at("14:02:00"), fact));
        writer.append(&facts, &[part]).unwrap();
        let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
        let answer = ledger.who(&question("14:03:22", "10.0.0.5", Some(41022))).unwrap();
        (answer.candidates[0].attribution.quality, answer.candidates[0].guest_claims.is_some())
    };
    assert_eq!(asked("14:02:00"), (Quality::Instance, false), "somebody's before the payload came");
    assert_eq!(asked("14:01:00"), (Quality::ClaimedLate, true), "an agent that paid its debt, perhaps");
}

#[test]
fn a_guests_clock_reaches_no_further_back_than_its_vms_start() {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let first = ended(instance("hv1", 1, Some("atlas"), "10.0.0.5"), "14:10:00");
    let mut second = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    second.start = at("14:20:00");
    let mut facts = vec![
        record(at("14:10:00"), Fact::Instance(first.clone())),
        record(at("14:20:00"), Fact::Instance(second.clone())),
    ];
    for number in 0..150 {
        let mut claim = payload(&second, 1, "mallory", "atlas", (41000, 41999), "14:30:00");
        claim.claim.uid = nth_uid(number);
        claim.claimed = vestigo_model::Timestamp::from_nanos(0);
        facts.push(record(at("14:30:00"), Fact::Payload(claim)));
    }
    let flows = [flow(&first, 41022, "14:05:00", None), flow(&second, 50000, "14:25:00", None)];
    writer.append(&facts, &flows).unwrap();
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    let ask = |clock, port| ledger.who(&question(clock, "10.0.0.5", Some(port))).unwrap().candidates.remove(0);
    let before = ask("14:05:00", 41022);
    assert_eq!((before.said_later_total, before.ran_then_total), (0, 0), "another run of the VM");
    assert_eq!(before.attribution.quality, Quality::Instance);
    assert!(!before.attribution.reason.contains("150 payloads"), "{}", before.attribution.reason);
    let then = ask("14:25:00", 50000);
    assert_eq!((then.ran_then.len(), then.said_later.len(), then.said_later_total), (0, 100, 150));
}

/// A flow that went on while its payload's lease was announced: some of its records were written before, some after.
#[test]
fn records_of_one_flow_before_and_after_a_late_claim_agree() {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut late = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:03:30");
    late.claimed = at("14:02:00");
    let mut before = flow(&vm, 41022, "14:03:00", None);
    before.attribution.reason = "outside-every-lease".to_owned();
    let mut after = flow(&vm, 41022, "14:04:00", None);
    after.attribution.reason = vestigo_model::BEGAN_BEFORE.to_owned();
    let facts = [record(at("14:02:00"), Fact::Instance(vm)), record(at("14:03:30"), Fact::Payload(late))];
    writer.append(&facts, &[before, after]).unwrap();
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    for time in ["14:03:00", "14:04:00"] {
        let answer = ledger.who(&question(time, "10.0.0.5", Some(41022))).unwrap();
        let found = &answer.candidates[0];
        assert_eq!(answer.candidates.len(), 1, "{time}");
        assert_eq!(found.attribution.quality, Quality::ClaimedLate, "{time}");
        assert_eq!(found.guest_claims.as_ref().unwrap().user.subject.as_str(), "alice", "{time}");
    }
}

#[test]
fn whose_word_an_address_is_stands_in_the_answer() {
    use vestigo_model::{Basis, Expected, Learnt};
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let mut vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut forged = flow(&vm, 41022, "14:03:22", None);
    vm.taps[0].expected.clear();
    vm.taps[0].learnt =
        vec![Learnt { ip: ip("10.0.0.5"), by: Basis::Dhcp, since: at("14:00:00"), until: Some(at("15:00:00")) }];
    (forged.orig_ip, forged.src_expected) = (ip("198.51.100.7"), Expected::No);
    writer.append(&[record(at("14:00:00"), Fact::Instance(vm))], &[forged]).unwrap();
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    let answer = ledger.who(&question("14:03:22", "198.51.100.7", None)).unwrap();
    let found = &answer.candidates[0];
    assert_eq!(found.host_facts.learnt_addresses[0].by, Basis::Dhcp);
    assert!(found.notes.iter().any(|note| note.contains("no DHCP server had given it")), "{:?}", found.notes);
    let answer = ledger.who(&question("14:03:22", "10.0.0.5", None)).unwrap();
    let [given] = answer.candidates.as_slice() else { panic!("given by DHCP: {answer:?}") };
    assert_eq!(given.totals.flows, 0);
    assert!(given.attribution.reason.contains("was given this address"), "{}", given.attribution.reason);
}

#[test]
fn the_payloads_of_one_vm_are_read_without_those_of_others() {
    let site = site();
    let ledger = site.ledger();
    let day = vestigo_model::TimeRange::new(at("00:00:00"), at("23:59:59")).unwrap();
    let all = ledger.facts(day).unwrap().payloads;
    let vm = all[0].domain;
    let mine: Vec<_> = all.iter().filter(|payload| payload.domain == vm).cloned().collect();
    assert!(!mine.is_empty() && mine.len() < all.len());
    assert_eq!(ledger.payloads_of(vm, day).unwrap(), mine);
}
