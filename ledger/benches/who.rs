//! How long questions take over many hosts and days: `cargo bench -p vestigo-ledger --bench who --features catalog`.
//!
//! Makes a ledger below `WHO_DIR` (default: a folder of its own in the temporary folder, removed at the end) of `HOSTS` x `DAYS` segments
//! with `FLOWS` flows each, and prints one `name: value` line a figure; progress goes to stderr. The ledger is small in flows and large in
//! segments: what a question costs depends on how many segments there are, and on how few of them it has to open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::{
    fs,
    net::IpAddr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use vestigo_ledger::{
    FlowQuery, FolderStore, Ledger, Manifest, OpenOptions, Writer, WriterOptions,
    questions::{pilots::PilotsQuestion, who::WhoQuestion},
};
use vestigo_model::{Coverage, CoverageState, Exit, Fact, Flow, Instance, Label, TimeRange};

use fixture::*;

/// VMs of a host.
const VMS: u64 = 5;
/// Times that each question is asked; the median counts.
const ASKED: usize = 15;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn day(number: u64) -> Duration {
    Duration::from_secs(86_400 * number)
}

fn address(host: u64, vm: u64) -> String {
    // Private addresses of tenants overlap: every tenth host has the same ones.
    let net = if host.is_multiple_of(10) { 0 } else { host };
    format!("10.{}.{}.{}", net / 250, net % 250, vm + 5)
}

fn vm(host: u64, number: u64) -> Instance {
    let mut vm =
        instance(&format!("hv{host}"), u8::try_from(number + 1).unwrap(), Some("atlas"), &address(host, number));
    vm.domain = format!("d0000000-0000-4000-8000-{host:06x}{number:06x}").parse().unwrap();
    vm.id = vestigo_model::InstanceId::new(format!("vm-{host}-{number}")).unwrap();
    vm
}

fn flows(vms: &[Instance], count: u64, seed: u64, by: Duration) -> Vec<Flow> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let one = |_| {
        let (vm, at_) = (&vms[usize::try_from(next() % VMS).unwrap()], next() % 86_000_000);
        let port = u16::try_from(1024 + next() % 60_000).unwrap();
        let mut flow = flow(vm, port, "00:00:00", None);
        let begin = at("00:00:00") + by + Duration::from_millis(at_);
        (flow.first, flow.last) = (begin, begin + Duration::from_millis(next() % 60_000));
        let peer = next() % 4096;
        flow.resp_ip = IpAddr::from([192, 0, u8::try_from(peer / 256).unwrap(), u8::try_from(peer % 256).unwrap()]);
        flow
    };
    (0..count).map(one).collect()
}

fn write_host(root: &Path, number: u64, days: u64, count: u64) {
    let options = WriterOptions {
        host: host(&format!("hv{number}")),
        max_segment_age: Duration::from_secs(300),
        max_wal_bytes: 1 << 28,
    };
    let own = root.join(format!(".host{number}"));
    let (mut writer, _) = Writer::open(&own, options).unwrap();
    let vms: Vec<Instance> = (0..VMS).map(|vm_number| vm(number, vm_number)).collect();
    for today in 0..days {
        let by = day(today);
        let mut facts = Vec::new();
        for one in vms.iter().filter(|_| today == 0) {
            let mut one = one.clone();
            one.start = at("00:00:00");
            facts.push(record(at("00:00:00"), Fact::Instance(one)));
        }
        for (slot, one) in vms.iter().enumerate() {
            let run = (number * 1000 + today) * VMS + u64::try_from(slot).unwrap();
            let mut work = payload(one, 1, &format!("user{}", run % 997), "atlas", (41000, 41999), "01:00:00");
            work.claim.uid = nth_uid(usize::try_from(run).unwrap());
            (work.received, work.claimed) = (work.received + by, work.claimed + by);
            let mut over = finished(work.clone(), "20:00:00", Exit::Code(0));
            over.end.iter_mut().for_each(|end| (end.received, end.claimed) = (end.received + by, end.claimed + by));
            facts.push(record(at("01:00:00") + by, Fact::Payload(work)));
            facts.push(record(at("20:00:00") + by, Fact::Payload(over)));
        }
        let (from, to) = (at("00:00:00") + by, at("23:59:59.9999") + by);
        let seen = Coverage {
            host: host(&format!("hv{number}")),
            domain: None,
            tap: None,
            from,
            to,
            state: CoverageState::Ok,
        };
        facts.push(record(to, Fact::Coverage(seen)));
        writer.append(&facts, &flows(&vms, count, number * 1000 + today + 1, by)).unwrap();
        writer.seal(at("23:59:59") + by).unwrap().unwrap();
    }
    drop(writer);
    for date in fs::read_dir(&own).unwrap().flatten() {
        if date.file_name().to_string_lossy().starts_with("date=") {
            let target = root.join(date.file_name());
            fs::create_dir_all(&target).unwrap();
            let name = format!("host=hv{number}");
            fs::rename(date.path().join(&name), target.join(&name)).unwrap();
            describe(&target.join(name), number);
        }
    }
    fs::remove_dir_all(own).unwrap();
}

