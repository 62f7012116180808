use std::{
    io,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use vestigo_model::{Clock as _, SystemClock, TapName, Timestamp};

use super::{CaptureError, FrameSource, Link, TapSender, filter};
use crate::meter::{Counts, Meter, Witness};

/// How often the meter is asked for what is due.
const PACE: Duration = Duration::from_millis(250);
/// The same while no packet comes and flows only wait for their time-outs, which are seconds.
const QUIET_PACE: Duration = Duration::from_secs(1);
/// The same while records wait for room in the queue.
const CROWDED_PACE: Duration = Duration::from_millis(10);
/// How often a tap that is down is looked at: the kernel does not tell when it is removed then.
const DOWN_PACE: Duration = Duration::from_millis(100);
/// Most blocks read before the clock is looked at.
const BLOCKS: usize = 16;
/// How long an ending capture waits for the last block: several times the age at which the kernel hands it over.
const LAST_BLOCK: Duration = Duration::from_secs(2);

/// What a tap saw, and could not keep, since the last report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames that passed the tap, by the kernel's count.
    pub offered: u64,
    /// What became of the frames read.
    pub counts: Counts,
    /// Frames that the kernel had no room for, or that its ring did not give.
    pub dropped: u64,
    /// How often the ring was full.
    pub freezes: u64,
    /// Records that found no room at the capture's end.
    pub unqueued: u64,
    /// When the capture ended, if it has: everything before is in this report or an earlier one.
    pub ended: Option<Timestamp>,
}

impl Report {
    /// Adds a later one's.
    pub fn add(&mut self, later: &Self) {
        self.offered += later.offered;
        self.counts.add(&later.counts);
        self.dropped += later.dropped;
        self.freezes += later.freezes;
        self.unqueued += later.unqueued;
        self.ended = later.ended.or(self.ended);
    }
}

/// How the thread is told to end, also while it waits.
#[derive(Debug)]
struct Order {
    end: AtomicBool,
    bell: EventFd,
}

/// A running capture. Ends with its interface, or when it is told to.
#[derive(Debug)]
pub struct TapCapture {
    order: Arc<Order>,
    shown: Arc<Mutex<Report>>,
    opened: Timestamp,
    index: u32,
    thread: Option<JoinHandle<()>>,
}

impl TapCapture {
    /// Starts a thread that meters the source and queues its records.
    ///
    /// # Errors
    /// [`CaptureError::Thread`].
    pub fn start<W: Witness + Send + 'static>(
        tap: &TapName,
        (source, index): (Box<dyn FrameSource>, u32),
        meter: Meter<W>,
        queue: TapSender,
    ) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::Thread { tap: tap.clone(), source };
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let bell = bell.map_err(|errno| failed(errno.into()))?;
        let order = Arc::new(Order { end: AtomicBool::new(false), bell });
        let shown = Arc::new(Mutex::new(Report::default()));
        let opened = SystemClock.now();
        let watcher = Watcher {
            _ending: Ending(Arc::clone(&shown)),
            tap: tap.clone(),
            source,
            meter,
            queue,
            order: Arc::clone(&order),
            shown: Arc::clone(&shown),
            report: Report::default(),
            inside: 0,
            asked: opened,
            state: State::Quiet,
        };
        let thread =
            std::thread::Builder::new().name(format!("tap-{tap}")).spawn(move || watcher.run()).map_err(failed)?;
        Ok(Self { order, shown, opened, index, thread: Some(thread) })
    }

    /// The interface's index: a name is used again, an index is not.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// From when on its frames were seen.
    #[must_use]
    pub const fn opened(&self) -> Timestamp {
        self.opened
    }

    /// Until when, once it has ended.
    #[must_use]
    pub fn ended(&self) -> Option<Timestamp> {
        self.shown().ended
    }

    /// Takes what happened since the last call.
    #[must_use]
    pub fn take_report(&self) -> Report {
        let mut shown = self.shown();
        let ended = shown.ended;
        std::mem::replace(&mut shown, Report { ended, ..Report::default() })
    }

    /// Tells it to end: what has been seen until now is read, open flows are recorded as `forced`, and the queue ends.
    pub fn end(&self) {
        self.order.end.store(true, Ordering::Release);
        // The counter cannot overflow by a few orders.
        let _ = self.order.bell.write(1);
    }

    /// Waits for the end, which must have been ordered.
    pub fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic in it is a bug; the thread has said so, and what it counted before is still shown.
            let _ = thread.join();
        }
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Report> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TapCapture {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the next wait depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Frames came since the meter was last asked.
    Busy,
    /// None did.
    Quiet,
    /// Records wait for room.
    Crowded,
    /// The interface is down.
    Down,
}

/// Whether the capture goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    On,
    Over,
}

/// Has the end told however the thread comes to it: a bug that a guest's frame may have met must not look like a tap on which nothing passes.
struct Ending(Arc<Mutex<Report>>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ended.get_or_insert_with(|| SystemClock.now());
    }
}

struct Watcher<W> {
    // Dropped before the queue, whose end has the service look.
    _ending: Ending,
    tap: TapName,
    source: Box<dyn FrameSource>,
    meter: Meter<W>,
    queue: TapSender,
    order: Arc<Order>,
    shown: Arc<Mutex<Report>>,
    report: Report,
    /// Frames that the kernel counted and that have not been read.
    inside: u64,
    asked: Timestamp,
    state: State,
}

