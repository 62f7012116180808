//! The append-only record of flows and facts: write-ahead log, sealed Parquet segments, and the investigator's questions.
//!
//! ```text
//! hostd ─► Writer ─► wal/<generation>.wal ──seal──► date=…/host=…/<segment>-{flows,instances,payloads,coverage,events}.parquet
//!                        │                                       <segment>.manifest.json  (chained by SHA-256)
//!                        └────────────► Ledger ◄───────────────────────┘
//!                                          └─► who, ips, pilots
//! ```
//!
//! The files are the contract (`docs/formats/ledger.md`); this crate is one program that writes and reads them. It is
//! synchronous and blocks on the disk: its writer belongs into a thread of its own.
//!
//! | beside … | append | seal | read |
//! |---|---|---|---|
//! | **append** | one [`Writer`] per folder, by a lock | same owner, one after the other | a frame not yet whole is a torn tail, and skipped |
//! | **seal** | – | – | the log is read before the manifests: what moves meanwhile is found in one of them, and dropped from the log when in both |
//! | **crash** | the tail is cut to its last whole frame | no manifest, no segment: rubble is removed, the log sealed again | – |
//!
//! What is *recorded* is never changed: a later record of the same VM's interval replaces the earlier one in answers only.
//! A payload is a guest's claim, and there the **first** record holds: a later one can add the end and nothing else. What is *answered* keeps host facts and guest claims in separate objects, and
//! says what could not be seen.

mod catalog;
mod claims;
mod community;
pub mod compact;
mod durable;
mod entry;
mod error;
mod flows;
pub mod frame;
pub mod holds;
mod log;
mod manifest;
pub mod people;
pub mod questions;
mod reader;
pub mod retention;
pub mod rows;
mod segment;
pub mod sign;
mod state;
pub mod store;
mod tasks;
pub mod verify;
mod writer;

pub use community::community_id;
pub use durable::IoError;
pub use error::LedgerError;
pub use manifest::{
    FORMAT, FileEntry, Generations, Kind, Losses, MAX_ADDRESSES, MAX_BLIND, Manifest, ManifestError, Replaced, Sealed,
    VERSION, Validity,
};
pub use reader::{Facts, FlowQuery, Ledger, LiveRows, OpenOptions, SegmentFile, TableHints};
pub use segment::{SegmentError, scan::FlowFilter};
pub use sign::{SignError, Signer, signers::Signers};
pub use store::{FolderStore, Listed, Stamp, Store, StoreError};
pub use tasks::{MAX_TASK_RUNS, TaskRuns, TaskUse};
pub use writer::{Recovered, SegmentInfo, Writer, WriterOptions};

#[cfg(test)]
#[path = "../tests/fixture/mod.rs"]
mod fixture;
