//! What to do with pinned disks. Pure: facts go in, decisions come out, time is an argument.
//!
//! The rules. A disk is handed over when nobody but us names its file any more *and* no running VM uses it. So a stop, a
//! start, a reboot or a migration decides nothing by itself; a disk that is unlinked while its VM runs (Vac) waits for the
//! end; a rebuild's old disk goes as soon as the cloud manager deletes it, though the VM runs on its new one. Disks of one VM
//! that go within the settle time of each other become one item. Backing files follow their disks and decide nothing. After
//! a migration away the content lives on elsewhere: a source disk that is deleted then is let go.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use vestigo_model::{DomainUuid, StopReason, Timestamp};

/// A file, whatever its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The file system.
    pub device: u64,
    /// The file in it.
    pub inode: u64,
}

/// One pinned disk, for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinId(pub u64);

/// What the policy needs to know about a pinned disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose.
    pub domain: DomainUuid,
    /// The guest's name for it.
    pub target: String,
    /// Start of the interval in which it was last used.
    pub interval: Timestamp,
    /// The image, then its backing files.
    pub layers: Vec<FileId>,
}

impl Held {
    fn image(&self) -> Option<FileId> {
        self.layers.first().copied()
    }
}

/// Why a disk is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The VM does not run and its disk was deleted.
    Terminated,
    /// The VM runs on another disk of the same name.
    Replaced,
    /// The VM runs without it.
    Detached,
}

impl Reason {
    /// The word in the hand-over.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Terminated => "terminated",
            Self::Replaced => "replaced",
            Self::Detached => "detached",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Make one item of these disks.
    HandOver {
        /// Whose.
        domain: DomainUuid,
        /// Which; never empty.
        pins: Vec<PinId>,
        /// When the last other name went.
        deleted: Timestamp,
        /// Why.
        reason: Reason,
    },
    /// Let go: the VM lives on elsewhere and its source disk is gone.
    Release {
        /// Whose.
        domain: DomainUuid,
        /// Which.
        pins: Vec<PinId>,
    },
}

#[derive(Debug)]
struct Entry {
    held: Held,
    /// Whether the VM runs, or last ran, on it.
    current: bool,
    /// Since when it could be handed over.
    ready: Option<Timestamp>,
}

/// The state of all pinned disks.
#[derive(Debug)]
pub struct Policy {
    settle: Duration,
    entries: BTreeMap<PinId, Entry>,
    running: BTreeSet<DomainUuid>,
    departed: BTreeSet<DomainUuid>,
    /// Files that nobody else names, and since when.
    alone: BTreeMap<FileId, Timestamp>,
    synced: bool,
}

/// Disks that keep going one after the other are waited for at most this many settle times.
const PATIENCE: u32 = 5;

impl Policy {
    /// Knows nothing yet, and decides nothing until the first [`Policy::resync`] says what runs.
    #[must_use]
    pub fn new(settle: Duration) -> Self {
        Self {
            settle,
            entries: BTreeMap::new(),
            running: BTreeSet::new(),
            departed: BTreeSet::new(),
            alone: BTreeMap::new(),
            synced: false,
        }
    }

    /// A disk is pinned.
    pub fn insert(&mut self, id: PinId, held: Held) {
        self.entries.insert(id, Entry { held, current: true, ready: None });
    }

    /// A disk is not ours to watch any more.
    pub fn remove(&mut self, id: PinId) {
        self.entries.remove(&id);
        let still: BTreeSet<FileId> = self.entries.values().flat_map(|e| e.held.layers.iter().copied()).collect();
        self.alone.retain(|file, _| still.contains(file));
    }

