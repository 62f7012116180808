#![allow(clippy::unwrap_used)]
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use proptest::prelude::*;
use vestigo_model::{Direction, EndReason, Folded, Initiator, SciTag, SciTagSource, Timestamp, Tunnel};

use super::*;
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

/// A table under a clock of its own, as the meter has it.
struct Bench {
    table: Table,
    clock: Clock,
}

impl Bench {
    fn new(options: MeterOptions) -> Self {
        Self { table: Table::new(&options), clock: Clock::default() }
    }

    fn run(&mut self, steps: &[(i64, Packet)]) {
        let vm: IpAddr = VM.parse().unwrap();
        for (millis, packet) in steps {
            let heading = if packet.src_ip() == vm { Heading::FromVm } else { Heading::ToVm };
            let time = at(*millis).as_nanos();
            self.table.packet(Sighting::new(packet, heading, true, (time, self.clock.packet(time)), false));
        }
    }

    fn due(&mut self, millis: i64, room: usize) -> Vec<Metered> {
        let mut out = Vec::new();
        self.table.due(self.clock.asked(at(millis).as_nanos()), room, &mut out);
        out
    }

    fn flush(&mut self) -> Vec<Metered> {
        let mut out = Vec::new();
        self.table.drain(usize::MAX, &mut out);
        out
    }
}

/// No record before the end.
fn patient() -> MeterOptions {
    MeterOptions { first: Duration::MAX, active: Duration::MAX, ..MeterOptions::default() }
}

#[test]
fn one_short_connection_is_one_record() {
    let mut bench = Bench::new(MeterOptions::default());
    bench.run(&[
        (0, out(SYN)),
        (1, back(SYN | ACK)),
        (2, out(ACK)),
        (3, out(FIN | ACK)),
        (4, back(FIN | ACK)),
        (5, out(ACK)),
    ]);
    assert!(bench.due(900, 2000).is_empty());
    let records = bench.due(1200, 2000);
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(record.direction, Direction::Outgoing);
    assert_eq!(record.initiator, Initiator::Seen);
    assert_eq!(record.end_reason, EndReason::EndOfFlow);
    assert_eq!((record.orig.1, record.resp.1), (40_000, 443));
    assert_eq!((record.from_orig.0, record.from_resp.0), (4, 2));
    assert_eq!(record.from_orig.2, SYN | ACK | FIN);
    assert_eq!((record.first, record.last), (at(0), at(5)));
    assert_eq!(bench.table.len(), 0);
}

#[test]
fn a_flow_that_goes_on_is_told_at_once_each_minute_and_at_its_end() {
    let mut bench = Bench::new(MeterOptions::default());
    bench.run(&[(0, out(SYN)), (1, back(SYN | ACK))]);
    let told = |bench: &mut Bench, millis| -> Vec<(EndReason, u64, u64)> {
        bench.due(millis, 9).iter().map(|r| (r.end_reason, r.from_orig.0, r.from_resp.0)).collect()
    };
    assert_eq!(told(&mut bench, 240), []);
    assert_eq!(told(&mut bench, 250), [(EndReason::Active, 1, 1)]);
    bench.run(&[(30_000, out(ACK))]);
    assert_eq!(told(&mut bench, 60_240), []);
    assert_eq!(told(&mut bench, 60_250), [(EndReason::Active, 1, 0)]);
    assert_eq!(told(&mut bench, 200_000), [], "nothing new");
    bench.run(&[(200_001, back(ACK))]);
    assert_eq!(told(&mut bench, 320_000), [(EndReason::Active, 0, 1)]);
    assert_eq!(told(&mut bench, 500_000), []);
    assert_eq!(told(&mut bench, 500_001), [(EndReason::Idle, 0, 0)], "how it ended is said even without a packet");
    assert_eq!(bench.table.len(), 0);
}

