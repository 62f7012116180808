//! `make bench-capture`: capture and metering beside their peers.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{enclose, live, offline};
use crate::paths;

const INSIDE: &str = "VESTIGO_BENCH_INSIDE";
/// What can be measured, in the order in which it is.
const GROUPS: [&str; 7] = ["offline", "cost", "accounting", "flood", "memory", "idle", "bulk"];

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
        return enclose(INSIDE);
    }
    let rounds = env::var("ROUNDS").ok().map_or(Ok(5), |text| text.parse())?;
    let bench = Bench { hostd, folder: paths::target("bench-capture")?, rounds };
    let wanted = |group: &str| groups.is_empty() || groups.iter().any(|wanted| wanted == group);
    if wanted("offline") {
        offline::run(&bench)?;
    }
    live::run(&bench, wanted)
}

/// What every group needs.
pub(super) struct Bench {
    pub(super) hostd: PathBuf,
    /// On the disk.
    pub(super) folder: PathBuf,
    /// Measurements of each kind, one after the other, then again.
    pub(super) rounds: usize,
}
