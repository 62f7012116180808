//! Ports, flags and what stands for ports in ICMP.

use super::{Packet, ip, proto, word};

/// Reads the transport header. `speaks`: whether an ICMP error may be asked for the packet that it speaks of; not in such a packet itself.
pub(super) fn read(bytes: &[u8], packet: &mut Packet, speaks: bool) {
    let at = packet.transport;
    let read = match packet.proto {
        proto::TCP => tcp(bytes, packet, at),
        proto::UDP => ports(bytes, packet, at, 8),
        proto::SCTP => ports(bytes, packet, at, 12),
        proto::ICMP | proto::ICMPV6 => icmp(bytes, packet, at, speaks),
        _ => Some(()),
    };
    packet.headless = read.is_none();
}

fn ports(bytes: &[u8], packet: &mut Packet, at: usize, length: usize) -> Option<()> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    packet.src_port = u16::from_be_bytes([four[0], four[1]]);
    packet.dst_port = u16::from_be_bytes([four[2], four[3]]);
    packet.payload = at + length;
    Some(())
}

/// Flags are read where they were captured; ports alone are enough to meter by (an ICMP error repeats no more).
fn tcp(bytes: &[u8], packet: &mut Packet, at: usize) -> Option<()> {
    ports(bytes, packet, at, 20)?;
    if let Some(two) = bytes.get(at + 12..).and_then(|rest| rest.first_chunk::<2>()) {
        packet.payload = at + usize::from(two[0] >> 4).max(5) * 4;
        packet.tcp_flags = two[1];
    }
    Some(())
}

fn icmp(bytes: &[u8], packet: &mut Packet, at: usize, speaks: bool) -> Option<()> {
    let two = bytes.get(at..)?.first_chunk::<2>()?;
    let (kind, code) = (two[0], two[1]);
    packet.icmp = Some((kind, code));
    packet.payload = at + 8;
    packet.src_port = match (packet.proto, kind) {
        (proto::ICMP, 0 | 8 | 13 | 14) | (proto::ICMPV6, 128 | 129) => word(bytes, at + 4)?,
        _ if speaks && is_icmp_error(packet.proto, kind) => {
            spoken_of(bytes, packet).map_or(0, |spoken| match spoken.icmp {
                Some(_) => spoken.src_port,
                None => spoken.dst_port,
            })
        }
        _ => 0,
    };
    Some(())
}

/// Whether the message speaks of a packet that was received.
#[must_use]
pub const fn is_icmp_error(proto: u8, kind: u8) -> bool {
    matches!((proto, kind), (proto::ICMP, 3 | 4 | 5 | 11 | 12) | (proto::ICMPV6, 1..=4))
}

/// The packet that an ICMP error speaks of, as far as the error repeats it. `None` for any other packet.
#[must_use]
pub fn spoken_of(frame: &[u8], error: &Packet) -> Option<Packet> {
    let (kind, _) = error.icmp?;
    if !is_icmp_error(error.proto, kind) {
        return None;
    }
    let quoted = ip::either(frame.get(..error.end)?, error.payload, usize::MAX, false).ok()?;
    Some(Packet { vlan: error.vlan, inner_vlan: error.inner_vlan, tunnel: error.tunnel, ..quoted })
}
