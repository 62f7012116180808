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

fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(VM, GW).ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64);
    builder.udp(src, dst).write(&mut frame, payload).unwrap();
    frame
}

#[test]
fn the_tag_that_the_kernel_took_out_is_the_outer_one() {
    let mut frame = udp(1, 2, b"");
    frame.splice(12..12, [0x81, 0, 0x20, 9]);
    let packet = ethernet(&frame, frame.len(), Some(7)).unwrap();
    assert_eq!((packet.vlan, packet.inner_vlan), (Some(7), Some(9)));
    frame.splice(12..12, [0x88, 0xa8, 0, 8]);
    assert_eq!(ethernet(&frame, frame.len(), Some(7)), Err(Undecodable::TooManyTags));
    assert_eq!(ethernet(&frame, frame.len(), None).unwrap().inner_vlan, Some(9));
}

#[test]
fn a_length_is_never_more_than_the_frames() {
    let mut frame = udp(1, 2, b"four");
    frame[16] = 0xff;
    assert_eq!(decode(&frame).unwrap().ip_bytes, 32, "the header lies");
    // BIG TCP: the header says 0, the ring knows.
    (frame[16], frame[17]) = (0, 0);
    assert_eq!(ethernet(&frame, 14 + 180_000, None).unwrap().ip_bytes, 180_000);
    let mut padded = udp(1, 2, b"");
    padded.resize(60, 0);
    let packet = decode(&padded).unwrap();
    assert_eq!((packet.ip_bytes, packet.payload_of(&padded)), (28, &[][..]), "what pads a frame is nobody's");
}

#[test]
fn a_header_that_is_cut_off_has_no_ports_and_says_so() {
    let frame = udp(21_000, 53, b"question");
    for length in 34..38 {
        let packet = ethernet(&frame[..length], frame.len(), None).unwrap();
        assert!(packet.headless && packet.portless());
        assert_eq!((packet.src_port, packet.ip_bytes), (0, 36));
    }
    assert_eq!(ethernet(&frame[..38], frame.len(), None).unwrap().dst_port, 53);
    // More extension headers than anybody needs.
    let chain = [IPV6_DEST_OPTIONS.0, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    let packet = decode(&ipv6_with(IPV6_DEST_OPTIONS.0, &chain)).unwrap();
    assert!(packet.headless);
    assert_eq!(packet.proto, IPV6_DEST_OPTIONS.0);
}

#[test]
fn ports_are_found_behind_authentication() {
    let behind = [vec![proto::UDP, 4], vec![0; 22], vec![0x52, 0x08, 0, 53, 0, 8, 0, 0]].concat();
    let packet = decode(&ipv6_with(AUTH.0, &behind)).unwrap();
    assert_eq!((packet.proto, packet.src_port, packet.dst_port), (proto::UDP, 21_000, 53));
    let mut frame = udp(0, 0, &behind);
    // UDP's own eight bytes make way.
    frame.drain(34..42);
    frame[23] = AUTH.0;
    let packet = decode(&frame).unwrap();
    assert_eq!((packet.proto, packet.src_port, packet.dst_port), (proto::UDP, 21_000, 53));
}

#[test]
fn tunnels_have_something_inside() {
    let inner = udp(21_000, 53, b"?");
    let vxlan = udp(40_000, 4789, &[&[0x08, 0xff, 0xff, 0xff, 0, 0, 42, 0xff][..], &inner].concat());
    let packet = inside(&vxlan, &decode(&vxlan).unwrap(), vxlan.len()).unwrap();
    assert_eq!((packet.tunnel, packet.src_port, packet.ip_bytes), (Some(vestigo_model::Tunnel::Vxlan(42)), 21_000, 29));
    let geneve = udp(40_000, 6081, &[&[1, 0, 0x65, 0x58, 0, 1, 0, 0, 0, 0, 0, 0][..], &inner].concat());
    let packet = inside(&geneve, &decode(&geneve).unwrap(), geneve.len()).unwrap();
    assert_eq!((packet.tunnel, packet.dst_port), (Some(vestigo_model::Tunnel::Geneve(256)), 53));
    let bare = udp(40_000, 6081, &[&[0, 0, 0x08, 0x00, 0, 0, 7, 0][..], &inner[14..]].concat());
    assert_eq!(inside(&bare, &decode(&bare).unwrap(), bare.len()).unwrap().dst_port, 53);
    assert_eq!(inside(&inner, &decode(&inner).unwrap(), inner.len()), None);
}

/// Labels of sflow-rt/scitags for ATLAS (2) and CMS (3).
#[test]
fn flow_labels_are_those_of_scitags() {
    assert_eq!(flow_label(2, 5), 0x1_0014);
    for (experiment, activity) in [(2, 5), (3, 63), (511, 0), (1, 1)] {
        let label = flow_label(experiment, activity);
        for entropy in [0, 0b11, 1 << 8, 0b11 << 18] {
            assert_eq!(experiment_and_activity(label | entropy), Some((experiment, activity)));
        }
    }
    assert_eq!(experiment_and_activity(flow_label(0, 9)), None);
}

#[test]
fn arp_is_found_behind_tags() {
    let mut frame = vec![0; 42];
    (frame[12], frame[13]) = (0x08, 0x06);
    assert_eq!(decode(&frame), Err(Undecodable::Arp));
    assert_eq!(arp(&frame, None).unwrap().len(), 28);
    frame.splice(12..12, [0x81, 0, 0, 9]);
    assert_eq!(arp(&frame, None).unwrap().len(), 28);
    assert_eq!(arp(&udp(1, 2, b""), None), None);
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
