//! Which connections of a payload were told already, and how many more may be: bounded memory, bounded rate.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use super::diag::Socket;

/// Connections of one payload that are remembered, about 40 bytes each.
pub const REMEMBERED: usize = 2048;

/// The news of a socket's end come this late at most: after the kernel's own grace time, which is some tens of milliseconds on an
/// idle machine and more on a busy one.
const LATE: Duration = Duration::from_secs(20);

/// What may be told, refilled with time. Starts full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    per_second: u32,
    burst: u32,
    /// Thousandths.
    left: u64,
}

impl Budget {
    /// So many a second, and at most so many at once.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, left: u64::from(burst) * 1000 }
    }

    /// For one payload.
    #[must_use]
    pub fn payload() -> Self {
        Self::new(5, 100)
    }

    /// For the whole VM: what hostd keeps of it (10 a second, 1000 at once), so that no more crosses the link for nothing.
    #[must_use]
    pub fn vm() -> Self {
        Self::new(10, 1000)
    }

    /// Time went by.
    pub fn refill(&mut self, elapsed: Duration) {
        let earned = elapsed.as_millis().saturating_mul(self.per_second.into());
        let most = u64::from(self.burst) * 1000;
        self.left = self.left.saturating_add(u64::try_from(earned).unwrap_or(most)).min(most);
    }

    const fn has_one(&self) -> bool {
        self.left >= 1000
    }

    const fn take(&mut self) {
        self.left = self.left.saturating_sub(1000);
    }
}

/// What came of a payload's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Told.
    pub told: u64,
    /// Of these, told without a process: closed before it was looked for, or not found.
    pub nameless: u64,
    /// Over before it was their turn.
    pub untold: u64,
    /// Still open at the last look and not told yet.
    pub waiting: u64,
    /// How often the kernel had to throw away news of closed connections, any number each time.
    pub overflows: u64,
    /// How often a look was cut short: by its limit of sockets or by an error of the kernel's.
    pub incomplete: u64,
}

impl Counters {
    /// Whether some may be missing from what was told.
    #[must_use]
    pub const fn missed(&self) -> bool {
        self.untold + self.waiting + self.overflows + self.incomplete > 0
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections told, {} of them without a process; {} not told, {} overflows, {} looks cut short",
            self.told,
            self.nameless,
            self.untold + self.waiting,
            self.overflows,
            self.incomplete
        )
    }
}

#[derive(Debug)]
struct Entry {
    ends: u64,
    seen: Duration,
}

/// The memory of one payload's connections.
#[derive(Debug)]
pub struct Table {
    /// By cookie, which the kernel never gives twice.
    known: HashMap<u64, Entry>,
    hasher: RandomState,
    /// Since it began.
    now: Duration,
    budget: Budget,
    /// For the whole process.
    pub counters: Counters,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            hasher: RandomState::new(),
            now: Duration::ZERO,
            budget: Budget::payload(),
            counters: Counters::default(),
        }
    }
}

impl Table {
    /// A look begins, so long after the one before.
    pub fn begin(&mut self, elapsed: Duration) {
        self.now = self.now.saturating_add(elapsed);
        self.budget.refill(elapsed);
        self.counters.waiting = 0;
    }

    /// The connection is there. Whether to tell it now; it counts as told then.
    pub fn seen(&mut self, socket: &Socket, vm: &mut Budget) -> bool {
        let ends = self.hasher.hash_one((socket.proto, socket.local, socket.peer));
        let room = self.known.len() < REMEMBERED;
        let known = self.known.get_mut(&socket.cookie);
        // A socket without connection of its own (UDP) can be given another peer.
        if let Some(entry) = known.filter(|entry| entry.ends == ends) {
            entry.seen = self.now;
            return false;
        }
        if socket.inode == 0 {
            // Nobody holds it: it is accepted later or gone soon, and told then.
            return false;
        }
        if !(room || self.known.contains_key(&socket.cookie)) || !self.take(vm) {
            self.counters.waiting += 1;
            return false;
        }
        self.known.insert(socket.cookie, Entry { ends, seen: self.now });
        true
    }

    /// The connection is gone. Whether to tell it, because nobody did.
    pub fn gone(&mut self, socket: &Socket, vm: &mut Budget) -> bool {
        let ends = self.hasher.hash_one((socket.proto, socket.local, socket.peer));
        if self.known.remove(&socket.cookie).is_some_and(|entry| entry.ends == ends) {
            return false;
        }
        let tell = self.take(vm);
        self.counters.untold += u64::from(!tell);
        tell
    }

    /// The look is over; `complete`: every connection was shown. One that was not there for a while is forgotten: the news of its
    /// end was lost.
    pub fn end(&mut self, complete: bool) {
        let now = self.now;
        if complete {
            self.known.retain(|_, entry| now.saturating_sub(entry.seen) < LATE);
        } else {
            self.counters.incomplete += 1;
            // What was not shown may be there all the same.
            self.known.values_mut().for_each(|entry| entry.seen = now);
        }
    }

