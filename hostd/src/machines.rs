//! The thread that follows the VMs: asks libvirt, keeps the pins, and tells the service what changed.
//!
//! libvirt's calls and the pins' file operations block, so they have a thread of their own; an answer that takes long
//! delays neither an acknowledgement to a guest nor a packet.

use std::{
    path::PathBuf,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
};
use vestigo_model::{Clock, DomainUuid, HostId, ItemId, StopReason, SystemClock, Timestamp};

use crate::{
    domain::{Change, DomainError, Hypervisor, Inspection, Site, VoMap},
    pin::{Outcome, PinKeeper},
    recorder::chain,
};

/// How often deletions are looked for when nothing else happens.
const PACE: Duration = Duration::from_millis(100);

/// What the service is told.
#[derive(Debug)]
pub enum MachineEvent {
    /// The VM runs. Comes again when its devices or metadata may have changed.
    Up {
        /// What was seen.
        inspection: Box<Inspection>,
        /// When it began, if that was seen.
        began: Option<Timestamp>,
    },
    /// The VM's agent channel can be opened, or why there is none.
    Channel(DomainUuid, Result<PathBuf, String>),
    /// The guest's kernel started anew: whatever ran in it is gone.
    Rebooted(DomainUuid, Timestamp),
    /// The VM does not run any more.
    Down(DomainUuid, StopReason, Timestamp),
    /// It was there too short a time to be looked at.
    Unseen(DomainUuid, String, Timestamp),
    /// Everything that runs: what the service knows and this does not name has ended unseen.
    Running(Vec<DomainUuid>),
    /// News of a disk; the sender is told when it is durable.
    Disk(Outcome, oneshot::Sender<()>),
}

/// What the thread needs to know.
pub struct MachineOptions {
    /// This host.
    pub host: HostId,
    /// The table of VOs; a new one takes effect at once for every running VM.
    pub vos: watch::Receiver<VoMap>,
    /// Folder of the channels' sockets.
    pub channels: PathBuf,
    /// Whether to plug channels in.
    pub plug_channel: bool,
    /// Time between two full comparisons.
    pub resync: Duration,
}

/// Starts the thread. It ends when nobody listens to its events any more.
///
/// # Errors
/// No thread can be had.
pub fn follow(
    (hypervisor, changes): (Hypervisor, mpsc::Receiver<Change>),
    (keeper, found): (PinKeeper, Vec<Outcome>),
    options: MachineOptions,
    (events, rechecks): (mpsc::Sender<MachineEvent>, mpsc::Receiver<DomainUuid>),
) -> std::io::Result<JoinHandle<()>> {
    // A runtime of its own, for waiting with a limit: the daemon's may be gone while this thread still runs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (resynced, unacknowledged) = (Instant::now(), Vec::new());
    let site = Site { host: options.host.clone(), vos: options.vos.borrow().clone() };
    let machines = Machines { hypervisor, keeper, site, options, events, unacknowledged, resynced, connected: true };
    std::thread::Builder::new()
        .name("machines".into())
        .spawn(move || machines.run((changes, rechecks), found, &runtime))
}

/// Nobody listens any more.
struct Stopped;

/// Why the thread wakes.
enum Wake {
    Change(Change),
    /// The service wants fresh news of a VM.
    Recheck(DomainUuid),
    Pace,
    /// libvirt's side has ended.
    Closed,
}

struct Machines {
    hypervisor: Hypervisor,
    keeper: PinKeeper,
    site: Site,
    options: MachineOptions,
    events: mpsc::Sender<MachineEvent>,
    /// Quarantine's answers that are on their way into the ledger.
    unacknowledged: Vec<(ItemId, oneshot::Receiver<()>)>,
    resynced: Instant,
    connected: bool,
}

impl Machines {
    fn run(
        mut self,
        (mut changes, mut rechecks): (mpsc::Receiver<Change>, mpsc::Receiver<DomainUuid>),
        found: Vec<Outcome>,
        runtime: &Runtime,
    ) {
        if self.disks(found).is_err() {
            return;
        }
        loop {
            let wake = runtime.block_on(async {
                tokio::select! {
                    change = changes.recv() => change.map_or(Wake::Closed, Wake::Change),
                    Some(domain) = rechecks.recv() => Wake::Recheck(domain),
                    () = tokio::time::sleep(PACE) => Wake::Pace,
                }
            });
            let outcome = match wake {
                Wake::Change(change) => self.change(change),
                Wake::Recheck(domain) => self.up(domain, None),
                Wake::Pace => Ok(()),
                Wake::Closed => return,
            };
            if outcome.and_then(|()| self.idle()).is_err() {
                return;
            }
        }
    }

