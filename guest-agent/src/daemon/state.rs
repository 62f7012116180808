//! What the daemon's threads share. Each piece has one lock and no thread holds two.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tracing::warn;
use vestigo_model::BootId;

use super::{
    berth::{self, Pool},
    evidence::{TrustFileError, TrustFiles},
    folders::Folders,
    live::Live,
    small_talk::SmallTalk,
};
use crate::{
    cgroup::{Cgroups, Group, Limits, Part},
    config::Config,
    lease::{Blocks, Exhausted, Leases, Slot, Snapshot},
    link::Link,
    network::{Networks, Plan},
    protocol::Refusal,
    sandbox::forker::Forker,
    status::{LeaseCounts, PoolStatus, Status},
    suspend::Bans,
};

/// The state, shared.
pub type Shared = Arc<State>;

/// The state.
#[derive(Debug)]
pub struct State {
    /// As read at start.
    pub config: Config,
    /// To the hypervisor.
    pub link: Link,
    /// How the lease range is cut.
    pub blocks: Blocks,
    boot: BootId,
    leases: Mutex<Leases>,
    networks: Networks,
    /// The payloads that live, and the bans.
    pub(super) live: Live,
    /// Folders that payloads write to.
    pub(super) folders: Folders,
    trust: RwLock<Arc<TrustFiles>>,
    /// What may be said of refusals and alarms, so that nobody fills the spool.
    pub(super) small_talk: SmallTalk,
    /// What every sandbox descends from.
    pub forker: Forker,
    /// Sandboxes that wait for their payload.
    pub(super) pool: Pool,
    /// Parent groups of all payloads; `None` where the VM lets nobody make groups.
    cgroups: Option<Cgroups>,
    /// What a payload may use unless its pilot says otherwise.
    usual: Limits,
    resolvers: Mutex<Option<String>>,
}

/// What a daemon is put together from.
#[derive(Debug)]
pub struct Pieces {
    /// The VM's side of the payload networks.
    pub networks: Networks,
    /// To the hypervisor.
    pub link: Link,
    /// What every sandbox descends from.
    pub forker: Forker,
    /// Parent groups of all payloads.
    pub cgroups: Option<Cgroups>,
    /// Whom to believe.
    pub trust: TrustFiles,
    /// What an earlier agent of this boot was told.
    pub bans: Bans,
}

/// Leases as they are kept between two lives of the agent.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    boot: BootId,
    leases: Snapshot,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Time since boot, suspend included: what leases rest by.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

