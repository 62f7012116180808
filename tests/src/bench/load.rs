//! What the agent weighs, how fast a crowd dies, and what a payload's network costs.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Times, figure,
    host::StandIn,
    progress, quantile,
    vm::{Agent, PEER, Peer},
};
use crate::process;

const PAYLOADS: usize = 50;
const CROWD: usize = 1000;
const MIB: f64 = 1024.0 * 1024.0;

/// The file itself.
pub(super) fn binary(program: &Path) -> Result<()> {
    // A file of some megabytes.
    #[allow(clippy::cast_precision_loss)]
    let size = fs::metadata(program)?.len() as f64 / MIB;
    figure("agent_binary_mb", format_args!("{size:.2}"));
    let dynamic = process::output(Command::new("readelf").arg("-dW").arg(program))?;
    figure("agent_libraries", dynamic.lines().filter(|line| line.contains("(NEEDED)")).count());
    Ok(())
}

/// Memory with 50 payloads that do nothing: the daemon's own, and of all processes of the agent together (each shared page
/// counted once).
pub(super) fn memory(agent: &Agent, program: &Path) -> Result<()> {
    progress(&format!("{PAYLOADS} idle payloads"));
    let mut started = Vec::new();
    for _ in 0..PAYLOADS {
        started.push(say_ready(agent, "echo ready; exec sleep 1000")?);
    }
    thread::sleep(Duration::from_secs(2));
    figure("agent_rss_mb", format_args!("{:.2}", kib(agent.pid(), "status", "VmRSS:")? / 1024.0));
    let own = fs::canonicalize(program)?;
    let helpers: Vec<u32> = family(agent.pid())?
        .into_iter()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == own))
        .collect();
    let pss = helpers.iter().map(|pid| kib(*pid, "smaps_rollup", "Pss:")).sum::<Result<f64>>()?;
    figure("agent_processes", helpers.len());
    figure("agent_pss_total_mb", format_args!("{:.2}", pss / 1024.0));
    for mut client in started {
        client.kill()?;
        client.wait()?;
    }
    agent.rest()
}

/// Starts a payload and waits for its first line.
fn say_ready(agent: &Agent, script: &str) -> Result<Child> {
    let mut client = agent.exec(&["/bin/bash", "-c", script]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(client.stdout.take().context("no output")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "the payload did not start: {:?}", client.wait());
    Ok(client)
}

fn kib(pid: u32, file: &str, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("/proc/{pid}/{file} has no {key}"))
}

/// A process and everything below it.
fn family(head: u32) -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // The name in the second field may hold anything, its closing bracket is the last one.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![head];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        all.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    Ok(all)
}

/// A payload of 1000 processes, from the kill to the agent's word that nothing is left (which is then looked at).
///
/// Killed by the end of its client. Once hostd can send kill requests this is the place for them: the same crowd, the time
/// from the frame.
pub(super) fn kill(agent: &Agent, host: &StandIn, rounds: u32) -> Result<()> {
    let mut times = Times::default();
    for round in 0..rounds {
        progress(&format!("kill of {CROWD} processes, round {}", round + 1));
        let script = format!("for ((i = 1; i < {CROWD}; i++)); do sleep 1000 & done; echo ready; wait");
        let mut client = say_ready(agent, &script)?;
        let before = family(agent.pid())?;
        ensure!(before.len() >= CROWD, "only {} processes run", before.len());
        host.forget();
        let begin = Instant::now();
        client.kill()?;
        let end = host.next_end(Duration::from_secs(60))?;
        let left = family(agent.pid())?.len();
        times.push(end.duration_since(begin));
        ensure!(left < 20, "{left} processes are left after the end was told");
        client.wait()?;
        agent.rest()?;
    }
    times.print("kill_1000");
    Ok(())
}

/// TCP to the peer for so many seconds: from a payload and from the VM itself, in turns.
pub(super) fn throughput(agent: &Agent, peer: &Peer, rounds: u32) -> Result<()> {
    let script = format!(
        "import socket, time\ns = socket.create_connection(('{PEER}', 5001))\nb = bytes(1 << 20)\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: s.sendall(b)"
    );
    let listener = peer.inside(|| TcpListener::bind((PEER, 5001)))??;
    let python = "/usr/bin/python3";
    let (mut ours, mut own) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        progress(&format!("throughput, round {} of {rounds}", round + 1));
        let mut plain = Command::new(python);
        plain.args(["-c", &script]).stdin(Stdio::null());
        own.push(received(&listener, &mut plain)?);
        ours.push(received(&listener, &mut agent.exec(&[python, "-c", &script]))?);
        agent.rest()?;
    }
    let ratios: Vec<f64> = ours.iter().zip(&own).map(|(ours, own)| ours / own).collect();
    figure("throughput_payload_gbit_s", format_args!("{:.2}", quantile(&ours, 0.5)));
    figure("throughput_vm_gbit_s", format_args!("{:.2}", quantile(&own, 0.5)));
    figure("throughput_ratio", format_args!("{:.3}", quantile(&ratios, 0.5)));
    Ok(())
}

/// Gigabits a second that came from this sender.
fn received(listener: &TcpListener, sender: &mut Command) -> Result<f64> {
    let mut sender = sender.spawn()?;
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; 1 << 20];
    let (begin, mut bytes) = (Instant::now(), 0_u64);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        bytes += u64::try_from(count)?;
    }
    let time = begin.elapsed().as_secs_f64();
    ensure!(sender.wait()?.success(), "the sender failed");
    // Some gigabytes.
    #[allow(clippy::cast_precision_loss)]
    let bits = bytes as f64 * 8.0;
    Ok(bits / time / 1e9)
}
