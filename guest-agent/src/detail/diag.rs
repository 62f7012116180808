//! The kernel's socket diagnosis messages (`linux/sock_diag.h`, `linux/inet_diag.h`): requests out, sockets in.
//!
//! Encoded here: the well-kept crate for this family of messages does not read what tells that a socket is gone, and decodes
//! (and allocates) counters that nobody here wants. Two fixed structures are all there is to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `SOCK_DIAG_BY_FAMILY`, the type of a request and of every socket in answer.
const BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH`: all sockets.
const DUMP: u16 = 0x301;
/// `INET_DIAG_PROTOCOL`: only word on the protocol when a socket is gone.
const PROTOCOL: u16 = 10;
/// `idiag_timer` of the remains of a connection.
const WAITING: u8 = 3;
/// `AF_INET` and `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of a whole request: header and `struct inet_diag_req_v2`.
const REQUEST: usize = HEADER + 56;
/// Bytes of `struct inet_diag_msg`.
const BODY: usize = 72;

/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;

/// What can be asked for, one dump each: family and protocol.
pub const DUMPS: [(u8, u8); 4] = [(2, TCP), (10, TCP), (2, UDP), (10, UDP)];

/// Multicast groups that tell of sockets that are gone: TCP and UDP over IPv4, over IPv6 (`SKNLGRP_INET*_DESTROY`).
pub const GONE: [u32; 4] = [1, 2, 3, 4];

/// States that have somebody at the other end. Of TCP all but waiting times (their socket is gone, and was told of then),
/// closed and listening ones; of UDP, connected ones.
const fn states(protocol: u8) -> u32 {
    const ESTABLISHED: u32 = 1 << 1;
    const SYN_SENT: u32 = 1 << 2;
    const FIN_WAIT: u32 = 1 << 4 | 1 << 5;
    const CLOSING: u32 = 1 << 8 | 1 << 9 | 1 << 11;
    if protocol == UDP { ESTABLISHED } else { ESTABLISHED | SYN_SENT | FIN_WAIT | CLOSING }
}

/// A socket with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// IP protocol.
    pub proto: u8,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// What the kernel calls it as long as it runs: never given twice.
    pub cookie: u64,
    /// Number in `/proc/PID/fd`; 0 before it is accepted and after the last descriptor is closed.
    pub inode: u32,
    /// Whose it was when made, as the asker's user namespace calls him; 0 too when it is gone.
    pub uid: u32,
}

impl Socket {
    /// Whether its packets can leave the namespace at all: what a payload says to itself is nobody's concern, and there is a
    /// lot of it.
    #[must_use]
    pub fn leaves(&self) -> bool {
        let peer = self.peer.ip();
        self.peer.port() != 0 && !peer.is_unspecified() && !peer.is_loopback() && peer != self.local.ip()
    }
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A socket; of a sequence number that tells which request it answers (0: none, it is gone).
    Socket(u32, Socket),
    /// The end of the answer to this request, and the error number if it failed (0: it did not).
    End(u32, i32),
}

/// A request for all sockets of a family and a protocol.
#[must_use]
pub fn request((family, protocol): (u8, u8), sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend(u32::try_from(REQUEST).unwrap_or_default().to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(DUMP.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    // No extensions wanted, one byte of padding.
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(states(protocol).to_ne_bytes());
    bytes.resize(REQUEST, 0);
    bytes
}

/// The messages of one datagram. `protocol` is that of the dump; a socket that is gone names its own. What is not understood
/// is skipped, and a length that cannot be true ends it.
pub fn messages(mut bytes: &[u8], protocol: Option<u8>) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
            let whole = bytes.get(..length).filter(|whole| whole.len() >= HEADER)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let Some(message) = message(whole, protocol) {
                return Some(message);
            }
        }
    })
}

fn message(whole: &[u8], protocol: Option<u8>) -> Option<Message> {
    let (kind, sequence, body) = (u16_at(whole, 4)?, u32_at(whole, 8)?, whole.get(HEADER..)?);
    match kind {
        NLMSG_ERROR | NLMSG_DONE => {
            // A dump that went well ends with 0 or with nothing.
            let code = u32_at(body, 0).unwrap_or_default().cast_signed();
            Some(Message::End(sequence, code.saturating_neg()))
        }
        BY_FAMILY => socket(body, protocol).map(|socket| Message::Socket(sequence, socket)),
        _ => None,
    }
}

fn socket(body: &[u8], protocol: Option<u8>) -> Option<Socket> {
    let &[family, _, timer, ..] = body else { return None };
    // What waits out its time is the remains of a socket, shown in its last state but under another cookie.
    if !FAMILIES.contains(&family) || timer == WAITING {
        return None;
    }
    let attributes = body.get(BODY..)?;
    let proto = protocol.or_else(|| attribute(attributes, PROTOCOL)?.first().copied())?;
    let port = |at| Some(u16::from_be_bytes(body.get(at..)?.first_chunk().copied()?));
    let address = |at| {
        let bytes: [u8; 16] = body.get(at..)?.first_chunk().copied()?;
        let [a, b, c, d, ..] = bytes;
        // A socket of the newer family may hold a connection of the older one: it is named as it is on the wire.
        Some(if family == 2 {
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        })
    };
    let (local, peer) = (SocketAddr::new(address(8)?, port(4)?), SocketAddr::new(address(24)?, port(6)?));
    let cookie = u64::from_ne_bytes(body.get(44..)?.first_chunk().copied()?);
    Some(Socket { proto, local, peer, cookie, uid: u32_at(body, 64)?, inode: u32_at(body, 68)? })
}

/// The content of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(bytes, 0)?);
        let content = bytes.get(4..length)?;
        if u16_at(bytes, 2)? == wanted {
            return Some(content);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
#[path = "diag_tests.rs"]
mod tests;
