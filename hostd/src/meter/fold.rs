//! Where conversations go that the table has no room for: counted in full, told apart no more.

use std::{collections::BTreeMap, net::IpAddr};

use vestigo_model::{Direction, EndReason, FlowNotes, Folded, Initiator, Timestamp};

use super::{key::Key, options::Timeouts, record::Metered, sighting::Sighting};
use crate::decode::packet_address;

/// Aggregates held at once; what fits into none of them goes into a catch-all.
const MAX_AGGREGATES: usize = 256;
/// Conversations remembered, so that their second packet does not count them again.
const REMEMBERED: usize = 4096;
/// "Reserved" at IANA: many protocols.
const ANY_PROTO: u8 = 255;
/// Ports of one aggregate: a payload's block is as large or larger, and begins at a multiple of it.
const BLOCK: u16 = 1024;

/// Direction, address of the VM, and the rest of the key with the block in place of ports.
type Share = (bool, u128, u128);

/// Aggregates of one tap.
#[derive(Debug, Default)]
pub(super) struct Folds {
    shares: BTreeMap<Share, Aggregate>,
    /// Conversations folded of late, in the place of their hash: 30 other bits of it, that there is one, and who began.
    recent: Vec<u32>,
    conversations: u64,
}

#[derive(Debug)]
struct Aggregate {
    key: Key,
    vm: (u128, u16, u16),
    conversations: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
    flags: [u8; 2],
    began: i64,
    first: i64,
    last: i64,
    next_record: i64,
}

impl Folds {
    /// Counts a packet of a conversation that has no entry.
    pub(super) fn count(&mut self, sighting: &Sighting, timeouts: &Timeouts) {
        let (direction, is_new) = self.recognise(sighting);
        let from_orig = sighting.from_vm == (direction == Direction::Outgoing);
        let vm_low = sighting.by_low == sighting.from_vm;
        let (ip, port, rest) = sighting.key.of_end(vm_low);
        let [_, block] = (port / BLOCK).to_be_bytes();
        let outgoing = direction == Direction::Outgoing;
        let mut share = (outgoing, ip, rest | u128::from(block));
        let mut vm = (ip, port);
        let mut key = Key::folded(ip, block, rest);
        if self.shares.len() >= MAX_AGGREGATES && !self.shares.contains_key(&share) {
            // One for each direction, apart for what is inside of tunnels, which sums over traffic leave out.
            key = Key::catch_all(ANY_PROTO, sighting.key.tunnel().is_some());
            share = (outgoing, 0, key.of_end(true).2);
            vm = (0, 0);
        }
        let aggregate = self.shares.entry(share).or_insert_with(|| Aggregate::open(key, vm, sighting, timeouts));
        aggregate.conversations += u64::from(is_new);
        self.conversations += u64::from(is_new);
        aggregate.count(sighting, usize::from(!from_orig), vm.1);
    }

    /// Who began, and whether the conversation has not been counted of late.
    fn recognise(&mut self, sighting: &Sighting) -> (Direction, bool) {
        let (by_source, _) = sighting.originator();
        let inferred = sighting.direction(by_source);
        if self.recent.is_empty() {
            self.recent = vec![0; REMEMBERED];
        }
        let [a, b, c, d, e, f, g, h] = sighting.hash.to_be_bytes();
        let tag = u32::from_be_bytes([a, b, c, d]) & !3 | 1;
        let place = u32::from_be_bytes([e, f, g, h]) as usize % REMEMBERED;
        match self.recent.get_mut(place) {
            Some(known) if *known & !2 == tag => {
                (if *known & 2 == 0 { Direction::Outgoing } else { Direction::Incoming }, false)
            }
            Some(slot) => {
                *slot = tag | if inferred == Direction::Incoming { 2 } else { 0 };
                (inferred, true)
            }
            None => (inferred, true),
        }
    }

    /// Gives the records that are due, `room` at most.
    pub(super) fn due(&mut self, now: i64, active: i64, room: usize, out: &mut Vec<Metered>) {
        let mut room = room;
        self.shares.retain(|(outgoing, ..), aggregate| {
            if now < aggregate.next_record || room == 0 {
                return true;
            }
            aggregate.next_record = now.saturating_add(active);
            let record = aggregate.record(*outgoing);
            let told = record.is_some();
            out.extend(record);
            room -= usize::from(told);
            told
        });
    }

    /// Gives all.
    pub(super) fn flush(&mut self, out: &mut Vec<Metered>) {
        out.extend(
            std::mem::take(&mut self.shares).iter_mut().filter_map(|((outgoing, ..), share)| share.record(*outgoing)),
        );
    }

    /// Conversations folded since the last call, at most: one that came back counts again.
    pub(super) fn take_conversations(&mut self) -> u64 {
        std::mem::take(&mut self.conversations)
    }
}

impl Aggregate {
    fn open(key: Key, (ip, port): (u128, u16), sighting: &Sighting, timeouts: &Timeouts) -> Self {
        Self {
            key,
            vm: (ip, port, port),
            conversations: 0,
            packets: [0; 2],
            bytes: [0; 2],
            flags: [0; 2],
            began: sighting.time,
            first: sighting.time,
            last: sighting.time,
            next_record: sighting.seen.saturating_add(timeouts.first),
        }
    }

    fn count(&mut self, sighting: &Sighting, side: usize, port: u16) {
        if self.packets == [0, 0] {
            (self.first, self.last) = (sighting.time, sighting.time);
            (self.vm.1, self.vm.2) = (port, port);
        }
        self.began = self.began.min(sighting.time);
        self.first = self.first.min(sighting.time);
        self.last = self.last.max(sighting.time);
        (self.vm.1, self.vm.2) = (self.vm.1.min(port), self.vm.2.max(port));
        if let Some((packets, (bytes, flags))) =
            self.packets.get_mut(side).zip(self.bytes.get_mut(side).zip(self.flags.get_mut(side)))
        {
            *packets += 1;
            *bytes = bytes.saturating_add(sighting.bytes);
            *flags |= sighting.tcp_flags;
        }
    }

    /// Takes the counters; `None` when nothing was counted.
    fn record(&mut self, outgoing: bool) -> Option<Metered> {
        let [packets, bytes] = [std::mem::take(&mut self.packets), std::mem::take(&mut self.bytes)];
        let flags = std::mem::take(&mut self.flags);
        let (ip, first_port, last_port) = self.vm;
        let vm = (packet_address(ip, self.key.is_v6()), first_port);
        let peer = (unspecified(vm.0), 0);
        let (orig, resp) = if outgoing { (vm, peer) } else { (peer, vm) };
        let notes = FlowNotes {
            inner_vlan: self.key.inner_vlan(),
            tunnel: self.key.tunnel(),
            folded: Some(Folded { flows: std::mem::take(&mut self.conversations), last_port }),
            ..FlowNotes::default()
        };
        (packets != [0, 0]).then_some(Metered {
            direction: if outgoing { Direction::Outgoing } else { Direction::Incoming },
            orig,
            resp,
            proto: self.key.proto(),
            vlan: self.key.vlan(),
            began: Timestamp::from_nanos(self.began),
            first: Timestamp::from_nanos(self.first),
            last: Timestamp::from_nanos(self.last),
            from_orig: (packets[0], bytes[0], flags[0]),
            from_resp: (packets[1], bytes[1], flags[1]),
            end_reason: EndReason::LackOfResources,
            initiator: Initiator::Unknown,
            notes,
        })
    }
}

const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}
