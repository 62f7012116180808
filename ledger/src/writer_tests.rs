#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use vestigo_model::{CoverageState, Exit, Fact, PayloadEnd, TimeRange};

use super::*;
use crate::{Kind, Ledger, log::LogFile, segment::scan::FlowFilter};

use crate::fixture::*;

fn options() -> WriterOptions {
    WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 64 << 20 }
}

fn open(root: &Path) -> (Writer, Recovered) {
    Writer::open(root, options()).unwrap()
}

fn facts_and_flows() -> (Vec<FactRecord>, Vec<Flow>) {
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut start =
        record(at("14:01:00"), Fact::Payload(payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00")));
    start.link = Some(link(1, 1));
    let seen = record(at("14:02:00"), Fact::Coverage(coverage(&vm, "14:01:00", "14:02:00", CoverageState::Ok)));
    let flows = vec![flow(&vm, 41022, "14:01:30", Some(1)), flow(&vm, 41023, "14:01:20", Some(1))];
    (vec![record(at("14:00:00"), Fact::Instance(vm)), start, seen], flows)
}

fn everything() -> TimeRange {
    TimeRange { from: at("00:00:00"), to: at("23:59:59") }
}

fn read(root: &Path) -> (Vec<Flow>, crate::Facts) {
    let ledger = Ledger::open_folders(&[root.to_owned()]).unwrap();
    let filter = FlowFilter { range: everything(), ip: None, vo: None };
    (ledger.flows(&filter).unwrap(), ledger.facts(everything()).unwrap())
}

/// (flows, instances, payloads, coverage statements): each exactly once, wherever it lies.
fn counts(root: &Path) -> (usize, usize, usize, usize) {
    let (flows, facts) = read(root);
    (flows.len(), facts.instances.len(), facts.payloads.len(), facts.coverage.len())
}

#[test]
fn a_restart_finds_what_was_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let (facts, flows) = facts_and_flows();
    let (mut writer, nothing) = open(root.path());
    assert_eq!(nothing, Recovered::default());
    writer.append(&facts, &flows).unwrap();
    drop(writer);
    let (_, found) = open(root.path());
    assert_eq!(found.instances.len(), 1);
    assert_eq!(found.payloads.len(), 1);
    assert_eq!(found.links, [link(1, 1)]);
    assert_eq!(found.last_recorded, Some(at("14:02:00")));
    assert_eq!(found.torn_bytes, 0);
}

#[test]
fn a_second_writer_and_another_host_are_refused_in_one_sentence() {
    let root = tempfile::tempdir().unwrap();
    let (writer, _) = open(root.path());
    let second = Writer::open(root.path(), options()).unwrap_err().to_string();
    assert!(second.contains("another process") && second.contains(&root.path().display().to_string()), "{second}");
    drop(writer);
    let other = WriterOptions { host: host("hv2"), ..options() };
    let other = Writer::open(root.path(), other).unwrap_err().to_string();
    assert!(other.contains("hv1") && other.contains("hv2"), "{other}");
}

#[test]
fn a_log_cut_at_any_byte_gives_back_exactly_its_whole_records() {
    let root = tempfile::tempdir().unwrap();
    let (facts, flows) = facts_and_flows();
    let (mut writer, _) = open(root.path());
    let mut ends = vec![writer.log.len()];
    for fact in &facts {
        writer.append(std::slice::from_ref(fact), &[]).unwrap();
        ends.push(writer.log.len());
    }
    for flow in &flows {
        writer.append(&[], std::slice::from_ref(flow)).unwrap();
        ends.push(writer.log.len());
    }
    let path = log::path(root.path(), writer.log.generation);
    drop(writer);
    let whole = fs::read(&path).unwrap();
    assert_eq!(ends.last().copied(), Some(whole.len() as u64));
    for cut in ends[0]..=whole.len() as u64 {
        fs::write(&path, &whole[..usize::try_from(cut).unwrap()]).unwrap();
        let records = ends.iter().filter(|end| **end <= cut).count() - 1;
        let (kept_facts, kept_flows) = (records.min(3), records.saturating_sub(3));
        let (found_flows, found) = read(root.path());
        assert_eq!(found_flows.len(), kept_flows, "cut at {cut}");
        assert_eq!(found.instances.len() + found.payloads.len() + found.coverage.len(), kept_facts, "cut at {cut}");
        let (mut writer, recovered) = open(root.path());
        let good = ends.iter().filter(|end| **end <= cut).max().copied().unwrap_or(0);
        assert_eq!(recovered.torn_bytes, cut - good, "cut at {cut}");
        if cut % 97 == 0 {
            writer.append(&facts, &flows).unwrap();
            assert_eq!(counts(root.path()).0, kept_flows + 2, "appending after a cut at {cut}");
        }
    }
}

#[test]
fn a_crash_at_any_step_of_sealing_neither_loses_nor_doubles() {
    let steps = ["rotate", "flows", "instances", "payloads", "coverage", "events", "manifest", "remove-log"];
    for crash in steps {
        let root = tempfile::tempdir().unwrap();
        let (facts, flows) = facts_and_flows();
        let (mut writer, _) = open(root.path());
        writer.append(&facts, &flows).unwrap();
        writer.crash_at(Box::new(move |step| match step == crash {
            true => Err(IoError::at("write", Path::new("x"))(io::Error::other("crash")).into()),
            false => Ok(()),
        }));
        writer.seal(at("14:05:00")).unwrap_err();
        assert_eq!(counts(root.path()), (2, 1, 1, 1), "after a crash at {crash}");
        drop(writer);
        let (mut writer, recovered) = open(root.path());
        assert_eq!((recovered.instances.len(), recovered.payloads.len()), (1, 1), "recovered after {crash}");
        assert_eq!(counts(root.path()), (2, 1, 1, 1), "after recovery from {crash}");
        let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
        writer.append(&[], &[flow(&vm, 41024, "14:06:00", Some(1))]).unwrap();
        let sealed = writer.seal(at("14:10:00")).unwrap().expect("a segment");
        assert_eq!(counts(root.path()), (3, 1, 1, 1), "after sealing behind {crash}");
        assert_eq!(sealed.manifest.sequence, if crash == "remove-log" { 2 } else { 1 }, "{crash}");
        assert_eq!(log::generations(root.path()).unwrap().len(), 1, "{crash}");
    }
}

#[test]
fn a_failed_seal_is_tried_again_while_appending_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (facts, flows) = facts_and_flows();
    let (mut writer, _) = open(root.path());
    writer.append(&facts, &flows).unwrap();
    writer.crash_at(Box::new(|step| match step == "manifest" {
        true => Err(IoError::at("write", Path::new("x"))(io::Error::from(io::ErrorKind::StorageFull)).into()),
        false => Ok(()),
    }));
    writer.seal(at("14:05:00")).unwrap_err();
    writer.append(&facts[2..], &flows[..1]).unwrap();
    assert!(writer.seal_if_due(at("14:05:10")).unwrap().is_none(), "too early to try again");
    writer.seal_if_due(at("14:05:30")).unwrap_err();
    assert_eq!(log::generations(root.path()).unwrap().len(), 2, "a retry makes no new generation");
    writer.crash_at(Box::new(|_| Ok(())));
    let first = writer.seal_if_due(at("14:06:30")).unwrap().expect("a segment");
    assert_eq!(first.manifest.files[0].rows, 2);
    let second = writer.seal(at("14:06:31")).unwrap().expect("what was appended meanwhile");
    assert_eq!((second.manifest.files[0].rows, second.manifest.sequence), (1, 2));
    assert_eq!(counts(root.path()), (3, 1, 1, 2));
}

