#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use vestigo_model::{CoverageState, Fact, TimeRange, Timestamp};

use super::{plan::tidy_by_steps, *};
use crate::{
    Kind, Ledger, LedgerError, Signer, Signers, Writer, WriterOptions,
    durable::IoError,
    segment::{self, scan::FlowFilter},
    verify::{VerifyOptions, What, verify},
};

use crate::fixture::*;

fn key() -> Signer {
    Signer::from_seed(&[1; 32])
}

fn writer(root: &Path) -> Writer {
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root, options).unwrap();
    writer.sign_with(Arc::new(key()));
    writer
}

/// A day of six segments in which a VM changes, a payload runs and ends, and flows are seen; then one of the next day.
fn day(root: &Path) -> Writer {
    let mut writer = writer(root);
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    // Recorded on the first day, its end on the next: the later record must hold, whichever segment is the younger file.
    let long = instance("hv1", 3, Some("atlas"), "10.0.0.7");
    writer.append(&[record(at("00:30:00"), Fact::Instance(long.clone()))], &[]).unwrap();
    for hour in 1..=6 {
        let (clock, seen) = (format!("{hour:02}:00:00"), format!("{hour:02}:10:00"));
        let mut facts = vec![
            record(at(&clock), Fact::Instance(if hour == 6 { ended(vm.clone(), "06:05:00") } else { vm.clone() })),
            record(at(&seen), Fact::Coverage(coverage(&vm, &clock, &seen, CoverageState::Ok))),
        ];
        if hour == 2 {
            facts.push(record(at(&clock), Fact::Payload(payload(&vm, 1, "alice", "atlas", (41000, 41999), &clock))));
        }
        let flows: Vec<_> = (0..20).map(|n| flow(&vm, 41000 + n * hour, &clock, Some(1))).collect();
        writer.append(&facts, &flows).unwrap();
        writer.seal(at(&seen)).unwrap().unwrap();
    }
    let next = instance("hv1", 2, Some("cms"), "10.0.0.6");
    let over = ended(long, "23:00:00");
    let facts = [next, over].map(|vm| record(tomorrow("00:10:00"), Fact::Instance(vm)));
    writer.append(&facts, &[]).unwrap();
    writer.seal(tomorrow("00:10:00")).unwrap().unwrap();
    writer
}

fn tomorrow(clock: &str) -> Timestamp {
    format!("2026-11-23T{clock}Z").parse().unwrap()
}

fn answers(root: &Path) -> (Vec<vestigo_model::Flow>, crate::Facts) {
    let range = TimeRange { from: at("00:00:00"), to: tomorrow("23:59:59") };
    let ledger = Ledger::open_folders(&[root.to_owned()]).unwrap();
    let mut flows = ledger.flows(&FlowFilter { range, ip: None, vo: None }).unwrap();
    flows.sort_by_key(|flow| (flow.first, flow.last, flow.orig_port));
    (flows, ledger.facts(range).unwrap())
}

fn same(root: &Path, (flows, facts): &(Vec<vestigo_model::Flow>, crate::Facts), when: &str) {
    let (now, then) = (answers(root), facts);
    assert!(&now.0 == flows, "{when}: {} flows, {} before", now.0.len(), flows.len());
    assert_eq!(now.1.instances, then.instances, "{when}");
    assert_eq!(now.1.payloads, then.payloads, "{when}");
    assert_eq!(now.1.coverage, then.coverage, "{when}");
    assert_eq!(now.1.events, then.events, "{when}");
}

fn findings(root: &Path) -> Vec<(What, u64, u64)> {
    let line = key().allowed_line(&host("hv1"));
    let signers = Signers::parse(Path::new("signers"), line.as_bytes()).unwrap();
    let report = verify(&[root.to_owned()], &VerifyOptions { signers, quick: false }, &mut |_| {}).unwrap();
    report.findings.into_iter().map(|f| (f.what, f.first, f.last)).collect()
}

fn plans(root: &Path, now: Timestamp) -> Vec<CompactPlan> {
    plan(root, &host("hv1"), CompactOptions::default(), now).unwrap()
}

fn parquet_files(root: &Path) -> usize {
    let folder = root.join("date=2026-11-22/host=hv1");
    fs::read_dir(folder)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with("parquet"))
        .count()
}

fn crash() -> CompactError {
    IoError::at("write", Path::new("x"))(std::io::Error::other("crash")).into()
}