    fn idle(&mut self) -> Result<(), Stopped> {
        let due = self.resynced.elapsed() >= self.options.resync || self.options.vos.has_changed().unwrap_or(false);
        if self.connected && due {
            self.resync()?;
        }
        let now = SystemClock.now();
        let heard = self.keeper.readable(now);
        self.disks(heard)?;
        let due = self.keeper.tick(now);
        self.disks(due)?;
        self.acknowledge();
        Ok(())
    }

    fn disks(&mut self, outcomes: Vec<Outcome>) -> Result<(), Stopped> {
        for outcome in outcomes {
            let (done, durable) = oneshot::channel();
            if let Some(item) = outcome.item_answered() {
                self.unacknowledged.push((item, durable));
            }
            self.tell(MachineEvent::Disk(outcome, done))?;
        }
        Ok(())
    }

    /// Lets go of the answers that are durable. One that could not be kept comes again with the next start.
    fn acknowledge(&mut self) {
        let keeper = &mut self.keeper;
        self.unacknowledged.retain_mut(|(item, durable)| match durable.try_recv() {
            Ok(()) => {
                keeper.acknowledge(*item);
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
    }

    fn change(&mut self, change: Change) -> Result<(), Stopped> {
        tracing::debug!(?change, "libvirt");
        match change {
            Change::Started { domain, time } => self.up(domain, Some(time)),
            Change::Changed { domain, .. } => self.up(domain, None),
            Change::Rebooted { domain, time } => self.tell(MachineEvent::Rebooted(domain, time)),
            Change::Stopped { domain, why, time } => {
                let outcomes = self.keeper.stopped(domain, time, why);
                self.tell(MachineEvent::Down(domain, why, time))?;
                self.disks(outcomes)
            }
            Change::Undefined { .. } => Ok(()),
            Change::Resync => {
                self.connected = true;
                self.resync()
            }
            Change::Disconnected => {
                self.connected = false;
                tracing::warn!("libvirt does not answer; running VMs go on being metered");
                Ok(())
            }
        }
    }

    fn resync(&mut self) -> Result<(), Stopped> {
        self.resynced = Instant::now();
        self.site.vos.clone_from(&self.options.vos.borrow_and_update());
        let running = match self.hypervisor.list_running() {
            Ok(running) => running,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "libvirt gives no list of VMs");
                return Ok(());
            }
        };
        self.tell(MachineEvent::Running(running.clone()))?;
        running.iter().try_for_each(|domain| self.up(*domain, None))?;
        let outcomes = self.keeper.resync(&running, SystemClock.now());
        self.disks(outcomes)
    }

    fn up(&mut self, domain: DomainUuid, began: Option<Timestamp>) -> Result<(), Stopped> {
        let mut inspection = match self.hypervisor.inspect(domain, &self.site) {
            Ok(inspection) if inspection.running => inspection,
            Ok(_) => return Ok(()),
            Err(error) if began.is_some() => {
                return self.tell(MachineEvent::Unseen(domain, chain(&error), SystemClock.now()));
            }
            Err(error) => {
                tracing::warn!(%domain, error = %chain(&error), "a VM cannot be looked at");
                return Ok(());
            }
        };
        if let Some(began) = began {
            inspection.instance.start = began;
        }
        let outcomes = self.keeper.started(&inspection, SystemClock.now());
        self.disks(outcomes)?;
        let socket = inspection.agent_socket.clone();
        self.tell(MachineEvent::Up { inspection: Box::new(inspection), began })?;
        let channel = match socket {
            Some(path) => Ok(path),
            None if self.options.plug_channel => self.plug(domain),
            None => Err("the VM has no agent channel, and libvirt.plug_channel is false".into()),
        };
        self.tell(MachineEvent::Channel(domain, channel))
    }

    fn plug(&mut self, domain: DomainUuid) -> Result<PathBuf, String> {
        match self.hypervisor.ensure_channel(domain, &self.options.channels) {
            Ok(path) => Ok(path),
            Err(DomainError::Gone(_) | DomainError::NotRunning(_)) => Err("the VM has ended".into()),
            Err(error) => Err(chain(&error)),
        }
    }

    fn tell(&self, event: MachineEvent) -> Result<(), Stopped> {
        self.events.blocking_send(event).map_err(|_| Stopped)
    }
}
