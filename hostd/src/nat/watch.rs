//! The thread that follows connection tracking in every namespace that is meant, and the handle that the service has to it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vestigo_model::{Clock, Coverage, CoverageState, Event, Flow, HostId, Label, PostNat, SystemClock, Timestamp};

use super::{
    book::{Book, BookOptions, Space},
    message::{self, Message},
    names,
    socket::{Read, Sockets},
};

/// How often the thread looks for namespaces and for the wish that it ends. A namespace whose name is gone lives as long as our sockets.
const PACE_MS: u16 = 250;
/// Time between two dumps: connections older than our socket end without an event.
const RESYNC: Duration = Duration::from_secs(300);
/// The least of it, however much is lost.
const RESYNC_LEAST: Duration = Duration::from_secs(1);
/// Time before a namespace is tried again that could not be followed.
const RETRY: Duration = Duration::from_secs(10);
/// Longest datagram; the kernel's dumps have 32 KiB.
const DATAGRAM: usize = 64 << 10;
/// Datagrams read from one namespace before the others have their turn.
const TURN: usize = 4096;
/// Failures named in a statement of coverage.
const NAMED: usize = 8;
/// hostd's own namespace, as answers call it.
const OWN: &str = "host";
/// Under which a fault of the named ones together is kept.
const MANY: &str = "namespaces";

/// What is followed.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Names of further namespaces, with `*` for any characters.
    pub namespaces: Vec<String>,
    /// Folder of named namespaces.
    pub folder: PathBuf,
    /// Receive buffer of each namespace's events, in bytes.
    pub receive_buffer: usize,
    /// Bounds of the book.
    pub book: BookOptions,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            namespaces: Vec::new(),
            folder: "/run/netns".into(),
            receive_buffer: 8 << 20,
            book: BookOptions::default(),
        }
    }
}

