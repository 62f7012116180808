#![allow(clippy::unwrap_used)]
use std::net::IpAddr;

use proptest::prelude::*;
use vestigo_model::{Direction, EndReason, Initiator, Timestamp};

use super::{table::Table, *};
use crate::decode::{Heading, Packet, proto, tcp_flag::*};

const VM: &str = "10.0.0.5";
const PEER: &str = "192.0.2.7";

fn at(millis: i64) -> Timestamp {
    Timestamp::from_nanos(1_700_000_000_000_000_000 + millis * 1_000_000)
}

pub fn packet(src: &str, src_port: u16, dst: &str, dst_port: u16, proto: u8, flags: u8) -> Packet {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    Packet {
        src: bits(src),
        dst: bits(dst),
        v6: src.is_ipv6(),
        vlan: None,
        inner_vlan: None,
        tunnel: None,
        proto,
        src_port,
        dst_port,
        tcp_flags: flags,
        icmp: None,
        ip_bytes: 40,
        fragment: None,
        headless: false,
        flow_label: 0,
        transport: 0,
        payload: 0,
        end: 0,
    }
}

fn out(flags: u8) -> Packet {
    packet(VM, 40_000, PEER, 443, proto::TCP, flags)
}

fn back(flags: u8) -> Packet {
    packet(PEER, 443, VM, 40_000, proto::TCP, flags)
}

fn run(table: &mut Table, steps: &[(i64, Packet)]) -> Vec<Metered> {
    let vm: IpAddr = VM.parse().unwrap();
    steps
        .iter()
        .flat_map(|(millis, packet)| {
            let heading = if packet.src_ip() == vm { Heading::FromVm } else { Heading::ToVm };
            table.packet(packet, heading, at(*millis))
        })
        .collect()
}

#[test]
fn one_short_connection_is_one_record() {
    let mut table = Table::new(MeterOptions::default());
    let steps =
        [(0, out(SYN)), (1, back(SYN | ACK)), (2, out(ACK)), (3, out(FIN | ACK)), (4, back(FIN | ACK)), (5, out(ACK))];
    assert!(run(&mut table, &steps).is_empty());
    assert!(table.expire(at(900), 2000).is_empty());
    let records = table.expire(at(1200), 2000);
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(record.direction, Direction::Outgoing);
    assert_eq!(record.initiator, Initiator::Seen);
    assert_eq!(record.end_reason, EndReason::EndOfFlow);
    assert_eq!((record.orig.1, record.resp.1), (40_000, 443));
    assert_eq!((record.from_orig.0, record.from_resp.0), (4, 2));
    assert_eq!(record.from_orig.2, SYN | ACK | FIN);
    assert_eq!((record.first, record.last), (at(0), at(5)));
    assert!(table.is_empty());
}

#[test]
fn a_call_from_outside_is_incoming() {
    let mut table = Table::new(MeterOptions::default());
    run(
        &mut table,
        &[(0, packet(PEER, 50_000, VM, 22, proto::TCP, SYN)), (1, packet(VM, 22, PEER, 50_000, proto::TCP, SYN | ACK))],
    );
    let record = table.flush().remove(0);
    assert_eq!((record.direction, record.initiator), (Direction::Incoming, Initiator::Seen));
    assert_eq!(record.orig, (PEER.parse().unwrap(), 50_000));
}

#[test]
fn a_connection_met_in_the_middle_is_inferred() {
    let mut table = Table::new(MeterOptions::default());
    run(&mut table, &[(0, back(ACK)), (1, out(ACK))]);
    let record = table.flush().remove(0);
    assert_eq!((record.direction, record.initiator), (Direction::Outgoing, Initiator::Inferred));
    assert_eq!(record.orig.1, 40_000);
}

#[test]
fn the_same_ports_again_are_a_new_flow() {
    let mut table = Table::new(MeterOptions::default());
    let records = run(&mut table, &[(0, out(SYN)), (1, back(RST | ACK)), (5, out(SYN))]);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].end_reason, EndReason::EndOfFlow);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_ping_and_its_answer_are_one_flow() {
    let mut table = Table::new(MeterOptions::default());
    let ping = |src, dst, kind| Packet { icmp: Some((kind, 0)), ..packet(src, 77, dst, 0, proto::ICMP, 0) };
    run(&mut table, &[(0, ping(VM, PEER, 8)), (1, ping(PEER, VM, 0))]);
    let records = table.expire(at(31_000), 2000);
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].orig.1, records[0].resp.1), (77, 8 << 8));
    assert_eq!((records[0].from_orig.0, records[0].from_resp.0), (1, 1));
    assert_eq!(records[0].end_reason, EndReason::Idle);
}

#[test]
fn a_flood_is_told_in_pieces() {
    let mut table = Table::new(MeterOptions::default());
    for port in 0..5000 {
        run(&mut table, &[(0, packet(VM, port, PEER, 53, proto::UDP, 0))]);
    }
    let told: Vec<usize> = (0..4).map(|n| table.expire(at(61_000 + n), 2000).len()).collect();
    assert_eq!(told, [2000, 2000, 1000, 0]);
}

#[test]
fn a_full_table_gives_up_the_quietest_and_counts_it() {
    let mut table = Table::new(MeterOptions { max_flows: 2, ..MeterOptions::default() });
    let udp = |port| packet(VM, port, PEER, 53, proto::UDP, 0);
    let records = run(&mut table, &[(0, udp(1)), (1, udp(2)), (2, udp(1)), (3, udp(3))]);
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].orig.1, records[0].end_reason), (2, EndReason::LackOfResources));
    assert_eq!((table.take_evicted(), table.take_evicted()), (1, 0));
}

proptest! {
    /// Whatever the traffic and the moments of expiry: no packet and no byte is lost or counted twice.
    #[test]
    fn totals_are_the_sum_of_records(steps in prop::collection::vec((0i64..200_000, 0u16..4, any::<bool>(), 0u8..32, any::<bool>()), 1..200)) {
        let mut table = Table::new(MeterOptions { max_flows: 3, ..MeterOptions::default() });
        let mut steps = steps;
        steps.sort_by_key(|step| step.0);
        let mut records = Vec::new();
        for (millis, port, outward, flags, expire) in &steps {
            let packet = if *outward { packet(VM, *port, PEER, 443, proto::TCP, *flags) } else { packet(PEER, 443, VM, *port, proto::TCP, *flags) };
            records.extend(run(&mut table, &[(*millis, packet)]));
            if *expire {
                records.extend(table.expire(at(*millis), 2000));
            }
            prop_assert!(table.len() <= 3);
        }
        records.extend(table.flush());
        let packets: u64 = records.iter().map(|r| r.from_orig.0 + r.from_resp.0).sum();
        let bytes: u64 = records.iter().map(|r| r.from_orig.1 + r.from_resp.1).sum();
        prop_assert_eq!(packets, steps.len() as u64);
        prop_assert_eq!(bytes, 40 * steps.len() as u64);
        for record in &records {
            prop_assert!(record.first <= record.last);
        }
    }
}
