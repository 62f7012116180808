//! One segment on its way into the store.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, Timestamp};

use super::{
    FOLDER, MAX_MANIFEST, ShipError,
    find::{self, File, Manifest, SIGNATURE, Segment},
};
use crate::vault::{Key, Put, Vault, VaultError};

/// Largest file of a segment that is shipped: it is in memory while it is.
const MAX_FILE: u64 = 1 << 30;
/// Bytes read back at once.
const PIECE: u64 = 8 << 20;

pub(super) struct Sender<'a> {
    pub(super) ledger: &'a Path,
    pub(super) vault: &'a dyn Vault,
    pub(super) keep: Duration,
    pub(super) now: Timestamp,
}

impl Sender<'_> {
    /// Data, signature, manifest.
    pub(super) fn segment(&self, segment: &Segment, manifest: &Manifest, text: Vec<u8>) -> Result<(), ShipError> {
        let folder = segment.manifest.parent().unwrap_or(Path::new(""));
        let mut gone = Vec::new();
        for file in manifest.files.iter().filter(|file| file.rows > 0) {
            if !self.data(&folder.join(&file.name), file)? {
                gone.push(&file.name);
            }
        }
        if !gone.is_empty() {
            // Compacted or too old, while the store was away. The manifest still belongs to the chain.
            tracing::info!(segment = %segment.manifest.display(), files = gone.len(), "shipped without the files that are gone here");
        }
        let mut signature = segment.manifest.clone().into_os_string();
        signature.push(SIGNATURE);
        self.small(Path::new(&signature))?;
        self.object(&segment.manifest, text.into())
    }

    /// The proofs of what was removed here.
    pub(super) fn tombstones(&self, segment: &Segment) -> Result<(), ShipError> {
        let folder = segment.manifest.parent().unwrap_or(Path::new(""));
        for name in &segment.tombstones {
            self.small(&folder.join(format!("{name}{SIGNATURE}")))?;
            self.small(&folder.join(name))?;
        }
        Ok(())
    }

    /// Whether the file is here. One that is not what its manifest says is not shipped.
    fn data(&self, path: &Path, file: &File) -> Result<bool, ShipError> {
        let whole = self.ledger.join(path);
        let bytes = match find::read(&whole, MAX_FILE.min(file.bytes)) {
            Ok(bytes) => bytes,
            Err(ShipError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(ShipError::Read { error, .. }) if error.kind() == io::ErrorKind::FileTooLarge => {
                let what = format!("it is longer than the {} bytes that its manifest says, or than 1 GiB", file.bytes);
                return Err(ShipError::Changed { path: whole, what });
            }
            Err(error) => return Err(error),
        };
        if Digest::of(&bytes) != file.sha256 {
            let what = "its SHA-256 is not the one in its manifest".to_owned();
            return Err(ShipError::Changed { path: whole, what });
        }
        self.object(path, bytes.into()).map(|()| true)
    }

    fn small(&self, path: &Path) -> Result<(), ShipError> {
        match find::read_if_there(&self.ledger.join(path))? {
            Some(bytes) => self.object(path, bytes.into()),
            None => Ok(()),
        }
    }

    /// Stores an object, unless it is there, and reads it back either way.
    fn object(&self, path: &Path, bytes: Bytes) -> Result<(), ShipError> {
        let key = key(path)?;
        let (digest, length) = (Digest::of(&bytes), crate::codec::as_u64(bytes.len()));
        let put = self.vault.put_new(&key, bytes)?;
        if self.digest(&key, length)? != Some(digest) {
            return Err(if put == Put::Exists { ShipError::Differs { key } } else { ShipError::Lost { key } });
        }
        Ok(self.vault.keep_until(&key, self.now + self.keep)?)
    }

    /// What the store has of that length; `None` when it has less, more or nothing.
    fn digest(&self, key: &Key, length: u64) -> Result<Option<Digest>, ShipError> {
        if self.vault.size(key)? != Some(length) {
            return Ok(None);
        }
        let (mut hasher, mut offset) = (Sha256::new(), 0);
        while offset < length {
            let piece = PIECE.min(length - offset);
            match self.vault.get_range(key, offset, piece) {
                Ok(bytes) => hasher.update(&bytes),
                Err(VaultError::TooShort { .. } | VaultError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            offset += piece;
        }
        Ok(Some(Digest(hasher.finalize().into())))
    }
}

fn key(path: &Path) -> Result<Key, ShipError> {
    let text = path.to_str().unwrap_or_default();
    Ok(Key::new(PathBuf::from(FOLDER).join(text).display().to_string())?)
}

const _: () = assert!(MAX_MANIFEST < MAX_FILE);