/// Members that an older writer leaves out.
fn describe(folder: &Path, host: u64) {
    for file in fs::read_dir(folder).unwrap().flatten() {
        if file.file_name().to_string_lossy().ends_with(".manifest.json") {
            let mut manifest: Manifest = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
            if manifest.addresses.is_none() {
                manifest.addresses = Some((0..VMS).map(|vm| ip(&address(host, vm))).collect());
                manifest.blind = Some(Vec::new());
                manifest.points = Some(VMS);
                fs::write(file.path(), serde_json::to_vec(&manifest).unwrap()).unwrap();
            }
        }
    }
}

fn timed(mut ask: impl FnMut(usize)) -> (Duration, Duration) {
    let mut times: Vec<Duration> = (0..ASKED)
        .map(|turn| {
            let began = Instant::now();
            ask(turn);
            began.elapsed()
        })
        .collect();
    let first = times[0];
    times.sort();
    (first, times[ASKED / 2])
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn report(name: &str, (first, median): (Duration, Duration)) {
    println!("{name}_first_ms: {:.2}", first.as_secs_f64() * 1000.0);
    println!("{name}_median_ms: {:.2}", median.as_secs_f64() * 1000.0);
}

fn main() {
    let (hosts, days, count) = (number("HOSTS", 200), number("DAYS", 10), number("FLOWS", 500));
    let kept = std::env::var_os("WHO_DIR").map(PathBuf::from);
    let folder = tempfile::tempdir().unwrap();
    let root = kept.clone().unwrap_or_else(|| folder.path().join("ledger"));
    if !root.exists() {
        fs::create_dir_all(&root).unwrap();
        std::thread::scope(|scope| {
            for half in 0..2 {
                let root = &root;
                scope.spawn(move || {
                    (0..hosts).filter(|host| host % 2 == half).for_each(|host| write_host(root, host, days, count))
                });
            }
        });
    }
    eprintln!("{} segments of {count} flows", hosts * days);
    let catalog = folder.path().join("catalog.sqlite");
    let open =
        |catalog: Option<PathBuf>| Ledger::open(vec![FolderStore::shared(&root)], OpenOptions { catalog }).unwrap();
    let who = |catalog: Option<PathBuf>, turn: usize| {
        let host = u64::try_from(turn).unwrap() * 13 % hosts;
        let by = day(u64::try_from(turn).unwrap() % days);
        let range = TimeRange::around(at("14:03:22") + by, Duration::from_secs(300));
        let question =
            WhoQuestion { range, ip: ip(&address(host, 2)), port: None, peer: None, proto: None, instance: None };
        let answer = open(catalog).who(&question).unwrap();
        assert!(!answer.candidates.is_empty() && answer.coverage.complete, "{:?}", answer.coverage);
    };
    report("who_without_catalog", timed(|turn| who(None, turn)));
    report("who", timed(|turn| who(Some(catalog.clone()), turn)));
    println!("rss_after_who_kib: {}", resident());
    report(
        "flows_by_ip_without_time",
        timed(|turn| {
            let host = u64::try_from(turn).unwrap() * 17 % hosts;
            let ledger = open(Some(catalog.clone()));
            let range = ledger.extent().unwrap().unwrap();
            let query = FlowQuery { ips: [ip(&address(host, 1))].into(), ..FlowQuery::all(range) };
            let mut found = 0;
            ledger
                .flows_matching(query, &mut |_| {
                    found += 1;
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert!(found > 0);
        }),
    );
    report(
        "pilots",
        timed(|turn| {
            let question =
                PilotsQuestion { subject: Label::new(format!("user{}", turn * 7)).unwrap(), issuer: None, range: None };
            let answer = open(Some(catalog.clone())).pilots(&question).unwrap();
            assert!(answer.rows.len() < 500);
        }),
    );
    println!("rss_kib: {}", resident());
    println!("catalog_bytes: {}", fs::metadata(&catalog).unwrap().len());
}
