use vestigo_model::{Direction, EndReason, FlowNotes, Initiator, SciTag, SciTagSource, Timestamp, Tuple};

use super::{key::Key, options::Timeouts, record::Metered, sighting::Sighting};
use crate::decode::tcp_flag;

/// Marks in [`Entry::state`].
mod mark {
    /// The low end of the key is the originator.
    pub(super) const ORIG_LOW: u16 = 1;
    pub(super) const OUTGOING: u16 = 1 << 1;
    pub(super) const SEEN: u16 = 1 << 2;
    pub(super) const INFERRED: u16 = 1 << 3;
    /// FIN from the originator, from the responder; over the whole flow, not since the last record.
    pub(super) const FIN: [u16; 2] = [1 << 4, 1 << 5];
    pub(super) const CLOSED: u16 = 1 << 6;
    /// There is something aside of it.
    pub(super) const ASIDE: u16 = 1 << 7;
    /// Another flow has taken its key.
    pub(super) const REPLACED: u16 = 1 << 8;
}

/// Where an entry hangs in the wheel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    pub(super) prev: u32,
    pub(super) next: u32,
}

/// A flow that is held: two cache lines, of which the first is enough to find it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) links: Links,
    /// The meter's time of the last packet.
    seen: i64,
    last: i64,
    bytes: [u64; 2],
    packets: [u32; 2],
    /// The meter's time of the next record, if the flow goes on.
    next_record: i64,
    /// First packet of all.
    began: i64,
    /// First packet since the last record.
    first: i64,
    /// ICMP type and code of the originator.
    asked: u16,
    scitag: u16,
    state: u16,
    flags: [u8; 2],
}

const _: () = assert!(size_of::<Entry>() == 128, "two cache lines; 200 bytes a flow is the promise");

/// What few flows have, kept beside the table.
#[derive(Debug, Clone, Default)]
pub(super) struct Aside {
    pub(super) speaks_of: Option<Tuple>,
    pub(super) icmp_error: Option<u16>,
    /// Packets that no longer fitted into the entry.
    packets: [u64; 2],
}

impl Entry {
    pub(super) fn open(sighting: &Sighting, timeouts: &Timeouts) -> Self {
        let (by_source, initiator) = sighting.originator();
        let mut state = match initiator {
            Initiator::Seen => mark::SEEN,
            Initiator::Inferred => mark::INFERRED,
            Initiator::Unknown => 0,
        };
        if by_source == sighting.by_low {
            state |= mark::ORIG_LOW;
        }
        if sighting.direction(by_source) == Direction::Outgoing {
            state |= mark::OUTGOING;
        }
        Self {
            key: sighting.key,
            links: Links { prev: 0, next: 0 },
            seen: sighting.seen,
            last: sighting.time,
            bytes: [0; 2],
            packets: [0; 2],
            next_record: sighting.seen.saturating_add(timeouts.first),
            began: sighting.time,
            first: sighting.time,
            asked: sighting.icmp.map_or(0, |what| question(what, by_source)),
            scitag: 0,
            state,
            flags: [0; 2],
        }
    }

    const fn is(&self, mark: u16) -> bool {
        self.state & mark != 0
    }

    /// Has the second cache line fetched.
    pub(super) const fn touch(&self) -> i64 {
        self.began
    }

    pub(super) const fn is_closed(&self) -> bool {
        self.is(mark::CLOSED)
    }

    pub(super) const fn has_aside(&self) -> bool {
        self.is(mark::ASIDE)
    }

    pub(super) const fn mark_aside(&mut self) {
        self.state |= mark::ASIDE;
    }

    pub(super) const fn is_replaced(&self) -> bool {
        self.is(mark::REPLACED)
    }

    pub(super) const fn mark_replaced(&mut self) {
        self.state |= mark::REPLACED;
    }

    /// It has closed just now: its last record comes when it has lingered. If it goes on all the same (anybody can send a RST that
    /// its receiver does not take), it is told of as often as any other.
    pub(super) const fn wind_up(&mut self, timeouts: &Timeouts) {
        self.next_record = self.seen.saturating_add(timeouts.active);
    }

    const fn is_silent(&self) -> bool {
        self.packets[0] == 0 && self.packets[1] == 0
    }

    /// Counts a packet. Gives the side whose counter is now full: see [`Entry::spill`].
    pub(super) fn count(&mut self, sighting: &Sighting) -> Option<usize> {
        if self.is_silent() {
            (self.first, self.last) = (sighting.time, sighting.time);
        }
        self.began = self.began.min(sighting.time);
        self.first = self.first.min(sighting.time);
        self.last = self.last.max(sighting.time);
        self.seen = sighting.seen;
        let side = usize::from(sighting.by_low != self.is(mark::ORIG_LOW));
        if self.scitag == 0 {
            self.scitag = sighting.scitag;
        }
        if sighting.tcp_flags != 0 {
            self.note_flags(side, sighting.tcp_flags);
        }
        let (bytes, packets) = (self.bytes.get_mut(side)?, self.packets.get_mut(side)?);
        *bytes = bytes.saturating_add(sighting.bytes);
        *packets += 1;
        (*packets == u32::MAX).then_some(side)
    }