#[test]
fn a_call_from_outside_is_incoming() {
    let mut bench = Bench::new(MeterOptions::default());
    bench.run(&[
        (0, packet(PEER, 50_000, VM, 22, proto::TCP, SYN)),
        (1, packet(VM, 22, PEER, 50_000, proto::TCP, SYN | ACK)),
    ]);
    let record = bench.flush().remove(0);
    assert_eq!((record.direction, record.initiator), (Direction::Incoming, Initiator::Seen));
    assert_eq!(record.orig, (PEER.parse().unwrap(), 50_000));
}

#[test]
fn a_connection_met_in_the_middle_is_inferred() {
    let mut bench = Bench::new(MeterOptions::default());
    bench.run(&[(0, back(ACK)), (1, out(ACK))]);
    let record = bench.flush().remove(0);
    assert_eq!((record.direction, record.initiator), (Direction::Outgoing, Initiator::Inferred));
    assert_eq!(record.orig.1, 40_000);
}

#[test]
fn the_same_ports_again_are_a_new_flow() {
    let mut bench = Bench::new(MeterOptions::default());
    bench.run(&[(0, out(SYN)), (1, back(RST | ACK)), (5, out(SYN)), (6, back(SYN | ACK))]);
    let mut records = bench.flush();
    records.sort_by_key(|record| record.first);
    assert_eq!(records.iter().map(|r| (r.from_orig.0, r.from_resp.0)).collect::<Vec<_>>(), [(1, 1), (1, 1)]);
    assert_eq!((records[0].end_reason, records[1].end_reason), (EndReason::EndOfFlow, EndReason::Forced));
}

#[test]
fn a_ping_and_its_answer_are_one_flow() {
    let mut bench = Bench::new(patient());
    let ping = |src, dst, kind| Packet { icmp: Some((kind, 0)), ..packet(src, 77, dst, 0, proto::ICMP, 0) };
    bench.run(&[(0, ping(VM, PEER, 8)), (1, ping(PEER, VM, 0))]);
    let records = bench.due(31_000, 2000);
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].orig.1, records[0].resp.1), (77, 8 << 8));
    assert_eq!((records[0].from_orig.0, records[0].from_resp.0), (1, 1));
    assert_eq!(records[0].end_reason, EndReason::Idle);
}

#[test]
fn a_flood_is_told_in_pieces() {
    let mut bench = Bench::new(patient());
    for port in 0..5000 {
        bench.run(&[(0, packet(VM, port, PEER, 53, proto::UDP, 0))]);
    }
    let told: Vec<usize> = (0..4).map(|n| bench.due(61_000 + n, 2000).len()).collect();
    assert_eq!(told, [2000, 2000, 1000, 0]);
}

#[test]
fn a_full_table_folds_what_is_new_and_throws_out_nothing() {
    let mut bench = Bench::new(MeterOptions { max_flows: 2, ..patient() });
    let udp = |port| packet(VM, port, PEER, 53, proto::UDP, 0);
    let answer = |port| packet(PEER, 53, VM, port, proto::UDP, 0);
    bench.run(&[(0, udp(1)), (1, udp(2)), (2, udp(3)), (3, udp(1023)), (4, udp(1024)), (5, answer(1024))]);
    bench.run(&[(6, udp(1)), (7, udp(3)), (8, answer(2))]);
    bench.table.settle();
    assert_eq!((bench.table.take_folded(), bench.table.take_folded()), (3, 0));
    let mut records = bench.flush();
    records.sort_by_key(|record| record.orig.1);
    let seen: Vec<_> = records.iter().map(|r| (r.orig.1, r.from_orig.0, r.from_resp.0, r.notes.folded)).collect();
    let folded = |flows, last_port| Some(Folded { flows, last_port });
    assert_eq!(seen, [(1, 2, 0, None), (2, 1, 1, None), (3, 3, 0, folded(2, 1023)), (1024, 1, 1, folded(1, 1024))]);
    assert_eq!(records[2].end_reason, EndReason::LackOfResources);
    assert_eq!(records[2].resp, ("0.0.0.0".parse().unwrap(), 0));
}

