//! Which signed tasks were started here, remembered for as long as their permission lasts: a user says how often a task
//! may run, and a restart must not give a run back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use vestigo_model::{DomainUuid, Exit, MAX_TASK_LIFE, Payload, PayloadUid, TaskMark, Timestamp};

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

    /// Until when a start could use the permission. No task is signed for longer than [`MAX_TASK_LIFE`]; records from before that
    /// was checked may say otherwise.
    #[must_use]
    pub fn until(&self) -> Timestamp {
        self.task.expires.min(self.task.not_before + MAX_TASK_LIFE)
    }

    /// Whether a start could still use the permission, or a clock that is set back.
    pub(crate) fn matters_at(&self, now: Timestamp) -> bool {
        now <= self.until() + KEPT
    }
}

/// How long a permission is remembered after it has expired: clocks may differ, or be set back, and no later start can use it.
const KEPT: Duration = Duration::from_secs(600);
/// Most runs remembered of one VM, and of the whole host: about 20 MB.
pub const MAX_TASK_RUNS: (usize, usize) = (8192, 32_768);
/// Most runs remembered of a VM that has ended. Whoever may make VMs must not fill the book with them.
const OF_THE_ENDED: usize = 1024;

/// The runs that still matter, bounded, and fairly: what is too much is taken from the VM that holds most.
#[derive(Debug, Default)]
pub struct TaskRuns {
    of_vm: BTreeMap<DomainUuid, VmRuns>,
    count: usize,
}

/// The runs of one VM, the oldest first.
#[derive(Debug, Default)]
struct VmRuns {
    by_age: BTreeMap<u64, TaskUse>,
    age: BTreeMap<PayloadUid, u64>,
    next: u64,
}

impl VmRuns {
    fn pop_oldest(&mut self) -> Option<TaskUse> {
        let (_, used) = self.by_age.pop_first()?;
        self.age.remove(&used.uid);
        Some(used)
    }
}

impl TaskRuns {
    /// Takes a run, once. Gives the one that is forgotten for it, if there are too many.
    pub fn insert(&mut self, used: TaskUse) -> Option<TaskUse> {
        let domain = used.domain;
        let runs = self.of_vm.entry(domain).or_default();
        if runs.age.contains_key(&used.uid) {
            return None;
        }
        runs.age.insert(used.uid, runs.next);
        runs.by_age.insert(runs.next, used);
        runs.next += 1;
        self.count += 1;
        if self.of(domain) > MAX_TASK_RUNS.0 {
            self.pop_oldest(domain)
        } else if self.count > MAX_TASK_RUNS.1 {
            let most = self.of_vm.iter().max_by_key(|(_, runs)| runs.by_age.len()).map(|(domain, _)| *domain)?;
            self.pop_oldest(most)
        } else {
            None
        }
    }

    /// Takes a run back.
    pub fn remove(&mut self, domain: DomainUuid, uid: PayloadUid) -> Option<TaskUse> {
        let runs = self.of_vm.get_mut(&domain)?;
        let used = runs.by_age.remove(&runs.age.remove(&uid)?)?;
        self.forgot_one(domain);
        Some(used)
    }

    /// The permission that a run used.
    #[must_use]
    pub fn task_of(&self, domain: DomainUuid, uid: PayloadUid) -> Option<&TaskMark> {
        let runs = self.of_vm.get(&domain)?;
        Some(&runs.by_age.get(runs.age.get(&uid)?)?.task)
    }

    /// Runs remembered of a VM.
    #[must_use]
    pub fn of(&self, domain: DomainUuid) -> usize {
        self.of_vm.get(&domain).map_or(0, |runs| runs.by_age.len())
    }

    /// Forgets, and gives, what has expired.
    pub fn prune(&mut self, now: Timestamp) -> Vec<TaskUse> {
        let over: Vec<_> = self.iter().filter(|used| !used.matters_at(now)).map(|u| (u.domain, u.uid)).collect();
        over.into_iter().filter_map(|(domain, uid)| self.remove(domain, uid)).collect()
    }

    /// Forgets, and gives, all but the newest runs of a VM that has ended.
    pub fn vm_ended(&mut self, domain: DomainUuid) -> Vec<TaskUse> {
        let surplus = self.of(domain).saturating_sub(OF_THE_ENDED);
        (0..surplus).filter_map(|_| self.pop_oldest(domain)).collect()
    }

    /// All of them, those of one VM in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &TaskUse> {
        self.of_vm.values().flat_map(|runs| runs.by_age.values())
    }

    /// Takes the record of a payload.
    pub(crate) fn apply(&mut self, payload: &Payload) {
        match TaskUse::of(payload) {
            Some((used, true)) => _ = self.insert(used),
            Some((used, false)) => _ = self.remove(used.domain, used.uid),
            None => {}
        }
    }

    /// Forgets what has expired, and of VMs other than these all but the newest.
    pub(crate) fn prune_beside(&mut self, live: &BTreeSet<DomainUuid>, now: Timestamp) {
        self.prune(now);
        let gone: Vec<_> = self.of_vm.keys().filter(|domain| !live.contains(domain)).copied().collect();
        gone.into_iter().for_each(|domain| _ = self.vm_ended(domain));
    }

    fn pop_oldest(&mut self, domain: DomainUuid) -> Option<TaskUse> {
        let used = self.of_vm.get_mut(&domain)?.pop_oldest()?;
        self.forgot_one(domain);
        Some(used)
    }

    fn forgot_one(&mut self, domain: DomainUuid) {
        self.count -= 1;
        if self.of(domain) == 0 {
            self.of_vm.remove(&domain);
        }
    }
}
