//! What there is to ship: the manifests of a ledger, and what they list. Names come from a folder that another process
//! writes: nothing in them may lead out of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use vestigo_model::{Digest, HostId};

use super::{MAX_MANIFEST, ShipError};
use crate::files;

const MANIFEST: &str = ".manifest.json";
const TOMBSTONE: &str = ".tombstone.json";
/// What a manifest or a tombstone is signed in.
pub(super) const SIGNATURE: &str = ".sig";

/// A segment where it lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    /// For the order only.
    sequence: u64,
    /// Path of the manifest below the ledger.
    pub(super) manifest: PathBuf,
    /// Names of its tombstones, in the same folder.
    pub(super) tombstones: Vec<String>,
}

/// What of a manifest matters here. The ledger's own crate knows all of it; this one must not depend on it.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) host: HostId,
    pub(super) sequence: u64,
    pub(super) files: Vec<File>,
}

#[derive(Debug, Deserialize)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
}

/// Every segment, oldest first.
pub(super) fn segments(ledger: &Path) -> Result<Vec<Segment>, ShipError> {
    let mut segments = Vec::new();
    for date in names(ledger)?.into_iter().filter(|name| name.starts_with("date=")) {
        for host in names(&ledger.join(&date))?.into_iter().filter(|name| name.starts_with("host=")) {
            let folder = Path::new(&date).join(&host);
            let all = names(&ledger.join(&folder))?;
            for name in all.iter().filter(|name| name.ends_with(MANIFEST)) {
                let stem = name.trim_end_matches(MANIFEST);
                let Some(sequence) = stem.split_once('-').and_then(|(number, _)| number.parse().ok()) else { continue };
                let own = |other: &&String| other.ends_with(TOMBSTONE) && other.starts_with(&format!("{stem}."));
                let tombstones = all.iter().filter(own).cloned().collect();
                segments.push(Segment { sequence, manifest: folder.join(name), tombstones });
            }
        }
    }
    segments.sort();
    Ok(segments)
}

/// Visible names in a folder, in order; none when it is gone.
fn names(folder: &Path) -> Result<Vec<String>, ShipError> {
    let failed = |error| ShipError::Read { path: folder.to_owned(), error };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().into_string();
        names.extend(name.ok().filter(|name| !name.starts_with('.')));
    }
    names.sort();
    Ok(names)
}

/// Reads a file of the ledger.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ShipError> {
    files::read_limited(path, limit).map_err(|error| ShipError::Read { path: path.to_owned(), error })
}

/// Reads one that may not be there.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, ShipError> {
    match files::read_limited(path, MAX_MANIFEST) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ShipError::Read { path: path.to_owned(), error }),
    }
}

/// Understands a manifest.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest, ShipError> {
    let changed = |what: String| ShipError::Changed { path: path.to_owned(), what };
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|error| changed(format!("it is no manifest of a segment ({error})")))?;
    match manifest.files.iter().find(|file| file.name.contains('/') || file.name.starts_with('.')) {
        Some(file) => Err(changed(format!("it lists {:?}, which leads out of its folder", file.name))),
        None => Ok(manifest),
    }
}