#[test]
fn segments_chain_hash_and_carry_what_they_need() {
    let root = tempfile::tempdir().unwrap();
    let (facts, flows) = facts_and_flows();
    let (mut writer, _) = open(root.path());
    writer.append(&facts, &flows).unwrap();
    assert!(writer.seal_if_due(at("14:04:59")).unwrap().is_none());
    let first = writer.seal_if_due(at("14:05:00")).unwrap().expect("due by age");
    assert!(writer.seal(at("14:06:00")).unwrap().is_none(), "nothing new");
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut done = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    done.end =
        Some(PayloadEnd { received: at("14:07:00"), claimed: at("14:07:00"), exit: Exit::Code(-1), silent: false });
    writer.append(&[record(at("14:07:00"), Fact::Payload(done))], &[flow(&vm, 41900, "14:06:59", Some(1))]).unwrap();
    let second = writer.seal(at("14:08:00")).unwrap().expect("a segment");

    assert_eq!(first.manifest.previous, Digest::ZERO);
    let manifest = fs::read(first.folder.join(format!("{}.manifest.json", first.manifest.segment))).unwrap();
    assert_eq!(second.manifest.previous, Digest::of(&manifest));
    assert!(first.folder.ends_with("date=2026-11-22/host=hv1"));
    for file in &second.manifest.files {
        let bytes = fs::read(second.folder.join(&file.name)).unwrap();
        assert_eq!((Digest::of(&bytes), bytes.len() as u64), (file.sha256, file.bytes));
    }
    let rows: Vec<u64> = second.manifest.files.iter().map(|file| file.rows).collect();
    assert_eq!(rows, [1, 1, 2, 0, 0], "the instance is carried, the payload carried and ended");
    let (_, facts) = read(root.path());
    assert_eq!(facts.payloads[0].end.unwrap().exit, Exit::Code(-1));
    drop(writer);
    let (_, recovered) = open(root.path());
    assert_eq!(recovered.last_recorded, Some(at("14:07:00.5")), "known although the log holds a snapshot only");
    assert_eq!(recovered.links, [link(1, 1)]);
}

