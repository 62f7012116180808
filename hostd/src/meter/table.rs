use std::{collections::HashMap, hash::BuildHasher as _};

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use vestigo_model::{EndReason, Tuple};

use super::{
    MeterOptions,
    entry::{Aside, Entry},
    fold::Folds,
    key::Key,
    options::Timeouts,
    record::Metered,
    sighting::Sighting,
    slab::Slab,
    wheel::Wheel,
};

/// Packets gathered before they are counted. Their flows are looked up together first, so that the processor waits for
/// several cache misses at once and not for one after the other.
const BATCH: usize = 32;

/// The flows of one tap.
#[derive(Debug)]
pub(super) struct Table {
    max_flows: usize,
    timeouts: Timeouts,
    /// Numbers of entries, by key. Seeded anew for every table: a guest cannot aim at one slot.
    index: HashTable<u32>,
    hasher: RandomState,
    slab: Slab,
    wheel: Wheel,
    asides: HashMap<u32, Aside>,
    folds: Folds,
    /// More than three quarters are taken: quiet flows end earlier.
    pressure: bool,
    batch: Vec<Sighting>,
}

impl Table {
    pub(super) fn new(options: &MeterOptions) -> Self {
        Self {
            max_flows: options.max_flows,
            timeouts: Timeouts::new(options),
            index: HashTable::new(),
            hasher: RandomState::default(),
            slab: Slab::default(),
            wheel: Wheel::new(),
            asides: HashMap::new(),
            folds: Folds::default(),
            pressure: false,
            batch: Vec::with_capacity(BATCH),
        }
    }

    /// Flows held.
    pub(super) const fn len(&self) -> usize {
        self.slab.len()
    }

    /// Conversations that found no room since the last call, at most.
    pub(super) fn take_folded(&mut self) -> u64 {
        self.folds.take_conversations()
    }

    /// Takes a packet. It is counted with the batch that it fills, or by [`Table::settle`].
    pub(super) fn packet(&mut self, mut sighting: Sighting) {
        sighting.hash = self.hasher.hash_one(sighting.key);
        self.batch.push(sighting);
        if self.batch.len() >= BATCH {
            self.settle();
        }
    }

    /// Counts what was taken. First for all packets the index is asked for a candidate, then all candidates are looked at, then all are
    /// counted: within a step no packet waits for the memory of another.
    pub(super) fn settle(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let mut hints = [None; BATCH];
        for (hint, sighting) in hints.iter_mut().zip(&batch) {
            *hint = self.index.find(sighting.hash, |_| true).copied();
        }
        let mut warmth = 0;
        for (hint, sighting) in hints.iter_mut().zip(&batch) {
            let Some(entry) = hint.and_then(|at| self.slab.get(at)) else { continue };
            warmth ^= entry.touch();
            if entry.key != sighting.key {
                *hint = None;
            }
        }
        std::hint::black_box(warmth);
        for (hint, sighting) in hints.iter().zip(&batch) {
            self.count(sighting, *hint);
        }
        self.batch = batch;
        self.batch.clear();
    }

    /// An ICMP error, and the packet that it speaks of: both flows are told of each other.
    pub(super) fn link(&mut self, error: &Key, what: u16, spoken: &Key, tuple: Tuple) {
        self.settle();
        if let Some(aside) = self.aside(error) {
            aside.speaks_of = Some(tuple);
        }
        if let Some(aside) = self.aside(spoken) {
            aside.icmp_error = Some(what);
        }
    }

    fn aside(&mut self, key: &Key) -> Option<&mut Aside> {
        let at = self.find(self.hasher.hash_one(key), key)?;
        self.slab.get_mut(at)?.mark_aside();
        Some(self.asides.entry(at).or_default())
    }

    fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        self.index.find(hash, |at| self.holds(*at, key)).copied()
    }

    fn holds(&self, at: u32, key: &Key) -> bool {
        self.slab.get(at).is_some_and(|entry| entry.key == *key)
    }

    /// `hint`: where the flow was before the packets that came in the same batch.
    fn count(&mut self, sighting: &Sighting, hint: Option<u32>) {
        let at = match self.current(sighting, hint) {
            Some(at) if sighting.is_first_syn() => self.reopen(sighting, at),
            Some(at) => Some(at),
            None => self.open(sighting),
        };
        let Some((at, entry)) = at.and_then(|at| Some((at, self.slab.get_mut(at)?))) else {
            return self.folds.count(sighting, &self.timeouts);
        };
        let was_closed = entry.is_closed();
        let full = entry.count(sighting);
        if entry.is_closed() && !was_closed {
            self.hurry(at, sighting.seen);
        }
        if let Some(side) = full {
            self.spill(at, side);
        }
    }

    fn current(&self, sighting: &Sighting, hint: Option<u32>) -> Option<u32> {
        let valid = |at: &u32| self.slab.get(*at).is_some_and(|entry| !entry.is_replaced());
        hint.filter(valid).or_else(|| self.find(sighting.hash, &sighting.key))
    }

    /// A new connection between the same ports as one that has closed is another flow. The old one keeps its entry until its record
    /// is taken, but is found no more.
    fn reopen(&mut self, sighting: &Sighting, at: u32) -> Option<u32> {
        let entry = self.slab.get_mut(at)?;
        if !entry.is_closed() {
            return Some(at);
        }
        entry.mark_replaced();
        self.forget(at);
        self.open(sighting)
    }

    fn open(&mut self, sighting: &Sighting) -> Option<u32> {
        if self.slab.len() >= self.max_flows {
            return None;
        }
        let entry = Entry::open(sighting, &self.timeouts);
        let deadline = entry.deadline(&self.timeouts, self.pressure);
        let at = self.slab.insert(entry)?;
        self.wheel.hang(&mut self.slab, at, deadline, sighting.seen);
        let Self { index, slab, hasher, .. } = self;
        let hash_of = |at: &u32| slab.get(*at).map_or(0, |entry| hasher.hash_one(entry.key));
        index.insert_unique(sighting.hash, at, hash_of);
        Some(at)
    }

    /// Looks at it again when it has lingered.
    fn hurry(&mut self, at: u32, now: i64) {
        let Some(entry) = self.slab.get_mut(at) else { return };
        entry.wind_up(&self.timeouts);
        let deadline = entry.deadline(&self.timeouts, self.pressure);
        self.wheel.unhang(&mut self.slab, at);
        self.wheel.hang(&mut self.slab, at, deadline, now);
    }

    #[cold]
    fn spill(&mut self, at: u32, side: usize) {
        if let Some(entry) = self.slab.get_mut(at) {
            entry.mark_aside();
            entry.spill(side, self.asides.entry(at).or_default());
        }
    }

    /// Takes it out of the index.
    fn forget(&mut self, at: u32) {
        let Some(hash) = self.slab.get(at).map(|entry| self.hasher.hash_one(entry.key)) else { return };
        if let Ok(found) = self.index.find_entry(hash, |other| *other == at) {
            found.remove();
        }
    }

    /// Gives the records that are due at `now`, `room` at most. What finds no room stays in the table.
    pub(super) fn due(&mut self, now: i64, room: usize, out: &mut Vec<Metered>) {
        self.settle();
        self.feel_pressure();
        let end = out.len().saturating_add(room);
        self.folds.due(now, self.timeouts.active, room, out);
        while out.len() < end
            && let Some(at) = self.wheel.take(&mut self.slab, now)
        {
            out.extend(self.look(at, now));
        }
        self.wheel.restore(&mut self.slab);
    }

    /// With a band between on and off: going on costs a look at every entry.
    fn feel_pressure(&mut self) {
        let held = self.slab.len();
        let (on, off) = (self.max_flows - self.max_flows / 4, self.max_flows - self.max_flows / 3);
        if !self.pressure && held > on {
            self.pressure = true;
            let timeouts = self.timeouts;
            self.wheel.rehang(&mut self.slab, |entry| entry.deadline(&timeouts, true));
        } else if held < off {
            self.pressure = false;
        }
    }

    /// Looks at an entry that hangs nowhere; hangs it up again unless it ended.
    fn look(&mut self, at: u32, now: i64) -> Option<Metered> {
        let entry = self.slab.get_mut(at)?;
        let aside = if entry.has_aside() { self.asides.get_mut(&at) } else { None };
        let record = match entry.due(now, &self.timeouts, self.pressure) {
            None => None,
            Some(EndReason::Active) => entry.interim(aside, now, self.timeouts.active),
            Some(reason) => {
                let record = entry.record(aside, reason);
                self.end(at);
                return Some(record);
            }
        };
        let deadline = entry.deadline(&self.timeouts, self.pressure);
        if self.wheel.is_current(deadline) {
            self.wheel.set_aside(&mut self.slab, at);
        } else {
            self.wheel.hang(&mut self.slab, at, deadline, now);
        }
        record
    }

    fn end(&mut self, at: u32) {
        self.forget(at);
        if self.slab.get(at).is_some_and(Entry::has_aside) {
            self.asides.remove(&at);
        }
        self.slab.remove(at);
    }

    /// Ends flows until none is left or there is no more room; what was folded comes first, whole.
    pub(super) fn drain(&mut self, room: usize, out: &mut Vec<Metered>) {
        self.settle();
        let end = out.len().saturating_add(room);
        self.folds.flush(out);
        while out.len() < end
            && let Some(at) = self.wheel.take_any(&mut self.slab)
        {
            if let Some(entry) = self.slab.get_mut(at) {
                let reason = if entry.is_closed() { EndReason::EndOfFlow } else { EndReason::Forced };
                out.push(entry.record(self.asides.get_mut(&at), reason));
            }
            self.end(at);
        }
    }

    #[cfg(test)]
    pub(super) fn fill_counters(&mut self, packets: u32) {
        self.settle();
        if let Some(entry) = self.slab.get_mut(0) {
            entry.fill_counter(packets);
        }
    }
}
