//! What a payload is in the packet filter: some set elements, added and removed in one atomic batch of nfnetlink
//! messages. Pure: values to bytes and back. The layout is that of linux/netfilter/nf_tables.h, and of what `nft` sends for
//! the same elements.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use vestigo_model::PortBlock;

/// The table that all sets belong to, family `inet`.
pub const TABLE: &str = "vestigo";

// Message types: the subsystem is the high byte (linux/netfilter/nfnetlink.h).
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEW_ELEMENT: u16 = NFTABLES << 8 | 12;
const DELETE_ELEMENT: u16 = NFTABLES << 8 | 14;
const ERROR: u16 = 2;

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
const ECHO: u16 = 8;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;

const FAMILY_INET: u8 = 1;
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;

/// An element of one of the table's sets. All keys but one begin with the payload's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// `inner`: the only IPv4 source that its interface may send from.
    Source(Ipv4Addr),
    /// `inner6`: the only IPv6 source.
    Source6(Ipv6Addr),
    /// `taken6`: nobody else may send from it. Its key is the address alone.
    Taken6(Ipv6Addr),
    /// `blocks`: this source leaves as that address, from those ports.
    Block(Ipv4Addr, Ipv4Addr, PortBlock),
    /// `marks`: its connections have this mark in connection tracking.
    Mark(u32),
    /// `pace`: counts how fast it makes them.
    Pace,
}

impl Element {
    fn set(self) -> &'static str {
        match self {
            Self::Source(_) => "inner",
            Self::Source6(_) => "inner6",
            Self::Taken6(_) => "taken6",
            Self::Block(..) => "blocks",
            Self::Mark(_) => "marks",
            Self::Pace => "pace",
        }
    }

    /// The name fills 16 bytes, as IFNAMSIZ; each further part of a key its own words.
    fn key(self, interface: &str) -> Vec<u8> {
        if let Self::Taken6(address) = self {
            return address.octets().into();
        }
        let mut key: Vec<u8> = interface.bytes().take(15).collect();
        key.resize(16, 0);
        match self {
            Self::Source(address) | Self::Block(address, ..) => key.extend(address.octets()),
            Self::Source6(address) => key.extend(address.octets()),
            Self::Taken6(_) | Self::Mark(_) | Self::Pace => {}
        }
        key
    }

    /// A mark, or an interval: address and port of its beginning, then of its end, each port padded to a word.
    fn data(self) -> Option<Vec<u8>> {
        let (outside, ports) = match self {
            Self::Block(_, outside, ports) => (outside, ports),
            Self::Mark(mark) => return Some(mark.to_ne_bytes().into()),
            _ => return None,
        };
        let end = |port: u16| [outside.octets().as_slice(), &port.to_be_bytes(), &[0, 0]].concat();
        Some([end(ports.first), end(ports.last)].concat())
    }
}

/// The batch that adds the elements of an interface. An element that is there already fails it as a whole.
#[must_use]
pub fn add(interface: &str, elements: &[Element]) -> Vec<u8> {
    batch(NEW_ELEMENT, REQUEST | ACK | CREATE | EXCL, interface, elements)
}

/// The batch that removes them. The kernel echoes each with its counter: see [`packets`].
#[must_use]
pub fn remove(interface: &str, elements: &[Element]) -> Vec<u8> {
    batch(DELETE_ELEMENT, REQUEST | ACK | ECHO, interface, elements)
}

fn batch(kind: u16, flags: u16, interface: &str, elements: &[Element]) -> Vec<u8> {
    // The batch names its subsystem in network byte order.
    let frame = |kind, sequence| message(kind, REQUEST, sequence, &[[0, 0], NFTABLES.to_be_bytes()].concat());
    let mut bytes = frame(BATCH_BEGIN, 0);
    let mut sequence = 0;
    for element in elements {
        sequence += 1;
        let mut value = attribute(1 | NESTED, &attribute(1, &element.key(interface)));
        if let Some(data) = element.data().filter(|_| kind == NEW_ELEMENT) {
            value.extend(attribute(2 | NESTED, &attribute(1, &data)));
        }
        let mut body = vec![FAMILY_INET, 0, 0, 0];
        body.extend(attribute(1, &text(TABLE)));
        body.extend(attribute(2, &text(element.set())));
        body.extend(attribute(3 | NESTED, &attribute(1 | NESTED, &value)));
        bytes.extend(message(kind, flags, sequence, &body));
    }
    bytes.extend(frame(BATCH_END, sequence + 1));
    bytes
}

fn text(word: &str) -> Vec<u8> {
    word.bytes().chain([0]).collect()
}

/// Header and body; bodies here are multiples of four bytes and far below 64 KiB.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What the kernel said to a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Acknowledgements without an error.
    pub accepted: usize,
    /// The first error, as errno.
    pub error: Option<i32>,
    /// Packets that echoed elements had counted.
    pub packets: u64,
}

impl Answer {
    /// Takes one datagram.
    pub fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((kind, body, after)) = next_message(rest) {
            rest = after;
            match kind {
                ERROR => match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(0) => self.accepted += 1,
                    Some(code) => self.error = self.error.or(Some(code.saturating_neg())),
                    None => {}
                },
                // An echo, after the four bytes of its own header.
                NEW_ELEMENT | DELETE_ELEMENT => self.packets += counted(body.get(4..).unwrap_or_default()),
                _ => {}
            }
        }
    }

    /// The verdict on a batch of so many elements.
    ///
    /// # Errors
    /// The kernel's first error, or that it said too little.
    pub fn verdict(&self, elements: usize) -> io::Result<()> {
        match self.error {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None if self.accepted < elements => Err(io::Error::other("the kernel did not acknowledge all of it")),
            None => Ok(()),
        }
    }
}

fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Kind without its flags, value, and what follows.
fn next_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & 0x3fff;
    let value = bytes.get(4..length)?;
    Some((kind, value, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = bytes;
    while let Some((kind, value, after)) = next_attribute(rest) {
        if kind == wanted {
            return Some(value);
        }
        rest = after;
    }
    None
}

/// Packets in the counter of an echoed element: list → element → expression → its data. Sets with a counter here have no other
/// expression.
fn counted(attributes: &[u8]) -> u64 {
    let counter = || {
        let expression = find(find(find(attributes, 3)?, 1)?, 7)?;
        (find(expression, 1)? == b"counter\0").then_some(())?;
        Some(u64::from_be_bytes(*find(find(expression, 2)?, 2)?.first_chunk()?))
    };
    counter().unwrap_or(0)
}

#[cfg(test)]
#[path = "elements_tests.rs"]
mod tests;
