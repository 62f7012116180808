//! What the world saw: translations by the hypervisor itself (libvirt's NAT network, floating addresses on the host, Neutron's routers),
//! followed through the kernel's connection tracking.
//!
//! ```text
//!  conntrack NEW, DESTROY ─┐
//!  (one socket a namespace)├─► watch (thread) ─► book ◄── service: the tuple of a flow → what the world saw
//!  dump at start, each     │                       └────► service: translations that no flow record tells, losses
//!  five minutes, on loss  ─┘
//! ```
//! Pure: [`message`] (bytes to entries) and [`book`]. Edges: `socket` and `watch`.

pub mod book;
pub mod message;
mod names;
mod socket;
mod watch;

#[cfg(test)]
mod live_tests;

pub use self::{
    book::{Book, BookOptions},
    watch::{Nat, NatCounters, NatError, WatchOptions},
};
