//! What quarantine says of a segment that is in the object store: `<state>/shipped/<host>/<sequence>.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, HostId, Timestamp};

use crate::{durable::IoError, manifest::Sealed, sign};

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The hypervisor.
    pub host: HostId,
    /// The segment's place in the chain.
    pub sequence: u64,
    /// SHA-256 of its manifest file.
    pub manifest_sha256: Digest,
    /// The store that has it.
    pub vault: String,
    /// Since when it is there, compared after the upload.
    pub shipped: Timestamp,
}

/// The receipt for exactly this segment, if there is one. One that cannot be read, or is for another manifest, is none: what
/// nobody vouches for has not been shipped.
///
/// # Errors
/// The disk's.
pub fn of(shipped: &Path, sealed: &Sealed) -> Result<Option<Receipt>, IoError> {
    let manifest = &sealed.manifest;
    let path = shipped.join(manifest.host.as_str()).join(format!("{}.json", manifest.sequence));
    let bytes = match sign::read_bounded(&path) {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    let receipt = bytes.and_then(|bytes| serde_json::from_slice::<Receipt>(&bytes).ok());
    Ok(receipt.filter(|receipt| {
        (&receipt.host, receipt.sequence, receipt.manifest_sha256) == (&manifest.host, manifest.sequence, sealed.digest)
    }))
}
