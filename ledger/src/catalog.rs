//! Which segments there are, and what each can hold at all: read from manifests, kept in a cache.
//!
//! ```text
//!  question ──dates──► folders date=…/host=… ──unchanged?──► cache (SQLite, feature `catalog`)
//!                              │ changed                         │
//!                              └──────► manifests ───────────────┴──► Summary ──addresses, times──► few files
//! ```
//! The cache is never an authority: a segment's own manifest is read again before its files are, and has to be the one that the
//! cache knows. Removing the cache costs time and nothing else.

pub(crate) mod days;
#[cfg(feature = "catalog")]
mod sqlite;
mod summary;
mod sync;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use vestigo_model::HostId;

pub(crate) use days::Days;
pub(crate) use summary::{Summary, bytes as address_bytes};
pub(crate) use sync::folders;

use crate::{error::LedgerError, store::Store};

/// A file of a folder, as listed: a change of any of it means that its content may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// `None`: cannot be trusted to tell a change; look again.
    pub(crate) stamp: Option<String>,
}

/// A segment and the listing that it was read by.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) seen: Seen,
    pub(crate) summary: Arc<Summary>,
}

/// One `date=…/host=…` folder.
#[derive(Debug, Clone, Default)]
pub(crate) struct Folder {
    /// As long as it is the same, so are the names in the folder. `None`: list again.
    pub(crate) stamp: Option<String>,
    pub(crate) entries: Vec<Entry>,
}

/// Folders by their path.
pub(crate) type Folders = BTreeMap<String, Folder>;

/// Bloom filters of a file's columns, one per row group.
pub(crate) type Blooms = BTreeMap<String, Vec<Vec<u8>>>;

/// What outlives a question.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    #[cfg(feature = "catalog")]
    database: Option<sqlite::Database>,
}

impl Cache {
    /// The cache in this file, if it can be used; it is made when it is not there, and replaced when it is damaged.
    pub(crate) fn open(path: Option<PathBuf>) -> Self {
        #[cfg(feature = "catalog")]
        return Self { database: path.and_then(|path| sqlite::Database::open(&path)) };
        #[cfg(not(feature = "catalog"))]
        {
            drop(path);
            Self {}
        }
    }

    /// What is known of a store's folders of these days.
    pub(crate) fn load(&self, number: usize, store: &dyn Store, days: &Days) -> Folders {
        #[cfg(feature = "catalog")]
        if let Some(database) = &self.database {
            return database.load(number, store.name(), days);
        }
        let _ = (number, store, days);
        Folders::new()
    }

    /// Keeps what was found to be new; `None` for a folder that is gone.
    pub(crate) fn save(&self, store: &dyn Store, changed: &BTreeMap<String, Option<Folder>>) {
        #[cfg(feature = "catalog")]
        if let Some(database) = &self.database {
            database.save(store.name(), changed);
        }
        let _ = (store, changed);
    }

    /// Drops what is known of a folder: it turned out to be wrong.
    pub(crate) fn forget(&self, store: &dyn Store, folder: &str) {
        self.save(store, &BTreeMap::from([(folder.to_owned(), None)]));
    }

    /// Which of these segments' files may hold one of the values in one of the columns: `None` where no filters are kept.
    pub(crate) fn may_hold(&self, wanted: &Wanted<'_>, segments: &[Arc<Summary>]) -> Vec<Option<bool>> {
        #[cfg(feature = "catalog")]
        if let Some(database) = &self.database {
            return database.may_hold(wanted, segments);
        }
        let _ = wanted;
        vec![None; segments.len()]
    }

    /// Keeps the filters of a segment's file.
    pub(crate) fn keep(&self, kept: &[(Arc<Summary>, crate::manifest::Kind, Blooms)]) {
        #[cfg(feature = "catalog")]
        if let Some(database) = &self.database {
            database.keep(kept);
        }
        let _ = kept;
    }

    /// Whether filters are worth reading for it.
    pub(crate) const fn is_there(&self) -> bool {
        #[cfg(feature = "catalog")]
        return self.database.is_some();
        #[cfg(not(feature = "catalog"))]
        false
    }
}

/// Values looked for in columns of one kind of file: one of them in any of the columns is enough.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) kind: crate::manifest::Kind,
    pub(crate) columns: &'a [&'a str],
    pub(crate) values: &'a [String],
}

/// Segments, and what they say of logs.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// By host, sequence and digest, each once, and without those that others replace.
    pub(crate) segments: Vec<Arc<Summary>>,
    /// By store and host: the last generation of its log that a segment holds.
    pub(crate) covered: HashMap<(usize, HostId), u64>,
}

/// The segments of these days in these stores, the cache brought up to date on the way.
pub(crate) fn segments(stores: &[Arc<dyn Store>], cache: &Cache, days: &Days) -> Result<Found, LedgerError> {
    let mut found = Found::default();
    for (number, store) in stores.iter().enumerate() {
        let folders = sync::up_to_date(number, store.as_ref(), cache, days)?;
        found.segments.extend(folders.into_values().flat_map(|folder| folder.entries).map(|entry| entry.summary));
    }
    for one in &found.segments {
        let last = found.covered.entry((one.store, one.host.clone())).or_default();
        *last = one.wal_last.max(*last);
    }
    found.segments = standing(found.segments);
    Ok(found)
}

/// One host's segments of one day.
pub(crate) fn of_host(stores: &[Arc<dyn Store>], date: &str, host: &HostId) -> Result<Found, LedgerError> {
    let mut segments = Vec::new();
    for (number, store) in stores.iter().enumerate() {
        segments.extend(sync::of_host(number, store.as_ref(), date, host)?);
    }
    Ok(Found { segments: standing(segments), covered: HashMap::new() })
}

/// Each segment once, by its manifest's digest (a folder and its copy hold the same), and none that another stands for.
fn standing(mut all: Vec<Arc<Summary>>) -> Vec<Arc<Summary>> {
    let replaced: HashSet<_> = all.iter().flat_map(|one| one.replaces.iter().copied()).collect();
    all.retain(|one| !replaced.contains(&one.digest));
    // Of copies, the one that still has its files.
    all.sort_by(|a, b| {
        let key = |one: &Arc<Summary>| (one.sequence, one.digest, one.expired, one.store);
        a.host.cmp(&b.host).then_with(|| key(a).cmp(&key(b)))
    });
    all.dedup_by(|a, b| a.digest == b.digest);
    all
}
