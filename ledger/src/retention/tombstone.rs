//! The proof that a segment's data were removed on purpose, signed: `<segment>.tombstone.json` when they were too old,
//! `<segment>.moved-….tombstone.json` when the disk was full and the object store has them.
//!
//! ```text
//!   1. signature   2. tombstone: from here on the removal is decided   3. the files go
//! ```
//! A crash before 2 leaves a signature that nothing uses; between 2 and 3 the files still lie there, and the next run removes them.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, HostId, Timestamp};

use crate::{
    durable::{self, IoError},
    manifest::{FileEntry, Kind, Sealed},
    segment::SegmentError,
    sign::{self, SIGNATURE_SUFFIX, SignError, Signer, TOMBSTONE_NAMESPACE},
};

/// Value of [`Tombstone::format`].
pub const FORMAT: &str = "vestigo-tombstone";
/// Version of the document.
pub const VERSION: u32 = 1;
/// Principal of a site's own key in the file of allowed signers: it may sign tombstones of every host's segments, so that a
/// site's archive can be kept within its limits without the hosts' keys.
pub const SITE_PRINCIPAL: &str = "vestigo-retention";
pub(crate) const SUFFIX: &str = ".tombstone.json";
/// Largest tombstone that is read.
const MAX_FILE: u64 = 1 << 20;

/// Why files were removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum Why {
    /// The longest time for which records are kept was over.
    #[serde(rename_all = "kebab-case")]
    Expired {
        /// Days for which records of this age are kept.
        kept_days: u32,
        /// The last instant of which they spoke.
        until: Timestamp,
    },
    /// The disk was nearly full, and the vault has them.
    #[serde(rename_all = "kebab-case")]
    Moved {
        /// The store that has them.
        vault: String,
        /// Since when.
        shipped: Timestamp,
    },
}

/// A file that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Its name.
    pub name: String,
    /// What it held.
    pub kind: Kind,
    /// How many records.
    pub rows: u64,
    /// What it hashed to.
    pub sha256: Digest,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The hypervisor.
    pub host: HostId,
    /// The segment's name.
    pub segment: String,
    /// Its place in the chain.
    pub sequence: u64,
    /// SHA-256 of its manifest file, which stays.
    pub manifest_sha256: Digest,
    /// When it was decided.
    pub removed: Timestamp,
    /// Whose key signed this: the host, or [`SITE_PRINCIPAL`].
    pub by: String,
    /// Why.
    #[serde(flatten)]
    pub why: Why,
    /// What went.
    pub files: Vec<Removed>,
}

/// What stops a removal.
#[derive(Debug, thiserror::Error)]
pub enum TombstoneError {
    /// A file.
    #[error(transparent)]
    Io(#[from] IoError),
    /// It cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// It cannot be written as JSON.
    #[error("Cannot write a tombstone as JSON")]
    Encode(#[source] serde_json::Error),
    /// The manifest is not to be trusted with paths.
    #[error(
        "the manifest of {segment} names a file outside of its folder; nothing was removed, run `vestigo ledger verify`"
    )]
    Path {
        /// The segment.
        segment: String,
    },
}

/// Called before every durable step, so that tests can crash there.
pub(crate) type Step<'a> = &'a mut dyn FnMut(&str) -> Result<(), TombstoneError>;

/// Who removes, and when.
pub struct Undertaker<'a> {
    /// Whose key signs.
    pub signer: &'a Signer,
    /// The name under which it signs: `None` for the host's own.
    pub principal: Option<&'a str>,
    /// Now.
    pub now: Timestamp,
}

impl Undertaker<'_> {
    /// Removes the data files of a segment (of these kinds), with their proof. Bytes that came free. Nothing is written when
    /// nothing is there to remove.
    ///
    /// # Errors
    /// [`TombstoneError`]; what was decided is finished by [`finish`].
    pub fn bury(&self, sealed: &Sealed, kinds: &[Kind], why: Why) -> Result<u64, TombstoneError> {
        self.bury_by_steps(sealed, kinds, why, &mut |_| Ok(()))
    }

    pub(crate) fn bury_by_steps(
        &self,
        sealed: &Sealed,
        kinds: &[Kind],
        why: Why,
        step: Step<'_>,
    ) -> Result<u64, TombstoneError> {
        let manifest = &sealed.manifest;
        let there = |entry: &&FileEntry| kinds.contains(&entry.kind) && sealed.folder.join(&entry.name).exists();
        let entries: Vec<&FileEntry> = manifest.files.iter().filter(there).collect();
        if entries.is_empty() {
            return Ok(0);
        }
        if entries.iter().any(|entry| !is_own(&entry.name, &manifest.segment)) {
            return Err(TombstoneError::Path { segment: manifest.segment.clone() });
        }
        let removed = |entry: &&FileEntry| Removed {
            name: entry.name.clone(),
            kind: entry.kind,
            rows: entry.rows,
            sha256: entry.sha256,
        };
        let tombstone = Tombstone {
            format: FORMAT.to_owned(),
            version: VERSION,
            host: manifest.host.clone(),
            segment: manifest.segment.clone(),
            sequence: manifest.sequence,
            manifest_sha256: sealed.digest,
            removed: self.now,
            by: self.principal.map_or_else(|| manifest.host.to_string(), ToOwned::to_owned),
            files: entries.iter().map(removed).collect(),
            why,
        };
        let mut bytes = serde_json::to_vec_pretty(&tombstone).map_err(TombstoneError::Encode)?;
        bytes.push(b'\n');
        let path = sealed.folder.join(tombstone.file_name());
        let signature = self.signer.sign_as(TOMBSTONE_NAMESPACE, &bytes)?;
        step("tombstone-signature")?;
        durable::write_file(&sign::beside(&path, SIGNATURE_SUFFIX), signature.as_bytes())?;
        step("tombstone")?;
        durable::write_file(&path, &bytes)?;
        let mut freed = 0;
        for entry in entries {
            step("remove")?;
            durable::remove_file(&sealed.folder.join(&entry.name))?;
            freed += entry.bytes;
        }
        durable::sync_folder(&sealed.folder)?;
        Ok(freed)
    }
}

