//! The hand-over of a dead VM's disks from hostd to quarantine: one JSON file in a durable spool folder per item.
//!
//! `SPOOL/<item>.json` is a [`Handover`], written by hostd under a temporary name, synced and renamed. From that rename on
//! the pins it names belong to quarantine. When the item is safe (or given up), quarantine writes `SPOOL/done/<item>.json`, a
//! [`HandoverResult`], in the same way, and removes first the pins, then `SPOOL/<item>.json`. hostd reads the result,
//! records it as a fact and removes it. Either side may crash between any two steps and go on afterwards; a result may
//! therefore come twice, and is taken once. A pin belongs to one item: a backing file that several VMs share has a link for
//! each, because quarantine removes the links of an item with it. What quarantine refused to read (no regular file) it leaves where it is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Digest, HostId, Instance, ItemId, PayloadId, PayloadUid, PilotId, Timestamp, Trust, User, Vo};

/// One file that must be acquired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedLayer {
    /// Where the domain XML said it was.
    pub original: PathBuf,
    /// The hard link that keeps it.
    pub pin: PathBuf,
    /// Format as declared in the domain XML.
    pub format: String,
    /// Whether other VMs may use the same file (a backing file): deduplicated per site, not per VO.
    pub shared: bool,
}

/// One disk, its image first, then its backing files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedDisk {
    /// The guest's name for it: `vda`.
    pub target: String,
    /// The files under it.
    pub layers: Vec<PinnedLayer>,
}

/// A payload that ran in the VM, as far as an item of evidence needs it. A guest claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadSummary {
    /// The run.
    pub uid: PayloadUid,
    /// The pilot job.
    pub pilot: PilotId,
    /// The VO's name for it.
    pub payload: PayloadId,
    /// Whose.
    pub user: User,
    /// The VO claimed.
    pub vo: Vo,
    /// What stands behind the user's name.
    pub trust: Trust,
    /// Host's clock.
    pub start: Timestamp,
    /// Host's clock; `None` if it still ran when the VM ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
}

/// What hostd hands over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Version of this form: 1.
    pub version: u32,
    /// The item to be.
    pub item: ItemId,
    /// The hypervisor.
    pub host: HostId,
    /// The VM, with its end.
    pub instance: Instance,
    /// Who worked in it.
    pub payloads: Vec<PayloadSummary>,
    /// When the last other name of the disks went.
    pub deleted: Timestamp,
    /// Why it is handed over: `terminated`, `replaced` (a rebuild) …
    pub reason: String,
    /// What to acquire.
    pub disks: Vec<PinnedDisk>,
    /// The domain XML as libvirt gave it.
    pub domain_xml: String,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// In the vault, durable, listed.
    Captured {
        /// Where: the vault's URL.
        vault: String,
        /// SHA-256 of the item's manifest.
        manifest_sha256: Digest,
    },
    /// Left out by the site's policy.
    Skipped {
        /// Which.
        policy: String,
    },
    /// Lost.
    Missed {
        /// Why.
        reason: String,
    },
}

/// What quarantine answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverResult {
    /// Version of this form: 1.
    pub version: u32,
    /// The item.
    pub item: ItemId,
    /// When it ended.
    pub time: Timestamp,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}
