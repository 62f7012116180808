use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::mpsc::Sender;
use vestigo_model::{Clock, DomainUuid, HostId, InstanceId, SystemClock, Tap, Timestamp, Vo};

use super::{CaptureError, FrameSource};
use crate::{
    meter::{Counts, Meter, MeterOptions, Metered},
    witness::TapWitness,
};

/// How often the table is asked for what is due.
const EXPIRY_PACE: Duration = Duration::from_millis(250);
/// Most records taken at once: one VM's flood must not fill the queue that all share.
const MAX_RECORDS: usize = 2000;

/// Whose tap it is: what every record from it carries.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The hypervisor.
    pub host: HostId,
    /// The VM.
    pub domain: DomainUuid,
    /// Its cloud id.
    pub instance: InstanceId,
    /// Its VO.
    pub vo: Option<Vo>,
    /// The tap.
    pub tap: Tap,
    /// What is learnt on it.
    pub witness: TapWitness,
}

/// A record with the tap it comes from.
#[derive(Debug, Clone)]
pub struct Tapped {
    /// The tap.
    pub observed: Arc<Observed>,
    /// The record.
    pub record: Metered,
}

/// What a tap saw, and could not keep, since the last report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What became of the frames read.
    pub counts: Counts,
    /// Frames that the kernel dropped.
    pub dropped: u64,
    /// Records that the queue to the ledger had no room for.
    pub unqueued: u64,
    /// The tap went away.
    pub ended: bool,
}

impl Report {
    /// Adds a later one's.
    pub fn add(&mut self, later: &Self) {
        self.counts.add(&later.counts);
        self.dropped += later.dropped;
        self.unqueued += later.unqueued;
        self.ended |= later.ended;
    }
}

/// A running capture. Ends with its tap, or when [`TapCapture::stop`] is called.
pub struct TapCapture {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

impl TapCapture {
    /// Starts a thread that meters the source and queues its records.
    ///
    /// # Errors
    /// [`CaptureError::Thread`].
    pub fn start(
        source: Box<dyn FrameSource>,
        observed: Observed,
        options: MeterOptions,
        queue: Sender<Tapped>,
    ) -> Result<Self, CaptureError> {
        let (stop, report) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Report::default())));
        let tap = observed.tap.name.clone();
        let watcher = Watcher {
            meter: Meter::with_witness(options, Some(observed.tap.mac), observed.witness.clone()),
            observed: Arc::new(observed),
            queue,
            report: Report::default(),
            shared: Arc::clone(&report),
            flushed: SystemClock.now(),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("tap-{tap}"))
            .spawn(move || watcher.run(source, &stopped))
            .map_err(|source| CaptureError::Thread { tap, source })?;
        Ok(Self { stop, report, thread: Some(thread) })
    }

    /// Takes what happened since the last call.
    pub fn take_report(&self) -> Report {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = report.ended;
        std::mem::replace(&mut report, Report { ended, ..Report::default() })
    }

    /// Whether the tap went away under it.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).ended
    }

    /// Ends the capture; its open flows are recorded as `forced`. Gives the last report.
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread wakes at least every tenth of a second; a panic in it is a bug that its report survives.
            let _ = thread.join();
        }
        self.take_report()
    }
}

struct Watcher {
    observed: Arc<Observed>,
    meter: Meter<TapWitness>,
    queue: Sender<Tapped>,
    report: Report,
    shared: Arc<Mutex<Report>>,
    flushed: Timestamp,
}

impl Watcher {
    fn run(mut self, mut source: Box<dyn FrameSource>, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match source.next() {
                Ok(Some(frame)) => self.meter.frame(&frame),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(tap = %self.observed.tap.name, %error, "the tap is gone");
                    self.report.ended = true;
                    break;
                }
            }
            let now = SystemClock.now();
            if now.since(self.flushed) >= EXPIRY_PACE {
                self.flushed = now;
                let mut due = Vec::new();
                self.meter.due(now, MAX_RECORDS, &mut due);
                self.send(due);
                self.report.dropped += source.take_dropped();
                self.publish();
            }
        }
        self.report.dropped += source.take_dropped();
        let mut rest = Vec::new();
        self.meter.flush(&mut rest);
        self.send(rest);
        self.publish();
    }

    fn send(&mut self, records: Vec<Metered>) {
        for record in records {
            let tapped = Tapped { observed: Arc::clone(&self.observed), record };
            // Capture never waits for a slow disk: what does not fit is lost, and said to be.
            if self.queue.try_send(tapped).is_err() {
                self.report.unqueued += 1;
            }
        }
    }

    fn publish(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = std::mem::take(&mut self.report);
        own.counts = self.meter.take_counts();
        shared.add(&own);
    }
}