    /// One of the disk's files is lost.
    pub fn drop_layer(&mut self, id: PinId, file: FileId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.held.layers.retain(|layer| *layer != file);
        }
    }

    /// The VM runs on exactly these disks, in the interval that began at `start`.
    pub fn started(&mut self, domain: DomainUuid, start: Timestamp, current: &BTreeSet<PinId>) {
        self.running.insert(domain);
        self.departed.remove(&domain);
        for (id, entry) in self.entries.iter_mut().filter(|(_, e)| e.held.domain == domain) {
            entry.current = current.contains(id);
            if entry.current {
                entry.held.interval = start;
            }
        }
    }

    /// The VM does not run here any more.
    pub fn stopped(&mut self, domain: DomainUuid, why: StopReason) {
        self.running.remove(&domain);
        if why == StopReason::Migrated {
            self.departed.insert(domain);
        }
    }

    /// Exactly these VMs run. Returns those that were thought to.
    pub fn resync(&mut self, running: &BTreeSet<DomainUuid>) -> Vec<DomainUuid> {
        self.synced = true;
        let gone: Vec<_> = self.running.difference(running).copied().collect();
        self.running.retain(|domain| running.contains(domain));
        self.running.extend(running);
        gone
    }

    /// How many names the file has besides our own, seen at `at`.
    pub fn set_names(&mut self, file: FileId, others: u64, at: Timestamp) {
        if others == 0 {
            self.alone.entry(file).or_insert(at);
        } else {
            self.alone.remove(&file);
        }
    }

    /// Whether it is known what runs.
    #[must_use]
    pub const fn synced(&self) -> bool {
        self.synced
    }

    /// Whether the VM is known to run.
    #[must_use]
    pub fn runs(&self, domain: DomainUuid) -> bool {
        self.running.contains(&domain)
    }

    /// Old disks of the VM whose image is now a backing file of a current one (a snapshot was taken): they are held there.
    #[must_use]
    pub fn absorbed(&self, domain: DomainUuid) -> Vec<PinId> {
        let own = || self.entries.iter().filter(move |(_, e)| e.held.domain == domain);
        let below: BTreeSet<FileId> =
            own().filter(|(_, e)| e.current).flat_map(|(_, e)| e.held.layers.iter().skip(1).copied()).collect();
        let absorbed = |e: &Entry| !e.current && e.held.image().is_some_and(|image| below.contains(&image));
        own().filter(|(_, e)| absorbed(e)).map(|(id, _)| *id).collect()
    }

    /// What is due. The same facts give the same decision again until the pins are removed.
    pub fn due(&mut self, now: Timestamp) -> Vec<Decision> {
        if !self.synced {
            return Vec::new();
        }
        self.mark_ready(now);
        let mut groups: BTreeMap<(DomainUuid, Timestamp, Reason), Vec<(PinId, Timestamp)>> = BTreeMap::new();
        for (id, entry) in &self.entries {
            if let Some(ready) = entry.ready {
                let key = (entry.held.domain, entry.held.interval, self.reason(entry));
                groups.entry(key).or_default().push((*id, ready));
            }
        }
        groups.into_iter().filter_map(|((domain, _, reason), pins)| self.decide(domain, reason, pins, now)).collect()
    }

    /// When to ask [`Policy::due`] again at the latest.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.entries.values().filter_map(|e| e.ready).min().map(|ready| ready + self.settle)
    }

    fn mark_ready(&mut self, now: Timestamp) {
        let running = &self.running;
        let live = self.entries.values().filter(|e| e.current && running.contains(&e.held.domain));
        let used: BTreeSet<FileId> = live.flat_map(|e| e.held.layers.iter().copied()).collect();
        for entry in self.entries.values_mut() {
            let free = |image: FileId| self.alone.contains_key(&image) && !used.contains(&image);
            entry.ready = match entry.held.image().is_some_and(free) {
                true => Some(entry.ready.unwrap_or(now)),
                false => None,
            };
        }
    }

    fn reason(&self, entry: &Entry) -> Reason {
        let domain = entry.held.domain;
        if !self.running.contains(&domain) {
            return Reason::Terminated;
        }
        let successor = |e: &Entry| e.current && e.held.domain == domain && e.held.target == entry.held.target;
        if self.entries.values().any(successor) { Reason::Replaced } else { Reason::Detached }
    }

    fn decide(
        &self,
        domain: DomainUuid,
        reason: Reason,
        pins: Vec<(PinId, Timestamp)>,
        now: Timestamp,
    ) -> Option<Decision> {
        let first = pins.iter().map(|(_, ready)| *ready).min()?;
        let last = pins.iter().map(|(_, ready)| *ready).max()?;
        if now < last + self.settle && now < first + self.settle.saturating_mul(PATIENCE) {
            return None;
        }
        let pins: Vec<PinId> = pins.into_iter().map(|(id, _)| id).collect();
        if reason == Reason::Terminated && self.departed.contains(&domain) {
            return Some(Decision::Release { domain, pins });
        }
        let images = pins.iter().filter_map(|id| self.entries.get(id)?.held.image());
        let deleted = images.filter_map(|image| self.alone.get(&image).copied()).max().unwrap_or(now);
        Some(Decision::HandOver { domain, pins, deleted, reason })
    }
}
