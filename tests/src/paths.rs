//! Where things lie in the repository and its target folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The repository's root.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// A folder under `target/` of the repository, made if it is not there. It does not follow `CARGO_TARGET_DIR`: what lies
/// here (guest image, Python tools) is shared by all builds.
pub fn target(name: &str) -> Result<PathBuf> {
    let path = repository().join("target").join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// The Python environment that `tests/prerequisites` fills.
pub fn venv(program: &str) -> PathBuf {
    repository().join("target/venv/bin").join(program)
}
