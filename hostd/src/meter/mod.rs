//! The meter of one tap: frames in, biflow records out. Pure: its clock is the packets' and the caller's.
//!
//! ```text
//! packet ──► entry (originator kept) ── after `first`, then every `active` ──► record, reason active     (deltas; entry stays)
//!     │           ├── quiet for `idle` ──────────────────────────────────────► record, reason idle
//!     │           ├── quiet for `emergency`, table three quarters full ──────► record, reason lack-of-resources
//!     │           ├── FIN both ways or RST, then `linger` ───────────────────► record, reason end-of-flow
//!     │           └── tap gone, hostd stops ─────────────────────────────────► record, reason forced
//!     └── no room ──► share of the VM's port block ── as often ──────────────► record of many, reason lack-of-resources
//! ```
//! The sum over a flow's records is its total. Nothing is thrown out for another: what finds no room is folded, and what nobody
//! takes stays. See docs/metering.md.

mod clock;
mod entry;
mod fold;
mod fragments;
mod key;
mod options;
mod record;
mod sighting;
mod slab;
mod table;
mod wheel;
mod witness;

use std::collections::BTreeMap;

use vestigo_model::{Mac, Timestamp};

use crate::decode::{self, Heading, Packet, Undecodable};

use self::{clock::Clock, fragments::Fragments, key::Key, sighting::Sighting, table::Table};

pub use self::{
    options::{Idle, MeterOptions},
    record::Metered,
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
    /// Conversations that the table had no room for, at most: counted in full in records that stand for many.
    pub folded: u64,
    /// Frames from the VM under another hardware address, and flooded ones that are not for it.
    pub foreign: u64,
    /// Later fragments whose first was not seen: metered without ports.
    pub orphans: u64,
    /// Packets whose transport header was cut off or behind too many others: metered without ports.
    pub headless: u64,
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
        self.folded += other.folded;
        self.foreign += other.foreign;
        self.orphans += other.orphans;
        self.headless += other.headless;
        for (reason, count) in &other.undecodable {
            *self.undecodable.entry(*reason).or_default() += count;
        }
    }
}

/// Hardware addresses beside its own that a VM may use before every frame on its tap counts as its own.
const MAX_MACS: usize = 16;

