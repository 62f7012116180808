//! `make bench-capture`: hostd's meter beside softflowd and nfpcapd.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::offline;
use crate::paths;

const INSIDE: &str = "VESTIGO_BENCH_INSIDE";
/// What can be measured, in the order in which it is.
const GROUPS: [&str; 1] = ["offline"];

/// Measures `hostd`; all groups, or those named.
///
/// # Errors
/// Whatever keeps a figure from being taken: none is printed then.
pub fn run(hostd: &Path, groups: &[String]) -> Result<()> {
    if let Some(unknown) = groups.iter().find(|group| !GROUPS.contains(&group.as_str())) {
        bail!("there is no group {unknown}; name some of: {}", GROUPS.join(", "));
    }
    ensure!(nix::unistd::geteuid().is_root(), "the bench makes namespaces: run it as root");
    let hostd = fs::canonicalize(hostd).with_context(|| format!("no hostd at {}", hostd.display()))?;
    if env::var_os(INSIDE).is_none() {
        return enclose();
    }
    let rounds = env::var("ROUNDS").ok().map_or(Ok(5), |text| text.parse())?;
    let bench = Bench { hostd, folder: paths::target("bench-capture")?, rounds };
    let wanted = |group: &str| groups.is_empty() || groups.iter().any(|wanted| wanted == group);
    if wanted("offline") {
        offline::run(&bench)?;
    }
    Ok(())
}

/// What every group needs.
pub(super) struct Bench {
    pub(super) hostd: PathBuf,
    /// On the disk.
    pub(super) folder: PathBuf,
    /// Measurements of each kind, one after the other, then again.
    pub(super) rounds: usize,
}

/// Executes this program again as the first process of namespaces of its own, with no network but a loopback: whatever it starts ends
/// with it.
fn enclose() -> Result<()> {
    let mut again = Command::new("unshare");
    again.args([
        "--net",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
    ]);
    again.arg("--").arg(env::current_exe()?).args(env::args_os().skip(1)).env(INSIDE, "1");
    Err(again.exec()).context("cannot run unshare")
}
