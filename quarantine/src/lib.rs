//! Quarantine keeps the disk of every terminated VM as evidence.
//!
//! ```text
//! spool/*.json ──► daemon ──► acquire ──► packs, indexes ─┐
//!  (hostd)            │          │                        ▼
//!                     │          └─ known (local cache)  vault (folder or S3) ──► fetch ──► verify, export
//!                     └─ journal (local state)            ▲
//!                                             manifest, custody
//! ```
//!
//! What may run at the same time, and why that is safe:
//!
//! | | capture | another host's capture | investigator's read | loss of the local state |
//! |---|---|---|---|---|
//! | **capture** | one per daemon (lock on the spool) | packs have their own names; the custody log takes one writer per number | an item is seen only when its manifest exists, which is written last | packs are self-describing: the cache is read anew from the bucket |
//!
//! Nothing is ever rewritten, so no reader can see a half-made object, and there is nothing to lock.
//! `docs/formats/vault.md` has the bytes.

pub mod acquire;
pub mod canonical;
pub mod catalog;
pub mod chunk;
mod codec;
pub mod config;
pub mod custody;
pub mod daemon;
pub mod export;
pub mod fetch;
mod files;
pub mod index;
pub mod journal;
pub mod known;
pub mod layout;
pub mod manifest;
pub mod pack;
pub mod ship;
pub mod source;
pub mod spool;
pub mod vault;
pub mod verify;

/// Program and version, as it stands in manifests and custody.
pub const TOOL: &str = concat!("quarantine ", env!("CARGO_PKG_VERSION"));
