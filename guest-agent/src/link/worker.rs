//! The one thread that owns session, spool and channel. Everybody else holds a [`Link`] and sends it commands.

use std::{
    io,
    os::fd::AsFd,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};
use vestigo_model::{
    Ban, BootId, Clock, Label, PayloadUid, SystemClock,
    link::{Claim, LineReader},
};

use super::{
    port::{Look, Port, Target},
    session::{AppendError, Session, Ticket, Verdict},
    spool::Spool,
};
use crate::status::LinkStatus;

const HEARTBEAT: Duration = Duration::from_secs(10);
/// Between two looks at a channel that is not there, and two reminders to a host that does not greet.
const RETRY: Duration = Duration::from_millis(250);
const REMINDER: Duration = Duration::from_secs(3);

/// A record could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Policy of the session.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The spool cannot be written.
    #[error("the record spool cannot be written: {0}")]
    Spool(io::Error),
    /// The worker has ended.
    #[error("the agent is ending")]
    Ending,
}

enum Command {
    Record(Box<Claim>, Sender<Result<Ticket, RecordError>>, Sender<Verdict>),
    Debt(Ticket),
}

/// A record that is on its way.
#[derive(Debug)]
pub struct Receipt {
    made: Receiver<Result<Ticket, RecordError>>,
    verdict: Receiver<Verdict>,
}

impl Receipt {
    /// Waits until the record is on disk.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn made(self) -> Result<Ticket, RecordError> {
        self.made.recv().map_err(|_| RecordError::Ending)?
    }

    /// Waits for the host's word.
    ///
    /// # Errors
    /// It does not come in time, or never will: [`Self::made`] says why.
    pub fn wait(&self, patience: Duration) -> Result<Verdict, RecvTimeoutError> {
        self.verdict.recv_timeout(patience)
    }
}

#[derive(Debug)]
struct Shared {
    status: Mutex<LinkStatus>,
    changed: Condvar,
}

/// The link, as the rest of the daemon sees it.
#[derive(Debug, Clone)]
pub struct Link {
    commands: Sender<Command>,
    wake: Arc<UnixStream>,
    shared: Arc<Shared>,
}

impl Link {
    /// Takes over the spool of an earlier agent of this boot and starts the thread. Also gives the payloads that the
    /// earlier agent started and did not see end. Lists of bans go to `bans`.
    ///
    /// # Errors
    /// The spool cannot be read or written.
    pub fn start(
        target: Target,
        spool: &Path,
        boot: BootId,
        agent: Label,
        limit: usize,
        bans: Sender<Vec<Ban>>,
    ) -> io::Result<(Self, Vec<PayloadUid>)> {
        let saved = Spool::load(spool)?;
        let session = Session::new(boot, agent, limit, saved);
        let orphans = session.header().live.iter().copied().collect();
        let spool = Spool::create(spool, &session.saved())?;
        let (commands, inbox) = mpsc::channel();
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Shared { status: Mutex::new(status(&session)), changed: Condvar::new() });
        let worker = Worker {
            target,
            session,
            spool,
            inbox,
            woken,
            shared: Arc::clone(&shared),
            port: None,
            up: false,
            reader: LineReader::new(),
            out: Vec::new(),
            waiting: Vec::new(),
            next_beat: Instant::now(),
            next_look: Instant::now(),
            last_trouble: String::new(),
            bans,
        };
        std::thread::Builder::new().name("link".into()).spawn(move || worker.run())?;
        Ok((Self { commands, wake: Arc::new(wake), shared }, orphans))
    }

    /// Makes a record, on disk first, and sends it on its way.
    #[must_use = "the record may not have been made"]
    pub fn record(&self, claim: Claim) -> Receipt {
        let (told, made) = mpsc::channel();
        let (judged, verdict) = mpsc::channel();
        self.command(Command::Record(Box::new(claim), told, judged));
        Receipt { made, verdict }
    }

    /// The payload of this record starts without an acknowledgement.
    pub fn owe(&self, ticket: Ticket) {
        self.command(Command::Debt(ticket));
    }

    fn command(&self, command: Command) {
        let _ = self.commands.send(command);
        // A full pipe wakes the worker just as well.
        let _ = nix::unistd::write(self.wake.as_fd(), b"!");
    }

    /// Waits until hostd has greeted us, but not longer than `patience`.
    #[must_use]
    pub fn wait_connected(&self, patience: Duration) -> bool {
        let guard = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.changed.wait_timeout_while(guard, patience, |s| !s.connected).is_ok_and(|(s, _)| s.connected)
    }

    /// How the link is.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn status(session: &Session) -> LinkStatus {
    let (spooled, contradictions, refused_full) = session.counters();
    let header = session.header();
    LinkStatus {
        boot: header.boot,
        connected: session.is_open(),
        last: header.last,
        acked: header.acked,
        debt: session.debt(),
        spooled,
        refused_full,
        contradictions,
    }
}

