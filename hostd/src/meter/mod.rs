//! The flow table of one tap: packets in, biflow records out. Pure: its clock is the packets' and the caller's.
//!
//! ```text
//! packet ──► entry (originator kept) ── every `active` ──► record, reason active     (deltas; entry stays)
//!                 │                  └── quiet for `idle` ► record, reason idle
//!                 ├── FIN both ways or RST, then `linger` ► record, reason end-of-flow
//!                 ├── table full: the quietest goes ──────► record, reason lack-of-resources
//!                 └── tap gone, hostd stops ──────────────► record, reason forced
//! ```
//! The first record of a flow that lasts is written after `first`, so that a question asked during an incident does not
//! wait for the active timeout. The sum over a flow's records is its total.

mod fragments;
mod table;
mod witness;

use std::{collections::BTreeMap, time::Duration};

use vestigo_model::{Mac, Timestamp};

use crate::decode::{self, Heading, Undecodable};

use fragments::Fragments;
use table::Table;

pub use self::{
    table::Metered,
    witness::{Control, Witness},
};

/// One frame, wherever it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Its bytes, from the Ethernet header on; may be cut.
    pub bytes: &'a [u8],
    /// Its length before it was cut.
    pub wire_len: usize,
    /// The outermost VLAN id, where the kernel has taken the tag out of the bytes (packet(7), `PACKET_AUXDATA`).
    pub vlan: Option<u16>,
    /// When it was seen.
    pub time: Timestamp,
    /// Which way it goes. The kernel's word: hardware addresses are the guest's to forge.
    pub heading: Heading,
}

/// Packets and bytes one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames.
    pub packets: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
}

impl Traffic {
    fn note(&mut self, wire_len: usize) {
        self.packets += 1;
        self.bytes += u64::try_from(wire_len).unwrap_or(u64::MAX);
    }

    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What became of the frames, since the last call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames taken.
    pub frames: u64,
    /// Frames that the VM sent.
    pub from_vm: Traffic,
    /// Frames for the VM.
    pub to_vm: Traffic,
    /// How many more flows are held than before: the sum of all is how many are held.
    pub live: i64,
    /// Flows cut short because the table was full.
    pub evicted: u64,
    /// Frames from the VM under another hardware address, and flooded ones that are not for it.
    pub foreign: u64,
    /// Later fragments whose first was not seen: metered without ports.
    pub orphans: u64,
    /// Frames that are no IP packet, by reason.
    pub undecodable: BTreeMap<Undecodable, u64>,
}

impl Counts {
    /// Adds the other's.
    pub fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.from_vm.add(other.from_vm);
        self.to_vm.add(other.to_vm);
        self.live += other.live;
        self.evicted += other.evicted;
        self.foreign += other.foreign;
        self.orphans += other.orphans;
        for (reason, count) in &other.undecodable {
            *self.undecodable.entry(*reason).or_default() += count;
        }
    }
}

/// Frames in, records out: decode, fragments and table of one tap; `W` sees the frames by which machines say who they are. Pure.
#[derive(Debug)]
pub struct Meter<W = ()> {
    witness: W,
    table: Table,
    fragments: Fragments,
    mac: Option<Mac>,
    counts: Counts,
    told_live: i64,
    /// Records that packets brought about, until somebody asks.
    ready: Vec<Metered>,
}

impl Meter {
    /// An empty one. `mac` is the VM's hardware address, where there is one VM.
    #[must_use]
    pub fn new(options: MeterOptions, mac: Option<Mac>) -> Self {
        Self::with_witness(options, mac, ())
    }
}

impl<W: Witness> Meter<W> {
    /// As [`Meter::new`], with somebody who looks at frames of control protocols.
    #[must_use]
    pub fn with_witness(options: MeterOptions, mac: Option<Mac>, witness: W) -> Self {
        Self {
            witness,
            table: Table::new(options),
            fragments: Fragments::default(),
            mac,
            counts: Counts::default(),
            told_live: 0,
            ready: Vec::new(),
        }
    }

