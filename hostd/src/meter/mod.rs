//! The flow table of one tap: packets in, biflow records out. Pure: its clock is the packets' and the caller's.
//!
//! ```text
//! packet ──► entry (originator kept) ── every `active` ──► record, reason active     (deltas; entry stays)
//!                 │                  └── quiet for `idle` ► record, reason idle
//!                 ├── FIN both ways or RST, then `linger` ► record, reason end-of-flow
//!                 ├── table full: the quietest goes ──────► record, reason lack-of-resources
//!                 └── tap gone, hostd stops ──────────────► record, reason forced
//! ```
//! The first record of a flow that lasts is written after `first`, so that a question asked during an incident does not
//! wait for the active timeout. The sum over a flow's records is its total.

mod fragments;
mod table;

use std::time::Duration;

pub use fragments::Fragments;
pub use table::{Metered, Table};

/// Timeouts and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterOptions {
    /// Age at which a flow that goes on gets its first record.
    pub first: Duration,
    /// Time between two records of a flow that goes on.
    pub active: Duration,
    /// Quiet time that ends a TCP flow.
    pub idle_tcp: Duration,
    /// Quiet time that ends a UDP flow.
    pub idle_udp: Duration,
    /// Quiet time that ends any other flow.
    pub idle_other: Duration,
    /// How long a closed TCP flow still takes stragglers.
    pub linger: Duration,
    /// Most flows held at once for this tap.
    pub max_flows: usize,
}

impl Default for MeterOptions {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(2),
            active: Duration::from_secs(60),
            idle_tcp: Duration::from_secs(300),
            idle_udp: Duration::from_secs(60),
            idle_other: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            max_flows: 65_536,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
