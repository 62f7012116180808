use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use vestigo_model::{
    Ban, Clock, DomainUuid, Label, LinkPosition, SystemClock, Timestamp,
    link::{self, Claim, Heartbeat, Hello, HostFrame, LineReader},
};

use super::{Session, Step, session::MAX_BOOTS};
use crate::{bans, quota::Pace};

/// How long a guest may leave our bytes unread before the channel is opened anew.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two attempts to open the channel, or after the ledger could not keep a record.
const RETRY: Duration = Duration::from_millis(500);

/// What reading from one guest may cost the host.
///
/// The default lets 200 payloads start and end each second: a start with its isolation manifest is some 5 KiB and so counts as
/// 6 lines, an end is one, which makes 1400 lines. It bounds a flood to some 2 MB/s, and to 2000 records/s.
#[derive(Debug, Clone, Copy)]
pub struct LinkOptions {
    /// Lines a second, sustained.
    pub lines_per_second: f64,
    /// Lines at once.
    pub burst: f64,
    /// Bytes that count as one line more: a long line costs more than a short one.
    pub line_bytes: usize,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { lines_per_second: 2000.0, burst: 4000.0, line_bytes: 1024 }
    }
}

/// Whether the host takes what a statement says. Its place in the chain is taken either way.
pub type Verdict = Result<(), Label>;

/// What a link tells the service.
#[allow(clippy::large_enum_variant)] // short-lived, and moved once
#[derive(Debug)]
pub enum LinkEvent {
    /// A statement to be made durable. The link acknowledges it when `done` says so.
    Claim {
        /// The VM: the one whose channel this is.
        domain: DomainUuid,
        /// The statement's place.
        position: LinkPosition,
        /// Guest's clock.
        time: Timestamp,
        /// What it says.
        claim: Claim,
        /// Told the verdict when it is durable; dropped when it could not be kept.
        done: oneshot::Sender<Verdict>,
    },
    /// The agent introduced itself.
    Met(DomainUuid, Hello),
    /// The agent lives.
    Heard(DomainUuid, Heartbeat),
    /// These bans were written to the agent, in place of those before.
    BansSent(DomainUuid, BanList),
    /// The guest broke the protocol this many times since the last such event; the text is the last instance.
    Fault(DomainUuid, u64, String),
}

/// The whole list of bans that concern a VM.
pub type BanList = Arc<Vec<Ban>>;

/// A running link; ends when dropped.
#[derive(Debug)]
pub struct LinkHandle {
    task: tokio::task::JoinHandle<()>,
    bans: watch::Sender<BanList>,
}

