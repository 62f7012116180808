//! Shipping: sealed segments of the ledger go to the vault's store, so that a host that is lost, or in the wrong hands, does
//! not take its records along.
//!
//! ```text
//!   ledger/date=…/host=…/<segment>-*.parquet  ─► 1. data, each compared with the manifest before and after
//!                        <segment>.manifest.json.sig ─► 2. signature
//!                        <segment>.manifest.json     ─► 3. manifest: from here on the segment exists in the store
//!                                                       4. receipt <state>/shipped/<host>/<sequence>.json, for hostd
//! ```
//! Nothing in the store is ever replaced. What is there already under the name of a segment and differs from ours is left as it
//! is, said, and not vouched for: two hosts with one name, or somebody who rewrote history.

mod find;
mod send;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use vestigo_model::{Clock, Digest, HostId, Receipt};

use crate::{
    acquire::Control,
    files,
    vault::{Key, Vault, VaultError},
};
use find::Segment;

/// Where the ledger is in a vault.
pub const FOLDER: &str = "ledger";
/// How often the ledger is looked at.
const PACE: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A trouble that persists is said again so often.
const REMIND: Duration = Duration::from_secs(600);
/// Largest manifest, signature or tombstone that is read.
const MAX_MANIFEST: u64 = 16 << 20;

/// Why a segment is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The disk.
    #[error("cannot read {}: {error}; check owner and mode of the ledger's folder: the account of quarantine must be in its group", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The ledger on the disk is not what hostd wrote.
    #[error("{}: {what}; it is not shipped, see `vestigo ledger verify`", path.display())]
    Changed {
        /// What.
        path: PathBuf,
        /// In what way.
        what: String,
    },
    /// The store has something else under this name.
    #[error(
        "the store has another {key} than this host: two hosts with one name, or one of the two was rewritten. Neither is touched; compare them with `vestigo ledger verify`"
    )]
    Differs {
        /// Which object.
        key: Key,
    },
    /// What was stored does not come back as it was.
    #[error(
        "the store does not give back {key} as it was stored; it will be compared again, and its segment is not vouched for before"
    )]
    Lost {
        /// Which object.
        key: Key,
    },
    /// The receipt cannot be written.
    #[error("cannot write the receipt {}: {error}; check room and mode of the state folder", path.display())]
    Receipt {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What a look at the ledger did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Segments that are in the store now and were not before.
    pub shipped: u64,
    /// Segments that still wait.
    pub waiting: u64,
}

/// Ships one ledger into one vault.
pub struct Shipper {
    ledger: PathBuf,
    receipts: PathBuf,
    vault: Arc<dyn Vault>,
    /// How long the store is to keep what it gets, where it can promise such a thing.
    keep: Duration,
    clock: Arc<dyn Clock>,
    control: Arc<Control>,
    /// Manifests that are in the store, by path below the ledger, each with so many of its tombstones.
    done: BTreeMap<PathBuf, usize>,
    said: BTreeMap<String, Instant>,
}

impl Shipper {
    /// Of the ledger at `ledger`, with receipts below `state`.
    #[must_use]
    pub fn new(
        ledger: &Path,
        state: &Path,
        vault: Arc<dyn Vault>,
        keep: Duration,
        clock: Arc<dyn Clock>,
        control: Arc<Control>,
    ) -> Self {
        let receipts = state.join("shipped");
        let (ledger, done, said) = (ledger.to_owned(), BTreeMap::new(), BTreeMap::new());
        Self { ledger, receipts, vault, keep, clock, control, done, said }
    }

