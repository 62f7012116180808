//! Whatever flow goes into a segment comes out of it unchanged, and pruning never hides one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::{net::IpAddr, time::Duration};

use fixture::*;
use proptest::prelude::*;
use vestigo_ledger::{FlowFilter, Ledger, Writer, WriterOptions};
use vestigo_model::{
    Attribution, Direction, EndReason, Expected, Flow, FlowNotes, Folded, Initiator, PostNat, Quality, SciTag,
    SciTagSource, TimeRange, Timestamp, Tunnel, Tuple,
};

prop_compose! {
    fn any_notes()(
        inner_vlan: Option<u16>, tunnel: Option<(bool, u32)>, folded: Option<(u64, u16)>, icmp_error: Option<u16>,
        spoken in prop::option::of(any::<(IpAddr, u16, IpAddr, u16, u8)>()), scitag: Option<(u16, u8, bool)>,
    ) -> FlowNotes {
        FlowNotes {
            inner_vlan, icmp_error,
            tunnel: tunnel.map(|(vxlan, id)| if vxlan { Tunnel::Vxlan(id) } else { Tunnel::Geneve(id) }),
            folded: folded.map(|(flows, last_port)| Folded { flows, last_port }),
            speaks_of: spoken.map(|(src, src_port, dst, dst_port, proto)| Tuple {
                src_ip: src.to_canonical(), src_port, dst_ip: dst.to_canonical(), dst_port, proto,
            }),
            scitag: scitag.map(|(experiment, activity, label)| SciTag {
                experiment, activity, by: if label { SciTagSource::FlowLabel } else { SciTagSource::Firefly },
            }),
        }
    }
}

prop_compose! {
    fn any_flow()(
        ips in any::<(IpAddr, IpAddr, IpAddr)>(), ports in any::<(u16, u16, u16)>(), proto: u8,
        first in 0_i64..4_000_000_000_000_000_000, length in 0_i64..1_000_000_000_000,
        counters: [u64; 4], flags: [u8; 2], vlan: Option<u16>, nat: bool, words in 0_usize..5,
        labelled: bool, reason in ".{0,20}",
        notes in prop_oneof![2 => Just(FlowNotes::default()), 1 => any_notes()],
    ) -> Flow {
        let vm = instance("hv1", 1, if nat { Some("atlas") } else { None }, "10.0.0.5");
        let canonical = |ip: IpAddr| ip.to_canonical();
        Flow {
            direction: if nat { Direction::Outgoing } else { Direction::Incoming },
            orig_ip: canonical(ips.0), resp_ip: canonical(ips.1), orig_port: ports.0, resp_port: ports.1, proto, vlan,
            first: Timestamp::from_nanos(first), last: Timestamp::from_nanos(first + length),
            orig_packets: counters[0], orig_bytes: counters[1], resp_packets: counters[2], resp_bytes: counters[3],
            orig_flags: flags[0], resp_flags: flags[1],
            end_reason: [EndReason::Idle, EndReason::Active, EndReason::EndOfFlow, EndReason::Forced,
                EndReason::LackOfResources][words],
            initiator: [Initiator::Seen, Initiator::Inferred, Initiator::Unknown][words % 3],
            src_expected: [Expected::Yes, Expected::No, Expected::Unknown][words % 3],
            post_nat: nat.then(|| PostNat { ip: canonical(ips.2), port: ports.2 }),
            attribution: Attribution {
                quality: if labelled { Quality::Observed } else { Quality::Instance },
                payload: labelled.then(|| uid(7)), reason,
            },
            notes,
            ..flow(&vm, 1, "14:00:00", None)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn flows_survive_the_log_and_the_segment(flows in prop::collection::vec(any_flow(), 1..40), pick: prop::sample::Index) {
        let root = tempfile::tempdir().unwrap();
        let options =
            WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(1), max_wal_bytes: 1 << 26 };
        let (mut writer, _) = Writer::open(root.path(), options).unwrap();
        writer.append(&[], &flows).unwrap();
        let picked = &flows[pick.index(flows.len())];
        let all = TimeRange { from: Timestamp::from_nanos(0), to: Timestamp::from_nanos(i64::MAX) };
        let filters = [
            FlowFilter { range: all, ip: None, vo: None },
            FlowFilter { range: TimeRange { from: picked.last, to: picked.last }, ip: Some(picked.resp_ip), vo: None },
            FlowFilter { range: all, ip: picked.post_nat.map(|nat| nat.ip), vo: picked.vo.clone() },
        ];
        let read = |filter| Ledger::open_folders(&[root.path().to_owned()]).unwrap().flows(filter).unwrap();
        let live: Vec<Vec<Flow>> = filters.iter().map(read).collect();
        writer.seal(at("14:00:00")).unwrap().expect("a segment");
        let sealed: Vec<Vec<Flow>> = filters.iter().map(read).collect();
        prop_assert_eq!(&live, &sealed);
        prop_assert_eq!(live[0].len(), flows.len());
        prop_assert!(live[1].contains(picked) && live[2].contains(picked));
    }
}

/// More than one row group and many pages: the skipping is really exercised.
#[test]
fn pruning_finds_the_needle() {
    let root = tempfile::tempdir().unwrap();
    let options = WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(1), max_wal_bytes: 1 << 30 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut flows: Vec<Flow> = Vec::new();
    for number in 0..140_000_u32 {
        let mut flow = flow(&vm, 1024, "10:00:00", Some(1));
        flow.first = flow.first + Duration::from_millis(u64::from(number));
        flow.last = flow.first;
        flow.resp_ip = IpAddr::from(std::net::Ipv4Addr::from(0x0a01_0000 + number));
        flows.push(flow);
    }
    writer.append(&[], &flows).unwrap();
    let sealed = writer.seal(at("14:00:00")).unwrap().expect("a segment");
    assert!(sealed.manifest.files[0].bytes < 40 * 140_000, "{} bytes", sealed.manifest.files[0].bytes);
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    for needle in [0, 4095, 4096, 131_071, 131_072, 139_999] {
        let wanted = &flows[needle];
        let around = TimeRange::around(wanted.first, Duration::from_millis(1));
        let filter = FlowFilter { range: around, ip: Some(wanted.resp_ip), vo: None };
        assert_eq!(ledger.flows(&filter).unwrap(), std::slice::from_ref(wanted));
        let filter = FlowFilter { range: around, ip: None, vo: None };
        assert!((2..=3).contains(&ledger.flows(&filter).unwrap().len()));
    }
    let day = TimeRange { from: at("00:00:00"), to: at("23:59:59") };
    let filter = FlowFilter { range: day, ip: Some(ip("203.0.113.1")), vo: None };
    assert_eq!(ledger.flows(&filter).unwrap(), []);
}

/// `tests/data/before-notes` was written by the version before the columns of notes: a sealed segment and a live log.
#[test]
fn a_segment_without_the_columns_of_notes_still_answers() {
    let old = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/before-notes");
    let ledger = Ledger::open_folders(&[old]).unwrap();
    let day = TimeRange { from: at("00:00:00"), to: at("23:59:59") };
    let flows = ledger.flows(&FlowFilter { range: day, ip: Some(ip("10.0.0.5")), vo: None }).unwrap();
    assert_eq!(flows.iter().map(|flow| flow.orig_port).collect::<Vec<_>>(), [41022, 42022, 50000]);
    assert!(flows.iter().all(|flow| flow.notes.is_empty()));
    let facts = ledger.facts(day).unwrap();
    assert!(facts.instances.iter().flat_map(|vm| &vm.taps).all(|tap| tap.network.is_none()) && facts.unreadable == 0);
}
