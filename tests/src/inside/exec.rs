//! The door into a site: joins its namespaces and runs a program there. It stands for the program: signals sent to it are
//! handed on, a kill of it kills the program (parent-death signal), and it ends as the program ended.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::unistd::Pid;

const NAMESPACES: &[(&str, CloneFlags)] = &[
    ("pid", CloneFlags::CLONE_NEWPID),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    // Last: it changes what /proc means.
    ("mnt", CloneFlags::CLONE_NEWNS),
];
const HANDED_ON: &[Signal] = &[
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Joins the namespaces of process `pid` (and the named network namespace, if not `-`), runs the program, ends as it ends.
pub fn run(pid: &str, netns: &str, program: &str, arguments: &[&str]) -> Result<()> {
    let cwd = std::env::current_dir()?;
    join(pid)?;
    if netns != "-" {
        let file = File::open(Path::new("/run/netns").join(netns)).with_context(|| format!("no peer {netns}"))?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
    }
    // Joining a mount namespace has put us at its root.
    std::env::set_current_dir(&cwd).with_context(|| format!("{} is not visible inside", cwd.display()))?;
    let mut child = Command::new("setpriv").args(["--pdeathsig", "KILL", "--", program]).args(arguments).spawn()?;
    // Blocked after the start, for a blocked signal would stay blocked in the program.
    let mut signals: SigSet = HANDED_ON.iter().copied().collect();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let status = wait(&mut child, &signals)?;
    signals.thread_unblock()?;
    end_as(status)
}

fn join(pid: &str) -> Result<()> {
    let open = |(name, flag): &(&str, CloneFlags)| -> Result<(File, CloneFlags)> {
        let path = format!("/proc/{pid}/ns/{name}");
        Ok((File::open(&path).with_context(|| format!("the site is gone: cannot open {path}"))?, *flag))
    };
    for (file, flag) in NAMESPACES.iter().map(open).collect::<Result<Vec<_>>>()? {
        setns(file, flag)?;
    }
    Ok(())
}

fn wait(child: &mut Child, signals: &SigSet) -> Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        match signals.wait()? {
            Signal::SIGCHLD => {}
            // It may have ended in this moment; then the next turn sees it.
            signal => drop(kill(pid, signal)),
        }
    }
}

fn end_as(status: ExitStatus) -> Result<()> {
    if let Some(signal) = status.signal() {
        raise(Signal::try_from(signal)?)?;
    }
    // A raised signal that did not end us (one ignored here) is told the shell's way.
    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
}
