//! A hold on every disk: hard links while the VM runs, a hand-over to quarantine when the cloud manager has deleted the disk.
//!
//! [`PinKeeper`] is the one owner. It is synchronous and driven by its caller, who turns the [`Outcome`]s into ledger events:
//!
//! - at the start: [`PinKeeper::open`], then [`PinKeeper::started`] for every running domain, then [`PinKeeper::resync`] with
//!   their list. Until the first `resync` nothing is handed over: a disk without a name may be that of a running VM.
//! - on [`crate::domain::Change`]: `Started`, `Changed` → inspect, `started`; `Stopped` → [`PinKeeper::stopped`]; `Resync` → as
//!   at the start. `Rebooted`, `Undefined` and `Disconnected` mean nothing for a disk.
//! - when the descriptor ([`std::os::fd::AsFd`]) is readable: [`PinKeeper::readable`]; at [`PinKeeper::wake_at`] or more often:
//!   [`PinKeeper::tick`].
//! - when the event of an answer ([`Outcome::item_answered`]) is durable in the ledger: [`PinKeeper::acknowledge`].
//!
//! Policy (`policy.rs`) is pure; links and notes (`store.rs`), inotify (`watch.rs`) and the spool (`handover.rs`) are edges.

mod durable;
mod finish;
mod handover;
mod keeper;
pub mod policy;
mod restore;
mod store;
mod take;
#[cfg(test)]
mod tests;
mod watch;

use std::{io, path::PathBuf, time::Duration};

use vestigo_model::{Digest, DomainUuid, HostId, Instance, ItemId, PayloadSummary, Timestamp};

pub use self::{keeper::PinKeeper, store::HoldError};

/// Who worked in a VM, asked at hand-over.
pub trait Payloads: Send {
    /// The payloads known for the instance's domain.
    fn payloads(&self, instance: &Instance) -> Vec<PayloadSummary>;
}

impl<F: Fn(&Instance) -> Vec<PayloadSummary> + Send> Payloads for F {
    fn payloads(&self, instance: &Instance) -> Vec<PayloadSummary> {
        self(instance)
    }
}

/// Where things are and how long things take.
#[derive(Debug, Clone)]
pub struct PinOptions {
    /// This hypervisor's name.
    pub host: HostId,
    /// Pin folders: one on every file system that holds disks. Made if absent, readable by root only.
    pub folders: Vec<PathBuf>,
    /// The spool shared with quarantine. Made if absent.
    pub spool: PathBuf,
    /// How long to wait for the VM's other disks once one is deleted.
    pub settle: Duration,
    /// How often every pin is looked at, besides what inotify says.
    pub rescan: Duration,
}

impl PinOptions {
    /// With the usual times.
    #[must_use]
    pub fn new(host: HostId, folders: Vec<PathBuf>, spool: PathBuf) -> Self {
        Self { host, folders, spool, settle: Duration::from_secs(2), rescan: Duration::from_secs(30) }
    }
}

/// Why the keeper cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A folder cannot be used.
    #[error("cannot use the {what}: {source}")]
    Folder {
        /// Which.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// No inotify.
    #[error("cannot watch for deletions: {0}")]
    Watch(nix::Error),
}

/// Something the ledger should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Quarantine has it now.
    HandedOver {
        /// The item to be.
        item: ItemId,
        /// Whose.
        domain: DomainUuid,
        /// Targets of its disks.
        disks: Vec<String>,
        /// `terminated`, `replaced` or `detached`.
        reason: String,
    },
    /// Quarantine says that it is safe.
    Captured {
        /// The item.
        item: ItemId,
        /// Whose; unknown if quarantine finished while hostd was down.
        domain: Option<DomainUuid>,
        /// When.
        time: Timestamp,
        /// Where.
        vault: String,
        /// SHA-256 of its manifest.
        manifest_sha256: Digest,
    },
    /// Quarantine left it out by the site's policy.
    Skipped {
        /// The item.
        item: ItemId,
        /// Whose.
        domain: Option<DomainUuid>,
        /// When.
        time: Timestamp,
        /// Which policy.
        policy: String,
    },
    /// A disk or a part of it is not kept, or was lost.
    Missed {
        /// The item, if it got that far.
        item: Option<ItemId>,
        /// Whose.
        domain: Option<DomainUuid>,
        /// Which disk, if it is about one.
        target: Option<String>,
        /// Why.
        reason: String,
    },
    /// Let go on purpose: nothing was terminated.
    Released {
        /// Whose.
        domain: DomainUuid,
        /// Targets of its disks.
        disks: Vec<String>,
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// The item whose answer from quarantine this is: to be acknowledged once recorded.
    #[must_use]
    pub const fn item_answered(&self) -> Option<ItemId> {
        match self {
            Self::Captured { item, .. } | Self::Skipped { item, .. } => Some(*item),
            Self::Missed { item, .. } => *item,
            Self::HandedOver { .. } | Self::Released { .. } => None,
        }
    }
}
