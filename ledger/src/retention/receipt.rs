//! What quarantine says of a segment that is in the object store: `<state>/shipped/<host>/<sequence>.json`.

use std::path::Path;

use vestigo_model::Receipt;

use crate::{durable::IoError, manifest::Sealed, sign};

/// The receipt for exactly this segment, if there is one. One that cannot be read, or is for another manifest, is none: what
/// nobody vouches for has not been shipped.
///
/// # Errors
/// The disk's.
pub fn of(shipped: &Path, sealed: &Sealed) -> Result<Option<Receipt>, IoError> {
    let manifest = &sealed.manifest;
    let path = shipped.join(Receipt::path(&manifest.host, manifest.sequence));
    let bytes = match sign::read_bounded(&path) {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    let receipt = bytes.and_then(|bytes| serde_json::from_slice::<Receipt>(&bytes).ok());
    Ok(receipt.filter(|receipt| receipt.is_for(&manifest.host, manifest.sequence, sealed.digest)))
}
