//! Prerequisites: a missing one is a named skip on a developer's machine and a failure where `CI=true`.

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

use crate::paths;

/// Something of the machine that a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Namespaces, mounts and taps need root.
    Root,
    /// libvirtd, virsh, QEMU with qemu-img, and what the guest image is made with.
    Libvirt,
    /// iproute2 and the kernel's network namespaces.
    Network,
    /// The S3 server in the Python environment.
    S3,
    /// Ansible in the Python environment.
    Ansible,
    /// Flow meters of others, and the reference of Community ID in the Python environment.
    Meters,
    /// DuckDB, pyarrow, chDB and Spark in the Python environment, and Java.
    Engines,
}

impl fmt::Display for Need {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Need::Root => "root rights",
            Need::Libvirt => "libvirt and QEMU (run tests/prerequisites)",
            Need::Network => "iproute2 and network namespaces (run tests/prerequisites)",
            Need::S3 => "the S3 server (run tests/prerequisites)",
            Need::Ansible => "Ansible (run tests/prerequisites)",
            Need::Meters => "tshark, nfdump, argus and communityid (run tests/prerequisites)",
            Need::Engines => "DuckDB, pyarrow, chDB, Spark and Java (run tests/prerequisites)",
        })
    }
}

/// Everything that a test with guests needs.
pub const END_TO_END: &[Need] = &[Need::Root, Need::Network, Need::Libvirt];

/// True where everything is there. Otherwise prints which is missing and returns false, or fails where `CI=true`:
///
/// `if !require::met(require::END_TO_END)? { return Ok(()); }`
pub fn met(needs: &[Need]) -> Result<bool> {
    let Some(missing) = needs.iter().find(|need| !is_met(**need)) else { return Ok(true) };
    if std::env::var("CI").is_ok_and(|value| value == "true") {
        bail!("this test needs {missing}, and CI must have everything");
    }
    eprintln!("SKIPPED: this test needs {missing}");
    Ok(false)
}

fn is_met(need: Need) -> bool {
    match need {
        Need::Root => nix::unistd::geteuid().is_root(),
        Need::Libvirt => ["libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "mkfs.ext4", "depmod"]
            .iter()
            .all(|name| on_path(name)),
        Need::Network => on_path("ip") && on_path("unshare") && Path::new("/proc/self/ns/net").exists(),
        Need::S3 => paths::venv("weed").is_file(),
        Need::Ansible => paths::venv("ansible-playbook").is_file(),
        Need::Meters => {
            ["tshark", "nfpcapd", "nfdump", "argus", "ra"].iter().all(|name| on_path(name))
                && paths::venv("community-id").is_file()
        }
        Need::Engines => on_path("java") && paths::venv("spark-class").is_file(),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A developer's shell may leave the administrator's folders out.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().any(|dir| dir.join(program).is_file())
}
