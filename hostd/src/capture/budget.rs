//! How large a ring is: by the time that it has to last, within what all rings together may take. Pure.

use std::time::Duration;

/// What a frame of [`super::filter::SHORT`] bytes takes in the ring: header, address, padding, bytes, rounded up to 8.
const SLOT: u64 = 216;

/// What `[capture]` says of rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingOptions {
    /// How long a ring has to last while nobody reads it …
    pub lasts: Duration,
    /// … and that many packets come in a second.
    pub rate: u64,
    /// Bytes that all rings together may take.
    pub memory: u64,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { lasts: Duration::from_secs(1), rate: 150_000, memory: 1 << 30 }
    }
}

/// A ring as the kernel is asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingShape {
    /// How many blocks.
    pub blocks: usize,
    /// Age at which a block that is not full is handed over.
    pub retire: Duration,
}

impl RingShape {
    /// Bytes of a block: some 1200 frames. Large enough that a busy reader is woken seldom, small enough that the floor has
    /// several.
    pub const BLOCK: u32 = 256 << 10;
    /// The fewest blocks: 2 MiB, some 9700 frames. With less a single delay of the reader would lose packets.
    pub const FLOOR: usize = 8;
    /// A block that is not full is handed over after a tenth of a second: often enough for records whose scale is seconds, and
    /// a quiet tap wakes nobody.
    const RETIRE: Duration = Duration::from_millis(100);

    /// Of that many blocks.
    #[must_use]
    pub fn of(blocks: usize) -> Self {
        Self { blocks: blocks.max(Self::FLOOR), retire: Self::RETIRE }
    }

    /// What it takes of the kernel's memory.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(Self::BLOCK).saturating_mul(u64::try_from(self.blocks).unwrap_or(u64::MAX))
    }

    /// How long it lasts at that many packets a second.
    #[must_use]
    pub fn lasts(self, rate: u64) -> Duration {
        Duration::from_millis(self.bytes().saturating_mul(1000) / SLOT / rate.max(1))
    }
}

/// What of the memory is taken.
#[derive(Debug)]
pub struct RingBudget {
    options: RingOptions,
    taken: u64,
}

/// How much of what is left one ring may have: so that the last VMs to come get something too.
const SHARE: u64 = 8;

impl RingBudget {
    /// Nothing is taken.
    #[must_use]
    pub const fn new(options: RingOptions) -> Self {
        Self { options, taken: 0 }
    }

    /// As large as the options ask for, or what an eighth of the memory that is left allows; never below the floor, not even
    /// beyond the budget.
    #[must_use]
    pub fn shape(&self) -> RingShape {
        let options = &self.options;
        let left = options.memory.saturating_sub(self.taken);
        let blocks = self.wanted().min(left / SHARE) / u64::from(RingShape::BLOCK);
        RingShape::of(usize::try_from(blocks).unwrap_or(usize::MAX))
    }

    /// Whether a ring of this shape lasts less than was asked for.
    #[must_use]
    pub fn is_short(&self, shape: RingShape) -> bool {
        shape.bytes() < self.wanted()
    }

    fn wanted(&self) -> u64 {
        let millis = u64::try_from(self.options.lasts.as_millis()).unwrap_or(u64::MAX);
        let bytes = (self.options.rate.saturating_mul(millis) / 1000).saturating_mul(SLOT);
        bytes.checked_next_multiple_of(RingShape::BLOCK.into()).unwrap_or(u64::MAX)
    }

    /// A ring was mapped.
    pub fn take(&mut self, shape: RingShape) {
        self.taken = self.taken.saturating_add(shape.bytes());
    }

    /// A ring was unmapped.
    pub fn give_back(&mut self, shape: RingShape) {
        self.taken = self.taken.saturating_sub(shape.bytes());
    }

    /// Bytes that rings take now.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }

    /// What it was made with.
    #[must_use]
    pub const fn options(&self) -> RingOptions {
        self.options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(lasts: u64, rate: u64, memory: u64) -> RingBudget {
        RingBudget::new(RingOptions { lasts: Duration::from_secs(lasts), rate, memory: memory * MIB })
    }

    #[test]
    fn a_ring_lasts_as_long_as_was_asked_for() {
        let budget = RingBudget::new(RingOptions::default());
        let shape = budget.shape();
        assert!(shape.lasts(150_000) >= Duration::from_secs(1) && shape.bytes() < 33 * MIB, "{shape:?}");
        assert!(!budget.is_short(shape));
        assert!(shape.lasts(500_000) > Duration::from_millis(290));
    }

    #[test]
    fn rings_shrink_before_the_memory_ends_and_never_vanish() {
        let mut budget = budget(1, 150_000, 256);
        let mut sizes = Vec::new();
        for _ in 0..100 {
            let shape = budget.shape();
            budget.take(shape);
            sizes.push(shape.bytes());
        }
        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        assert_eq!(sizes.first().copied(), Some(31 * MIB));
        assert_eq!(sizes.last().copied(), Some(2 * MIB), "the floor");
        assert!(budget.is_short(RingShape::of(0)));
        assert!(budget.taken() < 256 * MIB + 90 * 2 * MIB, "{}", budget.taken());
        for bytes in sizes {
            let blocks = usize::try_from(bytes / u64::from(RingShape::BLOCK)).unwrap_or(0);
            budget.give_back(RingShape::of(blocks));
        }
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn small_and_absurd_wishes_are_met_with_the_floor_and_the_budget() {
        assert_eq!(budget(1, 1000, 1024).shape().blocks, RingShape::FLOOR);
        assert_eq!(budget(60, u64::MAX, 1024).shape().bytes(), 128 * MIB);
        assert_eq!(budget(1, 1000, 0).shape().blocks, RingShape::FLOOR);
    }
}
