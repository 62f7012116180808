//! Frames by layers, from the inside out. Checksums are left 0, as a guest's are that leaves them to its network card.

use std::net::IpAddr;

/// Source and destination.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
}

impl Ends {
    /// The way back.
    #[must_use]
    pub const fn back(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }
}

/// A transport header with its payload, and its protocol number.
#[derive(Debug, Clone)]
pub struct Inner {
    /// IANA protocol number.
    pub proto: u8,
    /// From the transport header on.
    pub bytes: Vec<u8>,
}

/// A frame on its way into a file.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// EtherType of what follows.
    kind: u16,
    /// From the network header on.
    bytes: Vec<u8>,
}

impl Frame {
    /// A frame with this EtherType.
    #[must_use]
    pub const fn new(kind: u16, bytes: Vec<u8>) -> Self {
        Self { kind, bytes }
    }

    /// With an 802.1Q tag; called twice, the second is the outer one and 802.1ad.
    #[must_use]
    pub fn tagged(self, id: u16) -> Self {
        let tpid = if matches!(self.kind, 0x8100 | 0x88a8) { 0x88a8 } else { 0x8100 };
        let mut bytes = Vec::with_capacity(self.bytes.len() + 4);
        bytes.extend(id.to_be_bytes());
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(&self.bytes);
        Self { kind: tpid, bytes }
    }

    /// With a header that announces so many bytes more than there are: of a frame that will be cut.
    #[must_use]
    pub fn announcing(mut self, more: usize) -> Self {
        let at = if self.kind == 0x0800 { 2 } else { 4 };
        if let Some(length) = self.bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
            let whole = usize::from(u16::from_be_bytes(*length)) + more;
            *length = u16::try_from(whole).unwrap_or(0).to_be_bytes();
        }
        self
    }

    /// The bytes of the Ethernet frame, as a guest hands it over: not padded.
    #[must_use]
    pub fn ethernet(&self) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1];
        frame.extend(self.kind.to_be_bytes());
        frame.extend(&self.bytes);
        frame
    }

    /// From the network header on.
    #[must_use]
    pub fn network(&self) -> &[u8] {
        &self.bytes
    }
}

/// TCP with `flags` and so many bytes of payload.
#[must_use]
pub fn tcp(src: u16, dst: u16, flags: u8, payload: usize) -> Inner {
    let mut bytes = Vec::with_capacity(20 + payload);
    bytes.extend(src.to_be_bytes());
    bytes.extend(dst.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.resize(20 + payload, 0);
    Inner { proto: 6, bytes }
}

/// UDP.
#[must_use]
pub fn udp(src: u16, dst: u16, payload: &[u8]) -> Inner {
    let length = u16::try_from(8 + payload.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(8 + payload.len());
    for word in [src, dst, length, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(payload);
    Inner { proto: 17, bytes }
}

/// SCTP with one DATA chunk.
#[must_use]
pub fn sctp(src: u16, dst: u16, payload: usize) -> Inner {
    let length = u16::try_from(16 + payload).unwrap_or(0);
    let mut bytes = Vec::new();
    bytes.extend(src.to_be_bytes());
    bytes.extend(dst.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0, 3]);
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 12]);
    bytes.resize(28 + payload.next_multiple_of(4), 0);
    Inner { proto: 132, bytes }
}

/// ICMP of IPv4: `word` is what stands in bytes 5 and 6, an echo's identifier.
#[must_use]
pub fn icmp(kind: u8, code: u8, word: u16, message: &[u8]) -> Inner {
    icmp_of(1, kind, code, word, message)
}

/// ICMPv6.
#[must_use]
pub fn icmp6(kind: u8, code: u8, word: u16, message: &[u8]) -> Inner {
    icmp_of(58, kind, code, word, message)
}

fn icmp_of(proto: u8, kind: u8, code: u8, word: u16, message: &[u8]) -> Inner {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(word.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(message);
    Inner { proto, bytes }
}

/// An IPv4 packet: `fragment` is the identification and the word of flags and offset.
///
/// # Panics
/// When the addresses are of the other family.
#[must_use]
pub fn ipv4(ends: Ends, inner: &Inner, options: &[u8], fragment: (u16, u16)) -> Frame {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (ends.src, ends.dst) else { unreachable!("IPv4 has IPv4 addresses") };
    let header = 20 + options.len().next_multiple_of(4);
    // 0 where it does not fit: what the kernel writes for BIG TCP.
    let total = u16::try_from(header + inner.bytes.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(header + inner.bytes.len());
    bytes.push(0x40 | u8::try_from(header / 4).unwrap_or(5));
    bytes.push(0);
    for word in [total, fragment.0, fragment.1] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend([64, inner.proto, 0, 0]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes.extend(options);
    bytes.resize(header, 0);
    bytes.extend(&inner.bytes);
    Frame::new(0x0800, bytes)
}

/// An IPv6 packet: `extensions` are headers without their first byte, each with its own number.
///
/// # Panics
/// When the addresses are of the other family.
#[must_use]
pub fn ipv6(ends: Ends, inner: &Inner, extensions: &[(u8, Vec<u8>)], label: u32) -> Frame {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (ends.src, ends.dst) else { unreachable!("IPv6 has IPv6 addresses") };
    let length: usize = extensions.iter().map(|(_, rest)| rest.len() + 1).sum::<usize>() + inner.bytes.len();
    let next = |at: usize| extensions.get(at).map_or(inner.proto, |(number, _)| *number);
    let mut bytes = Vec::with_capacity(40 + length);
    bytes.extend((6 << 28 | label).to_be_bytes());
    bytes.extend(u16::try_from(length).unwrap_or(0).to_be_bytes());
    bytes.extend([next(0), 64]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    for (at, (_, rest)) in extensions.iter().enumerate() {
        bytes.push(next(at + 1));
        bytes.extend(rest);
    }
    bytes.extend(&inner.bytes);
    Frame::new(0x86dd, bytes)
}
