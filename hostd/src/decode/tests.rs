#![allow(clippy::unwrap_used)]
use super::*;
use etherparse::{IpNumber, PacketBuilder, ip_number::*};
use proptest::prelude::*;

/// A whole frame, nothing cut.
fn decode(frame: &[u8]) -> Result<Packet, Undecodable> {
    ethernet(frame, frame.len(), None)
}

const VM: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const GW: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];

#[test]
fn tcp_with_a_tag() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(VM, GW)
        .single_vlan(42u16.try_into().unwrap())
        .ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64)
        .tcp(41022, 443, 1, 1000)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    let packet = decode(&frame).unwrap();
    assert_eq!(packet.vlan, Some(42));
    assert_eq!((packet.src_port, packet.dst_port, packet.proto), (41022, 443, proto::TCP));
    assert_eq!(packet.tcp_flags, tcp_flag::SYN);
    assert_eq!(packet.ip_bytes, 40);
}

#[test]
fn an_offloaded_frame_counts_in_full() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(VM, GW)
        .ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64)
        .tcp(1, 2, 1, 1)
        .write(&mut frame, &vec![0; 60_000])
        .unwrap();
    assert_eq!(decode(&frame).unwrap().ip_bytes, 60_040);
    // Total length 0, as the kernel writes for a BIG TCP frame: what was captured counts.
    frame[16] = 0;
    frame[17] = 0;
    assert_eq!(decode(&frame).unwrap().ip_bytes, 60_040);
    // Cut by a short buffer, the header still tells the truth.
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(VM, GW).ipv6([1; 16], [2; 16], 64).udp(5, 6).write(&mut frame, &vec![0; 1000]).unwrap();
    let packet = ethernet(&frame[..128], frame.len(), None).unwrap();
    assert_eq!(packet.ip_bytes, 1048);
    assert_eq!(packet.src_port, 5);
}

#[test]
fn ping_has_its_identifier() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(VM, GW)
        .ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64)
        .icmpv4_echo_request(0x1234, 7)
        .write(&mut frame, b"abc")
        .unwrap();
    let packet = decode(&frame).unwrap();
    assert_eq!((packet.src_port, packet.icmp), (0x1234, Some((8, 0))));
}

#[test]
fn ping_of_ipv6_has_its_identifier() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(VM, GW)
        .ipv6([1; 16], [2; 16], 64)
        .icmpv6_echo_request(0x1234, 7)
        .write(&mut frame, b"abc")
        .unwrap();
    let packet = decode(&frame).unwrap();
    assert_eq!((packet.proto, packet.src_port, packet.icmp), (proto::ICMPV6, 0x1234, Some((128, 0))));
}

/// An error of the VM's about a packet that came for its port 21000.
#[test]
fn an_icmp_error_has_the_port_it_speaks_of() {
    let mut quoted = Vec::new();
    PacketBuilder::ipv4([192, 0, 2, 7], [10, 0, 0, 5], 64).udp(53, 21_000).write(&mut quoted, b"late").unwrap();
    let mut frame = Vec::new();
    let unreachable = etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    PacketBuilder::ethernet2(VM, GW)
        .ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64)
        .icmpv4(unreachable)
        .write(&mut frame, &quoted)
        .unwrap();
    let packet = decode(&frame).unwrap();
    assert_eq!((packet.src_port, packet.icmp), (21_000, Some((3, 3))));

    let mut quoted = Vec::new();
    PacketBuilder::ipv6([2; 16], [1; 16], 64).icmpv6_echo_reply(21_007, 1).write(&mut quoted, b"late").unwrap();
    let mut frame = Vec::new();
    let unreachable = etherparse::Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port);
    PacketBuilder::ethernet2(VM, GW).ipv6([1; 16], [2; 16], 64).icmpv6(unreachable).write(&mut frame, &quoted).unwrap();
    let packet = decode(&frame).unwrap();
    assert_eq!((packet.src_port, packet.icmp), (21_007, Some((1, 4))));
    let spoken = spoken_of(&frame, &packet).unwrap();
    assert_eq!((spoken.src, spoken.dst, spoken.src_port), (packet.dst, packet.src, 21_007));
}

#[test]
fn sctp_has_ports() {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(VM, GW).ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64);
    builder.write(&mut frame, etherparse::IpNumber(proto::SCTP), &[0x52, 0x08, 0x01, 0xbb, 0, 0, 0, 0]).unwrap();
    let packet = decode(&frame).unwrap();
    assert_eq!((packet.src_port, packet.dst_port, packet.proto), (21_000, 443, proto::SCTP));
}

