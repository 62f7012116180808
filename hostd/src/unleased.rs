//! Flows that no lease can mark and that contradict nothing. Pure.

use std::net::IpAddr;

use vestigo_model::{Direction, Flow, Initiator};

use crate::decode::{is_icmp_error, proto};

const IGMP: u8 = 2;

/// Why nobody should expect a lease here; `None` for a flow that the VM began and that ought to have one.
#[must_use]
pub fn harmless(flow: &Flow) -> Option<&'static str> {
    if flow.notes.tunnel.is_some() {
        // The tunnel's own flow has a lease, or should have one.
        Some("inside-a-tunnel")
    } else if flow.direction == Direction::Incoming {
        // Others called. What the VM serves is its own affair.
        Some(if flow.sent_by_vm() > 0 { "vm-service" } else { "unanswered" })
    } else if flow.notes.folded.is_some() && flow.local().1 == 0 {
        // Of many ports and protocols.
        Some("folded-over-several-leases")
    } else if keeps_the_link_up(flow) {
        Some("link-control")
    } else if is_icmp(flow) && is_icmp_error(flow.proto, icmp_type(flow)) {
        // The kernel's word on a packet that came for a port that nobody holds.
        Some("icmp-error")
    } else if flow.initiator == Initiator::Unknown {
        Some("no-port-seen")
    } else {
        None
    }
}

/// Addresses, neighbours, groups: what a kernel says to its own link, of no use beyond it. (ARP makes no flow at all.)
fn keeps_the_link_up(flow: &Flow) -> bool {
    let dhcp = matches!((flow.orig_port, flow.resp_port), (68, 67) | (546, 547));
    match flow.proto {
        IGMP => true,
        // Multicast listeners, routers and neighbours.
        proto::ICMPV6 => matches!(icmp_type(flow), 130..=137 | 143) || is_link_multicast(flow.resp_ip),
        proto::UDP => dhcp || is_link_multicast(flow.resp_ip),
        _ => is_link_multicast(flow.resp_ip),
    }
}

fn is_link_multicast(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => matches!(ip.octets(), [224, 0, 0, _]),
        IpAddr::V6(ip) => matches!(ip.segments(), [0xff01 | 0xff02, ..]),
    }
}

const fn is_icmp(flow: &Flow) -> bool {
    matches!(flow.proto, proto::ICMP | proto::ICMPV6)
}

const fn icmp_type(flow: &Flow) -> u8 {
    let [kind, _] = flow.resp_port.to_be_bytes();
    kind
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use vestigo_model::*;

    use super::*;

    fn flow(proto: u8, orig: &str, resp: &str) -> Flow {
        let parse = |text: &str| text.parse::<std::net::SocketAddr>().map(|at| (at.ip(), at.port())).unwrap();
        let ((orig_ip, orig_port), (resp_ip, resp_port)) = (parse(orig), parse(resp));
        let time = Timestamp::from_nanos(0);
        Flow {
            host: HostId::new("hv1").unwrap(),
            tap: TapName::new("vnet0").unwrap(),
            domain: DomainUuid(uuid::Uuid::nil()),
            instance: InstanceId::new("i").unwrap(),
            vo: None,
            direction: Direction::Outgoing,
            orig_ip,
            orig_port,
            resp_ip,
            resp_port,
            proto,
            vlan: None,
            first: time,
            last: time,
            orig_packets: 1,
            orig_bytes: 40,
            resp_packets: 0,
            resp_bytes: 0,
            orig_flags: 0,
            resp_flags: 0,
            end_reason: EndReason::Idle,
            initiator: Initiator::Inferred,
            src_expected: Expected::Unknown,
            post_nat: None,
            notes: FlowNotes::default(),
            attribution: Attribution { quality: Quality::Instance, payload: None, reason: String::new() },
        }
    }

    #[test]
    fn only_what_a_kernel_says_to_its_link_needs_no_lease() {
        let reason = |proto, orig, resp| harmless(&flow(proto, orig, resp));
        for (proto, orig, resp) in [
            (17, "0.0.0.0:68", "255.255.255.255:67"),
            (17, "10.0.0.5:68", "10.0.0.1:67"),
            (17, "[fe80::1]:546", "[ff02::1:2]:547"),
            (2, "10.0.0.5:0", "224.0.0.22:0"),
            (17, "10.0.0.5:5353", "224.0.0.251:5353"),
            (17, "[fe80::1]:5353", "[ff02::fb]:5353"),
            (58, "[fe80::1]:0", "[2001:db8::1]:34560"), // 135: neighbour solicitation
            (58, "[::]:0", "[ff02::16]:36608"),         // 143: multicast listener report
        ] {
            assert_eq!(reason(proto, orig, resp), Some("link-control"), "{orig} {resp}");
        }
        assert_eq!(reason(1, "10.0.0.5:5000", "192.0.2.7:771"), Some("icmp-error"));
        assert_eq!(reason(58, "[2001:db8::1]:5000", "[2001:db8::2]:260"), Some("icmp-error"));
        for (proto, orig, resp) in [
            (17, "10.0.0.5:68", "192.0.2.7:53"),
            (17, "10.0.0.5:1900", "239.255.255.250:1900"),
            (1, "10.0.0.5:9", "192.0.2.7:2048"),
            (58, "[2001:db8::1]:9", "[2001:db8::2]:32768"),
            (6, "10.0.0.5:50000", "192.0.2.7:443"),
            (47, "10.0.0.5:0", "192.0.2.7:0"),
        ] {
            assert_eq!(reason(proto, orig, resp), None, "{orig} {resp}");
        }
    }

    #[test]
    fn what_others_begin_is_a_service_or_nothing() {
        let mut called = flow(6, "192.0.2.7:50000", "10.0.0.5:22");
        called.direction = Direction::Incoming;
        assert_eq!(harmless(&called), Some("unanswered"));
        called.resp_packets = 1;
        assert_eq!(harmless(&called), Some("vm-service"));
        let mut fragment = flow(17, "10.0.0.5:0", "192.0.2.7:0");
        fragment.initiator = Initiator::Unknown;
        assert_eq!(harmless(&fragment), Some("no-port-seen"));
    }
}
