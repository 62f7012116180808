//! A busy hour in one file: many conversations at once, none of which is next to its own packets.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Ends, Frame, Inner, PcapWriter, icmp, icmp6, ipv4, ipv6, tcp, udp};

const SYN: u8 = 2;
const ACK: u8 = 16;
const PUSH: u8 = 8;
const START: u64 = 1_790_000_000_000_000; // µs

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Conversations, all of them under way at once.
    pub conversations: u32,
    /// Packets in all.
    pub packets: u64,
    /// Seconds from the first packet to the last.
    pub seconds: u64,
    /// Bytes kept of each.
    pub snap: u32,
}

/// Writes the file: 80 % TCP, 17 % UDP, 3 % echoes; one in ten IPv6, one in twenty tagged; sizes from an acknowledgement to an unsegmented
/// frame of a guest. Every packet belongs to a conversation picked at random.
///
/// # Errors
/// The writer's.
pub fn write_mix(out: impl Write, mix: Mix) -> io::Result<()> {
    let mut file = PcapWriter::new(out, mix.snap, 1)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut sent = vec![0u32; mix.conversations as usize];
    for number in 0..mix.packets {
        let micros = START + number * mix.seconds * 1_000_000 / mix.packets;
        // Each conversation once first, so that all are there.
        let which = if number < u64::from(mix.conversations) { number } else { random.below(mix.conversations.into()) };
        let Some(count) = usize::try_from(which).ok().and_then(|which| sent.get_mut(which)) else { continue };
        let (frame, wire_len) = packet(which, *count, random.next());
        *count += 1;
        let bytes = frame.ethernet();
        let kept = bytes.get(..mix.snap as usize).unwrap_or(&bytes);
        file.cut(micros, kept, wire_len.max(bytes.len()))?;
    }
    file.finish().map(drop)
}

/// The `count`th packet of a conversation. Only the headers are made; the length is that of the whole.
fn packet(which: u64, count: u32, dice: u64) -> (Frame, usize) {
    let v6 = which % 10 == 3;
    let from_orig = count.is_multiple_of(2);
    let size = match dice % 10 {
        0..4 => 0,
        4..6 => 200,
        6..9 => 1400,
        _ => 32_000,
    };
    let (inner, size) = transport(which, count, from_orig, v6, size);
    let ends = ends(which, v6);
    let ends = if from_orig { ends } else { ends.back() };
    let frame = if v6 { ipv6(ends, &inner, &[], 0) } else { ipv4(ends, &inner, &[], (0, 0x4000)) };
    let frame = frame.announcing(size);
    let frame = if which % 20 == 7 { frame.tagged(42) } else { frame };
    let wire_len = frame.ethernet().len().max(14 + frame.network().len() + size);
    (frame, wire_len)
}

fn transport(which: u64, count: u32, from_orig: bool, v6: bool, size: usize) -> (Inner, usize) {
    let port = 10_240 + u16::try_from(which % 50_000).unwrap_or(0);
    let service = if which % 100 < 80 { 443 } else { 53 };
    let (src, dst) = if from_orig { (port, service) } else { (service, port) };
    match which % 100 {
        0..80 => match count {
            0 => (tcp(src, dst, SYN, 0), 0),
            1 => (tcp(src, dst, SYN | ACK, 0), 0),
            _ => (tcp(src, dst, if size > 0 { ACK | PUSH } else { ACK }, 0), size),
        },
        80..97 => (udp(src, dst, &[0; 32]), size.min(1400)),
        _ => {
            let echo = match (v6, from_orig) {
                (false, true) => icmp(8, 0, port, &[0; 56]),
                (false, false) => icmp(0, 0, port, &[0; 56]),
                (true, true) => icmp6(128, 0, port, &[0; 56]),
                (true, false) => icmp6(129, 0, port, &[0; 56]),
            };
            (echo, 0)
        }
    }
}

fn ends(which: u64, v6: bool) -> Ends {
    let [.., a, b, c] = which.to_be_bytes();
    // As many servers as a busy VM talks to, and a few addresses of its own.
    let peer = which.wrapping_mul(0x9e37_79b9) % 4096;
    let [.., d, e] = peer.to_be_bytes();
    if v6 {
        let host = u16::from_be_bytes([b, c]);
        Ends {
            src: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, a.into(), host)),
            dst: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, d.into(), e.into())),
        }
    } else {
        Ends { src: IpAddr::V4(Ipv4Addr::new(10, a, b, 5)), dst: IpAddr::V4(Ipv4Addr::new(192, 168, d, e)) }
    }
}

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    const fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}
