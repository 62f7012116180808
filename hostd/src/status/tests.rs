#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use vestigo_model::{Cloud, HostId, InstanceId, Label, Mac, Quality, TapName, Timestamp, Vo};

use super::*;
use crate::top::{Sort, View, render};

fn counters(of: &[(&str, u64)]) -> Counters {
    of.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
}

fn vm(n: u128, name: &str, vo: Option<&str>, packets: f64) -> VmStatus {
    let share = |quality, reason: &str, records| ShareStatus {
        quality,
        reason: reason.to_owned(),
        records,
        packets: records * 10,
        bytes: records * 1000,
    };
    VmStatus {
        domain: DomainUuid(uuid::Uuid::from_u128(n)),
        instance: InstanceId::new("i").unwrap(),
        name: Label::new(name).unwrap(),
        cloud: Cloud::Plain,
        vo: vo.map(|vo| Vo::new(vo).unwrap()),
        agent: "present".to_owned(),
        payloads: 3,
        lease_bytes: 9000,
        taps: vec![TapStatus {
            name: TapName::new(format!("vnet{n}")).unwrap(),
            mac: Mac([0; 6]),
            unseen: None,
            flows: 1234,
            rates: Rates { packets_from_vm: packets, bytes_from_vm: packets * 100.0, ..Rates::default() },
            counters: counters(&[("frames", 5), ("ring_dropped", 7)]),
            undecodable: counters(&[("arp", 2)]),
        }],
        attribution: vec![share(Quality::Lease, "", 3), share(Quality::Instance, "say \"why\"\\", 1)],
        counters: counters(&[("spoofed", 4), ("folded_flows", 1_500_000)]),
    }
}

pub(super) fn status() -> Status {
    Status {
        version: VERSION,
        host: HostId::new("hv1").unwrap(),
        hostd: "0.1.0".to_owned(),
        time: Timestamp::from_nanos(1_795_000_000_000_000_000),
        since: Timestamp::from_nanos(1_794_000_000_500_000_000),
        memory: counters(&[("resident", 50 << 20), ("leases", 9000)]),
        waiting: counters(&[("ledger", 1)]),
        stages: BTreeMap::from([("ledger".to_owned(), counters(&[("flows", 10), ("flows_lost", 2)]))]),
        vos: vec![VoStatus { vo: None, attribution: vm(1, "a", None, 0.0).attribution }],
        vms: vec![vm(1, "one", Some("atlas"), 12_345.0), vm(2, "two", None, 900_000.0)],
    }
}

#[test]
fn the_document_round_trips() {
    let text = serde_json::to_string(&status()).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status());
}

#[test]
fn metrics_are_open_metrics_text() {
    let text = open_metrics(&status()).unwrap();
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "# TYPE vestigo_ledger_flows_lost counter",
        "vestigo_ledger_flows_lost_total 2.0",
        r#"vestigo_flow_records_total{vo="unmapped",quality="instance",reason="say \"why\"\\"} 1.0"#,
        r#"vestigo_tap_ring_dropped_total{domain="00000000-0000-0000-0000-000000000001",vm="one",vo="atlas",tap="vnet1"} 7.0"#,
        r#"vestigo_vm_agent{domain="00000000-0000-0000-0000-000000000002",vm="two",vo="unmapped",state="present"} 1.0"#,
        "vestigo_vms 2.0",
        "vestigo_start_time_seconds 1794000000.5",
    ] {
        assert!(text.lines().any(|of| of == line), "{line}\nis not in\n{text}");
    }
    let families: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let mut once = families.clone();
    once.dedup();
    assert_eq!(once.len(), families.len(), "every family once");
}

#[test]
fn the_table_fits_the_window() {
    let view = |width, height| View { sort: Sort::Packets, width, height, colour: false };
    let wide = render(&status(), &view(None, None));
    let lines: Vec<&str> = wide.lines().collect();
    assert!(lines[0].starts_with("hv1 2026-"), "{wide}");
    assert!(lines[2].starts_with("VM ") && lines[2].contains("FOLDED") && lines[2].ends_with("DOUBTS"), "{wide}");
    assert!(lines[3].starts_with("two") && lines[3].contains("900k"), "most packets first: {wide}");
    assert!(lines[4].starts_with("one") && lines[4].contains("atlas") && lines[4].contains("75%"), "{wide}");
    for width in 1..120 {
        let narrow = render(&status(), &view(Some(width), None));
        assert!(narrow.lines().all(|line| line.chars().count() <= width), "{width}:\n{narrow}");
        assert!(width < 30 || narrow.contains("OUT p/s"), "{width}:\n{narrow}");
    }
    let low = render(&status(), &view(None, Some(6)));
    assert!(low.ends_with("… and 1 more\n") && low.lines().count() == 5, "{low}");
    let by_name = render(&status(), &View { sort: Sort::Name, ..view(None, None) });
    assert!(by_name.lines().nth(3).unwrap().starts_with("one"));
    let coloured = render(&status(), &View { colour: true, ..view(None, None) });
    assert!(coloured.contains("\x1b[7m") && !wide.contains('\x1b'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_connects_is_given_the_document_and_who_hangs_delays_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("status.sock");
    let (asks, mut asked) = tokio::sync::mpsc::channel::<Ask>(4);
    assert!(matches!(serve(&path, Some("no-such-group"), asks.clone()), Err(StatusError::Group(_))));
    // What an earlier life left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    serve(&path, None, asks.clone()).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(serve(&path, None, asks.clone()), Err(StatusError::Listen { .. })), "another lives");
    let service = tokio::spawn(async move {
        while let Some(ask) = asked.recv().await {
            ask.answer(status);
        }
    });
    let hanging: Vec<_> = (0..3).map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap()).collect();
    let from = path.clone();
    let got = tokio::task::spawn_blocking(move || fetch(&from)).await.unwrap().unwrap();
    assert_eq!(got, status());
    drop(hanging);
    let file = folder.path().join("vestigo.prom");
    let writer = tokio::spawn(write_regularly(file.clone(), std::time::Duration::from_millis(1), asks));
    while !file.exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), open_metrics(&status()).unwrap());
    writer.abort();
    service.abort();
    let gone =
        tokio::task::spawn_blocking(move || fetch(std::path::Path::new("/nonexistent/status.sock"))).await.unwrap();
    assert!(gone.unwrap_err().to_string().contains("does it run, and may you?"));
}