    /// Ships until told to stop. An outage of the store is waited for, however long it lasts: the ledger keeps what was not shipped.
    pub fn run(&mut self) {
        let mut wait = PACE;
        while !self.control.stopping() {
            let round = self.round();
            wait = if round.waiting == 0 { PACE } else { wait.saturating_mul(2).min(LONGEST_WAIT) };
            let until = Instant::now() + if round.shipped > 0 { PACE } else { wait };
            while !self.control.stopping() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Looks once at every segment, oldest first.
    pub fn round(&mut self) -> Round {
        let mut round = Round::default();
        let segments = match find::segments(&self.ledger) {
            Ok(segments) => segments,
            Err(error) => {
                self.say(&error.to_string());
                return Round { waiting: 1, ..round };
            }
        };
        let present: BTreeSet<&PathBuf> = segments.iter().map(|segment| &segment.manifest).collect();
        self.done.retain(|path, _| present.contains(path));
        let mut reachable = true;
        for segment in &segments {
            if self.control.stopping() {
                break;
            }
            // After the first failure to reach the store the others are only counted.
            let shipped = if reachable { self.ship(segment) } else { Ok(true) };
            match shipped {
                Ok(known) => round.shipped += u64::from(!known),
                Err(error) => {
                    reachable = !matches!(error, ShipError::Vault(VaultError::Unavailable(_) | VaultError::Refused(_)));
                    self.say(&error.to_string());
                }
            }
            round.waiting += u64::from(!self.is_done(segment));
        }
        if round.shipped > 0 {
            tracing::info!(segments = round.shipped, waiting = round.waiting, vault = self.vault.url(), "shipped");
        }
        round
    }

    fn is_done(&self, segment: &Segment) -> bool {
        self.done.get(&segment.manifest) == Some(&segment.tombstones.len())
    }

    /// Whether it was in the store already; else it is now.
    fn ship(&mut self, segment: &Segment) -> Result<bool, ShipError> {
        if self.is_done(segment) {
            return Ok(true);
        }
        let path = self.ledger.join(&segment.manifest);
        let bytes = find::read(&path, MAX_MANIFEST)?;
        let digest = Digest::of(&bytes);
        let manifest = find::parse(&path, &bytes)?;
        let known = self.has_receipt(&manifest.host, manifest.sequence, digest);
        let sender = send::Sender { ledger: &self.ledger, vault: &*self.vault, keep: self.keep, now: self.clock.now() };
        if !known {
            sender.segment(segment, &manifest, bytes)?;
            self.write_receipt(&manifest.host, manifest.sequence, digest)?;
        }
        // What was removed here after it was shipped has its proof in the store, too.
        sender.tombstones(segment)?;
        self.done.insert(segment.manifest.clone(), segment.tombstones.len());
        Ok(known)
    }

    fn receipt_path(&self, host: &HostId, sequence: u64) -> PathBuf {
        self.receipts.join(Receipt::path(host, sequence))
    }

    /// A receipt of another vault, or of another manifest, is none.
    fn has_receipt(&self, host: &HostId, sequence: u64, digest: Digest) -> bool {
        let read = files::read_limited(&self.receipt_path(host, sequence), 64 << 10).ok();
        let receipt = read.and_then(|bytes| serde_json::from_slice::<Receipt>(&bytes).ok());
        receipt.is_some_and(|receipt| receipt.is_for(host, sequence, digest) && receipt.vault == self.vault.url())
    }

    fn write_receipt(&self, host: &HostId, sequence: u64, manifest_sha256: Digest) -> Result<(), ShipError> {
        let path = self.receipt_path(host, sequence);
        let (vault, shipped) = (self.vault.url(), self.clock.now());
        let receipt = Receipt { host: host.clone(), sequence, manifest_sha256, vault, shipped };
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let bytes = serde_json::to_vec(&receipt).map_err(io::Error::other);
        folder
            .and(bytes)
            .and_then(|bytes| files::replace(&path, &bytes))
            .map_err(|error| ShipError::Receipt { path, error })
    }

    fn say(&mut self, trouble: &str) {
        let now = Instant::now();
        self.said.retain(|_, at| now.duration_since(*at) < REMIND);
        if !self.said.contains_key(trouble) {
            tracing::error!("{trouble}");
            self.said.insert(trouble.to_owned(), now);
        }
    }
}
