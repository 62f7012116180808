//! The daemon: takes hand-overs from the spool, one after the other, and brings each to its end.

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use vestigo_model::{Clock, Handover, HandoverResult, ItemId, Outcome};

use crate::{
    acquire::{AcquireError, Acquirer, Control, LayerError, Policy, Settings},
    config::{Config, ConfigError},
    custody::{self, Actor, Draft, What},
    journal::Journals,
    known::Known,
    ship::Shipper,
    spool::{Spool, SpoolError, Waiting},
    vault::{
        self, Open, Url, Vault, VaultError,
        identity::Remembered,
        probe::{Capabilities, judge},
    },
};

const POLL: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A trouble that persists is said again so often.
const REMIND: Duration = Duration::from_secs(600);
/// Without a sign of life for so long, the watchdog is no longer fed. Longer than the S3 client's own time-outs together.
const SILENCE: Duration = Duration::from_secs(900);

/// Why the daemon cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The cache.
    #[error(transparent)]
    Known(#[from] crate::known::KnownError),
    /// Custody.
    #[error(transparent)]
    Custody(#[from] custody::CustodyError),
    /// The store is not fit for what is configured.
    #[error("{0}")]
    Unfit(String),
}

struct Patience {
    failures: u32,
    until: Instant,
    said: String,
    said_at: Instant,
}

/// The daemon.
pub struct Daemon {
    spool: Spool,
    shipper: Option<Shipper>,
    acquirer: Acquirer,
    control: Arc<Control>,
    clock: Arc<dyn Clock>,
    patience: HashMap<String, Patience>,
}

impl Daemon {
    /// Takes the spool, opens vault and cache, and tries out the store. A store that does not answer is waited for.
    pub fn start(config: &Config, clock: Arc<dyn Clock>, control: Arc<Control>) -> Result<Option<Self>, DaemonError> {
        let spool = Spool::own(&config.spool)?;
        notify_ready();
        let Some((vault, id)) = wait_until_fit(config, &*clock, &control)? else { return Ok(None) };
        let known = Known::open(&config.state.join("known.redb"), &format!("{} {id}", vault.url()))?;
        let policy = Policy {
            store: Settings {
                chunk_size: config.store.chunk_kib * 1024,
                pack_size: config.store.pack_mib as usize * 1024 * 1024,
                level: config.store.zstd_level,
                workers: config.store.workers(),
                uploads: config.store.uploads,
            },
            retention: config.retention(),
            object_lock: config.retention.object_lock,
            pins: config.pins.clone(),
            vault: Some((Remembered::new(&config.state), id)),
        };
        let keep = Duration::from_secs(u64::from(config.ledger.keep_days) * 86_400);
        let shipper = config
            .ledger
            .path
            .as_ref()
            .map(|ledger| Shipper::new(ledger, &config.state, vault.clone(), keep, clock.clone(), control.clone()));
        let journals = Journals::new(&config.state);
        journals.sweep();
        let acquirer = Acquirer::new(vault, known, journals, policy, clock.clone(), control.clone());
        Ok(Some(Self { spool, shipper, acquirer, control, clock, patience: HashMap::new() }))
    }

    /// Works until told to stop.
    pub fn run(&mut self) -> Result<(), DaemonError> {
        tracing::info!(vault = self.acquirer.vault.url(), "quarantine is ready");
        self.forget_cleared();
        let shipper = self.shipper.take();
        // By itself: a disk may take an hour, and the ledger must not wait for it.
        std::thread::scope(|scope| {
            if let Some(mut shipper) = shipper {
                scope.spawn(move || shipper.run());
            }
            let done = self.work();
            if done.is_err() {
                self.control.stop();
            }
            done
        })
    }

    fn work(&mut self) -> Result<(), DaemonError> {
        while !self.control.stopping() {
            self.round()?;
            pause(&self.control, POLL);
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        Ok(())
    }

    /// Looks once at everything that waits.
    pub fn round(&mut self) -> Result<(), DaemonError> {
        let waiting = self.spool.waiting()?;
        for Waiting { path, handover } in waiting {
            self.control.beat();
            let name = path.display().to_string();
            if self.control.stopping() || self.patience.get(&name).is_some_and(|p| Instant::now() < p.until) {
                continue;
            }
            let worked = match &handover {
                Ok(handover) => self.bring_home(handover),
                Err(why) => Err(format!("{name} is not used, and is left where it is: {why}")),
            };
            match worked {
                Ok(()) => drop(self.patience.remove(&name)),
                Err(_) if self.control.stopping() => {}
                Err(trouble) => self.be_patient(&name, &trouble),
            }
        }
        Ok(())
    }

    fn bring_home(&self, handover: &Handover) -> Result<(), String> {
        let journals = &self.acquirer.journals;
        let mut journal = journals.begin(handover.item, self.clock.now());
        if journal.result.is_none() {
            let outcome = match self.acquirer.acquire(handover, &mut journal) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let why = error.to_string();
                    if !error.is_stop() {
                        journal.trouble = Some(why.clone());
                        let _ = journals.save(&journal);
                    }
                    return Err(sentence(&handover.item, &error, &why));
                }
            };
            tell(handover, &outcome);
            journal.result = Some(HandoverResult { version: 1, item: handover.item, time: self.clock.now(), outcome });
            journals.save(&journal).map_err(|e| e.to_string())?;
        }
        if let (Some(result), false) = (&journal.result, journal.answered) {
            self.spool.answer(result).map_err(|e| e.to_string())?;
            journal.answered = true;
            journals.save(&journal).map_err(|e| e.to_string())?;
        }
        self.spool.clear(handover, &journal.opened).map_err(|e| e.to_string())?;
        journals.remove(&handover.item).map_err(|e| e.to_string())
    }

    /// Each failure doubles the wait; the sentence is said when it is new, and again from time to time.
    fn be_patient(&mut self, name: &str, trouble: &str) {
        let now = Instant::now();
        let known = self.patience.remove(name);
        let failures = known.as_ref().map_or(0, |p| p.failures).saturating_add(1);
        let wait = POLL.saturating_mul(1 << failures.min(10)).min(LONGEST_WAIT);
        let said_at = match known {
            Some(p) if p.said == trouble && now.duration_since(p.said_at) < REMIND => p.said_at,
            _ => {
                tracing::error!(again_in_s = wait.as_secs(), "{trouble}");
                now
            }
        };
        let entry = Patience { failures, until: now + wait, said: trouble.to_owned(), said_at };
        self.patience.insert(name.to_owned(), entry);
    }

    /// A crash between the last two steps leaves a journal whose hand-over is gone.
    fn forget_cleared(&self) {
        for journal in self.acquirer.journals.all() {
            if journal.answered && !self.spool.holds(&journal.item) {
                let _ = self.acquirer.journals.remove(&journal.item);
            }
        }
    }
}

