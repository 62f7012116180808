//! `make demo` is a test, too.

use std::process::Command;

use anyhow::{Result, ensure};
use vestigo_tests::{
    bins,
    require::{self, Need},
};

#[test]
fn the_story_is_true() -> Result<()> {
    if !require::met(require::END_TO_END)? || !require::met(&[Need::S3])? {
        return Ok(());
    }
    let done = Command::new(bins::path("demo")?).output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    ensure!(said.contains("Every answer was compared with the truth"), "{said}");
    Ok(())
}