/// Frames in, records out: decode, fragments and table of one tap; `W` sees the frames by which machines say who they are. Pure.
#[derive(Debug)]
pub struct Meter<W = ()> {
    witness: W,
    table: Table,
    fragments: Fragments,
    clock: Clock,
    mac: Option<Mac>,
    /// Others that the VM has sent from: what goes there is for it.
    more_macs: Vec<Mac>,
    tunnels: bool,
    scitags: bool,
    counts: Counts,
    told_live: i64,
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
            table: Table::new(&options),
            fragments: Fragments::default(),
            clock: Clock::default(),
            mac,
            more_macs: Vec::new(),
            tunnels: options.tunnels,
            scitags: options.scitags,
            counts: Counts::default(),
            told_live: 0,
        }
    }

    /// Who looks at frames of control protocols.
    pub fn witness(&mut self) -> &mut W {
        &mut self.witness
    }

    /// Takes an Ethernet frame.
    pub fn frame(&mut self, frame: &Frame<'_>) {
        if self.is_flooded(frame) {
            self.counts.foreign += 1;
            self.counts.frames += 1;
            return;
        }
        self.decoded(frame, decode::ethernet(frame.bytes, frame.wire_len.max(frame.bytes.len()), frame.vlan));
    }

    /// Takes a frame of another link layer, as somebody decoded it.
    #[inline(always)]
    pub fn decoded(&mut self, frame: &Frame<'_>, packet: Result<Packet, Undecodable>) {
        self.counts.frames += 1;
        match frame.heading {
            Heading::FromVm => self.counts.from_vm.note(frame.wire_len),
            Heading::ToVm => self.counts.to_vm.note(frame.wire_len),
        }
        match packet {
            Ok(packet) => {
                if let Some(control) = Control::of(&packet) {
                    self.witness.control(frame, control);
                }
                let inside = if self.tunnels {
                    decode::inside(frame.bytes, &packet, frame.wire_len.max(frame.bytes.len()))
                } else {
                    None
                };
                self.packet(frame, packet);
                if let Some(inside) = inside {
                    self.packet(frame, inside);
                }
            }
            Err(reason) => {
                if reason == Undecodable::Arp {
                    self.witness.control(frame, Control::Arp);
                }
                *self.counts.undecodable.entry(reason).or_default() += 1;
            }
        }
    }

    #[inline(always)]
    fn packet(&mut self, frame: &Frame<'_>, mut packet: Packet) {
        let time = frame.time.as_nanos();
        let seen = self.clock.packet(time);
        if packet.fragment.is_some() {
            self.fragments.resolve(&mut packet, frame.heading, seen);
        }
        self.counts.headless += u64::from(packet.headless);
        let sighting = Sighting::new(&packet, frame.heading, self.mac.is_some(), (time, seen), self.scitags);
        self.table.packet(sighting);
        if packet.icmp.is_some() {
            self.link_error(frame, &packet, &sighting);
        }
    }

    /// An error is believed to speak of a flow only where it goes to who sent the packet.
    fn link_error(&mut self, frame: &Frame<'_>, error: &Packet, sighting: &Sighting) {
        if let Some(spoken) = decode::spoken_of(frame.bytes, error)
            && (spoken.src, spoken.v6) == (error.dst, error.v6)
        {
            // What it speaks of went the other way.
            let (key, _) = Key::of(&spoken, self.mac.map(|_| frame.heading == Heading::ToVm));
            self.table.link(&sighting.key, sighting.icmp.unwrap_or(0), &key, key::tuple(&spoken));
        }
    }

    /// Gives the records that are due at `now`, `room` at most. What finds no room stays due, and keeps its place in the table.
    pub fn due(&mut self, now: Timestamp, room: usize, out: &mut Vec<Metered>) {
        let now = self.clock.asked(now.as_nanos());
        self.table.due(now, room, out);
    }

    /// Ends every flow.
    pub fn flush(&mut self, out: &mut Vec<Metered>) {
        self.table.drain(usize::MAX, out);
    }

    /// As [`Meter::flush`], but some `room` at a time: to be called until it gives nothing.
    pub fn drain(&mut self, room: usize, out: &mut Vec<Metered>) {
        self.table.drain(room, out);
    }

    /// Takes what was counted.
    pub fn take_counts(&mut self) -> Counts {
        self.table.settle();
        self.counts.folded += self.table.take_folded();
        self.counts.orphans += self.fragments.take_orphans();
        let held = i64::try_from(self.table.len()).unwrap_or(i64::MAX);
        self.counts.live = held - std::mem::replace(&mut self.told_live, held);
        std::mem::take(&mut self.counts)
    }

    /// Flows held, but for those of the last few packets: they are counted in batches.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no flow is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is neither from the VM nor for it: a switch floods what it knows no port for. A guest may use other hardware addresses
    /// than its own (it forges, or has containers with some of their own); such a frame is counted, and what is sent there from then on is
    /// the VM's. The direction is the kernel's word and not in doubt.
    fn is_flooded(&mut self, frame: &Frame<'_>) -> bool {
        let Some((mac, (dst, src))) = self.mac.zip(addresses(frame.bytes)) else { return false };
        let [first, ..] = *dst;
        match frame.heading {
            Heading::FromVm if *src != mac.0 => {
                self.counts.foreign += 1;
                if self.more_macs.len() < MAX_MACS && !self.has_sent_from(src) {
                    self.more_macs.push(Mac(*src));
                }
                false
            }
            Heading::FromVm => false,
            // With so many addresses it may have any: rather too much is metered than nothing of what it hides.
            Heading::ToVm => {
                *dst != mac.0 && first & 1 == 0 && self.more_macs.len() < MAX_MACS && !self.has_sent_from(dst)
            }
        }
    }

    fn has_sent_from(&self, mac: &[u8; 6]) -> bool {
        self.more_macs.iter().any(|known| known.0 == *mac)
    }
}

/// Destination and source.
fn addresses(frame: &[u8]) -> Option<(&[u8; 6], &[u8; 6])> {
    let (dst, rest) = frame.split_first_chunk()?;
    Some((dst, rest.first_chunk()?))
}

#[cfg(test)]
mod tests;