fn sentence(item: &ItemId, error: &AcquireError, why: &str) -> String {
    let vault_at_fault = matches!(
        error,
        AcquireError::Vault(VaultError::Unavailable(_) | VaultError::Refused(_))
            | AcquireError::Layer(LayerError::Vault(VaultError::Unavailable(_) | VaultError::Refused(_)))
    );
    let kept = if vault_at_fault { "its disks stay pinned and in the spool" } else { "it stays in the spool" };
    format!("item {item} waits ({kept}): {why}")
}

fn tell(handover: &Handover, outcome: &Outcome) {
    let (item, instance) = (handover.item, handover.instance.id.as_str());
    let vo = handover.instance.vo.as_ref().map_or("unmapped", |vo| vo.as_str());
    match outcome {
        Outcome::Captured { vault, manifest_sha256 } => {
            tracing::info!(%item, instance, vo, vault, %manifest_sha256, "captured");
        }
        Outcome::Skipped { policy } => tracing::info!(%item, instance, vo, policy, "skipped"),
        Outcome::Missed { reason } => tracing::error!(%item, instance, vo, reason, "missed"),
    }
}

fn pause(control: &Control, length: Duration) {
    let end = Instant::now() + length;
    while !control.stopping() && Instant::now() < end {
        control.beat();
        std::thread::sleep(Duration::from_millis(50).min(length));
    }
}

