//! The packet inside of another: VXLAN (RFC 7348) and Geneve (RFC 8926), one level.

use vestigo_model::Tunnel;

use super::{Packet, byte, ethernet_at, long, network, proto, word};

const VXLAN: u16 = 4789;
const GENEVE: u16 = 6081;
/// EtherType of an Ethernet frame inside (RFC 8926: "Transparent Ethernet Bridging").
const BRIDGED: u16 = 0x6558;

/// The packet inside, if this one is a tunnel's. `wire_len` is the frame's. Reserved bits may be anything: senders differ in what they
/// put there. `None` where it is no tunnel, or what is inside cannot be read.
#[must_use]
pub fn inside(frame: &[u8], outer: &Packet, wire_len: usize) -> Option<Packet> {
    if outer.proto != proto::UDP || outer.portless() {
        return None;
    }
    let (tunnel, kind, at) = match outer.dst_port {
        VXLAN => (Tunnel::Vxlan(long(frame, outer.payload + 4)? >> 8), BRIDGED, outer.payload + 8),
        GENEVE => {
            let options = usize::from(byte(frame, outer.payload)? & 0x3f) * 4;
            let network = long(frame, outer.payload + 4)? >> 8;
            (Tunnel::Geneve(network), word(frame, outer.payload + 2)?, outer.payload + 8 + options)
        }
        _ => return None,
    };
    let captured = frame.get(..outer.end)?;
    let mut packet = match kind {
        BRIDGED => ethernet_at(captured, at, wire_len, None),
        kind => network(kind, captured, at, wire_len),
    }
    .ok()?;
    packet.tunnel = Some(tunnel);
    Some(packet)
}
