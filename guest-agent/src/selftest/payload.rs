//! One payload of the selftest, started through the daemon's ordinary request.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::{self, BufRead, BufReader, PipeWriter, Read, Write},
    net::Ipv6Addr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use vestigo_model::{Enforcement, Exit, Label, Lease, PayloadId, PayloadUid, PortBlock, Trust, User, Vo};

use super::{Orders, VERB};
use crate::{
    cgroup::{Events, Limits},
    protocol::{ExecRequest, Refusal, Reply, Request},
    shape::{Bind, Shape},
    status::Status,
    wire::{Channel, WireError},
};

/// Where a payload sees the agent if it lies where payloads see nothing.
pub const SHOWN: &str = "/opt/vestigo/selftest";
/// Longest time until a payload has started.
const START: Duration = Duration::from_secs(60);
/// Longest time until it has ended after it was told to.
const END: Duration = Duration::from_secs(30);
/// Most that is read from one.
const MAX_OUTPUT: u64 = 1 << 20;

/// The agent as a payload's program.
#[derive(Debug)]
pub struct Program {
    /// Its path inside.
    pub path: PathBuf,
    /// Itself, if it has to be shown.
    shown: Option<File>,
    /// How long it is, bytes.
    pub size: u64,
}

impl Program {
    /// This program. Below `/usr` every payload sees it; from elsewhere it is shown, read-only, as any pilot could.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn find() -> Result<Self, Refusal> {
        let unusable = |e: io::Error| Refusal::system(format!("the agent's own program cannot be opened: {e}"));
        let path = env::current_exe().map_err(unusable)?;
        let file = File::open("/proc/self/exe").map_err(unusable)?;
        let size = file.metadata().map_err(unusable)?.size();
        if path.starts_with("/usr") {
            return Ok(Self { path, shown: None, size });
        }
        Ok(Self { path: SHOWN.into(), shown: Some(file), size })
    }
}

/// What all payloads of one run have in common.
#[derive(Debug)]
pub struct Start<'a> {
    /// The daemon's socket.
    pub socket: &'a Path,
    /// The program.
    pub program: &'a Program,
    /// The virtual organisation in the record.
    pub vo: &'a Vo,
}

/// One that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Payload {
    daemon: Channel,
    input: Option<PipeWriter>,
    lines: Receiver<String>,
    /// Its number.
    pub uid: PayloadUid,
    /// What marks its packets.
    pub leases: Vec<Lease>,
    /// What the agent says about its sandbox, rule by rule.
    pub isolation: BTreeMap<String, Enforcement>,
}

