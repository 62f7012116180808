use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::mpsc::Sender;
use vestigo_model::{Clock, DomainUuid, HostId, InstanceId, SystemClock, Tap, Timestamp, Vo};

use super::{CaptureError, Frame, FrameSource};
use crate::{
    decode::{self, Heading, Packet, Undecodable},
    meter::{Fragments, MeterOptions, Metered, Table},
};

/// How often the table is asked for what is due.
const EXPIRY_PACE: Duration = Duration::from_millis(250);

/// Whose tap it is: what every record from it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Frames read.
    pub frames: u64,
    /// Frames that the kernel dropped.
    pub dropped: u64,
    /// Flows cut short because the table was full.
    pub evicted: u64,
    /// Records that the queue to the ledger had no room for.
    pub unqueued: u64,
    /// Frames from the VM under another hardware address, and flooded ones that are not for it.
    pub foreign: u64,
    /// Later fragments whose first was not seen: metered without ports.
    pub orphans: u64,
    /// Frames that are no IP packet, by reason.
    pub undecodable: BTreeMap<Undecodable, u64>,
    /// The tap went away.
    pub ended: bool,
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
        let meter = Meter {
            table: Table::new(options),
            fragments: Fragments::default(),
            observed: Arc::new(observed),
            queue,
            report: Report::default(),
            shared: Arc::clone(&report),
            flushed: SystemClock.now(),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("tap-{tap}"))
            .spawn(move || meter.run(source, &stopped))
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

struct Meter {
    observed: Arc<Observed>,
    table: Table,
    fragments: Fragments,
    queue: Sender<Tapped>,
    report: Report,
    shared: Arc<Mutex<Report>>,
    flushed: Timestamp,
}

impl Meter {
    fn run(mut self, mut source: Box<dyn FrameSource>, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match source.next() {
                Ok(Some(frame)) => self.frame(frame),
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
                let due = self.table.expire(now);
                self.send(due);
                self.report.dropped += source.take_dropped();
                self.publish();
            }
        }
        self.report.dropped += source.take_dropped();
        let rest = self.table.flush();
        self.send(rest);
        self.publish();
    }

    fn frame(&mut self, frame: Frame<'_>) {
        self.report.frames += 1;
        match decode::decode(frame.bytes) {
            Ok(mut packet) => {
                self.fragments.resolve(&mut packet);
                if self.is_foreign(&packet, frame.heading) {
                    self.report.foreign += 1;
                    if frame.heading == Heading::ToVm {
                        // Flooded: it reaches the tap, but is neither from the VM nor for it.
                        return;
                    }
                }
                let records = self.table.packet(&packet, frame.heading, frame.time);
                self.send(records);
            }
            Err(reason) => *self.report.undecodable.entry(reason).or_default() += 1,
        }
    }

    /// A frame from the VM under another hardware address, or one to somebody else's: a guest that forges, or a switch that
    /// floods. Counted; the direction is the kernel's word and not in doubt.
    fn is_foreign(&self, packet: &Packet, heading: Heading) -> bool {
        let (src, dst) = packet.ether;
        let to_many = dst.0.first().is_some_and(|byte| byte & 1 == 1);
        match heading {
            Heading::FromVm => src != self.observed.tap.mac,
            Heading::ToVm => dst != self.observed.tap.mac && !to_many,
        }
    }

    fn send(&mut self, records: Vec<Metered>) {
        for record in records {
            let tapped = Tapped { observed: Arc::clone(&self.observed), record };
            // Capture never waits for a slow disk: what does not fit is lost, and said to be.
            if self.queue.try_send(tapped).is_err() {
                self.report.unqueued += 1;
            }
        }
        self.report.evicted += self.table.take_evicted();
    }

    fn publish(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.report.orphans += self.fragments.take_orphans();
        let own = std::mem::take(&mut self.report);
        shared.frames += own.frames;
        shared.dropped += own.dropped;
        shared.evicted += own.evicted;
        shared.unqueued += own.unqueued;
        shared.foreign += own.foreign;
        shared.orphans += own.orphans;
        shared.ended |= own.ended;
        for (reason, count) in own.undecodable {
            *shared.undecodable.entry(reason).or_default() += count;
        }
    }
}
