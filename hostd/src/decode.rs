//! From the bytes of an Ethernet frame to what the meter needs. Pure: byte slices in, values out.
//!
//! Lengths come from the IP header (a guest hands over unsegmented frames of up to 64 KiB, so "frame length" is not what
//! crossed the wire either way); checksums are never judged, because a tap carries frames whose checksum nobody has
//! filled in yet.

use std::net::IpAddr;

use etherparse::{
    IpNumber, Ipv6ExtensionsSlice, Ipv6FragmentHeaderSlice, LaxNetSlice, LaxSlicedPacket, TransportSlice, ip_number,
};
use vestigo_model::Mac;

/// IANA protocol numbers that the meter treats in a way of their own.
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Where a frame goes, seen from the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heading {
    /// The VM sent it.
    FromVm,
    /// It goes to the VM.
    ToVm,
}

/// What the meter keeps of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination hardware addresses.
    pub ether: (Mac, Mac),
    /// VLAN id, outermost tag.
    pub vlan: Option<u16>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IANA protocol number.
    pub proto: u8,
    /// Source port; ICMP echo identifier; of an ICMP error the port (or identifier) that its sender has in the packet that it
    /// speaks of; 0 where there is none.
    pub src_port: u16,
    /// Destination port; 0 where there is none.
    pub dst_port: u16,
    /// TCP flags, FIN = 1 (RFC 9293); 0 for other protocols.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// IP header and payload, in bytes.
    pub ip_bytes: u64,
    /// Set on a fragment of a datagram: only the first has ports.
    pub fragment: Option<Fragment>,
}

/// Which datagram a fragment belongs to (together with its addresses and protocol).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// Whether it is the first, which has the transport header.
    pub first: bool,
}

impl Packet {
    /// A later fragment whose ports are not known.
    #[must_use]
    pub fn portless(&self) -> bool {
        self.fragment.is_some_and(|fragment| !fragment.first)
    }
}

/// Why a frame is not metered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Undecodable {
    /// ARP: no IP flow.
    Arp,
    /// Some other protocol than IP.
    NotIp,
    /// Too short to be an Ethernet frame.
    NoEthernet,
    /// An IP header that does not fit what follows it.
    BadIp,
}

impl Undecodable {
    /// Every reason, in the order of counters.
    pub const ALL: [Self; 4] = [Self::Arp, Self::NotIp, Self::NoEthernet, Self::BadIp];

    /// The word used in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::NotIp => "not-ip",
            Self::NoEthernet => "no-ethernet",
            Self::BadIp => "bad-ip",
        }
    }
}

/// TCP flag bits (RFC 9293).
pub mod tcp_flag {
    /// No more data from this side.
    pub const FIN: u8 = 0x01;
    /// First packet of a side.
    pub const SYN: u8 = 0x02;
    /// Connection refused or broken.
    pub const RST: u8 = 0x04;
    /// Acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
}

/// Decodes one Ethernet frame.
///
/// # Errors
/// The reason why the frame is no IP packet; every one is counted by the caller.
pub fn decode(frame: &[u8]) -> Result<Packet, Undecodable> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).map_err(|_| Undecodable::NoEthernet)?;
    let ether = ether(frame).ok_or(Undecodable::NoEthernet)?;
    let vlan = sliced.vlan_ids().first().map(|id| u16::from(*id));
    let (src, dst, proto, ip_bytes, fragment, payload) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let captured = header.slice().len() + ip.payload().payload.len();
            (
                IpAddr::V4(header.source_addr()),
                IpAddr::V4(header.destination_addr()),
                header.protocol().0,
                true_length(header.total_len().into(), captured),
                ip.is_payload_fragmented().then(|| Fragment {
                    id: header.identification().into(),
                    first: header.fragments_offset().value() == 0,
                }),
                ip.payload().payload,
            )
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let declared = usize::from(header.payload_length());
            let behind = captured_after_ipv6(&sliced, ip.payload().payload.len());
            let length = true_length(if declared == 0 { 0 } else { declared + 40 }, behind + 40);
            (
                IpAddr::V6(header.source_addr()),
                IpAddr::V6(header.destination_addr()),
                ip.payload().ip_number.0,
                length,
                ipv6_fragment(ip.extensions()),
                ip.payload().payload,
            )
        }
        Some(LaxNetSlice::Arp(_)) => return Err(Undecodable::Arp),
        None if sliced.stop_err.is_some() => return Err(Undecodable::BadIp),
        None => return Err(Undecodable::NotIp),
    };
    let (src_port, dst_port, tcp_flags, icmp) = match fragment {
        None => transport(proto, sliced.transport.as_ref(), payload),
        Some(Fragment { first: true, .. }) => transport_of_first_fragment(proto, payload),
        Some(_) => (0, 0, 0, None),
    };
    Ok(Packet { ether, vlan, src, dst, proto, src_port, dst_port, tcp_flags, icmp, ip_bytes, fragment })
}

