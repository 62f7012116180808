//! The host's own translations, from the kernel's word to the ledger.

use super::*;
use crate::nat::message::Entry;

fn masqueraded(port: u16, public: u16) -> Entry {
    let (vm, web) = (("10.0.0.5".parse().unwrap(), port), ("192.0.2.1".parse().unwrap(), 443));
    let public = ("198.51.100.1".parse().unwrap(), public);
    Entry { proto: 6, zone: 0, original: (vm, web), reply: (web, public), id: Some(1), began: None, ended: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_carry_what_the_world_saw_and_what_they_lack_is_an_event() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let _listener = host.boot(root.path(), 1).await;
    host.nat.enter(&masqueraded(1030, 61_030));
    host.flow(1, 1030, |_| {}).await;
    // Known only after the first record of its flow.
    host.flow(1, 1031, |flow| flow.end_reason = EndReason::Active).await;
    host.settled().await;
    host.nat.enter(&masqueraded(1031, 61_031));
    host.flow(1, 1031, |flow| flow.began = flow.began - Duration::from_secs(60)).await;
    let facts = host.stop(root.path()).await;
    let told: Vec<_> = facts.events.iter().filter_map(Translation::from_event).collect();
    assert_eq!((told.len(), told[0].why.as_str(), told[0].reply.1.1), (1, "late", 61_031));
    let off = facts.coverage.iter().filter(|one| matches!(one.state, CoverageState::NatUnseen { .. }));
    assert!(off.count() > 0, "nobody follows the kernel in this test");
    let ledger = vestigo_ledger::Ledger::open_folders(&[root.path().join("ledger")]).unwrap();
    let range = TimeRange::around(SystemClock.now(), LEASE_REST);
    let flows = ledger.flows(&vestigo_ledger::FlowFilter { range, ip: None, vo: None }).unwrap();
    let mut ports: Vec<_> = flows.iter().map(|flow| (flow.orig_port, flow.post_nat.map(|nat| nat.port))).collect();
    ports.sort_unstable();
    assert_eq!(ports, [(1030, Some(61_030)), (1031, None), (1031, Some(61_031))]);
}
