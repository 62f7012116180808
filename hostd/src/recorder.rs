//! The one owner of the ledger: a thread that gathers what is waiting and writes it in one go (group commit).
//!
//! Facts are answered when durable. Flows take a place first, and there is a number of places: while all are taken, records wait
//! at their taps. Places come back when flows are written, not before: a slow or full disk is felt by the meters, which fold
//! what is too much, each VM its own; nothing is dropped here but what is left at the end.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{Semaphore, mpsc, oneshot};
use vestigo_ledger::{LedgerError, Recovered, Writer, WriterOptions};
use vestigo_model::{Clock, Fact, FactRecord, Flow, LinkPosition, SystemClock};

/// Facts that may wait for the ledger.
const FACTS: usize = 8192;
/// Flows that may.
const FLOWS: usize = 8192;
/// Most entries written in one go.
const BATCH: usize = 2048;
/// How long flows may wait for company, and how long a ledger that cannot write is left alone.
const PACE: Duration = Duration::from_millis(200);

type Work = Box<dyn FnOnce(&mut Writer) + Send>;

/// Called when a fact is durable; dropped uncalled when it could not be kept.
pub type Durable = Box<dyn FnOnce() + Send>;

// Nearly all that waits here are flows: a box would only add an allocation for each.
#[allow(clippy::large_enum_variant)]
enum Entry {
    Fact(Box<FactRecord>, Option<Durable>),
    Flow(Flow),
    /// Something else that only the owner of the ledger may do.
    Work(Work),
    Stop,
}

/// A handle to the ledger's thread.
#[derive(Clone)]
pub struct Recorder {
    /// Bounded by the places.
    queue: mpsc::UnboundedSender<Entry>,
    places: Arc<Places>,
    totals: Arc<Totals>,
}

/// What became of the entries.
#[derive(Debug, Default)]
struct Totals {
    flows: AtomicU64,
    lost_flows: AtomicU64,
    facts: AtomicU64,
    lost_facts: AtomicU64,
}

/// What became of the entries, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecorderCounts {
    /// Flow records written.
    pub flows: u64,
    /// Flow records that found no ledger: its thread had ended.
    pub lost_flows: u64,
    /// Facts written.
    pub facts: u64,
    /// Facts of the host's own that could not be kept.
    pub lost_facts: u64,
    /// Flow records that wait now, and facts.
    pub waiting: (u64, u64),
}

/// Places of the queue. Whoever puts something in takes one, the keeper gives them back.
struct Places {
    facts: Semaphore,
    flows: Semaphore,
}

/// Why the ledger is not there.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// It cannot be opened.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// No thread for it.
    #[error("cannot start the ledger's thread")]
    Thread(#[from] std::io::Error),
    /// A fact could not be made durable.
    #[error("the ledger could not keep a fact; see the log for the reason")]
    NotKept,
}

/// What tells the asker this, once the fact is durable.
pub fn told<T: Send + 'static>(asker: oneshot::Sender<T>, what: T) -> Durable {
    // The asker may have gone; the fact is kept all the same.
    Box::new(move || drop(asker.send(what)))
}

impl Recorder {
    /// Opens the ledger, has it prepared (what seals names, what signs) and starts its thread. Gives what an earlier life left open.
    ///
    /// # Errors
    /// [`RecorderError`].
    pub fn start(
        root: &Path,
        options: WriterOptions,
        prepare: impl FnOnce(&mut Writer),
    ) -> Result<(Self, Recovered, JoinHandle<()>), RecorderError> {
        let (mut writer, recovered) = Writer::open(root, options)?;
        prepare(&mut writer);
        let (queue, entries) = mpsc::unbounded_channel();
        let places = Arc::new(Places { facts: Semaphore::new(FACTS), flows: Semaphore::new(FLOWS) });
        let totals = Arc::new(Totals::default());
        let keeper = Keeper {
            writer,
            entries,
            places: Arc::clone(&places),
            totals: Arc::clone(&totals),
            unkept: Vec::new(),
            flows: Vec::new(),
            failing: false,
        };
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(move || keeper.run())?;
        Ok((Self { queue, places, totals }, recovered, thread))
    }

    /// Makes a fact durable.
    ///
    /// # Errors
    /// [`RecorderError::NotKept`].
    pub async fn record(&self, fact: Fact) -> Result<(), RecorderError> {
        let (done, durable) = oneshot::channel();
        self.submit(fact, None, Some(told(done, ()))).await;
        durable.await.map_err(|_| RecorderError::NotKept)
    }

    /// Queues a fact; `done` is called when it is durable, and dropped when it could not be kept.
    pub async fn submit(&self, fact: Fact, link: Option<LinkPosition>, done: Option<Durable>) {
        let record = FactRecord { recorded: SystemClock.now(), fact, link };
        tokio::select! {
            Ok(place) = self.places.facts.acquire() => place.forget(),
            // Nobody gives places back any more.
            () = self.queue.closed() => {}
        }
        // An error means that the thread has ended: `done` is dropped with the entry, which is the answer.
        let _ = self.queue.send(Entry::Fact(Box::new(record), done));
    }

    /// Has the ledger's thread do something with its writer, between two writes. Dropped undone when that thread has ended.
    pub fn with_writer(&self, work: impl FnOnce(&mut Writer) + Send + 'static) {
        let _ = self.queue.send(Entry::Work(Box::new(work)));
    }