#[test]
fn aggregates_are_bounded_too() {
    let mut bench = Bench::new(MeterOptions { max_flows: 0, ..patient() });
    for port in 0..60_000u16 {
        let proto = if port % 2 == 0 { proto::UDP } else { proto::TCP };
        let mut forged = packet(VM, port, PEER, 53, proto, 0);
        forged.src += u128::from(port % 100);
        bench.table.packet(Sighting::new(&forged, Heading::FromVm, true, (0, 0), false));
    }
    let records = bench.flush();
    assert!(records.len() <= 258, "{}", records.len());
    assert_eq!(records.iter().map(|record| record.from_orig.0 + record.from_resp.0).sum::<u64>(), 60_000);
    assert!(records.iter().any(|record| record.proto == 255), "a catch-all");
}

#[test]
fn under_pressure_quiet_flows_end_earlier_and_say_so() {
    let mut bench = Bench::new(MeterOptions { max_flows: 100, ..patient() });
    let udp = |port| packet(VM, port, PEER, 53, proto::UDP, 0);
    for port in 0..70 {
        bench.run(&[(0, udp(port))]);
    }
    assert_eq!(bench.due(20_000, 2000), []);
    for port in 70..80 {
        bench.run(&[(20_000, udp(port))]);
    }
    let records = bench.due(20_001, 2000);
    assert_eq!(records.len(), 70);
    assert!(records.iter().all(|record| record.end_reason == EndReason::LackOfResources));
    assert_eq!(bench.due(26_000, 2000), [], "no more pressure");
    assert_eq!(bench.due(80_000, 2000).len(), 10);
}

#[test]
fn a_counter_that_is_full_goes_on_aside() {
    let mut bench = Bench::new(patient());
    bench.run(&[(0, out(SYN))]);
    bench.table.fill_counters(u32::MAX - 1);
    bench.run(&[(1, out(ACK)), (2, out(ACK)), (3, back(ACK))]);
    let record = bench.flush().remove(0);
    assert_eq!((record.from_orig.0, record.from_resp.0), (u64::from(u32::MAX) + 1, 1));
}

/// A RST that its receiver does not take closes nothing but our entry.
#[test]
fn a_flow_that_goes_on_after_its_end_is_told_of_all_the_same() {
    let mut bench = Bench::new(MeterOptions::default());
    bench.run(&[(0, out(SYN)), (1, back(SYN | ACK)), (2, out(RST))]);
    let mut told = Vec::new();
    for half_second in 1..=260 {
        bench.run(&[(half_second * 500, out(ACK))]);
        told.extend(bench.due(half_second * 500 + 1, 2000));
    }
    let reasons: Vec<_> = told.iter().map(|record| record.end_reason).collect();
    assert_eq!(reasons, [EndReason::Active; 2], "at least once a minute");
    assert_eq!(bench.due(140_000, 2000).remove(0).end_reason, EndReason::EndOfFlow);
}

/// A guest that sends under its peer's name, and others who send under the VM's, write nothing into its conversation.
#[test]
fn a_forged_end_is_none_of_the_conversation() {
    let mut bench = Bench::new(patient());
    bench.run(&[(0, out(SYN)), (1, back(SYN | ACK)), (2, out(ACK))]);
    for (forged, heading) in [(back(ACK), Heading::FromVm), (out(ACK), Heading::ToVm)] {
        bench.table.packet(Sighting::new(&forged, heading, true, (at(3).as_nanos(), at(3).as_nanos()), false));
    }
    let mut records = bench.flush();
    records.sort_by_key(|record| record.from_orig.0 + record.from_resp.0);
    let seen: Vec<_> = records.iter().map(|r| (r.from_orig.0, r.from_resp.0)).collect();
    assert_eq!(seen, [(1, 1), (2, 1)]);
    let local = |r: &Metered| if r.direction == Direction::Outgoing { r.orig.0 } else { r.resp.0 };
    assert_eq!(records.iter().map(|r| local(r).to_string()).collect::<Vec<_>>(), [PEER, VM]);
}

