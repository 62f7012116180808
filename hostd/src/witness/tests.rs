#![allow(clippy::unwrap_used)]
use std::net::{IpAddr, Ipv6Addr};

use vestigo_model::{Basis, Expected, SciTagSource, Timestamp, Tuple};

use super::*;
use crate::{
    decode::{self, Heading, Undecodable},
    meter::{Meter, MeterOptions},
};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER: Mac = Mac([2, 0, 0, 0, 0, 254]);
use Heading::{FromVm, ToVm};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A tap as the meter has it.
struct World {
    meter: Meter<TapWitness>,
    witness: TapWitness,
    now: i64,
}

impl World {
    fn new() -> Self {
        let witness = TapWitness::new(MAC, Vec::new());
        Self { meter: Meter::with_witness(MeterOptions::default(), Some(MAC), witness.clone()), witness, now: 100 }
    }

    fn frame(&mut self, heading: Heading, bytes: &[u8]) {
        let time = at(self.now);
        self.meter.frame(&Frame { bytes, wire_len: bytes.len(), vlan: None, time, heading });
    }

    fn learnt(&self) -> Vec<(String, Basis)> {
        self.witness.memory().learnt().iter().map(|one| (one.ip.to_string(), one.by)).collect()
    }

    fn judged(&self, address: &str) -> Expected {
        self.witness.memory().expected(&[], ip(address), at(self.now)).0
    }
}

fn ethernet(dst: Mac, src: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, &kind.to_be_bytes(), payload].concat()
}

fn arp(src: Mac, sender: Mac, address: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(Mac([255; 6]), src, 0x0806, &[&head[..], &sender.0, &address, &[0; 6], &[10, 0, 0, 1]].concat())
}

fn udp4(dst: Mac, src: Mac, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = |extra: usize| u16::try_from(payload.len() + extra).unwrap().to_be_bytes();
    let head = [&[0x45, 0][..], &length(28), &[0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 5]].concat();
    let udp = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &length(8), &[0, 0]].concat();
    ethernet(dst, src, 0x0800, &[head, udp, payload.to_vec()].concat())
}

fn ip6(dst: Mac, src: Mac, source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let target: Ipv6Addr = "ff02::1".parse().unwrap();
    let head = [&[0x60, 0, 0, 0][..], &length, &[next, 255], &source.octets(), &target.octets()].concat();
    ethernet(dst, src, 0x86dd, &[head, payload.to_vec()].concat())
}

fn dhcp_message(op: u8, mac: Mac, (kind, transaction): (u8, u32), yours: [u8; 4], seconds: u32) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[op, 1, 6, 0]);
    message[4..8].copy_from_slice(&transaction.to_be_bytes());
    message[12..16].copy_from_slice(&if op == 1 { yours } else { [0; 4] });
    message[16..20].copy_from_slice(&if op == 2 { yours } else { [0; 4] });
    message[28..34].copy_from_slice(&mac.0);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([0, 53, 1, kind, 51, 4]);
    message.extend(seconds.to_be_bytes());
    message.push(255);
    message
}

#[test]
fn the_vms_own_word_makes_an_address_announced() {
    let mut world = World::new();
    world.frame(FromVm, &arp(MAC, MAC, [10, 0, 0, 9]));
    world.frame(FromVm, &arp(MAC, MAC, [0, 0, 0, 0]));
    world.frame(FromVm, &arp(MAC, SERVER, [10, 0, 0, 8]));
    world.frame(ToVm, &arp(SERVER, SERVER, [10, 0, 0, 254]));
    let target: Ipv6Addr = "2001:db8::9".parse().unwrap();
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
    world.frame(FromVm, &ip6(Mac([0x33; 6]), MAC, Ipv6Addr::UNSPECIFIED, 58, &solicitation));
    let link_local: Ipv6Addr = "fe80::9".parse().unwrap();
    let advertisement = [&[136, 0, 0, 0, 0, 0, 0, 0][..], &link_local.octets()].concat();
    world.frame(FromVm, &ip6(Mac([0x33; 6]), MAC, link_local, 58, &advertisement));
    let announced = |ip: &str| (ip.to_owned(), Basis::Announced);
    assert_eq!(world.learnt(), [announced("10.0.0.9"), announced("2001:db8::9")]);
    assert_eq!(world.judged("10.0.0.9"), Expected::Unknown);
    assert_eq!(world.judged("10.0.0.8"), Expected::Unknown);
}

