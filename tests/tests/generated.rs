//! A generated ledger, with known truth, answers as it must.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::BTreeMap, time::Duration};

use vestigo_model::{Fact, Holder, Lease, Payload, TimeRange, Timestamp, Vo};
use vestigo_tests::ledger::{Shape, Site, ask::Vestigo, day::day, nfdump, truth::Truth, write};

const TOLERANCE: Duration = Duration::from_secs(2);

fn range(from: i64, to: i64) -> TimeRange {
    TimeRange::new(Timestamp::from_nanos(from), Timestamp::from_nanos(to)).unwrap()
}

#[test]
fn the_same_seed_makes_the_same_day_and_it_holds_together() {
    let site = Site::new(Shape::small()).unwrap();
    let (one, other) = (day(&site, 1, 1).unwrap(), day(&site, 1, 1).unwrap());
    assert_eq!((&one.facts, &one.flows), (&other.facts, &other.flows));
    assert_ne!(day(&Site::new(Shape { seed: 2, ..Shape::small() }).unwrap(), 1, 1).unwrap().flows, one.flows);
    let flows = (0..3).flat_map(|host| (0..2).map(move |number| (host, number)));
    let flows: u64 = flows.map(|(host, number)| day(&site, host, number).unwrap().flows.len() as u64).sum();
    assert_eq!(flows, site.shape.flows);

    let mut payloads: BTreeMap<_, Payload> = BTreeMap::new();
    for record in [day(&site, 1, 0).unwrap(), day(&site, 1, 1).unwrap()].into_iter().flat_map(|day| day.facts) {
        if let Fact::Payload(payload) = record.fact {
            payload.claim.check().unwrap();
            payloads.insert(payload.claim.uid, payload);
        }
    }
    assert!(payloads.values().any(|p| p.claim.holder == Holder::Payload));
    assert!(payloads.values().any(|p| p.claim.leases.iter().any(|l| matches!(l, Lease::Address(_)))));
    // What the generator attributes is what the arithmetic of leases gives: exactly one payload of the VM fits, this one.
    let mut attributed = 0;
    for flow in &one.flows {
        assert!(flow.first <= flow.last && flow.last.since(flow.first) <= Duration::from_secs(61));
        let of_vm = || payloads.values().filter(|p| p.domain == flow.domain && p.held_leases_at(flow.first));
        let marked: Vec<_> = flow.marked(of_vm()).iter().map(|p| p.claim.uid).collect();
        assert_eq!(marked, Vec::from_iter(flow.attribution.payload), "{flow:?}");
        attributed += marked.len();
    }
    assert!(attributed * 2 > one.flows.len(), "{attributed} of {}", one.flows.len());
}

#[test]
fn vestigo_finds_the_truth() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(Shape::small()).unwrap();
    let written = write::ledger(&site, folder.path(), 2, |_| ()).unwrap();
    assert_eq!((written.flows, written.segments), (site.shape.flows, 6));
    let (truth, vestigo) = (Truth::new(&site), Vestigo::over(folder.path()).unwrap());
    let mut with_payload = 0;
    for number in 0..24 {
        let point = truth.point(number).unwrap();
        let expected = truth.who(point.ip, point.port, TimeRange::around(point.time, TOLERANCE)).unwrap();
        with_payload += expected.iter().filter(|someone| someone.payload.is_some()).count();
        assert!(!expected.is_empty());
        assert_eq!(vestigo.who(point.time, point.ip, point.port).unwrap(), expected, "{point:?}");
    }
    assert!(with_payload > 12);
    let whole = range(site.shape.start(), site.shape.end() - 1);
    for vo in ["atlas", "cms", "lhcb"] {
        let part = range(site.shape.start() + 5_000_000_000_000, site.shape.midnight(1) + 7_000_000_000_000);
        assert_eq!(vestigo.ips(vo, part).unwrap(), truth.ips(&Vo::new(vo).unwrap(), part).unwrap(), "{vo}");
    }
    let mut runs = 0;
    for user in site.tenants.iter().flat_map(|tenant| tenant.users.iter().take(4)) {
        let expected = truth.pilots(&user.subject, whole).unwrap();
        runs += expected.len();
        assert_eq!(vestigo.pilots(user.subject.as_str(), whole).unwrap(), expected, "{user}");
    }
    assert!(runs > 5, "{runs}");
}

#[test]
fn nfdump_reads_the_same_flows() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(Shape::small()).unwrap();
    nfdump::write(&site, folder.path(), 2, |_| ()).unwrap();
    let all = folder.path().display().to_string();
    assert_eq!(nfdump::ask(&["-R", &all], "any").unwrap().0, site.shape.flows);
    let truth = Truth::new(&site);
    for number in [1, 2, 4, 5, 7, 8] {
        let flow = truth.point(number).unwrap().flow;
        let (ip, _) = flow.local();
        let found = nfdump::ask(&["-R", &all], &format!("ip {ip}")).unwrap();
        let known = truth.flows_of(ip, range(site.shape.start(), site.shape.end())).unwrap();
        let known = known.values().fold((0, 0), |sum, of| (sum.0 + of.flows, sum.1 + of.bytes));
        assert_eq!(found, known, "{ip}");
        let file = nfdump::file(folder.path(), flow.last).display().to_string();
        let tuple = format!("src ip {} and src port {} and dst port {}", flow.orig_ip, flow.orig_port, flow.resp_port);
        let found = nfdump::ask(&["-r", &file], &tuple).unwrap();
        assert!(found.0 >= 1 && found.1 >= flow.orig_bytes + flow.resp_bytes, "{flow:?}: {found:?}");
    }
}
