//! `guest-agent daemon`: owns leases, networks and the link; gives every request a thread.

mod bans;
mod berth;
pub mod evidence;
mod folders;
mod gate;
mod handed;
mod live;
mod own;
mod payload;
mod record;
mod small_talk;
mod state;
mod watch;

use std::{
    fs, io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{UnixCredentials, getsockopt, sockopt},
    },
};
use sd_notify::NotifyState;
use std::os::fd::AsFd;
use tracing::{info, warn};
use vestigo_model::{Ban, BootId, Clock, Exit, Label, PayloadUid, SystemClock, link::Claim};

use self::{
    evidence::TrustFiles,
    gate::{Entry, Gate},
    state::{Pieces, Shared, State},
};
use crate::{
    cgroup::{Cgroups, Layout, Part},
    config::Config,
    link::{Link, RecordError, worker},
    network::{NetworkError, Networks},
    protocol::{REQUEST_PATIENCE, Refusal, Reply, Request},
    sandbox::{Template, forker::Forker, scratch},
    wire::Channel,
};

/// How often systemd's watchdog is told that the accepting thread is alive.
const WATCHDOG_MS: u16 = 10_000;
/// How long payloads get to die when the daemon is told to end.
const FAREWELL: Duration = Duration::from_secs(10);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It needs root.
    #[error("the daemon makes namespaces and interfaces and must run as root; start it from the VM's init as root")]
    NotRoot,
    /// Another one runs.
    #[error("another daemon answers at {0}; stop it first")]
    Running(String),
    /// A step of the start failed.
    #[error("{step}: {why}")]
    Start {
        /// Which.
        step: String,
        /// Why.
        why: io::Error,
    },
    /// The VM's side of the network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The end of an earlier payload could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn start(step: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    move |why| DaemonError::Start { step: step.into(), why }
}

/// Runs until it is told to end.
///
/// # Errors
/// [`DaemonError`].
pub fn run(config: Config) -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    let signals = block_signals().map_err(|e| start("watch signals")(e.into()))?;
    // A payload that eats all memory must not take the agent with it.
    let _ = fs::write("/proc/self/oom_score_adj", "-800");
    let listener = listen(&config)?;
    warn_of_overlap(config.uid_base, u32::from(config.blocks().map_or(0, |blocks| blocks.count())));
    let (state, bans) = prepare(config)?;
    let state = Arc::new(state);
    info!(link = %state.config.link, fail_mode = state.config.fail_mode.as_str(), "guest-agent ready");
    let own = own::announce(&state);
    let (stocker, obedient) = (Arc::clone(&state), Arc::clone(&state));
    thread("stock", move || berth::keep_stocked(&stocker))?;
    thread("bans", move || bans::obey(&obedient, &bans))?;
    if let Some(every) = state.config.detail() {
        let watched = Arc::clone(&state);
        thread("detail", move || watch::run(&watched, every))?;
    }
    notify(NotifyState::Ready);
    serve(&state, &listener, &signals);
    notify(NotifyState::Stopping);
    farewell(&state, &own);
    Ok(())
}

/// Whoever may have these ids in a user namespace of his own (newuidmap) could signal payloads.
fn warn_of_overlap(base: u32, count: u32) {
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        let range = |line: &str| {
            let mut fields = line.split(':').skip(1).map(|field| field.trim().parse::<u32>());
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        };
        let overlaps = |(start, length): (u32, u32)| start < base + count && base < start.saturating_add(length);
        if let Some(line) = text.lines().find(|line| range(line).is_some_and(overlaps)) {
            warn!(file, line, base, "somebody else may use the payloads' uids; set uid_base elsewhere");
        }
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), DaemonError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(start("start a thread"))
}

