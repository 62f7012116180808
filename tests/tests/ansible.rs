//! The Ansible roles, played for real on an overlay of this machine; see `ansible/test`.

use std::process::Command;

use anyhow::{Result, ensure};
use vestigo_tests::{
    bins, paths,
    require::{self, Need},
};

#[test]
fn the_roles_install_a_hypervisor() -> Result<()> {
    if !require::met(&[Need::Root, Need::Ansible])? {
        return Ok(());
    }
    let done = Command::new(paths::repository().join("ansible/test")).arg(bins::profile_dir()?).output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    ensure!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}
