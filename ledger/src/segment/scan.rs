//! Which flows are asked for; `reader::scan` finds them.

use std::net::IpAddr;

use vestigo_model::{Flow, TimeRange, Vo};

/// Which flows a question wants.
#[derive(Debug, Clone)]
pub struct FlowFilter {
    /// Flows that share an instant with it.
    pub range: TimeRange,
    /// Flows with this address on either side or as the translated one.
    pub ip: Option<IpAddr>,
    /// Flows of VMs of this VO.
    pub vo: Option<Vo>,
}

impl FlowFilter {
    /// Whether the flow is wanted: the one definition, also for flows that no file filter has seen.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let sides = [Some(flow.orig_ip), Some(flow.resp_ip), flow.post_nat.map(|nat| nat.ip)];
        self.range.touches(flow.first, Some(flow.last))
            && self.ip.is_none_or(|ip| sides.iter().flatten().any(|side| same(*side, ip)))
            && self.vo.as_ref().is_none_or(|vo| flow.vo.as_ref() == Some(vo))
    }
}

/// Whether two addresses are the same, IPv4-mapped IPv6 being IPv4.
pub(crate) fn same(a: IpAddr, b: IpAddr) -> bool {
    a.to_canonical() == b.to_canonical()
}
