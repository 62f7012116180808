//! Signed tasks: each runs no more often on this host than its user signed for. Pure.
//!
//! Agents verify signatures; what only the host can know is how often the same permission was used, in whichever VM. Another
//! host does not know of it: `runs` holds for each hypervisor, not for a site.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use vestigo_ledger::{MAX_TASK_RUNS, TaskRuns, TaskUse};
use vestigo_model::{DomainUuid, Label, PayloadUid, TaskMark, Timestamp};

/// How far the clocks of a user and of this host may differ.
const TOLERANCE: Duration = Duration::from_secs(60);

/// One permission: what was signed, and the runs that it was used for.
#[derive(Debug)]
struct Permission {
    task: TaskMark,
    runs: HashSet<(DomainUuid, PayloadUid)>,
}

/// The permissions that were used and have not expired.
#[derive(Debug, Default)]
pub struct TaskBook {
    /// By key's fingerprint and nonce. One for each thing that guests said was signed under them: a guest that makes one up
    /// must not use up, or forbid, what the user signed.
    permissions: HashMap<(Label, Label), Vec<Permission>>,
    runs: TaskRuns,
}

impl TaskBook {
    /// What an earlier life of hostd had started.
    #[must_use]
    pub fn restored(uses: impl IntoIterator<Item = TaskUse>) -> Self {
        let mut book = Self::default();
        uses.into_iter().for_each(|used| book.start(used.domain, used.uid, &used.task));
        book
    }

    fn known(&self, task: &TaskMark) -> Option<&Permission> {
        self.permissions.get(&key(task))?.iter().find(|known| known.task == *task)
    }

    /// Why this run must not start, in words for the pilot. A run that was counted is not refused when it is said again.
    #[must_use]
    pub fn refusal(&self, domain: DomainUuid, uid: PayloadUid, task: &TaskMark, now: Timestamp) -> Option<String> {
        let id = &task.id;
        match self.runs.task_of(domain, uid) {
            Some(counted) if counted == task => return None,
            Some(_) => return Some("its run id belongs to another payload".to_owned()),
            None => {}
        }
        if now + TOLERANCE < task.not_before {
            return Some(format!("task {id} may not run before {}; it is {now} here", task.not_before));
        }
        if task.expires + TOLERANCE < now {
            return Some(format!("task {id} expired at {}; its user has to sign it anew", task.expires));
        }
        let started = self.known(task).map_or(0, |known| known.runs.len());
        if started >= usize::try_from(task.runs).unwrap_or(usize::MAX) {
            return Some(format!("task {id} has been run {started} of {} times", task.runs));
        }
        (self.runs.of(domain) >= MAX_TASK_RUNS.0).then(|| {
            format!(
                "the hypervisor remembers {} runs of signed tasks in this VM that have not expired, and has room for no more; \
                 sign tasks for less time",
                MAX_TASK_RUNS.0
            )
        })
    }

    /// What contradicts the task: another statement, or another number of runs, was claimed under its key and nonce. Users draw a
    /// nonce for each statement, so one of the two is made up; which, a host cannot know, and each is counted by itself.
    #[must_use]
    pub fn contradiction(&self, task: &TaskMark) -> Option<String> {
        let other = self.permissions.get(&key(task))?.iter().find(|known| known.task != *task)?;
        let known = &other.task;
        Some(format!(
            "its signed task {} (statement {}, {} runs) has the key and nonce of task {} (statement {}, {} runs)",
            task.id, task.statement, task.runs, known.id, known.statement, known.runs
        ))
    }

    /// Counts a run, once.
    pub fn start(&mut self, domain: DomainUuid, uid: PayloadUid, task: &TaskMark) {
        if self.runs.task_of(domain, uid).is_some() {
            return;
        }
        let held = self.permissions.entry(key(task)).or_default();
        match held.iter_mut().find(|known| known.task == *task) {
            Some(known) => _ = known.runs.insert((domain, uid)),
            None => held.push(Permission { task: task.clone(), runs: HashSet::from([(domain, uid)]) }),
        }
        if let Some(forgotten) = self.runs.insert(TaskUse { domain, uid, task: task.clone() }) {
            self.forget(&forgotten);
        }
    }

