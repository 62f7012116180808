use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    net::IpAddr,
    time::Duration,
};

use vestigo_model::{Direction, EndReason, FlowNotes, Initiator, Timestamp};

use super::MeterOptions;
use crate::decode::{Heading, Packet, proto, tcp_flag};

/// Flows looked at to find a quiet one.
const EVICTION_SAMPLE: usize = 64;

/// Both ends of a conversation, in an order that does not depend on who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    low: (IpAddr, u16),
    high: (IpAddr, u16),
    proto: u8,
    vlan: Option<u16>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Side {
    packets: u64,
    bytes: u64,
    flags: u8,
}

#[derive(Debug)]
struct Entry {
    orig: (IpAddr, u16),
    resp: (IpAddr, u16),
    direction: Direction,
    initiator: Initiator,
    /// First packet of all.
    began: Timestamp,
    /// First packet since the last record.
    first: Timestamp,
    last: Timestamp,
    next_record: Timestamp,
    sides: [Side; 2],
    /// FIN seen from originator, responder; over the whole flow, not since the last record.
    fins: [bool; 2],
    closed: bool,
}

/// A record without the names: who the tap belongs to is added by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    /// Who began.
    pub direction: Direction,
    /// Originator.
    pub orig: (IpAddr, u16),
    /// Responder.
    pub resp: (IpAddr, u16),
    /// IANA protocol number.
    pub proto: u8,
    /// VLAN id.
    pub vlan: Option<u16>,
    /// First packet of the whole flow: earlier than `first` in all records of it but the first.
    pub began: Timestamp,
    /// First packet of the record.
    pub first: Timestamp,
    /// Last packet of the record.
    pub last: Timestamp,
    /// Packets, bytes, TCP flags from the originator.
    pub from_orig: (u64, u64, u8),
    /// Packets, bytes, TCP flags from the responder.
    pub from_resp: (u64, u64, u8),
    /// Why the record is written.
    pub end_reason: EndReason,
    /// How sure the originator is.
    pub initiator: Initiator,
    /// What few flows have.
    pub notes: FlowNotes,
}

/// The flows of one tap.
#[derive(Debug)]
pub struct Table {
    options: MeterOptions,
    flows: HashMap<Key, Entry>,
    evicted: u64,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(options: MeterOptions) -> Self {
        Self { options, flows: HashMap::new(), evicted: 0 }
    }

    /// Flows held now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether no flow is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Flows whose record was cut short because the table was full; since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Counts one packet. Gives a record when it makes room for this flow, or when the packet opens a new connection
    /// between the same ports as one that has just closed.
    pub fn packet(&mut self, packet: &Packet, heading: Heading, time: Timestamp) -> Vec<Metered> {
        let (key, src) = key_of(packet);
        let mut out = Vec::new();
        if opens_anew(packet, self.flows.get(&key)) {
            out.extend(self.remove(key, EndReason::EndOfFlow));
        }
        if !self.flows.contains_key(&key) && self.flows.len() >= self.options.max_flows {
            out.extend(self.evict_quietest());
        }
        let options = self.options;
        let entry = match self.flows.entry(key) {
            Slot::Occupied(slot) => slot.into_mut(),
            Slot::Vacant(slot) => slot.insert(Entry::open(packet, heading, time, &options)),
        };
        entry.count(packet, src, time);
        out
    }

    /// Gives the records that are due at `now`, `room` at most; the rest is due next time.
    pub fn expire(&mut self, now: Timestamp, room: usize) -> Vec<Metered> {
        let options = self.options;
        let mut out = Vec::new();
        self.flows.retain(|key, entry| match entry.due(key.proto, now, &options) {
            None => true,
            Some(_) if out.len() >= room => true,
            Some(EndReason::Active) => {
                out.extend(entry.record(key, EndReason::Active));
                entry.next_record = now + options.active;
                true
            }
            Some(reason) => {
                out.extend(entry.record(key, reason));
                false
            }
        });
        out
    }

    /// Ends every flow.
    pub fn flush(&mut self) -> Vec<Metered> {
        self.flows.drain().filter_map(|(key, mut entry)| entry.record(&key, EndReason::Forced)).collect()
    }

    fn remove(&mut self, key: Key, reason: EndReason) -> Option<Metered> {
        self.flows.remove(&key).and_then(|mut entry| entry.record(&key, reason))
    }

    /// Of a handful taken as they come: looking at all of a full table for every packet of a flood would cost more than the
    /// flood does.
    fn evict_quietest(&mut self) -> Option<Metered> {
        self.evicted += 1;
        let key = *self.flows.iter().take(EVICTION_SAMPLE).min_by_key(|(_, entry)| entry.last)?.0;
        self.remove(key, EndReason::LackOfResources)
    }
}

/// The key, and which end of it sent the packet.
fn key_of(packet: &Packet) -> (Key, (IpAddr, u16)) {
    // Both directions of a ping share the identifier, which is neither end's port: give it to both.
    let (src_port, dst_port) = match packet.icmp {
        Some(_) => (packet.src_port, packet.src_port),
        None => (packet.src_port, packet.dst_port),
    };
    let (src, dst) = ((packet.src_ip(), src_port), (packet.dst_ip(), dst_port));
    let (low, high) = if src <= dst { (src, dst) } else { (dst, src) };
    (Key { low, high, proto: packet.proto, vlan: packet.vlan }, src)
}

