//! The decoder against etherparse: what its strict slices take for a whole packet, both read alike.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{Packet, ethernet, proto};

/// Addresses, protocol and ports as etherparse reads them; `None` where it does not read a packet.
fn theirs(frame: &[u8]) -> Option<(IpAddr, IpAddr, u8, u16, u16)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (src, dst) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => return None,
    };
    let (proto, ports) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (proto::TCP, (tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => (proto::UDP, (udp.source_port(), udp.destination_port())),
        _ => return None,
    };
    Some((src, dst, proto, ports.0, ports.1))
}

fn ours(packet: &Packet) -> (IpAddr, IpAddr, u8, u16, u16) {
    (packet.src_ip(), packet.dst_ip(), packet.proto, packet.src_port, packet.dst_port)
}

fn frame(v6: bool, tags: u8, tcp: bool, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let (one, two) = (7u16.try_into().unwrap(), 9u16.try_into().unwrap());
    let ip = match (tags, v6) {
        (0, false) => link.ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64),
        (0, true) => link.ipv6([1; 16], [2; 16], 64),
        (1, false) => link.single_vlan(one).ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64),
        (1, true) => link.single_vlan(one).ipv6([1; 16], [2; 16], 64),
        (_, false) => link.double_vlan(one, two).ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64),
        (_, true) => link.double_vlan(one, two).ipv6([1; 16], [2; 16], 64),
    };
    if tcp {
        ip.tcp(ports.0, ports.1, 1, 1).write(&mut frame, payload).unwrap();
    } else {
        ip.udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
    }
    frame
}

proptest! {
    #[test]
    fn reads_what_etherparse_reads(
        v6: bool, tags in 0u8..3, tcp: bool, ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 0..64),
        damage in prop::collection::vec((12usize..120, any::<u8>()), 0..3),
    ) {
        let mut frame = frame(v6, tags, tcp, ports, &payload);
        if damage.is_empty() {
            let packet = ethernet(&frame, frame.len(), None).unwrap();
            prop_assert_eq!((packet.src_port, packet.dst_port), ports);
            prop_assert_eq!([packet.vlan, packet.inner_vlan], [(tags > 0).then_some(7), (tags > 1).then_some(9)]);
        }
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) { *byte = value; }
        }
        if let Some(theirs) = theirs(&frame) {
            prop_assert_eq!(ours(&ethernet(&frame, frame.len(), None).unwrap()), theirs);
        }
    }
}
