//! From the bytes of a frame to what the meter needs. Pure: byte slices in, values out.
//!
//! Own code by byte offsets (docs/decisions/0040): every frame of every VM passes here. `etherparse` is its oracle in the tests.
//! The way of an ordinary frame is inlined: a packet is larger than what processors copy quickly, so it is made where it is used.
//! Lengths are those of the IP header, held against the frame's own (a guest hands over unsegmented frames of up to 64 KiB and more);
//! checksums are never judged, because a tap carries frames whose checksum nobody has filled in yet.

mod ip;
mod packet;
mod scitag;
mod transport;
mod tunnel;

pub use self::{
    packet::{Fragment, Packet, address as packet_address},
    scitag::{experiment_and_activity, flow_label},
    transport::{is_icmp_error, spoken_of},
    tunnel::inside,
};

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

/// Where a frame goes, seen from the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heading {
    /// The VM sent it.
    FromVm,
    /// It goes to the VM.
    ToVm,
}

/// Why a frame is not metered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Undecodable {
    /// ARP: no IP flow.
    Arp,
    /// Some other protocol than IP.
    NotIp,
    /// A capture file's link type that is not known.
    LinkType,
    /// Too short to be an Ethernet frame.
    NoEthernet,
    /// More than two VLAN tags.
    TooManyTags,
    /// The frame ends inside of the IP header.
    CutShort,
    /// Not the IP version that was announced.
    BadVersion,
    /// An IPv4 header shorter than one may be, or longer than its packet.
    BadLength,
}

impl Undecodable {
    /// Every reason, in the order of counters.
    pub const ALL: [Self; 8] = [
        Self::Arp,
        Self::NotIp,
        Self::LinkType,
        Self::NoEthernet,
        Self::TooManyTags,
        Self::CutShort,
        Self::BadVersion,
        Self::BadLength,
    ];

    /// The word used in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::NotIp => "not-ip",
            Self::LinkType => "link-type",
            Self::NoEthernet => "no-ethernet",
            Self::TooManyTags => "too-many-tags",
            Self::CutShort => "cut-short",
            Self::BadVersion => "bad-version",
            Self::BadLength => "bad-length",
        }
    }
}

mod ether_type {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const ARP: u16 = 0x0806;
    pub(super) const IPV6: u16 = 0x86dd;
    /// 802.1Q, 802.1ad, and what QinQ was before it had a number.
    pub(super) const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
}

/// Decodes an Ethernet frame. `wire_len` is its length before it was cut; `outer` the outermost VLAN id if it is not among the bytes.
///
/// # Errors
/// The reason why the frame is no IP packet; every one is counted by the caller.
#[inline(always)]
pub fn ethernet(frame: &[u8], wire_len: usize, outer: Option<u16>) -> Result<Packet, Undecodable> {
    ethernet_at(frame, 0, wire_len, outer)
}

#[inline(always)]
fn ethernet_at(frame: &[u8], start: usize, wire_len: usize, outer: Option<u16>) -> Result<Packet, Undecodable> {
    Link::ethernet(frame, start, outer)?.network(frame, wire_len)
}

/// Decodes what an EtherType announces, `at` bytes into the frame: cooked captures have one, behind a header of their own.
///
/// # Errors
/// As [`ethernet`].
pub fn cooked(kind: u16, frame: &[u8], at: usize, wire_len: usize) -> Result<Packet, Undecodable> {
    Link::read(kind, frame, at, None)?.network(frame, wire_len)
}

/// The ARP packet (RFC 826) in an Ethernet frame, as far as it was captured. `None` if there is none.
#[must_use]
pub fn arp(frame: &[u8], outer: Option<u16>) -> Option<&[u8]> {
    let link = Link::ethernet(frame, 0, outer).ok()?;
    (link.kind == ether_type::ARP).then(|| frame.get(link.payload..)).flatten()
}

/// What stands before the network header: its EtherType and the VLAN tags.
struct Link {
    tags: [Option<u16>; 2],
    kind: u16,
    payload: usize,
}

impl Link {
    #[inline(always)]
    fn ethernet(frame: &[u8], start: usize, outer: Option<u16>) -> Result<Self, Undecodable> {
        const ADDRESSES: usize = 12;
        let kind = word(frame, start + ADDRESSES).ok_or(Undecodable::NoEthernet)?;
        Self::read(kind, frame, start + ADDRESSES + 2, outer)
    }

    #[inline(always)]
    fn read(kind: u16, frame: &[u8], at: usize, outer: Option<u16>) -> Result<Self, Undecodable> {
        let mut link = Self { tags: [outer, None], kind, payload: at };
        let mut found = usize::from(outer.is_some());
        while ether_type::TAGS.contains(&link.kind) {
            let slot = link.tags.get_mut(found).ok_or(Undecodable::TooManyTags)?;
            *slot = Some(word(frame, link.payload).ok_or(Undecodable::CutShort)? & 0x0fff);
            link.kind = word(frame, link.payload + 2).ok_or(Undecodable::CutShort)?;
            (found, link.payload) = (found + 1, link.payload + 4);
        }
        Ok(link)
    }

    #[inline(always)]
    fn network(&self, frame: &[u8], wire_len: usize) -> Result<Packet, Undecodable> {
        let mut packet = network(self.kind, frame, self.payload, wire_len)?;
        [packet.vlan, packet.inner_vlan] = self.tags;
        Ok(packet)
    }
}

#[inline(always)]
fn network(kind: u16, frame: &[u8], at: usize, wire_len: usize) -> Result<Packet, Undecodable> {
    match kind {
        ether_type::IPV4 => ip::v4(frame, at, wire_len, true),
        ether_type::IPV6 => ip::v6(frame, at, wire_len, true),
        ether_type::ARP => Err(Undecodable::Arp),
        _ => Err(Undecodable::NotIp),
    }
}

/// Decodes an IP packet without a link header, whichever version it says it is, `at` bytes into the frame.
///
/// # Errors
/// As [`ethernet`].
pub fn raw(frame: &[u8], at: usize, wire_len: usize) -> Result<Packet, Undecodable> {
    ip::either(frame, at, wire_len, true)
}

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