struct Worker {
    target: Target,
    session: Session,
    spool: Spool,
    inbox: Receiver<Command>,
    woken: UnixStream,
    shared: Arc<Shared>,
    port: Option<Port>,
    up: bool,
    reader: LineReader,
    out: Vec<u8>,
    waiting: Vec<(Ticket, Sender<Verdict>)>,
    next_beat: Instant,
    next_look: Instant,
    last_trouble: String,
    bans: Sender<Vec<Ban>>,
}

impl Worker {
    fn run(mut self) {
        loop {
            self.look();
            self.wait();
            if !self.commands() {
                return;
            }
            self.read();
            self.beat();
            self.write();
            self.publish();
        }
    }

    /// Opens the channel when it appears, and notices when the host comes or goes.
    fn look(&mut self) {
        if self.up || Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + RETRY;
        if self.port.is_none() {
            self.port = Port::open(&self.target).map_err(|error| self.trouble(&error)).ok();
        }
        match self.port.as_ref().map(Port::look) {
            Some(Look::Up) => {
                info!(link = %self.target, "channel open");
                self.up = true;
                self.last_trouble.clear();
                self.reader = LineReader::new();
                self.out = self.session.opened(SystemClock.now());
                self.next_beat = Instant::now() + REMINDER;
            }
            Some(Look::Gone) => self.port = None,
            Some(Look::HostAway) | None => {}
        }
    }

    /// Says once what is in the way, and again only when that changes.
    fn trouble(&mut self, error: &io::Error) {
        let text = error.to_string();
        if self.last_trouble != text {
            warn!(link = %self.target, error = text, "no channel to hostd; it is opened as soon as it appears");
            self.last_trouble = text;
        }
    }

