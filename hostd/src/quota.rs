//! How much of what a guest says is kept: a hostile guest must not fill the ledger. What is left out is counted. Pure: the
//! clock is the caller's.

use std::time::{Duration, Instant};

/// Time between two tellings of a [`Pace`].
const PACE: Duration = Duration::from_secs(60);

/// A token bucket that counts what it turns away.
#[derive(Debug, Clone)]
pub struct Quota {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled: Option<Instant>,
    dropped: u64,
}

impl Quota {
    /// A full bucket: `burst` at once, `per_second` sustained.
    #[must_use]
    pub const fn new(per_second: f64, burst: f64) -> Self {
        Self { per_second, burst, tokens: burst, filled: None, dropped: 0 }
    }

    /// Whether one more is kept.
    pub fn take(&mut self, now: Instant) -> bool {
        let waited = self.filled.replace(now).map_or(Duration::ZERO, |filled| now.saturating_duration_since(filled));
        self.tokens = self.burst.min(self.tokens + waited.as_secs_f64() * self.per_second);
        let kept = self.tokens >= 1.0;
        if kept {
            self.tokens -= 1.0;
        } else {
            self.dropped += 1;
        }
        kept
    }

    /// How many were left out since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// Tells at once, then at most once a minute with the number since.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    told: Option<Instant>,
    waiting: u64,
}

impl Pace {
    /// One more happened; `Some` with how many that makes since the last telling, if it is time to tell.
    pub fn note(&mut self, now: Instant) -> Option<u64> {
        self.waiting += 1;
        self.due(now)
    }

    /// The number that waits, if there is one and it is time to tell it.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        let early = self.told.is_some_and(|told| now.saturating_duration_since(told) < PACE);
        if self.waiting == 0 || early {
            return None;
        }
        self.told = Some(now);
        Some(self.rest())
    }

    /// The number that waits, told for the last time.
    pub fn rest(&mut self) -> u64 {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut quota = Quota::new(10.0, 5.0);
        let kept = (0..1000).filter(|_| quota.take(start)).count();
        assert_eq!((kept, quota.take_dropped()), (5, 995));
        assert_eq!((0..1000).filter(|_| quota.take(start + Duration::from_millis(300))).count(), 3);
        assert_eq!(
            (0..1000).filter(|_| quota.take(start + Duration::from_secs(3600))).count(),
            5,
            "no more than a burst"
        );
        assert!(!quota.take(start), "a clock that goes back earns nothing");
    }

    #[test]
    fn the_first_is_told_at_once_and_none_is_forgotten() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.note(start), Some(1));
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((pace.note(after(1)), pace.note(after(59))), (None, None));
        assert_eq!(pace.note(after(60)), Some(3));
        assert_eq!(pace.note(after(61)), None);
        assert_eq!((pace.due(after(100)), pace.due(after(120)), pace.due(after(999))), (None, Some(1), None));
        assert_eq!((pace.note(after(1000)), pace.note(after(1001)), pace.rest()), (Some(1), None, 1));
    }
}
