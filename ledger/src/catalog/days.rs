//! The `date=…` folders in which records of a time can lie.

use std::time::Duration;

use vestigo_model::{TimeRange, Timestamp};

/// Folder of the segments whose records keep to no day (the host's clock had stepped): always looked into.
pub(crate) const NO_DAY: &str = "date=__HIVE_DEFAULT_PARTITION__";
/// A segment's records lie in its day or the day after.
const DAY: Duration = Duration::from_secs(86_400);

/// Days by the names of their folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Days {
    /// First folder; `None`: from the beginning.
    pub(crate) from: Option<String>,
    /// Last folder; `None`: to the end.
    pub(crate) to: Option<String>,
}

impl Days {
    /// All there are.
    pub(crate) const ALL: Self = Self { from: None, to: None };

    /// Those in which records of the range can lie, and what was said of it until the end of the day after.
    pub(crate) fn of(range: TimeRange) -> Self {
        let folder = |time: Timestamp| plain(time).then(|| format!("date={}", time.date()));
        Self { from: folder(range.from - DAY), to: folder(range.to + DAY) }
    }

    /// Whether a folder's records are wanted.
    pub(crate) fn has(&self, folder: &str) -> bool {
        folder == NO_DAY
            || folder.starts_with("date=")
                && self.from.as_deref().is_none_or(|from| from <= folder)
                && self.to.as_deref().is_none_or(|to| folder <= to)
    }
}

/// Whether names of such days sort by time: years of four digits.
fn plain(time: Timestamp) -> bool {
    let date = time.date();
    date.len() == 10 && date.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_range_has_its_days_and_one_on_each_side() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let days = Days::of(TimeRange { from: at("2026-11-22T14:00:00Z"), to: at("2026-11-22T14:00:02Z") });
        let has = |day: &str| days.has(&format!("date={day}"));
        assert!(has("2026-11-21") && has("2026-11-22") && has("2026-11-23"));
        assert!(!has("2026-11-20") && !has("2026-11-24"));
        assert!(days.has(NO_DAY) && !days.has("wal") && Days::ALL.has("date=1999-01-01") && !Days::ALL.has("holds"));
        let end = Timestamp::from_nanos(i64::MAX);
        assert!(Days::of(TimeRange { from: Timestamp::from_nanos(i64::MIN), to: end }).has("date=2026-11-20"));
    }
}
