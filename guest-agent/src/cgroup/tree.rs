//! The processes of one group and of the groups below it: counting, stopping, killing, waiting for the end.
//!
//! Every wait is bounded: a process in the kernel's uninterruptible sleep can outlive any signal.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{is_gone, keyed, layout::Version, put};

/// Longest wait for everything to stand still.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);
/// Longest time that killing one by one goes on.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at what cannot be waited for.
const LOOK: Duration = Duration::from_millis(2);
/// Longest wait in one poll, so that a missed wake-up costs no more.
const WAKE: Duration = Duration::from_millis(250);

/// Handle to a group's processes. Can be kept by whoever may have to end them; outlives the group harmlessly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    path: PathBuf,
    version: Version,
    /// v1: whether this is the freezer's tree.
    freezer: bool,
    /// v1: where forks can be stopped while there is no freezer.
    pids: Option<PathBuf>,
}

impl Tree {
    /// Of the group in this folder. `freezer` and `pids` matter on v1 only.
    #[must_use]
    pub const fn new(path: PathBuf, version: Version, freezer: bool, pids: Option<PathBuf>) -> Self {
        Self { path, version, freezer, pids }
    }

    /// The group's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes, those in groups below too. One of 0 is a process that this PID namespace cannot name.
    ///
    /// # Errors
    /// As read(2). A group that is gone has none.
    pub fn processes(&self) -> io::Result<Vec<Pid>> {
        let mut all = Vec::new();
        for group in descendants(&self.path)? {
            let text = match fs::read_to_string(group.join("cgroup.procs")) {
                Ok(text) => text,
                // The processes of a threaded group are listed by the group above it.
                Err(e) if is_gone(&e) || e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => continue,
                Err(e) => return Err(e),
            };
            all.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
        }
        Ok(all)
    }

    /// Whether nothing lives in it.
    ///
    /// # Errors
    /// As read(2).
    pub fn is_empty(&self) -> io::Result<bool> {
        if self.version == Version::One {
            return Ok(self.processes()?.is_empty());
        }
        match fs::read_to_string(self.path.join("cgroup.events")) {
            Ok(text) => Ok(keyed(&text, "populated") == Some(0)),
            Err(e) if is_gone(&e) => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Stops all processes and waits (at most 2 s) until they stand still.
    ///
    /// # Errors
    /// `Unsupported` without a freezer; `TimedOut` if one does not stop: the order stands, it stops as soon as it can.
    pub fn freeze(&self) -> io::Result<()> {
        self.freeze_by(Instant::now() + FREEZE_PATIENCE)
    }

    fn freeze_by(&self, until: Instant) -> io::Result<()> {
        self.order(true)?;
        let frozen = || -> io::Result<bool> {
            match self.version {
                Version::Two => Ok(keyed(&fs::read_to_string(self.path.join("cgroup.events"))?, "frozen") == Some(1)),
                Version::One => {
                    let state = fs::read_to_string(self.path.join("freezer.state"))?;
                    if state.trim() != "FROZEN" {
                        // A process that was born meanwhile is seen only when the order is given again.
                        self.order(true)?;
                    }
                    Ok(state.trim() == "FROZEN")
                }
            }
        };
        while !frozen()? {
            if Instant::now() >= until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "not all processes stand still yet"));
            }
            sleep(LOOK);
        }
        Ok(())
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// As write(2).
    pub fn thaw(&self) -> io::Result<()> {
        self.order(false)
    }

