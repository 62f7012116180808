//! The one owner of the ledger: a thread that gathers what is waiting and writes it in one go (group commit).
//!
//! Facts are answered when durable. Flows never wait: what does not fit into the queue, or what the ledger cannot take,
//! is counted, and the count becomes coverage.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use vestigo_ledger::{LedgerError, Recovered, Writer, WriterOptions};
use vestigo_model::{Clock, Fact, FactRecord, Flow, LinkPosition, SystemClock};

/// Entries waiting for the ledger.
const QUEUE: usize = 16_384;
/// Most entries written in one go.
const BATCH: usize = 2048;
/// How long flows may wait for company.
const PACE: Duration = Duration::from_millis(200);

/// Called when a fact is durable; dropped uncalled when it could not be kept.
pub type Durable = Box<dyn FnOnce() + Send>;

// Nearly all that waits here are flows: a box would only add an allocation for each.
#[allow(clippy::large_enum_variant)]
enum Entry {
    Fact(Box<FactRecord>, Option<Durable>),
    Flow(Flow),
    Stop,
}

/// A handle to the ledger's thread.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
    totals: Arc<Totals>,
}

/// What became of the entries.
#[derive(Debug, Default)]
struct Totals {
    flows: AtomicU64,
    lost_flows: AtomicU64,
    /// Of the lost ones, those that have been told.
    told_lost: AtomicU64,
    facts: AtomicU64,
    lost_facts: AtomicU64,
}

/// What became of the entries, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecorderCounts {
    /// Flow records written.
    pub flows: u64,
    /// Flow records that the queue or the ledger had no room for.
    pub lost_flows: u64,
    /// Facts written.
    pub facts: u64,
    /// Facts of the host's own that could not be kept.
    pub lost_facts: u64,
    /// Entries that wait now.
    pub waiting: u64,
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
    /// Opens the ledger and starts its thread. Gives what an earlier life left open.
    ///
    /// # Errors
    /// [`RecorderError`].
    pub fn start(root: &Path, options: WriterOptions) -> Result<(Self, Recovered, JoinHandle<()>), RecorderError> {
        let (writer, recovered) = Writer::open(root, options)?;
        let (queue, entries) = mpsc::channel(QUEUE);
        let totals = Arc::new(Totals::default());
        let keeper = Keeper { unkept: Vec::new(), writer, entries, totals: Arc::clone(&totals), failing: false };
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(move || keeper.run())?;
        Ok((Self { queue, totals }, recovered, thread))
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
        // An error means that the thread has ended: `done` is dropped with the entry, which is the answer.
        let _ = self.queue.send(Entry::Fact(Box::new(record), done)).await;
    }

    /// Queues a flow, or counts it as lost.
    pub fn flow(&self, flow: Flow) {
        if self.queue.try_send(Entry::Flow(flow)).is_err() {
            self.totals.lost_flows.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Flow records lost since the last call.
    pub fn take_lost_flows(&self) -> u64 {
        let lost = self.totals.lost_flows.load(Ordering::Relaxed);
        lost - self.totals.told_lost.swap(lost, Ordering::Relaxed)
    }

    /// What became of the entries, since the start.
    #[must_use]
    pub fn counts(&self) -> RecorderCounts {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let Totals { flows, lost_flows, facts, lost_facts, .. } = self.totals.as_ref();
        let waiting = count(self.queue.max_capacity() - self.queue.capacity());
        RecorderCounts {
            flows: of(flows),
            lost_flows: of(lost_flows),
            facts: of(facts),
            lost_facts: of(lost_facts),
            waiting,
        }
    }

    /// Has everything queued so far written and ends the thread.
    pub async fn stop(&self) {
        let _ = self.queue.send(Entry::Stop).await;
    }
}

/// Facts of the host's own that wait for a ledger that cannot write just now. What a guest said is not among them: its
/// agent sends it again.
const MAX_UNKEPT: usize = 10_000;

type Waiting = (FactRecord, Option<Durable>);

struct Keeper {
    unkept: Vec<Waiting>,
    writer: Writer,
    entries: mpsc::Receiver<Entry>,
    totals: Arc<Totals>,
    failing: bool,
}

impl Keeper {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let got = self.entries.blocking_recv_many(&mut batch, BATCH);
            let only_flows = batch.iter().all(|entry| matches!(entry, Entry::Flow(_)));
            if only_flows && got > 0 && got < BATCH {
                std::thread::sleep(PACE / 10);
            }
            let stopping = got == 0 || batch.iter().any(|entry| matches!(entry, Entry::Stop));
            self.write(&mut batch);
            if let Err(error) = self.writer.seal_if_due(SystemClock.now()) {
                tracing::error!(error = %chain(&error), "a segment could not be sealed; its records stay in the write-ahead log");
            }
            if stopping {
                if let Err(error) = self.writer.sync() {
                    tracing::error!(error = %chain(&error), "the last flows may not be durable");
                }
                return;
            }
        }
    }

    fn write(&mut self, batch: &mut Vec<Entry>) {
        let mut waiting: Vec<Waiting> = std::mem::take(&mut self.unkept);
        let mut flows = Vec::new();
        for entry in batch.drain(..) {
            match entry {
                Entry::Fact(fact, done) => waiting.push((*fact, done)),
                Entry::Flow(flow) => flows.push(flow),
                Entry::Stop => {}
            }
        }
        let (facts, dones): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        match self.writer.append(&facts, &flows) {
            Ok(()) => {
                self.failing = false;
                self.totals.flows.fetch_add(count(flows.len()), Ordering::Relaxed);
                self.totals.facts.fetch_add(count(facts.len()), Ordering::Relaxed);
                dones.into_iter().flatten().for_each(|done| done());
            }
            Err(error) => self.could_not(&error, facts.into_iter().zip(dones), flows.len()),
        }
    }

    fn could_not(&mut self, error: &LedgerError, facts: impl Iterator<Item = Waiting>, flows: usize) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(error = %chain(error), "the ledger cannot write; payloads are refused until it can");
        }
        self.totals.lost_flows.fetch_add(count(flows), Ordering::Relaxed);
        self.unkept = facts.filter(|(fact, _)| fact.link.is_none()).collect();
        let surplus = self.unkept.len().saturating_sub(MAX_UNKEPT);
        if surplus > 0 {
            tracing::error!(surplus, "facts were lost: the ledger has not been writable for too long");
            self.unkept.drain(..surplus);
            self.totals.lost_facts.fetch_add(count(surplus), Ordering::Relaxed);
        }
    }
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