fn block_signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The socket is open to every uid; who calls is known from the kernel, and payloads cannot see it.
fn listen(config: &Config) -> Result<UnixListener, DaemonError> {
    fs::create_dir_all(&config.state_dir).map_err(start(format!("make {}", config.state_dir.display())))?;
    chmod(&config.state_dir, 0o755)?;
    let path = config.state_dir.join("agent.sock");
    if UnixStream::connect(&path).is_ok() {
        return Err(DaemonError::Running(path.display().to_string()));
    }
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(start(format!("listen on {}", path.display())))?;
    listener.set_nonblocking(true).map_err(start("listen"))?;
    chmod(&path, 0o666)?;
    Ok(listener)
}

fn chmod(path: &Path, mode: u32) -> Result<(), DaemonError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(start(format!("set the mode of {}", path.display())))
}

/// Cleans up after an earlier life, tells the host about payloads that ended with it, and sets everything up.
fn prepare(config: Config) -> Result<(State, Receiver<Vec<Ban>>), DaemonError> {
    let trust = TrustFiles::read(&config).map_err(|e| start("read the trust files")(io::Error::other(e)))?;
    let bans = bans::kept(&config.state_dir).map_err(start("read the bans kept"))?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(start("read the boot id"))?;
    let boot: BootId = boot.trim().parse().map_err(|e| start("read the boot id")(io::Error::other(e)))?;
    let agent = Label::new(concat!("guest-agent ", env!("CARGO_PKG_VERSION")))
        .map_err(|e| start("name the agent")(io::Error::other(e)))?;
    let networks = Networks::start(&config)?;
    scratch::clear(&config.scratch_dir).map_err(start(format!("clear {}", config.scratch_dir.display())))?;
    let root = config.state_dir.join("root");
    fs::create_dir_all(&root).map_err(start("make the sandbox root"))?;
    let template = Template { root, expose: config.expose.clone() };
    let cgroups = cgroups(&config)?;
    let forker = Forker::start(template).map_err(|e| start("prepare for sandboxes")(io::Error::other(e)))?;
    let (told, lists) = mpsc::channel();
    let spool = worker::spool_path(&config.state_dir);
    let (link, orphans) = Link::start(config.link.clone(), &spool, boot, agent, config.spool_bytes, told)
        .map_err(start(format!("open the spool {}", spool.display())))?;
    for uid in orphans {
        warn!(%uid, "a payload of an earlier life of the agent is recorded as lost");
        link.record(Claim::PayloadEnd { uid, exit: Exit::Lost, silent: false }).made()?;
    }
    let pieces = Pieces { networks, link, forker, cgroups, trust, bans };
    Ok((State::new(config, boot, pieces).map_err(start("restore the leases"))?, lists))
}

/// Without groups payloads run all the same, without limits, and their records say so.
fn cgroups(config: &Config) -> Result<Option<Cgroups>, DaemonError> {
    match Cgroups::start(&Layout::detect(), &config.cgroup) {
        Ok(cgroups) if cgroups.has(Part::Tree) => Ok(Some(cgroups)),
        Ok(_) => {
            warn!("this VM lets nobody make cgroups: payloads have no limits on memory, processes and processor time");
            Ok(None)
        }
        Err(error) => Err(start("make the payloads' cgroups")(io::Error::other(error))),
    }
}

/// Without systemd there is nobody to tell.
fn notify(what: NotifyState<'_>) {
    let _ = sd_notify::notify(&[what]);
}

