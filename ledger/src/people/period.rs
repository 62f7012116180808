//! The months that keys are made for, and whose they are.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vestigo_model::{Timestamp, Vo};

/// A UTC month, `2026-11`. Keys last for one, so that destroying a month's keys erases its persons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period {
    year: u16,
    month: u8,
}

/// The text is no month, or no owner of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyNameError {
    /// No month.
    #[error("{0:?} is not a month; write it like 2026-11")]
    Period(String),
    /// No owner.
    #[error("{0:?} is neither a VO nor @site")]
    Owner(String),
}

impl Period {
    /// The month of this instant.
    #[must_use]
    pub fn of(time: Timestamp) -> Self {
        // The clock's texts begin with year and month; what lies outside of four-digit years cannot be a timestamp here.
        time.date().get(..7).and_then(|month| month.parse().ok()).unwrap_or(Self { year: 1970, month: 1 })
    }

    /// The month after.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.month {
            12 => Self { year: self.year.saturating_add(1), month: 1 },
            month => Self { year: self.year, month: month + 1 },
        }
    }

    /// So many months, beginning with this one.
    pub fn months(self, count: usize) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self), |period| Some(period.next())).take(count)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl FromStr for Period {
    type Err = ParseKeyNameError;
    fn from_str(text: &str) -> Result<Self, ParseKeyNameError> {
        let error = || ParseKeyNameError::Period(text.chars().take(64).collect());
        let (year, month) = text.split_once('-').ok_or_else(error)?;
        let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(year, 4) || !digits(month, 2) {
            return Err(error());
        }
        let (year, month) = (year.parse().map_err(|_| error())?, month.parse().map_err(|_| error())?);
        if (1..=12).contains(&month) { Ok(Self { year, month }) } else { Err(error()) }
    }
}

impl TryFrom<String> for Period {
    type Error = ParseKeyNameError;
    fn try_from(text: String) -> Result<Self, ParseKeyNameError> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> String {
        period.to_string()
    }
}

/// The name of the site's own keys. No VO can be called so.
const SITE: &str = "@site";

/// Whose keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    /// The site's: for VMs without a VO, and of VOs without keys of their own.
    Site,
    /// A VO's, for its own users.
    Vo(Vo),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site => f.pad(SITE),
            Self::Vo(vo) => vo.fmt(f),
        }
    }
}

impl FromStr for Owner {
    type Err = ParseKeyNameError;
    fn from_str(text: &str) -> Result<Self, ParseKeyNameError> {
        if text == SITE {
            return Ok(Self::Site);
        }
        let error = |_| ParseKeyNameError::Owner(text.chars().take(64).collect());
        Vo::new(text).map(Self::Vo).map_err(error)
    }
}

impl TryFrom<String> for Owner {
    type Error = ParseKeyNameError;
    fn try_from(text: String) -> Result<Self, ParseKeyNameError> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> String {
        owner.to_string()
    }
}
