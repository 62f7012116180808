//! Who holds which port block. Pure: time comes in as the time since boot.
//!
//! A block that carried packets rests before it is given out again, so that a late packet or a flow record that is still
//! open on the hypervisor can never be taken for the next payload's.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vestigo_model::PortBlock;

/// Number of a lease; everything that belongs to it (port block, inner address, uid, interface) is computed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

/// How the lease range is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    first: u16,
    size: u16,
    count: u16,
}

impl Blocks {
    /// Cuts `first..=last` into blocks of `size`; `None` if not even one fits.
    #[must_use]
    pub fn new(first: u16, last: u16, size: u16) -> Option<Self> {
        let ports = u32::from(last.checked_sub(first)?) + 1;
        let count = u16::try_from(ports.checked_div(u32::from(size))?).ok()?;
        (count > 0).then_some(Self { first, size, count })
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// The ports of a slot.
    #[must_use]
    pub const fn ports(&self, slot: Slot) -> PortBlock {
        let first = self.first.saturating_add(slot.0.saturating_mul(self.size));
        PortBlock { first, last: first.saturating_add(self.size - 1) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Free,
    Held,
    /// Until this time since boot.
    Resting(Duration),
}

/// Every block is in use or rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {all} port blocks are in use ({held}) or rest after use{}", soonest(.next))]
pub struct Exhausted {
    /// How many there are.
    pub all: usize,
    /// How many are in use.
    pub held: usize,
    /// When the next one has rested, if any rests.
    pub next: Option<Duration>,
}

fn soonest(next: &Option<Duration>) -> String {
    next.map_or_else(String::new, |wait| format!(", the next is free in {} s", wait.as_secs() + 1))
}

/// The allocator.
#[derive(Debug)]
pub struct Leases {
    states: Vec<State>,
    next: usize,
    rest: Duration,
}

impl Leases {
    /// All free.
    #[must_use]
    pub fn new(blocks: Blocks, rest: Duration) -> Self {
        Self { states: vec![State::Free; usize::from(blocks.count)], next: 0, rest }
    }

    /// Takes over from an agent that ended during this boot: what it held rests from now on.
    pub fn restore(&mut self, snapshot: &Snapshot, now: Duration) {
        for (state, old) in self.states.iter_mut().zip(&snapshot.0) {
            *state = match old {
                State::Held => State::Resting(now + self.rest),
                other => *other,
            };
        }
    }

    /// What a later agent has to know.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.states.clone())
    }

    /// Gives out the free block that has not been in use for longest, roughly: the search goes round.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn allocate(&mut self, now: Duration) -> Result<Slot, Exhausted> {
        let all = self.states.len();
        let free = |state: &State| match state {
            State::Free => true,
            State::Held => false,
            State::Resting(until) => *until <= now,
        };
        let found = (0..all).map(|step| (self.next + step) % all).find(|i| self.states.get(*i).is_some_and(free));
        let Some(index) = found else { return Err(self.exhausted(now)) };
        if let Some(state) = self.states.get_mut(index) {
            *state = State::Held;
        }
        self.next = (index + 1) % all;
        u16::try_from(index).map(Slot).map_err(|_| self.exhausted(now))
    }

    fn exhausted(&self, now: Duration) -> Exhausted {
        let (held, _) = self.counts(now);
        let next = self.states.iter().filter_map(|s| match s {
            State::Resting(until) => Some(until.saturating_sub(now)),
            _ => None,
        });
        Exhausted { all: self.states.len(), held, next: next.min() }
    }

    /// Takes a block back. One that never carried a packet (`used == false`) has nothing to be confused with.
    pub fn release(&mut self, slot: Slot, now: Duration, used: bool) {
        if let Some(state) = self.states.get_mut(usize::from(slot.0)).filter(|s| **s == State::Held) {
            *state = if used { State::Resting(now + self.rest) } else { State::Free };
        }
    }

    /// In use, resting.
    #[must_use]
    pub fn counts(&self, now: Duration) -> (usize, usize) {
        let held = self.states.iter().filter(|s| **s == State::Held).count();
        let resting = self.states.iter().filter(|s| matches!(s, State::Resting(until) if *until > now)).count();
        (held, resting)
    }

    /// How many there are.
    #[must_use]
    pub fn all(&self) -> usize {
        self.states.len()
    }
}

/// The allocator's state between two lives of the agent within one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Snapshot(Vec<State>);

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