/// Why nothing is followed.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// No thread for it.
    #[error("cannot start the thread that follows address translation")]
    Thread(#[from] io::Error),
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatCounters {
    /// Namespaces followed now.
    pub namespaces: u64,
    /// Translations held now.
    pub held: u64,
    /// Events and listed connections read, translated or not.
    pub entries: u64,
    /// Times that the kernel dropped events for want of room.
    pub overruns: u64,
    /// Complete dumps.
    pub dumps: u64,
    /// Messages that could not be read.
    pub malformed: u64,
    /// Translations for which the book had no room.
    pub refused: u64,
    /// Translations that should have been told, beyond the rate.
    pub untold: u64,
}

#[derive(Debug)]
struct Shared {
    book: Book,
    names: BTreeMap<Space, Label>,
    /// Why a namespace is not followed, or why all of them may not be.
    faults: BTreeMap<String, String>,
    counters: NatCounters,
    /// What coverage has told of the counters, and until when.
    told: NatCounters,
    covered_to: Timestamp,
}

/// A handle to the book and its thread. Without a thread, nothing is translated and coverage says why.
#[derive(Debug, Clone)]
pub struct Nat {
    host: HostId,
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
}

impl Nat {
    /// Starts to follow. A namespace that cannot be followed is no error: it is said in the log, once, and in coverage.
    ///
    /// # Errors
    /// [`NatError`].
    pub fn start(host: HostId, options: WatchOptions) -> Result<(Self, JoinHandle<()>), NatError> {
        let nat = Self::new(host, options.book);
        let (shared, stop) = (Arc::clone(&nat.shared), Arc::clone(&nat.stop));
        let ending = Ending(Arc::clone(&nat.shared));
        let watch = Watch {
            options,
            shared,
            stop,
            spaces: BTreeMap::new(),
            failed: BTreeMap::new(),
            next: 1,
            buffer: vec![0; DATAGRAM],
        };
        let thread = std::thread::Builder::new().name("nat".into()).spawn(move || {
            let _ending = ending;
            watch.run();
        })?;
        Ok((nat, thread))
    }

    /// A handle that follows nothing.
    #[must_use]
    pub fn off(host: HostId) -> Self {
        let nat = Self::new(host, BookOptions::default());
        nat.lock().faults.insert(OWN.to_owned(), "switched off by nat.watch".to_owned());
        nat
    }

    fn new(host: HostId, book: BookOptions) -> Self {
        let shared = Shared {
            book: Book::new(book),
            names: BTreeMap::new(),
            faults: BTreeMap::new(),
            counters: NatCounters::default(),
            told: NatCounters::default(),
            covered_to: SystemClock.now(),
        };
        Self { host, shared: Arc::new(Mutex::new(shared)), stop: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the world saw of the VM's end of this flow record, where that is certain. `later`: not the flow's first record.
    #[must_use]
    pub fn translate(&self, flow: &Flow, later: bool) -> Option<PostNat> {
        self.lock().book.translate(flow, later)
    }

    /// Translations that no flow record tells, as events.
    #[must_use]
    pub fn due(&self, now: Timestamp) -> Vec<Event> {
        let mut shared = self.lock();
        let Shared { book, names, .. } = &mut *shared;
        let name = |space| names.get(&space).cloned().unwrap_or_else(|| Label::cut("gone"));
        book.due(&self.host, name, now, Instant::now()).iter().map(vestigo_model::Translation::event).collect()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> NatCounters {
        let mut shared = self.lock();
        shared.count();
        shared.counters
    }

    /// What can be said of the time since the last statement.
    #[must_use]
    pub fn coverage(&self, to: Timestamp) -> Vec<Coverage> {
        let mut shared = self.lock();
        let (states, from) = (shared.states(), std::mem::replace(&mut shared.covered_to, to).min(to));
        let coverage = |state| Coverage { host: self.host.clone(), domain: None, tap: None, from, to, state };
        states.into_iter().map(coverage).collect()
    }

    /// As if the kernel had told it.
    #[cfg(test)]
    pub(crate) fn enter(&self, entry: &message::Entry) {
        let now = SystemClock.now();
        self.lock().book.began(0, entry, now, now);
    }

    /// Has the thread stand still meanwhile.
    #[cfg(test)]
    pub(super) fn hold<T>(&self, work: impl FnOnce() -> T) -> T {
        let _shared = self.lock();
        work()
    }

    /// Has the thread end, within a quarter of a second.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Has coverage say that nothing is followed any more, however the thread comes to its end.
struct Ending(Arc<Mutex<Shared>>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.faults.insert(OWN.to_owned(), "the thread that follows it has ended".to_owned());
        shared.counters.namespaces = 0;
    }
}

impl Shared {
    fn count(&mut self) {
        let left = self.book.take_left();
        self.counters.refused += left.refused;
        self.counters.untold += left.untold;
        self.counters.held = self.book.len().try_into().unwrap_or(u64::MAX);
    }

    fn states(&mut self) -> Vec<CoverageState> {
        self.count();
        let (now, told) = (self.counters, std::mem::replace(&mut self.told, self.counters));
        let unseen = |(name, why): (&String, &String)| CoverageState::NatUnseen { why: format!("{name}: {why}") };
        let mut states: Vec<_> = self.faults.iter().take(NAMED).map(unseen).collect();
        // How many events a full buffer cost nobody knows.
        if now.overruns > told.overruns || now.malformed > told.malformed {
            states.push(CoverageState::NatLost { count: None, place: "nat-events".to_owned() });
        }
        for (count, place) in [(now.refused - told.refused, "nat-table"), (now.untold - told.untold, "nat-statements")]
        {
            if count > 0 {
                states.push(CoverageState::NatLost { count: Some(count), place: place.to_owned() });
            }
        }
        if states.is_empty() {
            states.push(CoverageState::NatOk);
        }
        states
    }
}

/// A namespace that is followed.
struct Followed {
    space: Space,
    sockets: Sockets,
    /// Tells it from a later one of the same name.
    inode: u64,
    /// The last time that no event was waiting.
    quiet: Timestamp,
    dumped: Option<Instant>,
    /// Events were lost since the last dump.
    overrun: bool,
    sequence: u32,
}

struct Watch {
    options: WatchOptions,
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    spaces: BTreeMap<String, Followed>,
    /// Namespaces that could not be followed, and when that was tried.
    failed: BTreeMap<String, Instant>,
    next: Space,
    buffer: Vec<u8>,
}

impl Watch {
    fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.failed.retain(|_, tried| tried.elapsed() < RETRY);
            self.follow_own();
            self.look_for_namespaces();
            let names: Vec<String> = self.spaces.keys().cloned().collect();
            let busy = names.iter().fold(false, |busy, name| self.turn(name) | busy);
            self.lock().book.prune(SystemClock.now());
            if !busy {
                self.wait();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut fds: Vec<PollFd<'_>> =
            self.spaces.values().map(|space| PollFd::new(space.sockets.events.as_fd(), PollFlags::POLLIN)).collect();
        // An error (a signal, no memory) only means that the next turn comes earlier.
        if poll(&mut fds, PollTimeout::from(PACE_MS)).is_err() {
            std::thread::sleep(Duration::from_millis(PACE_MS.into()));
        }
    }

    fn follow_own(&mut self) {
        if self.spaces.contains_key(OWN) || self.failed.contains_key(OWN) {
            return;
        }
        let opened = Sockets::open(self.options.receive_buffer);
        self.follow(OWN.to_owned(), 0, opened);
    }

    fn look_for_namespaces(&mut self) {
        if self.options.namespaces.is_empty() {
            return;
        }
        let (present, more) = match names::present(&self.options.folder, &self.options.namespaces) {
            Ok(present) => present,
            Err(error) => return self.fault(MANY, &format!("cannot read {}: {error}", self.options.folder.display())),
        };
        match more {
            0 => self.mend(MANY),
            more => self.fault(MANY, &format!("{more} more than the {} that are followed", names::MAX_NAMESPACES)),
        }
        let gone =
            |(name, space): &(&String, &Followed)| name.as_str() != OWN && present.get(*name) != Some(&space.inode);
        for name in self.spaces.iter().filter(gone).map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.leave(&name);
        }
        self.lock().faults.retain(|name, _| name == OWN || name == MANY || present.contains_key(name));
        for (name, inode) in present {
            if !self.spaces.contains_key(&name) && !self.failed.contains_key(&name) {
                let opened = Sockets::open_in(&self.path(&name), self.options.receive_buffer);
                self.follow(name, inode, opened);
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.options.folder).join(name)
    }

    fn follow(&mut self, name: String, inode: u64, opened: io::Result<Sockets>) {
        let sockets = match opened {
            Ok(sockets) => sockets,
            Err(error) => {
                let rights = if name == OWN { "CAP_NET_ADMIN" } else { "CAP_NET_ADMIN and CAP_SYS_ADMIN" };
                let why = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        format!("not permitted; hostd needs {rights} (docs/operations.md, [nat])")
                    }
                    _ => error.to_string(),
                };
                self.fault(&name, &why);
                self.failed.insert(name, Instant::now());
                return;
            }
        };
        let space = self.next;
        // Numbers are given anew after 65 thousand namespaces: the oldest is long gone by then.
        self.next = self.next.checked_add(1).unwrap_or(1);
        self.name(space, Label::cut(&name));
        let quiet = SystemClock.now();
        let followed = Followed { space, sockets, inode, quiet, dumped: None, overrun: false, sequence: 0 };
        self.spaces.insert(name, followed);
        self.lock().counters.namespaces = self.spaces.len().try_into().unwrap_or(u64::MAX);
    }

    /// Notes a namespace's name. What is gone keeps it while its translations may still be told.
    fn name(&self, space: Space, name: Label) {
        let mut shared = self.lock();
        shared.names.insert(space, name);
        while shared.names.len() > 4 * names::MAX_NAMESPACES {
            shared.names.pop_first();
        }
    }

    fn leave(&mut self, name: &str) {
        let Some(followed) = self.spaces.remove(name) else { return };
        tracing::debug!(namespace = name, "a namespace is left");
        let mut shared = self.lock();
        shared.counters.namespaces = self.spaces.len().try_into().unwrap_or(u64::MAX);
        shared.book.gone(followed.space, SystemClock.now());
    }

    /// Says a fault once.
    fn fault(&self, name: &str, why: &str) {
        let known = self.lock().faults.insert(name.to_owned(), why.to_owned());
        if known.as_deref() != Some(why) {
            tracing::warn!(
                namespace = name,
                why,
                "address translation is not followed: public addresses may not lead to their VM"
            );
        }
    }

    fn mend(&self, name: &str) {
        self.lock().faults.remove(name);
    }

    /// Reads what waits in a namespace. Whether there may be more.
    fn turn(&mut self, name: &str) -> bool {
        let Some(mut followed) = self.spaces.remove(name) else { return false };
        let read = self.read(name, &mut followed);
        self.spaces.insert(name.to_owned(), followed);
        read.unwrap_or_else(|error| {
            // Whatever state its sockets are in: others are opened after a while.
            self.fault(name, &error.to_string());
            self.leave(name);
            self.failed.insert(name.to_owned(), Instant::now());
            false
        })
    }

    fn read(&mut self, name: &str, followed: &mut Followed) -> io::Result<bool> {
        let busy = self.events(followed, TURN)?;
        let since = followed.dumped.map(|dumped| dumped.elapsed());
        let due = since.is_none_or(|since| since >= RESYNC || followed.overrun && since >= RESYNC_LEAST);
        if due {
            self.dump(followed)?;
            self.mend(name);
        }
        Ok(busy)
    }

    /// Takes events. Whether there may be more.
    fn events(&mut self, followed: &mut Followed, turn: usize) -> io::Result<bool> {
        for _ in 0..turn {
            let now = SystemClock.now();
            match followed.sockets.read_events(&mut self.buffer)? {
                Read::Empty => {
                    followed.quiet = now;
                    return Ok(false);
                }
                Read::Overrun => {
                    followed.overrun = true;
                    self.lock().counters.overruns += 1;
                }
                Read::Datagram(length) => {
                    let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                    for (_, message) in message::messages(self.buffer.get(..length).unwrap_or_default()) {
                        shared.event(followed, message, now);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Compares the book with all that the kernel has. Events are read meanwhile, or their buffer would overflow.
    fn dump(&mut self, followed: &mut Followed) -> io::Result<()> {
        let begun = SystemClock.now();
        followed.dumped = Some(Instant::now());
        followed.overrun = false;
        followed.sequence = followed.sequence.wrapping_add(1);
        followed.sockets.ask(followed.sequence)?;
        loop {
            let length = match followed.sockets.read_dump(&mut self.buffer)? {
                Read::Datagram(length) => length,
                Read::Empty | Read::Overrun => {
                    return Err(io::Error::other("the kernel did not finish a dump of its connections"));
                }
            };
            if let Some(complete) = self.listed(followed, length, begun)? {
                let mut shared = self.lock();
                if complete {
                    shared.counters.dumps += 1;
                    shared.book.synced(followed.space, begun, SystemClock.now());
                } else {
                    followed.overrun = true;
                }
                return Ok(());
            }
            self.events(followed, TURN)?;
        }
    }

    /// Takes a datagram of a dump; `Some` at its end: whether nothing changed under it.
    fn listed(&self, followed: &Followed, length: usize, begun: Timestamp) -> io::Result<Option<bool>> {
        let now = SystemClock.now();
        let mut shared = self.lock();
        for (sequence, message) in message::messages(self.buffer.get(..length).unwrap_or_default()) {
            match message {
                // What an earlier dump left behind.
                _ if sequence != followed.sequence => {}
                Ok(Message::New(entry)) => {
                    shared.counters.entries += 1;
                    shared.book.listed(followed.space, &entry, begun, now);
                }
                Ok(Message::Done { interrupted }) => return Ok(Some(!interrupted)),
                Ok(Message::Error(code)) => return Err(io::Error::from_raw_os_error(code)),
                Ok(_) => {}
                Err(message::Malformed) => shared.counters.malformed += 1,
            }
        }
        Ok(None)
    }
}

impl Shared {
    fn event(&mut self, followed: &Followed, message: Result<Message, message::Malformed>, now: Timestamp) {
        match message {
            Ok(Message::New(entry)) => {
                self.counters.entries += 1;
                self.book.began(followed.space, &entry, followed.quiet, now);
            }
            Ok(Message::Destroyed(entry)) => {
                self.counters.entries += 1;
                self.book.ended(followed.space, &entry, now);
            }
            Ok(_) => {}
            Err(message::Malformed) => self.counters.malformed += 1,
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
