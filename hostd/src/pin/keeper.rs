//! The keeper: takes hold, looks, lets go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use vestigo_model::{DomainUuid, InstanceEnd, ItemId, StopReason, Timestamp};

use super::{
    Outcome, Payloads, PinOptions,
    durable::{self, Survive},
    handover::Spool,
    policy::{Decision, FileId, Held, PinId, Policy},
    store::{self, PinDisk, PinLayer, Store},
    take::Run,
    watch::Watch,
};
use crate::domain::Inspection;

/// Holds every disk of this host. See the module's head for how to drive it.
pub struct PinKeeper {
    pub(super) options: PinOptions,
    pub(super) payloads: Box<dyn Payloads>,
    pub(super) store: Store,
    pub(super) spool: Spool,
    pub(super) watch: Watch,
    pub(super) policy: Policy,
    pub(super) pins: BTreeMap<PinId, PinDisk>,
    pub(super) next_pin: u64,
    /// Items decided on and not yet in the spool; whether the trouble was reported.
    pub(super) pending: BTreeMap<ItemId, bool>,
    /// Pins that belong to quarantine and may still be there: they are names of ours too.
    pub(super) handed: Vec<(PathBuf, FileId)>,
    pub(super) item_domains: BTreeMap<ItemId, DomainUuid>,
    /// What was said about a running VM's disks, so that it is said once.
    pub(super) said: BTreeSet<(DomainUuid, String, String)>,
    pub(super) rescan_at: Timestamp,
}

impl fmt::Debug for PinKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinKeeper").field("pins", &self.pins.len()).finish_non_exhaustive()
    }
}

impl AsFd for PinKeeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl PinKeeper {
    /// The domain runs, on these disks: takes hold of those that are not held yet. For a domain that started, changed or was
    /// found running; doing it again is harmless. The recorded interval keeps its start while the domain goes on running.
    pub fn started(&mut self, inspection: &Inspection, now: Timestamp) -> Vec<Outcome> {
        let mut instance = inspection.instance.clone();
        let domain = instance.domain;
        // Before the first resync everything that runs may have been running when hostd last looked.
        let goes_on = self.policy.runs(domain) || !self.policy.synced();
        if let Some(start) = self.open_interval(domain).filter(|_| goes_on) {
            instance.start = start;
        }
        let mut complaints = inspection.unpinnable.clone();
        let run = Run { instance: &instance, xml: &inspection.xml, goes_on };
        let (mut current, mut homes) = (BTreeSet::new(), BTreeSet::new());
        for disk in &instance.disks {
            match self.take(disk, &run, &mut complaints) {
                Ok(id) => {
                    current.insert(id);
                    homes.extend(self.pins.get(&id).map(home));
                }
                Err(error) => complaints.push((disk.target.clone(), error.to_string())),
            }
        }
        self.save(homes, Survive::Machine);
        self.policy.started(domain, instance.start, &current);
        let mut outcomes = self.complain(domain, complaints);
        let absorbed = self.policy.absorbed(domain);
        self.let_go(&absorbed);
        for file in self.files_of(&current) {
            outcomes.extend(self.look(file, now, None));
        }
        outcomes
    }

    /// The domain does not run here any more.
    pub fn stopped(&mut self, domain: DomainUuid, time: Timestamp, why: StopReason) -> Vec<Outcome> {
        self.policy.stopped(domain, why);
        self.said.retain(|(of, _, _)| *of != domain);
        let mut homes = BTreeSet::new();
        for disk in self.pins.values_mut().filter(|d| d.instance.domain == domain && d.instance.end.is_none()) {
            disk.instance.end = Some(InstanceEnd { time, why });
            homes.insert(home(disk));
        }
        self.save(homes, Survive::Machine);
        self.decide(time)
    }

    /// Exactly these domains run. Those that were thought to and do not have ended unobserved.
    pub fn resync(&mut self, running: &[DomainUuid], now: Timestamp) -> Vec<Outcome> {
        let running: BTreeSet<DomainUuid> = running.iter().copied().collect();
        let mut ended: BTreeSet<DomainUuid> = self.policy.resync(&running).into_iter().collect();
        let open = self.pins.values().filter(|d| d.instance.end.is_none()).map(|d| d.instance.domain);
        ended.extend(open.filter(|domain| !running.contains(domain)));
        let mut outcomes: Vec<_> =
            ended.into_iter().flat_map(|domain| self.stopped(domain, now, StopReason::Unobserved)).collect();
        outcomes.extend(self.decide(now));
        outcomes
    }

