//! Pins on disk: hard links in pin folders, one folder per file system, and beside them `pin.json`, which says what they
//! are, so that a restarted hostd needs nothing else.
//!
//! `<folder>/<domain uuid>/<target>.<n>-<inode>` is the link to layer `n` of the disk `target`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    unistd::linkat,
};
use serde::{Deserialize, Serialize};
use vestigo_model::{DomainUuid, Instance, ItemId, Timestamp};

use super::{
    durable::{self, Survive, TEMPORARY},
    policy::FileId,
};

const RECORD: &str = "pin.json";
/// Names tried for one pin, should earlier ones belong to items that are still being acquired.
const MAX_TWINS: u32 = 16;

/// Why no hold on a file is possible.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// No such name (any more).
    #[error("{0} is already deleted; it went before hostd could take hold of it")]
    Gone(PathBuf),
    /// A folder, device …
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
    /// No pin folder there.
    #[error("no pin folder is on the file system of {0}; add one to the list of pin folders")]
    OtherFileSystem(PathBuf),
    /// The system refused.
    #[error("{path} cannot be linked into the pin folder: {source}")]
    System {
        /// Which file.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
}

/// One held file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PinLayer {
    /// Where the domain XML says it is.
    pub(super) original: PathBuf,
    /// Our link.
    pub(super) pin: PathBuf,
    /// Declared format.
    pub(super) format: String,
    /// Device number when it was pinned; may change with a reboot.
    pub(super) device: u64,
    /// Inode number.
    pub(super) inode: u64,
}

impl PinLayer {
    pub(super) const fn file(&self) -> FileId {
        FileId { device: self.device, inode: self.inode }
    }
}

/// The decision to hand a disk over, noted before it is carried out, so that a crash cannot make two items of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) item: ItemId,
    pub(super) deleted: Timestamp,
    pub(super) reason: String,
}

/// One held disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PinDisk {
    /// The guest's name for it.
    pub(super) target: String,
    /// Image first. Only what is really held.
    pub(super) layers: Vec<PinLayer>,
    /// The interval in which it was last used.
    pub(super) instance: Instance,
    /// The domain XML of that interval.
    pub(super) domain_xml: String,
    /// Set from the decision on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<Pending>,
}

/// `pin.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    disks: Vec<PinDisk>,
}

/// What a pin folder holds for one domain.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) domain: DomainUuid,
    pub(super) folder: PathBuf,
    /// `Err` says why `pin.json` cannot be read.
    pub(super) disks: Result<Vec<PinDisk>, String>,
    /// Every other file there.
    pub(super) files: Vec<PathBuf>,
}

/// An open file whose identity is settled, whatever happens to its names.
#[derive(Debug)]
pub(super) struct Sighting {
    handle: File,
    path: PathBuf,
    pub(super) file: FileId,
}

/// Names of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub(super) file: FileId,
    pub(super) links: u64,
    /// Last change of the inode: when a deletion happened, if nothing happened to it since.
    pub(super) changed: Timestamp,
}

/// The pin folders.
#[derive(Debug)]
pub(super) struct Store {
    folders: Vec<PathBuf>,
}

impl Store {
    /// Makes the folders where they are not there yet.
    pub(super) fn open(folders: &[PathBuf]) -> io::Result<Self> {
        for folder in folders {
            private_folder(folder)?;
        }
        Ok(Self { folders: folders.to_vec() })
    }

