//! Time: UTC nanoseconds inside, RFC 3339 with `Z` outside, and a clock that tests can hold in their hand.

use std::{
    fmt,
    ops::{Add, Sub},
    str::FromStr,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970-01-01 00:00:00 UTC; covers the years 1678 to 2262. Leap seconds as POSIX counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

/// Why a text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a time; write it in RFC 3339 with its zone, like 2026-11-22T14:03:22Z or 2026-11-22T15:03:22.5+01:00"
)]
pub struct ParseTimeError(String);

impl Timestamp {
    /// From nanoseconds since the epoch.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// The start of the UTC day, as `YYYY-MM-DD`.
    #[must_use]
    pub fn date(self) -> String {
        self.to_string().chars().take(10).collect()
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn nanos_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos_of(duration)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos_of(duration)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self(nanos_of(after)),
            Err(before) => Self(-nanos_of(before.duration())),
        }
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, always `Z`, as many fraction digits as are not zero (groups of three).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => f.pad(&time.to_string()),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimeError;
    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        let bad = || ParseTimeError(text.chars().take(64).collect());
        let time: jiff::Timestamp = text.parse().map_err(|_| bad())?;
        i64::try_from(time.as_nanosecond()).map(Self).map_err(|_| bad())
    }
}

impl TryFrom<String> for Timestamp {
    type Error = ParseTimeError;
    fn try_from(text: String) -> Result<Self, ParseTimeError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> String {
        time.to_string()
    }
}

/// A stretch of time, both ends included. `from` is never after `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimeRange {
    /// First instant.
    pub from: Timestamp,
    /// Last instant.
    pub to: Timestamp,
}

impl TimeRange {
    /// `None` when `from` is after `to`.
    #[must_use]
    pub fn new(from: Timestamp, to: Timestamp) -> Option<Self> {
        (from <= to).then_some(Self { from, to })
    }

    /// The instant with the same tolerance before and after.
    #[must_use]
    pub fn around(time: Timestamp, tolerance: Duration) -> Self {
        Self { from: time - tolerance, to: time + tolerance }
    }

    /// Whether the two stretches share an instant.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }

    /// Whether the stretch shares an instant with something that began at `start` and, if it has ended, ended at `end`.
    #[must_use]
    pub fn touches(&self, start: Timestamp, end: Option<Timestamp>) -> bool {
        start <= self.to && end.is_none_or(|end| self.from <= end)
    }
}

/// Where policy gets its time from.
pub trait Clock: Send + Sync {
    /// Now, in UTC.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Stands at `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self(AtomicI64::new(start.0))
    }

    /// Moves forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(nanos_of(by), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_zones_and_refuses_their_absence() {
        let utc: Timestamp = "2026-11-22T14:03:22Z".parse().unwrap();
        assert_eq!("2026-11-22T15:03:22+01:00".parse::<Timestamp>().unwrap(), utc);
        assert_eq!(utc.to_string(), "2026-11-22T14:03:22Z");
        assert_eq!(utc.date(), "2026-11-22");
        for bad in ["", "yesterday", "2026-11-22", "2026-11-22T14:03:22", "14:03"] {
            let message = bad.parse::<Timestamp>().unwrap_err().to_string();
            assert!(message.contains("RFC 3339"), "{message}");
        }
    }

    #[test]
    fn ranges_touch_at_their_ends() {
        let at = |n| Timestamp::from_nanos(n);
        let range = TimeRange::new(at(10), at(20)).unwrap();
        assert!(range.touches(at(20), None));
        assert!(range.touches(at(0), Some(at(10))));
        assert!(!range.touches(at(0), Some(at(9))));
        assert!(!range.touches(at(21), None));
        assert!(TimeRange::new(at(2), at(1)).is_none());
    }

    proptest! {
        #[test]
        fn text_round_trips(nanos: i64) {
            let time = Timestamp::from_nanos(nanos);
            prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
