//! Which leases mark a flow: the arithmetic of attribution. Time is the caller's.

use std::net::{IpAddr, Ipv6Addr};

use crate::{Direction, Flow, Initiator, Lease, Payload, PortBlock};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// How closely a lease marks a flow; of several, only the closest count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// The VM sent it from its own address: whichever part of the VM holds that address, unless ports say more.
    OwnAddress,
    /// Its port, or echo identifier, lies in the block.
    Ports,
    /// Its address is the payload's alone, whatever the port.
    Address,
}

/// What a lease has to hold to mark a flow: the flow's side of the arithmetic, by which an index finds leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The VM's ports, each of which the block has to hold: one, or the range of a folded record. `None` where a block marks nothing.
    pub ports: Option<PortBlock>,
    /// The VM's address, where a lease can be one.
    pub address: Option<Ipv6Addr>,
    /// The VM began it, or speaks in a conversation that was met in the middle.
    pub left_the_vm: bool,
}

impl Flow {
    /// What marks this flow.
    ///
    /// A port block marks what *leaves* the VM. A packet to one of its ports says nothing about a payload until the VM has
    /// answered from that port, and a connection that another machine began never belongs to a payload behind source NAT. Addresses
    /// and ports inside a tunnel are of another network, and mark nothing.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let (ip, port) = self.local();
        let ip = ip.to_canonical();
        let left_the_vm = match self.direction {
            Direction::Outgoing => true,
            Direction::Incoming => self.initiator != Initiator::Seen && self.sent_by_vm() > 0,
        };
        let outside = self.notes.tunnel.is_none();
        let by_port = match (self.proto, self.direction) {
            _ if !outside => false,
            (TCP | UDP | SCTP, _) => left_the_vm,
            (ICMP, Direction::Outgoing) => ip.is_ipv4(),
            (ICMPV6, Direction::Outgoing) => ip.is_ipv6(),
            _ => false,
        };
        let last = self.notes.folded.map_or(port, |folded| folded.last_port.max(port));
        Trace {
            ports: (by_port && port != 0).then_some(PortBlock { first: port, last }),
            address: if let IpAddr::V6(ip) = ip { Some(ip).filter(|_| outside) } else { None },
            left_the_vm,
        }
    }

    /// Whether the lease by itself marks this flow's packets. Of a folded record, a block has to hold every port.
    #[must_use]
    pub fn marked_by(&self, lease: &Lease) -> bool {
        self.trace().marked_by(lease)
    }

    /// Those of the VM's payloads (and own parts) whose leases mark this flow most closely, at whatever time they held
    /// them. A payload's own IPv6 address says more than any port block: ports are the VM's, and there are no blocks on it.
    pub fn marked<'a>(&self, payloads: impl IntoIterator<Item = &'a Payload>) -> Vec<&'a Payload> {
        let trace = self.trace();
        let marked: Vec<(Mark, &Payload)> =
            payloads.into_iter().filter_map(|payload| Some((trace.mark(payload)?, payload))).collect();
        let closest = marked.iter().map(|(mark, _)| *mark).max();
        marked.into_iter().filter(|(mark, _)| Some(*mark) == closest).map(|(_, payload)| payload).collect()
    }
}

impl Trace {
    fn marked_by(&self, lease: &Lease) -> bool {
        match lease {
            Lease::Address(own) => self.address == Some(*own),
            Lease::Ports(block) => self.ports.is_some_and(|of| block.contains(of.first) && block.contains(of.last)),
        }
    }

    /// How closely the payload's leases mark the flow, if they do.
    fn mark(&self, payload: &Payload) -> Option<Mark> {
        let own = !payload.claim.holder.is_payload();
        let of_lease = |lease: &Lease| match lease {
            _ if !self.marked_by(lease) => None,
            Lease::Ports(_) => Some(Mark::Ports),
            Lease::Address(_) if !own => Some(Mark::Address),
            // Others may call on the VM's own address; what they began is not the VM's traffic.
            Lease::Address(_) => self.left_the_vm.then_some(Mark::OwnAddress),
        };
        payload.claim.leases.iter().filter_map(of_lease).max()
    }
}