/// A fragment header that really fragments; an atomic fragment (RFC 6946) is whole.
///
/// Walks the headers itself: where the last one names another that is cut off or may not stand there, etherparse's iterator (0.21)
/// reads on behind the slice, unchecked. Every step takes at least eight bytes, so a walk ends.
fn ipv6_fragment(extensions: &Ipv6ExtensionsSlice<'_>) -> Option<Fragment> {
    let (mut kind, mut rest) = (extensions.first_header()?, extensions.slice());
    loop {
        let (next, words) = (IpNumber(*rest.first()?), usize::from(byte(rest, 1)));
        let length = match kind {
            ip_number::IPV6_FRAG => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
                if header.is_fragmenting_payload() {
                    return Some(Fragment {
                        id: header.identification(),
                        first: header.fragment_offset().value() == 0,
                    });
                }
                8
            }
            ip_number::AUTH => (words + 2) * 4,
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => (words + 1) * 8,
            _ => return None,
        };
        (kind, rest) = (next, rest.get(length..)?);
    }
}

/// etherparse slices no transport header out of a fragment, but the first one has it.
fn transport_of_first_fragment(proto: u8, payload: &[u8]) -> Transport {
    match proto {
        proto::TCP => (word(payload, 0), word(payload, 2), byte(payload, 13), None),
        proto::UDP | proto::SCTP => (word(payload, 0), word(payload, 2), 0, None),
        proto::ICMP | proto::ICMPV6 => {
            let kind = byte(payload, 0);
            let message = payload.get(8..).unwrap_or_default();
            (icmp_id(proto, kind, word(payload, 4), message), 0, 0, Some((kind, byte(payload, 1))))
        }
        _ => (0, 0, 0, None),
    }
}

/// 0 beyond the end.
fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |two| u16::from_be_bytes(*two))
}

/// 0 beyond the end.
fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// What stands for a port in an ICMP message: the identifier of a question or its answer; of an error the port of the packet
/// that it speaks of (`message`, behind the first eight bytes), on the side of whoever sends the error.
fn icmp_id(proto: u8, kind: u8, identifier: u16, message: &[u8]) -> u16 {
    match (proto, kind) {
        (proto::ICMP, 0 | 8 | 13 | 14) | (proto::ICMPV6, 128 | 129) => identifier,
        _ if is_icmp_error(proto, kind) => port_spoken_of(message),
        _ => 0,
    }
}

/// Whether the message speaks of a packet that was received.
#[must_use]
pub const fn is_icmp_error(proto: u8, kind: u8) -> bool {
    matches!((proto, kind), (proto::ICMP, 3 | 4 | 5 | 11 | 12) | (proto::ICMPV6, 1..=4))
}

/// The destination port of the packet that an ICMP error repeats the beginning of. Extension headers of IPv6 are not followed.
fn port_spoken_of(packet: &[u8]) -> u16 {
    let (proto, header) = match byte(packet, 0) >> 4 {
        4 => (byte(packet, 9), usize::from(byte(packet, 0) & 0x0f) * 4),
        6 => (byte(packet, 6), 40),
        _ => return 0,
    };
    match proto {
        proto::TCP | proto::UDP | proto::SCTP => word(packet, header + 2),
        proto::ICMP | proto::ICMPV6 => word(packet, header + 4),
        _ => 0,
    }
}

