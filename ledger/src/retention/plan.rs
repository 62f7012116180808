//! What has to go by its age, and what is held. A plan is made first and can be shown; then it is applied.

use std::{path::Path, time::Duration};

use vestigo_model::{HostId, Timestamp};

use super::tombstone::{self, TombstoneError, Undertaker, Why};
use crate::{
    durable::{self, IoError},
    holds::{self, Hold, HoldError},
    manifest::{self, Kind, ManifestError, Sealed},
    segment::SegmentError,
};

const DAY: Duration = Duration::from_secs(86_400);

/// For how long records are kept, in days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nothing is removed by its age before this.
    pub minimum: u32,
    /// Everything is, after this, unless it is held.
    pub maximum: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { minimum: 180, maximum: 365 }
    }
}

/// What stops a plan.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// A folder or file.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A hold that cannot be read.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// A removal.
    #[error(transparent)]
    Tombstone(#[from] TombstoneError),
    /// Fewer days than the minimum.
    #[error("records are kept for at least {minimum} days, and {asked} were asked for; give {minimum} or more")]
    TooShort {
        /// Asked for.
        asked: u32,
        /// The minimum.
        minimum: u32,
    },
}

/// A segment whose records are too old.
#[derive(Debug, Clone)]
pub struct Due {
    /// Which.
    pub sealed: Sealed,
    /// The last instant of which its records speak.
    pub until: Timestamp,
    /// Bytes of its files that are still there.
    pub bytes: u64,
    /// The cases that hold it: it stays.
    pub held_by: Vec<String>,
    /// Why it stays although nothing is known to hold it: it could not be looked into, and a hold asks what is in it.
    pub unread: Option<String>,
}

impl Due {
    /// Whether it goes.
    #[must_use]
    pub fn goes(&self) -> bool {
        self.held_by.is_empty() && self.unread.is_none()
    }
}

/// What is too old, oldest first.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Days for which records are kept.
    pub keep: u32,
    /// Each with its fate.
    pub due: Vec<Due>,
}

/// The last instant of which a segment's records speak.
#[must_use]
pub fn until(sealed: &Sealed) -> Timestamp {
    let manifest = &sealed.manifest;
    let spans = [manifest.flows, manifest.coverage, manifest.recorded];
    spans.iter().flatten().map(|span| span.to).max().unwrap_or(manifest.sealed)
}

/// Plans for records older than `keep` days; `host`: of that one only.
///
/// # Errors
/// [`RetentionError`]: nothing may be removed then.
pub fn plan(
    root: &Path,
    host: Option<&HostId>,
    limits: Limits,
    keep: u32,
    now: Timestamp,
) -> Result<Plan, RetentionError> {
    if keep < limits.minimum {
        return Err(RetentionError::TooShort { asked: keep, minimum: limits.minimum });
    }
    let holds = holds::all(root)?;
    let age = i64::try_from((DAY * keep).as_nanos()).unwrap_or(i64::MAX);
    let cutoff = Timestamp::from_nanos(now.as_nanos().saturating_sub(age));
    let mut due = Vec::new();
    for folder in manifest::folders(root, host)? {
        // A folder's records lie on its day or after: of younger folders not even the manifests are read.
        if day_of(&folder).is_some_and(|day| day > cutoff.date()) {
            continue;
        }
        for place in manifest::places(&folder)? {
            let sealed = manifest::read(&place)?;
            if until(&sealed) < cutoff {
                due.extend(judge(sealed, &holds));
            }
        }
    }
    due.sort_by_key(|due| (due.until, due.sealed.manifest.sequence));
    Ok(Plan { keep, due })
}

/// The day in `date=…/host=…`; none of the folder for records without one.
fn day_of(folder: &Path) -> Option<String> {
    let date = folder.parent()?.file_name()?.to_str()?.strip_prefix("date=")?;
    date.starts_with(|c: char| c.is_ascii_digit()).then(|| date.to_owned())
}

/// Nothing when all its files are gone already.
fn judge(sealed: Sealed, holds: &[Hold]) -> Option<Due> {
    let there = |name: &str| !name.contains('/') && sealed.folder.join(name).exists();
    let bytes =
        sealed.manifest.files.iter().filter(|file| there(&file.name)).map(|file| file.bytes).reduce(|a, b| a + b)?;
    let (mut held_by, mut unread) = (Vec::new(), None);
    for hold in holds {
        match hold.holds(&sealed) {
            Ok(true) => held_by.push(hold.case.clone()),
            Ok(false) => {}
            Err(error) => unread = Some(said(&error)),
        }
    }
    let until = until(&sealed);
    Some(Due { sealed, until, bytes, held_by, unread })
}

fn said(error: &SegmentError) -> String {
    error.to_string()
}

/// Removes what goes. Segments and bytes that went.
///
/// # Errors
/// [`TombstoneError`]; what went before stays proven.
pub fn apply(plan: &Plan, undertaker: &Undertaker<'_>) -> Result<(u64, u64), TombstoneError> {
    let (mut segments, mut bytes) = (0, 0);
    for due in plan.due.iter().filter(|due| due.goes()) {
        let why = Why::Expired { kept_days: plan.keep, until: due.until };
        bytes += undertaker.bury(&due.sealed, &Kind::ALL, why)?;
        segments += 1;
    }
    Ok((segments, bytes))
}

/// Finishes removals that a crash interrupted: decided by a tombstone that `allowed` accepts, and by nothing else. Bytes that came free.
///
/// # Errors
/// [`RetentionError`].
pub fn finish(
    root: &Path,
    host: Option<&HostId>,
    allowed: &dyn Fn(&tombstone::Found) -> bool,
) -> Result<u64, RetentionError> {
    let mut freed = 0;
    for folder in manifest::folders(root, host)? {
        let names = durable::names(&folder)?;
        let (stones, _) = tombstone::in_folder(&folder, &names)?;
        for place in manifest::places(&folder)? {
            if stones.iter().any(|found| found.tombstone.sequence == place.sequence) {
                freed += tombstone::finish(&manifest::read(&place)?, &stones, allowed)?;
            }
        }
    }
    Ok(freed)
}
