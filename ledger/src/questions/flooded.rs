//! VMs that flooded from more addresses than the host keeps apart: what they sent is counted in one sum, and whoever asks for an address
//! is told that it may be in there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Flow, TimeRange, Timestamp};

use super::{View, parts::HostFacts, parts::Totals, who};

/// What stands in the place of the VM's address in such a record.
pub(crate) const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// Such a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flooded {
    /// The VM.
    pub host_facts: HostFacts,
    /// Earliest packet of the sums.
    pub first: Timestamp,
    /// Latest.
    pub last: Timestamp,
    /// How many conversations, at most, of whatever address, port and protocol.
    pub conversations: u64,
    /// What they count.
    pub totals: Totals,
}

/// Whether the record stands for conversations of any address.
pub(crate) fn is_of_any_address(flow: &Flow) -> bool {
    flow.notes.folded.is_some() && flow.local().0.is_unspecified()
}

/// The VMs that may have used any address in the range.
pub(crate) fn of(view: &View, range: TimeRange, wanted: impl Fn(&Flow) -> bool) -> Vec<Flooded> {
    let mut found: BTreeMap<_, Flooded> = BTreeMap::new();
    let touching = |flow: &&Flow| range.touches(flow.first, Some(flow.last)) && wanted(flow);
    for flow in view.floods.iter().filter(touching) {
        let instance = who::interval(&view.facts.instances, flow);
        let key = (&flow.host, flow.domain, instance.map(|instance| instance.start));
        let one = found.entry(key).or_insert_with(|| Flooded {
            host_facts: who::facts_of(instance, flow),
            first: flow.first,
            last: flow.last,
            conversations: 0,
            totals: Totals::default(),
        });
        one.first = one.first.min(flow.first);
        one.last = one.last.max(flow.last);
        one.conversations = one.conversations.saturating_add(flow.notes.folded.map_or(0, |folded| folded.flows));
        one.totals.add(flow);
    }
    found.into_values().collect()
}