#[test]
fn bytes_make_a_segment_due() {
    let root = tempfile::tempdir().unwrap();
    let (mut writer, _) = Writer::open(root.path(), WriterOptions { max_wal_bytes: 100, ..options() }).unwrap();
    let (facts, _) = facts_and_flows();
    writer.append(&facts, &[]).unwrap();
    assert!(writer.seal_if_due(at("14:02:01")).unwrap().is_some());
}

#[test]
fn what_is_carried_makes_no_segment_due() {
    let root = tempfile::tempdir().unwrap();
    let (facts, flows) = facts_and_flows();
    let limit = |max_wal_bytes| WriterOptions { max_wal_bytes, ..options() };
    let (mut writer, _) = Writer::open(root.path(), limit(1)).unwrap();
    writer.append(&facts, &[]).unwrap();
    assert!(writer.seal_if_due(at("14:02:01")).unwrap().is_some());
    let carried = file_length(&log::path(root.path(), writer.log.generation)).unwrap();
    drop(writer);
    let mut frame = Vec::new();
    frame::encode(&crate::flows::Flows::of(&flows[..1]).encode().unwrap(), &mut frame).unwrap();
    let least = frame.len() as u64 * 2;
    assert!(carried > least, "{carried} {least}");
    let (mut writer, _) = Writer::open(root.path(), limit(least)).unwrap();
    for generation in 0..2 {
        let now = flows[0].last;
        writer.append(&[], &flows[..1]).unwrap();
        assert!(writer.seal_if_due(now).unwrap().is_none(), "generation {generation}: one flow is no growth");
        writer.append(&[], &flows[..1]).unwrap();
        assert!(writer.seal_if_due(now).unwrap().is_some(), "generation {generation}: two are");
    }
}