fn serve(state: &Shared, listener: &UnixListener, signals: &SignalFd) {
    let payloads = state.config.uid_base..state.config.uid_base + u32::from(state.blocks.count());
    let gate = Arc::new(Gate::new(state.blocks.count(), state.config.allow_uids.clone(), payloads));
    loop {
        let mut fds =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(WATCHDOG_MS));
        notify(NotifyState::Watchdog);
        match signals.read_signal() {
            Ok(Some(info)) if i32::try_from(info.ssi_signo) == Ok(Signal::SIGHUP as i32) => {
                match state.reload_trust() {
                    Ok(()) => info!("SIGHUP: trust files are read again; the rest of the configuration at start only"),
                    Err(error) => warn!(%error, "SIGHUP: a trust file cannot be used; those read before stay in force"),
                }
            }
            Ok(Some(_)) => return,
            _ => {}
        }
        match listener.accept() {
            Ok((stream, _)) => connection(state, stream, &gate),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                warn!(%error, "a connection could not be taken");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn connection(state: &Shared, stream: UnixStream, gate: &Arc<Gate>) {
    let Ok(peer) = getsockopt(&stream, sockopt::PeerCredentials) else { return };
    let entry = match gate.enter(peer.uid()) {
        Ok(entry) => entry,
        Err(refusal) => {
            turn_away(stream, refusal);
            return;
        }
    };
    let state = Arc::clone(state);
    let thread = std::thread::Builder::new().name("request".into()).stack_size(512 * 1024);
    if let Err(error) = thread.spawn(move || request(&state, stream, peer, entry)) {
        warn!(%error, "no thread for a request");
    }
}

/// Most refused callers that are being let go of at once.
const TURNED_AWAY: usize = 256;
static TURNING_AWAY: AtomicUsize = AtomicUsize::new(0);

/// Not by the accepting thread: to close a socket is to close what its caller has sent along and nobody took, and a network
/// socket among that can make the closer wait for as long as its owner likes (SO_LINGER).
fn turn_away(stream: UnixStream, refusal: Refusal) {
    // A fresh socket takes one line without waiting.
    let _ = stream.set_nonblocking(true);
    if TURNING_AWAY.fetch_add(1, Ordering::Relaxed) < TURNED_AWAY {
        let thread = std::thread::Builder::new().name("refusal".into()).stack_size(128 * 1024);
        let spawned = thread.spawn(move || {
            refuse(&mut Channel::new(stream), refusal);
            TURNING_AWAY.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            warn!(%error, "no thread to turn a caller away");
            TURNING_AWAY.fetch_sub(1, Ordering::Relaxed);
        }
    } else {
        TURNING_AWAY.fetch_sub(1, Ordering::Relaxed);
        refuse(&mut Channel::new(stream), refusal);
    }
}

fn request(state: &Shared, stream: UnixStream, peer: UnixCredentials, mut entry: Entry) {
    let connected = SystemClock.now();
    // A client that does not read must not hold a thread for ever.
    let _ = stream.set_write_timeout(Some(REQUEST_PATIENCE));
    let mut client = Channel::new(stream);
    let request = client.receive_within::<Request>(REQUEST_PATIENCE);
    entry.spoken();
    match request {
        Ok(Request::Exec(request)) => payload::run(state, &mut client, peer, connected, *request),
        Ok(Request::Status) => {
            let status = state.status(peer.uid());
            let _ = client.send(&Reply::Status(Box::new(status)), &[]);
        }
        Err(error) => refuse(&mut client, Refusal::caller(format!("the request is not understood: {error}"))),
    }
}

fn refuse(client: &mut Channel, refusal: Refusal) {
    let Refusal { code, reason } = refusal;
    let _ = client.send(&Reply::Refused { code, reason }, &[]);
}

/// Who asked, for the log.
fn peer_name(peer: UnixCredentials) -> String {
    format!("uid {} pid {}", peer.uid(), peer.pid())
}

/// Kills what runs and gives the threads time to record the ends.
fn farewell(state: &Shared, own: &[PayloadUid]) {
    info!("ending; payloads are killed");
    state.pool.close(state);
    let until = Instant::now() + FAREWELL;
    while state.live.kill_all() > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    own::withdraw(state, own);
    let _ = fs::remove_file(state.config.state_dir.join("agent.sock"));
    state.remove_cgroups();
    let until = Instant::now() + Duration::from_secs(1);
    while state.link.status().connected && state.link.status().spooled > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
}
