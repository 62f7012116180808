//! The kernel's filter of a tap: it keeps everything and says how much of each frame is copied (BPF, socket(7)).
//!
//! The copy runs in the context of whoever sends, so a guest pays for each byte: 128 hold all headers. Of the few frames whose
//! *content* is read (who has which address, and fireflies of SciTags) 2048 are kept, and of those with extension headers of IPv6.

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LEN,
    BPF_MSH, BPF_RET, BPF_W, sock_filter,
};

/// Bytes kept of a frame: Ethernet, one more tag, IPv4 with all options or IPv6 with some extensions, TCP or what an ICMP
/// error quotes.
pub const SHORT: u32 = 128;
/// Bytes kept of a frame whose content is read.
pub const DEEP: u32 = 2048;
/// UDP ports, of either end, whose datagrams are read: DHCP (RFC 2131, RFC 9915), fireflies (SciTags).
pub const DEEP_PORTS: [u16; 5] = [67, 68, 546, 547, 10_514];

const ARP: u32 = 0x0806;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;
/// Extension headers of IPv6 that may be long: hop by hop, routing, authentication, destination. A guest that makes them so long that the ports
/// behind them are cut off would be metered without.
const EXTENSIONS: [u32; 4] = [0, 43, 51, 60];
/// Router solicitation to redirect (RFC 4861).
const NEIGHBOUR: (u32, u32) = (133, 137);
/// Ethernet, the longest IPv4 header, both ports. In a shorter frame a load could miss, and a program that loads what is not
/// there returns 0: the frame would pass unseen. Shorter ones are kept whole anyway.
const REACH: u32 = 14 + 60 + 4;

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Short,
    Deep,
    Ipv4,
    Ipv6,
    Neighbour,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Load(u32, u32),
    Test(u32, u32, To, To),
    Label(To),
    Return(u32),
}

/// Keeps nothing: the tap's capture is ending.
#[must_use]
pub fn nothing() -> Vec<sock_filter> {
    vec![instruction(BPF_RET | BPF_K, 0, 0, 0)]
}

/// Keeps every frame, cut to what is read of it.
#[must_use]
pub fn snap() -> Vec<sock_filter> {
    use To::{Deep, Ipv4, Ipv6, Neighbour, Next, Short};
    let absolute = |size| BPF_LD | size | BPF_ABS;
    let mut steps = vec![
        Step::Load(BPF_LD | BPF_W | BPF_LEN, 0),
        Step::Test(BPF_JGE, REACH, Next, Short),
        Step::Load(absolute(BPF_H), 12),
        Step::Test(BPF_JEQ, ARP, Deep, Next),
        Step::Test(BPF_JEQ, IPV4, Ipv4, Next),
        Step::Test(BPF_JEQ, IPV6, Ipv6, Short),
        Step::Label(Ipv4),
        Step::Load(absolute(BPF_B), 23),
        Step::Test(BPF_JEQ, UDP, Next, Short),
        // A later fragment has no ports.
        Step::Load(absolute(BPF_H), 20),
        Step::Test(BPF_JSET, 0x1fff, Short, Next),
        Step::Load(BPF_LDX | BPF_B | BPF_MSH, 14),
    ];
    steps.extend(ports(BPF_LD | BPF_H | BPF_IND, 14));
    steps.extend([Step::Label(Ipv6), Step::Load(absolute(BPF_B), 20), Step::Test(BPF_JEQ, ICMPV6, Neighbour, Next)]);
    steps.extend(EXTENSIONS.map(|kind| Step::Test(BPF_JEQ, kind, Deep, Next)));
    steps.push(Step::Test(BPF_JEQ, UDP, Next, Short));
    steps.extend(ports(absolute(BPF_H), 54));
    steps.extend([
        Step::Label(Neighbour),
        Step::Load(absolute(BPF_B), 54),
        Step::Test(BPF_JGE, NEIGHBOUR.0, Next, Short),
        Step::Test(BPF_JGT, NEIGHBOUR.1, Short, Deep),
        Step::Label(Short),
        Step::Return(SHORT),
        Step::Label(Deep),
        Step::Return(DEEP),
    ]);
    assemble(&steps)
}

/// Deep if the port here or the one behind it is one of those, else short.
fn ports(load: u32, at: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    for at in [at, at + 2] {
        steps.push(Step::Load(load, at));
        steps.extend(DEEP_PORTS.map(|port| Step::Test(BPF_JEQ, port.into(), To::Deep, To::Next)));
    }
    // The last one that does not match ends it.
    if let Some(Step::Test(.., other)) = steps.last_mut() {
        *other = To::Short;
    }
    steps
}

fn assemble(steps: &[Step]) -> Vec<sock_filter> {
    let place_of = |to: To| {
        let before = steps.iter().take_while(|step| !matches!(step, Step::Label(label) if *label == to));
        before.filter(|step| !matches!(step, Step::Label(_))).count()
    };
    let mut program = Vec::new();
    for step in steps {
        let place = program.len();
        // Jumps go forward, over fewer than 256 instructions; the tests run every branch.
        let distance = |to| if to == To::Next { 0 } else { u8::try_from(place_of(to) - place - 1).unwrap_or(u8::MAX) };
        match *step {
            Step::Load(code, k) => program.push(instruction(code, 0, 0, k)),
            Step::Test(test, k, yes, no) => {
                program.push(instruction(BPF_JMP | test | BPF_K, distance(yes), distance(no), k));
            }
            Step::Return(bytes) => program.push(instruction(BPF_RET | BPF_K, 0, 0, bytes)),
            Step::Label(_) => {}
        }
    }
    program
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // Codes of classic BPF fit into 8 bits.
    sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}

#[cfg(test)]
mod tests;