#[test]
fn ended_facts_are_carried_for_an_hour_and_the_furthest_link_position_wins() {
    let mut state = State::default();
    let vm = ended(instance("hv1", 1, Some("atlas"), "10.0.0.5"), "14:10:00");
    let mut old = record(at("14:10:00"), Fact::Instance(vm));
    old.link = Some(link(1, 7));
    state.apply_fact(&old);
    old.link = Some(link(1, 3));
    state.apply_fact(&old);
    assert_eq!(state.link_positions(), [link(1, 7)]);
    state.prune(at("15:10:00"));
    assert_eq!(state.facts().count(), 1);
    state.prune(at("15:10:01"));
    assert_eq!(state.facts().count(), 0);
    assert_eq!(state.link_positions().len(), 1, "a saved VM may come back with the same boot");
}

#[test]
fn what_is_carried_of_one_guest_is_bounded_and_of_its_neighbour_untouched() {
    let mut state = State::default();
    let (vm, neighbour) = (instance("hv1", 1, Some("atlas"), "10.0.0.5"), instance("hv1", 2, None, "10.0.0.6"));
    for vm in [&vm, &neighbour] {
        state.apply_fact(&record(at("14:00:00"), Fact::Instance(vm.clone())));
        state.apply_fact(&record(at("14:01:00"), Fact::Payload(payload(vm, 1, "alice", "x", (1, 2), "14:01:00"))));
    }
    let mut quiet = record(at("14:01:00"), Fact::Payload(payload(&neighbour, 2, "bob", "x", (3, 4), "14:01:00")));
    quiet.link = Some(link(2, 1));
    state.apply_fact(&quiet);
    for number in 0..3000_usize {
        let clock = at("14:02:00") + Duration::from_secs(number as u64);
        let mut short = payload(&vm, 1, "mallory", "x", (5, 6), "14:02:00");
        short.claim.uid = nth_uid(number);
        short.end = Some(PayloadEnd { received: clock, claimed: clock, exit: Exit::Code(0), silent: false });
        let mut fact = record(clock, Fact::Payload(short));
        let boot = format!("e0000000-0000-4000-8000-{number:012x}").parse().unwrap();
        fact.link = Some(LinkPosition { boot, ..link(1, 1) });
        state.apply_fact(&fact);
    }
    assert_eq!(state.facts().count(), 2 + 3 + crate::state::ENDED_PAYLOADS);
    assert_eq!(state.link_positions().len(), 1 + crate::state::BOOTS);
    let kept = |number| state.live_payloads().iter().any(|payload| payload.claim.uid == nth_uid(number));
    assert!(kept(2999) && kept(3000 - crate::state::ENDED_PAYLOADS) && !kept(3000 - crate::state::ENDED_PAYLOADS - 1));
    let newest = state.link_positions().iter().any(|link| link.boot.to_string().ends_with(&format!("{:012x}", 2999)));
    assert!(newest && state.link_positions().contains(&link(2, 1)));
    state.prune(at("14:52:00"));
    assert_eq!(state.facts().count(), 2 + 3 + crate::state::ENDED_PAYLOADS);
    state.prune(at("23:00:00"));
    assert_eq!(state.facts().count(), 2 + 3, "what has not ended stays");
}

const FINE: u8 = 0;
const WRITE_FAILS: u8 = 1;
const SYNC_FAILS: u8 = 2;
const NOTHING_WORKS: u8 = 3;

struct Faulty {
    file: File,
    fault: Arc<AtomicU8>,
}

impl LogFile for Faulty {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.fault.load(Ordering::SeqCst) {
            WRITE_FAILS | NOTHING_WORKS => {
                LogFile::write_all(&mut self.file, &bytes[..bytes.len() / 2])?;
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            _ => LogFile::write_all(&mut self.file, bytes),
        }
    }
    fn sync(&mut self) -> io::Result<()> {
        match self.fault.load(Ordering::SeqCst) {
            SYNC_FAILS => Err(io::Error::other("the disk is gone")),
            _ => LogFile::sync(&mut self.file),
        }
    }
    fn cut(&mut self, length: u64) -> io::Result<()> {
        match self.fault.load(Ordering::SeqCst) {
            NOTHING_WORKS => Err(io::Error::other("the disk is gone")),
            _ => LogFile::cut(&mut self.file, length),
        }
    }
}

