//! The agent's side: one parent group in each tree, below the group that the agent was started in, and the end of what an
//! earlier agent left there.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use tracing::{info, warn};

use super::{
    CgroupError, Group, Limits, failed,
    layout::{Absence, Layout, Part, Version},
    put,
    tree::{self, Tree},
};

/// Where the agent itself goes on v2: a group that hands controllers down may hold no processes.
const AGENT: &str = "agent";
/// Longest wait at start for what an earlier agent left.
const LEFT_OVER_PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait at the end for the groups of the last payloads.
const LAST_GROUPS: Duration = Duration::from_secs(1);
/// Longest name of a group.
const LONGEST_NAME: usize = 64;

/// The parent group in one tree.
#[derive(Debug)]
pub(super) struct Home {
    pub version: Version,
    pub parts: Vec<Part>,
    pub parent: PathBuf,
}

impl Home {
    pub fn tree(&self, group: &Path, pids: Option<PathBuf>) -> Tree {
        Tree::new(group.to_owned(), self.version, self.parts.contains(&Part::Freezer), pids)
    }
}

/// What all groups of this agent share; the parents go when the last one has gone.
#[derive(Debug)]
pub(super) struct Shared {
    /// The one that [`Part::Tree`] lives in first.
    pub homes: Vec<Home>,
    pub absent: BTreeMap<Part, Absence>,
    /// Groups that could not be removed.
    pub stuck: AtomicU64,
    /// Tells another agent that these payloads are alive.
    _lock: Option<Flock<File>>,
}

impl Shared {
    /// Index of the home of a part.
    pub fn home(&self, part: Part) -> Result<usize, CgroupError> {
        let found = match part {
            Part::Tree => (!self.homes.is_empty()).then_some(0),
            _ => self.homes.iter().position(|h| h.parts.contains(&part)),
        };
        found.ok_or_else(|| CgroupError::Missing { part, why: self.why_not(part) })
    }

    fn why_not(&self, part: Part) -> Absence {
        self.absent.get(&part).cloned().unwrap_or(Absence::NotMounted)
    }
}

impl Shared {
    /// With a group in it that could not be removed a parent stays, for the next agent to try. Whether all are gone.
    fn remove_parents(&self) -> bool {
        let gone = |home: &Home| match fs::remove_dir(&home.parent) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        // Not only up to the first that stays.
        self.homes.iter().filter(|home| !gone(home)).count() == 0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.remove_parents();
    }
}

/// The parent groups of all payloads.
#[derive(Debug, Clone)]
pub struct Cgroups {
    shared: Arc<Shared>,
}

impl Cgroups {
    /// Makes the parent groups below the agent's own and ends what an earlier agent left in them (waiting at most some
    /// seconds). On v2 the agent moves itself into the sub-group `agent` if controllers are to be handed down. `name` must be
    /// the same at every start and different for every agent of the VM. What a machine lacks is no error: see [`Self::has`].
    ///
    /// # Errors
    /// [`CgroupError::Invalid`] for a name, [`CgroupError::InUse`] if an agent of this name lives.
    pub fn start(layout: &Layout, name: &str) -> Result<Self, CgroupError> {
        check_name(name)?;
        let mut absent: BTreeMap<Part, Absence> =
            Part::ALL.iter().filter_map(|p| Some((*p, layout.home(*p).err()?))).collect();
        let mut homes = Vec::new();
        for hierarchy in layout.hierarchies() {
            let parent = hierarchy.own.join(name);
            match make(&parent) {
                Ok(()) => {
                    homes.push(Home { version: hierarchy.version, parts: hierarchy.parts.clone(), parent });
                }
                Err(e) => {
                    let why = Absence::Refused(format!("{} cannot be made: {e}", parent.display()));
                    absent.extend(hierarchy.parts.iter().map(|p| (*p, why.clone())));
                    absent.entry(Part::Tree).or_insert(why);
                }
            }
        }
        // Before anything is killed or moved: the payloads of a living agent are no left-overs.
        let lock = homes.first().map(|home| lock(&home.parent)).transpose()?;
        if lock.is_some() {
            absent.remove(&Part::Tree);
        }
        for home in homes.iter_mut().filter(|h| h.version == Version::Two) {
            hand_down(home, &mut absent);
        }
        for part in Part::ALL {
            if let Some(why) = absent.get(&part) {
                info!(%part, %why, "not available for payloads");
            }
        }
        let stuck = AtomicU64::new(clear(&homes));
        Ok(Self { shared: Arc::new(Shared { homes, absent, stuck, _lock: lock }) })
    }

