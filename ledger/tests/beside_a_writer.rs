//! A reader beside a writer that appends and seals: every answer holds all that was acknowledged before it was asked, once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fixture::*;
use vestigo_ledger::{FlowFilter, Ledger, Writer, WriterOptions};
use vestigo_model::{Fact, TimeRange};

const FLOWS: u16 = 300;

#[test]
fn answers_are_current_and_whole_while_the_writer_seals() {
    let root = tempfile::tempdir().unwrap();
    let options = WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(1), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    writer.append(&[record(at("14:00:00"), Fact::Instance(vm.clone()))], &[]).unwrap();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&acknowledged);
    let writing = std::thread::spawn(move || {
        for port in 0..FLOWS {
            writer.append(&[], &[flow(&vm, port, "14:01:00", None)]).unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            if port % 7 == 0 {
                writer.seal(at("14:02:00")).unwrap();
            }
        }
    });
    let filter = FlowFilter { range: TimeRange { from: at("00:00:00"), to: at("23:59:59") }, ip: None, vo: None };
    let mut asked = 0;
    loop {
        let finished = writing.is_finished();
        let before = acknowledged.load(Ordering::SeqCst);
        let flows = Ledger::open_folders(&[root.path().to_owned()]).unwrap().flows(&filter).unwrap();
        let mut ports: Vec<u16> = flows.iter().map(|flow| flow.orig_port).collect();
        ports.sort_unstable();
        let expected: Vec<u16> = (0..u16::try_from(ports.len()).unwrap()).collect();
        assert_eq!(ports, expected, "each once, none left out");
        assert!(ports.len() >= before, "{} of {before} acknowledged", ports.len());
        asked += 1;
        if finished {
            break;
        }
    }
    writing.join().unwrap();
    assert!(asked > 1);
}
