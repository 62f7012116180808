//! A timing wheel whose lists hang in the entries themselves.
//!
//! Every entry hangs in one slot: that of the moment when it is to be looked at again. A packet moves nothing; when the moment comes and the
//! flow has been busy since, it is hung up anew. So a packet costs nothing here, and expiry costs what is due.

use super::{
    entry::{Entry, Links},
    slab::{LIMIT, NONE, Slab},
};

/// 134 ms: twice as fine as hostd's asking for what is due.
const TICK_BITS: u32 = 27;
/// 137 s of slots. What is later hangs in the last and is hung up anew from there.
const SLOTS: i64 = 1024;
/// An additional slot, for what was looked at and is not due, while its slot is being emptied.
const ASIDE: u32 = 1024;
/// Set in `prev` of the first entry of a slot, beside the slot's number.
const FIRST: u32 = LIMIT;

/// The slots.
#[derive(Debug)]
pub(super) struct Wheel {
    heads: Vec<u32>,
    /// The slot of this tick is the next to be emptied. Nothing hangs in an earlier one.
    cursor: Option<i64>,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { heads: vec![NONE; ASIDE as usize + 1], cursor: None }
    }

    /// Hangs an entry up for a look at `deadline`; `now` matters to the very first only.
    pub(super) fn hang(&mut self, slab: &mut Slab, at: u32, deadline: i64, now: i64) {
        let cursor = *self.cursor.get_or_insert(now >> TICK_BITS);
        let tick = (deadline >> TICK_BITS).clamp(cursor, cursor + SLOTS - 1);
        self.push(slab, slot_of(tick), at);
    }

    /// Sets it aside until [`Wheel::restore`].
    pub(super) fn set_aside(&mut self, slab: &mut Slab, at: u32) {
        self.push(slab, ASIDE, at);
    }

    /// Hangs up all that was set aside in the slot of the cursor.
    pub(super) fn restore(&mut self, slab: &mut Slab) {
        let Some(cursor) = self.cursor else { return };
        while let Some(at) = self.pop(slab, ASIDE) {
            self.push(slab, slot_of(cursor), at);
        }
    }

    /// Takes an entry off.
    pub(super) fn unhang(&mut self, slab: &mut Slab, at: u32) {
        let Some(Links { prev, next }) = slab.get(at).map(|entry| entry.links) else { return };
        if prev & FIRST != 0 {
            self.set_head(prev & !FIRST, next);
        } else if let Some(before) = slab.get_mut(prev) {
            before.links.next = next;
        }
        if let Some(after) = slab.get_mut(next) {
            after.links.prev = prev;
        }
    }

    /// Takes off the next entry of the cursor's slot; when that is empty, goes on to the next slot, up to that of `now`.
    pub(super) fn take(&mut self, slab: &mut Slab, now: i64) -> Option<u32> {
        self.take_until(slab, now >> TICK_BITS)
    }

    fn take_until(&mut self, slab: &mut Slab, target: i64) -> Option<u32> {
        // After a long time without looking, once round is enough.
        let mut cursor = self.cursor?.max(target - SLOTS + 1);
        let found = loop {
            let found = self.pop(slab, slot_of(cursor));
            if found.is_some() || cursor >= target {
                break found;
            }
            cursor += 1;
        };
        self.cursor = Some(cursor);
        found
    }

    /// Takes off the next entry, due or not. When there is none left, the wheel is as new.
    pub(super) fn take_any(&mut self, slab: &mut Slab) -> Option<u32> {
        let last = self.cursor? + SLOTS - 1;
        let found = self.take_until(slab, last);
        if found.is_none() {
            self.cursor = None;
        }
        found
    }

    /// Hangs all up anew.
    pub(super) fn rehang(&mut self, slab: &mut Slab, deadline: impl Fn(&Entry) -> i64) {
        let Some(cursor) = self.cursor else { return };
        for slot in 0..ASIDE {
            let mut at = self.head(slot);
            self.set_head(slot, NONE);
            while let Some((next, when)) = slab.get(at).map(|entry| (entry.links.next, deadline(entry))) {
                self.hang(slab, at, when, cursor);
                at = next;
            }
        }
    }

    /// Whether a look at this moment would fall into the slot that is being emptied.
    pub(super) fn is_current(&self, deadline: i64) -> bool {
        self.cursor.is_some_and(|cursor| deadline >> TICK_BITS <= cursor)
    }

    fn push(&mut self, slab: &mut Slab, slot: u32, at: u32) {
        let head = self.head(slot);
        if let Some(entry) = slab.get_mut(at) {
            entry.links = Links { prev: FIRST | slot, next: head };
            self.set_head(slot, at);
        }
        if let Some(after) = slab.get_mut(head) {
            after.links.prev = at;
        }
    }

    fn pop(&mut self, slab: &mut Slab, slot: u32) -> Option<u32> {
        let head = self.head(slot);
        let next = slab.get(head)?.links.next;
        self.set_head(slot, next);
        if let Some(after) = slab.get_mut(next) {
            after.links.prev = FIRST | slot;
        }
        Some(head)
    }

    fn head(&self, slot: u32) -> u32 {
        self.heads.get(slot as usize).copied().unwrap_or(NONE)
    }

    fn set_head(&mut self, slot: u32, at: u32) {
        if let Some(head) = self.heads.get_mut(slot as usize) {
            *head = at;
        }
    }
}

fn slot_of(tick: i64) -> u32 {
    u32::try_from(tick.rem_euclid(SLOTS)).unwrap_or(0)
}