    /// Takes a run back: it never came to be.
    pub fn give_back(&mut self, domain: DomainUuid, uid: PayloadUid) {
        if let Some(used) = self.runs.remove(domain, uid) {
            self.forget(&used);
        }
    }

    /// Forgets what no start can use any more.
    pub fn prune(&mut self, now: Timestamp) {
        self.runs.prune(now).iter().for_each(|used| self.forget(used));
    }

    /// Forgets most of what a VM that is gone has run, if that was much.
    pub fn vm_ended(&mut self, domain: DomainUuid) {
        self.runs.vm_ended(domain).iter().for_each(|used| self.forget(used));
    }

    fn forget(&mut self, used: &TaskUse) {
        let Some(held) = self.permissions.get_mut(&key(&used.task)) else { return };
        for known in held.iter_mut().filter(|known| known.task == used.task) {
            known.runs.remove(&(used.domain, used.uid));
        }
        held.retain(|known| !known.runs.is_empty());
        if held.is_empty() {
            self.permissions.remove(&key(&used.task));
        }
    }
}

fn key(task: &TaskMark) -> (Label, Label) {
    (task.key.clone(), task.nonce.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;
    use vestigo_model::Digest;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn task(nonce: &str, runs: u32) -> TaskMark {
        let text = |text: &str| Label::new(text).unwrap();
        TaskMark {
            id: text("t"),
            nonce: text(nonce),
            runs,
            not_before: at(1000),
            expires: at(2000),
            statement: Digest::of(nonce.as_bytes()),
            key: text("SHA256:k"),
        }
    }

    fn vm(n: u128) -> DomainUuid {
        DomainUuid(Uuid::from_u128(n))
    }

    fn run(n: u128) -> PayloadUid {
        PayloadUid(Uuid::from_u128(n))
    }

    /// Starts it if it may, and says what was said.
    fn start(book: &mut TaskBook, domain: u128, uid: u128, task: &TaskMark) -> Option<String> {
        let refusal = book.refusal(vm(domain), run(uid), task, at(1500));
        if refusal.is_none() {
            book.start(vm(domain), run(uid), task);
        }
        refusal
    }

    #[test]
    fn a_task_runs_as_often_as_was_signed_in_whichever_vm() {
        let mut book = TaskBook::default();
        let twice = task("n", 2);
        assert_eq!(start(&mut book, 1, 1, &twice), None);
        assert_eq!(start(&mut book, 1, 1, &twice), None, "said again, not run again");
        assert_eq!(start(&mut book, 2, 1, &twice), None, "the same run id in another VM is another run");
        assert_eq!(start(&mut book, 1, 2, &twice).unwrap(), "task t has been run 2 of 2 times");
        assert_eq!(start(&mut book, 1, 2, &task("other", 1)), None);
        assert!(start(&mut book, 1, 3, &task("none", 0)).unwrap().contains("0 of 0"));
    }

    #[test]
    fn what_never_ran_burns_nothing() {
        let mut book = TaskBook::default();
        let once = task("n", 1);
        assert_eq!(start(&mut book, 1, 1, &once), None);
        book.give_back(vm(2), run(1));
        assert!(start(&mut book, 1, 2, &once).is_some(), "somebody else's cannot be given back");
        book.give_back(vm(1), run(1));
        assert_eq!(start(&mut book, 1, 2, &once), None);
        book.give_back(vm(1), run(1));
        assert!(start(&mut book, 1, 3, &once).is_some(), "nor the same one twice");
    }

    #[test]
    fn who_makes_up_a_statement_under_a_nonce_takes_nothing_from_the_true_one() {
        let mut book = TaskBook::default();
        let honest = task("n", 1);
        for (uid, made_up) in [
            TaskMark { statement: Digest::of(b"other"), ..honest.clone() },
            TaskMark { runs: 9, ..honest.clone() },
            TaskMark { expires: at(9000), ..honest.clone() },
        ]
        .iter()
        .enumerate()
        {
            assert_eq!(start(&mut book, 1, 10 + uid as u128, made_up), None);
            assert!(book.contradiction(&honest).unwrap().contains("key and nonce of task t"), "{made_up:?}");
        }
        assert_eq!(start(&mut book, 2, 1, &honest), None, "the user's own still runs");
        assert!(start(&mut book, 2, 2, &honest).unwrap().contains("1 of 1"), "and no more often than was signed");
        assert_eq!(book.contradiction(&task("else", 1)), None);
        assert!(start(&mut book, 1, 10, &task("else", 1)).unwrap().contains("run id"), "one run uses one permission");
        for uid in 10..13 {
            book.give_back(vm(1), run(uid));
        }
        assert_eq!(book.contradiction(&honest), None, "only itself is left");
    }

    #[test]
    fn the_hosts_clock_decides_with_a_minute_of_tolerance() {
        let book = TaskBook::default();
        let refusal = |now| book.refusal(vm(1), run(1), &task("n", 1), at(now));
        assert_eq!((refusal(940), refusal(2060)), (None, None));
        assert!(refusal(939).unwrap().contains("may not run before"));
        assert!(refusal(2061).unwrap().contains("expired at"));
    }

    #[test]
    fn memory_is_bounded_and_one_vm_cannot_take_it_all() {
        let mut book = TaskBook::default();
        let many = |vm: u128, count: usize| (0..count).map(move |n| (vm, task(&format!("{vm}-{n}"), 1)));
        for (n, (vm, task)) in many(1, MAX_TASK_RUNS.0).enumerate() {
            assert_eq!(start(&mut book, vm, n as u128, &task), None);
        }
        assert!(start(&mut book, 1, 9999, &task("more", 1)).unwrap().contains("8192 runs of signed tasks in this VM"));
        let honest = task("honest", 1);
        assert_eq!(start(&mut book, 9, 1, &honest), None, "another VM has room");
        for vm in 2..=4 {
            many(vm, MAX_TASK_RUNS.0)
                .enumerate()
                .for_each(|(n, (vm, task))| _ = start(&mut book, vm, n as u128, &task));
        }
        assert_eq!(start(&mut book, 9, 2, &task("more", 1)), None, "a full host refuses nobody");
        assert_eq!(book.runs.iter().count(), MAX_TASK_RUNS.1);
        assert!(start(&mut book, 9, 3, &honest).is_some(), "what is forgotten is of those who hold most");
        book.vm_ended(vm(2));
        assert!(book.runs.of(vm(2)) <= 1024);
        assert_eq!(start(&mut book, 2, 9999, &task("2-0", 1)), None, "the oldest of the ended VM went");
        assert!(start(&mut book, 2, 9998, &task(&format!("2-{}", MAX_TASK_RUNS.0 - 1), 1)).is_some());
        book.prune(at(2600));
        assert!(start(&mut book, 9, 4, &honest).is_some(), "kept for a while");
        book.prune(at(2601));
        assert!(book.permissions.is_empty() && book.runs.iter().count() == 0);
    }

    #[test]
    fn what_claims_to_last_for_ever_is_forgotten_all_the_same() {
        let mut book = TaskBook::default();
        book.start(vm(1), run(1), &TaskMark { expires: Timestamp::from_nanos(i64::MAX), ..task("n", 1) });
        book.prune(at(1000 + 31 * 86_400));
        assert_eq!(book.permissions.len(), 1);
        book.prune(at(1000 + 31 * 86_400 + 601));
        assert!(book.permissions.is_empty());
    }
}