#[test]
fn a_day_becomes_one_segment_with_the_same_answers_and_every_old_digest_provable() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = day(root.path());
    let before = answers(root.path());
    let kinds = parquet_files(root.path()) / 6;
    assert_eq!(plans(root.path(), tomorrow("00:59:59")).len(), 0, "the day is not over for an hour");
    let plans = plans(root.path(), tomorrow("01:00:00"));
    assert_eq!(plans.len(), 1);
    assert_eq!(plans[0].segments.len(), 6);
    let info = writer.adopt(&plans[0].prepare().unwrap(), tomorrow("01:00:01")).unwrap();
    assert_eq!((info.manifest.sequence, info.manifest.replaces.len(), info.manifest.order()), (8, 6, 1));
    same(root.path(), &before, "both are there");
    assert_eq!(findings(root.path()), []);
    assert!(tidy(root.path(), &host("hv1")).unwrap() > 0);
    assert_eq!(parquet_files(root.path()), kinds);
    same(root.path(), &before, "the old ones are gone");
    assert_eq!(findings(root.path()), []);
    assert_eq!(tidy(root.path(), &host("hv1")).unwrap(), 0, "nothing is left to do");
    assert!(self::plans(root.path(), tomorrow("02:00:00")).is_empty());
    // The chain goes on behind it, also after a restart.
    drop(writer);
    let mut writer = self::writer(root.path());
    let vm = instance("hv1", 2, Some("cms"), "10.0.0.6");
    writer.append(&[record(tomorrow("03:00:00"), Fact::Instance(vm))], &[]).unwrap();
    assert_eq!(writer.seal(tomorrow("03:00:00")).unwrap().unwrap().manifest.sequence, 9);
    assert_eq!(findings(root.path()), []);
}

#[test]
fn a_crash_at_any_step_neither_loses_nor_doubles_and_the_next_run_finishes() {
    let steps = ["prepare", "prepare", "name", "name", "manifest", "remove", "remove", "remove"];
    for (number, crash_at) in steps.into_iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = day(root.path());
        let before = answers(root.path());
        // At the first, second … time that the step comes.
        let mut left = steps[..=number].iter().filter(|step| **step == crash_at).count();
        let mut step = move |name: &str| {
            left -= usize::from(name == crash_at);
            if left == 0 && name == crash_at { Err(crash()) } else { Ok(()) }
        };
        let result = compact(root.path(), &mut writer, &mut step);
        assert!(result.is_err(), "{crash_at}");
        same(root.path(), &before, &format!("after a crash at {crash_at}"));
        // hostd comes back.
        drop(writer);
        let mut writer = self::writer(root.path());
        same(root.path(), &before, &format!("after the restart behind {crash_at}"));
        assert_eq!(findings(root.path()), [], "{crash_at}");
        compact(root.path(), &mut writer, &mut |_| Ok(())).unwrap();
        same(root.path(), &before, &format!("finished after {crash_at}"));
        assert_eq!(findings(root.path()), [], "{crash_at}");
        assert_eq!(parquet_files(root.path()), 5, "{crash_at}");
        let names = fs::read_dir(root.path().join("date=2026-11-22/host=hv1")).unwrap();
        let left: Vec<_> =
            names.map(|n| n.unwrap().file_name()).filter(|n| n.to_string_lossy().starts_with('.')).collect();
        assert!(left.is_empty(), "{crash_at}: {left:?}");
    }
}

#[test]
fn a_commit_that_fails_leaves_the_chain_and_the_folder_as_they_were() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = day(root.path());
    let before = answers(root.path());
    let plan = plans(root.path(), tomorrow("01:00:00")).remove(0);
    let prepared = plan.prepare().unwrap();
    // Where the manifest is written first, something else lies.
    let name = format!("00000008-{}.manifest.json", plan.segments[0].manifest.segment.split_once('-').unwrap().1);
    let blocked = plan.folder.join(format!(".{name}.tmp"));
    fs::create_dir(&blocked).unwrap();
    writer.adopt(&prepared, tomorrow("01:00:01")).unwrap_err();
    fs::remove_dir(&blocked).unwrap();
    same(root.path(), &before, "as before");
    assert_eq!(findings(root.path()), []);
    let names = crate::durable::names(&plan.folder).unwrap();
    assert!(!names.iter().any(|name| name.starts_with("00000008")), "{names:?}");
    assert_eq!(writer.adopt(&plan.prepare().unwrap(), tomorrow("01:00:02")).unwrap().manifest.sequence, 8);
}

