//! The connection's keeper: opens it, notices its death, opens it again.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::sync::mpsc::Receiver;

use super::{
    Change, DomainError, Options,
    events::{self, Link, Notice, Sink},
};

/// First pause before connecting again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// How often a live connection is looked at, for drivers without a close callback.
const LOOK: Duration = Duration::from_secs(5);

/// A blocking handle on libvirt. Meant for one thread; see the module's head.
pub struct Hypervisor {
    shared: Arc<Shared>,
}

struct Shared {
    uri: String,
    longest_pause: Duration,
    sink: Arc<Sink>,
    state: Mutex<State>,
    stopped: AtomicBool,
}

enum State {
    Open(Arc<Link>),
    Closed(String),
}

impl fmt::Debug for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hypervisor").field("uri", &self.shared.uri).finish_non_exhaustive()
    }
}

impl Hypervisor {
    /// Connects and starts to listen. The first change in the queue is a `Resync`. Fails if libvirt cannot be reached now;
    /// once connected, it comes back by itself.
    pub fn connect(uri: &str, options: &Options) -> Result<(Self, Receiver<Change>), DomainError> {
        events::run_loop()?;
        let (changes, queue) = tokio::sync::mpsc::channel(options.queue.max(2));
        let (notices, supervisor) = mpsc::sync_channel(8);
        let sink = Arc::new(Sink::new(changes, notices));
        let link = Arc::new(Link::open(uri, &sink)?);
        sink.insist(&Change::Resync, || false);
        let shared = Arc::new(Shared {
            uri: uri.to_owned(),
            longest_pause: options.longest_pause.max(SHORTEST_PAUSE),
            sink,
            state: Mutex::new(State::Open(link)),
            stopped: AtomicBool::new(false),
        });
        let keeper = Arc::clone(&shared);
        thread::Builder::new().name("libvirt-keeper".into()).spawn(move || keeper.supervise(&supervisor)).map_err(
            |error| DomainError::Libvirt {
                doing: "be watched over",
                message: format!("cannot start a thread: {error}"),
            },
        )?;
        Ok((Self { shared }, queue))
    }

    /// Changes that did not fit into the queue, since the start. Each burst is followed by a `Resync`.
    #[must_use]
    pub fn dropped_events(&self) -> u64 {
        self.shared.sink.dropped()
    }

    pub(super) fn link(&self) -> Result<Arc<Link>, DomainError> {
        match &*self.shared.state() {
            State::Open(link) => Ok(Arc::clone(link)),
            State::Closed(why) => Err(DomainError::Disconnected(why.clone())),
        }
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.sink.notify(Notice::Stop);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is replaced whole, so a panic elsewhere cannot have left half of one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn supervise(&self, notices: &mpsc::Receiver<Notice>) {
        while !self.stopped() {
            match notices.recv_timeout(LOOK) {
                Ok(Notice::Closed) => self.reconnect(notices),
                Ok(Notice::Overflow) => {
                    self.sink.overflow_seen();
                    self.sink.insist(&Change::Resync, || self.stopped());
                }
                Ok(Notice::Stop) => {}
                Err(mpsc::RecvTimeoutError::Timeout) if self.alive() => {}
                Err(mpsc::RecvTimeoutError::Timeout) => self.reconnect(notices),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        *self.state() = State::Closed("hostd is stopping".into());
    }

    fn alive(&self) -> bool {
        match &*self.state() {
            State::Open(link) => link.connection().is_alive().unwrap_or(false),
            State::Closed(_) => false,
        }
    }

    fn reconnect(&self, notices: &mpsc::Receiver<Notice>) {
        tracing::warn!(uri = self.uri, "the connection to libvirt is lost; connecting again");
        // The old link is taken out of the lock first: closing it can take a moment.
        let old = std::mem::replace(&mut *self.state(), State::Closed("the connection was lost".into()));
        drop(old);
        self.sink.insist(&Change::Disconnected, || self.stopped());
        let mut pause = SHORTEST_PAUSE;
        while !self.stopped() {
            // Notices about the dead connection must not end the next one.
            while notices.try_recv().is_ok() {}
            match Link::open(&self.uri, &self.sink) {
                Ok(link) => {
                    *self.state() = State::Open(Arc::new(link));
                    self.sink.overflow_seen();
                    self.sink.insist(&Change::Resync, || self.stopped());
                    tracing::info!(uri = self.uri, "connected to libvirt again");
                    return;
                }
                Err(error) => *self.state() = State::Closed(error.to_string()),
            }
            thread::sleep(pause);
            pause = (pause * 2).min(self.longest_pause);
        }
    }
}
