//! Live capture: `hostd watch` beside softflowd on one veth pair, and what capture costs the traffic.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::Signal,
    unistd::{SysconfVar, sysconf},
};
use serde_json::Value;

use super::{
    capture::Bench,
    figure,
    generator::{Generator, Sent},
    progress, quantile,
    vm::{PEER, Peer},
};
use crate::process;

/// The captured end of the cable; the generator is at the other one.
const TAP: &str = "eth0";
/// Packets of a run, and the flows that they belong to.
const PACKETS: u64 = 3_000_000;
const FLOWS: u32 = 20_000;
/// As many as a VM has that is not busy: the tables of both peers stay in the cache.
const FEW_FLOWS: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes the figures of the groups wanted.
///
/// # Errors
/// Whatever keeps a figure from being taken.
pub(super) fn run(bench: &Bench, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for which in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1")?;
    }
    let peer = Peer::cable()?;
    // Every frame is the bench's: no router solicitations.
    peer.inside(|| fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
    if wanted("cost") {
        cost(&peer, bench, FLOWS, "")?;
        cost(&peer, bench, FEW_FLOWS, "_few_flows")?;
    }
    if wanted("accounting") {
        accounting(&peer, bench)?;
    }
    if wanted("flood") {
        flood(&peer, bench)?;
    }
    if wanted("memory") {
        memory(&peer, bench)?;
    }
    if wanted("idle") {
        idle(bench)?;
    }
    if wanted("bulk") {
        throughput(&peer, bench)?;
    }
    Ok(())
}

/// CPU for each packet that was metered, packets offered as fast as the generator can: both peers in turn.
fn cost(peer: &Peer, bench: &Bench, flows: u32, suffix: &str) -> Result<()> {
    let (mut ours, mut theirs, mut ratios, mut shares) = (vec![], vec![], vec![], vec![]);
    for round in 0..bench.rounds {
        let mut hostd = Hostd::watch(bench, &[TAP], &[])?;
        hostd.discard();
        let (cpu, sent) = offered(peer, hostd.child.id(), flows)?;
        let counters = hostd.end()?;
        let [frames, dropped] = counters.of(TAP, ["frames", "dropped"])?;
        let softflowd = Softflowd::start(&bench.folder)?;
        let (other, _) = offered(peer, softflowd.child.id(), flows)?;
        let metered = softflowd.end()?;
        let (own, other) = (nanos_each(cpu, frames), nanos_each(other, metered));
        progress(&format!(
            "round {round}: hostd {own:.0} ns a packet ({dropped} lost), softflowd {other:.0} ns ({metered} metered of {}); {:.0} packets/s",
            sent.packets,
            sent.rate()
        ));
        ours.push(own);
        theirs.push(other);
        ratios.push(own / other);
        shares.push(share(metered, sent.packets));
    }
    figure(&format!("live_cpu_ns_per_packet{suffix}"), format_args!("{:.0}", quantile(&ours, 0.5)));
    figure(&format!("live_cpu_ns_per_packet_softflowd{suffix}"), format_args!("{:.0}", quantile(&theirs, 0.5)));
    figure(&format!("live_metered_share_softflowd{suffix}"), format_args!("{:.3}", quantile(&shares, 0.5)));
    figure(&format!("live_cpu_ratio_vs_softflowd{suffix}"), format_args!("{:.3}", quantile(&ratios, 0.5)));
    Ok(())
}

/// Sends the packets; gives the CPU time that the process took for them.
fn offered(peer: &Peer, pid: u32, flows: u32) -> Result<(Duration, Sent)> {
    let before = cpu(pid)?;
    let sent = peer.inside(move || Generator::open("eth0")?.send(PACKETS, 0, flows, None))??;
    Ok((settled(pid)?.saturating_sub(before), sent))
}

