//! A disk that fills: an alarm first, then the oldest files that the object store has go, flows before facts.
//!
//! What was not shipped is never removed. A VM that floods could otherwise have its neighbours' past erased; with a full disk
//! new records wait at their taps and what is lost is counted and recorded (docs/decisions/0073).

use std::path::{Path, PathBuf};

use vestigo_model::{HostId, Receipt};

use super::{
    plan::RetentionError,
    receipt,
    tombstone::{Undertaker, Why},
};
use crate::{
    holds,
    manifest::{self, Kind, Sealed},
};

/// How full the ledger's file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub total: u64,
    /// What is free for hostd.
    pub free: u64,
}

/// Free parts of the file system, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Below this there is an alarm.
    pub alarm: u8,
    /// Below this the oldest shipped files go, until so much is free again and one percent more.
    pub evict: u8,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { alarm: 15, evict: 10 }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Nothing.
    Fine,
    /// Tell somebody.
    Alarm,
    /// Make so many bytes free, and tell somebody.
    Evict(u64),
}

/// What the space calls for.
#[must_use]
pub fn judge(space: Space, thresholds: Thresholds) -> Pressure {
    let share = |percent: u8| space.total / 100 * u64::from(percent);
    if space.free < share(thresholds.evict) {
        Pressure::Evict(share(thresholds.evict.saturating_add(1)).saturating_sub(space.free))
    } else if space.free < share(thresholds.alarm) {
        Pressure::Alarm
    } else {
        Pressure::Fine
    }
}

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relief {
    /// Segments of which files went.
    pub segments: u64,
    /// Bytes that came free.
    pub bytes: u64,
}

/// Removes files of this host's oldest shipped segments until `needed` bytes are free: flows of all of them first, then the rest.
///
/// # Errors
/// [`RetentionError`].
pub fn relieve(
    root: &Path,
    host: &HostId,
    shipped: &Path,
    needed: u64,
    undertaker: &Undertaker<'_>,
) -> Result<Relief, RetentionError> {
    let holds = holds::all(root)?;
    let mut relief = Relief::default();
    for kinds in [&[Kind::Flows][..], &[Kind::Instances, Kind::Payloads, Kind::Coverage, Kind::Events, Kind::People]] {
        for folder in oldest_first(root, host)? {
            let mut places = manifest::places(&folder)?;
            places.sort_by_key(|place| place.sequence);
            for place in places {
                if relief.bytes >= needed {
                    return Ok(relief);
                }
                let sealed = manifest::read(&place)?;
                let held = holds.iter().any(|hold| hold.holds(&sealed).unwrap_or(true));
                let receipt = if held || !has_any(&sealed, kinds) { None } else { receipt::of(shipped, &sealed)? };
                if let Some(Receipt { vault, shipped, .. }) = receipt {
                    let freed = undertaker.bury(&sealed, kinds, Why::Moved { vault, shipped })?;
                    relief.segments += u64::from(freed > 0);
                    relief.bytes += freed;
                }
            }
        }
    }
    Ok(relief)
}

fn has_any(sealed: &Sealed, kinds: &[Kind]) -> bool {
    sealed.manifest.files.iter().any(|file| kinds.contains(&file.kind) && sealed.folder.join(&file.name).exists())
}

fn oldest_first(root: &Path, host: &HostId) -> Result<Vec<PathBuf>, RetentionError> {
    let mut folders = manifest::folders(root, Some(host))?;
    folders.sort();
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_comes_before_anything_goes() {
        let at = |free| judge(Space { total: 1000, free }, Thresholds { alarm: 15, evict: 10 });
        assert_eq!(at(150), Pressure::Fine);
        assert_eq!(at(149), Pressure::Alarm);
        assert_eq!(at(100), Pressure::Alarm);
        assert_eq!(at(99), Pressure::Evict(11), "to one percent above the threshold, not to swing around it");
        assert_eq!(at(0), Pressure::Evict(110));
    }
}
