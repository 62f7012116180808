//! The daemon's heart: one task that owns the VMs, the lease book and what is written of them.
//!
//! ```text
//!  machines thread ─ MachineEvent ─┐                         ┌─► recorder thread (ledger)
//!  link tasks ────── LinkEvent ────┼─► Service (this task) ──┤
//!  tap threads ───── Tapped ───────┤                         └─► link tasks, tap threads (opened and ended here)
//!  interfaces ────── LinkNews ─────┘
//! ```
//! Which of the ready inputs comes next is drawn by lot, and each gives a little at a time: none keeps another waiting, and inside
//! of an input each VM has its turn.
//! Whatever ends first ends the daemon; state that must outlive it is in the ledger and in the pin folders.

mod claims;
mod facts;
mod flows;
mod report;
mod telling;
mod witnessed;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};
use vestigo_model::{
    Clock, Coverage, DomainUuid, EventKind, Exit, Fact, HostId, InstanceEnd, Label, LinkPosition, Payload, PayloadEnd,
    StopReason, SystemClock, TapName, Timestamp, Vo, link::Hello,
};

use crate::{
    attribute::{AgentState, LeaseBook},
    bans::BanSet,
    capture::{Capture, TapQueues, links::LinkNews},
    domain::{Inspection, VoMap},
    guestlink::{self, LinkEvent, LinkOptions, MAX_BOOTS},
    ledger_upkeep::Upkeep,
    machines::MachineEvent,
    meter::MeterOptions,
    nat::Nat,
    recorder::{Recorder, told},
    status::Ask,
    tally::Shares,
    tasks::TaskBook,
    vm::{Vm, Watching},
};

/// Events of links waiting for the service. Few: links that wait for room get it in the order in which they asked, so that a
/// guest that says much waits behind every other one.
const QUEUE: usize = 64;

/// How long the last records of a VM may take to find room.
const LAST_FLOWS: Duration = Duration::from_secs(10);

/// How long it is remembered when an interface came up: libvirt tells of a VM well before.
const NEW: Duration = Duration::from_secs(600);

/// How often the taps are asked for their numbers.
const POLL: Duration = Duration::from_secs(1);
/// How often translations are looked for that no flow record tells.
const NAT: Duration = Duration::from_secs(10);

/// How often systemd's watchdog is told that this very task is alive.
const WATCHDOG: Duration = Duration::from_secs(10);

/// What the service needs to know.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// This hypervisor.
    pub host: HostId,
    /// Opens taps.
    pub capture: Capture,
    /// Timeouts and bounds of metering.
    pub meter: MeterOptions,
    /// Length of a coverage statement.
    pub coverage: Duration,
    /// Silence after which an agent counts as silent.
    pub agent_silent: Duration,
    /// The bans of the host; a new set takes effect at once.
    pub bans: watch::Receiver<Arc<BanSet>>,
    /// The table of VOs, for the numbers of scitags.org.
    pub vos: watch::Receiver<VoMap>,
    /// The host's own address translation.
    pub nat: Nat,
    /// The ledger's upkeep.
    pub upkeep: Upkeep,
}

/// The service.
pub struct Service {
    options: ServiceOptions,
    recorder: Recorder,
    vms: HashMap<DomainUuid, Vm>,
    /// Intervals that an earlier life left open, until it is known whether they go on.
    unconfirmed: HashMap<DomainUuid, vestigo_model::Instance>,
    book: LeaseBook,
    /// How the flows of each VO were attributed; `None` is *unmapped*.
    vos: HashMap<Option<Vo>, Shares>,
    /// Since when this life of hostd counts.
    begun: Timestamp,
    tasks: TaskBook,
    positions: Vec<LinkPosition>,
    links: mpsc::Sender<LinkEvent>,
    watching: Watching,
    /// Interfaces that came up of late, and when.
    appeared: HashMap<TapName, (u32, Timestamp)>,
    recheck: mpsc::Sender<DomainUuid>,
    /// Records wait for room in the ledger's queue.
    starved: bool,
}

/// What the service cannot do without, and has ended; its thread has said why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Nothing can be recorded any more.
    #[error("the ledger's thread has ended")]
    Ledger,
    /// Nothing is heard of VMs any more.
    #[error("the thread that follows libvirt has ended")]
    Machines,
}