fn ether(frame: &[u8]) -> Option<(Mac, Mac)> {
    let dst = frame.first_chunk::<6>()?;
    let src = frame.get(6..)?.first_chunk::<6>()?;
    Some((Mac(*src), Mac(*dst)))
}

/// The header's own length; what was captured where the header says 0 (jumbograms and BIG TCP write 0 there).
fn true_length(declared: usize, captured: usize) -> u64 {
    u64::try_from(if declared == 0 { captured } else { declared }).unwrap_or(u64::MAX)
}

fn captured_after_ipv6(sliced: &LaxSlicedPacket<'_>, payload: usize) -> usize {
    sliced.ether_payload().map_or(payload, |ether| ether.payload.len().saturating_sub(40))
}

type Transport = (u16, u16, u8, Option<(u8, u8)>);

fn transport(proto: u8, slice: Option<&TransportSlice<'_>>, payload: &[u8]) -> Transport {
    match slice {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = tcp.slice().get(13).copied().unwrap_or(0);
            (tcp.source_port(), tcp.destination_port(), flags, None)
        }
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port(), 0, None),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let id = icmp_id(proto::ICMP, icmp.type_u8(), first_word(icmp.bytes5to8()), icmp.payload());
            (id, 0, 0, Some((icmp.type_u8(), icmp.code_u8())))
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let id = icmp_id(proto::ICMPV6, icmp.type_u8(), first_word(icmp.bytes5to8()), icmp.payload());
            (id, 0, 0, Some((icmp.type_u8(), icmp.code_u8())))
        }
        // etherparse knows no SCTP; its ports stand where those of UDP do.
        Some(_) | None if proto == proto::SCTP => (word(payload, 0), word(payload, 2), 0, None),
        Some(_) | None => (0, 0, 0, None),
    }
}

const fn first_word(bytes: [u8; 4]) -> u16 {
    let [a, b, ..] = bytes;
    u16::from_be_bytes([a, b])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use etherparse::{PacketBuilder, ip_number::*};
    use proptest::prelude::*;

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
        assert_eq!(packet.ether, (Mac(VM), Mac(GW)));
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
        PacketBuilder::ethernet2(VM, GW)
            .ipv6([1; 16], [2; 16], 64)
            .udp(5, 6)
            .write(&mut frame, &vec![0; 1000])
            .unwrap();
        frame.truncate(128);
        let packet = decode(&frame).unwrap();
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
        let unreachable =
            etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
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
        PacketBuilder::ethernet2(VM, GW)
            .ipv6([1; 16], [2; 16], 64)
            .icmpv6(unreachable)
            .write(&mut frame, &quoted)
            .unwrap();
        let packet = decode(&frame).unwrap();
        assert_eq!((packet.src_port, packet.icmp), (21_007, Some((1, 4))));
        for length in 0..quoted.len() {
            port_spoken_of(&quoted[..length]);
        }
        assert_eq!(port_spoken_of(&[0x4f; 3]), 0);
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
        assert_eq!(first.fragment, Some(Fragment { id: 77, first: true }));
        frame[20] = 0x00;
        frame[21] = 0x33; // offset
        let later = decode(&frame).unwrap();
        assert_eq!((later.src_port, later.dst_port), (0, 0), "what stands there is payload, not ports");
        assert_eq!(later.fragment, Some(Fragment { id: 77, first: false }));
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
            assert_eq!(first.fragment, Some(Fragment { id: 77, first: true }), "behind header {kind}");
            assert_eq!((first.proto, first.src_port, first.dst_port), (proto::UDP, 21_000, 53));
            let later = fragment(1, 0);
            assert_eq!(later.fragment, Some(Fragment { id: 77, first: false }), "behind header {kind}");
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
        assert_eq!(decode(&bad), Err(Undecodable::BadIp));
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
}