/// 500 000 packets a second, and hostd stopped for 200 ms in the middle: every packet is metered or counted as lost.
fn accounting(peer: &Peer, bench: &Bench) -> Result<()> {
    let (mut lost, mut rates, mut wrong) = (vec![], vec![], 0);
    for round in 0..bench.rounds {
        let before = arrived(TAP)?;
        let mut hostd = Hostd::watch(bench, &[TAP], &[])?;
        let flows = hostd.flows()?;
        let pid = hostd.child.id();
        let stopper = thread::spawn(move || -> Result<()> {
            // Not a wait for something: the moment of the stop is what is tried.
            thread::sleep(Duration::from_millis(1000));
            send(pid, Signal::SIGSTOP)?;
            thread::sleep(Duration::from_millis(200));
            send(pid, Signal::SIGCONT)
        });
        let sent = peer.inside(|| Generator::open("eth0")?.send(1_500_000, 0, FLOWS, Some(500_000)))??;
        stopper.join().unwrap_or(Ok(()))?;
        let counters = hostd.end()?;
        let [offered, frames, undecodable, dropped] =
            counters.of(TAP, ["offered", "frames", "undecodable", "dropped"])?;
        let metered = flows.join().map_err(|_| anyhow::anyhow!("the reader died"))??.get(TAP).copied().unwrap_or(0);
        let came = arrived(TAP)? - before;
        wrong += came.abs_diff(offered) + offered.abs_diff(frames + dropped) + frames.abs_diff(metered + undecodable);
        progress(&format!(
            "round {round}: {} sent at {:.0}/s, {came} arrived = {metered} metered + {undecodable} no IP + {dropped} lost",
            sent.packets,
            sent.rate()
        ));
        lost.push(share(dropped, came));
        rates.push(sent.rate());
    }
    figure("live_500k_rate", format_args!("{:.0}", quantile(&rates, 0.5)));
    figure("live_500k_unaccounted", wrong);
    figure("live_500k_lost", format_args!("{:.6}", quantile(&lost, 0.5)));
    figure("live_500k_lost_max", format_args!("{:.6}", quantile(&lost, 1.0)));
    Ok(())
}

/// A million flows of one packet on one tap; a thousand packets of ten flows on another beside it, with and without the flood.
fn flood(peer: &Peer, bench: &Bench) -> Result<()> {
    ip(&["link", "add", "quiet", "type", "veth", "peer", "name", "quiet-peer"])?;
    ip(&["link", "set", "quiet", "up"])?;
    ip(&["link", "set", "quiet-peer", "up"])?;
    let (mut lost, mut records, mut unaccounted) = (0, vec![], 0);
    for loud in [0, 1_000_000] {
        let mut hostd = Hostd::watch(bench, &[TAP, "quiet"], &[])?;
        let flows = hostd.flows()?;
        let quiet = thread::spawn(|| Generator::open("quiet-peer")?.send(1000, 0, 10, Some(500)));
        let before = arrived(TAP)?;
        if loud > 0 {
            peer.inside(move || Generator::open("eth0")?.send(loud, 0, u32::MAX, None))??;
        }
        quiet.join().map_err(|_| anyhow::anyhow!("the quiet sender died"))??;
        let counters = hostd.end()?;
        let [frames, dropped, unqueued] = counters.of("quiet", ["frames", "dropped", "unqueued"])?;
        let metered = flows.join().map_err(|_| anyhow::anyhow!("the reader died"))??;
        lost += 1000 - frames + dropped + unqueued;
        records.push(metered.get("quiet").copied().unwrap_or(0));
        let [frames, dropped] = counters.of(TAP, ["frames", "dropped"])?;
        unaccounted += (arrived(TAP)? - before).abs_diff(frames + dropped)
            + frames.abs_diff(metered.get(TAP).copied().unwrap_or(0));
        progress(&format!("flood of {loud}: {frames} metered, {dropped} lost; beside it {records:?} of 1000"));
    }
    figure("flood_quiet_lost", lost);
    figure("flood_quiet_packets_changed", i32::from(records.iter().any(|packets| *packets != 1000)));
    figure("flood_unaccounted", unaccounted);
    ip(&["link", "del", "quiet"])
}

/// Anonymous memory for each flow that lives. The ring is not in it: it is of one size, however many flows there are.
fn memory(peer: &Peer, bench: &Bench) -> Result<()> {
    const LIVE: u32 = 200_000;
    let hostd = Hostd::watch(bench, &[TAP], &["--counters-only", "--max-flows", "400000"])?;
    let pid = hostd.child.id();
    let before = anonymous(pid)?;
    peer.inside(|| Generator::open("eth0")?.send(LIVE.into(), 0, LIVE, Some(100_000)))??;
    settled(pid)?;
    let bytes = anonymous(pid)?.saturating_sub(before);
    hostd.end()?;
    figure("live_rss_bytes_per_flow", format_args!("{:.0}", share(bytes, LIVE.into())));
    Ok(())
}