#[test]
fn the_first_fragment_has_ports_and_later_ones_say_whose_they_are() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(VM, GW)
        .ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64)
        .udp(21_000, 53)
        .write(&mut frame, &[7; 400])
        .unwrap();
    frame[18..20].copy_from_slice(&77u16.to_be_bytes());
    frame[20] = 0x20; // more fragments
    let first = decode(&frame).unwrap();
    assert_eq!((first.src_port, first.dst_port), (21_000, 53));
    assert_eq!(first.fragment, Some(Fragment { id: 77, header: proto::UDP, first: true }));
    frame[20] = 0x00;
    frame[21] = 0x33; // offset
    let later = decode(&frame).unwrap();
    assert_eq!((later.src_port, later.dst_port), (0, 0), "what stands there is payload, not ports");
    assert_eq!(later.fragment, Some(Fragment { id: 77, header: proto::UDP, first: false }));
}

/// An IPv6 frame whose first extension header is `kind` and whose bytes behind the IPv6 header are `behind`.
fn ipv6_with(kind: u8, behind: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(VM, GW).ipv6([1; 16], [2; 16], 64);
    builder.write(&mut frame, IpNumber(proto::UDP), behind).unwrap();
    frame[20] = kind; // the builder knows whole chains only
    frame
}

#[test]
fn an_ipv6_fragment_is_found_behind_other_headers() {
    let udp = [0x52, 0x08, 0, 53, 0, 8, 0, 0];
    for (kind, before) in [
        (IPV6_FRAG.0, vec![]),
        (IPV6_HOP_BY_HOP.0, vec![IPV6_FRAG.0, 0, 1, 4, 0, 0, 0, 0]),
        (IPV6_ROUTE.0, [vec![IPV6_FRAG.0, 1], vec![0; 14]].concat()),
        (IPV6_DEST_OPTIONS.0, vec![IPV6_FRAG.0, 0, 1, 4, 0, 0, 0, 0]),
        (AUTH.0, [vec![IPV6_FRAG.0, 4], vec![0; 22]].concat()),
    ] {
        let fragment = |offset: u8, more: u8| {
            let header = [proto::UDP, 0, 0, offset << 3 | more, 0, 0, 0, 77];
            decode(&ipv6_with(kind, &[&before[..], &header, &udp].concat())).unwrap()
        };
        let first = fragment(0, 1);
        assert_eq!(first.fragment, Some(Fragment { id: 77, header: 0, first: true }), "behind header {kind}");
        assert_eq!((first.proto, first.src_port, first.dst_port), (proto::UDP, 21_000, 53));
        let later = fragment(1, 0);
        assert_eq!(later.fragment, Some(Fragment { id: 77, header: 0, first: false }), "behind header {kind}");
        assert_eq!((later.src_port, later.dst_port), (0, 0));
        let whole = fragment(0, 0);
        assert_eq!((whole.fragment, whole.dst_port), (None, 53), "an atomic fragment is whole");
    }
}

/// Found by the fuzzer: etherparse's iterator read on behind such packets.
#[test]
fn nothing_is_read_behind_extension_headers_that_end_early() {
    let named = [IPV6_HOP_BY_HOP.0, IPV6_FRAG.0, AUTH.0, IPV6_ROUTE.0, IPV6_DEST_OPTIONS.0];
    for first in [IPV6_HOP_BY_HOP.0, IPV6_ROUTE.0, IPV6_DEST_OPTIONS.0] {
        for next in named {
            for behind in 0..8 {
                let frame = ipv6_with(first, &[&[next, 0, 0, 0, 0, 0, 0, 1][..], &vec![0; behind]].concat());
                assert_eq!(decode(&frame).map(|packet| packet.fragment), Ok(None), "{first} {next} {behind}");
            }
        }
    }
}

#[test]
fn names_what_it_cannot_use() {
    assert_eq!(decode(&[0; 10]), Err(Undecodable::NoEthernet));
    let mut lldp = vec![0; 60];
    lldp[12] = 0x88;
    lldp[13] = 0xcc;
    assert_eq!(decode(&lldp), Err(Undecodable::NotIp));
    let mut bad = vec![0; 60];
    bad[12] = 0x08;
    bad[14] = 0x30;
    assert_eq!(decode(&bad), Err(Undecodable::BadVersion));
    bad[14] = 0x44;
    assert_eq!(decode(&bad), Err(Undecodable::BadLength));
    assert_eq!(decode(&bad[..30]), Err(Undecodable::CutShort));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn no_damaged_packet_panics(at in 12usize..80, value: u8, cut in 0usize..120) {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(VM, GW)
            .single_vlan(1u16.try_into().unwrap())
            .ipv6([1; 16], [2; 16], 64)
            .tcp(1, 2, 1, 1)
            .write(&mut frame, &[0; 40])
            .unwrap();
        if let Some(byte) = frame.get_mut(at) { *byte = value; }
        frame.truncate(frame.len().saturating_sub(cut));
        let _ = decode(&frame);
    }
}