    /// How many flows find a place now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.places.flows.available_permits()
    }

    /// Waits until there is one.
    pub async fn has_room(&self) {
        // It is given back at once: who has waited takes it with `flow`. Nobody closes the semaphore.
        drop(self.places.flows.acquire().await);
    }

    /// Waits until its thread has ended.
    pub async fn ended(&self) {
        self.queue.closed().await;
    }

    /// Queues a flow if there is a place; whether there was.
    #[must_use]
    pub fn flow(&self, flow: Flow) -> bool {
        let Ok(place) = self.places.flows.try_acquire() else { return false };
        place.forget();
        let kept = self.queue.send(Entry::Flow(flow)).is_ok();
        self.totals.lost_flows.fetch_add(u64::from(!kept), Ordering::Relaxed);
        kept
    }

    /// What became of the entries, since the start.
    #[must_use]
    pub fn counts(&self) -> RecorderCounts {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let Totals { flows, lost_flows, facts, lost_facts } = self.totals.as_ref();
        let taken = |all: usize, places: &Semaphore| count(all.saturating_sub(places.available_permits()));
        RecorderCounts {
            flows: of(flows),
            lost_flows: of(lost_flows),
            facts: of(facts),
            lost_facts: of(lost_facts),
            waiting: (taken(FLOWS, &self.places.flows), taken(FACTS, &self.places.facts)),
        }
    }

    /// Has everything queued so far written and ends the thread.
    pub fn stop(&self) {
        let _ = self.queue.send(Entry::Stop);
    }
}

/// Facts of the host's own that wait for a ledger that cannot write just now. What a guest said is not among them: its
/// agent sends it again.
const MAX_UNKEPT: usize = 10_000;

type Waiting = (FactRecord, Option<Durable>);

struct Keeper {
    writer: Writer,
    entries: mpsc::UnboundedReceiver<Entry>,
    places: Arc<Places>,
    totals: Arc<Totals>,
    unkept: Vec<Waiting>,
    /// Flows that are not written yet. They keep their places.
    flows: Vec<Flow>,
    failing: bool,
}

impl Keeper {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let stopping = self.gather(&mut batch);
            self.write(&mut batch);
            if let Err(error) = self.writer.seal_if_due(SystemClock.now()) {
                tracing::error!(error = %chain(&error), "a segment could not be sealed; its records stay in the write-ahead log");
            }
            if stopping {
                return self.end();
            }
        }
    }

    /// Takes what waits; whether nothing will come any more.
    fn gather(&mut self, batch: &mut Vec<Entry>) -> bool {
        if self.failing {
            // It is tried again, also when nothing new comes: all places for flows may be taken.
            std::thread::sleep(PACE);
            while batch.len() < BATCH
                && let Ok(entry) = self.entries.try_recv()
            {
                batch.push(entry);
            }
            return self.entries.is_closed() && batch.is_empty() || batch.iter().any(is_stop);
        }
        let got = self.entries.blocking_recv_many(batch, BATCH);
        let only_flows = batch.iter().all(|entry| matches!(entry, Entry::Flow(_)));
        if only_flows && got > 0 && got < BATCH {
            std::thread::sleep(PACE / 10);
        }
        got == 0 || batch.iter().any(is_stop)
    }

    fn write(&mut self, batch: &mut Vec<Entry>) {
        let mut waiting: Vec<Waiting> = std::mem::take(&mut self.unkept);
        for entry in batch.drain(..) {
            match entry {
                Entry::Fact(fact, done) => {
                    self.places.facts.add_permits(1);
                    waiting.push((*fact, done));
                }
                Entry::Flow(flow) => self.flows.push(flow),
                Entry::Work(work) => work(&mut self.writer),
                Entry::Stop => {}
            }
        }
        let flows = self.write_flows();
        let (facts, dones): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        match flows.and_then(|()| self.writer.append(&facts, &[])) {
            Ok(()) => {
                self.failing = false;
                self.totals.facts.fetch_add(count(facts.len()), Ordering::Relaxed);
                dones.into_iter().flatten().for_each(|done| done());
            }
            Err(error) => self.could_not(&error, facts.into_iter().zip(dones)),
        }
    }

    /// Flows by themselves: without facts the log is not synced, and a write that fails leaves nothing behind
    /// (docs/decisions/0011), so that to write again doubles nothing.
    fn write_flows(&mut self) -> Result<(), LedgerError> {
        self.writer.append(&[], &self.flows)?;
        self.places.flows.add_permits(self.flows.len());
        self.totals.flows.fetch_add(count(self.flows.len()), Ordering::Relaxed);
        self.flows.clear();
        Ok(())
    }

    fn could_not(&mut self, error: &LedgerError, facts: impl Iterator<Item = Waiting>) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(error = %chain(error), "the ledger cannot write; payloads are refused until it can");
        }
        self.unkept = facts.filter(|(fact, _)| fact.link.is_none()).collect();
        let surplus = self.unkept.len().saturating_sub(MAX_UNKEPT);
        if surplus > 0 {
            tracing::error!(surplus, "facts were lost: the ledger has not been writable for too long");
            self.unkept.drain(..surplus);
            self.totals.lost_facts.fetch_add(count(surplus), Ordering::Relaxed);
        }
    }

    fn end(mut self) {
        if !self.flows.is_empty() || !self.unkept.is_empty() {
            let (flows, facts) = (self.flows.len(), self.unkept.len());
            tracing::error!(flows, facts, "hostd ends while the ledger cannot write: these are lost");
        }
        if let Err(error) = self.writer.sync() {
            tracing::error!(error = %chain(&error), "the last flows may not be durable");
        }
    }
}

const fn is_stop(entry: &Entry) -> bool {
    matches!(entry, Entry::Stop)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The error and its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