/// What hostd costs while nothing passes: 100 taps, 10 seconds.
fn idle(bench: &Bench) -> Result<()> {
    const TAPS: usize = 100;
    let names: Vec<String> = (0..TAPS).map(|n| format!("idle{n}")).collect();
    for name in &names {
        ip(&["link", "add", name, "type", "veth", "peer", "name", &format!("{name}p")])?;
        ip(&["link", "set", name, "up"])?;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let hostd = Hostd::watch(bench, &names, &["--counters-only", "--ring-rate", "1000"])?;
    let pid = hostd.child.id();
    thread::sleep(Duration::from_secs(2));
    let (cpu_before, woken_before) = (cpu(pid)?, switches(pid)?);
    thread::sleep(Duration::from_secs(10));
    let (taken, woken) = (cpu(pid)? - cpu_before, switches(pid)? - woken_before);
    hostd.end()?;
    figure("idle_100_taps_cpu_percent", format_args!("{:.2}", taken.as_secs_f64() * 10.0));
    figure("idle_100_taps_wakeups_per_s", format_args!("{:.1}", share(woken, 10)));
    names.iter().try_for_each(|name| ip(&["link", "del", name]))
}

/// How often the process' threads gave up their core by themselves: each wait is one.
fn switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.context("no count of switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// Bulk TCP between the namespaces, with capture off and on in turn. Sender, receiver, kernel and hostd share all cores.
fn throughput(peer: &Peer, bench: &Bench) -> Result<()> {
    peer.inside(|| -> Result<()> {
        let listener = TcpListener::bind((PEER, 5001))?;
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        Ok(())
    })??;
    bulk()?;
    let (mut ratios, mut rates) = (vec![], vec![]);
    for round in 0..9 {
        let pair = if round % 2 == 0 { [false, true] } else { [true, false] };
        let mut rate = [0.0; 2];
        for on in pair {
            let hostd = if on { Some(Hostd::watch(bench, &[TAP], &["--counters-only"])?) } else { None };
            let bytes = bulk()?;
            let [off_rate, on_rate] = &mut rate;
            *(if on { on_rate } else { off_rate }) = bytes;
            hostd.map(Hostd::end).transpose()?;
        }
        let [off, on] = rate;
        progress(&format!("bulk TCP: {off:.2} Gbit/s without capture, {on:.2} with"));
        ratios.push(on / off);
        rates.push(off);
    }
    figure("bulk_tcp_gbit_s", format_args!("{:.2}", quantile(&rates, 0.5)));
    figure("bulk_tcp_ratio", format_args!("{:.3}", quantile(&ratios, 0.5)));
    Ok(())
}

/// Gbit/s over two seconds.
fn bulk() -> Result<f64> {
    let mut stream = TcpStream::connect((PEER, 5001))?;
    let (block, began, mut bytes) = (vec![7; 1 << 17], Instant::now(), 0.0);
    while began.elapsed() < Duration::from_secs(2) {
        stream.write_all(&block)?;
        bytes += 131_072.0;
    }
    Ok(bytes * 8e-9 / began.elapsed().as_secs_f64())
}

/// A running `hostd watch`.
struct Hostd {
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

/// What it says at its end, by interface.
struct Counters(Vec<Value>);

impl Hostd {
    fn watch(bench: &Bench, interfaces: &[&str], more: &[&str]) -> Result<Self> {
        let mut command = Command::new(&bench.hostd);
        command.arg("watch").args(interfaces).arg("--json").args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start hostd")?;
        let mut stderr = BufReader::new(child.stderr.take().context("hostd has no standard error")?);
        let mut line = String::new();
        stderr.read_line(&mut line)?;
        ensure!(line.contains("watching"), "hostd does not watch: {line}");
        let stdout = child.stdout.take();
        Ok(Self { child, stdout, stderr })
    }

    /// Reads its flows as they come: the packets of each interface.
    fn flows(&mut self) -> Result<thread::JoinHandle<Result<std::collections::BTreeMap<String, u64>>>> {
        let stdout = self.stdout.take().context("hostd's flows are read already")?;
        Ok(thread::spawn(move || {
            let mut packets = std::collections::BTreeMap::new();
            for line in BufReader::new(stdout).lines() {
                let flow: Value = serde_json::from_str(&line?)?;
                let count = |name| flow.get(name).and_then(Value::as_u64).unwrap_or(0);
                let interface = flow.get("interface").and_then(Value::as_str).unwrap_or_default();
                *packets.entry(interface.to_owned()).or_default() += count("orig_packets") + count("resp_packets");
            }
            Ok(packets)
        }))
    }

    /// Reads its flows and forgets them.
    fn discard(&mut self) {
        if let Some(mut stdout) = self.stdout.take() {
            thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        }
    }

    fn end(mut self) -> Result<Counters> {
        process::signal(&self.child, Signal::SIGINT)?;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        ensure!(self.child.wait()?.success(), "hostd failed: {said}");
        let counters = said.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        Ok(Counters(counters.with_context(|| format!("hostd said {said}"))?))
    }
}

impl Drop for Hostd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Counters {
    fn of<const N: usize>(&self, interface: &str, names: [&str; N]) -> Result<[u64; N]> {
        let of = |counters: &&Value| counters.get("interface").and_then(Value::as_str) == Some(interface);
        let counters = self.0.iter().find(of).with_context(|| format!("nothing is said of {interface}"))?;
        Ok(names.map(|name| counters.get(name).and_then(Value::as_u64).unwrap_or(u64::MAX)))
    }
}

/// A running softflowd that exports to nobody.
struct Softflowd {
    child: Child,
    control: PathBuf,
}

impl Softflowd {
    fn start(folder: &Path) -> Result<Self> {
        let control = folder.join("softflowd.ctl");
        let _ = fs::remove_file(&control);
        let mut command = Command::new("softflowd");
        // Its table as large as ours, so that neither has to throw flows out.
        command.args(["-d", "-N", "-i", TAP, "-m", "65536", "-v", "9", "-n", "127.0.0.1:9995", "-p"]);
        command.arg(folder.join("softflowd.pid")).arg("-c").arg(&control);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start softflowd")?;
        let started = Self { child, control };
        process::wait_for("softflowd", PATIENCE, || Ok(started.ask("statistics").ok()))?;
        Ok(started)
    }

    fn ask(&self, what: &str) -> Result<String> {
        process::output(Command::new("softflowctl").arg("-c").arg(&self.control).arg(what))
    }

    /// Ends it; the packets that it has metered.
    fn end(self) -> Result<u64> {
        // It refuses now and then while it is at work.
        let said = process::wait_for("softflowd's statistics", PATIENCE, || Ok(self.ask("statistics").ok()))?;
        let line = said.lines().find_map(|line| line.strip_prefix("Packets processed: "));
        let metered = line.with_context(|| format!("softflowd said {said}"))?;
        Ok(metered.split_whitespace().next().unwrap_or_default().parse()?)
    }
}

impl Drop for Softflowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process, user and system, all threads.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).context("no CPU time");
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / u64::try_from(per_second)?))
}

