//! The first process of a site. When it ends, the kernel kills every other process of the site's pid namespace, so all
//! that is needed to clean up after a killed test is that this one notices: its standard input is a pipe from the test.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};

use crate::guest::KVM;
use crate::process::output;

/// Folders of the machine that a site replaces by its own, and their names below the site's folder.
pub const PRIVATE: &[(&str, &str)] = &[
    ("/run", "run"),
    ("/etc/libvirt", "etc-libvirt"),
    ("/var/lib/libvirt", "lib-libvirt"),
    ("/var/log/libvirt", "log-libvirt"),
    ("/var/cache/libvirt", "cache-libvirt"),
];

/// Files that a site replaces by its own.
pub const PRIVATE_FILES: &[(&str, &str)] =
    &[("/etc/passwd", "etc-passwd"), ("/etc/group", "etc-group"), ("/etc/hosts", "etc-hosts")];

/// A file of the site's folder that takes the place of `/dev/kvm` where that is there, but runs no guest: nobody may open it. libvirt asks
/// QEMU for its abilities anew at each start of a domain, ten seconds long, as long as the device looks usable and QEMU cannot use it.
pub const NO_KVM: &str = "no-kvm";

/// Prepares the namespaces, says `ready`, then reaps orphans until standard input ends.
pub fn run(name: &str, dir: &Path) -> Result<()> {
    // Blocked before the thread below exists, so that only the loop at the end sees it.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    sethostname(name)?;
    replace_sys(dir)?;
    for (path, own) in PRIVATE {
        // libvirt's minimal packages leave some of its folders to libvirt-daemon-system; empty ones do no harm.
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))?;
        bind(&dir.join(own), Path::new(path))?;
    }
    for (path, own) in PRIVATE_FILES {
        bind(&dir.join(own), Path::new(path))?;
    }
    let no_kvm = dir.join(NO_KVM);
    if no_kvm.exists() {
        bind(&no_kvm, Path::new(KVM))?;
    }
    output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    println!("ready");
    std::io::stdout().flush()?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    loop {
        children.wait()?;
        while !matches!(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
    }
}

/// A fresh /sys shows this network namespace's interfaces (libvirt and hostd read them there); the cgroups stay.
fn replace_sys(dir: &Path) -> Result<()> {
    let (groups, aside) = (Path::new("/sys/fs/cgroup"), dir.join("cgroup"));
    std::fs::create_dir_all(&aside)?;
    bind(groups, &aside)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).context("cannot mount a fresh /sys")?;
    bind(&aside, groups)?;
    umount2(&aside, MntFlags::MNT_DETACH)?;
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("cannot put {} over {}", from.display(), to.display()))
}
