//! `guest-agent selftest`: harmless attempts to break out of real payloads, started by the running daemon in the ordinary way.
//!
//! [`client`] stands in the VM. It lays baits there and in a second payload, starts payloads whose program is the agent
//! itself ([`inside`]), gives them [`Orders`] through standard input and reads a [`Finding`] for each probe of [`probes`].
//! What cannot be seen from inside (packets that leave, processes that survive) it judges itself. No part of a sandbox is
//! weakened or opened for this.

pub mod bait;
pub mod cli;
pub mod client;
pub mod inside;
pub mod payload;
pub mod probes;
pub mod report;
pub mod watch;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// The hidden sub-command that runs inside.
pub const VERB: &str = "selftest-probe";

/// What a probe came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The attempt failed, as it must.
    Held,
    /// Nothing was tried, and the detail says why.
    NotTested,
    /// The attempt succeeded.
    Broken,
}

impl Outcome {
    /// As in the report.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::NotTested => "not tested",
            Self::Broken => "BROKEN",
        }
    }
}

/// An outcome and how it was seen, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub outcome: Outcome,
    /// How.
    pub detail: String,
}

/// The attempt failed.
pub fn held(detail: impl Into<String>) -> Verdict {
    Verdict { outcome: Outcome::Held, detail: detail.into() }
}

/// The attempt succeeded.
pub fn broken(detail: impl Into<String>) -> Verdict {
    Verdict { outcome: Outcome::Broken, detail: detail.into() }
}

/// There was nothing to try.
pub fn not_tested(detail: impl Into<String>) -> Verdict {
    Verdict { outcome: Outcome::NotTested, detail: detail.into() }
}

/// What one probe found; one JSON line from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its name.
    pub probe: String,
    /// Rules of the WLCG recommendations that it bears on.
    pub rules: Vec<String>,
    /// What it came to.
    pub outcome: Outcome,
    /// How that was seen.
    pub detail: String,
}

/// Everything that the inside has to know: what to try, and where the baits of the VM and of the other payload lie.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Orders {
    /// A word that nothing else on this machine holds.
    pub token: String,
    /// Probes to run, in this order.
    pub probes: Vec<String>,
    /// Files that must not be there.
    pub files: Vec<PathBuf>,
    /// Processes of the VM, by its numbers.
    pub pids: Vec<i32>,
    /// Shared memory.
    pub keys: Vec<i32>,
    /// Message queues, with their slash.
    pub queues: Vec<String>,
    /// Abstract Unix sockets.
    pub names: Vec<String>,
    /// Unix sockets of the VM.
    pub sockets: Vec<PathBuf>,
    /// Listening ports of the VM.
    pub vm: Vec<SocketAddr>,
    /// Listening ports of another payload.
    pub neighbours: Vec<SocketAddr>,
    /// The VM's namespaces, as the links below `/proc/PID/ns` say.
    pub namespaces: BTreeMap<String, String>,
    /// The VM's name.
    pub hostname: String,
    /// What is mounted besides the usual.
    pub shown: Vec<PathBuf>,
    /// A host outside of the VM that gets three UDP packets.
    pub peer: Option<Ipv4Addr>,
    /// Another payload's address.
    pub foreign_address: Option<Ipv4Addr>,
    /// A host outside of the VM that gets two UDP packets over IPv6.
    pub peer6: Option<Ipv6Addr>,
    /// Another payload's IPv6 address.
    pub foreign_address6: Option<Ipv6Addr>,
    /// A port of another payload's block.
    pub foreign_port: Option<u16>,
    /// The limit on processes that is in force.
    pub pids_limit: u32,
    /// The limit on memory that is in force, bytes.
    pub memory_limit: u64,
}
