//! How far each item has come, in the daemon's own state folder: what is done is not done again after a crash.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, HandoverResult, ItemId, Timestamp};

use crate::{files, manifest::LayerRecord, source::Identity};

const LIMIT: u64 = 64 << 20;

/// The journal cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the journal {path}: {error}; check room and mode of the state folder")]
pub struct JournalError {
    path: PathBuf,
    error: io::Error,
}

/// An entry of the custody log that was about to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// SHA-256 of the manifest it speaks of.
    pub manifest_sha256: Digest,
    /// Numbers up to this one were taken before.
    pub after: u64,
}

/// One item's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The item.
    pub item: ItemId,
    /// When it was first taken up.
    pub taken_up: Timestamp,
    /// How often it was begun.
    #[serde(default)]
    pub attempts: u32,
    /// Why it is not done yet.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Layers that are done, by `disk/layer`.
    #[serde(default)]
    pub layers: BTreeMap<String, LayerRecord>,
    /// The files that were opened as pins, by `disk/layer`: only these may be removed.
    #[serde(default)]
    pub opened: BTreeMap<String, Identity>,
    /// The custody entry that may have been written.
    #[serde(default)]
    pub announced: Option<Announced>,
    /// What hostd is told; from here on only the clearing up is left.
    #[serde(default)]
    pub result: Option<HandoverResult>,
    /// Whether it has been told.
    #[serde(default)]
    pub answered: bool,
}

/// Where the journals are.
#[derive(Debug, Clone)]
pub struct Journals {
    dir: PathBuf,
}

impl Journals {
    /// In this state folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join("items") }
    }

    fn path(&self, item: &ItemId) -> PathBuf {
        self.dir.join(format!("{item}.json"))
    }

    /// The item's journal, if it was begun. A damaged one counts as none: the work is done again, nothing is lost.
    #[must_use]
    pub fn find(&self, item: &ItemId) -> Option<Journal> {
        let bytes = files::read_limited(&self.path(item), LIMIT).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|journal: &Journal| journal.item == *item)
    }

    /// The item's journal, begun now if there is none.
    #[must_use]
    pub fn begin(&self, item: ItemId, now: Timestamp) -> Journal {
        self.find(&item).unwrap_or(Journal {
            item,
            taken_up: now,
            attempts: 0,
            trouble: None,
            layers: BTreeMap::new(),
            opened: BTreeMap::new(),
            announced: None,
            result: None,
            answered: false,
        })
    }

    /// Makes the journal durable.
    pub fn save(&self, journal: &Journal) -> Result<(), JournalError> {
        let path = self.path(&journal.item);
        let bytes = serde_json::to_vec(journal).map_err(io::Error::other);
        let saved = fs::create_dir_all(&self.dir).and(bytes).and_then(|bytes| files::replace(&path, &bytes));
        saved.map_err(|error| JournalError { path, error })
    }

    /// Forgets an item that is cleared up.
    pub fn remove(&self, item: &ItemId) -> Result<(), JournalError> {
        let path = self.path(item);
        files::remove(&path).map_err(|error| JournalError { path, error })
    }

    /// Removes what a crash left half-written. For the one daemon that owns the folder, when it starts.
    pub fn sweep(&self) {
        files::sweep(&self.dir);
    }

    /// Every journal: items whose clearing up was cut short may have no spool file any more.
    #[must_use]
    pub fn all(&self) -> Vec<Journal> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        names.filter_map(|n| self.find(&n.strip_suffix(".json")?.parse().ok()?)).collect()
    }
}