    fn order(&self, freeze: bool) -> io::Result<()> {
        match (self.version, self.freezer) {
            (Version::Two, _) => put(&self.path.join("cgroup.freeze"), if freeze { "1" } else { "0" }),
            (Version::One, true) => put(&self.path.join("freezer.state"), if freeze { "FROZEN" } else { "THAWED" }),
            (Version::One, false) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Kills everything, frozen or not. With v2 of Linux 5.14 or newer the kernel does it in one step, which no fork can
    /// outrun; [`Self::wait_empty`] tells when all are dead. Else one by one, until none is left.
    ///
    /// # Errors
    /// As write(2); `TimedOut` if killing one by one does not come to an end in 5 s. A group that is gone is no error.
    pub fn kill(&self) -> io::Result<()> {
        self.kill_by(Instant::now() + KILL_PATIENCE)
    }

    /// The same with another end of patience: the kernel's own kill, or one round of signals, there is in any case.
    ///
    /// # Errors
    /// As [`Self::kill`].
    pub fn kill_by(&self, until: Instant) -> io::Result<()> {
        if self.version == Version::Two {
            match put(&self.path.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                Err(e) if is_gone(&e) && self.path.exists() => {}
                Err(e) if is_gone(&e) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.kill_one_by_one(until)
    }

    /// For kernels without `cgroup.kill`. What is frozen can neither fork nor die, so no number can become a stranger's
    /// between list and signal. Without a freezer forks are stopped by the limit on processes, where there is one.
    ///
    /// # Errors
    /// As [`Self::kill`].
    pub fn kill_one_by_one(&self, until: Instant) -> io::Result<()> {
        loop {
            let frozen = self.freeze_by(until.min(Instant::now() + FREEZE_PATIENCE)).is_ok();
            if let Some(pids) = self.pids.as_ref().filter(|_| !frozen) {
                let _ = put(&pids.join("pids.max"), "0");
            }
            let processes = self.processes()?;
            // 0 would be the agent's own process group; what has no number here dies with its PID namespace.
            for process in processes.iter().filter(|p| p.as_raw() > 0) {
                match kill(*process, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(e) => {
                        let _ = self.thaw();
                        return Err(e.into());
                    }
                }
            }
            match self.thaw() {
                Err(e) if !is_gone(&e) && e.kind() != io::ErrorKind::Unsupported => return Err(e),
                _ => {}
            }
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!("{} processes do not die", processes.len());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let _ = self.wait_empty(Instant::now() + 10 * LOOK);
        }
    }

    /// Waits until nothing lives in it. `false` when the time is over, or nobody can tell.
    #[must_use]
    pub fn wait_empty(&self, deadline: Instant) -> bool {
        match self.version {
            Version::One => self.look_until_empty(deadline),
            Version::Two => self.poll_until_empty(deadline),
        }
    }

    fn look_until_empty(&self, deadline: Instant) -> bool {
        loop {
            if matches!(self.is_empty(), Ok(true)) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK);
        }
    }

    /// The kernel wakes whoever polls `cgroup.events` when it has changed since it was last read.
    fn poll_until_empty(&self, deadline: Instant) -> bool {
        let events = match File::open(self.path.join("cgroup.events")) {
            Ok(events) => events,
            Err(e) => return is_gone(&e),
        };
        let mut buffer = [0; 256];
        loop {
            match events.read_at(&mut buffer, 0) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
                    if keyed(&text, "populated") == Some(0) {
                        return true;
                    }
                }
                Err(e) => return is_gone(&e),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // Rounded up: a wait of less than a millisecond would spin.
            let timeout = PollTimeout::try_from(left.min(WAKE).as_millis() + 1).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
        }
    }
}

/// A group and all below it, a parent before its children. No recursion: a payload chooses the depth.
///
/// # Errors
/// As readdir(3). What goes away meanwhile is left out.
fn descendants(top: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = vec![top.to_owned()];
    let mut next = 0;
    while let Some(group) = all.get(next) {
        next += 1;
        match subfolders(group) {
            Ok(children) => all.extend(children),
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// The groups in a group.
///
/// # Errors
/// As readdir(3).
pub(super) fn subfolders(group: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a group whose processes are dead, and the groups in it. The kernel may find it busy for a moment longer.
///
/// # Errors
/// As rmdir(2), when the time is over.
pub(super) fn remove(group: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        let error = match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) => e,
        };
        if error.raw_os_error() != Some(nix::libc::EBUSY) {
            return Err(error);
        }
        for child in descendants(group)?.iter().skip(1).rev() {
            let _ = fs::remove_dir(child);
        }
        if Instant::now() >= deadline {
            return Err(error);
        }
        sleep(LOOK / 2);
    }
}
