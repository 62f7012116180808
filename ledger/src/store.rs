//! Where segments lie: a folder, or whatever else can list and read. Object stores are the business of whoever asks
//! (`investigate` brings one): this crate has no network.
//!
//! Paths are relative, with `/` between names. Nothing in a store is trusted: names are checked, lengths are bounded, and whoever
//! reads a segment compares it with its manifest.

use std::{
    fmt,
    fs::{self, File},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::durable::IoError;

/// Longest file that is read whole: manifests are at most some hundred KiB.
pub const MAX_WHOLE: u64 = 16 << 20;
/// Most bytes that one [`Store::read_range`] gives.
pub const MAX_RANGE: u64 = 256 << 20;
/// Most names that one folder (or one [`Store::walk`]) may have.
pub const MAX_NAMES: usize = 2_000_000;

/// What tells one state of a file or folder from the next. Never compared by order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Any text that changes when the content does: an ETag, or inode and time of change.
    pub text: String,
    /// Seconds since 1970 of the last change, where the store tells it: a stamp younger than its clock's grain is no proof that
    /// nothing changed since.
    pub changed: Option<i64>,
}

/// One thing in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name; of [`Store::walk`] its path below the folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Bytes, of a file.
    pub bytes: u64,
    /// Changes when a file's content does, or a folder's names do. `None`: the store does not tell; look again each time.
    pub stamp: Option<Stamp>,
}

/// What a store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder.
    #[error(transparent)]
    Io(#[from] IoError),
    /// There is no such file: it may have been removed since it was listed.
    #[error(
        "{path} is not in {store}; if a compaction or a retention removed it a moment ago, ask again, else restore it from a copy"
    )]
    Missing {
        /// The store's name.
        store: String,
        /// The path in it.
        path: String,
    },
    /// The store does not answer, or refuses.
    #[error("Cannot {action} {path} in {store}; check that it is reachable, then ask again")]
    Unreachable {
        /// The verb.
        action: &'static str,
        /// The store's name.
        store: String,
        /// The path in it.
        path: String,
        /// Its word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More than any ledger has.
    #[error("{path} in {store} is larger than a file of a ledger can be; it is none, or it was tampered with")]
    TooLarge {
        /// The store's name.
        store: String,
        /// The path in it.
        path: String,
    },
    /// A file became shorter while it was read, or is shorter than its manifest says.
    #[error("{path} in {store} ends before it should; restore it from a copy")]
    Short {
        /// The store's name.
        store: String,
        /// The path in it.
        path: String,
    },
}

impl StoreError {
    /// Whether the path is simply not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Io(error) => error.is_not_found(),
            Self::Missing { .. } => true,
            Self::Unreachable { .. } | Self::TooLarge { .. } | Self::Short { .. } => false,
        }
    }
}

/// A place with the layout of a ledger. Calls block and are safe from several threads.
pub trait Store: Send + Sync + fmt::Debug {
    /// What a person calls it: the path or URL. Also what a cache knows it by.
    fn name(&self) -> &str;

    /// The direct children of a folder (`""`: the top), sorted by name. A folder that is not there has none.
    ///
    /// # Errors
    /// The store's word.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError>;

    /// Every file below a folder in few requests, where the store can do that better than folder by folder. `None`: it cannot.
    ///
    /// # Errors
    /// The store's word.
    fn walk(&self, folder: &str) -> Result<Option<Vec<Listed>>, StoreError> {
        let _ = folder;
        Ok(None)
    }

    /// A whole file of at most [`MAX_WHOLE`] bytes.
    ///
    /// # Errors
    /// The store's word, or [`StoreError::TooLarge`].
    fn read(&self, path: &str) -> Result<Bytes, StoreError>;

    /// A part of a file, exactly.
    ///
    /// # Errors
    /// The store's word, or [`StoreError::Short`].
    fn read_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Length of a file.
    ///
    /// # Errors
    /// The store's word.
    fn size(&self, path: &str) -> Result<u64, StoreError>;

    /// The path in the file system, of a store that is a folder: only there a hostd may be writing a log.
    fn local(&self, path: &str) -> Option<PathBuf> {
        let _ = path;
        None
    }

    /// How many requests may be under way at once: more than one where a request mostly waits.
    fn concurrency(&self) -> usize {
        1
    }
}

