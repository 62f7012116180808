//! What the agent tells the hypervisor besides payloads: refused starts and alarms. Bounded, because whoever may call could make it say
//! such things without end; what was left out is counted and told with the next.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;
use vestigo_model::{Label, link::Claim};

use crate::link::Link;

/// At once, and then one each second.
const BURST: u32 = 60;
const EVERY: Duration = Duration::from_secs(1);
/// The same alarm is not repeated sooner.
const AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Budget {
    left: u32,
    earned: Instant,
    omitted: u64,
    alarmed: Option<Instant>,
}

/// The budget.
#[derive(Debug)]
pub(super) struct SmallTalk(Mutex<Budget>);

impl Default for SmallTalk {
    fn default() -> Self {
        Self(Mutex::new(Budget { left: BURST, earned: Instant::now(), omitted: 0, alarmed: None }))
    }
}

impl SmallTalk {
    /// Says it, if there is room.
    pub(super) fn say(&self, link: &Link, claim: Claim) {
        let Some(omitted) = self.room() else { return };
        if omitted > 0 {
            let what = format!("{omitted} refused starts were not told one by one: there were too many");
            tell(link, Claim::Alarm { what: Label::cut(&what) });
        }
        tell(link, claim);
    }

    /// Raises an alarm, at most once a minute.
    pub(super) fn alarm(&self, link: &Link, what: &str) {
        {
            let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if budget.alarmed.is_some_and(|at| at.elapsed() < AGAIN) {
                return;
            }
            budget.alarmed = Some(Instant::now());
        }
        warn!(what, "alarm");
        tell(link, Claim::Alarm { what: Label::cut(what) });
    }

    /// How many were left out since the last, if this one may be said.
    fn room(&self) -> Option<u64> {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = u32::try_from(budget.earned.elapsed().as_secs() / EVERY.as_secs()).unwrap_or(BURST);
        if earned > 0 {
            budget.left = budget.left.saturating_add(earned).min(BURST);
            budget.earned = Instant::now();
        }
        if budget.left == 0 {
            budget.omitted += 1;
            return None;
        }
        budget.left -= 1;
        Some(std::mem::take(&mut budget.omitted))
    }
}

fn tell(link: &Link, claim: Claim) {
    if let Err(error) = link.record(claim).made() {
        warn!(%error, "the hypervisor cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let talk = SmallTalk::default();
        let said = (0..100).filter(|_| talk.room().is_some()).count();
        assert!((60..=61).contains(&said), "{said}");
        if let Ok(mut budget) = talk.0.lock() {
            budget.left = 1;
        }
        assert!(talk.room().is_some_and(|omitted| omitted >= 39));
    }
}
