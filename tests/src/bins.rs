//! The workspace's built programs, next to the running test.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// Path of a built program of this workspace: `hostd`, `guest-agent`, `quarantine`, `vestigo`, `testbed`.
pub fn path(name: &str) -> Result<PathBuf> {
    let found = profile_dir()?.join(name);
    ensure!(found.is_file(), "{} is not built: run `cargo build --workspace` first", found.display());
    Ok(found)
}

/// The folder of the running program's build profile, such as `target/debug`.
pub fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut dir = exe.parent().context("this program lies in no folder")?.to_path_buf();
    // Test executables lie one level deeper than the programs they test, examples too.
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.pop();
    }
    Ok(dir)
}
