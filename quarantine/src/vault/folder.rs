//! A vault in a folder: the embedded default.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use vestigo_model::Timestamp;

use super::{Key, Listed, Open, Put, Vault, VaultError, Visit, probe};
use crate::{
    codec::{as_u64, as_usize},
    files,
};

/// Unfinished writes stand here: in the vault, because only inside one file system can a file be given its name at once.
const UNFINISHED: &str = ".unfinished";
/// No write takes so long; what is older was left by a crash.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A vault in a folder.
#[derive(Debug)]
pub struct FolderVault {
    root: PathBuf,
}

impl FolderVault {
    /// Opens (or makes) the folder.
    pub fn open(root: &Path, how: Open) -> Result<Self, VaultError> {
        let vault = Self { root: root.to_owned() };
        match how {
            Open::Existing if !root.is_dir() => {
                return Err(VaultError::Refused(format!(
                    "there is no vault folder {}; check the path, or whether its file system is mounted",
                    root.display()
                )));
            }
            Open::Existing => {}
            Open::Create => {
                fs::create_dir_all(root.join(UNFINISHED)).map_err(|e| vault.failed("make the folder", root, &e))?;
                vault.sweep();
            }
        }
        Ok(vault)
    }

    fn sweep(&self) {
        let stale = |meta: &fs::Metadata| {
            meta.modified().is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > STALE))
        };
        for entry in fs::read_dir(self.root.join(UNFINISHED)).into_iter().flatten().flatten() {
            if entry.metadata().is_ok_and(|meta| stale(&meta)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn failed(&self, doing: &str, path: &Path, error: &io::Error) -> VaultError {
        let remedy = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room there, the work is then taken up again",
            ErrorKind::PermissionDenied => "; check the owner and mode of the folder",
            ErrorKind::ReadOnlyFilesystem => "; mount it read-write",
            _ => "; check the disk and its file system",
        };
        let text = format!("vault {}: cannot {doing} {}: {error}{remedy}", self.root.display(), path.display());
        match error.kind() {
            ErrorKind::PermissionDenied => VaultError::Refused(text),
            _ => VaultError::Unavailable(text),
        }
    }

    /// Makes the folders above `path`, each durable in the one above it.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let Some(dir) = path.parent() else { return Ok(()) };
        if dir.is_dir() {
            return Ok(());
        }
        self.make_parents(dir)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => dir.parent().map_or(Ok(()), files::sync_dir),
        }
    }

    fn store(&self, path: &Path, bytes: &[u8]) -> io::Result<Put> {
        if path.exists() {
            return Ok(Put::Exists);
        }
        self.make_parents(path)?;
        let folder = self.root.join(UNFINISHED);
        fs::create_dir_all(&folder)?;
        let tmp = folder.join(uuid::Uuid::new_v4().simple().to_string());
        let stored = files::write_synced(&tmp, bytes).and_then(|()| files::publish(&tmp, path));
        if stored.is_err() {
            let _ = fs::remove_file(&tmp);
        }
        match stored {
            Ok(()) => Ok(Put::Created),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Put::Exists),
            Err(error) => Err(error),
        }
    }

    fn read(&self, key: &Key, take: impl FnOnce(&File, u64) -> io::Result<Bytes>) -> Result<Bytes, VaultError> {
        let path = self.path(key);
        let read = File::open(&path).and_then(|file| {
            let size = file.metadata()?.len();
            take(&file, size)
        });
        read.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => VaultError::NotFound(key.to_string()),
            _ => self.failed("read", &path, &error),
        })
    }

    fn walk(&self, dir: &str, prefix: &str, after: Option<&str>, visit: Visit<'_>) -> Result<(), VaultError> {
        let path = self.root.join(dir);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed("list", &path, &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| self.failed("list", &path, &e))?;
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            let Ok(name) = entry.file_name().into_string() else { continue };
            let full = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            // The slash makes folders sort where the keys inside them do.
            names.push((if is_dir { format!("{full}/") } else { full }, is_dir));
        }
        names.sort();
        for (name, is_dir) in names {
            if is_dir {
                let below = name.starts_with(prefix) || prefix.starts_with(&name);
                let passed = after.is_some_and(|a| a > name.as_str() && !a.starts_with(&name));
                if below && !passed && !name.starts_with('.') {
                    self.walk(name.trim_end_matches('/'), prefix, after, visit)?;
                }
            } else if name.starts_with(prefix) && after.is_none_or(|a| name.as_str() > a) {
                let Ok(meta) = fs::metadata(self.root.join(&name)) else { continue };
                if let Ok(key) = Key::new(name) {
                    visit(Listed { key, size: meta.len() })?;
                }
            }
        }
        Ok(())
    }
}

impl Vault for FolderVault {
    fn url(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn put_new(&self, key: &Key, bytes: Bytes) -> Result<Put, VaultError> {
        let path = self.path(key);
        self.store(&path, &bytes).map_err(|e| self.failed("write", &path, &e))
    }

    fn get(&self, key: &Key) -> Result<Bytes, VaultError> {
        self.read(key, |file, size| {
            let mut bytes = vec![0; as_usize(size)];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes.into())
        })
    }

    fn get_range(&self, key: &Key, offset: u64, len: u64) -> Result<Bytes, VaultError> {
        let wanted = offset.saturating_add(len);
        let mut short = false;
        let bytes = self.read(key, |file, size| {
            if wanted > size {
                short = true;
                return Ok(Bytes::new());
            }
            let mut bytes = vec![0; as_usize(len)];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes.into())
        })?;
        if short { Err(VaultError::TooShort { key: key.to_string(), wanted }) } else { Ok(bytes) }
    }

    fn size(&self, key: &Key) -> Result<Option<u64>, VaultError> {
        let path = self.path(key);
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.is_file().then_some(meta.len())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(self.failed("look at", &path, &error)),
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>, visit: Visit<'_>) -> Result<(), VaultError> {
        // Begin as deep as the prefix goes: a day of items must not cost a walk over every pack.
        let start = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
        self.walk(start, prefix, after, visit)
    }

    fn keep_until(&self, _key: &Key, _until: Timestamp) -> Result<(), VaultError> {
        Ok(())
    }

    fn probe(&self) -> Result<probe::Capabilities, VaultError> {
        let key = probe::key()?;
        let first = self.put_new(&key, Bytes::from_static(b"first"))?;
        let second = self.put_new(&key, Bytes::from_static(b"second"))?;
        let kept = self.get(&key)? == Bytes::from_static(b"first");
        let _ = fs::remove_file(self.path(&key));
        Ok(probe::Capabilities {
            store: "folder".to_owned(),
            create_only: (first, second) == (Put::Created, Put::Exists) && kept,
            // A folder checks nothing on arrival; every read is checked against the chunk's own digest anyway.
            checksum: probe::Finding::NotOffered,
            object_lock: probe::Finding::NotOffered,
            detail: format!("{} bytes round-tripped; whoever is root here can delete", as_u64(5)),
        })
    }
}