/// What neighbours shout, and what strangers send to the ports of DHCP, must not keep the VM's own address from being learnt.
#[test]
fn the_frames_of_others_take_no_room_from_the_vms_own() {
    let mut world = World::new();
    world.frame(FromVm, &udp4(SERVER, MAC, (68, 67), &dhcp_message(1, MAC, (3, 77), [0; 4], 0)));
    let acknowledged = |transaction| {
        let message = dhcp_message(2, MAC, (5, transaction), [10, 0, 0, 5], 600);
        udp4(MAC, SERVER, (67, 68), &message)
    };
    for _ in 0..300 {
        world.frame(ToVm, &arp(SERVER, SERVER, [10, 0, 0, 254]));
        world.frame(ToVm, &udp4(MAC, SERVER, (9, 10_514), b"{}"));
        world.frame(ToVm, &udp4(MAC, SERVER, (67, 68), b"no answer to anything"));
        world.frame(ToVm, &acknowledged(78));
    }
    world.frame(ToVm, &acknowledged(77));
    assert_eq!(world.learnt(), [("10.0.0.5".to_owned(), Basis::Dhcp)]);
    assert_eq!(world.witness.memory().counts().unread, 0);
}

#[test]
fn an_acknowledgement_counts_when_the_vm_asked_and_it_is_for_the_vm() {
    let mut world = World::new();
    let request = udp4(SERVER, MAC, (68, 67), &dhcp_message(1, MAC, (3, 77), [0; 4], 0));
    let reply = |mac, kind, transaction, last| {
        let message = dhcp_message(2, mac, (kind, transaction), [10, 0, 0, last], 600);
        udp4(Mac([255; 6]), SERVER, (67, 68), &message)
    };
    world.frame(ToVm, &reply(MAC, 5, 77, 5));
    assert!(world.learnt().is_empty(), "nobody asked");
    world.frame(FromVm, &request);
    world.frame(ToVm, &reply(SERVER, 5, 77, 6));
    world.frame(ToVm, &reply(MAC, 2, 77, 6));
    world.frame(ToVm, &reply(MAC, 5, 78, 6));
    world.frame(FromVm, &udp4(SERVER, MAC, (67, 68), &dhcp_message(2, MAC, (5, 77), [10, 0, 0, 6], 600)));
    assert!(world.learnt().is_empty(), "another's, an offer, another request's, and the VM's own forgery");
    world.frame(ToVm, &reply(MAC, 5, 77, 5));
    assert_eq!(world.learnt(), [("10.0.0.5".to_owned(), Basis::Dhcp)]);
    assert_eq!((world.judged("10.0.0.5"), world.judged("10.0.0.6")), (Expected::Yes, Expected::No));
    world.now += 601;
    assert_eq!(world.judged("10.0.0.5"), Expected::Unknown, "it was not renewed");
    world.frame(FromVm, &request);
    world.frame(ToVm, &reply(MAC, 5, 77, 5));
    assert_eq!(world.judged("10.0.0.5"), Expected::Yes);
    world.frame(FromVm, &udp4(SERVER, MAC, (68, 67), &dhcp_message(1, MAC, (7, 79), [10, 0, 0, 5], 0)));
    assert!(world.learnt().is_empty(), "given back");
}

#[test]
fn dhcp_of_ipv6_gives_addresses_too() {
    let mut world = World::new();
    let server: Ipv6Addr = "fe80::254".parse().unwrap();
    let given: Ipv6Addr = "2001:db8::77".parse().unwrap();
    let address = [&[0, 5, 0, 24][..], &given.octets(), &[0, 0, 1, 0], &[0, 0, 2, 88]].concat();
    let association = [&[0, 3, 0, 40, 0, 0, 0, 1][..], &[0; 8], &address].concat();
    let reply = [&[7, 1, 2, 3, 0, 1, 0, 2, 9, 9][..], &association].concat();
    let udp = |ports: (u16, u16), message: &[u8]| {
        let length = u16::try_from(message.len() + 8).unwrap().to_be_bytes();
        [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &length, &[0, 0], message].concat()
    };
    world.frame(FromVm, &ip6(Mac([0x33; 6]), MAC, "fe80::1".parse().unwrap(), 17, &udp((546, 547), &[3, 1, 2, 3])));
    world.frame(ToVm, &ip6(MAC, SERVER, server, 17, &udp((547, 546), &reply)));
    assert_eq!(world.learnt(), [("2001:db8::77".to_owned(), Basis::Dhcp)]);
    world.now += 601;
    assert_eq!(world.judged("2001:db8::77"), Expected::Unknown, "its valid lifetime is 600 seconds");
}

