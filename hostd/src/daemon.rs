//! Puts the parts together and takes them apart again.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};
use vestigo_ledger::{
    Recovered, SignError, Signer, Writer, WriterOptions,
    people::{KeyError, PublicSet, Sealer},
};
use vestigo_model::{Clock, Coverage, Event, EventKind, Fact, SystemClock, settings::Mistake};

use crate::{
    bans::{self, BanSet},
    capture::{Capture, CaptureError, links},
    config::{Config, ConfigError},
    domain::{DomainError, Hypervisor, Options, VoMap, VosError},
    ledger_upkeep::{Upkeep, UpkeepOptions},
    machines::{self, MachineOptions},
    meter::MeterOptions,
    nat::{Nat, NatError},
    payloads::FromLedger,
    people,
    pin::{PinError, PinKeeper, PinOptions},
    recorder::{Recorder, RecorderError, chain},
    service::{Ended, Feeds, Service, ServiceOptions},
    status::{self, StatusError},
    vm::lost,
};

/// Events of the machines' thread that may wait.
const QUEUE: usize = 1024;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The table of VOs cannot be read.
    #[error("cannot read {}; write it (an empty file leaves every project unmapped) or set `vos`", path.display())]
    VosRead {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The table of VOs is wrong.
    #[error("{}: {why}", path.display())]
    Vos {
        /// Which.
        path: PathBuf,
        /// Why.
        why: VosError,
    },
    /// The bans cannot be read. Going on without them would lift them all.
    #[error("cannot read {}; write it (an empty file bans nobody) or remove `bans` from the configuration", path.display())]
    BansRead {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bans are wrong.
    #[error("{}, {mistake}; correct that", path.display())]
    Bans {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        mistake: Mistake,
    },
    /// A folder cannot be made.
    #[error("cannot make the folder {}; hostd runs as root", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] RecorderError),
    /// The key that signs segments.
    #[error("{0}; without a key that signs, no segment could be proven: correct `ledger_key.file`")]
    Key(#[from] SignError),
    /// The keys for names.
    #[error(transparent)]
    People(#[from] KeyError),
    /// The pins.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Address translation.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// libvirt.
    #[error("{0}; check that libvirtd runs and that `libvirt.uri` names it")]
    Libvirt(#[from] DomainError),
    /// The status socket.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// An interface cannot be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// What nobody told to end. systemd starts hostd again.
    #[error("{0}; the log before this says why")]
    Ended(#[from] Ended),
    /// Threads, signals.
    #[error("the system refuses a thread or a signal handler")]
    System(#[from] io::Error),
}

impl DaemonError {
    /// Whether the administrator has to correct a file.
    #[must_use]
    pub const fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::VosRead { .. }
                | Self::Vos { .. }
                | Self::BansRead { .. }
                | Self::Bans { .. }
                | Self::People(_)
                | Self::Status(StatusError::Group(_))
        )
    }
}

/// Everything that an administrator writes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `hostd.toml`
    pub config: Config,
    /// `vos.toml`
    pub vos: VoMap,
    /// `bans.toml`, if the configuration names one.
    pub bans: Arc<BanSet>,
    /// The site's keys for names, perhaps none.
    pub people: Vec<PublicSet>,
}

/// Reads the configuration, the table of VOs and the bans, and looks for the group that may ask.
///
/// # Errors
/// [`DaemonError`]: what is wrong with them.
pub fn check(path: &Path) -> Result<Settings, DaemonError> {
    let config = Config::load(path)?;
    config.status.group.as_deref().map(status::group_id).transpose()?;
    let path = config.vos.clone();
    let text = fs::read_to_string(&path).map_err(|source| DaemonError::VosRead { path: path.clone(), source })?;
    let vos = VoMap::parse(&text).map_err(|why| DaemonError::Vos { path, why })?;
    let bans = config.bans.as_deref().map(read_bans).transpose()?.unwrap_or_default();
    let people = people::given(&config.people)?;
    Ok(Settings { config, vos, bans: Arc::new(bans), people })
}

fn read_bans(path: &Path) -> Result<BanSet, DaemonError> {
    let path = path.to_owned();
    let text = fs::read_to_string(&path).map_err(|source| DaemonError::BansRead { path: path.clone(), source })?;
    bans::file::parse(&text).map_err(|mistake| DaemonError::Bans { path, mistake })
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`].
pub fn run(path: &Path) -> Result<(), DaemonError> {
    let settings = check(path)?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(serve(path, settings))
}

async fn serve(path: &Path, Settings { config, vos, bans, people }: Settings) -> Result<(), DaemonError> {
    let own = [&config.ledger, &config.spool, &config.channels].into_iter().chain(&config.pins.folders);
    for folder in own.map(PathBuf::as_path).chain(config.status.socket.parent()) {
        fs::create_dir_all(folder).map_err(|source| DaemonError::Folder { path: folder.to_owned(), source })?;
    }
    // Whoever can open a channel's socket is taken for the VM behind it.
    fs::set_permissions(&config.channels, fs::Permissions::from_mode(0o700))
        .map_err(|source| DaemonError::Folder { path: config.channels.clone(), source })?;
    let options = WriterOptions {
        host: config.host.clone(),
        max_segment_age: Duration::from_secs(config.record.seal_after),
        max_wal_bytes: config.record.seal_bytes,
    };
    let (signer, made) = Signer::open_or_create(&config.ledger_key.file, &config.host)?;
    if made {
        tracing::warn!(key = signer.fingerprint(), file = %config.ledger_key.file.display(), "a key was made that signs this host's segments; give its line in allowed_signers beside it to whoever verifies");
    }
    let signer = Arc::new(signer);
    let sealer = people::sealer(people, config.people.own.clone(), SystemClock.now());
    let (signs, seals) = (Arc::clone(&signer), Arc::clone(&sealer));
    let prepare = |writer: &mut Writer| {
        writer.sign_with(signs);
        writer.seal_names_with(seals);
    };
    let (recorder, recovered, ledger) = Recorder::start(&config.ledger, options, prepare)?;
    let upkeep = Upkeep::start(upkeep_options(&config, signer, &recovered), recorder.clone())?;
    started(&config, &recorder, &recovered).await?;
    let pins = PinOptions {
        settle: Duration::from_secs(config.pins.settle),
        ..PinOptions::new(config.host.clone(), config.pins.folders.clone(), config.spool.clone())
    };
    let keeper = PinKeeper::open(pins, Box::new(FromLedger(config.ledger.clone(), Some(Arc::clone(&sealer)))))?;
    let hypervisor = Hypervisor::connect(&config.libvirt.uri, &Options::default())?;
    let (events, machine_events) = mpsc::channel(QUEUE);
    let (new_vos, vos) = watch::channel(vos);
    let (new_bans, bans) = watch::channel(bans);
    let (asks, asked) = mpsc::channel(QUEUE);
    // Before the first tap is open: what the kernel tracks already is in the book when the first flow is recorded.
    let nat = follow_nat(&config)?;
    let options = MachineOptions {
        host: config.host.clone(),
        vos: vos.clone(),
        channels: config.channels.clone(),
        plug_channel: config.libvirt.plug_channel,
        resync: Duration::from_secs(config.libvirt.resync),
    };
    let (recheck, rechecks) = mpsc::channel(QUEUE);
    machines::follow(hypervisor, keeper, options, (events, rechecks))?;
    let feeds = Feeds { machines: machine_events, recheck, interfaces: links::watch()?, asks: asked };
    let scitags = vos.borrow().scitags().flow_label;
    let options = ServiceOptions {
        host: config.host.clone(),
        capture: Capture::new(config.capture.backend, config.capture.rings()),
        meter: MeterOptions { scitags, ..config.meter.options() },
        coverage: Duration::from_secs(config.record.coverage),
        agent_silent: Duration::from_secs(config.record.agent_silent),
        bans,
        vos,
        nat,
        upkeep,
    };
    let (service, inputs) = Service::new(options, recorder, recovered, feeds);
    status::serve(&config.status.socket, config.status.group.as_deref(), asks.clone())?;
    if let Some(file) = config.metrics.file.clone() {
        tokio::spawn(status::write_regularly(file, Duration::from_secs(config.metrics.interval), asks));
    }
    let (stop, stopped) = oneshot::channel();
    let watcher = tokio::spawn(async move {
        let result = asked_to_stop().await;
        // The service may have ended by itself.
        let _ = stop.send(());
        result
    });
    let hangup = signal(SignalKind::hangup())?;
    let reloader = tokio::spawn(reload(path.to_owned(), config.clone(), (new_vos, new_bans, sealer), hangup));
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    tracing::info!(host = %config.host, "hostd runs");
    let outcome = service.run(inputs, stopped).await;
    watcher.abort();
    reloader.abort();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    // The ledger's last write; a panic there has been reported by the thread itself.
    let _ = tokio::task::spawn_blocking(move || ledger.join()).await;
    tracing::info!("hostd has stopped");
    Ok(outcome?)
}

fn upkeep_options(config: &Config, signer: Arc<Signer>, recovered: &Recovered) -> UpkeepOptions {
    let retention = &config.retention;
    UpkeepOptions {
        root: config.ledger.clone(),
        host: config.host.clone(),
        signer,
        limits: retention.limits(),
        compact: retention.compact,
        thresholds: retention.thresholds(),
        shipped: retention.shipped.clone(),
        last_recorded: recovered.last_recorded,
    }
}

fn follow_nat(config: &Config) -> Result<Nat, NatError> {
    if config.nat.watch {
        // The thread ends with the process: it holds nothing that must be written.
        Nat::start(config.host.clone(), config.nat.options(&config.meter.options())).map(|(nat, _)| nat)
    } else {
        Ok(Nat::off(config.host.clone()))
    }
}

/// Writes that this life began, and what the gap before it means.
async fn started(config: &Config, recorder: &Recorder, recovered: &Recovered) -> Result<(), DaemonError> {
    let now = SystemClock.now();
    if let Some(last) = recovered.last_recorded {
        let state = lost(None, "hostd-down");
        let gap = Coverage { host: config.host.clone(), domain: None, tap: None, from: last.min(now), to: now, state };
        recorder.record(Fact::Coverage(gap)).await?;
    }
    let detail = [
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("torn-bytes".to_owned(), recovered.torn_bytes.to_string()),
    ];
    let event = Event {
        host: config.host.clone(),
        domain: None,
        time: now,
        what: EventKind::HostStarted,
        detail: detail.into_iter().collect(),
    };
    Ok(recorder.record(Fact::Event(event)).await?)
}

/// On SIGHUP: a new table of VOs, new bans and new keys for names take effect for every running VM, or the old ones stay whole. What else has
/// changed needs a restart, and is said to.
async fn reload(
    path: PathBuf,
    running: Config,
    (vos, bans, sealer): (watch::Sender<VoMap>, watch::Sender<Arc<BanSet>>, Arc<Sealer>),
    mut hangup: Signal,
) {
    while hangup.recv().await.is_some() {
        match check(&path) {
            // Another file of bans, or none any more: taking it would be half of the new configuration.
            Ok(new) if new.config.bans != running.bans => {
                tracing::error!(path = %path.display(), "`bans` names another file; nothing was reloaded, restart hostd");
            }
            Ok(new) => {
                if new.config != running {
                    tracing::warn!(path = %path.display(), "the file has changed; that takes effect when hostd is restarted");
                }
                tracing::info!(path = %running.vos.display(), bans = new.bans.len(), "the table of VOs and the bans were read again");
                sealer.replace(new.people);
                people::tell(&sealer, SystemClock.now());
                vos.send_replace(new.vos);
                bans.send_replace(new.bans);
            }
            Err(error) => tracing::error!(error = chain(&error), "nothing was reloaded; hostd goes on as before"),
        }
    }
}

async fn asked_to_stop() -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