#[test]
fn a_failing_disk_is_reported_and_survived() {
    for fault in [WRITE_FAILS, SYNC_FAILS, NOTHING_WORKS] {
        let root = tempfile::tempdir().unwrap();
        let state = Arc::new(AtomicU8::new(FINE));
        let handle = Arc::clone(&state);
        let open_log: OpenLog = Box::new(move |path| {
            let file = OpenOptions::new().append(true).open(path)?;
            Ok(Box::new(Faulty { file, fault: Arc::clone(&handle) }))
        });
        let (mut writer, _) = Writer::open_with(root.path(), options(), open_log).unwrap();
        let (facts, flows) = facts_and_flows();
        writer.append(&facts[..1], &[]).unwrap();
        state.store(fault, Ordering::SeqCst);
        writer.append(&facts[1..], &flows).unwrap_err();
        state.store(FINE, Ordering::SeqCst);
        writer.append(&facts[2..], &flows[..1]).unwrap();
        assert_eq!(counts(root.path()), (1, 1, 0, 1), "only what was acknowledged, fault {fault}");
        drop(writer);
        let (mut writer, recovered) = open(root.path());
        assert_eq!((recovered.instances.len(), recovered.payloads.len()), (1, 0));
        writer.seal(at("14:09:00")).unwrap().expect("a segment");
        assert_eq!(counts(root.path()), (1, 1, 0, 1), "after sealing, fault {fault}");
    }
}

#[test]
fn rubble_of_a_crash_is_removed_and_a_record_of_a_newer_version_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(root.path());
    let (facts, flows) = facts_and_flows();
    writer.append(&facts, &flows).unwrap();
    let path = log::path(root.path(), writer.log.generation);
    drop(writer);
    let mut newer = Vec::new();
    frame::encode(b"{\"telepathy\":{}}", &mut newer).unwrap();
    fs::write(&path, [fs::read(&path).unwrap(), newer].concat()).unwrap();
    let folder = manifest::folder(root.path(), &host("hv1"), at("14:00:00"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("00000001-20261122T140000Z-flows.parquet"), b"rubble").unwrap();
    fs::write(folder.join(".00000001-x.manifest.json.tmp"), b"rubble").unwrap();
    let (mut writer, _) = open(root.path());
    assert_eq!(durable::names(&folder).unwrap(), Vec::<String>::new());
    let sealed = writer.seal(at("14:05:00")).unwrap().expect("a segment");
    assert_eq!(sealed.manifest.losses.unreadable_records, 1);
    assert_eq!(sealed.manifest.files.iter().map(|f| f.kind).collect::<Vec<_>>(), Kind::ALL[..5]);
}

/// A payload with everything that a claim can say.
fn signed(number: u8, nonce: &str, expires: &str) -> vestigo_model::Payload {
    let text = |text: &str| vestigo_model::Label::new(text).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut payload = payload(&vm, number, "alice", "atlas", (41000, 41999), "14:01:00");
    payload.claim.trust = vestigo_model::Trust::SignedByUser;
    payload.claim.task = Some(vestigo_model::TaskMark {
        id: text("analysis"),
        nonce: text(nonce),
        runs: 1,
        not_before: at("14:00:00"),
        expires: at(expires),
        statement: Digest::of(b"statement"),
        key: text("SHA256:abc"),
    });
    payload
}

