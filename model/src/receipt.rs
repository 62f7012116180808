//! What quarantine tells hostd of a sealed segment of the ledger: it is in the object store.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Digest, HostId, Timestamp};

/// What quarantine vouches for: all of the segment was read back from the store. Lies at [`Receipt::path`] in quarantine's folder
/// of receipts; `docs/formats/ledger.md` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The hypervisor.
    pub host: HostId,
    /// The segment's place in its chain.
    pub sequence: u64,
    /// SHA-256 of its manifest file.
    pub manifest_sha256: Digest,
    /// The store that has it.
    pub vault: String,
    /// When it was read back.
    pub shipped: Timestamp,
}

impl Receipt {
    /// Where the receipt of a segment lies below the folder of receipts.
    #[must_use]
    pub fn path(host: &HostId, sequence: u64) -> PathBuf {
        PathBuf::from(host.as_str()).join(format!("{sequence}.json"))
    }

    /// Whether it is for exactly this manifest.
    #[must_use]
    pub fn is_for(&self, host: &HostId, sequence: u64, manifest_sha256: Digest) -> bool {
        (&self.host, self.sequence, self.manifest_sha256) == (host, sequence, manifest_sha256)
    }
}
