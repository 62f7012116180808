//! The meter's own time: it only goes forward.

/// Packets of several queues, or of several interfaces in a file, come a little out of order. More than this is a step of the clock.
const TOLERANCE: i64 = 5_000_000_000;

/// Made from the times of packets and of the asking for records, which may both step back: flows would then never be quiet for long
/// enough, or always. Records keep the times that the packets have.
#[derive(Debug)]
pub(super) struct Clock {
    now: i64,
    offset: i64,
}

impl Clock {
    pub(super) const fn new() -> Self {
        Self { now: i64::MIN, offset: 0 }
    }

    /// What the meter's clock shows when somebody else's shows `time`, in nanoseconds.
    pub(super) const fn at(&mut self, time: i64) -> i64 {
        let own = time.saturating_add(self.offset);
        let back = self.now.saturating_sub(own);
        if back <= 0 {
            self.now = own;
        } else if back > TOLERANCE {
            self.offset = self.offset.saturating_add(back);
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back_and_follows_a_step() {
        let mut clock = Clock::new();
        assert_eq!(clock.at(100 * TOLERANCE), 100 * TOLERANCE);
        assert_eq!(clock.at(100 * TOLERANCE - 7), 100 * TOLERANCE, "a little out of order");
        assert_eq!(clock.at(TOLERANCE), 100 * TOLERANCE, "stepped back");
        assert_eq!(clock.at(TOLERANCE + 9), 100 * TOLERANCE + 9);
        assert_eq!(clock.at(i64::MAX), i64::MAX);
        assert_eq!(clock.at(i64::MIN), i64::MAX);
    }
}