impl Tombstone {
    /// Its file's name: one per segment and occasion, so that none is ever rewritten.
    fn file_name(&self) -> String {
        let what = match &self.why {
            Why::Expired { .. } => "",
            Why::Moved { .. } if self.files.iter().any(|file| file.kind == Kind::Flows) => ".moved-flows",
            Why::Moved { .. } => ".moved-facts",
        };
        format!("{}{what}{SUFFIX}", self.segment)
    }

    /// Whether it accounts for the absence of this file of the segment with this manifest.
    #[must_use]
    pub fn covers(&self, manifest: Digest, entry: &FileEntry) -> bool {
        let same = |file: &Removed| file.name == entry.name && file.sha256 == entry.sha256;
        self.manifest_sha256 == manifest && self.files.iter().any(same)
    }
}

/// Whether a name is that of a file of the segment, in its own folder.
pub(crate) fn is_own(name: &str, segment: &str) -> bool {
    !name.contains('/') && name.strip_prefix(segment).is_some_and(|rest| rest.starts_with('-'))
}

/// A tombstone where it lies.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// What it says.
    pub tombstone: Tombstone,
    /// Its bytes, as signed.
    pub bytes: Vec<u8>,
}

/// The tombstones in a folder: those that can be read, and the paths of the others.
///
/// # Errors
/// The disk's.
pub fn in_folder(folder: &Path, names: &[String]) -> Result<(Vec<Found>, Vec<PathBuf>), IoError> {
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    for name in names.iter().filter(|name| name.ends_with(SUFFIX) && !name.starts_with('.')) {
        let path = folder.join(name);
        let mut bytes = Vec::new();
        let file = fs::File::open(&path).map_err(IoError::at("open", &path))?;
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(IoError::at("read", &path))?;
        match serde_json::from_slice::<Tombstone>(&bytes) {
            Ok(tombstone) if tombstone.format == FORMAT && tombstone.version <= VERSION => {
                found.push(Found { path, tombstone, bytes });
            }
            _ => unreadable.push(path),
        }
    }
    Ok((found, unreadable))
}

/// Whether a file that is not there was removed because of its age: there is nothing to read then. One that was moved to the object
/// store is missed: an answer without it would say that nothing had been.
pub(crate) fn accounts_for(sealed: &Sealed, entry: &FileEntry) -> Result<Option<()>, SegmentError> {
    let (found, _) = in_folder(&sealed.folder, &durable::names(&sealed.folder)?)?;
    let stones = found.into_iter().map(|found| found.tombstone).filter(|stone| stone.covers(sealed.digest, entry));
    match stones.map(|stone| stone.why).min_by_key(|why| matches!(why, Why::Moved { .. })) {
        None => Ok(None),
        Some(Why::Expired { .. }) => Ok(Some(())),
        Some(Why::Moved { vault, .. }) => {
            let path = sealed.folder.join(&entry.name);
            let what = format!("it was moved to {vault} when the disk was full; ask there, with --ledger");
            Err(SegmentError::Content { path, what })
        }
    }
}

/// Removes the files that tombstones in this folder have decided on and a crash left. Bytes that came free.
///
/// Only a file that the manifest beside the tombstone lists is touched: a forged tombstone must not choose what goes.
///
/// # Errors
/// The disk's.
pub fn finish(sealed: &Sealed, tombstones: &[Found], allowed: &dyn Fn(&Found) -> bool) -> Result<u64, TombstoneError> {
    let mut freed = 0;
    for entry in &sealed.manifest.files {
        let path = sealed.folder.join(&entry.name);
        let decided = tombstones.iter().any(|found| found.tombstone.covers(sealed.digest, entry) && allowed(found));
        if decided && is_own(&entry.name, &sealed.manifest.segment) && path.exists() {
            durable::remove_file(&path)?;
            freed += entry.bytes;
        }
    }
    Ok(freed)
}