#[test]
fn a_firefly_names_the_flow_it_speaks_of_both_ways() {
    let mut world = World::new();
    // As XRootD (XrdNetPMarkFF) and flowd write them: an abbreviated header, and members that are nobody's business here.
    let firefly = br#"<134>1 - host xrootd - firefly-json - {"version":1,"flow-lifecycle":{"state":"ongoing",
        "current-time":"2026-11-28T12:00:00.000000+00:00"},"usage":{"received":1,"sent":2},"netlink":{"rtt":0.5},
        "flow-id":{"afi":"ipv4","src-ip":"10.0.0.5","dst-ip":"192.0.2.1","protocol":"tcp","src-port":1094,"dst-port":40000},
        "context":{"experiment-id":2,"activity-id":15,"application":"xrootd"}}"#;
    world.frame(FromVm, &udp4(SERVER, MAC, (5000, 10_514), firefly));
    world.frame(FromVm, &udp4(SERVER, MAC, (5000, 10_514), b"<134>1 - no json"));
    world.frame(FromVm, &udp4(SERVER, MAC, (5000, 10_514), &firefly[..firefly.len() - 3]));
    world.frame(ToVm, &udp4(MAC, SERVER, (5000, 10_514), &firefly.map(|byte| if byte == b'2' { b'3' } else { byte })));
    let counts = world.witness.memory().counts();
    assert_eq!((counts.fireflies, counts.unreadable), (1, 2));
    let flow = Tuple { src_ip: ip("192.0.2.1"), src_port: 40_000, dst_ip: ip("10.0.0.5"), dst_port: 1094, proto: 6 };
    let tag = world.witness.memory().named(flow, at(200)).unwrap().0;
    assert_eq!((tag.experiment, tag.activity, tag.by), (2, 15, SciTagSource::Firefly));
    let other = Tuple { src_port: 40_001, ..flow };
    assert!(world.witness.memory().named(other, at(200)).is_none());
}

#[test]
fn what_a_guest_makes_up_is_bounded_and_counted() {
    let mut world = World::new();
    for n in 0..=255 {
        world.now += 1;
        world.frame(FromVm, &arp(MAC, MAC, [10, 0, 1, n]));
        world.frame(FromVm, &arp(MAC, MAC, [10, 0, 0, 9]));
    }
    assert_eq!(world.learnt().len(), 32);
    assert!(world.learnt().iter().any(|(ip, _)| ip == "10.0.0.9"), "what is heard again and again stays");
    assert_eq!(world.witness.memory().counts().forgotten, 257 - 32);
    let before = world.witness.memory().counts().unread;
    world.now += 1;
    (0..1000).for_each(|_| world.frame(FromVm, &arp(MAC, MAC, [10, 0, 0, 9])));
    assert_eq!(world.witness.memory().counts().unread - before, 800);
    for port in 1..2000u16 {
        world.now += 1;
        let text = format!(
            r#"{{"version":1,"flow-id":{{"src-ip":"10.0.0.5","dst-ip":"192.0.2.1","protocol":"udp","src-port":{port},"dst-port":1}},
            "context":{{"experiment-id":2,"activity-id":1}}}}"#
        );
        world.frame(FromVm, &udp4(SERVER, MAC, (5000, 10_514), text.as_bytes()));
    }
    let flow = |port| Tuple { src_ip: ip("10.0.0.5"), src_port: port, dst_ip: ip("192.0.2.1"), dst_port: 1, proto: 17 };
    assert!(world.witness.memory().named(flow(975), at(0)).is_none());
    assert!(world.witness.memory().named(flow(976), at(0)).is_some());
}

#[test]
fn cut_frames_say_nothing() {
    let whole =
        [arp(MAC, MAC, [10, 0, 0, 9]), udp4(SERVER, MAC, (67, 68), &dhcp_message(2, MAC, (5, 77), [10, 0, 0, 6], 600))];
    for frame in whole {
        for end in 0..frame.len() {
            let mut world = World::new();
            world.frame(FromVm, &frame[..end]);
            world.frame(ToVm, &frame[..end]);
            assert!(end >= 32 || world.learnt().is_empty());
        }
    }
    assert_eq!(decode::ethernet(&arp(MAC, MAC, [1; 4]), 42, None), Err(Undecodable::Arp));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 2000, ..Default::default() })]
    /// The fuzz target `witness` goes further; this one runs with every test.
    #[test]
    fn changed_bytes_are_read_or_not_and_that_is_all(changes in proptest::collection::vec((0..400usize, 0..=255u8), 0..12), cut in 0..400usize) {
        let from_vm = udp4(SERVER, MAC, (68, 67), &dhcp_message(1, MAC, (3, 77), [0; 4], 0));
        let to_vm = udp4(Mac([255; 6]), SERVER, (67, 68), &dhcp_message(2, MAC, (5, 77), [10, 0, 0, 5], 600));
        let mut world = World::new();
        for (heading, whole) in [(FromVm, from_vm), (ToVm, to_vm), (FromVm, arp(MAC, MAC, [10, 0, 0, 9]))] {
            let mut frame = whole;
            for (at, byte) in &changes {
                if let Some(place) = frame.get_mut(*at) {
                    *place = *byte;
                }
            }
            frame.truncate(frame.len().min(cut + 14));
            world.frame(heading, &frame);
        }
        proptest::prop_assert!(world.learnt().len() <= 3);
    }
}
