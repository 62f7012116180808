//! The program, run by an interpreter of our own over every kind of frame. That the kernel takes it and does the same is
//! tested with real packets (`tests/capture.rs`).
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

/// What the program says of a frame: as the kernel's interpreter, for the instructions that are used.
fn run(frame: &[u8]) -> u32 {
    let program = snap();
    let load = |at: usize, size: u32| -> Option<u32> {
        match size {
            BPF_B => frame.get(at).map(|byte| u32::from(*byte)),
            BPF_H => frame.get(at..at + 2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))),
            _ => panic!("size {size}"),
        }
    };
    let (mut a, mut x, mut at) = (0_u32, 0_u32, 0_usize);
    loop {
        let step = program[at];
        at += 1;
        let (code, k) = (u32::from(step.code), step.k);
        let size = code & 0x18;
        let (class, mode) = (code & 0x07, code & 0xe0);
        match class {
            BPF_RET => return k,
            BPF_JMP => {
                let taken = match code & 0xf0 {
                    BPF_JEQ => a == k,
                    BPF_JGE => a >= k,
                    BPF_JGT => a > k,
                    BPF_JSET => a & k != 0,
                    other => panic!("jump {other:#x}"),
                };
                at += usize::from(if taken { step.jt } else { step.jf });
            }
            _ => {
                let loaded = match mode {
                    BPF_LEN => u32::try_from(frame.len()).ok(),
                    BPF_ABS => load(k as usize, size),
                    BPF_IND => load((k + x) as usize, size),
                    BPF_MSH => load(k as usize, BPF_B).map(|value| 4 * (value & 0x0f)),
                    other => panic!("mode {other:#x}"),
                };
                // A load of what is not there ends the program with 0.
                let Some(value) = loaded else { return 0 };
                *(if class == BPF_LDX { &mut x } else { &mut a }) = value;
            }
        }
    }
}

fn ethernet(ether_type: u32, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend_from_slice(&u16::try_from(ether_type).unwrap().to_be_bytes());
    frame.extend_from_slice(rest);
    frame.resize(frame.len().max(300), 0);
    frame
}

fn ipv4(options: usize, proto: u8, fragment: u16, ports: (u16, u16)) -> Vec<u8> {
    let mut packet = vec![0; 20 + 4 * options];
    packet[0] = 0x45 + u8::try_from(options).unwrap();
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[9] = proto;
    packet.extend_from_slice(&ports.0.to_be_bytes());
    packet.extend_from_slice(&ports.1.to_be_bytes());
    ethernet(IPV4, &packet)
}

fn ipv6(proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[6] = proto;
    packet.extend_from_slice(payload);
    ethernet(IPV6, &packet)
}

#[test]
fn only_what_is_read_is_kept_deep() {
    assert_eq!(run(&ethernet(ARP, &[])), DEEP);
    assert_eq!(run(&ethernet(0x8100, &[])), SHORT);
    for options in 0..=10 {
        for port in DEEP_PORTS {
            assert_eq!(run(&ipv4(options, 17, 0, (port, 5))), DEEP, "{options} {port}");
            assert_eq!(run(&ipv4(options, 17, 0x2000, (5, port))), DEEP, "the first fragment");
            assert_eq!(run(&ipv4(options, 17, 7, (port, port))), SHORT, "a later fragment has no ports");
            assert_eq!(run(&ipv4(options, 6, 0, (port, port))), SHORT);
        }
        assert_eq!(run(&ipv4(options, 17, 0, (53, 69))), SHORT);
    }
    for port in DEEP_PORTS {
        let [high, low] = port.to_be_bytes();
        assert_eq!(run(&ipv6(17, &[high, low, 0, 9])), DEEP);
        assert_eq!(run(&ipv6(17, &[0, 9, high, low])), DEEP);
        assert_eq!(run(&ipv6(6, &[high, low, high, low])), SHORT);
    }
    assert_eq!(run(&ipv6(17, &[0, 53, 0, 9])), SHORT);
    EXTENSIONS.iter().for_each(|kind| assert_eq!(run(&ipv6(u8::try_from(*kind).unwrap(), &[17, 9])), DEEP));
    assert_eq!(run(&ipv6(44, &[17, 0])), SHORT, "a fragment's payload");
    for kind in 0..=255 {
        let wanted = if (133..=137).contains(&kind) { DEEP } else { SHORT };
        assert_eq!(run(&ipv6(58, &[kind])), wanted, "ICMPv6 type {kind}");
    }
}

proptest! {
    /// A program that returns 0 hides the frame: nothing, however short or odd, may bring it there.
    #[test]
    fn no_frame_is_hidden(bytes in proptest::collection::vec(any::<u8>(), 0..140), ether in 0_usize..4, proto in any::<u8>()) {
        let mut frame = bytes;
        if let Some(place) = frame.get_mut(12..14) {
            place.copy_from_slice(&[[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]][ether]);
        }
        for at in [20, 23] {
            if let Some(place) = frame.get_mut(at) {
                *place = [17, 58, proto][usize::from(proto) % 3];
            }
        }
        prop_assert!(matches!(run(&frame), SHORT | DEEP));
    }
}

#[test]
fn an_ending_capture_takes_nothing() {
    assert_eq!(nothing().len(), 1);
    assert_eq!(nothing()[0].k, 0);
}
