//! One payload's group: a folder in the tree that its processes are known by, and one in each v1 tree that limits it.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use tracing::warn;

use super::{
    CgroupError, Limits, Tree, failed, keyed,
    layout::{Part, Version},
    parent::Shared,
    put,
    tree::remove,
};
use serde::{Deserialize, Serialize};

/// Longest wait for processes to die, and then for folders to go, when a group is removed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most rounds of moving processes that fork meanwhile.
const ROUNDS: usize = 100;

/// What a payload used, and which limits it ran into. `None` is "not counted here".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Events {
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Forks that failed for the limit on processes.
    pub pids_max_hits: Option<u64>,
    /// Most memory at one time, bytes.
    pub memory_peak: Option<u64>,
    /// Processor time, µs.
    pub cpu_usec: Option<u64>,
}

/// A payload's group. Dropping it kills what is in it, waits (bounded), and removes it.
#[derive(Debug)]
pub struct Group {
    name: String,
    shared: Arc<Shared>,
    tree: Tree,
    /// Indices of the homes in which it has a folder.
    used: Vec<usize>,
    limits: Limits,
    fd: Option<File>,
    removed: bool,
}

impl Group {
    pub(super) fn create(shared: Arc<Shared>, name: &str, limits: &Limits) -> Result<Self, CgroupError> {
        check(&shared, limits)?;
        let home = shared.home(Part::Tree)?;
        let Some(first) = shared.homes.get(home) else {
            return Err(CgroupError::Invalid("no tree".to_owned()));
        };
        let pids = shared.home(Part::Pids).ok().and_then(|i| shared.homes.get(i)).map(|h| h.parent.join(name));
        let tree = first.tree(&first.parent.join(name), pids.filter(|_| first.version == Version::One));
        let two = first.version == Version::Two;
        let mut group =
            Self { name: name.to_owned(), shared, tree, used: Vec::new(), limits: *limits, fd: None, removed: false };
        group.make(home)?;
        if two {
            group.fd = Some(File::open(group.tree.path()).map_err(failed("cannot open", group.tree.path()))?);
        }
        for part in Part::LIMITS.into_iter().filter(|p| limits.has(*p)) {
            let home = group.shared.home(part)?;
            group.make(home)?;
            group.apply(part, home, true)?;
        }
        Ok(group)
    }

    /// Makes its folder in a tree, if it has none there. What an error leaves, dropping removes.
    fn make(&mut self, home: usize) -> Result<bool, CgroupError> {
        if self.used.contains(&home) {
            return Ok(false);
        }
        let path = self.folder(home)?;
        fs::create_dir(&path).map_err(failed("cannot make", &path))?;
        self.used.push(home);
        Ok(true)
    }

    fn folder(&self, home: usize) -> Result<PathBuf, CgroupError> {
        let home = self.shared.homes.get(home).ok_or_else(|| CgroupError::Invalid("no such tree".to_owned()))?;
        Ok(home.parent.join(&self.name))
    }

    fn version(&self, home: usize) -> Version {
        self.shared.homes.get(home).map_or(Version::Two, |h| h.version)
    }

    fn apply(&self, part: Part, home: usize, fresh: bool) -> Result<(), CgroupError> {
        self.limits.apply(part, self.version(home), &self.folder(home)?, fresh)
    }

    /// Changes the limits. On v1 a part that was not limited before is from now on: its processes are moved (memory that
    /// they hold already is not counted), which costs the VM some milliseconds.
    ///
    /// # Errors
    /// As `Cgroups::create`; what came before the failure is changed.
    pub fn set(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        check(&self.shared, limits)?;
        let before = std::mem::replace(&mut self.limits, *limits);
        let same = |part: Part| match part {
            Part::Memory => before.memory == limits.memory,
            Part::Pids => before.pids == limits.pids,
            Part::Cpu => before.cpu == limits.cpu,
            Part::Tree | Part::Freezer => true,
        };
        for part in Part::LIMITS.into_iter().filter(|p| !same(*p)) {
            let home = self.shared.home(part)?;
            let fresh = self.make(home)?;
            self.apply(part, home, fresh)?;
            if fresh {
                self.gather(home)?;
            }
        }
        Ok(())
    }

