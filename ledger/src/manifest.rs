//! The manifest of a segment: what is in it, what it hashes to, and which manifest came before.
//!
//! A segment exists from the moment its manifest has its final name; everything without one is rubble of a crash.

use std::{
    collections::HashSet,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, HostId, TimeRange, Timestamp};

use crate::{
    durable::{self, IoError},
    retention::tombstone,
    segment::SegmentError,
    sign::{SIGNATURE_SUFFIX, SignError, Signer},
};

/// Value of [`Manifest::format`].
pub const FORMAT: &str = "vestigo-segment";
/// Version of the manifest and of the files it lists. Readers take any version up to theirs.
pub const VERSION: u32 = 2;
/// Most addresses that a manifest lists.
pub const MAX_ADDRESSES: usize = 4096;
/// Most stretches that a manifest lists as not seen.
pub const MAX_BLIND: usize = 1024;

pub(crate) const SUFFIX: &str = ".manifest.json";

/// What one file of a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Flow records.
    Flows,
    /// VMs.
    Instances,
    /// Payloads.
    Payloads,
    /// What could be seen.
    Coverage,
    /// What happened.
    Events,
    /// Who the pseudonyms in `payloads` are, each row sealed to whoever may know.
    People,
}

impl Kind {
    /// All kinds, in the order in which they are written.
    pub const ALL: [Self; 6] =
        [Self::Flows, Self::Instances, Self::Payloads, Self::Coverage, Self::Events, Self::People];

    /// The word in the file's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Instances => "instances",
            Self::Payloads => "payloads",
            Self::Coverage => "coverage",
            Self::Events => "events",
            Self::People => "people",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One file of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name, in the manifest's own folder.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// How many records.
    pub rows: u64,
    /// How long it is.
    pub bytes: u64,
    /// What it hashes to.
    pub sha256: Digest,
    /// What its rows hash to, whatever the file's encoding: what a compacted file must still yield. `None` before version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_sha256: Option<Digest>,
}

/// A segment whose rows another one holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Its sequence number.
    pub sequence: u64,
    /// SHA-256 of its manifest file, which stays.
    pub sha256: Digest,
}

/// A stretch of validity: open-ended while something in it still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// From.
    pub from: Timestamp,
    /// To; `None` while it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
}

/// The generations of the write-ahead log that a segment holds; a reader that finds them still there drops them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generations {
    /// Lowest.
    pub first: u64,
    /// Highest.
    pub last: u64,
}

