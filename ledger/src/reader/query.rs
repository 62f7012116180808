//! Which flows are wanted, in the words of files.

use std::{collections::BTreeSet, net::IpAddr};

use vestigo_model::{DomainUuid, Flow, HostId, PayloadUid, TimeRange, Vo};

use super::rows::Test;
use crate::segment::{scan::FlowFilter, tables::address_text};

/// Which flows a question wants: all of what is set has to fit. What it does not know (ports, sizes) is for the callback to test.
#[derive(Debug, Clone)]
pub struct FlowQuery {
    /// Flows that share an instant with it.
    pub range: TimeRange,
    /// Flows with one of these addresses on either side or as the translated one; empty: with any.
    pub ips: BTreeSet<IpAddr>,
    /// Flows of VMs of this VO.
    pub vo: Option<Vo>,
    /// Flows of this hypervisor.
    pub host: Option<HostId>,
    /// Flows of this VM.
    pub domain: Option<DomainUuid>,
    /// Flows that were recorded as this payload's.
    pub payload: Option<PayloadUid>,
}

impl FlowQuery {
    /// Every flow of the time.
    #[must_use]
    pub const fn all(range: TimeRange) -> Self {
        Self { range, ips: BTreeSet::new(), vo: None, host: None, domain: None, payload: None }
    }

    /// Whether the flow is wanted: the one definition, also for flows that no file filter has seen.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        self.range.touches(flow.first, Some(flow.last))
            && (self.ips.is_empty() || has_any(flow, &self.ips))
            && self.vo.as_ref().is_none_or(|vo| flow.vo.as_ref() == Some(vo))
            && self.host.as_ref().is_none_or(|host| flow.host == *host)
            && self.domain.is_none_or(|domain| flow.domain == domain)
            && self.payload.is_none_or(|payload| flow.attribution.payload == Some(payload))
    }

    pub(super) fn tests(&self) -> Vec<Test> {
        let one = |columns, value: Option<String>| value.map(|value| Test { columns, values: BTreeSet::from([value]) });
        let ips = (!self.ips.is_empty()).then(|| Test { columns: ADDRESSES, values: self.address_texts() });
        let domain = one(&["domain"], self.domain.map(|domain| domain.to_string()));
        let payload = one(&["payload"], self.payload.map(|payload| payload.to_string()));
        let vo = one(&["vo"], self.vo.as_ref().map(ToString::to_string));
        [ips, domain, payload, vo].into_iter().flatten().collect()
    }

    pub(super) fn address_texts(&self) -> BTreeSet<String> {
        self.ips.iter().map(|ip| address_text(*ip)).collect()
    }
}

/// The columns of flows that hold addresses.
pub(super) const ADDRESSES: &[&str] = &["orig_ip", "resp_ip", "nat_ip"];

fn has_any(flow: &Flow, ips: &BTreeSet<IpAddr>) -> bool {
    let own = [Some(flow.orig_ip), Some(flow.resp_ip), flow.post_nat.map(|nat| nat.ip)];
    own.into_iter().flatten().any(|ip| ips.contains(&ip.to_canonical()))
}

impl From<&FlowFilter> for FlowQuery {
    fn from(filter: &FlowFilter) -> Self {
        let ips = filter.ip.map(|ip| ip.to_canonical()).into_iter().collect();
        Self { ips, vo: filter.vo.clone(), ..Self::all(filter.range) }
    }
}
