//! Ledgers made by a generator, with known truth: what the cross-engine test and `make bench-ledger` ask their questions of.
//!
//! Everything is a function of a [`Shape`] (with its seed): the VMs of a host, the payloads of a VM, the records of one host
//! and day. So nothing has to be kept to know the right answer: [`truth`] makes the few days again that a question touches
//! and looks there, without the ledger's own code.
//!
//! ```text
//! Shape ─► Site (VOs, users, peers) ─► machines(host, day) ─► runs(machine) ─► Day { facts, flows }
//!                                                                                ├─► write: real ledgers, by the real Writer
//!                                                                                ├─► nfdump: the same flows for the peer
//!                                                                                └─► truth: the right answers
//! ```

pub mod ask;
pub mod day;
pub mod draw;
pub mod engines;
pub mod machines;
pub mod nfdump;
pub mod shape;
pub mod site;
pub mod traffic;
pub mod truth;
pub mod work;
pub mod write;

pub use shape::Shape;
pub use site::Site;
