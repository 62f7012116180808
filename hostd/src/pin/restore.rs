//! A keeper from what the folders say, after a restart or a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use vestigo_model::{Clock as _, DomainUuid, StopReason, SystemClock, Timestamp};

use super::{
    Outcome, Payloads, PinError, PinOptions,
    durable::{self, Survive},
    handover::Spool,
    keeper::{PinKeeper, home, link_again},
    policy::Policy,
    store::{self, Loaded, PinDisk, Store},
    watch::Watch,
};

impl PinKeeper {
    /// Opens the folders and takes up what they hold. The outcomes tell what was lost while hostd was down and which
    /// hand-overs were completed now.
    pub fn open(options: PinOptions, payloads: Box<dyn Payloads>) -> Result<(Self, Vec<Outcome>), PinError> {
        let folder = |what| move |source| PinError::Folder { what, source };
        let store = Store::open(&options.folders).map_err(folder("pin folder"))?;
        let mut spool = Spool::open(&options.spool).map_err(folder("spool folder"))?;
        let watch = Watch::open(&spool.done()).map_err(PinError::Watch)?;
        let outstanding = spool.outstanding().map_err(folder("spool folder"))?;
        let item_domains = outstanding.iter().map(|h| (h.item, h.instance.domain)).collect();
        let pins = outstanding.iter().flat_map(|h| &h.disks).flat_map(|d| &d.layers).map(|l| &l.pin);
        let handed = pins.filter_map(|pin| Some((pin.clone(), store::names(pin).ok()?.file))).collect();
        let loaded = store.load().map_err(folder("pin folder"))?;
        let policy = Policy::new(options.settle);
        let mut keeper = Self {
            options,
            payloads,
            store,
            spool,
            watch,
            policy,
            pins: BTreeMap::new(),
            next_pin: 0,
            pending: BTreeMap::new(),
            handed,
            item_domains,
            said: BTreeSet::new(),
            rescan_at: Timestamp::from_nanos(0),
        };
        let mut outcomes = keeper.take_up(loaded);
        outcomes.extend(keeper.finish_pending());
        outcomes.extend(keeper.look_at_all(SystemClock.now()));
        keeper.store.tidy();
        Ok((keeper, outcomes))
    }

    fn take_up(&mut self, loaded: Vec<Loaded>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let (mut homes, mut strays) = (BTreeSet::new(), Vec::new());
        for Loaded { domain, folder, disks, files } in loaded {
            let readable = disks.is_ok();
            match disks {
                Ok(disks) => {
                    for disk in disks {
                        outcomes.extend(self.take_up_disk(domain, disk, &mut homes));
                    }
                }
                Err(error) => outcomes.push(Outcome::Missed {
                    item: None,
                    domain: Some(domain),
                    target: None,
                    reason: format!("the note in {} is not readable: {error}", folder.display()),
                }),
            }
            strays.extend(files.into_iter().map(|file| (domain, file, readable)));
        }
        for (domain, file, readable) in strays {
            outcomes.extend(self.stray(domain, file, readable));
        }
        self.save(homes, Survive::Machine);
        outcomes
    }

    fn take_up_disk(
        &mut self,
        domain: DomainUuid,
        mut disk: PinDisk,
        changed: &mut BTreeSet<PathBuf>,
    ) -> Option<Outcome> {
        if let Some(pending) = &disk.pending {
            // Decided before: `finish` goes on with it, whatever is left of the pins.
            self.pending.insert(pending.item, false);
            self.pins.insert(super::policy::PinId(self.next_pin), disk);
            self.next_pin += 1;
            return None;
        }
        let home = home(&disk);
        let image = disk.layers.first().map(|l| (l.pin.clone(), l.inode))?;
        if self.handed.iter().any(|(pin, _)| *pin == image.0) {
            // Handed over under another id's note that did not reach the disk; the spool decides.
            changed.insert(home);
            return None;
        }
        disk.layers.retain_mut(|layer| match store::names(&layer.pin) {
            Ok(names) if names.file.inode == layer.inode => {
                // Device numbers may differ after a reboot.
                layer.device = names.file.device;
                true
            }
            _ => link_again(layer),
        });
        changed.insert(home);
        if disk.layers.first().is_none_or(|l| l.pin != image.0) {
            return Some(Outcome::Missed {
                item: None,
                domain: Some(domain),
                target: Some(disk.target),
                reason: format!("its pin {} was gone when hostd started", image.0.display()),
            });
        }
        if disk.instance.end.is_some_and(|end| end.why == StopReason::Migrated) {
            self.policy.stopped(domain, StopReason::Migrated);
        }
        self.insert(disk);
        None
    }

    /// A file in a pin folder that no note names. If others name it too, removing it loses nothing; if not, it stays, and is
    /// reported, because nobody else has it.
    fn stray(&self, domain: DomainUuid, file: PathBuf, readable: bool) -> Option<Outcome> {
        let known = self.pins.values().flat_map(|d| &d.layers).any(|l| l.pin == file);
        let handed = self.handed.iter().any(|(pin, _)| *pin == file);
        if known || handed {
            return None;
        }
        if readable && store::names(&file).is_ok_and(|names| names.links > 1) {
            let _ = durable::remove(&file);
            return None;
        }
        let reason = format!("{} is pinned, but no note says what it is; it is left there", file.display());
        Some(Outcome::Missed { item: None, domain: Some(domain), target: None, reason })
    }
}