/// That a header cannot be read is its sender's doing: such a conversation is no fragment whose first was lost.
#[test]
fn ports_that_are_hidden_are_not_those_that_were_lost() {
    let later = |id| Some(crate::decode::Fragment { id, header: proto::UDP, first: false });
    for (packet, initiator) in [
        (Packet { headless: true, ..packet(VM, 0, PEER, 0, proto::TCP, 0) }, Initiator::Inferred),
        (Packet { fragment: later(1), ..packet(VM, 0, PEER, 0, proto::UDP, 0) }, Initiator::Unknown),
    ] {
        let mut bench = Bench::new(patient());
        bench.run(&[(0, packet)]);
        let record = bench.flush().remove(0);
        assert_eq!((record.initiator, record.direction), (initiator, Direction::Outgoing));
    }
}

/// A guest that takes another hardware address is metered both ways.
#[test]
fn what_is_sent_to_an_address_that_the_vm_used_is_the_vms() {
    let mut meter = Meter::new(patient(), Some(Mac([2; 6])));
    let udp = |dst: [u8; 6], src: [u8; 6], from: [u8; 4], to: [u8; 4]| {
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2(src, dst).ipv4(from, to, 64).udp(9, 9).write(&mut bytes, b"").unwrap();
        bytes
    };
    let (vm, peer) = ([10, 0, 0, 5], [192, 0, 2, 7]);
    let answer = |mac| udp(mac, [4; 6], peer, vm);
    meter.frame(&frame(&answer([6; 6]), Heading::ToVm));
    assert!(meter.take_counts().foreign == 1 && meter.is_empty(), "flooded");
    meter.frame(&frame(&udp([4; 6], [6; 6], vm, peer), Heading::FromVm));
    meter.frame(&frame(&answer([6; 6]), Heading::ToVm));
    meter.frame(&frame(&answer([8; 6]), Heading::ToVm));
    let counts = meter.take_counts();
    assert_eq!((counts.foreign, counts.from_vm.packets, counts.to_vm.packets), (2, 1, 1));
    for last in 0..u8::MAX {
        meter.frame(&frame(&udp([4; 6], [10, 0, 0, 0, 0, last], vm, peer), Heading::FromVm));
    }
    assert_eq!(meter.more_macs.len(), MAX_MACS);
    meter.frame(&frame(&answer([10, 0, 0, 0, 0, 200]), Heading::ToVm));
    assert_eq!(meter.take_counts().to_vm.packets, 1, "no number of addresses hides one");
}

/// Times at the end of the numbers, as a capture file may have them.
#[test]
fn every_flow_ends_also_where_time_does() {
    let mut table = Table::new(&MeterOptions::default());
    let late = i64::MAX - 10_000_000_000;
    table.packet(Sighting::new(&out(SYN), Heading::FromVm, true, (late, late), false));
    let mut records = Vec::new();
    table.drain(usize::MAX, &mut records);
    assert_eq!((records.len(), table.len()), (1, 0));
}

fn frame(bytes: &[u8], heading: Heading) -> Frame<'_> {
    Frame { bytes, wire_len: bytes.len(), vlan: None, time: at(0), heading }
}

fn record_of(meter: &mut Meter, proto: u8) -> Metered {
    let mut records = Vec::new();
    meter.flush(&mut records);
    records.into_iter().find(|record| record.proto == proto).unwrap()
}

