//! Connection tracking's netlink messages, as far as they tell of translations. Pure: byte slices in, values out.
//!
//! The layouts are those of linux/netlink.h, linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: numbers of the netlink header in the
//! machine's order, those of conntrack in network order. Why not a library: docs/decisions/0050.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and a port; of ICMP the asker's identifier, or the other's `type << 8 | code` of the question; 0 where there is none.
pub type End = (IpAddr, u16);

/// A connection that the kernel tracks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// IANA protocol number.
    pub proto: u8,
    /// Zone of the original direction.
    pub zone: u16,
    /// Source and destination of its first packet.
    pub original: (End, End),
    /// Source and destination of an answer, before it is translated back.
    pub reply: (End, End),
    /// The kernel's number for it: another connection with the same tuple has another.
    pub id: Option<u32>,
    /// When it began and ended, UTC nanoseconds, where the kernel was told to note that (`nf_conntrack_timestamp`).
    pub began: Option<u64>,
    /// See `began`.
    pub ended: Option<u64>,
}

impl Entry {
    /// Whether the answer is not just the question turned round.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        (self.reply.1, self.reply.0) != self.original
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A connection began, or is listed by a dump.
    New(Entry),
    /// A connection ended.
    Destroyed(Entry),
    /// The dump is complete.
    Done {
        /// The table changed under it; something may be missing (`NLM_F_DUMP_INTR`).
        interrupted: bool,
    },
    /// The kernel refuses: a positive errno; 0 is an acknowledgement.
    Error(i32),
    /// Something else.
    Other,
}

/// Bytes that are no message, or an entry without its tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

const HEADER: usize = 16;
/// Behind the header: family, version, resource.
const NFGENMSG: usize = 4;
const CTNETLINK: u16 = 1 << 8;
const CT_NEW: u16 = CTNETLINK;
const CT_GET: u16 = CTNETLINK | 1;
const CT_DELETE: u16 = CTNETLINK | 2;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP_FLAGS: u16 = 0x301;

/// The request for all connections of the socket's network namespace.
#[must_use]
pub fn dump_request(sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + NFGENMSG);
    bytes.extend(20_u32.to_ne_bytes());
    bytes.extend(CT_GET.to_ne_bytes());
    bytes.extend(DUMP_FLAGS.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    // Any family, version 0.
    bytes.extend([0; NFGENMSG]);
    bytes
}

/// The messages of a datagram, with their sequence numbers. What cannot be walked ends it with [`Malformed`].
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u32, Result<Message, Malformed>)> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Some((message, rest)) = split(datagram) else {
            datagram = &[];
            return Some((0, Err(Malformed)));
        };
        datagram = rest;
        let sequence = message.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |four| u32::from_ne_bytes(*four));
        Some((sequence, message_of(message)))
    })
}

/// The first message, header and all, and what follows it.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?;
    if length < HEADER {
        return None;
    }
    let message = datagram.get(..length)?;
    Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn message_of(message: &[u8]) -> Result<Message, Malformed> {
    let half =
        |at: usize| message.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |two| u16::from_ne_bytes(*two));
    let (kind, flags, body) = (half(4), half(6), message.get(HEADER..).unwrap_or_default());
    match kind {
        CT_NEW => entry(body).map(Message::New),
        CT_DELETE => entry(body).map(Message::Destroyed),
        NLMSG_DONE => Ok(Message::Done { interrupted: flags & NLM_F_DUMP_INTR != 0 }),
        NLMSG_ERROR => {
            let code = body.first_chunk().map(|four| i32::from_ne_bytes(*four)).ok_or(Malformed)?;
            Ok(Message::Error(code.saturating_neg()))
        }
        _ => Ok(Message::Other),
    }
}

