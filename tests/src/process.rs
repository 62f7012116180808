//! Running programs and waiting for things, with errors that say what was run.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs to the end and returns standard output; a failure carries the command and what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let done = command.output().with_context(|| format!("cannot run {shown}"))?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        bail!("{shown} failed ({}): {}{said}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(said)
}

/// Asks `probe` every few milliseconds until it yields a value; fails after `limit` naming `what`.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < limit, "waited {limit:?} in vain for {what}");
        sleep(Duration::from_millis(20));
    }
}

/// Asks the process to end, waits `patience`, then kills it.
pub fn stop(child: &mut Child, patience: Duration) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    signal(child, Signal::SIGTERM)?;
    let start = Instant::now();
    while start.elapsed() < patience {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        sleep(Duration::from_millis(10));
    }
    child.kill()?;
    Ok(child.wait()?)
}

/// Sends a signal. For a child made with [`crate::site::Site::command`] it reaches the program inside the site.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id())?), signal).with_context(|| format!("cannot send {signal}"))
}

/// The process id, as this process sees it, of the program that a [`crate::site::Site::command`] child runs inside the site
/// (the child itself is only the door). From then on the program dies with the door.
pub fn inner_pid(child: &Child) -> Result<u32> {
    // What the door starts has its own name, then that of the program which ties it to the door, and then only the program's.
    let is_tied = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        !matches!(name.trim(), "" | "testbed" | "setpriv")
    };
    wait_for("the program inside the site", Duration::from_secs(20), || Ok(first_child(child.id()).filter(is_tied)))
}

/// The first child of a process.
pub(crate) fn first_child(pid: u32) -> Option<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    list.split_whitespace().next()?.parse().ok()
}

/// Whether some process' command line holds `text`; for asserting that nothing of a site is left.
pub fn command_lines_with(text: &str) -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = command_line(&path);
        if line.contains(text) {
            found.push((pid, line));
        }
    }
    Ok(found)
}

fn command_line(process: &Path) -> String {
    let raw = std::fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ")
}
