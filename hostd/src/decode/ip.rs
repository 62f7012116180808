//! IPv4 and IPv6 with what stands between them and the transport.

use super::{
    Undecodable, byte, long,
    packet::{Fragment, Packet, mapped},
    transport, word,
};

/// Extension headers walked. RFC 8200 names six that may occur, one of them twice.
const MAX_EXTENSIONS: usize = 8;

mod header {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const NONE: u8 = 59;
    pub(super) const DESTINATION: u8 = 60;
}

/// Whichever version the first four bits say. `speaks` as in [`transport::read`].
pub(super) fn either(frame: &[u8], at: usize, wire_len: usize, speaks: bool) -> Result<Packet, Undecodable> {
    match byte(frame, at).ok_or(Undecodable::CutShort)? >> 4 {
        4 => v4(frame, at, wire_len, speaks),
        6 => v6(frame, at, wire_len, speaks),
        _ => Err(Undecodable::BadVersion),
    }
}

#[inline(always)]
pub(super) fn v4(frame: &[u8], at: usize, wire_len: usize, speaks: bool) -> Result<Packet, Undecodable> {
    const SHORTEST: usize = 20;
    const MORE_FRAGMENTS: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;
    let h = frame.get(at..).and_then(|rest| rest.first_chunk::<SHORTEST>()).ok_or(Undecodable::CutShort)?;
    if h[0] >> 4 != 4 {
        return Err(Undecodable::BadVersion);
    }
    let header_len = usize::from(h[0] & 0x0f) * 4;
    let declared = usize::from(u16::from_be_bytes([h[2], h[3]]));
    if header_len < SHORTEST || (declared != 0 && declared < header_len) {
        return Err(Undecodable::BadLength);
    }
    let fragmented = u16::from_be_bytes([h[6], h[7]]);
    let (first, last) = (fragmented & OFFSET == 0, fragmented & MORE_FRAGMENTS == 0);
    let fragment =
        (!first || !last).then(|| Fragment { id: u16::from_be_bytes([h[4], h[5]]).into(), header: h[9], first });
    let length = true_length(declared, wire_len.saturating_sub(at));
    let mut packet = Packet {
        src: mapped(u32::from_be_bytes([h[12], h[13], h[14], h[15]])),
        dst: mapped(u32::from_be_bytes([h[16], h[17], h[18], h[19]])),
        ..blank(frame, at, length)
    };
    packet.fragment = fragment;
    walk(frame, &mut packet, h[9], at + header_len, speaks);
    Ok(packet)
}

pub(super) fn v6(frame: &[u8], at: usize, wire_len: usize, speaks: bool) -> Result<Packet, Undecodable> {
    const LENGTH: usize = 40;
    let h = frame.get(at..).and_then(|rest| rest.first_chunk::<LENGTH>()).ok_or(Undecodable::CutShort)?;
    if h[0] >> 4 != 6 {
        return Err(Undecodable::BadVersion);
    }
    let payload = usize::from(u16::from_be_bytes([h[4], h[5]]));
    let declared = if payload == 0 && h[6] != header::NONE { 0 } else { payload + LENGTH };
    let (_, src) = h.split_at(8);
    let (src, dst) = src.split_at(16);
    let length = true_length(declared, wire_len.saturating_sub(at));
    let mut packet = Packet {
        src: wide(src),
        dst: wide(dst),
        v6: true,
        flow_label: u32::from_be_bytes([h[0], h[1], h[2], h[3]]) & 0x000f_ffff,
        ..blank(frame, at, length)
    };
    walk(frame, &mut packet, h[6], at + LENGTH, speaks);
    Ok(packet)
}

fn wide(bytes: &[u8]) -> u128 {
    bytes.first_chunk().map_or(0, |sixteen| u128::from_be_bytes(*sixteen))
}

#[inline(always)]
fn blank(frame: &[u8], at: usize, length: usize) -> Packet {
    Packet {
        src: 0,
        dst: 0,
        v6: false,
        vlan: None,
        inner_vlan: None,
        tunnel: None,
        proto: 0,
        src_port: 0,
        dst_port: 0,
        tcp_flags: 0,
        icmp: None,
        ip_bytes: length as u64,
        fragment: None,
        headless: false,
        flow_label: 0,
        transport: at,
        payload: at,
        end: frame.len().min(at.saturating_add(length)),
    }
}

/// The header's own length, but never more than the frame had (a header can lie); all that the frame had where the header says 0, as
/// it does for jumbograms and BIG TCP.
fn true_length(declared: usize, available: usize) -> usize {
    if declared == 0 { available } else { declared.min(available) }
}

/// Goes from header to header, to the transport or to where it cannot go on. IPv4 has only the one for authentication.
fn walk(frame: &[u8], packet: &mut Packet, mut kind: u8, mut at: usize, speaks: bool) {
    let bytes = frame.get(..packet.end).unwrap_or(frame);
    for _ in 0..=MAX_EXTENSIONS {
        (packet.proto, packet.transport, packet.payload) = (kind, at, at);
        let later = packet.fragment.is_some_and(|fragment| !fragment.first);
        let length = match kind {
            _ if later => return,
            header::AUTHENTICATION => byte(bytes, at + 1).map(|words| (usize::from(words) + 2) * 4),
            header::HOP_BY_HOP | header::ROUTING | header::DESTINATION if packet.v6 => {
                byte(bytes, at + 1).map(|words| (usize::from(words) + 1) * 8)
            }
            header::FRAGMENT if packet.v6 => {
                note_fragment(bytes, at, packet);
                Some(8)
            }
            _ => return transport::read(bytes, packet, speaks),
        };
        // Whole, or not to be followed: the one behind a header that is cut off is anybody's guess.
        let next =
            length.filter(|length| bytes.len() >= at + length).and_then(|length| Some((byte(bytes, at)?, at + length)));
        let Some(next) = next else { break };
        (kind, at) = next;
    }
    packet.headless = true;
}

/// A fragment header that really fragments; an atomic fragment (RFC 6946) is whole.
fn note_fragment(bytes: &[u8], at: usize, packet: &mut Packet) {
    let Some((place, id)) = word(bytes, at + 2).zip(long(bytes, at + 4)) else { return };
    let (offset, more) = (place >> 3, place & 1 == 1);
    if offset != 0 || more {
        packet.fragment = Some(Fragment { id, header: 0, first: offset == 0 });
    }
}