    fn wait(&self) {
        let until = if self.up { self.next_beat } else { self.next_look };
        let wait = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::from(100u8));
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        if let Some(port) = self.port.as_ref().filter(|_| self.up) {
            let wanted = if self.out.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
            fds.push(PollFd::new(port.as_fd(), wanted));
        }
        let _ = poll(&mut fds, timeout);
    }

    /// Takes what the daemon wants. `false` when the daemon is gone.
    fn commands(&mut self) -> bool {
        let mut bytes = [0; 64];
        while matches!(nix::unistd::read(self.woken.as_fd(), &mut bytes), Ok(count) if count == bytes.len()) {}
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Record(claim, made, verdict)) => {
                    let result = self.record(*claim);
                    if let Ok(ticket) = &result {
                        self.waiting.push((*ticket, verdict));
                    }
                    // Whoever has made a record and asks how the link is finds it there: an agent that ends waits for its last ones.
                    self.publish();
                    let _ = made.send(result);
                }
                Ok(Command::Debt(ticket)) => {
                    if let Some(Err(error)) = self.session.mark_debt(ticket).map(|seq| self.spool.debt(seq)) {
                        warn!(%error, "the debt could not be noted in the spool");
                    }
                }
                Err(mpsc::TryRecvError::Empty) => return true,
                Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn record(&mut self, claim: Claim) -> Result<Ticket, RecordError> {
        let (ticket, line) = self.session.append(claim, SystemClock.now())?;
        // A record that the spool could not take still stands in the chain of this agent's life; its payload must not run.
        self.spool.record(&line).map_err(RecordError::Spool)?;
        Ok(ticket)
    }

    fn read(&mut self) {
        let mut buffer = [0; 16 * 1024];
        while self.up {
            let Some(port) = &self.port else { return };
            match port.read(&mut buffer) {
                Ok(None) => return,
                Ok(Some([])) => self.down("the host closed it"),
                Ok(Some(bytes)) => {
                    let lines = self.reader.push(bytes);
                    lines.into_iter().flatten().for_each(|line| self.line(&line));
                }
                Err(error) => self.down(&error.to_string()),
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        let before = self.session.header().clone();
        let contradictions = self.session.counters().1;
        let (verdicts, hello) = self.session.received(line, SystemClock.now());
        if self.session.counters().1 != contradictions {
            warn!(line = %String::from_utf8_lossy(line).chars().take(200).collect::<String>(), "hostd says something that does not fit");
        }
        for (ticket, verdict) in verdicts {
            if let Some(index) = self.waiting.iter().position(|(t, _)| *t == ticket) {
                let _ = self.waiting.swap_remove(index).1.send(verdict);
            }
        }
        let after = self.session.header();
        for uid in before.live.difference(&after.live) {
            if let Err(error) = self.spool.refused(*uid) {
                warn!(%uid, %error, "the refusal could not be noted in the spool");
            }
        }
        let kept = if after.last != before.last || after.head != before.head {
            self.spool.rewrite(&self.session.saved())
        } else if after.acked != before.acked {
            let (acked, waiting) = (after.acked, self.session.counters().0);
            self.spool.acknowledged(|| self.session.saved(), acked, waiting)
        } else {
            Ok(())
        };
        if let Err(error) = kept {
            warn!(%error, "the spool could not be brought up to date");
        }
        self.out.extend(hello.unwrap_or_default());
        if let Some(list) = self.session.take_bans() {
            let _ = self.bans.send(list);
        }
    }

    fn down(&mut self, why: &str) {
        info!(link = %self.target, why, "channel closed");
        self.up = false;
        self.out.clear();
        self.session.closed();
        self.next_look = Instant::now() + RETRY;
        // A device is kept open: closing and opening it again would look like an agent that comes and goes.
        if matches!(self.port.as_ref().map(Port::look), Some(Look::Gone)) {
            self.port = None;
        }
    }

    fn beat(&mut self) {
        if !self.up || Instant::now() < self.next_beat {
            return;
        }
        let now = SystemClock.now();
        // A host that has stopped reading must not make us hoard heartbeats.
        if self.out.is_empty() {
            let sign = self.session.heartbeat(now).unwrap_or_else(|| self.session.hello(now));
            self.out.extend(sign);
        }
        self.next_beat = Instant::now() + if self.session.is_open() { HEARTBEAT } else { REMINDER };
    }

    fn write(&mut self) {
        while self.up {
            if self.out.is_empty() {
                match self.session.next_line() {
                    Some(line) => self.out = line,
                    None => return,
                }
            }
            let Some(port) = &self.port else { return };
            match port.write(&self.out) {
                Ok(0) => return,
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) => self.down(&error.to_string()),
            }
        }
    }

    fn publish(&mut self) {
        // Those who no longer wait for a verdict have dropped their end; a session of months must not collect them.
        if self.waiting.len() > 4096 {
            self.waiting.drain(..2048);
        }
        let fresh = status(&self.session);
        let mut shared = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *shared != fresh {
            *shared = fresh;
            self.shared.changed.notify_all();
        }
    }
}

/// Where the spool is below the state folder.
#[must_use]
pub fn spool_path(state_dir: &Path) -> PathBuf {
    state_dir.join("spool")
}