fn is_first_syn(packet: &Packet) -> bool {
    packet.proto == proto::TCP && packet.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
}

fn opens_anew(packet: &Packet, entry: Option<&Entry>) -> bool {
    is_first_syn(packet) && entry.is_some_and(|entry| entry.closed)
}

/// Whether the packet's source is the originator, and how sure that is.
fn originator(packet: &Packet) -> (bool, Initiator) {
    if packet.portless() {
        return (true, Initiator::Unknown);
    }
    match (packet.proto, packet.icmp) {
        (proto::TCP, _) if is_first_syn(packet) => (true, Initiator::Seen),
        (proto::TCP, _) if packet.tcp_flags & tcp_flag::SYN != 0 => (false, Initiator::Inferred),
        // In the middle of a connection: the higher port is more likely the caller's.
        (proto::TCP, _) => (packet.src_port >= packet.dst_port, Initiator::Inferred),
        (_, Some((8 | 128, _))) => (true, Initiator::Seen),
        (_, Some((0 | 129, _))) => (false, Initiator::Inferred),
        _ => (true, Initiator::Inferred),
    }
}

impl Entry {
    fn open(packet: &Packet, heading: Heading, time: Timestamp, options: &MeterOptions) -> Self {
        let (by_source, initiator) = originator(packet);
        let (src, dst) = ends(packet, by_source);
        let (orig, resp) = if by_source { (src, dst) } else { (dst, src) };
        let from_vm = heading == Heading::FromVm;
        let direction = if from_vm == by_source { Direction::Outgoing } else { Direction::Incoming };
        Self {
            orig,
            resp,
            direction,
            initiator,
            began: time,
            first: time,
            last: time,
            next_record: time + options.first,
            sides: [Side::default(); 2],
            fins: [false; 2],
            closed: false,
        }
    }

    fn count(&mut self, packet: &Packet, src: (IpAddr, u16), time: Timestamp) {
        // The address tells the sides apart; the port does so for a host that talks to itself.
        let by_orig = src.0 == self.orig.0 && (self.orig.0 != self.resp.0 || src.1 == self.orig.1);
        if self.sides.iter().all(|side| side.packets == 0) {
            self.first = time;
        }
        self.last = self.last.max(time);
        let [orig, resp] = &mut self.sides;
        let side = if by_orig { orig } else { resp };
        side.packets += 1;
        side.bytes += packet.ip_bytes;
        side.flags |= packet.tcp_flags;
        let [orig_fin, resp_fin] = &mut self.fins;
        if packet.tcp_flags & tcp_flag::FIN != 0 {
            *(if by_orig { &mut *orig_fin } else { &mut *resp_fin }) = true;
        }
        self.closed |= packet.tcp_flags & tcp_flag::RST != 0 || (*orig_fin && *resp_fin);
    }

    fn due(&self, proto: u8, now: Timestamp, options: &MeterOptions) -> Option<EndReason> {
        let quiet = now.since(self.last);
        if self.closed && quiet >= options.linger {
            Some(EndReason::EndOfFlow)
        } else if quiet >= idle_timeout(proto, options) {
            Some(EndReason::Idle)
        } else if now >= self.next_record && !self.closed {
            Some(EndReason::Active)
        } else {
            None
        }
    }

    /// Takes the counters. `None` when there is nothing to tell: no packet since the last record, and the flow did not
    /// end in a way that one would want to know.
    fn record(&mut self, key: &Key, end_reason: EndReason) -> Option<Metered> {
        let [orig, resp] = std::mem::take(&mut self.sides);
        let silent = orig.packets == 0 && resp.packets == 0;
        let first = std::mem::replace(&mut self.first, self.last);
        (!silent).then_some(Metered {
            direction: self.direction,
            orig: self.orig,
            resp: self.resp,
            proto: key.proto,
            vlan: key.vlan,
            began: self.began,
            first,
            last: self.last,
            from_orig: (orig.packets, orig.bytes, orig.flags),
            from_resp: (resp.packets, resp.bytes, resp.flags),
            end_reason,
            initiator: self.initiator,
            notes: FlowNotes::default(),
        })
    }
}

/// Source and destination as the record shows them: for ICMP the identifier is the originator's port, and the
/// responder's says type and code (`type << 8 | code`) of what the originator sent.
fn ends(packet: &Packet, by_source: bool) -> ((IpAddr, u16), (IpAddr, u16)) {
    let Some((kind, code)) = packet.icmp else {
        return ((packet.src_ip(), packet.src_port), (packet.dst_ip(), packet.dst_port));
    };
    let asked = match kind {
        0 if !by_source => 8,
        129 if !by_source => 128,
        other => other,
    };
    let what = u16::from_be_bytes([asked, code]);
    if by_source {
        ((packet.src_ip(), packet.src_port), (packet.dst_ip(), what))
    } else {
        ((packet.src_ip(), what), (packet.dst_ip(), packet.src_port))
    }
}

fn idle_timeout(proto: u8, options: &MeterOptions) -> Duration {
    match proto {
        proto::TCP => options.idle_tcp,
        proto::UDP => options.idle_udp,
        _ => options.idle_other,
    }
}