/// What the write-ahead log could not give back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Bytes of writes that did not finish.
    pub torn_bytes: u64,
    /// Bytes damaged on the medium.
    pub damaged_bytes: u64,
    /// Whole records that could not be understood.
    pub unreadable_records: u64,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`] at the time of writing.
    pub version: u32,
    /// The hypervisor.
    pub host: HostId,
    /// The segment's name: first part of the names of its files.
    pub segment: String,
    /// 1 for a host's first segment, then one more each.
    pub sequence: u64,
    /// Host's clock when it was sealed.
    pub sealed: Timestamp,
    /// First packet of the first flow to last packet of the last; `None` without flows.
    pub flows: Option<TimeRange>,
    /// When its instances and payloads held; `None` without any.
    pub facts: Option<Validity>,
    /// What its coverage statements and events speak of; `None` without any.
    pub coverage: Option<TimeRange>,
    /// Host's clock when its records were written; `None` when it has none but carried facts.
    pub recorded: Option<TimeRange>,
    /// Every address on the VMs' side that its records know of: own and translated ones of flows and `nat-binding` events,
    /// expected and learnt ones of instances. Sorted. `None`: more than [`MAX_ADDRESSES`], or version 1; any may be in it.
    #[serde(default)]
    pub addresses: Option<Vec<IpAddr>>,
    /// Within `coverage`, where its own statements leave something of what ran unseen or unsaid. Joined, in order.
    /// `None`: more than [`MAX_BLIND`], or version 1; look inside.
    #[serde(default)]
    pub blind: Option<Vec<TimeRange>>,
    /// Taps of VMs that its instances had.
    #[serde(default)]
    pub points: Option<u64>,
    /// The segments whose rows it holds (compaction): theirs are not read any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaces: Vec<Replaced>,
    /// Its files.
    pub files: Vec<FileEntry>,
    /// The write-ahead log it replaces.
    pub wal: Generations,
    /// What that log could not give back.
    pub losses: Losses,
    /// SHA-256 of the manifest file of segment `sequence - 1`; zeros for the first.
    pub previous: Digest,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The file is no manifest.
    #[error("{} is no segment manifest; restore it from the object store or a backup", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's word.
        #[source]
        source: serde_json::Error,
    },
    /// It cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A newer program wrote it.
    #[error("{} has format {format} version {version}, but this program reads {FORMAT} up to {VERSION}; use a newer vestigo", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it calls itself.
        format: String,
        /// Its version.
        version: u32,
    },
}

/// A manifest where it lies.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// What it says.
    pub manifest: Manifest,
    /// Its folder.
    pub folder: PathBuf,
    /// What the manifest file hashes to: the next one's `previous`.
    pub digest: Digest,
}

impl Sealed {
    /// The file of this kind, if it holds anything. Its length is compared with the manifest's: another segment's file put in
    /// its place, or one cut short, must not pass for it. (Every byte is compared by whoever checks the digests.)
    ///
    /// # Errors
    /// [`SegmentError`]: it is not there, or not the one that the manifest means.
    pub fn file(&self, kind: Kind) -> Result<Option<PathBuf>, SegmentError> {
        let Some(entry) = self.manifest.files.iter().find(|f| f.kind == kind && f.rows > 0) else { return Ok(None) };
        let path = self.folder.join(&entry.name);
        let content = |what: String| SegmentError::Content { path: path.clone(), what };
        if entry.name.contains('/') {
            return Err(content("its manifest leads out of its folder".to_owned()));
        }
        let found = match std::fs::metadata(&path).map_err(IoError::at("find", &path)) {
            Ok(metadata) => metadata.len(),
            Err(error) => return tombstone::accounts_for(self, entry)?.ok_or(error.into()).map(|()| None),
        };
        if found != entry.bytes {
            let bytes = entry.bytes;
            return Err(content(format!(
                "it is {found} bytes long, its manifest says {bytes}; restore it from a copy"
            )));
        }
        Ok(Some(path))
    }
}

impl Manifest {
    /// Its place among records: a compacted segment stands where the first of those that it replaces stood.
    #[must_use]
    pub fn order(&self) -> u64 {
        self.replaces.iter().map(|old| old.sequence).min().unwrap_or(self.sequence)
    }
}

/// The segments whose rows count, by host and place: those that another one replaces are left out.
pub(crate) fn in_force(mut all: Vec<Sealed>) -> Vec<Sealed> {
    let replaced: HashSet<(HostId, Digest)> = all
        .iter()
        .flat_map(|by| by.manifest.replaces.iter().map(|old| (by.manifest.host.clone(), old.sha256)))
        .collect();
    all.retain(|one| !replaced.contains(&(one.manifest.host.clone(), one.digest)));
    all.sort_by(|a, b| (&a.manifest.host, a.manifest.order()).cmp(&(&b.manifest.host, b.manifest.order())));
    all
}

/// Where a manifest lies; found by listing folders, without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) name: String,
    pub(crate) sequence: u64,
}

/// A segment's name: sequence number first, so that names sort, then its day and time for human eyes.
pub(crate) fn segment_name(sequence: u64, first: Timestamp) -> String {
    let digits: String = first.to_string().chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
    format!("{sequence:08}-{digits}Z")
}

/// The sequence number in the name of a segment's file (final or temporary).
pub(crate) fn sequence_of(name: &str) -> Option<u64> {
    name.trim_start_matches('.').split_once('-').and_then(|(number, _)| number.parse().ok())
}

/// The folder of a day's segments.
pub(crate) fn folder(root: &Path, host: &HostId, first: Timestamp) -> PathBuf {
    root.join(format!("date={}", first.date())).join(format!("host={host}"))
}

/// The `date=…/host=…` folders under a root; only this host's when one is named.
pub(crate) fn folders(root: &Path, host: Option<&HostId>) -> Result<Vec<PathBuf>, IoError> {
    let mut folders = Vec::new();
    for date in durable::names(root)?.iter().filter(|name| name.starts_with("date=")) {
        let date = root.join(date);
        for name in durable::names(&date)? {
            if name.strip_prefix("host=").is_some_and(|h| host.is_none_or(|host| h == host.as_str())) {
                folders.push(date.join(name));
            }
        }
    }
    Ok(folders)
}

/// The manifests in a folder.
pub(crate) fn places(folder: &Path) -> Result<Vec<Place>, IoError> {
    let names = durable::names(folder)?.into_iter().filter(|name| name.ends_with(SUFFIX) && !name.starts_with('.'));
    let places = names.filter_map(|name| {
        let sequence = sequence_of(&name)?;
        Some(Place { folder: folder.to_owned(), name, sequence })
    });
    Ok(places.collect())
}

/// Reads a manifest.
pub(crate) fn read(place: &Place) -> Result<Sealed, ManifestError> {
    let path = place.folder.join(&place.name);
    let bytes = fs::read(&path).map_err(IoError::at("read", &path))?;
    let (manifest, digest) = parse(&path, &bytes)?;
    Ok(Sealed { manifest, folder: place.folder.clone(), digest })
}

/// The manifest in a file of this path, and what the file hashes to.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<(Manifest, Digest), ManifestError> {
    let path = path.to_owned();
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { path: path.clone(), source })?;
    if manifest.format != FORMAT || manifest.version > VERSION {
        return Err(ManifestError::Version { path, format: manifest.format, version: manifest.version });
    }
    Ok((manifest, Digest::of(bytes)))
}

/// Writes a manifest: the moment at which its segment begins to exist. Its signature lies there before it does.
pub(crate) fn write(folder: &Path, manifest: Manifest, signer: Option<&Signer>) -> Result<Sealed, ManifestError> {
    let path = folder.join(format!("{}{SUFFIX}", manifest.segment));
    let malformed = |source| ManifestError::Malformed { path: path.clone(), source };
    let mut bytes = serde_json::to_vec_pretty(&manifest).map_err(malformed)?;
    bytes.push(b'\n');
    if let Some(signer) = signer {
        let signature = signer.sign(&bytes)?;
        durable::write_file(&crate::sign::beside(&path, SIGNATURE_SUFFIX), signature.as_bytes())?;
    }
    durable::write_file(&path, &bytes)?;
    Ok(Sealed { manifest, folder: folder.to_owned(), digest: Digest::of(&bytes) })
}
