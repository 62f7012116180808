//! Forged sources and marks of other VOs, at the service.

use std::collections::BTreeMap;

use vestigo_model::{Expected, FlowNotes, Mac, SciTag, SciTagSource, Vo};

use super::*;
use crate::witness::TapWitness;

/// A flow of a tenant of atlas.
async fn of_atlas(host: &Host, port: u16, source: &str, tag: Option<u16>) {
    let scitag = tag.map(|experiment| SciTag { experiment, activity: 1, by: SciTagSource::FlowLabel });
    let tenant = |observed: &mut crate::capture::Observed| {
        observed.vo = Vo::new("atlas").ok();
        observed.tap.expected = vec!["10.0.0.5".parse().unwrap()];
    };
    let source = source.parse().unwrap();
    let flow = |flow: &mut crate::meter::Metered| {
        (flow.orig, flow.notes) = ((source, port), FlowNotes { scitag, ..FlowNotes::default() });
    };
    host.flow_of(1, port, tenant, flow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_sources_are_told_once_and_counted() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let _listener = host.boot(root.path(), 1).await;
    // Asked after the VM is there: machines' events come first.
    while host.status().await.vms.is_empty() {}
    for port in 1..=20 {
        of_atlas(&host, port, "198.51.100.7", None).await;
    }
    of_atlas(&host, 30, "10.0.0.5", None).await;
    of_atlas(&host, 31, "2001:db8::1", None).await;
    host.settled().await;
    let status = host.status().await;
    let vm = &status.vms[0];
    assert_eq!((vm.counters["spoofed"], vm.agent.as_str()), (20, "absent"));
    let of: BTreeMap<&str, u64> = vm.attribution.iter().map(|share| (share.reason.as_str(), share.records)).collect();
    assert_eq!(of, BTreeMap::from([("agent-absent", 22)]));
    assert_eq!(status.vos[0].vo.as_ref().map(Vo::as_str), Some("atlas"));
    assert_eq!(status.vos[0].attribution[0].packets, 44);
    let (facts, flows) = host.stop_with_flows(root.path()).await;
    let told = events(&facts, EventKind::Spoofing);
    let counts: Vec<_> = told.iter().map(|event| event.detail["flow-records"].as_str()).collect();
    assert_eq!(counts, ["1", "19"]);
    assert!(told[0].detail["last"].ends_with("(by the word of: cloud)"), "{told:?}");
    let judged = |expected| flows.iter().filter(|flow| flow.src_expected == expected).count();
    assert_eq!((judged(Expected::No), judged(Expected::Yes), judged(Expected::Unknown)), (20, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_label_is_a_mark_only_of_a_vm_that_marks() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let _listener = host.boot(root.path(), 1).await;
    while host.status().await.vms.is_empty() {}
    // As an ordinary system: other numbers for other flows, a few of them those of experiments.
    for n in 0..200 {
        of_atlas(&host, 1000 + n, "10.0.0.5", Some(1 + n * 2 % 511)).await;
    }
    host.settled().await;
    assert_eq!(host.status().await.vms[0].counters["mismarked"], 0);
    // 73 of 273 are more than a quarter.
    for n in 0..120 {
        of_atlas(&host, 2000 + n, "10.0.0.5", Some(3)).await;
    }
    host.settled().await;
    let told_to = host.status().await.vms[0].counters["mismarked"];
    assert!((40..60).contains(&told_to), "{told_to}");
    host.vos.send_replace(crate::domain::VoMap::parse("[scitags.experiments]\natlas = 3\n").unwrap());
    of_atlas(&host, 3000, "10.0.0.5", Some(3)).await;
    host.settled().await;
    assert_eq!(host.status().await.vms[0].counters["mismarked"], told_to, "the site says that 3 is atlas here");
    let (facts, flows) = host.stop_with_flows(root.path()).await;
    let told = events(&facts, EventKind::Contradiction);
    assert!(
        told[0].detail["last"].contains("flow-label says experiment 3 (cms), the tenant's VO is atlas"),
        "{told:?}"
    );
    let marked = flows.iter().filter(|flow| flow.notes.scitag.is_some()).count();
    assert_eq!(u64::try_from(marked).unwrap(), told_to + 1, "and what is no mark is not kept as one");
}

/// A transfer's first record is written after a quarter of a second, its firefly comes when the program that sends it is ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_firefly_that_comes_late_is_compared_with_the_tenants_vo_once() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let _listener = host.boot(root.path(), 1).await;
    while host.status().await.vms.is_empty() {}
    let mut witness = TapWitness::new(Mac([0; 6]), vec![]);
    let learning = witness.clone();
    let tenant = |observed: &mut crate::capture::Observed| {
        (observed.vo, observed.witness) = (Vo::new("atlas").ok(), learning);
    };
    host.flow_of(1, 41_000, tenant, |_| {}).await;
    host.settled().await;
    let firefly = |source: &str| {
        let text = format!(
            r#"{{"version":1,"flow-id":{{"src-ip":"{source}","dst-ip":"192.0.2.1","protocol":"tcp","src-port":41000,"dst-port":443}},
            "context":{{"experiment-id":3,"activity-id":1}}}}"#
        );
        let mut bytes = Vec::new();
        let link = etherparse::PacketBuilder::ethernet2([0; 6], [4; 6]);
        link.ipv4([10, 0, 0, 5], [192, 0, 2, 9], 64).udp(5000, 10_514).write(&mut bytes, text.as_bytes()).unwrap();
        bytes
    };
    for _ in 0..2 {
        let bytes = firefly("10.0.0.5");
        let packet = crate::decode::ethernet(&bytes, bytes.len(), None).unwrap();
        let (wire_len, time, heading) = (bytes.len(), SystemClock.now(), crate::decode::Heading::FromVm);
        let frame = crate::meter::Frame { bytes: &bytes, wire_len, vlan: None, time, heading };
        crate::meter::Witness::control(&mut witness, &frame, crate::meter::Control::Firefly(packet));
        for _ in 0..3 {
            host.flow(1, 41_000, |flow| flow.began = flow.began - Duration::from_secs(60)).await;
        }
        host.settled().await;
        assert_eq!(host.status().await.vms[0].counters["mismarked"], 1);
    }
    host.stop(root.path()).await;
}
