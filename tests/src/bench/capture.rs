//! `make bench-capture`: capture and metering beside their peers.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{enclose, live};
use crate::paths;

const INSIDE: &str = "VESTIGO_BENCH_INSIDE";

/// Takes all figures.
///
/// # Errors
/// Whatever keeps a figure from being taken.
pub fn run(parts: &[String]) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the bench makes namespaces: run it as root");
    if std::env::var_os(INSIDE).is_none() {
        return enclose(INSIDE);
    }
    let folder = paths::target("bench-capture")?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    fs::create_dir_all(&folder)?;
    live::run(&folder, parts)
}