/// What others tell the service, and whom it asks.
pub struct Feeds {
    /// News of VMs.
    pub machines: mpsc::Receiver<MachineEvent>,
    /// VMs of which news are wanted at once.
    pub recheck: mpsc::Sender<DomainUuid>,
    /// News of interfaces.
    pub interfaces: mpsc::Receiver<LinkNews>,
    /// Who wants to see the numbers.
    pub asks: mpsc::Receiver<Ask>,
}

/// The queues that the service reads.
pub struct Inputs {
    links: mpsc::Receiver<LinkEvent>,
    machines: mpsc::Receiver<MachineEvent>,
    interfaces: mpsc::Receiver<LinkNews>,
    asks: mpsc::Receiver<Ask>,
}

impl Service {
    /// A service that goes on where an earlier life ended.
    #[must_use]
    pub fn new(
        options: ServiceOptions,
        recorder: Recorder,
        recovered: vestigo_ledger::Recovered,
        feeds: Feeds,
    ) -> (Self, Inputs) {
        let (links, link_events) = mpsc::channel(QUEUE);
        let queues = Arc::new(TapQueues::default());
        let watching = Watching { capture: options.capture.clone(), meter: options.meter, queues };
        let mut book = LeaseBook::new();
        for payload in recovered.payloads {
            book.enter(payload);
        }
        let unconfirmed = recovered.instances.into_iter().map(|instance| (instance.domain, instance)).collect();
        let (positions, tasks) = (recovered.links, TaskBook::restored(recovered.tasks));
        let service = Self {
            options,
            recorder,
            vms: HashMap::new(),
            unconfirmed,
            book,
            vos: HashMap::new(),
            begun: SystemClock.now(),
            tasks,
            positions,
            links,
            watching,
            appeared: HashMap::new(),
            recheck: feeds.recheck,
            starved: false,
        };
        let Feeds { machines, interfaces, asks, .. } = feeds;
        (service, Inputs { links: link_events, machines, interfaces, asks })
    }

    /// Runs until told to stop, or until something has ended that it cannot do without. Then ends every capture and writes what is left.
    ///
    /// # Errors
    /// [`Ended`]: nobody told it to stop.
    pub async fn run(mut self, mut inputs: Inputs, mut stop: oneshot::Receiver<()>) -> Result<(), Ended> {
        let mut coverage = tokio::time::interval(self.options.coverage);
        coverage.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut alive = tokio::time::interval(WATCHDOG);
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut nat = tokio::time::interval(NAT);
        nat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut bans = self.options.bans.clone();
        let (queues, recorder) = (Arc::clone(&self.watching.queues), self.recorder.clone());
        let outcome = loop {
            tokio::select! {
                _ = &mut stop => break Ok(()),
                () = recorder.ended() => break Err(Ended::Ledger),
                _ = alive.tick() => {
                    // Without systemd there is nobody to tell.
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                }
                Some(event) = inputs.links.recv() => self.link(event).await,
                event = inputs.machines.recv() => match event {
                    Some(event) => self.machine(event).await,
                    None => break Err(Ended::Machines),
                },
                Ok(()) = bans.changed() => self.spread_bans(),
                Some(news) = inputs.interfaces.recv() => self.interface(news),
                () = queues.woken(), if !self.starved => self.flows().await,
                () = recorder.has_room(), if self.starved => self.flows().await,
                _ = coverage.tick() => self.coverage().await,
                _ = poll.tick() => self.vms.values_mut().for_each(|vm| vm.taps.poll()),
                Some(ask) = inputs.asks.recv() => ask.answer(|| self.status()),
                _ = nat.tick() => self.tell_translations().await,
            }
        };
        self.stop().await;
        outcome
    }

    async fn stop(mut self) {
        let now = SystemClock.now();
        self.vms.values().for_each(|vm| vm.taps.end());
        let deadline = Instant::now() + LAST_FLOWS;
        for domain in self.vms.keys().copied().collect::<Vec<_>>() {
            self.close(domain, now, deadline).await;
        }
        self.tell_translations().await;
        for coverage in self.options.nat.coverage(SystemClock.now()) {
            self.recorder.submit(Fact::Coverage(coverage), None, None).await;
        }
        self.event(None, EventKind::HostStopped, []).await;
        self.recorder.stop();
    }

