//! How large a generated ledger is.

use std::time::Duration;

use vestigo_model::Timestamp;

/// Nanoseconds of a second.
pub const SECOND: i64 = 1_000_000_000;
/// Of an hour.
pub const HOUR: i64 = 3600 * SECOND;
/// Of a day.
pub const DAY: i64 = 24 * HOUR;
/// 2026-08-24T00:00:00Z: 90 days later it is November.
const START: i64 = 1_787_529_600 * SECOND;

/// What a ledger is a function of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// All that looks random follows from it.
    pub seed: u64,
    /// Hypervisors.
    pub hosts: u32,
    /// Whole UTC days.
    pub days: u32,
    /// Flow records altogether; spread evenly over hosts and days.
    pub flows: u64,
    /// Length of a coverage statement (hostd's `record.coverage`).
    pub statement: Duration,
    /// How often a day a host's records are appended and made durable.
    pub appends: u32,
}

impl Shape {
    /// A site of a few hosts: what tests take.
    #[must_use]
    pub const fn small() -> Self {
        Self { seed: 1, hosts: 3, days: 2, flows: 12_000, statement: Duration::from_secs(300), appends: 12 }
    }

    /// So many flows over 90 days, with as many hosts as give each of them some 5500 a day (200 for 10⁸), and at least two.
    #[must_use]
    pub fn of_flows(flows: u64) -> Self {
        let hosts = u32::try_from((flows / 500_000).clamp(2, 200)).unwrap_or(200);
        Self { seed: 1, hosts, days: 90, flows, statement: Duration::from_secs(600), appends: 4 }
    }

    /// Midnight with which it begins.
    #[must_use]
    pub const fn start(&self) -> i64 {
        START
    }

    /// Midnight with which the day begins.
    #[must_use]
    pub fn midnight(&self, day: u32) -> i64 {
        START + i64::from(day) * DAY
    }

    /// Midnight with which it ends.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.midnight(self.days)
    }

    /// The day that a time lies in, if it is one of the ledger's.
    #[must_use]
    pub fn day_of(&self, time: Timestamp) -> Option<u32> {
        let day = time.as_nanos().checked_sub(START)?.div_euclid(DAY);
        u32::try_from(day).ok().filter(|day| *day < self.days)
    }

    /// Flow records of one host and day: they add up to [`Shape::flows`].
    #[must_use]
    pub fn flows_of(&self, host: u32, day: u32) -> u64 {
        let parts = u64::from(self.hosts) * u64::from(self.days);
        let index = u64::from(day) * u64::from(self.hosts) + u64::from(host);
        let more = u64::from(index < self.flows.checked_rem(parts).unwrap_or(0));
        self.flows.checked_div(parts).unwrap_or(0) + more
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_parts_add_up() {
        let shape = Shape { flows: 12_001, ..Shape::small() };
        let all = (0..shape.hosts).flat_map(|host| (0..shape.days).map(move |day| shape.flows_of(host, day)));
        assert_eq!(all.sum::<u64>(), 12_001);
        assert_eq!(Timestamp::from_nanos(shape.start()).to_string(), "2026-08-24T00:00:00Z");
        assert_eq!(shape.day_of(Timestamp::from_nanos(shape.end())), None);
        assert_eq!(shape.day_of(Timestamp::from_nanos(shape.end() - 1)), Some(1));
        assert_eq!(Shape::of_flows(100_000_000).hosts, 200);
    }
}
