//! The meter's own time: it only goes forward.

/// Packets of several queues, or of several interfaces in a file, come a little out of order. More than this is a step of the clock.
const TOLERANCE: i64 = 5_000_000_000;

/// Made from the times of packets and of those who ask for records, which may both step back: flows would then never be quiet for long
/// enough, or always. The two are watched apart, because packets may have waited for a while when they are read. Records keep the times that the
/// packets have.
#[derive(Debug, Default)]
pub(super) struct Clock {
    packets: Line,
    askers: Line,
}

/// One of the two.
#[derive(Debug)]
struct Line {
    now: i64,
    offset: i64,
}

impl Clock {
    /// What the meter's clock shows when a packet says `time`, in nanoseconds.
    pub(super) fn packet(&mut self, time: i64) -> i64 {
        self.packets.follow(time);
        self.now()
    }

    /// What it shows when an asker's clock shows `time`.
    pub(super) fn asked(&mut self, time: i64) -> i64 {
        self.askers.follow(time);
        self.now()
    }

    fn now(&self) -> i64 {
        self.packets.now.max(self.askers.now)
    }
}

impl Default for Line {
    fn default() -> Self {
        Self { now: i64::MIN, offset: 0 }
    }
}

impl Line {
    const fn follow(&mut self, time: i64) {
        let own = time.saturating_add(self.offset);
        let back = self.now.saturating_sub(own);
        if back <= 0 {
            self.now = own;
        } else if back > TOLERANCE {
            self.offset = self.offset.saturating_add(back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back_and_follows_a_step() {
        let mut clock = Clock::default();
        assert_eq!(clock.packet(100 * TOLERANCE), 100 * TOLERANCE);
        assert_eq!(clock.packet(100 * TOLERANCE - 7), 100 * TOLERANCE, "a little out of order");
        assert_eq!(clock.packet(TOLERANCE), 100 * TOLERANCE, "stepped back");
        assert_eq!(clock.packet(TOLERANCE + 9), 100 * TOLERANCE + 9);
        assert_eq!(clock.packet(i64::MAX), i64::MAX);
        assert_eq!(clock.packet(i64::MIN), i64::MAX);
    }

    #[test]
    fn packets_that_waited_do_not_hurry_it() {
        let mut clock = Clock::default();
        for second in 0..100 {
            let now = second * 1_000_000_000;
            clock.packet(now - 3 * TOLERANCE);
            assert_eq!(clock.asked(now), now);
        }
    }
}