    /// How many it remembers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether it remembers none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn take(&mut self, vm: &mut Budget) -> bool {
        let both = self.budget.has_one() && vm.has_one();
        if both {
            self.budget.take();
            vm.take();
            self.counters.told += 1;
        }
        both
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{super::diag::TCP, *};

    fn socket(cookie: u64, port: u16) -> Socket {
        let end = |port| format!("10.0.0.1:{port}").parse().unwrap();
        Socket { proto: TCP, local: end(1), peer: end(port), cookie, inode: 9, uid: 0 }
    }

    fn plenty() -> Budget {
        Budget::new(1_000_000, 1_000_000)
    }

    #[test]
    fn a_connection_is_told_once_and_a_missed_one_at_its_end() {
        let (mut table, mut vm) = (Table::default(), plenty());
        for look in 0..5 {
            table.begin(Duration::from_secs(1));
            assert_eq!(table.seen(&socket(1, 80), &mut vm), look == 0);
            table.end(true);
        }
        assert!(!table.gone(&socket(1, 80), &mut vm), "told before");
        assert!(table.gone(&socket(2, 80), &mut vm), "never seen open");
        assert!(table.is_empty());
        assert_eq!((table.counters.told, table.counters.missed()), (2, false));
    }

    #[test]
    fn news_of_the_end_may_come_late_or_never() {
        let (mut table, mut vm) = (Table::default(), plenty());
        table.begin(Duration::ZERO);
        assert!(table.seen(&socket(1, 80), &mut vm) && table.seen(&socket(2, 80), &mut vm));
        table.end(true);
        for _ in 0..100 {
            table.begin(Duration::from_millis(100));
            table.end(true);
        }
        assert!(!table.gone(&socket(1, 80), &mut vm), "late");
        table.begin(Duration::from_secs(10));
        table.end(true);
        assert!(table.is_empty(), "never");
    }

    #[test]
    fn a_look_cut_short_forgets_nothing() {
        let (mut table, mut vm) = (Table::default(), plenty());
        table.begin(Duration::ZERO);
        assert!(table.seen(&socket(1, 80), &mut vm));
        table.end(true);
        for _ in 0..5 {
            table.begin(LATE);
            table.end(false);
        }
        assert!(!table.seen(&socket(1, 80), &mut vm));
        assert_eq!(table.counters.incomplete, 5);
    }

    #[test]
    fn another_peer_of_the_same_socket_is_another_connection() {
        let (mut table, mut vm) = (Table::default(), plenty());
        table.begin(Duration::ZERO);
        assert!(table.seen(&socket(1, 80), &mut vm) && table.seen(&socket(1, 81), &mut vm));
        assert!(!table.seen(&socket(1, 81), &mut vm));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn what_waits_is_told_with_time_and_what_ends_meanwhile_is_counted() {
        let (mut table, mut vm) = (Table::default(), plenty());
        table.begin(Duration::ZERO);
        let told = (0..150).filter(|cookie| table.seen(&socket(*cookie, 80), &mut vm)).count();
        assert_eq!((told, table.counters.waiting), (100, 50));
        table.begin(Duration::from_secs(2));
        let told = (0..150).filter(|cookie| table.seen(&socket(*cookie, 80), &mut vm)).count();
        assert_eq!((told, table.counters.waiting), (10, 40));
        assert!(!table.gone(&socket(149, 80), &mut vm));
        assert_eq!(table.counters.untold, 1);
    }

    #[test]
    fn one_payload_leaves_something_of_the_vm_s_budget() {
        let (mut greedy, mut other, mut vm) = (Table::default(), Table::default(), Budget::vm());
        for cookie in 0..5000 {
            greedy.gone(&socket(cookie, 80), &mut vm);
        }
        assert!(other.seen(&socket(9999, 80), &mut vm));
    }

    proptest! {
        #[test]
        fn memory_and_rate_are_bounded_and_all_are_accounted_for(
            steps in prop::collection::vec((0..5000_u64, 1..4_u16, any::<bool>(), 0..3000_u64), 1..400),
            flood in 0..6000_u64,
        ) {
            let (mut table, mut vm) = (Table::default(), plenty());
            let (mut told, mut time) = (BTreeMap::new(), Duration::ZERO);
            for cookie in 10_000..10_000 + flood {
                table.begin(Duration::from_secs(1));
                *told.entry(cookie).or_insert(0) += u64::from(table.seen(&socket(cookie, 1), &mut vm));
            }
            let before = table.counters.told;
            prop_assert!(table.len() <= REMEMBERED);
            for (cookie, port, gone, millis) in steps {
                let elapsed = Duration::from_millis(millis);
                time += elapsed;
                table.begin(elapsed);
                let socket = socket(cookie, port);
                let now = if gone { table.gone(&socket, &mut vm) } else { table.seen(&socket, &mut vm) };
                *told.entry(cookie).or_insert(0) += u64::from(now);
                prop_assert!(table.len() <= REMEMBERED);
            }
            prop_assert_eq!(told.values().sum::<u64>(), table.counters.told);
            prop_assert!(u128::from(table.counters.told - before) <= 100 + time.as_millis() * 5 / 1000);
        }
    }
}