fn lost(error: &WireError) -> Refusal {
    Refusal::system(format!("the agent's daemon went away ({error}); see its log"))
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Refusal {
    move |error| Refusal::system(format!("{what}: {error}"))
}

fn connect(socket: &Path) -> Result<Channel, Refusal> {
    let stream = UnixStream::connect(socket).map_err(|error| {
        let socket = socket.display();
        Refusal::system(format!(
            "no agent answers at {socket} ({error}); start `guest-agent daemon` as root in this VM"
        ))
    })?;
    Ok(Channel::new(stream))
}

/// Asks the daemon how it is.
///
/// # Errors
/// It does not answer within 10 s.
pub fn status(socket: &Path) -> Result<Status, Refusal> {
    let mut daemon = connect(socket)?;
    daemon.send(&Request::Status, &[]).map_err(|e| lost(&e))?;
    match daemon.receive_within::<Reply>(Duration::from_secs(10)).map_err(|e| lost(&e))? {
        Reply::Status(status) => Ok(*status),
        Reply::Refused { code, reason } => Err(Refusal { code, reason }),
        Reply::Started { .. } | Reply::Ended { .. } => Err(Refusal::system("the daemon did not answer the question")),
    }
}

impl Start<'_> {
    /// Starts one for a user of this name, and gives it its orders.
    ///
    /// # Errors
    /// The daemon's refusal, with its code.
    pub fn payload(&self, user: &str, role: &str, limits: Limits, orders: &Orders) -> Result<Payload, Refusal> {
        let label = |text: &str| Label::new(text).map_err(|e| Refusal::system(e.to_string()));
        let path = self.program.path.to_string_lossy().into_owned();
        let shown = self.program.shown.as_ref();
        let bind = |_| Bind { target: SHOWN.into(), writable: false };
        let request = ExecRequest {
            payload: PayloadId::new(user).map_err(|e| Refusal::system(e.to_string()))?,
            user: Some(User { issuer: label("vestigo:selftest")?, subject: label(user)? }),
            vo: self.vo.clone(),
            pilot: None,
            trust: Some(Trust::AssertedByVo),
            task: None,
            token: None,
            pilot_tokens: Vec::new(),
            command: vec![path, VERB.to_owned(), role.to_owned()],
            env: Vec::new(),
            shape: Shape { binds: shown.into_iter().map(bind).collect(), limits, ..Shape::default() },
        };
        let (input, mut orders_to) = io::pipe().map_err(system("a pipe cannot be made"))?;
        let (output_from, output) = io::pipe().map_err(system("a pipe cannot be made"))?;
        let null = File::options().write(true).open("/dev/null").map_err(system("/dev/null cannot be opened"))?;
        let mut daemon = connect(self.socket)?;
        let fds: Vec<BorrowedFd<'_>> =
            [input.as_fd(), output.as_fd(), null.as_fd()].into_iter().chain(shown.map(AsFd::as_fd)).collect();
        daemon.send(&Request::Exec(Box::new(request)), &fds).map_err(|e| lost(&e))?;
        drop((input, output));
        let (uid, leases, isolation) = match daemon.receive_within::<Reply>(START).map_err(|e| lost(&e))? {
            Reply::Started { uid, leases, isolation, .. } => (uid, leases, isolation),
            Reply::Refused { code, reason } => return Err(Refusal { code, reason }),
            Reply::Ended { .. } | Reply::Status(_) => return Err(Refusal::system("the daemon gave an odd answer")),
        };
        let mut line = serde_json::to_vec(orders).map_err(|e| Refusal::system(e.to_string()))?;
        line.push(b'\n');
        // One that has ended already has no use for it; what it said tells why.
        let _ = orders_to.write_all(&line);
        Ok(Payload { daemon, input: Some(orders_to), lines: lines(output_from), uid, leases, isolation })
    }
}

/// Its output, line by line, read in a thread so that waiting for a line can have an end.
fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (to, from) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output.take(MAX_OUTPUT)).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    from
}

impl Payload {
    /// The next line that is of this kind; others are dropped. `None` when it ends or says nothing for too long.
    pub fn line<T: DeserializeOwned>(&mut self, patience: Duration) -> Option<T> {
        let until = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Ok(line) = serde_json::from_str(&line) {
                        return Some(line);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// The next line, whatever it says.
    pub fn raw_line(&mut self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    /// Tells it to end and waits until the daemon says that everything of it is dead.
    ///
    /// # Errors
    /// The daemon does not say so.
    pub fn end(&mut self) -> Result<(Exit, Events), Refusal> {
        drop(self.input.take());
        match self.daemon.receive_within::<Reply>(END).map_err(|e| lost(&e))? {
            Reply::Ended { exit, usage, .. } => Ok((exit, usage)),
            Reply::Refused { code, reason } => Err(Refusal { code, reason }),
            Reply::Started { .. } | Reply::Status(_) => Err(Refusal::system("the daemon gave an odd answer")),
        }
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn address6(&self) -> Option<Ipv6Addr> {
        self.leases.iter().find_map(|lease| match lease {
            Lease::Address(address) => Some(*address),
            Lease::Ports(_) => None,
        })
    }

    /// Its source ports.
    #[must_use]
    pub fn ports(&self) -> Option<PortBlock> {
        self.leases.iter().find_map(|lease| match lease {
            Lease::Ports(ports) => Some(*ports),
            Lease::Address(_) => None,
        })
    }
}