impl LinkHandle {
    /// Has the agent told this list, now and after each welcome. Never waits: of several lists the latest is sent, and a guest
    /// that does not read delays nobody but itself.
    pub fn set_bans(&self, list: BanList) {
        self.bans.send_if_modified(|held| {
            let differs = *held != list;
            *held = list;
            differs
        });
    }
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Holds the VM's channel open and speaks the protocol on it until the handle is dropped.
pub fn open(
    domain: DomainUuid,
    path: PathBuf,
    known: Vec<LinkPosition>,
    options: LinkOptions,
    list: BanList,
    events: mpsc::Sender<LinkEvent>,
) -> LinkHandle {
    let durable = known.into_iter().filter(|position| position.domain == domain).collect();
    let (bans, changed) = watch::channel(list);
    let link = Link { domain, durable, events, bans: changed, budget: Budget::new(options), faults: Pace::default() };
    LinkHandle { task: tokio::spawn(link.run(path)), bans }
}

struct Link {
    domain: DomainUuid,
    /// Where each boot's chain ends on disk, the newest last.
    durable: Vec<LinkPosition>,
    events: mpsc::Sender<LinkEvent>,
    bans: watch::Receiver<BanList>,
    budget: Budget,
    /// Of faults: a hostile guest must not fill the ledger.
    faults: Pace,
}

impl Link {
    async fn run(mut self, path: PathBuf) {
        let mut complained = false;
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => {
                    complained = false;
                    let ended = self.talk(stream).await;
                    tracing::debug!(domain = %self.domain, ?ended, "agent channel closed");
                }
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!(domain = %self.domain, path = %path.display(), %error, "cannot open the agent channel yet");
                }
                Err(_) => {}
            }
            sleep(RETRY).await;
        }
    }

    /// One opening of the channel, until either side gives up.
    async fn talk(&mut self, mut stream: UnixStream) -> io::Result<()> {
        let mut session = Session::new(self.domain, self.durable.iter().cloned());
        let mut reader = LineReader::new();
        // What is read in one go shares one write to disk.
        let mut buffer = vec![0; link::MAX_FRAME];
        // The empty line ends whatever line the guest's reader was in.
        send(&mut stream, b"\n").await?;
        send_frame(&mut stream, &Session::greeting(SystemClock.now())).await?;
        let (mut welcomed, mut ready) = (false, Instant::now());
        loop {
            let read = tokio::select! {
                // A guest that has talked too much waits to be read, not to be told of bans.
                read = async { sleep_until(ready).await; stream.read(&mut buffer).await } => read?,
                Ok(()) = self.bans.changed() => {
                    if welcomed {
                        let cost = self.send_bans(&mut stream).await?;
                        ready = self.budget.spend(cost);
                    }
                    continue;
                }
            };
            if read == 0 {
                return Ok(());
            }
            let lines = reader.push(buffer.get(..read).unwrap_or_default());
            let mut cost = lines.len() + read / self.budget.options.line_bytes.max(1);
            let steps = lines.iter().flat_map(|line| session.line(line, SystemClock.now())).collect();
            for frame in self.carry_out(steps).await? {
                send_frame(&mut stream, &frame).await?;
                if matches!(frame, HostFrame::Welcome { .. }) {
                    welcomed = true;
                    cost += self.send_bans(&mut stream).await?;
                }
            }
            ready = self.budget.spend(cost);
        }
    }

    /// Sends the whole list as it is now. Gives what that counts as, in lines: a guest must not make us send it without end.
    async fn send_bans(&mut self, stream: &mut UnixStream) -> io::Result<usize> {
        let list = BanList::clone(&self.bans.borrow_and_update());
        let mut bytes = 0;
        for frame in bans::frames(&list) {
            bytes += send_frame(stream, &frame).await?;
        }
        self.tell(LinkEvent::BansSent(self.domain, list)).await?;
        Ok(bytes / self.budget.options.line_bytes.max(1))
    }

    /// Hands every statement on at once, so that they share one write to disk, waits for all, and gives what is to be
    /// sent. Acknowledgements that a later one covers are left out.
    async fn carry_out(&mut self, steps: Vec<Step>) -> io::Result<Vec<HostFrame>> {
        let (mut waiting, mut frames) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Send(frame) => {
                    if matches!((&frame, frames.last()), (HostFrame::Ack { .. }, Some(HostFrame::Ack { .. }))) {
                        frames.pop();
                    }
                    frames.push(frame);
                }
                Step::Commit { position, time, claim } => {
                    let (done, durable) = oneshot::channel();
                    waiting.push((position.clone(), durable));
                    self.tell(LinkEvent::Claim { domain: self.domain, position, time, claim, done }).await?;
                }
                Step::Met(hello) => self.tell(LinkEvent::Met(self.domain, hello)).await?,
                Step::Heard(beat) => self.tell(LinkEvent::Heard(self.domain, beat)).await?,
                Step::Fault(text) => {
                    if let Some(count) = self.faults.note(std::time::Instant::now()) {
                        self.tell(LinkEvent::Fault(self.domain, count, text)).await?;
                    }
                }
            }
        }
        let mut refusals = Vec::new();
        for (position, durable) in waiting {
            // Not durable: close, so that the guest sends it again from the last durable one.
            let verdict = durable.await.map_err(|_| io::Error::other("the ledger could not keep a record"))?;
            if let Err(reason) = verdict {
                refusals.push(HostFrame::Refuse { seq: position.seq, reason });
            }
            self.keep(position);
        }
        // Before the acknowledgements, which cover the refused as well.
        refusals.append(&mut frames);
        Ok(refusals)
    }

    /// Remembers where the boot's chain ends, and forgets the boot not heard of for longest.
    fn keep(&mut self, position: LinkPosition) {
        self.durable.retain(|known| known.boot != position.boot);
        self.durable.push(position);
        let surplus = self.durable.len().saturating_sub(MAX_BOOTS);
        self.durable.drain(..surplus);
    }

    async fn tell(&self, event: LinkEvent) -> io::Result<()> {
        self.events.send(event).await.map_err(|_| io::Error::other("hostd is stopping"))
    }
}

/// Gives the length.
async fn send_frame(stream: &mut UnixStream, frame: &HostFrame) -> io::Result<usize> {
    let line = link::encode(frame).ok_or_else(|| io::Error::other("a host frame is too long"))?;
    send(stream, &line).await?;
    Ok(line.len())
}

async fn send(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, stream.write_all(bytes)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A token bucket: a guest that talks too much waits, and nobody else does.
struct Budget {
    options: LinkOptions,
    tokens: f64,
    filled: Instant,
}

impl Budget {
    fn new(options: LinkOptions) -> Self {
        Self { options, tokens: options.burst, filled: Instant::now() }
    }

    /// Pays for the lines; gives the time from which on the guest may be read again.
    fn spend(&mut self, lines: usize) -> Instant {
        let now = Instant::now();
        let earned = now.duration_since(self.filled).as_secs_f64() * self.options.lines_per_second;
        self.tokens =
            (self.tokens + earned).min(self.options.burst) - f64::from(u32::try_from(lines).unwrap_or(u32::MAX));
        self.filled = now;
        let debt = (-self.tokens).max(0.0);
        now + Duration::from_secs_f64(debt / self.options.lines_per_second)
    }
}
