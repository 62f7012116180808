//! From a hand-over to a sealed item.

mod layer;
mod seal;
mod sha;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use vestigo_model::{Clock, Handover, Outcome, PinnedLayer};

pub use layer::{LayerError, Settings};

use crate::{
    chunk::Domain,
    custody::CustodyError,
    fetch::{self, FetchError},
    index::PackRef,
    journal::{Journal, JournalError, Journals},
    known::{Known, KnownError},
    manifest::{DiskRecord, LayerRecord, LayerState, ManifestError},
    source::{Pin, SourceError},
    vault::{Vault, VaultError, identity::Remembered, probe::LockMode},
};

/// Why an item is not sealed yet. Every one of these leaves pins and spool file in place: it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A pin could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cache failed.
    #[error(transparent)]
    Known(#[from] KnownError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Custody failed.
    #[error(transparent)]
    Custody(#[from] CustodyError),
    /// A manifest failed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The vault says that it holds this item with other content.
    #[error(
        "the vault already holds item {0} with other content; keep both its manifest and the spool file and look into it"
    )]
    Conflict(vestigo_model::ItemId),
    /// Packs vanish as fast as they are stored.
    #[error("packs that the vault confirmed are gone again, three times over: it loses what it is given")]
    Losing,
}

impl AcquireError {
    /// Whether the daemon was told to stop.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Layer(LayerError::Stopped))
    }
}

/// Told to stop, and signs of life.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    beats: AtomicU64,
}

impl Control {
    /// Asks the work to stop at the next chunk.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked to.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// A sign of life, for the watchdog.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// How many signs of life there were.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }
}

/// What the site wants.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Chunks, packs, threads.
    pub store: Settings,
    /// How long items are kept.
    pub retention: Duration,
    /// What the store enforces, as the probe saw it.
    pub object_lock: LockMode,
    /// The folders in which pins may be; none: anywhere.
    pub pins: Vec<PathBuf>,
    /// Which vault it must be, before each item; `None`: any.
    pub vault: Option<(Remembered, uuid::Uuid)>,
}

/// Turns hand-overs into items.
pub struct Acquirer {
    pub(crate) vault: Arc<dyn Vault>,
    pub(crate) known: Known,
    pub(crate) journals: Journals,
    pub(crate) policy: Policy,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) control: Arc<Control>,
    /// Packs that were stored for the item at work: these need no second look when it is sealed.
    pub(crate) stored_here: Mutex<HashSet<uuid::Uuid>>,
}

impl Acquirer {
    /// All its parts.
    #[must_use]
    pub fn new(
        vault: Arc<dyn Vault>,
        known: Known,
        journals: Journals,
        policy: Policy,
        clock: Arc<dyn Clock>,
        control: Arc<Control>,
    ) -> Self {
        Self { vault, known, journals, policy, clock, control, stored_here: Mutex::default() }
    }

    /// Brings the item into the vault, or finds out that there is nothing to bring. May be called again after any error and
    /// after any crash; layers that the journal names are not read again.
    pub fn acquire(&self, handover: &Handover, journal: &mut Journal) -> Result<Outcome, AcquireError> {
        if let Ok(mut here) = self.stored_here.lock() {
            here.clear();
        }
        journal.attempts = journal.attempts.saturating_add(1);
        journal.trouble = None;
        self.journals.save(journal)?;
        self.same_vault()?;
        if handover.disks.iter().all(|disk| disk.layers.is_empty()) {
            return Ok(Outcome::Missed { reason: "the hand-over names no disk file".to_owned() });
        }
        for _ in 0..3 {
            let disks = self.layers(handover, journal)?;
            if disks.iter().flat_map(|d| &d.layers).all(|l| l.captured().is_none()) {
                return Ok(Outcome::Missed { reason: reasons(&disks) });
            }
            if self.packs_are_there(handover, journal, &disks)? {
                self.same_vault()?;
                return self.seal(handover, journal, disks);
            }
        }
        Err(AcquireError::Losing)
    }

    /// A folder whose file system was taken away looks like an empty vault.
    fn same_vault(&self) -> Result<(), VaultError> {
        match &self.policy.vault {
            Some((remembered, id)) => remembered.check(&*self.vault, *id),
            None => Ok(()),
        }
    }

    fn layers(&self, handover: &Handover, journal: &mut Journal) -> Result<Vec<DiskRecord>, AcquireError> {
        let mut disks = Vec::new();
        for (d, disk) in handover.disks.iter().enumerate() {
            let mut layers = Vec::new();
            for (l, pinned) in disk.layers.iter().enumerate() {
                let name = format!("{d}/{l}");
                if let Some(done) = journal.layers.get(&name) {
                    layers.push(done.clone());
                    continue;
                }
                let state = self.layer(handover, (d, l), pinned, journal)?;
                let (original, format) = (pinned.original.clone(), pinned.format.clone());
                let record = LayerRecord { original, format, shared: pinned.shared, state };
                journal.layers.insert(name, record.clone());
                self.journals.save(journal)?;
                layers.push(record);
            }
            disks.push(DiskRecord { target: disk.target.clone(), layers });
        }
        Ok(disks)
    }