fn entry(body: &[u8]) -> Result<Entry, Malformed> {
    const TUPLE_ORIG: u16 = 1;
    const TUPLE_REPLY: u16 = 2;
    const ID: u16 = 12;
    const ZONE: u16 = 18;
    const TIMESTAMP: u16 = 20;
    let (mut original, mut reply, mut zone, mut id, mut began, mut ended) = (None, None, None, None, None, None);
    for (kind, value) in attributes(body.get(NFGENMSG..).ok_or(Malformed)?) {
        match kind {
            TUPLE_ORIG => original = tuple(value),
            TUPLE_REPLY => reply = tuple(value),
            ZONE => zone = number(value).map(u16::from_be_bytes),
            ID => id = number(value).map(u32::from_be_bytes),
            TIMESTAMP => (began, ended) = stamps(value),
            _ => {}
        }
    }
    let (original, reply) = (original.ok_or(Malformed)?, reply.ok_or(Malformed)?);
    if original.proto != reply.proto || original.src.is_ipv4() != reply.src.is_ipv4() {
        return Err(Malformed);
    }
    // An answer to an echo has another type; the "port" of who is asked stays that of the question.
    let asked = original.destination_port();
    Ok(Entry {
        proto: original.proto,
        zone: zone.or(original.zone).unwrap_or(0),
        original: ((original.src, original.source_port()), (original.dst, asked)),
        reply: match reply.icmp_id {
            Some(id) => ((reply.src, asked), (reply.dst, id)),
            None => ((reply.src, reply.ports.0), (reply.dst, reply.ports.1)),
        },
        id,
        began,
        ended,
    })
}

fn stamps(value: &[u8]) -> (Option<u64>, Option<u64>) {
    let (mut began, mut ended) = (None, None);
    for (kind, value) in attributes(value) {
        match kind {
            1 => began = number(value).map(u64::from_be_bytes),
            2 => ended = number(value).map(u64::from_be_bytes),
            _ => {}
        }
    }
    (began, ended)
}

struct Tuple {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ports: (u16, u16),
    icmp_id: Option<u16>,
    icmp_type: u8,
    icmp_code: u8,
    zone: Option<u16>,
}

impl Tuple {
    fn source_port(&self) -> u16 {
        self.icmp_id.unwrap_or(self.ports.0)
    }

    fn destination_port(&self) -> u16 {
        self.icmp_id.map_or(self.ports.1, |_| u16::from_be_bytes([self.icmp_type, self.icmp_code]))
    }
}

fn tuple(value: &[u8]) -> Option<Tuple> {
    let (mut addresses, mut protocol, mut zone) = ((None, None), None, None);
    for (kind, value) in attributes(value) {
        match kind {
            1 => addresses = ip(value),
            2 => protocol = Some(value),
            3 => zone = number(value).map(u16::from_be_bytes),
            _ => {}
        }
    }
    let (src, dst) = (addresses.0?, addresses.1?);
    if src.is_ipv4() != dst.is_ipv4() {
        return None;
    }
    let mut tuple = Tuple { src, dst, proto: 0, ports: (0, 0), icmp_id: None, icmp_type: 0, icmp_code: 0, zone };
    transport(protocol?, &mut tuple)?;
    Some(tuple)
}

fn ip(value: &[u8]) -> (Option<IpAddr>, Option<IpAddr>) {
    let (mut src, mut dst) = (None, None);
    for (kind, value) in attributes(value) {
        match kind {
            1 => src = number(value).map(|octets| Ipv4Addr::from_octets(octets).into()),
            2 => dst = number(value).map(|octets| Ipv4Addr::from_octets(octets).into()),
            3 => src = number(value).map(|octets| Ipv6Addr::from_octets(octets).into()),
            4 => dst = number(value).map(|octets| Ipv6Addr::from_octets(octets).into()),
            _ => {}
        }
    }
    (src, dst)
}

fn transport(value: &[u8], tuple: &mut Tuple) -> Option<()> {
    let (mut proto, mut ports) = (None, (0, 0));
    for (kind, value) in attributes(value) {
        let byte = value.first().copied();
        let port = number(value).map(u16::from_be_bytes);
        match kind {
            1 => proto = byte,
            2 => ports.0 = port?,
            3 => ports.1 = port?,
            4 | 7 => tuple.icmp_id = Some(port?),
            5 | 8 => tuple.icmp_type = byte?,
            6 | 9 => tuple.icmp_code = byte?,
            _ => {}
        }
    }
    tuple.proto = proto?;
    // GRE's "ports" are its key, which the meter does not tell apart. TCP, UDP, SCTP.
    if matches!(tuple.proto, 6 | 17 | 132) {
        tuple.ports = ports;
    }
    Some(())
}

/// Exactly so many bytes.
fn number<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.try_into().ok()
}

/// The attributes of a nest: type without its flags, and value. Ends where they cannot be walked further.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let (length, kind) = (bytes.first_chunk::<2>()?, bytes.get(2..)?.first_chunk::<2>()?);
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        let kind = u16::from_ne_bytes(*kind) & TYPE;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