    /// Who looks at frames of control protocols.
    pub fn witness(&mut self) -> &mut W {
        &mut self.witness
    }

    /// Takes a frame.
    pub fn frame(&mut self, frame: &Frame<'_>) {
        self.counts.frames += 1;
        if self.is_foreign(frame) {
            self.counts.foreign += 1;
            if frame.heading == Heading::ToVm {
                // Flooded: it reaches the tap, but is neither from the VM nor for it.
                return;
            }
        }
        match frame.heading {
            Heading::FromVm => self.counts.from_vm.note(frame.wire_len),
            Heading::ToVm => self.counts.to_vm.note(frame.wire_len),
        }
        let mut packet = match decode::ethernet(frame.bytes, frame.wire_len.max(frame.bytes.len()), frame.vlan) {
            Ok(packet) => packet,
            Err(reason) => {
                if reason == Undecodable::Arp {
                    self.witness.control(frame, Control::Arp);
                }
                *self.counts.undecodable.entry(reason).or_default() += 1;
                return;
            }
        };
        if let Some(control) = Control::of(&packet) {
            self.witness.control(frame, control);
        }
        self.fragments.resolve(&mut packet);
        self.ready.extend(self.table.packet(&packet, frame.heading, frame.time));
    }

    /// Gives the records that are due at `now`, `room` at most. What finds no room stays due.
    pub fn due(&mut self, now: Timestamp, room: usize, out: &mut Vec<Metered>) {
        out.extend(self.ready.drain(..room.min(self.ready.len())));
        out.extend(self.table.expire(now, room.saturating_sub(out.len())));
    }

    /// Ends every flow.
    pub fn flush(&mut self, out: &mut Vec<Metered>) {
        out.append(&mut self.ready);
        out.extend(self.table.flush());
    }

    /// Takes what was counted.
    pub fn take_counts(&mut self) -> Counts {
        self.counts.evicted += self.table.take_evicted();
        self.counts.orphans += self.fragments.take_orphans();
        let held = i64::try_from(self.table.len()).unwrap_or(i64::MAX);
        self.counts.live = held - std::mem::replace(&mut self.told_live, held);
        std::mem::take(&mut self.counts)
    }

    /// Flows held now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no flow is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// A frame from the VM under another hardware address, or one to somebody else's: a guest that forges, or a switch that
    /// floods. Counted; the direction is the kernel's word and not in doubt.
    fn is_foreign(&self, frame: &Frame<'_>) -> bool {
        let Some((mac, (dst, src))) = self.mac.zip(addresses(frame.bytes)) else { return false };
        let [first, ..] = *dst;
        match frame.heading {
            Heading::FromVm => *src != mac.0,
            Heading::ToVm => *dst != mac.0 && first & 1 == 0,
        }
    }
}

/// Destination and source.
fn addresses(frame: &[u8]) -> Option<(&[u8; 6], &[u8; 6])> {
    let (dst, rest) = frame.split_first_chunk()?;
    Some((dst, rest.first_chunk()?))
}

/// Timeouts and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterOptions {
    /// Age at which a flow that goes on gets its first record.
    pub first: Duration,
    /// Time between two records of a flow that goes on.
    pub active: Duration,
    /// Quiet time that ends a TCP flow.
    pub idle_tcp: Duration,
    /// Quiet time that ends a UDP flow.
    pub idle_udp: Duration,
    /// Quiet time that ends any other flow.
    pub idle_other: Duration,
    /// How long a closed TCP flow still takes stragglers.
    pub linger: Duration,
    /// Most flows held at once for this tap.
    pub max_flows: usize,
}

impl Default for MeterOptions {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(2),
            active: Duration::from_secs(60),
            idle_tcp: Duration::from_secs(300),
            idle_udp: Duration::from_secs(60),
            idle_other: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            max_flows: 65_536,
        }
    }
}

#[cfg(test)]
mod tests;
