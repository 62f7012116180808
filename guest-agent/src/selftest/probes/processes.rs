//! Processes of others.

use std::{
    fs,
    io::{IoSliceMut, Read},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::kill,
        uio::{RemoteIoVec, process_vm_readv},
    },
    unistd::Pid,
};

use super::{Probe, Stage, Verdict};
use crate::selftest::{Orders, VERB, broken, held, not_tested};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "foreign-processes",
        rules: &["R-ISO-5", "R-ISO-9"],
        what: "processes of others are listed in /proc",
        stage: Stage::Attack,
        run: foreign_processes,
    },
    Probe {
        name: "foreign-environment",
        rules: &["R-ISO-3", "R-ISO-6"],
        what: "the environment of PID 1 or of another's process can be read",
        stage: Stage::Attack,
        run: foreign_environment,
    },
    Probe {
        name: "ptrace",
        rules: &["R-ISO-5", "R-ISO-6"],
        what: "PID 1 or another's process can be traced",
        stage: Stage::Attack,
        run: trace,
    },
    Probe {
        name: "foreign-memory",
        rules: &["R-ISO-5", "R-ISO-6"],
        what: "memory of PID 1 or of another's process can be read",
        stage: Stage::Attack,
        run: foreign_memory,
    },
    Probe {
        name: "signals",
        rules: &["R-ISO-5", "R-ISO-6", "R-ISO-29"],
        what: "a signal can be sent to a process of the VM by its number",
        stage: Stage::Attack,
        run: signals,
    },
    Probe {
        name: "survivors",
        rules: &["R-ISO-9", "R-ISO-33"],
        what: "a process that hides from its payload's end lives on",
        stage: Stage::Attack,
        run: survivors,
    },
];

fn parent(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

/// This process and those it comes from.
fn line() -> Vec<i32> {
    let mut line = vec![Pid::this().as_raw()];
    while let Some(next) = line.last().and_then(|pid| parent(*pid)).filter(|pid| *pid > 0 && line.len() < 64) {
        line.push(next);
    }
    line
}

/// All others that can be seen.
fn foreign() -> Vec<i32> {
    let own = line();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| !own.contains(pid)).collect()
}

/// Whoever must not be touched.
fn targets() -> Vec<i32> {
    let mut all = foreign();
    if !all.contains(&1) && Pid::this().as_raw() != 1 {
        all.push(1);
    }
    all
}

fn foreign_processes(_: &Orders) -> Verdict {
    let (foreign, own) = (foreign(), line());
    match foreign.first() {
        // Its own line ends at PID 1 of the sandbox, which is few steps away.
        None if own.last() == Some(&1) && own.len() <= 4 => held(format!("{} processes, all its own", own.len())),
        None => broken(format!("{} ancestors are seen", own.len())),
        Some(pid) => broken(format!("{} of others are seen, among them {pid}", foreign.len())),
    }
}

fn foreign_environment(_: &Orders) -> Verdict {
    let reads = |pid: i32| {
        let mut byte = [0; 1];
        let opened = fs::File::open(format!("/proc/{pid}/environ"));
        opened.and_then(|mut file| file.read(&mut byte)).is_ok_and(|count| count > 0)
    };
    let targets = targets();
    match targets.iter().find(|pid| reads(**pid)) {
        None => held(format!("that of none of {} processes", targets.len())),
        Some(pid) => broken(format!("that of process {pid}")),
    }
}

fn trace(_: &Orders) -> Verdict {
    let targets = targets();
    // Seizing does not stop it, and ends with this process.
    let seized = |pid: &&i32| ptrace::seize(Pid::from_raw(**pid), ptrace::Options::empty()).is_ok();
    match targets.iter().find(seized) {
        None => held(format!("none of {} processes", targets.len())),
        Some(pid) => broken(format!("process {pid}")),
    }
}

fn foreign_memory(_: &Orders) -> Verdict {
    // Whether it may is decided before the address is looked at: a wrong one has an answer of its own.
    let reads = |pid: &&i32| {
        let mut byte = [0; 1];
        let remote = [RemoteIoVec { base: 0x1000, len: 1 }];
        let answer = process_vm_readv(Pid::from_raw(**pid), &mut [IoSliceMut::new(&mut byte)], &remote);
        matches!(answer, Ok(_) | Err(Errno::EFAULT)) || fs::File::open(format!("/proc/{pid}/mem")).is_ok()
    };
    let targets = targets();
    match targets.iter().find(reads) {
        None => held(format!("that of none of {} processes", targets.len())),
        Some(pid) => broken(format!("that of process {pid}")),
    }
}

fn signals(orders: &Orders) -> Verdict {
    if orders.pids.is_empty() {
        return not_tested("no bait could be laid");
    }
    let own = line();
    // Signal 0 asks only; "not permitted" is an answer about something that exists.
    let there = |pid: &&i32| !own.contains(pid) && kill(Pid::from_raw(**pid), None) != Err(Errno::ESRCH);
    match orders.pids.iter().find(there) {
        None => held(format!("none of {} processes of the VM exists here", orders.pids.len())),
        Some(pid) => broken(format!("process {pid} of the VM answers")),
    }
}

/// What the survivor's command line holds.
#[must_use]
pub fn survivor(token: &str) -> String {
    format!("{token}-survivor")
}

/// Leaves one behind; that it is gone with its payload is seen from the VM.
fn survivors(orders: &Orders) -> Verdict {
    let mut command = Command::new("/proc/self/exe");
    command.args([VERB, "linger", &survivor(&orders.token)]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        // Not waited for: this process ends now, and the other becomes an orphan.
        Ok(_) => not_tested("a process was left behind; the VM's side looks for it"),
        Err(error) => not_tested(format!("no process could be left behind: {error}")),
    }
}