#[test]
fn an_error_and_the_flow_that_it_speaks_of_know_each_other() {
    use etherparse::{Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader};
    let mut quoted = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64).udp(21_000, 9).write(&mut quoted, b"?").unwrap();
    let call = [&[2; 12][..], &[8, 0], &quoted].concat();
    let error = |to: [u8; 4]| {
        let mut error = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 7], to, 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port))
            .write(&mut error, &quoted)
            .unwrap();
        error
    };
    for (to, believed) in [([10, 0, 0, 5], true), ([10, 0, 0, 6], false)] {
        for answered in [proto::UDP, proto::ICMP] {
            let mut meter = Meter::new(patient(), None);
            meter.frame(&frame(&call, Heading::FromVm));
            meter.frame(&frame(&error(to), Heading::ToVm));
            let notes = record_of(&mut meter, answered).notes;
            if answered == proto::UDP {
                assert_eq!(notes.icmp_error, believed.then_some(0x0303));
            } else {
                assert_eq!(
                    notes.speaks_of.map(|tuple| (tuple.src_port, tuple.dst_port)),
                    believed.then_some((21_000, 9))
                );
            }
        }
    }
}

#[test]
fn a_flow_label_of_the_vms_own_is_a_claim() {
    let mut bytes = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([1; 16], [2; 16], 64)
        .udp(1, 2)
        .write(&mut bytes, b"")
        .unwrap();
    let label = crate::decode::flow_label(3, 14);
    bytes[14..18].copy_from_slice(&(6 << 28 | label).to_be_bytes());
    let claim = SciTag { experiment: 3, activity: 14, by: SciTagSource::FlowLabel };
    for (scitags, heading, expected) in
        [(true, Heading::FromVm, Some(claim)), (true, Heading::ToVm, None), (false, Heading::FromVm, None)]
    {
        let mut meter = Meter::new(MeterOptions { scitags, ..patient() }, None);
        meter.frame(&frame(&bytes, heading));
        assert_eq!(record_of(&mut meter, proto::UDP).notes.scitag, expected);
    }
}

#[test]
fn a_tunnel_and_what_it_carries_are_two_flows_on_request() {
    let mut inner = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    builder.ipv4([172, 16, 0, 1], [172, 16, 0, 2], 64).tcp(5, 6, 1, 1).write(&mut inner, b"").unwrap();
    let mut outer = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    let payload = [&[8, 0, 0, 0, 0, 0, 42, 0][..], &inner].concat();
    builder.ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64).udp(40_000, 4789).write(&mut outer, &payload).unwrap();
    for (tunnels, flows) in [(false, 1), (true, 2)] {
        let mut meter = Meter::new(MeterOptions { tunnels, ..patient() }, None);
        meter.frame(&frame(&outer, Heading::FromVm));
        assert_eq!(meter.take_counts().frames, 1);
        assert_eq!(meter.len(), flows);
        if tunnels {
            assert_eq!(record_of(&mut meter, proto::TCP).notes.tunnel, Some(Tunnel::Vxlan(42)));
        }
    }
}

/// Remembers what it was shown.
#[derive(Debug, Default)]
struct Seen(Vec<Control>);

impl Witness for Seen {
    fn control(&mut self, _: &Frame<'_>, control: Control) {
        self.0.push(control);
    }
}

#[test]
fn the_witness_sees_control_frames_and_nothing_else() {
    let mut meter = Meter::with_witness(patient(), None, Seen::default());
    let udp = |dst| {
        let mut bytes = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        builder.ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64).udp(1, dst).write(&mut bytes, b"x").unwrap();
        bytes
    };
    let mut arp = [0; 42];
    (arp[12], arp[13]) = (8, 6);
    for bytes in [&udp(53)[..], &arp, &udp(67), &udp(10_514)] {
        meter.frame(&frame(bytes, Heading::FromVm));
    }
    let [Control::Arp, Control::Dhcp(dhcp), Control::Firefly(firefly)] = meter.witness().0[..] else {
        panic!("{:?}", meter.witness())
    };
    assert_eq!((dhcp.dst_port, firefly.payload_of(&udp(10_514))), (67, &b"x"[..]));
}

