//! One of everything that a meter has to tell apart.

use std::net::IpAddr;

use super::{Ends, Frame, Inner, icmp, icmp6, ipv4, ipv6, sctp, tcp, udp};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;
/// "Don't fragment", as nearly every packet has it.
const WHOLE: (u16, u16) = (0, 0x4000);
const MORE: u16 = 0x2000;

/// 14:03:22 UTC on 22 November 2026, in microseconds.
pub const START: u64 = 1_795_356_202_000_000;

/// Packets with their times in microseconds, a millisecond apart.
#[derive(Debug, Default)]
pub struct Zoo {
    /// Ethernet frames.
    pub frames: Vec<(u64, Vec<u8>)>,
}

impl Zoo {
    /// All of it.
    #[must_use]
    pub fn new() -> Self {
        let mut zoo = Self::default();
        zoo.connections();
        zoo.tags();
        zoo.extensions();
        zoo.fragments();
        zoo.messages();
        zoo.others();
        zoo
    }

    fn add(&mut self, frame: &Frame) {
        self.raw(frame.ethernet());
    }

    fn raw(&mut self, bytes: Vec<u8>) {
        let micros = START + 1000 * self.frames.len() as u64;
        self.frames.push((micros, bytes));
    }

    /// A connection from its first packet to its last, with `bulk` bytes in each of three answers.
    fn connection(&mut self, ends: Ends, ports: (u16, u16), bulk: usize, wrap: impl Fn(Frame) -> Frame) {
        let (src, dst) = ports;
        let steps = [
            (true, SYN, 0),
            (false, SYN | ACK, 0),
            (true, ACK, 0),
            (true, ACK, 300),
            (false, ACK, bulk),
            (false, ACK, bulk),
            (false, ACK, bulk),
            (true, ACK, 0),
            (false, FIN | ACK, 0),
            (true, FIN | ACK, 0),
            (false, ACK, 0),
        ];
        for (out, flags, payload) in steps {
            let (ends, src, dst) = if out { (ends, src, dst) } else { (ends.back(), dst, src) };
            let inner = tcp(src, dst, flags, payload);
            self.add(&wrap(packet(ends, &inner)));
        }
    }

    fn connections(&mut self) {
        // What a guest with offload sends: frames of 60 kB.
        self.connection(v4(5, 7), (40_001, 443), 60_000, |frame| frame);
        self.connection(v6(5, 7), (40_002, 443), 60_000, |frame| frame);
        self.connection(v4(5, 8), (40_003, 22), 1400, |frame| frame);
        // Refused; the answer comes off a wire, padded to the shortest frame there.
        self.add(&packet(v4(5, 9), &tcp(40_004, 23, SYN, 0)));
        let mut refusal = packet(v4(9, 5), &tcp(23, 40_004, RST | ACK, 0)).ethernet();
        refusal.resize(60, 0);
        self.raw(refusal);
        for port in 0..20 {
            self.add(&packet(v4(5, 53), &udp(50_000 + port, 53, &[1; 33])));
            self.add(&packet(v4(53, 5), &udp(53, 50_000 + port, &[1; 120])));
        }
    }

    fn tags(&mut self) {
        self.connection(v4(15, 17), (40_010, 443), 1400, |frame| frame.tagged(42));
        self.connection(v4(25, 27), (40_011, 443), 1400, |frame| frame.tagged(42).tagged(100));
        self.connection(v6(15, 17), (40_012, 443), 1400, |frame| frame.tagged(43));
    }

