//! How fast one core takes flows in, all the way: appended, synced, sealed, on the disk. And what a stored flow weighs.
//!
//! `cargo bench -p vestigo-ledger --bench ingest [-- FLOWS]`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use vestigo_ledger::{Writer, WriterOptions};
use vestigo_model::{
    Attribution, Direction, DomainUuid, EndReason, Expected, Flow, HostId, Initiator, InstanceId, PayloadUid, Quality,
    TapName, Timestamp, Vo,
};

/// SplitMix64: the same flows every time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
    /// Log-normal with this median and spread.
    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal = (-2.0 * self.unit().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }
    /// Few are asked often: rank with weight 1/rank, of so many.
    fn zipf(&mut self, of: u64) -> u64 {
        ((of as f64).powf(self.unit()) as u64).min(of) - 1
    }
}

const VMS: u64 = 20;

/// Flows of a host with twenty VMs of eight payloads each, `gap` nanoseconds apart on the average.
fn flows(count: usize, gap: f64, dice: &mut Dice) -> Vec<Flow> {
    let mut at = 1_795_305_600_000_000_000_f64 as i64;
    let vos = ["atlas", "cms", "lhcb"].map(|vo| Vo::new(vo).unwrap());
    (0..count)
        .map(|_| {
            at += (dice.log_normal(gap, 1.0)) as i64 + 1;
            let vm = dice.below(VMS);
            let payload = dice.below(8);
            let kind = dice.below(10);
            let (port, proto) = match kind {
                0..=2 => (53, 17),
                3..=6 => (443, 6),
                7 => (3128, 6),
                8 => (1094, 6),
                _ => (123, 17),
            };
            let packets = dice.log_normal(12.0, 1.2).max(1.0) as u64;
            let back = dice.log_normal(14.0, 1.3) as u64;
            let lasted = dice.log_normal(80e6, 2.0) as i64;
            let peer = if port == 53 { dice.zipf(3) } else { 16 + dice.zipf(20_000) };
            Flow {
                host: HostId::new("hv1").unwrap(),
                tap: TapName::new(format!("tap{vm}")).unwrap(),
                domain: DomainUuid(uuid::Uuid::from_u128(0xd000 + u128::from(vm))),
                instance: InstanceId::new(format!("3f1c8a52-0000-4000-8000-{vm:012}")).unwrap(),
                vo: Some(vos[(vm % 3) as usize].clone()),
                direction: Direction::Outgoing,
                orig_ip: IpAddr::from([10, 0, 0, vm as u8]),
                orig_port: (10_240 + payload * 1024 + dice.below(1024)) as u16,
                resp_ip: IpAddr::from(std::net::Ipv4Addr::from((0xc000_0200_u64 + peer * 7919 % 0x00ff_ffff) as u32)),
                resp_port: port,
                proto,
                vlan: None,
                first: Timestamp::from_nanos(at),
                last: Timestamp::from_nanos(at + lasted),
                orig_packets: packets,
                orig_bytes: packets * 52 + dice.log_normal(400.0, 1.5) as u64,
                resp_packets: back,
                resp_bytes: back * 52 + if back > 0 { dice.log_normal(3000.0, 2.0) as u64 } else { 0 },
                orig_flags: if proto == 6 { 0x1b } else { 0 },
                resp_flags: if proto == 6 { 0x1b } else { 0 },
                end_reason: if proto == 6 { EndReason::EndOfFlow } else { EndReason::Idle },
                initiator: Initiator::Seen,
                src_expected: Expected::Yes,
                post_nat: None,
                notes: vestigo_model::FlowNotes::default(),
                attribution: Attribution {
                    quality: Quality::Lease,
                    payload: Some(PayloadUid(uuid::Uuid::from_u128(
                        u128::from(dice.0 >> 63) + u128::from(vm * 8 + payload) * 0x9e37_79b9_7f4a_7c15_f39c,
                    ))),
                    reason: String::new(),
                },
            }
        })
        .collect()
}

fn run(name: &str, count: usize, gap: f64, rounds: usize) {
    let folder = std::env::var_os("BENCH_DIR").map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    let host = HostId::new("hv1").unwrap();
    let options = WriterOptions { host, max_segment_age: Duration::from_secs(1), max_wal_bytes: 1 << 40 };
    let (mut writer, _) = Writer::open(folder.path(), options).unwrap();
    let mut dice = Dice(7);
    let (mut rates, mut bytes, mut stored) = (Vec::new(), 0, 0);
    for _ in 0..rounds {
        let flows = flows(count, gap, &mut dice);
        let cpu = cpu();
        let began = Instant::now();
        for batch in flows.chunks(2048) {
            writer.append(&[], batch).unwrap();
        }
        let appended = began.elapsed();
        let sealed = writer.seal(flows[count - 1].last).unwrap().unwrap();
        let took = began.elapsed();
        rates.push(count as f64 / took.as_secs_f64());
        eprintln!(
            "{name}: append {:.0} ns, all {:.0} ns a flow, CPU {:.0} ns",
            appended.as_nanos() as f64 / count as f64,
            took.as_nanos() as f64 / count as f64,
            (self::cpu() - cpu) * 1e9 / count as f64
        );
        bytes += sealed.manifest.files.iter().map(|file| file.bytes).sum::<u64>();
        bytes +=
            std::fs::metadata(sealed.folder.join(format!("{}.manifest.json", sealed.manifest.segment))).unwrap().len();
        stored += sealed.manifest.files[0].rows;
    }
    rates.sort_by(f64::total_cmp);
    println!("ingest_flows_per_s_{name}: {:.0}", rates[rates.len() / 2]);
    println!("bytes_per_flow_{name}: {:.2}", bytes as f64 / stored as f64);
    if std::env::var_os("BENCH_KEEP").is_some() {
        eprintln!("kept in {}", folder.keep().display());
    }
}

/// CPU time of this process, seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn main() {
    let large = std::env::args().skip(1).find_map(|text| text.parse().ok()).unwrap_or(300_000);
    run("large", large, 3_000.0, 5);
    run("day", 5_500, 15e9 / 1.65, 5);
}