    /// The descriptor is readable: something was deleted, or quarantine has answered.
    pub fn readable(&mut self, now: Timestamp) -> Vec<Outcome> {
        let heard = self.watch.drain();
        let mut outcomes = Vec::new();
        if heard.overflow {
            outcomes.extend(self.look_at_all(now));
        }
        for file in heard.files {
            outcomes.extend(self.look(file, now, Some(now)));
        }
        if heard.answers || heard.overflow {
            outcomes.extend(self.answers());
        }
        outcomes.extend(self.decide(now));
        outcomes
    }

    /// Does what has become due.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if now >= self.rescan_at {
            self.rescan_at = now + self.options.rescan;
            outcomes.extend(self.look_at_all(now));
            self.store.tidy();
        }
        outcomes.extend(self.answers());
        outcomes.extend(self.finish_pending());
        outcomes.extend(self.decide(now));
        outcomes
    }

    /// When [`PinKeeper::tick`] must be called at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Timestamp {
        self.policy.next().map_or(self.rescan_at, |at| at.min(self.rescan_at))
    }

    /// The answer about the item is recorded: its file can go.
    pub fn acknowledge(&mut self, item: ItemId) {
        self.item_domains.remove(&item);
        if let Err(error) = self.spool.acknowledge(item) {
            tracing::warn!(%item, %error, "cannot remove quarantine's answer; it will be recorded again");
        }
    }

    /// Disks held at the moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.pins.len()
    }

    pub(super) fn insert(&mut self, disk: PinDisk) -> PinId {
        let id = PinId(self.next_pin);
        self.next_pin += 1;
        for layer in &disk.layers {
            self.watch.add(layer.file(), &layer.pin);
        }
        self.policy.insert(id, Self::view(&disk));
        self.pins.insert(id, disk);
        id
    }

    fn view(disk: &PinDisk) -> Held {
        Held {
            domain: disk.instance.domain,
            target: disk.target.clone(),
            interval: disk.instance.start,
            layers: disk.layers.iter().map(PinLayer::file).collect(),
        }
    }

    fn open_interval(&self, domain: DomainUuid) -> Option<Timestamp> {
        let of = |d: &&PinDisk| d.instance.domain == domain && d.pending.is_none() && d.instance.end.is_none();
        self.pins.values().filter(of).map(|d| d.instance.start).max()
    }

    pub(super) fn taken(&self, path: &Path) -> bool {
        let own = self.pins.values().flat_map(|d| &d.layers).any(|l| l.pin == path);
        own || self.handed.iter().any(|(pin, _)| pin == path)
    }

    fn complain(&mut self, domain: DomainUuid, complaints: Vec<(String, String)>) -> Vec<Outcome> {
        let new = complaints.into_iter().filter(|(t, why)| self.said.insert((domain, t.clone(), why.clone())));
        let missed =
            |(target, reason)| Outcome::Missed { item: None, domain: Some(domain), target: Some(target), reason };
        new.map(missed).collect()
    }

    fn files_of(&self, pins: &BTreeSet<PinId>) -> BTreeSet<FileId> {
        pins.iter().filter_map(|id| self.pins.get(id)).flat_map(|d| d.layers.iter().map(PinLayer::file)).collect()
    }

    pub(super) fn look_at_all(&mut self, now: Timestamp) -> Vec<Outcome> {
        let files: BTreeSet<FileId> = self.pins.values().flat_map(|d| d.layers.iter().map(PinLayer::file)).collect();
        files.into_iter().flat_map(|file| self.look(file, now, None)).collect()
    }

    /// Counts the names of a file. `heard` is when we were told that they changed; else the inode's own time is the best
    /// there is.
    fn look(&mut self, file: FileId, now: Timestamp, heard: Option<Timestamp>) -> Vec<Outcome> {
        let layers = || self.pins.values().flat_map(|d| &d.layers).filter(|l| l.file() == file);
        let Some(pin) = layers().map(|l| l.pin.clone()).next() else { return Vec::new() };
        let own = layers().map(|l| &l.pin).collect::<BTreeSet<_>>().len();
        self.handed.retain(|(path, of)| store::names(path).is_ok_and(|n| n.file == *of));
        let own = own + self.handed.iter().filter(|(_, of)| *of == file).count();
        match store::names(&pin) {
            Ok(names) if names.file == file => {
                let own = u64::try_from(own).unwrap_or(u64::MAX);
                let at = heard.unwrap_or_else(|| names.changed.min(now));
                self.policy.set_names(file, names.links.saturating_sub(own), at);
                Vec::new()
            }
            _ => self.lost(file),
        }
    }

    /// A pin is not there any more. Makes it again if the file still has its name, else it is lost.
    fn lost(&mut self, file: FileId) -> Vec<Outcome> {
        let missing = |l: &&PinLayer| l.file() == file && !store::names(&l.pin).is_ok_and(|n| n.file == file);
        let mut gone = Vec::new();
        for (id, disk) in self.pins.iter().filter(|(_, d)| d.pending.is_none()) {
            if let Some(layer) = disk.layers.iter().find(missing).filter(|l| !link_again(l)) {
                gone.push((*id, layer.pin.clone()));
            }
        }
        let mut outcomes = Vec::new();
        let mut homes = BTreeSet::new();
        for (id, pin) in gone {
            let Some(disk) = self.pins.get_mut(&id) else { continue };
            homes.insert(home(disk));
            outcomes.push(Outcome::Missed {
                item: None,
                domain: Some(disk.instance.domain),
                target: Some(disk.target.clone()),
                reason: format!("its pin {} was removed by someone else", pin.display()),
            });
            // A lost backing file leaves its disk; a lost image leaves nothing worth an item.
            if disk.layers.first().is_some_and(|image| image.file() == file) {
                self.pins.remove(&id);
                self.policy.remove(id);
            } else {
                disk.layers.retain(|layer| layer.file() != file);
                self.policy.drop_layer(id, file);
            }
        }
        self.unwatch();
        self.save(homes, Survive::Machine);
        outcomes
    }

    fn decide(&mut self, now: Timestamp) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for decision in self.policy.due(now) {
            match decision {
                Decision::HandOver { domain, pins, deleted, reason } => {
                    outcomes.extend(self.hand_over(domain, &pins, deleted, reason));
                }
                Decision::Release { domain, pins } => {
                    let disks = self.let_go(&pins);
                    let reason = "the VM migrated away and its source disk was deleted".to_owned();
                    outcomes.push(Outcome::Released { domain, disks, reason });
                }
            }
        }
        outcomes
    }

    /// Removes our links and forgets the disks. Returns their targets.
    fn let_go(&mut self, pins: &[PinId]) -> Vec<String> {
        let disks: Vec<PinDisk> = pins.iter().filter_map(|id| self.pins.remove(id)).collect();
        pins.iter().for_each(|id| self.policy.remove(*id));
        self.unwatch();
        // The note first: a link without a note is cleaned up at the next start, a note without its link reads as a loss.
        self.save(disks.iter().map(home).collect(), Survive::Machine);
        for layer in disks.iter().flat_map(|d| &d.layers) {
            if let Err(error) = durable::remove(&layer.pin) {
                tracing::warn!(pin = %layer.pin.display(), %error, "cannot remove a pin");
            }
        }
        self.store.tidy();
        disks.into_iter().map(|d| d.target).collect()
    }

    /// Stops watching what is not held any more.
    pub(super) fn unwatch(&mut self) {
        let held: BTreeSet<FileId> = self.pins.values().flat_map(|d| d.layers.iter().map(PinLayer::file)).collect();
        self.watch.retain(&held);
    }

    pub(super) fn save(&self, homes: BTreeSet<PathBuf>, survive: Survive) {
        for folder in homes {
            let disks = self.pins.values().filter(|d| home(d) == folder).cloned().collect();
            report(&folder, Store::save(&folder, disks, survive));
        }
    }

    /// As [`PinKeeper::save`], with one disk more (or in another form) than is held.
    pub(super) fn save_with(&self, also: &PinDisk, instead_of: Option<PinId>, survive: Survive) {
        let folder = home(also);
        let there = self.pins.iter().filter(|(id, d)| home(d) == folder && Some(**id) != instead_of);
        let mut disks: Vec<PinDisk> = there.map(|(_, d)| d.clone()).collect();
        disks.push(also.clone());
        report(&folder, Store::save(&folder, disks, survive));
    }
}

fn report(folder: &Path, saved: std::io::Result<()>) {
    if let Err(error) = saved {
        // The links hold all the same; only a restart before the next success would not know what they are.
        tracing::error!(folder = %folder.display(), %error, "cannot note what is pinned");
    }
}

pub(super) fn link_again(layer: &PinLayer) -> bool {
    let file = layer.file();
    Store::sight(&layer.original).is_ok_and(|s| s.file == file && Store::link(&s, &layer.pin).is_ok())
}

/// The folder whose note lists the disk: where its image's pin is.
pub(super) fn home(disk: &PinDisk) -> PathBuf {
    disk.layers.first().and_then(|l| l.pin.parent()).map(Path::to_owned).unwrap_or_default()
}