    /// Opens the file without reading it, a symlink resolved once, so that what is checked is what is linked.
    pub(super) fn sight(path: &Path) -> Result<Sighting, HoldError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => HoldError::Gone(path.to_owned()),
            _ => HoldError::System { path: path.to_owned(), source },
        };
        let open = |path: &Path| -> io::Result<(File, fs::Metadata)> {
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            let handle = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            let metadata = handle.metadata()?;
            Ok((handle, metadata))
        };
        let (mut handle, mut metadata) = open(path).map_err(failed)?;
        if metadata.file_type().is_symlink() {
            (handle, metadata) = fs::canonicalize(path).and_then(|target| open(&target)).map_err(failed)?;
        }
        if !metadata.file_type().is_file() {
            return Err(HoldError::NotAFile(path.to_owned()));
        }
        let file = FileId { device: metadata.dev(), inode: metadata.ino() };
        Ok(Sighting { handle, path: path.to_owned(), file })
    }

    /// Where the pin of a sighted file belongs.
    pub(super) fn plan(
        &self,
        domain: DomainUuid,
        target: &str,
        layer: usize,
        sighting: &Sighting,
        taken: impl Fn(&Path) -> bool,
    ) -> Result<PathBuf, HoldError> {
        let here = |folder: &&PathBuf| fs::metadata(folder).is_ok_and(|m| m.dev() == sighting.file.device);
        let folder = self.folders.iter().find(here).ok_or_else(|| HoldError::OtherFileSystem(sighting.path.clone()))?;
        let name = format!("{}.{layer}-{}", safe(target), sighting.file.inode);
        let folder = folder.join(domain.to_string());
        let twins = (2..MAX_TWINS).map(|n| folder.join(format!("{name}-{n}")));
        let first = folder.join(&name);
        std::iter::once(first).chain(twins).find(|path| !taken(path)).ok_or_else(|| HoldError::System {
            path: sighting.path.clone(),
            source: io::Error::other("too many pins of it are still being acquired"),
        })
    }

    /// Makes the link.
    pub(super) fn link(sighting: &Sighting, pin: &Path) -> Result<(), HoldError> {
        let failed = |source| HoldError::System { path: sighting.path.clone(), source };
        private_folder(pin.parent().unwrap_or(pin)).map_err(failed)?;
        let by_handle = format!("/proc/self/fd/{}", sighting.handle.as_raw_fd());
        match linkat(AT_FDCWD, by_handle.as_str(), AT_FDCWD, pin, AtFlags::AT_SYMLINK_FOLLOW) {
            Ok(()) => Ok(()),
            // Left by a hostd that was killed; the inode is in the name and held by it, so it is the same file.
            Err(nix::Error::EEXIST) if names(pin).is_ok_and(|n| n.file == sighting.file) => Ok(()),
            Err(nix::Error::ENOENT) => Err(HoldError::Gone(sighting.path.clone())),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Writes what a domain's folder holds; nothing left removes the note, and the folder when it is empty.
    pub(super) fn save(folder: &Path, disks: Vec<PinDisk>, survive: Survive) -> io::Result<()> {
        let record = folder.join(RECORD);
        if disks.is_empty() {
            durable::remove(&record)?;
            // Pins of items that are being acquired may still be there: then this fails, and a later call does it.
            let _ = fs::remove_dir(folder);
            return Ok(());
        }
        private_folder(folder)?;
        let json = serde_json::to_vec_pretty(&Record { version: 1, disks })?;
        durable::write(&record, &json, survive)
    }

    /// Removes domain folders that hold nothing.
    pub(super) fn tidy(&self) {
        for entry in self.folders.iter().filter_map(|f| fs::read_dir(f).ok()).flatten().flatten() {
            if domain_of(&entry.path()).is_some() {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// Everything that the folders hold.
    pub(super) fn load(&self) -> io::Result<Vec<Loaded>> {
        let mut all = Vec::new();
        for folder in &self.folders {
            for entry in fs::read_dir(folder)? {
                let folder = entry?.path();
                if let Some(domain) = domain_of(&folder) {
                    all.push(load_domain(domain, folder)?);
                }
            }
        }
        Ok(all)
    }
}

fn load_domain(domain: DomainUuid, folder: PathBuf) -> io::Result<Loaded> {
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name != RECORD && !name.starts_with(TEMPORARY) {
            files.push(entry.path());
        }
    }
    let disks = match fs::read(folder.join(RECORD)) {
        Ok(bytes) => serde_json::from_slice::<Record>(&bytes).map(|record| record.disks).map_err(|e| e.to_string()),
        // Normal where only backing files or pins of handed-over disks lie.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.to_string()),
    };
    Ok(Loaded { domain, folder, disks, files })
}

fn domain_of(folder: &Path) -> Option<DomainUuid> {
    folder.file_name()?.to_str()?.parse().ok()
}

fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A disk's target as part of a file name.
fn safe(target: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    target.chars().map(keep).take(64).collect()
}

/// The names of the file behind a pin. Never follows a symlink: a pin is none.
pub(super) fn names(pin: &Path) -> io::Result<Names> {
    let metadata = fs::symlink_metadata(pin)?;
    let seconds = metadata.ctime().saturating_mul(1_000_000_000);
    Ok(Names {
        file: FileId { device: metadata.dev(), inode: metadata.ino() },
        links: metadata.nlink(),
        changed: Timestamp::from_nanos(seconds.saturating_add(metadata.ctime_nsec())),
    })
}