/// CPU time of a process once it takes next to no more of it: what was offered has been read.
fn settled(pid: u32) -> Result<Duration> {
    let mut last = cpu(pid)?;
    process::wait_for("the meter to come to rest", PATIENCE, || {
        thread::sleep(Duration::from_millis(480));
        let now = cpu(pid)?;
        Ok((now - std::mem::replace(&mut last, now) <= Duration::from_millis(10)).then_some(now))
    })
}

/// Anonymous memory of a process, in bytes.
fn anonymous(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kib: u64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kib * 1024)
}

/// Packets that came in at an interface, by the kernel's own count: a veth pair loses some before, when the receiving core has no
/// time, and those never passed the tap.
fn arrived(interface: &str) -> Result<u64> {
    let shown = process::output(Command::new("ip").args(["-s", "-j", "link", "show", interface]))?;
    let shown: Value = serde_json::from_str(&shown)?;
    shown.pointer("/0/stats64/rx/packets").and_then(Value::as_u64).context("no count of packets")
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), signal)?)
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::output(Command::new("ip").args(arguments)).map(drop)
}

/// Counts of packets and bytes, far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn share(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64
}

fn nanos_each(time: Duration, packets: u64) -> f64 {
    time.as_secs_f64() * 1e9 * share(1, packets)
}
