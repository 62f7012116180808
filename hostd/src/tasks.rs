//! Signed tasks: each runs no more often on this host than its user signed for. Pure.
//!
//! Agents verify signatures; what only the host can know is how often the same permission was used, in whichever VM. Another
//! host does not know of it: `runs` holds for each hypervisor, not for a site.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use vestigo_ledger::TaskUse;
use vestigo_model::{DomainUuid, Label, PayloadUid, TaskMark, Timestamp};

/// How far the clocks of a user and of this host may differ.
const TOLERANCE: Duration = Duration::from_secs(60);
/// How long a permission is remembered after it has expired, so that a clock which is set back gives no run back.
const KEPT: Duration = Duration::from_secs(600);
/// Most runs remembered, of one VM and of the whole host: about 20 MB.
const MAX_RUNS: (usize, usize) = (8192, 32_768);

/// One permission: what was signed, and the runs that it was used for.
#[derive(Debug)]
struct Permission {
    task: TaskMark,
    runs: HashSet<(DomainUuid, PayloadUid)>,
}

/// The permissions that were used and have not expired.
#[derive(Debug, Default)]
pub struct TaskBook {
    /// By key's fingerprint and nonce.
    permissions: HashMap<(Label, Label), Permission>,
    of_vm: HashMap<DomainUuid, usize>,
}

impl TaskBook {
    /// What an earlier life of hostd had started.
    #[must_use]
    pub fn restored(uses: impl IntoIterator<Item = TaskUse>) -> Self {
        let mut book = Self::default();
        uses.into_iter().for_each(|used| book.start(used.domain, used.uid, &used.task));
        book
    }

    /// Why this run must not start, in words for the pilot. A run that was counted is not refused when it is said again.
    #[must_use]
    pub fn refusal(&self, domain: DomainUuid, uid: PayloadUid, task: &TaskMark, now: Timestamp) -> Option<String> {
        let id = &task.id;
        let known = self.permissions.get(&key(task));
        if known.is_some_and(|known| known.task == *task && known.runs.contains(&(domain, uid))) {
            return None;
        }
        if now + TOLERANCE < task.not_before {
            return Some(format!("task {id} may not run before {}; it is {now} here", task.not_before));
        }
        if task.expires + TOLERANCE < now {
            return Some(format!("task {id} expired at {}; its user has to sign it anew", task.expires));
        }
        let started = known.map_or(0, |known| known.runs.len());
        match known.map(|known| &known.task) {
            Some(known) if known.runs != task.runs => Some(format!(
                "task {id} now claims {} runs, before it was {} under the same nonce",
                task.runs, known.runs
            )),
            Some(known) if known.statement != task.statement => {
                Some(format!("task {id} has the nonce of another statement; draw a new one for each task"))
            }
            _ if started >= usize::try_from(task.runs).unwrap_or(usize::MAX) => {
                Some(format!("task {id} has been run {started} of {} times", task.runs))
            }
            _ => self.full(domain),
        }
    }

    fn full(&self, domain: DomainUuid) -> Option<String> {
        let whose = if self.of_vm.get(&domain).is_some_and(|runs| *runs >= MAX_RUNS.0) {
            format!("{} runs of signed tasks in this VM", MAX_RUNS.0)
        } else if self.of_vm.values().sum::<usize>() >= MAX_RUNS.1 {
            format!("{} runs of signed tasks on this host", MAX_RUNS.1)
        } else {
            return None;
        };
        Some(format!(
            "the hypervisor remembers {whose} that have not expired, and has room for no more; sign tasks for less time"
        ))
    }

    /// Counts a run.
    pub fn start(&mut self, domain: DomainUuid, uid: PayloadUid, task: &TaskMark) {
        let new = || Permission { task: task.clone(), runs: HashSet::new() };
        if self.permissions.entry(key(task)).or_insert_with(new).runs.insert((domain, uid)) {
            *self.of_vm.entry(domain).or_default() += 1;
        }
    }

    /// Takes a run back: it never came to be.
    pub fn give_back(&mut self, domain: DomainUuid, uid: PayloadUid, task: &TaskMark) {
        let Some(permission) = self.permissions.get_mut(&key(task)) else { return };
        if permission.runs.remove(&(domain, uid)) {
            forget_one(&mut self.of_vm, domain);
        }
        if permission.runs.is_empty() {
            self.permissions.remove(&key(task));
        }
    }

    /// Forgets what no start can use any more.
    pub fn prune(&mut self, now: Timestamp) {
        let of_vm = &mut self.of_vm;
        self.permissions.retain(|_, permission| {
            let kept = now <= permission.task.expires + KEPT;
            if !kept {
                permission.runs.iter().for_each(|(domain, _)| forget_one(of_vm, *domain));
            }
            kept
        });
    }
}

fn key(task: &TaskMark) -> (Label, Label) {
    (task.key.clone(), task.nonce.clone())
}

fn forget_one(of_vm: &mut HashMap<DomainUuid, usize>, domain: DomainUuid) {
    if let Some(count) = of_vm.get_mut(&domain) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            of_vm.remove(&domain);
        }
    }
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
        book.give_back(vm(2), run(1), &once);
        assert!(start(&mut book, 1, 2, &once).is_some(), "somebody else's cannot be given back");
        book.give_back(vm(1), run(1), &once);
        assert_eq!(start(&mut book, 1, 2, &once), None);
        book.give_back(vm(1), run(1), &once);
        assert!(start(&mut book, 1, 3, &once).is_some(), "nor the same one twice");
    }

    #[test]
    fn a_nonce_belongs_to_one_statement() {
        let mut book = TaskBook::default();
        assert_eq!(start(&mut book, 1, 1, &task("n", 1)), None);
        assert!(start(&mut book, 1, 2, &task("n", 9)).unwrap().contains("9 runs, before it was 1"));
        let other = TaskMark { statement: Digest::of(b"other"), ..task("n", 1) };
        assert!(start(&mut book, 1, 2, &other).unwrap().contains("nonce of another statement"));
        let same_run = TaskMark { expires: at(9000), ..task("n", 1) };
        assert!(start(&mut book, 1, 1, &same_run).is_some(), "altered, so not merely said again");
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
        for (n, (vm, task)) in many(1, MAX_RUNS.0).enumerate() {
            assert_eq!(start(&mut book, vm, n as u128, &task), None);
        }
        assert!(start(&mut book, 1, 9999, &task("more", 1)).unwrap().contains("8192 runs of signed tasks in this VM"));
        assert_eq!(start(&mut book, 2, 9999, &task("more", 1)), None, "another VM has room");
        book.give_back(vm(2), run(9999), &task("more", 1));
        for vm in 2..=4 {
            many(vm, MAX_RUNS.0)
                .enumerate()
                .for_each(|(n, (vm, task))| book.start(super::tests::vm(vm), run(n as u128), &task));
        }
        assert!(start(&mut book, 9, 1, &task("more", 1)).unwrap().contains("on this host"));
        book.prune(at(2600));
        assert!(start(&mut book, 9, 1, &task("more", 1)).is_some(), "kept for a while");
        book.prune(at(2601));
        assert!(book.permissions.is_empty() && book.of_vm.is_empty());
    }
}