#[derive(Debug, Clone, Copy)]
struct Step {
    millis: i64,
    port: u16,
    outward: bool,
    flags: u8,
    ask: Option<usize>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (-2000i64..20_000, 0u16..6, any::<bool>(), 0u8..32, prop::option::weighted(0.3, 0usize..4));
    let step = step.prop_map(|(millis, port, outward, flags, ask)| Step { millis, port, outward, flags, ask });
    prop::collection::vec(step, 1..300)
}

proptest! {
    /// Whatever the traffic, its order, its clock, the moments of asking and the room: no packet and no byte is lost or counted twice, and
    /// the bounds hold.
    #[test]
    fn totals_are_the_sum_of_records(steps in steps(), max_flows in 0usize..5, first in 0u64..3000) {
        let options = MeterOptions { max_flows, first: Duration::from_millis(first), ..MeterOptions::default() };
        let mut bench = Bench::new(options);
        let (mut now, mut records) = (0, Vec::new());
        let mut sent: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for step in &steps {
            now += step.millis;
            let packet = if step.outward { packet(VM, step.port, PEER, 443, proto::TCP, step.flags) } else { packet(PEER, 443, VM, step.port, proto::TCP, step.flags) };
            *sent.entry(packet.src_ip()).or_default() += 1;
            bench.run(&[(now, packet)]);
            if let Some(room) = step.ask {
                let told = bench.due(now, room);
                prop_assert!(told.len() <= room);
                records.extend(told);
            }
            prop_assert!(bench.table.len() <= max_flows);
        }
        records.extend(bench.flush());
        prop_assert_eq!(bench.table.len(), 0);
        let packets = |from_vm: bool| -> u64 {
            records.iter().map(|r| if (r.direction == Direction::Outgoing) == from_vm { r.from_orig.0 } else { r.from_resp.0 }).sum()
        };
        let count = |ip: &str| sent.get(&ip.parse().unwrap()).copied().unwrap_or(0);
        prop_assert_eq!((packets(true), packets(false)), (count(VM), count(PEER)));
        let bytes: u64 = records.iter().map(|r| r.from_orig.1 + r.from_resp.1).sum();
        prop_assert_eq!(bytes, 40 * steps.len() as u64);
        for record in &records {
            prop_assert!(record.began <= record.first && record.first <= record.last);
        }
    }

    /// A flow's records tell the same whether it is asked for often or only at the end.
    #[test]
    fn deltas_add_up_to_the_total(steps in steps()) {
        let mut sums: [BTreeMap<u16, [u64; 4]>; 2] = Default::default();
        for (sums, often) in sums.iter_mut().zip([true, false]) {
            let endless = Duration::MAX;
            let idle = Idle { tcp: endless, udp: endless, other: endless };
            let mut bench = Bench::new(MeterOptions { idle, linger: endless, ..MeterOptions::default() });
            let (mut now, mut records) = (0, Vec::new());
            for step in &steps {
                now += step.millis;
                let flags = step.flags & ACK;
                let packet = if step.outward { packet(VM, step.port, PEER, 443, proto::TCP, flags) } else { packet(PEER, 443, VM, step.port, proto::TCP, flags) };
                bench.run(&[(now, packet)]);
                if often {
                    records.extend(bench.due(now, step.ask.unwrap_or(2)));
                }
            }
            records.extend(bench.flush());
            for record in records {
                let port = if record.orig.1 == 443 { record.resp.1 } else { record.orig.1 };
                let sum = sums.entry(port).or_default();
                for (sum, delta) in sum.iter_mut().zip([record.from_orig.0, record.from_orig.1, record.from_resp.0, record.from_resp.1]) {
                    *sum += delta;
                }
            }
        }
        let [often, once] = sums;
        prop_assert_eq!(often, once);
    }
}