/// A vault that can be worked with, and its id.
type Fit = (Arc<dyn Vault>, uuid::Uuid);
/// A vault and what it does.
type Tried = (Arc<dyn Vault>, Capabilities);

/// Opens the vault and asks what it does. One that was used before is recognised first: nothing is written to another.
fn open_vault(config: &Config) -> Result<Result<Tried, VaultError>, DaemonError> {
    let (url, s3, remembered) = (config.url()?, config.s3()?, Remembered::new(&config.state));
    let opened = || {
        if let Some(id) = remembered.find(&url.to_string())? {
            // A folder that is gone must not be made again.
            if matches!(&url, Url::Folder(path) if !path.is_dir()) {
                return Err(VaultError::Unavailable(format!(
                    "the vault at {url} is gone but was used before; is its file system mounted?"
                )));
            }
            remembered.check(&*vault::open(&url, &s3, Open::Existing)?, id)?;
        }
        let vault = vault::open(&url, &s3, Open::Create)?;
        let caps = vault.probe()?;
        Ok((vault, caps))
    };
    Ok(opened())
}

/// Opens the vault and tries it out, as often as it takes to get an answer. `None`: told to stop meanwhile.
fn wait_until_fit(config: &Config, clock: &dyn Clock, control: &Control) -> Result<Option<Fit>, DaemonError> {
    let mut wait = POLL;
    while !control.stopping() {
        let opened = match open_vault(config)? {
            Ok((vault, caps)) => {
                judge(&vault.url(), &caps, config.retention.object_lock).map_err(DaemonError::Unfit)?;
                Remembered::new(&config.state).recognise(&*vault, clock.now()).map(|id| (vault, id, caps))
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok((vault, id, caps)) => {
                record_probe(&*vault, &config.state, &caps, clock)?;
                return Ok(Some((vault, id)));
            }
            Err(VaultError::Unavailable(why)) => {
                tracing::error!(again_in_s = wait.as_secs(), "nothing can be kept yet, the spool waits: {why}");
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Status("waiting for the vault")]);
            }
            Err(other) => return Err(other.into()),
        }
        pause(control, wait);
        wait = wait.saturating_mul(2).min(LONGEST_WAIT);
    }
    Ok(None)
}

/// Into custody, when it differs from what this host recorded last: a daemon that restarts all night must not fill the log.
fn record_probe(vault: &dyn Vault, state: &Path, caps: &Capabilities, clock: &dyn Clock) -> Result<(), DaemonError> {
    let text = serde_json::to_string(&(vault.url(), caps)).unwrap_or_default();
    let path = state.join("probe.json");
    if std::fs::read_to_string(&path).is_ok_and(|last| last == text) {
        return Ok(());
    }
    append_probe(vault, caps, Actor::current(), clock)?;
    let saved = std::fs::create_dir_all(state).and_then(|()| crate::files::replace(&path, text.as_bytes()));
    if let Err(error) = saved {
        tracing::warn!(%error, "cannot note the probe's result in the state folder; it will be recorded again");
    }
    Ok(())
}

/// Puts a probe's result into custody.
pub fn append_probe(
    vault: &dyn Vault,
    caps: &Capabilities,
    who: Actor,
    clock: &dyn Clock,
) -> Result<custody::Recorded, custody::CustodyError> {
    let detail = [
        ("store", caps.store.clone()),
        ("create_only", caps.create_only.to_string()),
        ("checksum", caps.checksum.describe()),
        ("object_lock", caps.object_lock.describe()),
        ("detail", caps.detail.clone()),
    ];
    let detail = detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let draft = Draft { what: What::Probed, item: None, who, case: None, reason: None, detail };
    custody::append(vault, &draft, clock.now())
}

fn notify_ready() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Feeds systemd's watchdog as long as the work shows signs of life. Returns at once when there is no watchdog.
pub fn feed_watchdog(control: &Control) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let (mut seen, mut seen_at) = (control.beats(), Instant::now());
    while !control.stopping() {
        std::thread::sleep((interval / 3).min(Duration::from_secs(1)));
        if control.beats() != seen {
            (seen, seen_at) = (control.beats(), Instant::now());
        }
        if seen_at.elapsed() < SILENCE {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}