impl<W: Witness> Watcher<W> {
    fn run(mut self) {
        while !self.order.end.load(Ordering::Acquire) && !self.queue.is_closed() {
            match self.round() {
                Ok(Course::On) => {}
                Ok(Course::Over) => {
                    tracing::debug!(tap = %self.tap, "the interface is gone");
                    break;
                }
                Err(error) => {
                    tracing::error!(tap = %self.tap, %error, "the capture of a tap has failed");
                    break;
                }
            }
        }
        let ended = SystemClock.now();
        self.empty();
        self.flush();
        self.count();
        self.report.ended = Some(ended);
        self.publish();
    }

    /// Reads what is there, gives out what is due, waits if there was nothing.
    fn round(&mut self) -> io::Result<Course> {
        let more = self.read()?;
        let now = SystemClock.now();
        if self.pace().is_some_and(|pace| now.since(self.asked) >= pace) {
            self.give_out(now);
        }
        if more { Ok(Course::On) } else { self.wait() }
    }

    /// Whether there may be more.
    fn read(&mut self) -> io::Result<bool> {
        let meter = &mut self.meter;
        for _ in 0..BLOCKS {
            match self.source.take(&mut |frame| meter.frame(frame)) {
                Ok(Some(batch)) => {
                    self.report.dropped += batch.unreadable;
                    self.inside = self.inside.wrapping_sub(batch.frames + batch.unreadable);
                    if self.state != State::Crowded {
                        self.state = State::Busy;
                    }
                }
                Ok(None) => return Ok(false),
                Err(error) if error.raw_os_error() == Some(Errno::ENETDOWN as i32) => {
                    self.state = State::Down;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// After how long the meter is asked; never, when it holds nothing and nothing comes.
    fn pace(&self) -> Option<Duration> {
        match self.state {
            State::Busy => Some(PACE),
            State::Crowded => Some(CROWDED_PACE),
            State::Down => Some(DOWN_PACE),
            State::Quiet => (!self.meter.is_empty()).then_some(QUIET_PACE),
        }
    }

    fn give_out(&mut self, now: Timestamp) {
        self.asked = now;
        let room = self.queue.room();
        let mut due = Vec::new();
        self.meter.due(now, room, &mut due);
        let crowded = due.len() >= room;
        if !due.is_empty() {
            self.report.unqueued += self.queue.send(due);
        }
        self.state = match self.state {
            State::Down => State::Down,
            _ if crowded => State::Crowded,
            _ => State::Quiet,
        };
        self.count();
        self.publish();
    }

    fn wait(&mut self) -> io::Result<Course> {
        let due = self.pace().map(|pace| pace.saturating_sub(SystemClock.now().since(self.asked)));
        // Rounded up: woken a little early it would only wait again.
        let timeout = due.map(|due| due + Duration::from_millis(1));
        let timeout = timeout.map_or(PollTimeout::NONE, |due| PollTimeout::try_from(due).unwrap_or(PollTimeout::MAX));
        let (socket, bell) = (self.source.socket().as_fd(), self.order.bell.as_fd());
        let mut waiting = [PollFd::new(socket, PollFlags::POLLIN), PollFd::new(bell, PollFlags::POLLIN)];
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [socket, _] = waiting;
        let troubled = socket.revents().is_some_and(|what| what.intersects(PollFlags::POLLERR | PollFlags::POLLHUP));
        if !troubled && self.state != State::Down {
            return Ok(Course::On);
        }
        match self.source.socket().link()? {
            Link::Gone => return Ok(Course::Over),
            Link::Down => self.state = State::Down,
            Link::There => {}
        }
        Ok(Course::On)
    }

    /// Asks the kernel what it counted.
    fn count(&mut self) {
        // The socket is open: nothing can fail here but the kernel.
        let Ok(counted) = self.source.socket().statistics() else { return };
        self.report.offered += counted.offered;
        self.report.dropped += counted.dropped;
        self.report.freezes += counted.freezes;
        self.inside = self.inside.wrapping_add(counted.offered.wrapping_sub(counted.dropped));
    }

    /// Lets no more frames in, and reads those that are inside: the last block is handed over when its time has come.
    fn empty(&mut self) {
        let until = Instant::now() + LAST_BLOCK;
        // If it cannot be set, frames go on coming, and the time ends it.
        let _ = self.source.socket().filter(&filter::nothing());
        loop {
            // Down or gone: what was seen before is inside all the same.
            while self.read().unwrap_or(false) {}
            self.count();
            if self.inside == 0 {
                return;
            }
            if Instant::now() >= until {
                tracing::warn!(tap = %self.tap, frames = self.inside, "frames were not handed over by the kernel");
                self.report.dropped += self.inside;
                return;
            }
            let mut waiting = [PollFd::new(self.source.socket().as_fd(), PollFlags::POLLIN)];
            // The error that ended the capture would make every poll return at once.
            let _ = self.source.socket().link();
            let _ = poll(&mut waiting, 20_u8);
        }
    }

    /// Ends every flow, and waits for room for their records.
    fn flush(&mut self) {
        let mut rest = Vec::new();
        self.meter.flush(&mut rest);
        self.report.unqueued += self.queue.send_all(rest);
    }

    fn publish(&mut self) {
        self.report.counts.add(&self.meter.take_counts());
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).add(&std::mem::take(&mut self.report));
    }
}