    fn layer(
        &self,
        handover: &Handover,
        at: (usize, usize),
        pinned: &PinnedLayer,
        journal: &mut Journal,
    ) -> Result<LayerState, AcquireError> {
        let pin = match Pin::open(&pinned.pin, &self.policy.pins) {
            Ok(pin) => pin,
            // It will not come back, nor turn into a file.
            Err(error @ (SourceError::Gone(_) | SourceError::NotRegular(_))) => {
                tracing::error!(item = %handover.item, %error, "a disk file is lost");
                return Ok(LayerState::Missing { why: error.to_string() });
            }
            Err(error) => return Err(error.into()),
        };
        // Becomes durable with the layer's record, that is before anything can be removed.
        journal.opened.insert(format!("{}/{}", at.0, at.1), pin.identity());
        let domain = domain_of(handover, pinned.shared);
        self.known.sync(&*self.vault, &domain, self.clock.now())?;
        let captured = self.capture(&handover.item, at, &pin, &domain)?;
        tracing::info!(
            item = %handover.item, file = %pinned.original.display(), size = captured.size,
            data = captured.chunks.data, stored = captured.chunks.stored, stored_bytes = captured.chunks.stored_bytes,
            "disk file acquired"
        );
        Ok(LayerState::Captured(Box::new(captured)))
    }

    /// Holds every pack that the item needs against the vault itself: the cache may be behind. What is gone or damaged is forgotten,
    /// and its layers are to be acquired again.
    fn packs_are_there(
        &self,
        handover: &Handover,
        journal: &mut Journal,
        disks: &[DiskRecord],
    ) -> Result<bool, AcquireError> {
        let until = self.clock.now() + self.policy.retention;
        let mut whole = true;
        for (d, disk) in disks.iter().enumerate() {
            for (l, layer) in disk.layers.iter().enumerate() {
                let Some(captured) = layer.captured() else { continue };
                let domain = domain_of(handover, layer.shared);
                let Some(packs) = self.packs_of(captured, &handover.item)? else {
                    tracing::warn!(
                        index = captured.index.key,
                        "the vault has lost this index; its layer is acquired again"
                    );
                    journal.layers.remove(&format!("{d}/{l}"));
                    whole = false;
                    continue;
                };
                for PackRef { id, site } in packs {
                    let domain = if site { Domain::site() } else { domain.clone() };
                    if !self.pack_is_there(&domain, id, until)? {
                        tracing::warn!(pack = %id, %domain, "the vault no longer holds this pack whole; its chunks are stored again");
                        self.known.forget_pack(&domain, id)?;
                        journal.layers.remove(&format!("{d}/{l}"));
                        whole = false;
                    }
                }
            }
        }
        if !whole {
            self.journals.save(journal)?;
        }
        Ok(whole)
    }

    fn pack_is_there(
        &self,
        domain: &Domain,
        id: uuid::Uuid,
        until: vestigo_model::Timestamp,
    ) -> Result<bool, AcquireError> {
        if self.stored_here.lock().is_ok_and(|here| here.contains(&id)) {
            return Ok(true);
        }
        let key = crate::layout::pack(domain, &id)?;
        // Its size, footer and trailer, not every chunk in it: that is what `verify` is for.
        match fetch::pack_trailer(&*self.vault, &key) {
            Ok(_) => {}
            Err(FetchError::Vault(VaultError::NotFound(_))) => return Ok(false),
            Err(FetchError::Vault(error @ (VaultError::Unavailable(_) | VaultError::Refused(_)))) => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::error!(pack = %key, %error, "this pack is damaged; items that use it are not whole any more");
                return Ok(false);
            }
        }
        // An older pack's lock would end before this item's.
        self.vault.keep_until(&key, until)?;
        Ok(true)
    }
}

/// Where a layer's chunks go.
pub(crate) fn domain_of(handover: &Handover, shared: bool) -> Domain {
    if shared { Domain::site() } else { Domain::of_vo(handover.instance.vo.as_ref()) }
}

fn reasons(disks: &[DiskRecord]) -> String {
    let why = disks.iter().flat_map(|d| &d.layers).filter_map(|layer| match &layer.state {
        LayerState::Missing { why } => Some(why.as_str()),
        LayerState::Captured(_) => None,
    });
    why.collect::<Vec<_>>().join("; ")
}