#[test]
fn runs_of_signed_tasks_are_remembered_until_their_permission_expires() {
    let root = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(root.path());
    let given_back = finished(signed(3, "c", "18:00:00"), "14:01:30", Exit::NotStarted);
    let facts = [
        record(at("14:01:00"), Fact::Payload(finished(signed(1, "a", "18:00:00"), "14:01:30", Exit::Code(0)))),
        record(at("14:01:00"), Fact::Payload(signed(2, "b", "15:00:00"))),
        record(at("14:01:00"), Fact::Payload(signed(3, "c", "18:00:00"))),
        record(at("14:01:30"), Fact::Payload(given_back)),
    ];
    writer.append(&facts, &[]).unwrap();
    let runs = |writer: Writer| {
        drop(writer);
        let (writer, recovered) = open(root.path());
        let nonces: Vec<_> = recovered.tasks.iter().map(|used| used.task.nonce.to_string()).collect();
        (writer, nonces)
    };
    let (mut writer, nonces) = runs(writer);
    assert_eq!(nonces, ["a", "b"]);
    // Hours later, when the payload itself is no longer carried: twice, because the second generation has only the first's word.
    for clock in ["16:00:00", "16:30:00"] {
        writer.append(&[record(at(clock), Fact::Payload(signed(9, "z", "16:00:01")))], &[]).unwrap();
        writer.seal(at(clock)).unwrap();
    }
    let (mut writer, nonces) = runs(writer);
    assert_eq!(nonces, ["a"], "the others have expired");
    writer.append(&[record(at("18:20:00"), Fact::Payload(signed(8, "y", "18:00:00")))], &[]).unwrap();
    writer.seal(at("18:20:00")).unwrap();
    assert!(runs(writer).1.is_empty());
}

#[test]
fn a_claim_of_an_older_agent_and_log_is_still_read() {
    let json = r#"{"recorded":"2026-11-22T14:01:00Z","fact":"payload","host":"hv1","domain":"d0000000-0000-4000-8000-000000000001",
        "received":"2026-11-22T14:01:00Z","claimed":"2026-11-22T14:01:00Z","claim":{"uid":"a0000000-0000-4000-8000-000000000001",
        "pilot":"p","payload":"t","user":{"issuer":"i","subject":"s"},"vo":"atlas","trust":"asserted-by-vo",
        "command":["a"],"leases":[{"ports":{"first":20480,"last":21503}}],"isolation":{}}}"#;
    let old: FactRecord = serde_json::from_str(json).unwrap();
    let Fact::Payload(payload) = &old.fact else { panic!("{old:?}") };
    assert!(payload.claim.holder.is_payload() && payload.claim.task.is_none());
    let root = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(root.path());
    writer.append(&[old], &[]).unwrap();
    writer.seal(at("14:05:00")).unwrap();
    assert_eq!(counts(root.path()).2, 1);
}

#[test]
fn what_a_claim_rests_on_has_columns() {
    let root = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(root.path());
    let mut own = payload(&instance("hv1", 1, None, "10.0.0.5"), 2, "system", "none", (1024, 2047), "14:01:00");
    own.claim.holder = vestigo_model::Holder::System;
    let facts =
        [record(at("14:01:00"), Fact::Payload(signed(1, "n", "18:00:00"))), record(at("14:01:00"), Fact::Payload(own))];
    writer.append(&facts, &[]).unwrap();
    let info = writer.seal(at("14:05:00")).unwrap().unwrap();
    let file = info.manifest.files.iter().find(|file| file.kind == Kind::Payloads).unwrap();
    let file = File::open(info.folder.join(&file.name)).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let column = |name: &str| {
        let column =
            arrow::compute::cast(batch.column_by_name(name).unwrap(), &arrow::datatypes::DataType::Utf8).unwrap();
        let texts = arrow::array::AsArray::as_string::<i32>(&column);
        texts.iter().map(|text| text.unwrap_or("-").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(column("holder"), ["payload", "system"]);
    assert_eq!(column("user"), ["alice", "-"], "the name, as nobody seals here; what a VM says of itself names nobody");
}
