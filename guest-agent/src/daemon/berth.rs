//! A berth: a lease and everything that hangs on it, up to a sandbox that only waits to be told what to run.

use std::{
    collections::VecDeque,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;
use vestigo_model::{Lease, PayloadUid};

use super::{
    live::Hit,
    state::{Shared, State},
};
use crate::{
    cgroup::{Group, Limits},
    lease::Slot,
    network::{LOOK, Namespace, Plan as Network},
    protocol::Refusal,
    sandbox::{self, Ground, Sandbox, StepError, mounts, scratch::Scratch},
};

/// Pause after a berth could not be prepared.
const RETRY: Duration = Duration::from_secs(1);
/// After a start nothing is prepared for so long, as long as there is enough: the payload has the processors to itself until it
/// runs, or has ended already.
const CALM: Duration = Duration::from_millis(10);

/// Networks that were used by nobody yet, kept for the next berth: taking one down and putting it up again costs the kernel
/// tens of milliseconds of waiting under a lock of its own.
const SPARE: usize = 16;

/// A lease and the network that enforces it.
#[derive(Debug)]
pub(super) struct Line {
    slot: Slot,
    plan: Network,
    /// Kept until the interface is removed: without it the kernel takes both away when the last process dies, and
    /// whether a packet was ever sent is lost.
    namespace: Namespace,
}

/// A line in use. Dropped once all processes are dead, it gives the network back, or takes it down.
struct Leased {
    state: Shared,
    line: Option<Line>,
}

impl Leased {
    fn new(state: &Shared) -> Result<Self, Refusal> {
        let line = match state.pool.spare() {
            Some(line) => line,
            None => Line::new(state)?,
        };
        Ok(Self { state: Shared::clone(state), line: Some(line) })
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let Some(Line { slot, plan, namespace }) = self.line.take() else { return };
        match self.state.networks().renew(&plan, namespace) {
            Ok(namespace) => {
                if let Some(line) = self.state.pool.keep(Line { slot, plan, namespace }) {
                    line.take_down(&self.state);
                }
            }
            Err(used) => self.state.release(slot, used),
        }
    }
}

impl Line {
    fn new(state: &State) -> Result<Self, Refusal> {
        let slot = state.allocate().map_err(|error| {
            state.small_talk.alarm(&state.link, &format!("a payload was refused: {error}"));
            Refusal::system(error.to_string())
        })?;
        let plan = state.plan(slot);
        match state.networks().add(&plan) {
            Ok(namespace) => Ok(Self { slot, plan, namespace }),
            Err(error) => {
                state.release(slot, false);
                Err(Refusal::system(format!("the payload's network could not be made: {error}")))
            }
        }
    }

    fn take_down(self, state: &State) {
        let used = state.networks().remove(&self.plan);
        state.release(self.slot, used);
    }
}

/// The mounts of every payload: its folders, and the name servers of the moment.
fn private(state: &State, scratch: &Scratch) -> Result<[OwnedFd; 4], StepError> {
    let [home, tmp, var_tmp] = scratch.mounts()?;
    Ok([home, tmp, var_tmp, mounts::detach_file(&state.resolvers_path())?])
}

/// Ways for PID 1 into its groups, opened with the daemon's rights.
fn doors(group: &Group) -> Result<Vec<File>, Refusal> {
    let open = |path: PathBuf| File::options().write(true).open(path);
    let doors: std::io::Result<Vec<File>> = group.doors().into_iter().map(open).collect();
    doors.map_err(|e| Refusal::system(format!("a payload's cgroup cannot be entered: {e}")))
}

/// Makes the mounts of a payload that are not the usual ones; told its uid outside and the usual ones.
pub(super) type Mounts<'a> = &'a dyn Fn(u32, [OwnedFd; 4]) -> Result<Vec<OwnedFd>, Refusal>;

/// Fields are dropped in this order: first the processes, then their files, then their network.
pub(super) struct Berth {
    pub sandbox: Sandbox,
    pub group: Option<Group>,
    scratch: Scratch,
    leased: Leased,
    resolvers: String,
    outside: u32,
}

impl Berth {
    /// Builds one.
    pub(super) fn build(state: &Shared, plan: &sandbox::Plan, mounts: Mounts<'_>) -> Result<Self, Refusal> {
        let leased = Leased::new(state)?;
        let line = leased.line.as_ref().ok_or_else(|| Refusal::system("the payload has no lease"))?;
        let outside = state.config.uid_base + u32::from(line.slot.0);
        // A name that nothing else has ever had: what an earlier payload could know of it leads nowhere.
        let name = PayloadUid(uuid::Uuid::new_v4()).to_string();
        let scratch = Scratch::create(&state.config.scratch_dir, &name, Some(outside)).map_err(|e| {
            Refusal::system(format!("no home folder below {}: {e}", state.config.scratch_dir.display()))
        })?;
        let resolvers = state.resolvers()?;
        let private = private(state, &scratch).map_err(|e| Refusal::system(e.to_string()))?;
        let group = state.group(&name)?;
        let doors = group.as_ref().map(doors).transpose()?.unwrap_or_default();
        let mounts = mounts(outside, private)?;
        let fds: Vec<_> = doors.iter().map(AsFd::as_fd).chain(mounts.iter().map(AsFd::as_fd)).collect();
        let plan = sandbox::Plan { doors: doors.len(), ..plan.clone() };
        let ground = Ground { network: line.namespace.fd(), cgroup: group.as_ref().and_then(Group::v2_fd), outside };
        let sandbox = Sandbox::prepare(&state.forker, ground, &plan, &fds)?;
        Ok(Self { sandbox, group, scratch, leased, resolvers, outside })
    }

    fn usual(state: &Shared) -> Result<Self, Refusal> {
        Self::build(state, &sandbox::Plan::default(), &|_, private| Ok(private.into()))
    }

    /// Its payload is known, and what it may use.
    pub(super) fn name(&mut self, uid: PayloadUid, limits: &Limits) -> Result<(), Refusal> {
        if let Some(group) = &mut self.group
            && group.limits() != limits
        {
            group.set(limits).map_err(|e| Refusal::system(e.to_string()))?;
        }
        self.scratch
            .name(&uid.to_string())
            .map_err(|e| Refusal::system(format!("a home folder cannot be renamed: {e}")))
    }

    /// Whether it would be made the same way now: the VM's addresses and name servers change.
    fn fits(&self, state: &State) -> bool {
        let line = self.leased.line.as_ref();
        line.is_some_and(|line| state.networks().fits(&line.namespace))
            && state.resolvers().is_ok_and(|resolvers| resolvers == self.resolvers)
    }

    /// Once all processes are dead: nothing passes any more. Whether the payload sent not one packet.
    pub(super) fn fall_silent(&self) -> bool {
        self.leased.line.as_ref().is_some_and(|line| !self.leased.state.networks().shut(&line.plan))
    }

    /// How to reach what runs here.
    pub(super) fn reach(&self) -> Option<Hit> {
        let Line { plan, namespace, .. } = self.leased.line.as_ref()?;
        let watched = self.leased.state.config.detail().and_then(|_| namespace.fd().try_clone_to_owned().ok());
        Some(Hit {
            killer: self.sandbox.killer(),
            tree: self.group.as_ref().map(|group| group.tree().clone()),
            line: plan.clone(),
            namespace: watched.map(Arc::new),
        })
    }

    /// The payload's uid and gid in the VM.
    pub(super) fn outside(&self) -> u32 {
        self.outside
    }

    /// What marks the payload's packets.
    pub(super) fn leases(&self) -> Vec<Lease> {
        self.leased.line.as_ref().map_or_else(Vec::new, |line| line.namespace.leases())
    }
}

/// Berths that wait for their payload.
#[derive(Default)]
pub(super) struct Pool {
    stock: Mutex<Stock>,
    wanted: Condvar,
}

#[derive(Default)]
struct Stock {
    ready: VecDeque<Berth>,
    /// When the last one was taken.
    taken: Option<Instant>,
    making: usize,
    spare: Vec<Line>,
    closed: bool,
}

impl Stock {
    /// How long the next one may wait to be made; `None` when there are as many as wanted.
    fn pause(&self, wanted: usize) -> Option<Duration> {
        match self.ready.len() {
            ready if ready >= wanted => None,
            ready if ready <= wanted / 2 => Some(Duration::ZERO),
            _ => Some(self.taken.map_or(Duration::ZERO, |at| CALM.saturating_sub(at.elapsed()))),
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("ready", &self.stock().ready.len()).finish()
    }
}

impl Pool {
    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are ready, and how many leases lie here for whoever comes.
    pub(super) fn counts(&self) -> (usize, usize) {
        let stock = self.stock();
        (stock.ready.len(), stock.ready.len() + stock.making + stock.spare.len())
    }

    fn spare(&self) -> Option<Line> {
        self.stock().spare.pop()
    }

    /// Takes a network that nobody used; gives it back if it has no room.
    fn keep(&self, line: Line) -> Option<Line> {
        let mut stock = self.stock();
        if stock.closed || stock.spare.len() >= SPARE {
            return Some(line);
        }
        stock.spare.push(line);
        None
    }

    fn take(&self) -> Option<Berth> {
        let mut stock = self.stock();
        stock.taken = Some(Instant::now());
        let berth = stock.ready.pop_front();
        drop(stock);
        self.wanted.notify_one();
        berth
    }

    /// Takes what was made, or why nothing was.
    fn put(&self, made: Result<Berth, Refusal>) -> Result<(), Refusal> {
        let mut stock = self.stock();
        stock.making -= 1;
        let berth = made?;
        if stock.closed {
            // Only then: its network is given back to the stock.
            drop(stock);
            drop(berth);
        } else {
            stock.ready.push_back(berth);
        }
        Ok(())
    }

    /// Ends what waits, and the stocking.
    pub(super) fn close(&self, state: &State) {
        let mut stock = self.stock();
        stock.closed = true;
        let ready = std::mem::take(&mut stock.ready);
        drop(stock);
        self.wanted.notify_all();
        drop(ready);
        let spare = std::mem::take(&mut self.stock().spare);
        spare.into_iter().for_each(|line| line.take_down(state));
    }
}

/// How many are kept. Few leases are better given to payloads than kept for speed.
pub(super) fn wanted(state: &State) -> usize {
    usize::from(state.config.ready.min(state.blocks.count() / 4))
}

/// Keeps the pool full until it is closed. Runs in a thread of its own.
pub(super) fn keep_stocked(state: &Shared) {
    let pool = &state.pool;
    let wanted = wanted(state);
    let mut stock = pool.stock();
    while !stock.closed {
        let pause = stock.pause(wanted);
        if pause != Some(Duration::ZERO) {
            let waited = pool.wanted.wait_timeout(stock, pause.unwrap_or(LOOK));
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            stock = after;
            if pause.is_none() && timeout.timed_out() {
                // Ahead of whoever comes, so that a start need not look itself.
                drop(stock);
                state.networks().look();
                stock = pool.stock();
            }
            continue;
        }
        stock.making += 1;
        drop(stock);
        if let Err(refusal) = pool.put(Berth::usual(state)) {
            warn!(reason = refusal.reason, "no sandbox could be prepared ahead");
            std::thread::sleep(RETRY);
        }
        stock = pool.stock();
    }
}

/// A berth for a payload of no special wishes: one that waits, else a new one.
pub(super) fn usual(state: &Shared) -> Result<Berth, Refusal> {
    while let Some(berth) = state.pool.take() {
        if berth.fits(state) {
            return Ok(berth);
        }
    }
    Berth::usual(state)
}

/// A berth made to measure. If every lease is taken, one that waits gives its up.
pub(super) fn special(state: &Shared, plan: &sandbox::Plan, mounts: Mounts<'_>) -> Result<Berth, Refusal> {
    if state.free_leases() == 0 {
        drop(state.pool.take());
    }
    Berth::build(state, plan, mounts)
}