    /// Writes the translations that no flow record tells.
    async fn tell_translations(&self) {
        for event in self.options.nat.due(SystemClock.now()) {
            self.recorder.submit(Fact::Event(event), None, None).await;
        }
    }

    fn agent(&self, domain: DomainUuid) -> AgentState {
        let now = SystemClock.now();
        self.vms.get(&domain).map_or(AgentState::Absent, |vm| vm.agent(now, self.options.agent_silent))
    }

    async fn coverage(&mut self) {
        let now = SystemClock.now();
        let silent = self.options.agent_silent;
        let mut statements: Vec<Coverage> = self.vms.values_mut().flat_map(|vm| vm.coverage(now, silent)).collect();
        statements.extend(self.options.nat.coverage(now));
        for coverage in statements {
            self.recorder.submit(Fact::Coverage(coverage), None, None).await;
        }
        for domain in self.vms.keys().copied().collect::<Vec<_>>() {
            self.tell_waiting(domain, false).await;
        }
        self.write_learnt().await;
        self.spread_bans();
        self.book.prune(now);
        self.tasks.prune(now);
        self.appeared.retain(|_, (_, time)| now.since(*time) < NEW);
    }

    async fn machine(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::Up { inspection, began } => self.up(*inspection, began).await,
            MachineEvent::Channel(domain, Ok(path)) => self.open_link(domain, path),
            MachineEvent::Channel(domain, Err(why)) => self.no_channel(domain, why).await,
            MachineEvent::Rebooted(domain, time) => {
                if let Some(vm) = self.vms.get_mut(&domain) {
                    vm.boot = None;
                }
                self.payloads_lost(domain, time).await;
                self.book.forget_own(domain);
            }
            MachineEvent::Down(domain, why, time) => self.down(domain, why, time).await,
            MachineEvent::Unseen(domain, why, _) => {
                let why = format!("the VM ended before it could be looked at: {why}");
                self.event(Some(domain), EventKind::DiskMissed, [("reason", why)]).await;
            }
            MachineEvent::Running(running) => self.running(&running).await,
            MachineEvent::Disk(outcome, done) => {
                tracing::info!(?outcome, "disk");
                let fact = facts::of_disk(&self.options.host, outcome, SystemClock.now());
                self.recorder.submit(fact, None, Some(told(done, ()))).await;
            }
        }
    }

    async fn up(&mut self, inspection: Inspection, began: Option<Timestamp>) {
        let domain = inspection.instance.domain;
        let mut seen = inspection.instance;
        let anew = |began: Timestamp| self.vms.get(&domain).is_some_and(|vm| !vm.is_start_of(inspection.run, began));
        if began.is_some_and(anew) {
            // Its end was not told (events were dropped): the old interval ended some time before this start. A VM first
            // seen *after* it began is the same run: libvirt tells of its devices before it tells of its start.
            self.down(domain, StopReason::Unobserved, seen.start).await;
        }
        let known = self.unconfirmed.remove(&domain).filter(|_| began.is_none());
        let now = SystemClock.now();
        // Of a VM whose beginning was seen nothing was captured yet; what was before hostd began is said elsewhere.
        let since = if self.vms.contains_key(&domain) { now } else { began.map_or(now, |began| began.min(now)) };
        let written = match self.vms.get_mut(&domain) {
            Some(vm) => {
                Vm::keep_learnt(&mut seen, &vm.instance);
                let differs = vm.differs(&seen);
                seen.start = vm.instance.start;
                vm.instance = seen;
                !differs
            }
            None => {
                seen.start = known.as_ref().map_or(seen.start, |known| known.start);
                if let Some(known) = &known {
                    Vm::keep_learnt(&mut seen, known);
                }
                tracing::info!(%domain, name = %seen.name, vo = seen.vo.as_ref().map_or("unmapped", |vo| vo.as_str()), "VM runs");
                self.vms.insert(domain, Vm::new(seen, now));
                for (target, why) in inspection.unpinnable {
                    self.event(Some(domain), EventKind::DiskMissed, [("disk", target), ("reason", why)]).await;
                }
                false
            }
        };
        if let Some(vm) = self.vms.get_mut(&domain) {
            vm.run = inspection.run;
        }
        self.watch_taps(domain, since).await;
        let Some(vm) = self.vms.get(&domain) else { return };
        let instance = vm.instance.clone();
        self.spread_bans();
        if !written {
            self.recorder.submit(Fact::Instance(instance), None, None).await;
        }
    }

    fn open_link(&mut self, domain: DomainUuid, path: PathBuf) {
        let Some(vm) = self.vms.get(&domain) else { return };
        if vm.channel.as_ref().is_some_and(|(open, _)| *open == path) {
            return;
        }
        let known = self.positions.iter().filter(|position| position.domain == domain).cloned().collect();
        let bans = self.bans_of(domain);
        let link = guestlink::open(domain, path.clone(), known, LinkOptions::default(), bans, self.links.clone());
        if let Some(vm) = self.vms.get_mut(&domain) {
            vm.channel = Some((path, link));
        }
    }

    async fn no_channel(&mut self, domain: DomainUuid, why: String) {
        let Some(vm) = self.vms.get_mut(&domain) else { return };
        if vm.complained_of_channel(&why) {
            return;
        }
        tracing::warn!(%domain, why, "no agent channel: flows of this VM are known to the VM only");
        self.event(Some(domain), EventKind::ChannelFault, [("reason", why)]).await;
    }

    async fn running(&mut self, running: &[DomainUuid]) {
        let now = SystemClock.now();
        for domain in self.vms.keys().copied().filter(|domain| !running.contains(domain)).collect::<Vec<_>>() {
            self.down(domain, StopReason::Unobserved, now).await;
        }
        let gone: Vec<_> = self.unconfirmed.keys().copied().filter(|domain| !running.contains(domain)).collect();
        for domain in gone {
            if let Some(instance) = self.unconfirmed.remove(&domain) {
                self.ended(instance, StopReason::Unobserved, now).await;
            }
        }
    }

    async fn down(&mut self, domain: DomainUuid, why: StopReason, time: Timestamp) {
        self.close(domain, SystemClock.now(), Instant::now() + LAST_FLOWS).await;
        if let Some(mut vm) = self.vms.remove(&domain) {
            vm.note_learnt();
            tracing::info!(%domain, name = %vm.instance.name, ?why, "VM ended");
            self.ended(vm.instance, why, time).await;
        }
    }

    /// Ends the VM's captures and its link, with their last records and statements of coverage.
    async fn close(&mut self, domain: DomainUuid, now: Timestamp, deadline: Instant) {
        let Some(vm) = self.vms.get(&domain) else { return };
        vm.taps.end();
        self.last_flows(domain, deadline).await;
        self.tell_waiting(domain, true).await;
        let Some(vm) = self.vms.get_mut(&domain) else { return };
        let silent = self.options.agent_silent;
        let statements = tokio::task::block_in_place(|| vm.close(now, silent));
        for coverage in statements {
            self.recorder.submit(Fact::Coverage(coverage), None, None).await;
        }
    }

    async fn ended(&mut self, mut instance: vestigo_model::Instance, why: StopReason, time: Timestamp) {
        self.payloads_lost(instance.domain, time).await;
        self.book.forget_own(instance.domain);
        self.tasks.vm_ended(instance.domain);
        self.positions.retain(|position| position.domain != instance.domain);
        instance.end = Some(InstanceEnd { time, why });
        self.recorder.submit(Fact::Instance(instance), None, None).await;
    }

    /// Ends every live payload of the VM: its kernel is gone, so they are.
    async fn payloads_lost(&mut self, domain: DomainUuid, time: Timestamp) {
        let live: Vec<Payload> = self.book.live_of(domain).cloned().collect();
        for mut payload in live {
            payload.end = Some(PayloadEnd { received: time, claimed: time, exit: Exit::Lost, silent: false });
            self.enter(payload.clone());
            self.recorder.submit(Fact::Payload(payload), None, None).await;
        }
    }

    /// Enters a payload into the lease book, and counts what had to go for it.
    fn enter(&mut self, payload: Payload) {
        let domain = payload.domain;
        let forgotten = self.book.enter(payload);
        if let Some(vm) = self.vms.get_mut(&domain) {
            vm.tally.forgotten += u64::try_from(forgotten).unwrap_or(u64::MAX);
        }
    }

    async fn link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Claim { domain, position, time, claim, done } => {
                self.claim(domain, position, time, claim, done).await
            }
            LinkEvent::Met(domain, hello) => self.met(domain, hello).await,
            LinkEvent::Heard(domain, _) => {
                if let Some(vm) = self.vms.get_mut(&domain) {
                    vm.heard(SystemClock.now());
                }
            }
            LinkEvent::BansSent(domain, list) => self.bans_sent(domain, list).await,
            LinkEvent::Fault(domain, count, text) => {
                // A parser's words quote the guest's, as long as a whole line.
                let text = Label::cut(&text).to_string();
                tracing::warn!(%domain, count, text, "a guest broke the link's protocol");
                if let Some(vm) = self.vms.get_mut(&domain) {
                    vm.tally.link_faults += count;
                }
                self.event(Some(domain), EventKind::LinkFault, [("fault", text), ("count", count.to_string())]).await;
            }
        }
    }

    async fn met(&mut self, domain: DomainUuid, hello: Hello) {
        let now = SystemClock.now();
        let Some(vm) = self.vms.get_mut(&domain) else { return };
        vm.heard(now);
        let before = vm.boot.replace(hello.boot);
        if before == Some(hello.boot) {
            return;
        }
        // Payloads of an earlier boot died with it. After a restart of hostd the recorded positions tell which boot that was.
        let same_boot = before.is_none() && self.positions.iter().any(|p| p.domain == domain && p.boot == hello.boot);
        if !same_boot {
            self.payloads_lost(domain, now).await;
        }
        tracing::info!(%domain, agent = %hello.agent, boot = %hello.boot, "agent");
        let detail = [
            ("agent", hello.agent.to_string()),
            ("boot", hello.boot.to_string()),
            ("guest-time", hello.time.to_string()),
        ];
        self.guest_event(domain, EventKind::AgentHello, detail).await;
    }

    async fn contradictions(&mut self, payload: &Payload) {
        let vo = self.vms.get(&payload.domain).and_then(|vm| vm.instance.vo.as_ref());
        let mut found = Vec::new();
        let is_payload = payload.claim.holder.is_payload();
        if let Some(vo) = vo.filter(|vo| is_payload && **vo != payload.claim.vo) {
            found.push(format!("the payload claims VO {}, the tenant's is {vo}", payload.claim.vo));
        }
        if self.book.moves_own_ports(payload) {
            let ports: Vec<String> = payload.claim.leases.iter().map(ToString::to_string).collect();
            let (part, ports) = (payload.claim.holder.as_str(), ports.join(", "));
            found.push(format!("the VM's own {part} part has other ports than before, without a reboot: now {ports}"));
        }
        if let Some(other) = self.book.contested(payload) {
            found.push(format!("its lease overlaps that of payload {other}"));
        }
        found.extend(payload.claim.task.as_ref().and_then(|task| self.tasks.contradiction(task)));
        if let Some(vm) = self.vms.get_mut(&payload.domain) {
            vm.tally.contradicted += u64::try_from(found.len()).unwrap_or(u64::MAX);
        }
        for what in found {
            let detail = [("payload", payload.claim.uid.to_string()), ("what", what.clone())];
            if self.guest_event(payload.domain, EventKind::Contradiction, detail).await {
                tracing::warn!(domain = %payload.domain, payload = %payload.claim.uid, what, "contradiction");
            }
        }
    }

    /// An event that a guest can cause as often as it likes: kept up to the rate of its statements, and counted beyond. Whether
    /// it was kept.
    async fn guest_event(
        &mut self,
        domain: DomainUuid,
        what: EventKind,
        detail: impl IntoIterator<Item = (&'static str, String)>,
    ) -> bool {
        let kept = self.vms.get_mut(&domain).is_none_or(|vm| vm.limits.statements.take(Instant::now()));
        if kept {
            self.event(Some(domain), what, detail).await;
        }
        kept
    }

    async fn event(
        &self,
        domain: Option<DomainUuid>,
        what: EventKind,
        detail: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        let fact = facts::event(&self.options.host, domain, SystemClock.now(), what, detail);
        self.recorder.submit(fact, None, None).await;
    }
}

#[cfg(test)]
mod tests;
