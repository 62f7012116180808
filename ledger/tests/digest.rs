//! The digest of a table's rows, computed by a stranger (pyarrow and hashlib) from the file alone, is the one in the manifest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
};
use fixture::*;
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use vestigo_ledger::{
    Kind, SegmentInfo, Writer, WriterOptions,
    people::{Owner, Sealer, SecretSet},
};
use vestigo_model::{CoverageState, Event, EventKind, Exit, Fact, FactRecord, Flow, FlowNotes, Folded, Tunnel};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn python() -> PathBuf {
    repository().join("target/venv/bin/python")
}

/// Whether pyarrow is there (`tests/prerequisites` installs it).
fn is_possible(test: &str) -> bool {
    let there = Command::new(python()).args(["-c", "import pyarrow"]).output().is_ok_and(|run| run.status.success());
    if !there {
        assert!(std::env::var("CI").is_err(), "{test} needs pyarrow, and CI must have everything");
        eprintln!("SKIPPED {test}: it needs pyarrow in target/venv (tests/prerequisites)");
    }
    there
}

fn digest_by_python(file: &Path, kind: Kind) -> String {
    let script = repository().join("docs/queries/rows_digest.py");
    let run = Command::new(python()).arg(script).arg(file).arg(kind.as_str()).output().unwrap();
    assert!(run.status.success(), "{kind}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap().trim().to_owned()
}

/// Flows of two VMs, one without a VO, with and without payload, translation, tags and notes: every column has values in some rows.
fn flows() -> Vec<Flow> {
    let (atlas, stray) = (instance("hv1", 1, Some("atlas"), "10.0.0.5"), instance("hv1", 2, None, "10.0.0.7"));
    let mut flows: Vec<Flow> = (0..40_u16)
        .map(|n| {
            let (vm, labelled) = if n % 3 == 0 { (&stray, None) } else { (&atlas, (n % 2 == 0).then_some(1)) };
            flow(vm, 41000 + n * 7 % 40, &format!("14:03:{:02}", n % 20), labelled)
        })
        .collect();
    flows[4] = translated(flows[4].clone(), "198.51.100.1", 61022);
    flows[5].vlan = Some(100);
    flows[6].notes = FlowNotes {
        inner_vlan: Some(7),
        tunnel: Some(Tunnel::Vxlan(42)),
        folded: Some(Folded { flows: 9, last_port: 41023 }),
        icmp_error: Some(0x0301),
        ..FlowNotes::default()
    };
    // Apart only in what comes late in the order.
    flows.push(Flow { resp_bytes: flows[7].resp_bytes + 1, ..flows[7].clone() });
    flows
}

fn facts() -> Vec<FactRecord> {
    let atlas = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let alice = payload(&atlas, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    let bob = finished(payload(&atlas, 2, "bob", "atlas", (42000, 42999), "14:01:01"), "14:02:00", Exit::Code(3));
    let lost = CoverageState::Lost { place: "queue".to_owned(), count: Some(5) };
    let (host, domain) = (atlas.host.clone(), Some(atlas.domain));
    let event = Event { host, domain, time: at("14:02:00"), what: EventKind::LinkFault, detail: Default::default() };
    let facts = [
        Fact::Coverage(coverage(&atlas, "14:00:00", "14:01:00", CoverageState::Ok)),
        Fact::Coverage(coverage(&atlas, "14:01:00", "14:02:00", lost)),
        Fact::Payload(alice),
        Fact::Payload(bob),
        Fact::Event(event),
        Fact::Instance(instance("hv1", 2, None, "10.0.0.7")),
        Fact::Instance(ended(atlas, "14:04:00")),
    ];
    facts.into_iter().map(|fact| record(at("14:04:00"), fact)).collect()
}

fn seal(root: &Path, facts: &[FactRecord]) -> SegmentInfo {
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root, options).unwrap();
    let site = SecretSet::generate(Owner::Site, "2026-11".parse().unwrap());
    writer.seal_names_with(Arc::new(Sealer::new(vec![site.shared], None)));
    writer.append(facts, &flows()).unwrap();
    writer.seal(at("14:05:00")).unwrap().expect("a segment")
}

#[test]
fn a_stranger_computes_the_digest_of_every_table() {
    if !is_possible("a_stranger_computes_the_digest_of_every_table") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let sealed = seal(root.path(), &facts());
    let mut kinds = BTreeSet::new();
    for file in &sealed.manifest.files {
        assert!(file.rows > 0, "no {} to digest", file.kind);
        let told = file.rows_sha256.expect("a digest").to_string();
        assert_eq!(digest_by_python(&sealed.folder.join(&file.name), file.kind), told, "{}", file.kind);
        kinds.insert(file.kind);
    }
    assert_eq!(kinds, BTreeSet::from(Kind::ALL));
}

#[test]
fn a_table_without_rows_has_a_digest_too() {
    if !is_possible("a_table_without_rows_has_a_digest_too") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let sealed = seal(root.path(), &[]);
    let empty = sealed.manifest.files.iter().find(|file| file.kind == Kind::Instances).unwrap();
    assert_eq!(empty.rows, 0);
    assert_eq!(digest_by_python(&sealed.folder.join(&empty.name), empty.kind), empty.rows_sha256.unwrap().to_string());
}

fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

#[test]
fn neither_order_nor_encoding_of_the_file_matters_but_every_value_does() {
    if !is_possible("neither_order_nor_encoding_of_the_file_matters_but_every_value_does") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let sealed = seal(root.path(), &facts());
    let entry = sealed.manifest.files.iter().find(|file| file.kind == Kind::Flows).unwrap();
    let rows = read(&sealed.folder.join(&entry.name));
    let count = u32::try_from(rows.num_rows()).unwrap();
    // The library's own defaults: nothing of a segment's encodings is left.
    let digest = |name: &str, order: UInt32Array| {
        let (path, batch) = (root.path().join(name), take_record_batch(&rows, &order).unwrap());
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        digest_by_python(&path, Kind::Flows)
    };
    let told = entry.rows_sha256.unwrap().to_string();
    assert_eq!(digest("backwards.parquet", (0..count).rev().collect()), told);
    assert_ne!(digest("one-twice.parquet", (1..count).chain([1]).collect()), told);
}
