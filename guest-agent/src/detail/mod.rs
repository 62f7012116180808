//! Optional: which process of a payload has which connection, for the curious (`detail = "connections"`). Attribution never
//! rests on it.
//!
//! Once every `detail_interval` the agent asks the kernel for the sockets of each live payload ([`watch`], [`diag`]), tells
//! each connection once ([`table`]) and names a process that holds it ([`owner`]). A connection that was opened and closed
//! between two looks is told when the kernel says that it is gone: then without a process. Nothing runs per packet or per
//! call, and a payload notices nothing.
//!
//! What is not seen: datagrams of sockets without a peer (`sendto`), ICMP, a refused connection that was given up between two
//! looks, and what a payload says to itself.

pub mod diag;
mod inuse;
pub mod owner;
pub mod table;
mod watch;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use tracing::warn;
use vestigo_model::{Connection, PayloadUid};

pub use self::{
    table::{Budget, Counters},
    watch::Watch,
};

/// A live payload, as its keeper knows it.
pub trait Payload {
    /// Which.
    fn uid(&self) -> PayloadUid;
    /// Its network namespace; asked for once.
    ///
    /// # Errors
    /// It is gone.
    fn namespace(&self) -> io::Result<OwnedFd>;
    /// Its processes as the agent numbers them; asked for when it has new connections.
    fn processes(&self) -> Vec<Pid>;
}

/// What there is to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A connection, for the first and only time.
    Connection(Connection),
    /// A payload ended, and not everything that it did was told.
    Missed(PayloadUid, Counters),
}

type Shared = Arc<Mutex<Watch>>;

/// All payloads' connections. Whoever needs both locks takes that of a watch before that of the budget.
#[derive(Debug)]
pub struct Detail {
    watches: Mutex<BTreeMap<PayloadUid, Shared>>,
    vm: Mutex<(Budget, Instant)>,
    rounds: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Detail {
    fn default() -> Self {
        Self { watches: Mutex::default(), vm: Mutex::new((Budget::vm(), Instant::now())), rounds: AtomicUsize::new(0) }
    }
}

impl Detail {
    /// Looks at all payloads every `interval` until `live` says that it is over (`None`).
    pub fn run<P: Payload>(
        &self,
        interval: Duration,
        mut live: impl FnMut() -> Option<Vec<P>>,
        mut record: impl FnMut(Seen),
    ) {
        // One that cannot be watched is named once, not every second.
        let mut silent = false;
        while let Some(payloads) = live() {
            let begin = Instant::now();
            if let Err(error) = self.round(&payloads, &mut record) {
                if !silent {
                    warn!(%error, "the connections of a payload cannot be watched; its flows are attributed all the same");
                }
                silent = true;
            }
            // However long a round takes, it leaves as much time to others.
            thread::sleep(interval.saturating_sub(begin.elapsed()).max(begin.elapsed()));
        }
    }

    /// Looks at each payload once, and lets go of those that are not among them.
    ///
    /// # Errors
    /// The last payload that could not be watched; the others were.
    pub fn round<P: Payload>(&self, payloads: &[P], record: &mut impl FnMut(Seen)) -> io::Result<()> {
        let ended: Vec<PayloadUid> = {
            let watches = lock(&self.watches);
            watches.keys().filter(|uid| payloads.iter().all(|payload| payload.uid() != **uid)).copied().collect()
        };
        for uid in ended {
            self.end(uid, record);
        }
        self.refill();
        let mut result = Ok(());
        // Each is the first one at times: what the VM may tell is not always used up by the same.
        let first = self.rounds.fetch_add(1, Ordering::Relaxed).checked_rem(payloads.len()).unwrap_or(0);
        for payload in payloads.iter().cycle().skip(first).take(payloads.len()) {
            match self.watch(payload) {
                Ok(watch) => {
                    let mut watch = lock(&watch);
                    let told = watch.look(payload.uid(), || payload.processes(), &mut lock(&self.vm).0);
                    drop(watch);
                    told.into_iter().map(Seen::Connection).for_each(&mut *record);
                }
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Watches a payload from now on, not only from the next round: called before its first instruction, nothing of its
    /// beginning is missed, however short it lives. Costs about as much as making a thread.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn begin<P: Payload>(&self, payload: &P) -> io::Result<()> {
        self.watch(payload).map(drop)
    }

    /// A payload ended: tells what it closed since the last look, and lets go of its network namespace. The next round does
    /// it for each payload that is not live any more; sooner is for who cannot wait for the namespace, and may be too soon: the
    /// kernel takes some tens of milliseconds to say that a socket is gone.
    pub fn end(&self, uid: PayloadUid, record: &mut impl FnMut(Seen)) {
        let Some(watch) = lock(&self.watches).remove(&uid) else { return };
        let (told, counters) = {
            let mut watch = lock(&watch);
            (watch.last(uid, &mut lock(&self.vm).0), watch.counters())
        };
        told.into_iter().map(Seen::Connection).for_each(&mut *record);
        if counters.missed() {
            record(Seen::Missed(uid, counters));
        }
    }

    fn watch<P: Payload>(&self, payload: &P) -> io::Result<Shared> {
        if let Some(watch) = lock(&self.watches).get(&payload.uid()) {
            return Ok(Shared::clone(watch));
        }
        let watch = Arc::new(Mutex::new(Watch::new(payload.namespace()?.as_fd())?));
        lock(&self.watches).insert(payload.uid(), Shared::clone(&watch));
        Ok(watch)
    }

    fn refill(&self) {
        let (budget, last) = &mut *lock(&self.vm);
        let now = Instant::now();
        budget.refill(now.saturating_duration_since(*last));
        *last = now;
    }
}
