//! What hostd shows of itself: one document, asked for on a socket of its own (docs/formats/status.md).
//!
//! A process with hostd's rights opens no network port. `hostd top` and `hostd metrics` are other processes that read this document.

mod metrics;
mod socket;
mod textfile;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vestigo_model::{Cloud, DomainUuid, HostId, InstanceId, Label, Mac, Quality, TapName, Timestamp, Vo};

pub use self::{
    metrics::open_metrics,
    socket::{Ask, StatusError, fetch, group_id, serve},
    textfile::write_regularly,
};

/// Version of the document: raised when a member changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// Counters by name: totals since hostd began, each the name of a metric. Whatever can be lost at a stage is one of them.
pub type Counters = BTreeMap<String, u64>;

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The hypervisor.
    pub host: HostId,
    /// hostd's version.
    pub hostd: String,
    /// When this was said.
    pub time: Timestamp,
    /// Since when hostd runs.
    pub since: Timestamp,
    /// Bytes in memory: `resident` of the process, `leases` of the lease book.
    pub memory: BTreeMap<String, u64>,
    /// What waits now in the queues between the parts.
    pub waiting: BTreeMap<String, u64>,
    /// Counters of the host's own stages: `ledger`, … each stage has its own names.
    pub stages: BTreeMap<String, Counters>,
    /// How the flows of each VO were attributed.
    pub vos: Vec<VoStatus>,
    /// The VMs that run.
    pub vms: Vec<VmStatus>,
}

/// One VO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VoStatus {
    /// `None` is *unmapped*.
    pub vo: Option<Vo>,
    /// By quality and reason.
    pub attribution: Vec<ShareStatus>,
}

/// Flow records of one quality and reason, packets and bytes both ways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShareStatus {
    /// How they were attributed.
    pub quality: Quality,
    /// Why not better; empty for `lease`.
    pub reason: String,
    /// Records.
    pub records: u64,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmStatus {
    /// libvirt's UUID.
    pub domain: DomainUuid,
    /// The cloud's id.
    pub instance: InstanceId,
    /// libvirt's name.
    pub name: Label,
    /// Who made it.
    pub cloud: Cloud,
    /// `None` is *unmapped*.
    pub vo: Option<Vo>,
    /// `absent`, `silent`, `present`.
    pub agent: String,
    /// Payloads that live.
    pub payloads: u64,
    /// Bytes that its payloads take in the lease book, about.
    pub lease_bytes: u64,
    /// Its taps.
    pub taps: Vec<TapStatus>,
    /// How its flows were attributed.
    pub attribution: Vec<ShareStatus>,
    /// Counters: contradictions, spoofing, what was left out.
    pub counters: Counters,
}

/// One tap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TapStatus {
    /// Kernel name.
    pub name: TapName,
    /// The guest's address on it.
    pub mac: Mac,
    /// Why its frames are not seen; `None` when they are.
    pub unseen: Option<String>,
    /// Flows held now.
    pub flows: u64,
    /// Per second, of the last second.
    pub rates: Rates,
    /// Counters of capture, meter and witness.
    pub counters: Counters,
    /// Frames that are no IP packet, by reason.
    pub undecodable: Counters,
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Packets that the VM sends.
    pub packets_from_vm: f64,
    /// Their bytes.
    pub bytes_from_vm: f64,
    /// Packets that go to the VM.
    pub packets_to_vm: f64,
    /// Their bytes.
    pub bytes_to_vm: f64,
}

/// Bytes of this process in memory; 0 if the kernel does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kibibytes.map_or(0, |number| number * 1024)
}

#[cfg(test)]
mod tests;
