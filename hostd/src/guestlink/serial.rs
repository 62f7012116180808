use std::{io, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use vestigo_model::{
    Clock, DomainUuid, Label, LinkPosition, SystemClock, Timestamp,
    link::{self, Claim, Heartbeat, Hello, HostFrame, LineReader},
};

use super::{Session, Step, session::MAX_BOOTS};

/// How long a guest may leave our bytes unread before the channel is opened anew.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two attempts to open the channel, or after the ledger could not keep a record.
const RETRY: Duration = Duration::from_millis(500);

/// What reading from one guest may cost the host.
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
        Self { lines_per_second: 500.0, burst: 2000.0, line_bytes: 1024 }
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
    /// The guest broke the protocol this many times since the last such event; the text is the last instance.
    Fault(DomainUuid, u64, String),
}

/// A running link; ends when dropped.
#[derive(Debug)]
pub struct LinkHandle(tokio::task::JoinHandle<()>);

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Holds the VM's channel open and speaks the protocol on it until the handle is dropped.
pub fn open(
    domain: DomainUuid,
    path: PathBuf,
    known: Vec<LinkPosition>,
    options: LinkOptions,
    events: mpsc::Sender<LinkEvent>,
) -> LinkHandle {
    let durable = known.into_iter().filter(|position| position.domain == domain).collect();
    let link = Link { domain, durable, events, budget: Budget::new(options), faults: Faults::default() };
    LinkHandle(tokio::spawn(link.run(path)))
}

struct Link {
    domain: DomainUuid,
    /// Where each boot's chain ends on disk, the newest last.
    durable: Vec<LinkPosition>,
    events: mpsc::Sender<LinkEvent>,
    budget: Budget,
    faults: Faults,
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
        let mut buffer = vec![0; 16 * 1024];
        // The empty line ends whatever line the guest's reader was in.
        send(&mut stream, b"\n").await?;
        send_frame(&mut stream, &Session::greeting(SystemClock.now())).await?;
        loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            let lines = reader.push(buffer.get(..read).unwrap_or_default());
            let cost = lines.len() + read / self.budget.options.line_bytes.max(1);
            let steps = lines.iter().flat_map(|line| session.line(line, SystemClock.now())).collect();
            for frame in self.carry_out(steps).await? {
                send_frame(&mut stream, &frame).await?;
            }
            self.budget.spend(cost).await;
        }
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
                    if let Some(count) = self.faults.note() {
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

async fn send_frame(stream: &mut UnixStream, frame: &HostFrame) -> io::Result<()> {
    let line = link::encode(frame).ok_or_else(|| io::Error::other("a host frame is too long"))?;
    send(stream, &line).await
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

    async fn spend(&mut self, lines: usize) {
        let now = Instant::now();
        let earned = now.duration_since(self.filled).as_secs_f64() * self.options.lines_per_second;
        self.tokens =
            (self.tokens + earned).min(self.options.burst) - f64::from(u32::try_from(lines).unwrap_or(u32::MAX));
        self.filled = now;
        if self.tokens < 0.0 {
            sleep(Duration::from_secs_f64(-self.tokens / self.options.lines_per_second)).await;
        }
    }
}

/// Faults are told at once, then at most once a minute with their number: a hostile guest must not fill the ledger.
#[derive(Default)]
struct Faults {
    count: u64,
    told: Option<Instant>,
}

impl Faults {
    fn note(&mut self) -> Option<u64> {
        self.count += 1;
        if self.told.is_some_and(|told| told.elapsed() < Duration::from_secs(60)) {
            return None;
        }
        self.told = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}
