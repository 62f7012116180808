//! The spool folder between hostd and quarantine; `model/src/handover.rs` is the contract, and the order of the steps in
//! [`Spool::clear`] is its.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
};

use vestigo_model::{Handover, HandoverResult, ItemId};

use crate::{files, source::Identity};

/// A domain XML and the payloads of a long-lived VM stay far below.
const LIMIT: u64 = 64 << 20;
const LOCK: &str = ".quarantine.lock";

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another daemon works here.
    #[error(
        "another quarantine daemon already works on the spool {0}; stop it first (systemctl stop quarantine), or give this one a spool of its own"
    )]
    Locked(PathBuf),
    /// The folder fails.
    #[error("cannot {doing} {path}: {error}; check that the spool folder exists and is writable")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |error| SpoolError::Io { doing, path, error }
}

/// One file in the spool.
#[derive(Debug)]
pub struct Waiting {
    /// The file.
    pub path: PathBuf,
    /// What it says, or why it cannot be used.
    pub handover: Result<Box<Handover>, String>,
}

/// The folder.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    /// Held as long as the daemon works; the kernel lets go of it when the daemon dies, however it dies.
    _lock: Option<File>,
}

impl Spool {
    /// For the daemon: makes the folder if there is none, and keeps every other daemon out.
    pub fn own(dir: &Path) -> Result<Self, SpoolError> {
        let done = dir.join("done");
        fs::create_dir_all(&done).map_err(failed("make", &done))?;
        let path = dir.join(LOCK);
        let lock =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {
                files::sweep(&done);
                Ok(Self { dir: dir.to_owned(), _lock: Some(lock) })
            }
            Err(TryLockError::WouldBlock) => Err(SpoolError::Locked(dir.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    /// For a reader.
    #[must_use]
    pub fn view(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), _lock: None }
    }

    /// Every hand-over, oldest first (item ids sort by time).
    pub fn waiting(&self) -> Result<Vec<Waiting>, SpoolError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let path = entry.map_err(failed("list", &self.dir))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            // Hidden names are hostd's unfinished ones.
            if let Some(stem) = name.strip_suffix(".json").filter(|stem| !stem.starts_with('.')) {
                let handover = read(&path, stem).map(Box::new);
                found.push(Waiting { path, handover });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Tells hostd how it ended.
    pub fn answer(&self, result: &HandoverResult) -> Result<(), SpoolError> {
        let path = self.dir.join("done").join(format!("{}.json", result.item));
        let bytes = serde_json::to_vec(result).map_err(io::Error::other);
        bytes.and_then(|bytes| files::replace(&path, &bytes)).map_err(failed("write", &path))
    }

    /// Removes the pins, then the hand-over. Of the pins only those that still are the very files that were `opened` and read
    /// (by `disk/layer`): whatever was refused, or was put there since, is nobody's to remove.
    pub fn clear(&self, handover: &Handover, opened: &BTreeMap<String, Identity>) -> Result<(), SpoolError> {
        for (d, disk) in handover.disks.iter().enumerate() {
            for (l, layer) in disk.layers.iter().enumerate() {
                let name = format!("{d}/{l}");
                remove_pin(&layer.pin, opened.get(&name)).map_err(failed("remove the pin", &layer.pin))?;
            }
        }
        let path = self.dir.join(format!("{}.json", handover.item));
        files::remove(&path).and_then(|()| files::sync_dir(&self.dir)).map_err(failed("remove", &path))
    }

    /// Whether the item's hand-over is there.
    #[must_use]
    pub fn holds(&self, item: &ItemId) -> bool {
        self.dir.join(format!("{item}.json")).exists()
    }
}

fn remove_pin(pin: &Path, opened: Option<&Identity>) -> io::Result<()> {
    let found = match fs::symlink_metadata(pin) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        found => Identity::of(&found?),
    };
    if found.is_none() || found.as_ref() != opened {
        tracing::warn!(pin = %pin.display(), "this is not a file that was read as a pin; it is left where it is");
        return Ok(());
    }
    files::remove(pin)?;
    // The pins must be gone for good before the hand-over is.
    pin.parent().map_or(Ok(()), files::sync_dir)
}

fn read(path: &Path, stem: &str) -> Result<Handover, String> {
    let bytes = files::read_limited(path, LIMIT).map_err(|e| format!("it cannot be read: {e}"))?;
    let handover: Handover = serde_json::from_slice(&bytes).map_err(|e| format!("it is no hand-over: {e}"))?;
    if handover.version != 1 {
        return Err(format!("it has version {}, this program knows 1; upgrade quarantine", handover.version));
    }
    if handover.item.to_string() != stem {
        return Err(format!("it speaks of item {}, its name of another", handover.item));
    }
    let plain = |path: &Path| path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
    let pins = handover.disks.iter().flat_map(|disk| &disk.layers).map(|layer| &layer.pin);
    match pins.into_iter().find(|pin| !plain(pin)) {
        Some(pin) => Err(format!("its pin {} is not a whole path", pin.display())),
        None => Ok(handover),
    }
}