    /// Moves all its processes into its folder in one more tree. A child is born where its parent is, so this comes to an
    /// end as soon as all parents are there.
    fn gather(&self, home: usize) -> Result<(), CgroupError> {
        let folder = self.folder(home)?;
        let list = |tree: &Tree| tree.processes().map_err(failed("cannot list", tree.path()));
        let there = Tree::new(folder.clone(), Version::One, false, None);
        for _ in 0..ROUNDS {
            let inside = list(&there)?;
            let outside: Vec<Pid> = list(&self.tree)?.into_iter().filter(|p| !inside.contains(p)).collect();
            if outside.is_empty() {
                return Ok(());
            }
            for process in outside {
                match write_pid(&folder, process) {
                    Err(CgroupError::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::ESRCH) => {}
                    other => other?,
                }
            }
        }
        Err(failed("cannot gather all processes in", &folder)(io::Error::other(
            "they fork faster than they can be moved",
        )))
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The limits in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// For clone3(2) with CLONE_INTO_CGROUP: a child born in the group needs no moving. `None` without v2.
    #[must_use]
    pub fn v2_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// The files by which a process with one thread gets into the group's v1 folders, with [`join`]. Empty when all is on
    /// v2. A folder is there only for what is limited.
    #[must_use]
    pub fn doors(&self) -> Vec<PathBuf> {
        let v1 = self.used.iter().filter(|home| self.version(**home) == Version::One);
        v1.filter_map(|home| Some(self.folder(*home).ok()?.join("tasks"))).collect()
    }

    /// Moves a process, all of its threads, into the group from outside. `born_inside`: it was born in [`Self::v2_fd`].
    /// Dear (see the module's text): [`join`] is the cheap way.
    ///
    /// # Errors
    /// As write(2).
    pub fn enter(&self, process: Pid, born_inside: bool) -> Result<(), CgroupError> {
        for home in &self.used {
            if !(born_inside && self.version(*home) == Version::Two) {
                write_pid(&self.folder(*home)?, process)?;
            }
        }
        Ok(())
    }

    /// Its processes, as a handle that can be kept.
    #[must_use]
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What it used and ran into so far.
    #[must_use]
    pub fn events(&self) -> Events {
        let place = |part: Part| {
            let home = self.shared.home(part).ok().filter(|home| self.used.contains(home))?;
            Some((self.version(home), self.folder(home).ok()?))
        };
        let mut events = Events::default();
        match place(Part::Memory) {
            Some((Version::Two, folder)) => {
                events.oom_kills = key(&folder, "memory.events", "oom_kill");
                events.memory_peak = number(&folder, "memory.peak");
            }
            Some((Version::One, folder)) => {
                events.oom_kills = key(&folder, "memory.oom_control", "oom_kill");
                events.memory_peak = number(&folder, "memory.max_usage_in_bytes");
            }
            None => {}
        }
        events.pids_max_hits = place(Part::Pids).and_then(|(_, folder)| key(&folder, "pids.events", "max"));
        events.cpu_usec = match place(Part::Tree) {
            Some((Version::Two, folder)) => key(&folder, "cpu.stat", "usage_usec"),
            // Counted where cpuacct is mounted together with cpu, as it is wherever systemd mounted it.
            _ => place(Part::Cpu).and_then(|(_, folder)| number(&folder, "cpuacct.usage")).map(|ns| ns / 1000),
        };
        events
    }

    /// Kills what still lives, waits until it is dead (at most 5 s), removes the group everywhere.
    ///
    /// # Errors
    /// Something does not die, or a folder does not go. It is counted, and the next start of the agent tries again.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), CgroupError> {
        if std::mem::replace(&mut self.removed, true) {
            return Ok(());
        }
        self.fd = None;
        let until = Instant::now() + PATIENCE;
        let result = self.end(until).and(self.remove_folders(until));
        if result.is_err() {
            self.shared.stuck.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn end(&self, until: Instant) -> Result<(), CgroupError> {
        let path = self.tree.path();
        // The usual case at the end of a payload: nothing is left, nothing is to be killed.
        if self.used.is_empty() || matches!(self.tree.is_empty(), Ok(true)) {
            return Ok(());
        }
        self.tree.kill_by(until).map_err(failed("cannot kill all in", path))?;
        if self.tree.wait_empty(until) {
            return Ok(());
        }
        let left = self.tree.processes().map_or(0, |p| p.len());
        let text =
            format!("{left} processes do not die; they wait for a disk or a file server, look for state D in ps");
        Err(failed("cannot empty", path)(io::Error::new(io::ErrorKind::TimedOut, text)))
    }

    /// All of them, whatever happens to one; the first failure is told.
    fn remove_folders(&self, until: Instant) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for home in self.used.iter().rev() {
            let folder = self.folder(*home)?;
            result = result.and(remove(&folder, until).map_err(failed("cannot remove", &folder)));
        }
        result
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            warn!(group = self.name, %error, "a payload's group stays behind");
        }
    }
}

/// Moves the calling process, which must have one thread, through [`Group::doors`]. Nobody else has to stop for it: the
/// kernel takes no VM-wide lock for a thread that moves itself.
///
/// # Errors
/// As write(2).
pub fn join(doors: &[PathBuf]) -> Result<(), CgroupError> {
    doors.iter().try_for_each(|door| put(door, "0").map_err(failed("cannot enter", door)))
}

fn check(shared: &Shared, limits: &Limits) -> Result<(), CgroupError> {
    limits.check()?;
    Part::LIMITS.into_iter().filter(|p| limits.has(*p)).try_for_each(|part| shared.home(part).map(drop))
}

fn write_pid(folder: &Path, process: Pid) -> Result<(), CgroupError> {
    put(&folder.join("cgroup.procs"), &process.to_string()).map_err(failed("cannot move a process to", folder))
}

fn key(folder: &Path, file: &str, key: &str) -> Option<u64> {
    keyed(&fs::read_to_string(folder.join(file)).ok()?, key)
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}
