//! Files of others, and ways around the root.

use std::{
    env, fs,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, fstat},
};

use super::{Probe, Stage, Verdict};
use crate::selftest::{Orders, broken, held, not_tested};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "foreign-files",
        rules: &["R-ISO-2", "R-ISO-3", "R-ISO-26"],
        what: "files of the pilot or of another payload can be opened",
        stage: Stage::Attack,
        run: foreign_files,
    },
    Probe {
        name: "descriptors",
        rules: &["R-ISO-3", "R-ISO-29"],
        what: "a descriptor was inherited besides standard input, output and error",
        stage: Stage::Attack,
        run: descriptors,
    },
    Probe {
        name: "working-folder",
        rules: &["R-ISO-8"],
        what: "the way up from the working folder, or from a descriptor, leads past the root",
        stage: Stage::Attack,
        run: working_folder,
    },
    Probe {
        name: "agent-channel",
        rules: &["R-ISO-6", "R-ISO-29"],
        what: "the agent's socket, the VM's services or the link to the hypervisor can be opened",
        stage: Stage::Attack,
        run: agent_channel,
    },
    Probe {
        name: "kernel-settings",
        rules: &["R-ISO-34"],
        what: "settings of the VM's kernel can be opened for writing",
        stage: Stage::Attack,
        run: kernel_settings,
    },
    Probe {
        name: "residue-files",
        rules: &["R-ISO-18", "R-ISO-33"],
        what: "files of an earlier payload are there",
        stage: Stage::After,
        run: residue_files,
    },
];

fn foreign_files(orders: &Orders) -> Verdict {
    if orders.files.is_empty() {
        return not_tested("no bait could be laid");
    }
    // That one can be seen is enough: nothing with this name is the payload's own.
    match orders.files.iter().find(|path| fs::symlink_metadata(path).is_ok() || fs::File::open(path).is_ok()) {
        None => held(format!("none of {} can be seen", orders.files.len())),
        Some(path) => broken(format!("{} is there", path.display())),
    }
}

fn descriptors(_: &Orders) -> Verdict {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return broken("/proc/self/fd cannot be read") };
    let links = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        Some((entry.file_name().to_str()?.parse::<u32>().ok()?, fs::read_link(entry.path()).ok()?))
    });
    // The one that reads this very folder is gone by now, or shows it.
    let own = |path: &Path| path.starts_with("/proc") && path.ends_with("fd");
    let inherited: Vec<_> = links.filter(|(number, path)| *number > 2 && !own(path)).collect();
    match inherited.first() {
        None => held("only 0, 1 and 2"),
        Some((number, path)) => broken(format!("{number} is open on {}", path.display())),
    }
}

/// Up from a folder until it does not go further.
fn top(from: &Path) -> Result<(u64, u64), Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mut folder = open(from, flags, Mode::empty())?;
    let mut last = fstat(&folder)?;
    for _ in 0..4096 {
        folder = openat(&folder, "..", flags, Mode::empty())?;
        let next = fstat(&folder)?;
        if (next.st_dev, next.st_ino) == (last.st_dev, last.st_ino) {
            break;
        }
        last = next;
    }
    Ok((last.st_dev, last.st_ino))
}

fn working_folder(_: &Orders) -> Verdict {
    let Ok(root) = fs::metadata("/") else { return broken("the root cannot be looked at") };
    // The kernel says so itself when the way up from the working folder does not meet the root.
    if let Err(error) = env::current_dir() {
        return broken(format!("the working folder lies outside of the root: {error}"));
    }
    let doors =
        ["/proc/self/cwd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "/proc/1/cwd", "/proc/1/root"];
    let mut tried = 0;
    for door in doors {
        match top(Path::new(door)) {
            Ok(found) if found == (root.dev(), root.ino()) => tried += 1,
            Ok(_) => return broken(format!("{door}/.. leads past the root")),
            Err(_) => {}
        }
    }
    held(format!("{tried} ways up end at the root"))
}

/// What would speak for the VM or to the hypervisor.
const CHANNELS: [&str; 8] = [
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/dev/vsock",
    "/dev/vhost-vsock",
    "/dev/kvm",
    "/dev/mem",
];

fn agent_channel(orders: &Orders) -> Verdict {
    let opens =
        |path: &Path| UnixStream::connect(path).is_ok() || fs::OpenOptions::new().write(true).open(path).is_ok();
    let named = orders.sockets.iter().map(AsRef::as_ref).chain(CHANNELS.iter().map(Path::new));
    let ports = ["/dev/virtio-ports", "/dev/vport0p1", "/dev/vport1p1", "/run/vestigo"].map(Path::new);
    let mut all = named.chain(ports);
    match all.find(|path| opens(path) || fs::read_dir(path).is_ok()) {
        None => held(format!("none of {} can be reached", orders.sockets.len() + CHANNELS.len() + ports.len())),
        Some(path) => broken(format!("{} can be reached", path.display())),
    }
}

fn kernel_settings(_: &Orders) -> Verdict {
    let settings = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/1/oom_score_adj",
        "/sys/kernel/uevent_helper",
    ];
    // Opened, never written.
    let opens = |path: &&&str| fs::OpenOptions::new().write(true).open(path).is_ok();
    match settings.iter().find(opens) {
        None => held(format!("none of {} opens", settings.len())),
        Some(path) => broken(format!("{path} opens for writing")),
    }
}

/// Where a payload can leave files.
pub(crate) const LEFT: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/work"];

fn residue_files(orders: &Orders) -> Verdict {
    if orders.files.is_empty() {
        return not_tested("the payload before could leave no files");
    }
    for folder in LEFT {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().display().to_string();
            if name.contains(&orders.token) {
                return broken(format!("{folder}/{name} is left"));
            }
        }
    }
    held(format!("none of {} in {}", orders.files.len(), LEFT.join(", ")))
}
