//! Which signed tasks were started here, remembered for as long as their permission lasts: a user says how often a task
//! may run, and a restart must not give a run back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vestigo_model::{DomainUuid, Exit, Label, Payload, PayloadUid, TaskMark, Timestamp};

/// One run of a signed task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskUse {
    /// The VM in which it ran.
    pub domain: DomainUuid,
    /// The run.
    pub uid: PayloadUid,
    /// The permission.
    pub task: TaskMark,
}

impl TaskUse {
    /// What the payload's record says about one: whether the run counts, or the payload never came to run.
    #[must_use]
    pub fn of(payload: &Payload) -> Option<(Self, bool)> {
        let task = payload.claim.task.clone().filter(|_| payload.claim.holder.is_payload())?;
        let counts = payload.end.is_none_or(|end| end.exit != Exit::NotStarted);
        Some((Self { domain: payload.domain, uid: payload.claim.uid, task }, counts))
    }

    /// Whether a start could still use the permission, or a clock that is set back.
    pub(crate) fn matters_at(&self, now: Timestamp) -> bool {
        now <= self.task.expires + KEPT
    }
}

/// Key's fingerprint and nonce name the permission, VM and run id the use of it.
type Key = (Label, Label, DomainUuid, PayloadUid);

/// How long a permission is remembered after it has expired: clocks may differ, and no later start can use it.
const KEPT: std::time::Duration = std::time::Duration::from_secs(600);

/// The uses that still matter.
#[derive(Debug, Default)]
pub(crate) struct Tasks(BTreeMap<Key, TaskUse>);

impl Tasks {
    /// Takes the record of a payload.
    pub(crate) fn apply(&mut self, payload: &Payload) {
        match TaskUse::of(payload) {
            Some((used, true)) => self.insert(used),
            Some((used, false)) => _ = self.0.remove(&key(&used)),
            None => {}
        }
    }

    /// Takes a use that an earlier generation carried.
    pub(crate) fn insert(&mut self, used: TaskUse) {
        self.0.entry(key(&used)).or_insert(used);
    }

    /// Forgets what has expired.
    pub(crate) fn prune(&mut self, now: Timestamp) {
        self.0.retain(|_, used| used.matters_at(now));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &TaskUse> {
        self.0.values()
    }
}

fn key(used: &TaskUse) -> Key {
    (used.task.key.clone(), used.task.nonce.clone(), used.domain, used.uid)
}
