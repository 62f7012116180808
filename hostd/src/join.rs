//! From a tap's record and the lease book to the flow that the ledger keeps. Pure.

use vestigo_model::{Attribution, Basis, Expected, Flow, Quality};

use crate::{
    attribute::{AgentState, LeaseBook},
    capture::{Observed, Tapped},
};

/// Joins a record with what is known of its VM.
#[must_use]
pub fn join(tapped: &Tapped, book: &LeaseBook, agent: AgentState) -> Flow {
    let (observed, record) = (&tapped.observed, &tapped.record);
    let mut flow = Flow {
        host: observed.host.clone(),
        tap: observed.tap.name.clone(),
        domain: observed.domain,
        instance: observed.instance.clone(),
        vo: observed.vo.clone(),
        direction: record.direction,
        orig_ip: record.orig.0,
        orig_port: record.orig.1,
        resp_ip: record.resp.0,
        resp_port: record.resp.1,
        proto: record.proto,
        vlan: record.vlan,
        first: record.first,
        last: record.last,
        orig_packets: record.from_orig.0,
        orig_bytes: record.from_orig.1,
        resp_packets: record.from_resp.0,
        resp_bytes: record.from_resp.1,
        orig_flags: record.from_orig.2,
        resp_flags: record.from_resp.2,
        end_reason: record.end_reason,
        initiator: record.initiator,
        src_expected: Expected::Unknown,
        post_nat: None,
        notes: record.notes,
        attribution: Attribution { quality: Quality::Instance, payload: None, reason: String::new() },
    };
    flow.src_expected = source(&flow, observed).0;
    flow.attribution = book.attribute(&flow, record.began, agent);
    flow
}

/// Whether the VM *sent* from an address it was given, and by whose word. What was only sent to it says nothing.
#[must_use]
pub fn source(flow: &Flow, observed: &Observed) -> (Expected, Option<Basis>) {
    // What a tunnel carries has addresses of another network, which nobody gave to this VM.
    if flow.sent_by_vm() == 0 || flow.notes.tunnel.is_some() {
        return (Expected::Unknown, None);
    }
    observed.witness.memory().expected(&observed.tap.expected, flow.local().0, flow.last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use vestigo_model::{
        Direction, DomainUuid, EndReason, HostId, Initiator, InstanceId, Learnt, Mac, Tap, TapName, Timestamp, Tunnel,
    };

    use super::*;
    use crate::{meter::Metered, witness::TapWitness};

    fn record(orig: (&str, u16), resp: (&str, u16), proto: u8, sent: u64) -> Metered {
        let time = Timestamp::from_nanos(1);
        Metered {
            direction: Direction::Outgoing,
            orig: (orig.0.parse().unwrap(), orig.1),
            resp: (resp.0.parse().unwrap(), resp.1),
            proto,
            vlan: None,
            began: time,
            first: time,
            last: time,
            from_orig: (sent, 40 * sent, 0),
            from_resp: (0, 0, 0),
            end_reason: EndReason::Idle,
            initiator: Initiator::Seen,
            notes: vestigo_model::FlowNotes::default(),
        }
    }

    #[test]
    fn a_forged_source_is_said_to_be_one() {
        let tap = |expected: &[&str]| Tap {
            name: TapName::new("vnet0").unwrap(),
            mac: Mac([0; 6]),
            expected: expected.iter().map(|ip| ip.parse().unwrap()).collect(),
            learnt: Vec::new(),
            network: None,
            not_capturable: None,
        };
        let from = |ip, sent| record((ip, 1), ("192.0.2.1", 2), 6, sent);
        let src_expected = |record: &Metered, tap: &Tap| {
            let observed = Observed {
                host: HostId::new("hv1").unwrap(),
                domain: DomainUuid(uuid::Uuid::nil()),
                instance: InstanceId::new("i").unwrap(),
                vo: None,
                witness: TapWitness::new(tap.mac, tap.learnt.clone()),
                tap: tap.clone(),
            };
            let tapped = Tapped { observed: observed.into(), record: record.clone() };
            join(&tapped, &LeaseBook::new(), AgentState::Absent).src_expected
        };
        assert_eq!(src_expected(&from("10.0.0.5", 1), &tap(&["10.0.0.5"])), Expected::Yes);
        assert_eq!(src_expected(&from("10.0.0.6", 1), &tap(&["10.0.0.5"])), Expected::No);
        assert_eq!(src_expected(&from("10.0.0.6", 0), &tap(&["10.0.0.5"])), Expected::Unknown);
        assert_eq!(src_expected(&from("10.0.0.6", 1), &tap(&[])), Expected::Unknown);
        assert_eq!(src_expected(&from("169.254.3.4", 1), &tap(&["10.0.0.5"])), Expected::Unknown);
        let given =
            Learnt { ip: "10.0.0.5".parse().unwrap(), by: Basis::Dhcp, since: Timestamp::from_nanos(0), until: None };
        let by_dhcp = Tap { learnt: vec![given], ..tap(&[]) };
        assert_eq!(src_expected(&from("10.0.0.5", 1), &by_dhcp), Expected::Yes);
        assert_eq!(src_expected(&from("10.0.0.6", 1), &by_dhcp), Expected::No);
        let mut inner = from("192.168.7.1", 1);
        inner.notes.tunnel = Some(Tunnel::Vxlan(7));
        assert_eq!(src_expected(&inner, &by_dhcp), Expected::Unknown, "another network's address");
    }
}