impl State {
    /// Puts the pieces together and takes over the leases of an earlier agent of this boot.
    ///
    /// # Errors
    /// The lease file is there and cannot be read.
    pub fn new(config: Config, boot: BootId, pieces: Pieces) -> io::Result<Self> {
        let blocks = config.blocks().ok_or_else(|| io::Error::other("no port block"))?;
        let mut leases = Leases::new(blocks, Duration::from_secs(config.rest.into()));
        match fs::read(config.state_dir.join("leases.json")) {
            Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes) {
                Ok(kept) if kept.boot == boot => leases.restore(&kept.leases, since_boot()),
                Ok(_) => {}
                Err(error) => warn!(%error, "the lease file is not understood and ignored"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let usual = config.limits(pieces.cgroups.as_ref());
        Ok(Self {
            config,
            link: pieces.link,
            blocks,
            boot,
            leases: Mutex::new(leases),
            networks: pieces.networks,
            live: Live::new(pieces.bans),
            folders: Folders::default(),
            trust: RwLock::new(Arc::new(pieces.trust)),
            small_talk: SmallTalk::default(),
            forker: pieces.forker,
            pool: Pool::default(),
            cgroups: pieces.cgroups,
            usual,
            resolvers: Mutex::default(),
        })
    }

    fn keep(&self, leases: &Leases) -> io::Result<()> {
        let kept = Kept { boot: self.boot, leases: leases.snapshot() };
        let fresh: PathBuf = self.config.state_dir.join("leases.new");
        fs::write(&fresh, serde_json::to_vec(&kept)?)?;
        fs::rename(&fresh, self.config.state_dir.join("leases.json"))
    }

    /// Gives out a block; it is on disk as held before anybody uses it.
    ///
    /// # Errors
    /// None is free, or the file cannot be written.
    pub fn allocate(&self) -> Result<Slot, LeaseError> {
        let mut leases = lock(&self.leases);
        let slot = leases.allocate(since_boot())?;
        if let Err(error) = self.keep(&leases) {
            leases.release(slot, since_boot(), false);
            return Err(error.into());
        }
        Ok(slot)
    }

    /// Takes it back.
    pub fn release(&self, slot: Slot, used: bool) {
        let mut leases = lock(&self.leases);
        leases.release(slot, since_boot(), used);
        if let Err(error) = self.keep(&leases) {
            warn!(%error, "the lease file could not be written; a restart would let this block rest anew");
        }
    }

    /// Whom to believe, as read last.
    #[must_use]
    pub fn trust(&self) -> Arc<TrustFiles> {
        Arc::clone(&self.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the trust files again; when one is bad, those read before stay.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn reload_trust(&self) -> Result<(), TrustFileError> {
        let fresh = TrustFiles::read(&self.config)?;
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(())
    }

    /// Text of the payloads' `/etc/resolv.conf`; the file for it is up to date then.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn resolvers(&self) -> Result<String, Refusal> {
        let text = self.networks.resolv_conf().map_err(|e| Refusal::system(e.to_string()))?;
        let mut written = lock(&self.resolvers);
        if written.as_ref() != Some(&text) {
            let (path, fresh) = (self.resolvers_path(), self.config.state_dir.join("resolv.new"));
            // A new file, not new content: running payloads keep theirs.
            fs::write(&fresh, &text)
                .and_then(|()| fs::rename(&fresh, &path))
                .map_err(|e| Refusal::system(format!("{} cannot be written: {e}", path.display())))?;
            *written = Some(text.clone());
        }
        Ok(text)
    }

    /// Where it is.
    #[must_use]
    pub fn resolvers_path(&self) -> PathBuf {
        self.config.state_dir.join("resolv.conf")
    }

    /// A payload's group, with the usual limits.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn group(&self, name: &str) -> Result<Option<Group>, Refusal> {
        let create = |cgroups: &Cgroups| cgroups.create(name, &self.usual);
        self.cgroups.as_ref().map(create).transpose().map_err(|e| Refusal::system(format!("no cgroup: {e}")))
    }

    /// What a payload may use. What its pilot asks for must be possible here; of the usual limits, what is not was left
    /// out at start.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn limits(&self, asked: Limits) -> Result<Limits, Refusal> {
        let missing = match &self.cgroups {
            Some(cgroups) => cgroups.missing(&asked),
            None => Part::LIMITS.into_iter().filter(|part| asked.has(*part)).collect(),
        };
        match missing.first() {
            None => Ok(asked.or(self.usual)),
            Some(part) => Err(Refusal::system(format!(
                "this VM has no cgroup controller for the limit on {part}; leave the option out, or boot the VM with it"
            ))),
        }
    }

    /// The VM's side of the payload networks.
    pub const fn networks(&self) -> &Networks {
        &self.networks
    }

    /// What follows from a slot.
    #[must_use]
    pub fn plan(&self, slot: Slot) -> Plan {
        Plan::new(self.config.inner_network.base, slot, self.blocks.ports(slot))
    }

    /// Leases that a payload could be given now, besides those of prepared sandboxes.
    #[must_use]
    pub fn free_leases(&self) -> usize {
        let leases = lock(&self.leases);
        let (held, resting) = leases.counts(since_boot());
        leases.all() - held - resting
    }

    /// At the end: threads that wait for nothing more keep the parents, so they would stay empty behind us.
    pub(super) fn remove_cgroups(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove_parents();
        }
    }

    /// The answer for somebody of this uid: others' users are nobody's business but root's.
    #[must_use]
    pub fn status(&self, asker: u32) -> Status {
        let leases = lock(&self.leases);
        let (held, resting) = leases.counts(since_boot());
        let all = leases.all();
        drop(leases);
        let (ready, waiting) = self.pool.counts();
        let payloads = self.live.of(asker);
        Status {
            version: 2,
            agent: env!("CARGO_PKG_VERSION").into(),
            fail_mode: self.config.fail_mode.as_str().into(),
            link: self.link.status(),
            // A lease that waits with a prepared sandbox is free to whoever asks.
            leases: LeaseCounts { in_use: held.saturating_sub(waiting), resting, all },
            pool: PoolStatus { ready, wanted: berth::wanted(self) },
            no_ipv6: self.networks.no_ipv6().map(ToOwned::to_owned),
            payloads,
        }
    }
}

/// No block for a payload.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// All are taken.
    #[error("{0}; wait, run fewer payloads at once, or set a smaller `block` in the agent's configuration")]
    Exhausted(#[from] Exhausted),
    /// The lease file.
    #[error("the lease file cannot be written: {0}; make room in the state folder")]
    File(#[from] io::Error),
}
