//! A frame at the tap. The decoder is pure and comes as its files, without the rest of hostd.
//!
//! Where etherparse can read the packet, both must read the same.
#![no_main]

#[path = "../../../hostd/src/decode/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the rest of hostd uses more of it")]
mod decode;

use std::net::IpAddr;

use decode::{Packet, proto};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(packet) = decode::ethernet(data, data.len(), None) else { return };
    assert!(packet.ip_bytes <= data.len() as u64, "a packet is not longer than its frame");
    for tag in [packet.vlan, packet.inner_vlan] {
        assert!(tag.is_none_or(|vlan| vlan < 4096), "a VLAN id has 12 bits");
    }
    if packet.portless() {
        assert_eq!((packet.src_port, packet.dst_port), (0, 0));
    }
    assert!(packet.payload_of(data).len() <= data.len());
    if let Some(spoken) = decode::spoken_of(data, &packet) {
        assert!(decode::is_icmp_error(packet.proto, packet.icmp.expect("an error is ICMP").0));
        assert_eq!(spoken.vlan, packet.vlan);
    }
    if let Some(inside) = decode::inside(data, &packet, data.len()) {
        assert!(inside.tunnel.is_some() && packet.proto == proto::UDP);
        assert!(inside.ip_bytes <= data.len() as u64);
    }
    let _ = decode::arp(data, None);
    compare(data, &packet);
});

/// The strict slices of etherparse: what it takes as a whole packet is one. It walks any number of extension headers.
fn compare(data: &[u8], packet: &Packet) {
    if packet.headless {
        return;
    }
    let Ok(sliced) = SlicedPacket::from_ethernet(data) else { return };
    let (src, dst): (IpAddr, IpAddr) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => return,
    };
    assert_eq!((packet.src_ip(), packet.dst_ip()), (src, dst));
    let ports = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (proto::TCP, tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (proto::UDP, udp.source_port(), udp.destination_port()),
        _ => return,
    };
    assert_eq!((packet.proto, packet.src_port, packet.dst_port), ports);
}
