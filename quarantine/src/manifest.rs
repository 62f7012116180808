//! The manifest: everything that is known of an item, in one write-once object. The item exists when its manifest does.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, HostId, Instance, ItemId, PayloadSummary, Timestamp, Vo};

use crate::{
    canonical, layout,
    vault::{Key, Vault, VaultError, probe::LockMode},
};

/// The form's name.
pub const FORMAT: &str = "vestigo-item/1";
/// No manifest is larger; what is, is not ours.
const LIMIT: u64 = 64 << 20;

/// Why a manifest could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The object is no manifest.
    #[error("the manifest of item {item} is damaged: {why}")]
    Damaged {
        /// Whose.
        item: ItemId,
        /// How that shows.
        why: String,
    },
    /// It could not be written as JSON.
    #[error("a manifest cannot be written: {0}")]
    Encode(serde_json::Error),
}

/// BLAKE3, as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Blake3(pub [u8; 32]);

impl TryFrom<String> for Blake3 {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| "a BLAKE3 digest is 64 hexadecimal digits")?;
        Ok(Self(bytes))
    }
}

impl From<Blake3> for String {
    fn from(digest: Blake3) -> String {
        hex::encode(digest.0)
    }
}

/// Another object of the item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// SHA-256 of them.
    pub sha256: Digest,
}

/// A stretch of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// First.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// How many chunks of which kind, and what they cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Chunks with bytes.
    pub data: u64,
    /// Chunks that were never written.
    pub hole: u64,
    /// Chunks that were written with zeros.
    pub zero: u64,
    /// Chunks that could not be read.
    pub unreadable: u64,
    /// Of the data chunks, those that the vault did not have yet.
    pub stored: u64,
    /// Bytes that these took in packs.
    pub stored_bytes: u64,
}

/// What was acquired of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// Bytes of the file.
    pub size: u64,
    /// Bytes that it occupied on the host's disk.
    pub allocated: u64,
    /// Last change of its content, host's clock.
    pub modified: Timestamp,
    /// Bytes per chunk.
    pub chunk_size: u32,
    /// Domain of its chunks.
    pub domain: String,
    /// Root over the chunk list.
    pub root: Blake3,
    /// SHA-256 of the whole file, holes and unreadable ranges as zeros. Optional in the form, because a later version may
    /// seal an item first and add this afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// The index.
    pub index: ObjectRef,
    /// Chunks.
    pub chunks: Counts,
    /// What could not be read; zeros stand there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<ByteRange>,
    /// How a change during acquisition showed; empty for a file that kept still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
    /// When reading began.
    pub started: Timestamp,
    /// When the last chunk was durable.
    pub finished: Timestamp,
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LayerState {
    /// It is in the vault.
    Captured(Box<Captured>),
    /// It is lost.
    Missing {
        /// Why.
        why: String,
    },
}

/// One file under a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Where it was on the host.
    pub original: PathBuf,
    /// Format as the domain XML declared it; never probed.
    pub format: String,
    /// Whether it was a backing file that other machines may use too.
    pub shared: bool,
    /// What became of it.
    #[serde(flatten)]
    pub state: LayerState,
}

impl LayerRecord {
    /// The captured file, if it is one.
    #[must_use]
    pub fn captured(&self) -> Option<&Captured> {
        match &self.state {
            LayerState::Captured(captured) => Some(captured),
            LayerState::Missing { .. } => None,
        }
    }
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The guest's name for it.
    pub target: String,
    /// The image, then its backing files.
    pub layers: Vec<LayerRecord>,
}

/// What a guest said. True as far as the VO's image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestClaims {
    /// Who worked in the machine.
    pub payloads: Vec<PayloadSummary>,
}

/// How long it is to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Until when.
    pub until: Timestamp,
    /// Whether, and how, the store enforces it; `off` unless the probe saw it work.
    pub object_lock: LockMode,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// When the daemon first took the item up.
    pub taken_up: Timestamp,
    /// When the manifest was made.
    pub sealed: Timestamp,
    /// How often the item was begun anew (crashes, outages).
    pub attempts: u32,
}

/// An item of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// Its id.
    pub item: ItemId,
    /// Program and version that made it.
    pub tool: String,
    /// The hypervisor.
    pub host: HostId,
    /// The VO as the site maps the tenant; absent when unmapped. The same as in `instance`, here for readers of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vo: Option<Vo>,
    /// Host facts about the machine.
    pub instance: Instance,
    /// Guest claims.
    pub guest_claims: GuestClaims,
    /// Why it was handed over.
    pub reason: String,
    /// When the last other name of the disks went.
    pub deleted: Timestamp,
    /// The domain XML.
    pub domain_xml: ObjectRef,
    /// The disks.
    pub disks: Vec<DiskRecord>,
    /// BLAKE3 over the roots of all captured layers, in order.
    pub root: Blake3,
    /// How long it is to be kept.
    pub retention: Retention,
    /// Where the time went.
    pub timings: Timings,
    /// Whatever an investigator must know before trusting the rest; empty when all went well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// A manifest and the digest of its bytes as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The manifest.
    pub manifest: Manifest,
    /// SHA-256.
    pub sha256: Digest,
}

impl Manifest {
    /// As stored.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        canonical::to_vec(self).map_err(ManifestError::Encode)
    }

    /// The root over the layers' roots.
    #[must_use]
    pub fn root_of(disks: &[DiskRecord]) -> Blake3 {
        let mut hasher = blake3::Hasher::new();
        for captured in disks.iter().flat_map(|disk| &disk.layers).filter_map(LayerRecord::captured) {
            hasher.update(&captured.root.0);
        }
        Blake3(hasher.finalize().into())
    }

    /// Bytes of all captured files.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.disks.iter().flat_map(|d| &d.layers).filter_map(LayerRecord::captured).map(|c| c.size).sum()
    }
}

/// Reads and checks the manifest of an item.
pub fn load(vault: &dyn Vault, item: &ItemId) -> Result<Stored, ManifestError> {
    let key: Key = layout::manifest(item)?;
    let damaged = |why: String| ManifestError::Damaged { item: *item, why };
    if vault.size(&key)?.is_some_and(|size| size > LIMIT) {
        return Err(damaged("it is larger than any manifest".to_owned()));
    }
    let bytes = vault.get(&key)?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(damaged(format!("its format is {:?}, this program reads {FORMAT}", manifest.format)));
    }
    if manifest.item != *item {
        return Err(damaged(format!("it speaks of item {}", manifest.item)));
    }
    Ok(Stored { manifest, sha256: Digest::of(&bytes) })
}