impl Payload {
    /// How closely its leases mark the flow, if they do.
    #[must_use]
    pub fn mark(&self, flow: &Flow) -> Option<Mark> {
        flow.trace().mark(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::*;

    fn flow(direction: Direction, initiator: Initiator, proto: u8, local: &str, answered: u64) -> Flow {
        let local: std::net::SocketAddr = local.parse().unwrap();
        let local = (local.ip(), local.port());
        let peer = (if local.0.is_ipv4() { "192.0.2.1" } else { "2001:db8:9::1" }.parse().unwrap(), 443);
        let (orig, resp) = if direction == Direction::Outgoing { (local, peer) } else { (peer, local) };
        Flow {
            host: HostId::new("hv1").unwrap(),
            tap: TapName::new("vnet0").unwrap(),
            domain: DomainUuid(Uuid::nil()),
            instance: InstanceId::new("i").unwrap(),
            vo: None,
            direction,
            orig_ip: orig.0,
            orig_port: orig.1,
            resp_ip: resp.0,
            resp_port: resp.1,
            proto,
            vlan: None,
            first: Timestamp::from_nanos(0),
            last: Timestamp::from_nanos(0),
            orig_packets: 1,
            orig_bytes: 40,
            resp_packets: answered,
            resp_bytes: 40 * answered,
            orig_flags: 0,
            resp_flags: 0,
            end_reason: EndReason::Idle,
            initiator,
            src_expected: Expected::Unknown,
            post_nat: None,
            notes: FlowNotes::default(),
            attribution: Attribution { quality: Quality::Instance, payload: None, reason: String::new() },
        }
    }

    fn marked(direction: Direction, initiator: Initiator, proto: u8, local: &str, answered: u64) -> bool {
        let flow = flow(direction, initiator, proto, local, answered);
        flow.marked_by(&Lease::Ports(PortBlock { first: 20_480, last: 21_503 }))
    }

    #[test]
    fn a_block_marks_what_leaves_from_it() {
        use Direction::{Incoming, Outgoing};
        use Initiator::{Inferred, Seen};
        assert!(marked(Outgoing, Seen, TCP, "10.0.0.5:20480", 0));
        assert!(marked(Outgoing, Seen, UDP, "10.0.0.5:21503", 0));
        assert!(marked(Outgoing, Seen, SCTP, "10.0.0.5:21503", 0));
        assert!(marked(Outgoing, Seen, ICMP, "10.0.0.5:21000", 0), "echo identifier");
        assert!(!marked(Outgoing, Seen, TCP, "10.0.0.5:20479", 0));
        assert!(!marked(Outgoing, Seen, TCP, "10.0.0.5:21504", 0));
        assert!(!marked(Outgoing, Seen, 47, "10.0.0.5:20480", 0), "GRE has no ports");
        assert!(!marked(Incoming, Seen, TCP, "10.0.0.5:20480", 1), "somebody else's call, refused");
        assert!(!marked(Incoming, Inferred, UDP, "10.0.0.5:20480", 0), "a stray packet");
        assert!(marked(Incoming, Inferred, TCP, "10.0.0.5:20480", 1), "met in the middle, and the VM speaks");
    }

    #[test]
    fn a_block_marks_the_same_of_ipv6() {
        use Direction::{Incoming, Outgoing};
        use Initiator::Seen;
        assert!(marked(Outgoing, Seen, TCP, "[2001:db8::1]:20480", 0));
        assert!(marked(Outgoing, Seen, ICMPV6, "[2001:db8::1]:20480", 0), "echo identifier");
        assert!(!marked(Outgoing, Seen, ICMP, "[2001:db8::1]:20480", 0), "no such thing");
        assert!(!marked(Outgoing, Seen, ICMPV6, "10.0.0.5:20480", 0), "nor this");
        assert!(!marked(Incoming, Seen, ICMPV6, "[2001:db8::1]:20480", 1), "somebody else's ping");
        assert!(marked(Outgoing, Seen, TCP, "[::ffff:10.0.0.5]:20480", 0), "IPv4 in another dress");
    }

    #[test]
    fn a_folded_record_is_marked_by_a_block_that_holds_all_of_it() {
        let lease = Lease::Ports(PortBlock { first: 20_480, last: 21_503 });
        let folded = |first: u16, last_port| {
            let mut flow = flow(Direction::Outgoing, Initiator::Seen, TCP, &format!("10.0.0.5:{first}"), 0);
            flow.notes.folded = Some(Folded { flows: 9, last_port });
            flow.marked_by(&lease)
        };
        assert!(folded(20_480, 21_503) && folded(21_000, 21_000));
        assert!(!folded(20_479, 20_490) && !folded(21_503, 21_504), "a part of it is somebody else's");
        assert!(!folded(20_000, 22_000));
    }

    #[test]
    fn nothing_inside_a_tunnel_is_marked() {
        for (local, lease) in [
            ("10.0.0.5:20480", Lease::Ports(PortBlock { first: 20_480, last: 21_503 })),
            ("[2001:db8::7]:1", Lease::Address("2001:db8::7".parse().unwrap())),
        ] {
            let mut flow = flow(Direction::Outgoing, Initiator::Seen, TCP, local, 1);
            assert!(flow.marked_by(&lease));
            flow.notes.tunnel = Some(Tunnel::Vxlan(7));
            assert!(!flow.marked_by(&lease), "{local}");
        }
    }

    #[test]
    fn what_has_no_port_lies_in_no_block() {
        let neighbour = flow(Direction::Outgoing, Initiator::Inferred, ICMPV6, "[2001:db8::1]:0", 0);
        assert!(!neighbour.marked_by(&Lease::Ports(PortBlock { first: 0, last: 1023 })));
    }

    #[test]
    fn an_address_marks_all_its_traffic() {
        let own = flow(Direction::Outgoing, Initiator::Seen, 47, "[2001:db8::7]:0", 0);
        assert!(own.marked_by(&Lease::Address("2001:db8::7".parse().unwrap())));
        assert!(!own.marked_by(&Lease::Address("2001:db8::8".parse().unwrap())));
    }

    fn payload(n: u128, holder: Holder, leases: Vec<Lease>) -> Payload {
        let time = Timestamp::from_nanos(0);
        let text = |text: &str| Label::new(text).unwrap();
        Payload {
            host: HostId::new("hv1").unwrap(),
            domain: DomainUuid(Uuid::nil()),
            received: time,
            claimed: time,
            claim: PayloadClaim {
                uid: PayloadUid(Uuid::from_u128(n)),
                holder,
                pilot: PilotId::new("p").unwrap(),
                payload: PayloadId::new("t").unwrap(),
                user: User { issuer: text("i"), subject: text("s") },
                vo: Vo::new("atlas").unwrap(),
                trust: Trust::AssertedByVo,
                task: None,
                token: None,
                access: None,
                executable: None,
                interpreter: None,
                command: vec![],
                leases,
                isolation: BTreeMap::new(),
            },
            end: None,
        }
    }

    #[test]
    fn the_closest_mark_counts() {
        let ports = |first, last| Lease::Ports(PortBlock { first, last });
        let address = |text: &str| Lease::Address(text.parse().unwrap());
        let all = [
            payload(1, Holder::System, vec![ports(1024, 2047), address("2001:db8::1")]),
            payload(2, Holder::Pilot, vec![ports(2048, 4095)]),
            payload(3, Holder::Payload, vec![ports(20_480, 21_503), address("2001:db8::a")]),
        ];
        let who = |direction, initiator, proto, local: &str| -> Vec<u128> {
            let marked = flow(direction, initiator, proto, local, 1).marked(&all);
            marked.iter().map(|payload| payload.claim.uid.0.as_u128()).collect()
        };
        let sent = |proto, local| who(Direction::Outgoing, Initiator::Seen, proto, local);
        assert_eq!(sent(TCP, "10.0.0.5:20500"), [3]);
        assert_eq!(sent(TCP, "[2001:db8::a]:1024"), [3], "its address, whatever the port");
        assert_eq!(sent(ICMPV6, "[2001:db8::a]:3000"), [3]);
        assert_eq!(sent(TCP, "[2001:db8::1]:2048"), [2], "the VM's address: the ports tell");
        assert_eq!(sent(TCP, "[2001:db8::1]:20500"), [3]);
        assert_eq!(sent(TCP, "[2001:db8::1]:60000"), [1], "the VM's address, and no port that tells more");
        assert_eq!(sent(TCP, "10.0.0.5:60000"), [0u128; 0]);
        let called = who(Direction::Incoming, Initiator::Seen, TCP, "[2001:db8::1]:22");
        assert!(called.is_empty(), "a service of the VM is nobody's traffic");
        assert_eq!(who(Direction::Incoming, Initiator::Seen, TCP, "[2001:db8::a]:22"), [3]);
    }
}
