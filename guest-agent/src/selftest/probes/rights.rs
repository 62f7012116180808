//! What a payload is allowed by the kernel.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    fcntl::{AT_FDCWD, OFlag, open, openat},
    sys::{
        resource::{Resource, getrlimit},
        stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, geteuid, getgid, getgroups, getuid},
};

use super::{Probe, Stage, Verdict};
use crate::{
    selftest::{Orders, broken, held, not_tested},
    sys,
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "ids",
        rules: &["R-ISO-27", "R-ISO-32"],
        what: "the payload is root, has groups, or shares its user namespace with other users",
        stage: Stage::Attack,
        run: ids,
    },
    Probe {
        name: "capabilities",
        rules: &["R-ISO-5", "R-ISO-23"],
        what: "a capability is held or can be got",
        stage: Stage::Attack,
        run: capabilities,
    },
    Probe {
        name: "no-new-privs",
        rules: &["R-ISO-23"],
        what: "a program may give more rights",
        stage: Stage::Attack,
        run: no_new_privs,
    },
    Probe {
        name: "seccomp",
        rules: &["R-ISO-23"],
        what: "no filter stands before the kernel",
        stage: Stage::Attack,
        run: seccomp,
    },
    Probe {
        name: "set-user-id",
        rules: &["R-ISO-23"],
        what: "a set-user-id program runs as its owner",
        stage: Stage::Attack,
        run: set_user_id,
    },
    Probe {
        name: "set-user-id-bits",
        rules: &["R-ISO-23"],
        what: "a file gets a set-user-id or set-group-id bit",
        stage: Stage::Attack,
        run: set_user_id_bits,
    },
    Probe {
        name: "core-dumps",
        rules: &["R-ISO-29", "R-ISO-33"],
        what: "a crash writes the payload's memory somewhere",
        stage: Stage::Attack,
        run: core_dumps,
    },
];

/// A field of `/proc/PID/status`.
fn status(process: &str, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}

fn ids(_: &Orders) -> Verdict {
    if getuid().is_root() || geteuid().is_root() || getgid().as_raw() == 0 {
        return broken(format!("uid {}, effective {}, gid {}", getuid(), geteuid(), getgid()));
    }
    let groups = getgroups().unwrap_or_default();
    if let Some(group) = groups.iter().find(|group| **group != getgid()) {
        return broken(format!("it is in the group {group}"));
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let counts: Vec<_> = map.lines().map(|line| line.split_whitespace().nth(2).unwrap_or_default()).collect();
    if counts == ["1"] {
        held(format!("uid {}, the only one of its user namespace, and no groups", getuid()))
    } else {
        broken(format!("its user namespace has {} maps, the first of {:?} ids", counts.len(), counts.first()))
    }
}

fn capabilities(_: &Orders) -> Verdict {
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let some = |set: &&&str| status("self", set).is_none_or(|value| value.chars().any(|c| c != '0'));
    match sets.iter().find(some) {
        None => held("all five sets are empty"),
        Some(set) => broken(format!("{set} is {}", status("self", set).unwrap_or_default())),
    }
}

fn no_new_privs(_: &Orders) -> Verdict {
    match status("self", "NoNewPrivs").as_deref() {
        Some("1") => held("no_new_privs is set"),
        other => broken(format!("no_new_privs is {other:?}")),
    }
}

fn seccomp(_: &Orders) -> Verdict {
    match status("self", "Seccomp").as_deref() {
        Some("2") => held("mode 2 (filter)"),
        other => broken(format!("mode is {other:?}")),
    }
}

/// A program of root's with the bit, that does nothing when asked for its version.
fn program() -> Option<PathBuf> {
    let names = ["su", "mount", "umount", "sudo", "newgrp", "passwd", "chsh", "gpasswd", "pkexec"];
    let paths = ["/usr/bin", "/bin", "/usr/sbin"]
        .into_iter()
        .flat_map(|folder| names.map(|name| PathBuf::from(folder).join(name)));
    let mut set = paths.filter(|path| fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o4000 != 0));
    set.next()
}

fn set_user_id(_: &Orders) -> Verdict {
    let Some(program) = program() else { return not_tested("this system has no set-user-id program") };
    let mut command = Command::new(&program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return not_tested(format!("{} does not start: {error}", program.display())),
    };
    let pid = i32::try_from(child.id()).unwrap_or(0);
    // Who it was is still known between its end and its clearing away.
    let ended = waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    let was = status(&pid.to_string(), "Uid").unwrap_or_default();
    let _ = child.wait();
    let (me, was) = (geteuid().to_string(), was.split_whitespace().nth(1).unwrap_or_default().to_owned());
    match ended {
        Ok(_) if was == me => held(format!("{} ran as uid {me}", program.display())),
        Ok(_) => broken(format!("{} ran as uid {was} instead of {me}", program.display())),
        Err(error) => not_tested(format!("{} could not be waited for: {error}", program.display())),
    }
}

/// Most bits of these that a file or folder gets, whichever way it is asked for.
fn bits_of(path: &Path) -> nix::Result<u32> {
    const BITS: u32 = 0o6000;
    let wanted = Mode::from_bits_truncate(BITS | 0o755);
    // Each may be refused; what counts is what the file has then.
    let made = openat(AT_FDCWD, path, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC, wanted)
        .or_else(|_| open(path, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY, Mode::from_bits_truncate(0o755)))?;
    let _ = fchmod(&made, wanted);
    let _ = fchmodat(AT_FDCWD, path, wanted, FchmodatFlags::FollowSymlink);
    fstat(&made).map(|about| about.st_mode & BITS)
}

fn set_user_id_bits(orders: &Orders) -> Verdict {
    let mut places = Vec::new();
    for folder in ["/work", "/tmp", "/var/tmp", "/dev/shm"].map(Path::new) {
        let path = folder.join(format!("{}-bits", orders.token));
        let bits = bits_of(&path);
        let _ = fs::remove_file(&path);
        match bits {
            Ok(0) => places.push(folder.display().to_string()),
            Ok(bits) => return broken(format!("a file in {} got {bits:o}", folder.display())),
            // The folder is not there, or not to be written.
            Err(_) => {}
        }
    }
    if places.is_empty() { not_tested("no file could be made") } else { held(format!("none in {}", places.join(", "))) }
}

fn core_dumps(_: &Orders) -> Verdict {
    match getrlimit(Resource::RLIMIT_CORE) {
        Ok((_, hard)) if hard > 1 => return broken(format!("they may have {hard} bytes")),
        Ok(_) => {}
        Err(error) => return not_tested(format!("the limit cannot be read: {error}")),
    }
    let crash = || match sys::fork_single_threaded()? {
        Some(child) => waitpid(child, None),
        None => std::process::abort(),
    };
    match crash() {
        Ok(WaitStatus::Signaled(_, signal, false)) => held(format!("a process that ended by {signal} left none")),
        Ok(WaitStatus::Signaled(_, _, true)) => broken("a crash left one"),
        Ok(other) => not_tested(format!("the process that was to crash did something else: {other:?}")),
        Err(error) => not_tested(format!("no process could be made to crash: {error}")),
    }
}
