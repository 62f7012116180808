//! The guest link: who and what, on its way to the hypervisor.
//!
//! [`session`] knows the protocol and nothing else; [`spool`] keeps what is not acknowledged yet over the agent's own
//! death; [`port`] is the character device or socket; [`worker`] is the one thread that owns all three.

pub mod port;
pub mod session;
pub mod spool;
pub mod worker;

pub use port::Target;
pub use worker::{Link, Receipt, RecordError};