/// One whole run, a step hook at each of its durable steps. The process "dies" at the step that fails: nothing cleans up behind it.
fn compact(
    root: &Path,
    writer: &mut Writer,
    step: &mut dyn FnMut(&str) -> Result<(), CompactError>,
) -> Result<(), CompactError> {
    for plan in plans(root, tomorrow("01:00:00")) {
        let prepared = plan.prepare_by_steps(step)?;
        writer.adopt_by_steps(&prepared, tomorrow("01:00:01"), step).map_err(|error| match error {
            LedgerError::Compact(error) => error,
            other => panic!("{other}"),
        })?;
    }
    tidy_by_steps(root, &host("hv1"), step)?;
    Ok(())
}

#[test]
fn a_changed_row_in_a_compacted_segment_is_found_even_if_all_else_fits() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = day(root.path());
    let plan = plans(root.path(), tomorrow("01:00:00")).remove(0);
    let mut prepared = plan.prepare().unwrap();
    // Somebody with the key exchanges a table: rows of segment 2 appear as those of 3 would.
    let (path, entry) = prepared.files.iter_mut().find(|(_, entry)| entry.kind == Kind::Flows).unwrap();
    let batch = segment::read_batch(path).unwrap();
    let fewer = batch.slice(0, batch.num_rows() - 1);
    let bytes = segment::seal::encode_parquet(Kind::Flows, &fewer).unwrap();
    fs::write(&path, &bytes).unwrap();
    entry.rows -= 1;
    entry.bytes = u64::try_from(bytes.len()).unwrap();
    entry.sha256 = vestigo_model::Digest::of(&bytes);
    entry.rows_sha256 = Some(segment::rows_digest(Kind::Flows, &fewer).unwrap());
    writer.adopt(&prepared, tomorrow("01:00:01")).unwrap();
    tidy(root.path(), &host("hv1")).unwrap();
    assert_eq!(findings(root.path()), [(What::RowsDiffer, 6, 6)]);
}

#[test]
fn what_is_not_as_sealed_is_never_compacted() {
    let root = tempfile::tempdir().unwrap();
    drop(day(root.path()));
    let plan = plans(root.path(), tomorrow("01:00:00")).remove(0);
    let old = &plan.segments[2];
    let path = old.file(Kind::Flows).unwrap().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 1;
    fs::write(&path, bytes).unwrap();
    let said = plan.prepare().unwrap_err().to_string();
    assert!(said.starts_with("segment 3 is not as it was sealed") && said.contains("ledger verify"), "{said}");
    assert_eq!(findings(root.path()), [(What::FileChanged, 3, 3)]);
}

#[test]
fn a_large_day_becomes_several_segments_and_a_gap_ends_a_run() {
    let root = tempfile::tempdir().unwrap();
    drop(day(root.path()));
    let options = CompactOptions { max_rows: 45, ..CompactOptions::default() };
    let plans = plan(root.path(), &host("hv1"), options, tomorrow("01:00:00")).unwrap();
    assert_eq!(plans.iter().map(|p| p.segments.len()).collect::<Vec<_>>(), [2, 2, 2], "20 flows each");
    let path = plans[0].segments[1].file(Kind::Flows).unwrap().unwrap();
    fs::remove_file(path).unwrap();
    let plans = self::plans(root.path(), tomorrow("01:00:00"));
    let runs: Vec<Vec<u64>> = plans.iter().map(|p| p.segments.iter().map(|s| s.manifest.sequence).collect()).collect();
    assert_eq!(runs, [vec![3, 4, 5, 6]], "neither over the gap nor with a segment that is not whole");
}

#[test]
fn an_edited_original_no_longer_fits_the_segment_that_replaced_it() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = day(root.path());
    compact(root.path(), &mut writer, &mut |_| Ok(())).unwrap();
    let folder = root.path().join("date=2026-11-22/host=hv1");
    let names: BTreeMap<u64, PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".manifest.json"))
        .map(|path| (crate::manifest::sequence_of(path.file_name().unwrap().to_str().unwrap()).unwrap(), path))
        .collect();
    let text = fs::read_to_string(&names[&2]).unwrap();
    fs::write(&names[&2], text.replacen("\"torn_bytes\": 0", "\"torn_bytes\": 1", 1)).unwrap();
    let found = findings(root.path());
    assert!(found.contains(&(What::Rewritten, 2, 2)), "{found:?}");
    assert!(found.contains(&(What::FileMissing, 2, 2)), "its rows are nowhere any more: {found:?}");
}