    /// Takes the parent groups away at the agent's orderly end, when no payload is started any more; waits at most a second for
    /// payloads' groups that are being removed.
    pub fn remove_parents(&self) {
        let until = Instant::now() + LAST_GROUPS;
        while !self.shared.remove_parents() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether payloads can have this.
    #[must_use]
    pub fn has(&self, part: Part) -> bool {
        self.shared.home(part).is_ok()
    }

    /// Why payloads cannot have it, for the isolation manifest.
    #[must_use]
    pub fn why_not(&self, part: Part) -> Option<Absence> {
        (!self.has(part)).then(|| self.shared.why_not(part))
    }

    /// Where a part lives, for the isolation manifest.
    #[must_use]
    pub fn version(&self, part: Part) -> Option<Version> {
        let index = self.shared.home(part).ok()?;
        self.shared.homes.get(index).map(|h| h.version)
    }

    /// The limits that this machine cannot set, of those asked for.
    #[must_use]
    pub fn missing(&self, limits: &Limits) -> Vec<Part> {
        Part::LIMITS.into_iter().filter(|p| limits.has(*p) && !self.has(*p)).collect()
    }

    /// Makes the group of one payload. The name is its own for this boot: letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] if a limit cannot be set here (or no group be made), [`CgroupError::Invalid`],
    /// [`CgroupError::Refused`]; nothing is left behind.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Group, CgroupError> {
        check_name(name)?;
        Group::create(Arc::clone(&self.shared), name, limits)
    }

    /// How many groups could not be removed because something in them does not die.
    #[must_use]
    pub fn stuck(&self) -> u64 {
        self.shared.stuck.load(Ordering::Relaxed)
    }
}

/// A dot would allow the name of a file of the kernel's, a slash another folder.
fn check_name(name: &str) -> Result<(), CgroupError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if plain && (1..=LONGEST_NAME).contains(&name.len()) && name != "tasks" && name != AGENT {
        return Ok(());
    }
    Err(CgroupError::Invalid(format!(
        "{name:?} cannot name a group; use 1 to {LONGEST_NAME} letters, digits, '-' and '_', and not 'agent' or 'tasks'"
    )))
}

/// As mkdir(2), but it may be there already.
fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        other => other,
    }
}

/// Takes the parent group for this agent. The lock ends with the process; its children must not inherit it (close-on-exec).
fn lock(parent: &Path) -> Result<Flock<File>, CgroupError> {
    let wrong = || failed("cannot lock", parent);
    for _ in 0..10 {
        let folder = File::open(parent).map_err(wrong())?;
        let lock = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(CgroupError::InUse(parent.to_owned())),
            Err((_, e)) => return Err(wrong()(e.into())),
        };
        // An agent that ended just now took its folder away: what is locked must be what is there.
        let here = lock.metadata().map_err(wrong())?;
        if fs::metadata(parent).is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())) {
            return Ok(lock);
        }
        make(parent).map_err(wrong())?;
    }
    Err(wrong()(io::Error::other("it keeps changing")))
}

/// v2: makes the controllers of the agent's own group available to payloads. Those that cannot be are absent from then on.
fn hand_down(home: &mut Home, absent: &mut BTreeMap<Part, Absence>) {
    let wanted: Vec<Part> = home.parts.iter().copied().filter(|p| *p != Part::Freezer).collect();
    let Some(own) = home.parent.parent().filter(|_| !wanted.is_empty()) else { return };
    let moved = move_away(own);
    for part in wanted {
        let handed = match &moved {
            Err(e) => Err(format!("the agent cannot move to {}: {e}", own.join(AGENT).display())),
            Ok(()) => enable(own, part).and_then(|()| enable(&home.parent, part)).map_err(|e| match e.kind() {
                io::ErrorKind::ResourceBusy => {
                    "other processes are in the agent's own group; start the agent as a service with Delegate=yes"
                        .to_owned()
                }
                _ => format!("it cannot be handed down from {}: {e}", own.display()),
            }),
        };
        if let Err(why) = handed {
            absent.insert(part, Absence::Refused(why));
            home.parts.retain(|p| *p != part);
        }
    }
}

/// The root is exempt from the rule, and is the only group without a type.
fn move_away(own: &Path) -> io::Result<()> {
    if !own.join("cgroup.type").exists() {
        return Ok(());
    }
    let leaf = own.join(AGENT);
    make(&leaf).and_then(|()| put(&leaf.join("cgroup.procs"), &std::process::id().to_string()))
}

fn enable(group: &Path, part: Part) -> io::Result<()> {
    let file = group.join("cgroup.subtree_control");
    let on = fs::read_to_string(&file)?;
    if on.split_whitespace().any(|c| c == part.name()) {
        return Ok(());
    }
    put(&file, &format!("+{part}"))
}

/// Ends the payloads of an earlier agent. Kills all before it waits for any. How many are left.
fn clear(homes: &[Home]) -> u64 {
    let until = Instant::now() + LEFT_OVER_PATIENCE;
    let mut left = Vec::new();
    for home in homes {
        let groups = tree::subfolders(&home.parent).unwrap_or_default();
        left.extend(groups.into_iter().map(|group| home.tree(&group, None)));
    }
    for group in &left {
        info!(group = %group.path().display(), "ending what an earlier agent left");
        if let Err(error) = group.kill_by(until) {
            warn!(group = %group.path().display(), %error, "a left-over group cannot be killed");
        }
    }
    let mut stuck = 0;
    for group in &left {
        let _ = group.wait_empty(until);
        if let Err(error) = tree::remove(group.path(), until) {
            warn!(group = %group.path().display(), %error, "a left-over group cannot be removed");
            stuck += 1;
        }
    }
    stuck
}

#[cfg(test)]
#[path = "parent_tests.rs"]
mod tests;
