//! `make bench-agent`: the guest agent beside bubblewrap, a bare floor and a plain fork and exec.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    enclose,
    host::{Hostd, StandIn},
    load, starts,
    vm::{Agent, Peer},
};
use crate::paths;

const INSIDE: &str = "VESTIGO_BENCH_INSIDE";
/// What can be measured, in the order in which it is.
const GROUPS: [&str; 7] = ["binary", "starts", "rate", "memory", "kill", "throughput", "hostd"];

/// Measures the agent `program`; all groups, or those named.
///
/// # Errors
/// Whatever keeps a figure from being taken: none is printed then.
pub fn run(program: &Path, groups: &[String]) -> Result<()> {
    if let Some(unknown) = groups.iter().find(|group| !GROUPS.contains(&group.as_str())) {
        bail!("there is no group {unknown}; name some of: {}", GROUPS.join(", "));
    }
    ensure!(nix::unistd::geteuid().is_root(), "the bench makes namespaces: run it as root");
    let program = fs::canonicalize(program).with_context(|| format!("no agent at {}", program.display()))?;
    if std::env::var_os(INSIDE).is_none() {
        return enclose(INSIDE);
    }
    Bench { program, groups: groups.to_vec(), folder: folder()? }.run()
}

/// On the disk, empty, and open to every uid.
fn folder() -> Result<PathBuf> {
    let folder = paths::target("bench-agent")?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

struct Bench {
    program: PathBuf,
    groups: Vec<String>,
    folder: PathBuf,
}

impl Bench {
    fn wanted(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|wanted| wanted == group)
    }

    fn run(&self) -> Result<()> {
        let rounds = std::env::var("ROUNDS").ok().map_or(Ok(200), |text| text.parse())?;
        if self.wanted("binary") {
            load::binary(&self.program)?;
        }
        let peer = Peer::cable()?;
        let folder = self.part("stand-in")?;
        let host = StandIn::start(&folder)?;
        let agent = Agent::start(&self.program, &folder)?;
        if self.wanted("starts") {
            starts::compare(&agent, &starts::build_floor(&self.folder)?, rounds)?;
            // With a pool of prepared sandboxes: `start_cold`, the pool kept empty, is measured here.
        }
        if self.wanted("rate") {
            starts::sustained(&agent, Duration::from_secs(10))?;
        }
        if self.wanted("memory") {
            load::memory(&agent, &self.program)?;
        }
        if self.wanted("kill") {
            load::kill(&agent, &host, 5)?;
        }
        if self.wanted("throughput") {
            load::throughput(&agent, &peer, 7)?;
        }
        agent.stop()?;
        if self.wanted("hostd") {
            let folder = self.part("hostd")?;
            let _hostd = Hostd::start(&folder)?;
            let agent = Agent::start(&self.program, &folder)?;
            starts::alone("start_hostd", &agent, rounds)?;
            agent.stop()?;
        }
        Ok(())
    }

    fn part(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}