    fn note_flags(&mut self, side: usize, flags: u8) {
        if let Some(own) = self.flags.get_mut(side) {
            *own |= flags;
        }
        if flags & tcp_flag::FIN != 0 {
            self.state |= mark::FIN.get(side).copied().unwrap_or(0);
        }
        let fins = mark::FIN[0] | mark::FIN[1];
        if flags & tcp_flag::RST != 0 || self.state & fins == fins {
            self.state |= mark::CLOSED;
        }
    }

    #[cfg(test)]
    pub(super) const fn fill_counter(&mut self, packets: u32) {
        self.packets[0] = packets;
    }

    /// Moves a full counter aside.
    pub(super) fn spill(&mut self, side: usize, aside: &mut Aside) {
        if let Some((packets, more)) = self.packets.get_mut(side).zip(aside.packets.get_mut(side)) {
            // One stays, so that the flow does not look silent.
            *more += u64::from(*packets - 1);
            *packets = 1;
        }
    }

    /// When to look at it again, on the meter's clock.
    pub(super) fn deadline(&self, timeouts: &Timeouts, pressure: bool) -> i64 {
        let proto = self.key.proto();
        let idle = match (self.is_closed(), pressure) {
            (true, _) => timeouts.linger,
            (false, true) => timeouts.emergency(proto),
            (false, false) => timeouts.idle(proto),
        };
        self.seen.saturating_add(idle).min(self.next_record)
    }

    /// Why it is due; `None` if it is not.
    pub(super) fn due(&self, now: i64, timeouts: &Timeouts, pressure: bool) -> Option<EndReason> {
        let proto = self.key.proto();
        let quiet = now.saturating_sub(self.seen);
        let closed = self.is_closed();
        if closed && quiet >= timeouts.linger {
            Some(EndReason::EndOfFlow)
        } else if !closed && quiet >= timeouts.idle(proto) {
            Some(EndReason::Idle)
        } else if !closed && pressure && quiet >= timeouts.emergency(proto) {
            Some(EndReason::LackOfResources)
        } else {
            (now >= self.next_record).then_some(EndReason::Active)
        }
    }

    /// Takes the counters, as the part of a flow that goes on. `None` when there is nothing to tell.
    pub(super) fn interim(&mut self, aside: Option<&mut Aside>, now: i64, active: i64) -> Option<Metered> {
        self.next_record = now.saturating_add(active);
        (!self.is_silent()).then(|| self.record(aside, EndReason::Active))
    }

    /// Takes the counters. Without a packet since the last record it still says how the flow ended.
    pub(super) fn record(&mut self, aside: Option<&mut Aside>, end_reason: EndReason) -> Metered {
        if self.is_silent() {
            self.first = self.last;
        }
        let mut packets = std::mem::take(&mut self.packets).map(u64::from);
        let notes = self.notes(aside.as_deref());
        if let Some(aside) = aside {
            for (packets, more) in packets.iter_mut().zip(std::mem::take(&mut aside.packets)) {
                *packets += more;
            }
        }
        let bytes = std::mem::take(&mut self.bytes);
        let flags = std::mem::take(&mut self.flags);
        let orig_low = self.is(mark::ORIG_LOW);
        let (orig, resp) = (self.key.end(orig_low), self.key.end(!orig_low));
        Metered {
            direction: if self.is(mark::OUTGOING) { Direction::Outgoing } else { Direction::Incoming },
            orig,
            resp: if self.key.is_icmp() { (resp.0, self.asked) } else { resp },
            proto: self.key.proto(),
            vlan: self.key.vlan(),
            began: Timestamp::from_nanos(self.began),
            first: Timestamp::from_nanos(self.first),
            last: Timestamp::from_nanos(self.last),
            from_orig: (packets[0], bytes[0], flags[0]),
            from_resp: (packets[1], bytes[1], flags[1]),
            end_reason,
            initiator: self.initiator(),
            notes,
        }
    }

    const fn initiator(&self) -> Initiator {
        if self.is(mark::SEEN) {
            Initiator::Seen
        } else if self.is(mark::INFERRED) {
            Initiator::Inferred
        } else {
            Initiator::Unknown
        }
    }

    fn notes(&self, aside: Option<&Aside>) -> FlowNotes {
        let [.., activity] = (self.scitag & 0x3f).to_be_bytes();
        let scitag = SciTag { experiment: self.scitag >> 6, activity, by: SciTagSource::FlowLabel };
        FlowNotes {
            inner_vlan: self.key.inner_vlan(),
            tunnel: self.key.tunnel(),
            folded: None,
            speaks_of: aside.and_then(|aside| aside.speaks_of),
            icmp_error: aside.and_then(|aside| aside.icmp_error),
            scitag: (self.scitag != 0).then_some(scitag),
        }
    }
}

/// ICMP type and code of what the originator sent: the question, where the first packet seen is its answer.
const fn question(what: u16, by_source: bool) -> u16 {
    let [kind, code] = what.to_be_bytes();
    let asked = match kind {
        0 if !by_source => 8,
        129 if !by_source => 128,
        other => other,
    };
    u16::from_be_bytes([asked, code])
}