    fn extensions(&mut self) {
        let hop = (0, vec![0, 1, 4, 0, 0, 0, 0]);
        let destination = (60, vec![0, 1, 4, 0, 0, 0, 0]);
        let routing = (43, [vec![2, 4, 0], vec![0; 20]].concat());
        let authentication = (51, [vec![4], vec![0; 22]].concat());
        let chains = [vec![hop.clone()], vec![hop, destination.clone()], vec![routing], vec![authentication]];
        for (at, chain) in (0u16..).zip(chains) {
            let ends = v6(30 + at, 40);
            self.add(&ipv6(ends, &udp(41_000 + at, 4433, &[2; 100]), &chain, 0));
            self.add(&ipv6(ends.back(), &udp(4433, 41_000 + at, &[2; 200]), std::slice::from_ref(&destination), 0));
        }
        // Options of IPv4: router alert and its padding.
        self.add(&ipv4(v4(31, 41), &udp(41_010, 4434, &[2; 64]), &[0x94, 4, 0, 0], WHOLE));
    }

    fn fragments(&mut self) {
        let whole = udp(42_000, 5000, &[3; 3000]);
        let piece = |range: std::ops::Range<usize>| Inner {
            proto: 17,
            bytes: whole.bytes.get(range).unwrap_or_default().to_vec(),
        };
        let offsets = [(0..1480, MORE), (1480..2960, MORE | 185), (2960..3008, 370)];
        for (range, place) in offsets.clone() {
            self.add(&ipv4(v4(50, 60), &piece(range), &[], (777, place)));
        }
        // Without its first.
        for (range, place) in offsets.clone().into_iter().skip(1) {
            self.add(&ipv4(v4(51, 61), &piece(range), &[], (778, place)));
        }
        for (range, place) in offsets {
            let place = (place & 0x1fff) << 3 | u16::from(place & MORE != 0);
            let header = [vec![0], place.to_be_bytes().to_vec(), vec![0, 0, 3, 9]].concat();
            self.add(&ipv6(v6(50, 60), &piece(range), &[(44, header)], 0));
        }
    }

    fn messages(&mut self) {
        for _ in 0..3 {
            self.add(&packet(v4(5, 1), &icmp(8, 0, 77, &[4; 56])));
            self.add(&packet(v4(1, 5), &icmp(0, 0, 77, &[4; 56])));
            self.add(&packet(v6(5, 1), &icmp6(128, 0, 78, &[4; 56])));
            self.add(&packet(v6(1, 5), &icmp6(129, 0, 78, &[4; 56])));
        }
        // Nobody there: the error repeats what it speaks of.
        let call = packet(v4(70, 71), &udp(43_000, 9, &[5; 20]));
        self.add(&call);
        self.add(&packet(v4(71, 70), &icmp(3, 3, 0, call.network())));
        let call = packet(v6(70, 71), &udp(43_001, 9, &[5; 20]));
        self.add(&call);
        self.add(&packet(v6(71, 70), &icmp6(1, 4, 0, call.network())));
    }

    fn others(&mut self) {
        self.add(&packet(v4(80, 81), &sctp(44_000, 2905, 100)));
        self.add(&packet(v4(81, 80), &sctp(2905, 44_000, 60)));
        for (proto, peer) in [(47, 82), (50, 83), (103, 84)] {
            let bytes = [vec![0, 0, 0x88, 0x0b], vec![6; 60]].concat();
            self.add(&packet(v4(80, peer), &Inner { proto, bytes }));
        }
        let arp =
            [&[0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 1, 10, 0, 0, 5], &[0; 6][..], &[10, 0, 0, 1]].concat();
        self.add(&Frame::new(0x0806, arp));
        self.add(&Frame::new(0x88cc, vec![2, 7, 4, 0x52, 0x54, 0, 0, 0, 1, 0, 0]));
    }
}

/// Of either family.
fn packet(ends: Ends, inner: &Inner) -> Frame {
    if ends.src.is_ipv4() { ipv4(ends, inner, &[], WHOLE) } else { ipv6(ends, inner, &[], 0) }
}

fn v4(src: u8, dst: u8) -> Ends {
    let ip = |host| IpAddr::from([10, 0, 0, host]);
    Ends { src: ip(src), dst: ip(dst) }
}

fn v6(src: u16, dst: u16) -> Ends {
    let ip = |host| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]);
    Ends { src: ip(src), dst: ip(dst) }
}
