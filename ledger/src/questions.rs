//! The investigator's questions. One module each: a question, an answer, and a pure function between them over the flows
//! and facts that touch the window. Every answer keeps host facts and guest claims in separate objects and carries the
//! coverage of its window.

pub mod coverage;
pub mod elsewhere;
mod fetch;
pub mod flooded;
mod icmp;
pub mod ips;
pub mod lease;
pub mod nat;
pub mod parts;
pub mod payload;
pub mod pilots;
pub mod reach;
mod reasons;
pub mod scitags;
pub mod sums;
pub mod timeline;
pub mod who;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use vestigo_model::{Flow, TimeRange, Translation};

use crate::reader::Facts;

/// How far host's and guest's clocks, and a record's and its packet's time, may lie apart before a join is refused.
pub const TOLERANCE: Duration = Duration::from_secs(2);

/// What a question is answered from.
#[derive(Debug, Default, Clone)]
pub struct View {
    /// Flows that may matter, by first packet.
    pub flows: Vec<Flow>,
    /// Flows with another name of a VM that the question found, behind or before the hypervisor's NAT.
    pub beside: Vec<Flow>,
    /// Records of VMs that flooded from more addresses than the host keeps apart: any address may be in them.
    pub floods: Vec<Flow>,
    /// Facts that touch the window or one of the flows.
    pub facts: Facts,
    /// What the ledger speaks of altogether.
    pub extent: Option<TimeRange>,
    /// Translations that the host told apart from flow records, and that may have held in the window.
    pub translations: Vec<Translation>,
    /// What manifests alone say of the window's coverage.
    pub reach: reach::Reach,
}

/// The first of the addresses that the flow has, if any.
fn name_in(flow: &Flow, names: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let own = [Some(flow.orig_ip), Some(flow.resp_ip), flow.post_nat.map(|nat| nat.ip)];
    own.into_iter().flatten().map(|ip| ip.to_canonical()).filter(|ip| names.contains(ip)).min()
}
