//! Writes a small ledger, one sealed segment and a live log, into the folder named on the command line: something to point
//! `vestigo`, DuckDB or pyarrow at.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/fixture/mod.rs"]
pub mod fixture;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use fixture::*;
use vestigo_ledger::{Writer, WriterOptions};
use vestigo_model::{CoverageState, Event, EventKind, Fact};

fn main() {
    write(&PathBuf::from(std::env::args().nth(1).expect("usage: sample_ledger FOLDER")));
}

/// Writes it. Public, so that a test of the documentation has the same one.
pub fn write(root: &Path) {
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 64 << 20 };
    let (mut writer, _) = Writer::open(root, options).unwrap();
    let atlas = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let cms = instance("hv1", 2, Some("cms"), "10.0.0.5");
    let started = Event {
        host: host("hv1"),
        domain: None,
        time: at("13:59:59"),
        what: EventKind::HostStarted,
        detail: [("version".to_owned(), "0.1.0".to_owned())].into(),
    };
    let facts = [
        record(at("13:59:59"), Fact::Event(started)),
        record(at("14:00:00"), Fact::Instance(atlas.clone())),
        record(at("14:00:00"), Fact::Instance(cms.clone())),
        record(at("14:01:00"), Fact::Payload(payload(&atlas, 1, "alice", "atlas", (41000, 41999), "14:01:00"))),
        record(at("14:01:01"), Fact::Payload(payload(&atlas, 2, "bob", "atlas", (42000, 42999), "14:01:01"))),
        record(at("14:05:00"), Fact::Coverage(coverage(&atlas, "14:00:00", "14:05:00", CoverageState::Ok))),
        record(at("14:05:00"), Fact::Coverage(coverage(&cms, "14:00:00", "14:05:00", CoverageState::Nodata))),
    ];
    let seen = translated(flow(&atlas, 41022, "14:03:22", Some(1)), "198.51.100.1", 61022);
    writer.append(&facts, &[seen, flow(&atlas, 42022, "14:03:22", Some(2))]).unwrap();
    writer.seal(at("14:05:00")).unwrap();
    writer.append(&[], &[flow(&atlas, 50000, "14:06:00", None)]).unwrap();
}