/// A ledger's folder.
#[derive(Debug, Clone)]
pub struct FolderStore {
    root: PathBuf,
    name: String,
}

impl FolderStore {
    /// The folder; it need not be there yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        // One name for one folder, wherever it was named from.
        let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        Self { name: root.to_string_lossy().into_owned(), root }
    }

    /// The same, to be asked.
    #[must_use]
    pub fn shared(root: &Path) -> Arc<dyn Store> {
        Arc::new(Self::new(root))
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn too_large(&self, path: &str) -> StoreError {
        StoreError::TooLarge { store: self.name.clone(), path: path.to_owned() }
    }
}

fn stamp(metadata: &fs::Metadata) -> Stamp {
    let text = format!("{}:{}.{:09}:{}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len());
    Stamp { text, changed: Some(metadata.mtime().max(metadata.ctime())) }
}

impl Store for FolderStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let path = self.path(folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(IoError::at("list", &path)(error).into()),
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(IoError::at("list", &path))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Gone since the folder was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(IoError::at("look at", &entry.path())(error).into()),
            };
            if listed.len() >= MAX_NAMES {
                return Err(self.too_large(folder));
            }
            let (is_folder, bytes) = (metadata.is_dir(), metadata.len());
            listed.push(Listed { name, is_folder, bytes, stamp: Some(stamp(&metadata)) });
        }
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn read(&self, path: &str) -> Result<Bytes, StoreError> {
        if self.size(path)? > MAX_WHOLE {
            return Err(self.too_large(path));
        }
        let path = self.path(path);
        Ok(fs::read(&path).map(Bytes::from).map_err(IoError::at("read", &path))?)
    }

    fn read_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let length = range.end.saturating_sub(range.start);
        let length =
            usize::try_from(length).ok().filter(|_| length <= MAX_RANGE).ok_or_else(|| self.too_large(path))?;
        let full = self.path(path);
        let file = File::open(&full).map_err(IoError::at("open", &full))?;
        let mut bytes = vec![0; length];
        match file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes.into()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Short { store: self.name.clone(), path: path.to_owned() })
            }
            Err(error) => Err(IoError::at("read", &full)(error).into()),
        }
    }

    fn size(&self, path: &str) -> Result<u64, StoreError> {
        let path = self.path(path);
        Ok(fs::metadata(&path).map_err(IoError::at("find", &path))?.len())
    }

    fn local(&self, path: &str) -> Option<PathBuf> {
        Some(self.path(path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_lists_and_reads() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("date=2026-11-22/host=hv1")).unwrap();
        fs::write(root.path().join("date=2026-11-22/x"), b"0123456789").unwrap();
        let store = FolderStore::new(root.path());
        let names = |folder| store.list(folder).unwrap().into_iter().map(|one| (one.name, one.is_folder, one.bytes));
        assert_eq!(names("").map(|(name, ..)| name).collect::<Vec<_>>(), ["date=2026-11-22"]);
        assert_eq!(names("date=2026-11-22").next_back(), Some(("x".to_owned(), false, 10)));
        assert_eq!(store.list("none").unwrap(), []);
        assert_eq!(store.read_range("date=2026-11-22/x", 3..6).unwrap(), "345");
        assert_eq!(store.size("date=2026-11-22/x").unwrap(), 10);
        assert!(matches!(store.read_range("date=2026-11-22/x", 8..12), Err(StoreError::Short { .. })));
        assert!(store.read("date=2026-11-22/y").unwrap_err().is_missing());
    }

    #[test]
    fn a_stamp_changes_with_what_it_stands_for() {
        let root = tempfile::tempdir().unwrap();
        let store = FolderStore::new(root.path());
        let stamp =
            |name: &str| store.list("").unwrap().into_iter().find(|one| one.name == name).unwrap().stamp.unwrap();
        fs::create_dir(root.path().join("f")).unwrap();
        fs::write(root.path().join("x"), b"1").unwrap();
        let (folder, file) = (stamp("f"), stamp("x"));
        assert_eq!((stamp("f"), stamp("x")), (folder.clone(), file.clone()));
        fs::write(root.path().join("f/new"), b"").unwrap();
        fs::write(root.path().join("x"), b"12").unwrap();
        assert!(stamp("f").text != folder.text && stamp("x").text != file.text);
    }
}
