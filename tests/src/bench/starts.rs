//! How long it takes to start `/bin/true` and be told that it ended: ours and the peers', interleaved.
//!
//! Every contender is spawned by the same thread in the same way (`posix_spawn`, which does not copy this process), with
//! nothing on its standard input and output. Before each run all wait equally until the agent is idle, so that what it
//! prepares or tidies in the background is neither charged to a peer nor given away.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Times, figure, progress, vm::Agent};
use crate::{paths, process};

const TRUE: &str = "/bin/true";

/// Builds the floor program.
pub(super) fn build_floor(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (paths::repository().join("tests/bench/floor.c"), folder.join("floor"));
    // Static: the floor must not pay for a dynamic linker that we could do without.
    process::output(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(source))
        .context("cannot build the floor program (run tests/prerequisites --bench)")?;
    Ok(program)
}

/// Debian's bubblewrap with every namespace, and what a payload needs to see.
fn bwrap() -> Command {
    let mut bwrap = Command::new("/usr/bin/bwrap");
    bwrap.args(["--unshare-all", "--die-with-parent", "--clearenv", "--new-session", "--cap-drop", "ALL"]);
    bwrap.args(["--ro-bind", "/usr", "/usr"]);
    for name in ["/bin", "/sbin", "/lib", "/lib64"] {
        match std::fs::read_link(name) {
            Ok(target) => bwrap.arg("--symlink").arg(target).arg(name),
            Err(_) => bwrap.args(["--ro-bind-try", name, name]),
        };
    }
    for name in ["/etc/ld.so.cache", "/etc/ssl/certs", "/etc/alternatives", "/etc/localtime"] {
        bwrap.args(["--ro-bind-try", name, name]);
    }
    bwrap.args([
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--setenv",
        "PATH",
        "/usr/bin:/bin",
        "--",
        TRUE,
    ]);
    bwrap
}

fn floor(program: &Path, net: bool) -> Command {
    let mut floor = Command::new(program);
    floor.args(net.then_some("net")).arg(TRUE);
    floor
}

fn timed(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    let status = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?.wait()?;
    let time = begin.elapsed();
    ensure!(status.success(), "{:?} failed: {status}", command.get_program());
    Ok(time)
}

/// Ours against bubblewrap, the two floors and a plain fork and exec.
pub(super) fn compare(agent: &Agent, floor_program: &Path, rounds: u32) -> Result<()> {
    let mut contenders = [
        ("start", agent.exec(&[TRUE])),
        ("start_bwrap", bwrap()),
        ("start_floor", floor(floor_program, false)),
        ("start_floor_net", floor(floor_program, true)),
        ("start_plain", Command::new(TRUE)),
    ];
    let mut times: [Times; 5] = Default::default();
    for round in 0..rounds {
        if round % 50 == 0 {
            progress(&format!("starts, round {round} of {rounds}"));
        }
        for ((_, command), times) in contenders.iter_mut().zip(&mut times) {
            agent.rest()?;
            times.push(timed(command)?);
        }
    }
    for ((name, _), times) in contenders.iter().zip(&times) {
        times.print(name);
    }
    let [ours, bwrap, floor, floor_net, _] = times.each_ref().map(|times| times.quantile(0.5));
    for (name, theirs) in [("bwrap", bwrap), ("floor", floor), ("floor_net", floor_net)] {
        figure(&format!("start_ratio_vs_{name}"), format_args!("{:.3}", ours / theirs));
    }
    Ok(())
}

/// One command alone, with the agent idle before each run.
pub(super) fn alone(name: &str, agent: &Agent, rounds: u32) -> Result<()> {
    progress(&format!("{name}, {rounds} rounds"));
    let mut times = Times::default();
    for _ in 0..rounds {
        agent.rest()?;
        times.push(timed(&mut agent.exec(&[TRUE]))?);
    }
    times.print(name);
    Ok(())
}

/// Starts a second, with everything that a start leaves to do later, for as long as that.
pub(super) fn sustained(agent: &Agent, length: Duration) -> Result<()> {
    let mut best = 0.0_f64;
    for callers in [2_usize, 4, 8] {
        progress(&format!("{callers} callers for {length:?}"));
        let rate = rate(agent, callers, length)?;
        figure(&format!("starts_per_s_{callers}_callers"), format_args!("{rate:.1}"));
        best = best.max(rate);
    }
    figure("starts_per_s", format_args!("{best:.1}"));
    Ok(())
}

fn rate(agent: &Agent, callers: usize, length: Duration) -> Result<f64> {
    agent.rest()?;
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    let counts = thread::scope(|scope| {
        let call = || -> Result<u32> {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                timed(&mut agent.exec(&[TRUE]))?;
                count += 1;
            }
            Ok(count)
        };
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(call)).collect();
        thread::sleep(length);
        over.store(true, Ordering::Relaxed);
        callers.into_iter().map(|caller| caller.join()).collect::<Vec<_>>()
    });
    let mut all = 0;
    for count in counts {
        all += count.map_err(|_| anyhow::anyhow!("a caller's thread died"))??;
    }
    // What is left to tidy belongs to the work.
    agent.rest()?;
    Ok(f64::from(all) / begin.elapsed().as_secs_f64())
}
