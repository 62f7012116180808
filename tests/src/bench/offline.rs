//! The same file through three meters, each alone on one core.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{capture::Bench, figure, progress, quantile};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

use crate::{
    process,
    traffic::{Mix, write_mix},
};

const MIX: Mix = Mix { conversations: 200_000, packets: 6_000_000, seconds: 200, snap: 128 };
/// The core that everything measured is pinned to.
const CORE: &str = "1";

/// What a run took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    cpu: Duration,
    /// The most memory that this program, or one before it, had resident.
    resident: u64,
}

pub(super) fn run(bench: &Bench) -> Result<()> {
    process::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let file = traffic(&bench.folder)?;
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for round in 0..bench.rounds {
        progress(&format!("offline, round {} of {}", round + 1, bench.rounds));
        // First: the kernel tells the memory of the largest child so far.
        let ours = measure(Command::new(&bench.hostd).args(["meter", "--json"]).arg(&file), &bench.folder)?;
        let theirs = [ours, softflowd(&file, &bench.folder)?, nfpcapd(&file, &bench.folder)?];
        for (costs, cost) in costs.iter_mut().zip(theirs) {
            costs.push(cost);
        }
    }
    let [ours, softflowd, nfpcapd] = costs.each_ref().map(|costs| pps(costs));
    figure("offline_pps", format_args!("{ours:.0}"));
    figure("offline_softflowd_pps", format_args!("{softflowd:.0}"));
    figure("offline_nfpcapd_pps", format_args!("{nfpcapd:.0}"));
    figure("offline_ratio_vs_softflowd", format_args!("{:.2}", ours / softflowd));
    figure("offline_ratio_vs_nfpcapd", format_args!("{:.2}", ours / nfpcapd));
    if let Some(first) = costs[0].first() {
        figure("offline_rss_bytes_per_flow", first.resident / u64::from(MIX.conversations));
    }
    Ok(())
}

/// Packets per second of CPU, the median.
fn pps(costs: &[Cost]) -> f64 {
    let seconds: Vec<f64> = costs.iter().map(|cost| cost.cpu.as_secs_f64()).collect();
    // Millions.
    #[allow(clippy::cast_precision_loss)]
    let packets = MIX.packets as f64;
    packets / quantile(&seconds, 0.5)
}

/// Made once; read once more, so that every meter finds it in memory.
fn traffic(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("mix.pcap");
    progress("writing the traffic");
    let part = folder.join("mix.part");
    write_mix(BufWriter::with_capacity(1 << 20, File::create(&part)?), MIX)?;
    fs::rename(&part, &path)?;
    std::io::copy(&mut File::open(&path)?, &mut std::io::sink())?;
    Ok(path)
}

/// As its users run it over a file, with a table as large as ours, so that it never has to throw flows out. Its records go to a port of
/// this namespace's loopback where nobody listens.
fn softflowd(file: &Path, folder: &Path) -> Result<Cost> {
    let mut command = Command::new("softflowd");
    command.arg("-r").arg(file).args(["-n", "127.0.0.1:9995", "-v", "9", "-m", "1000000"]);
    // With a control socket it waits for somebody to ask instead of reading.
    command.args(["-d", "-c", "none", "-p", "none"]);
    measure(&command, folder)
}

fn nfpcapd(file: &Path, folder: &Path) -> Result<Cost> {
    let store = folder.join("nfpcapd");
    if store.exists() {
        fs::remove_dir_all(&store)?;
    }
    fs::create_dir(&store)?;
    // Buckets of its flow tree as many as there are conversations; the other defaults are its own.
    measure(Command::new("nfpcapd").arg("-r").arg(file).arg("-w").arg(&store), folder)
}

/// Runs it on one core, to its end.
fn measure(command: &Command, folder: &Path) -> Result<Cost> {
    let name = command.get_program().to_string_lossy().into_owned();
    let said = folder.join("said");
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", CORE]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    pinned.stdout(File::create(folder.join("out"))?).stderr(File::create(&said)?);
    let before = used()?;
    let status =
        pinned.status().with_context(|| format!("cannot run {name}; tests/prerequisites --bench installs it"))?;
    ensure!(status.success(), "{name} failed ({status}): {}", fs::read_to_string(&said)?);
    let after = used()?;
    let cpu = after.cpu.saturating_sub(before.cpu);
    progress(&format!("{name}: {:.2} s of CPU", cpu.as_secs_f64()));
    Ok(Cost { cpu, ..after })
}

/// What the kernel counted of all children that have ended; they run one after the other.
fn used() -> Result<Cost> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |value: TimeVal| {
        let micros = value.tv_sec() * 1_000_000 + value.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    let resident = u64::try_from(usage.max_rss())? * 1024;
    Ok(Cost { cpu: time(usage.user_time()) + time(usage.system_time()), resident })
}
