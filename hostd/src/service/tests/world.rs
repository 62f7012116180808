//! A service with a real ledger, and agents that speak to it through real sockets.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};
use uuid::Uuid;
use vestigo_ledger::{Facts, Ledger, WriterOptions};
use vestigo_model::{
    link::{self, Claim, GuestFrame, HostFrame, PROTOCOL, Record},
    *,
};

use super::super::*;
use crate::{
    capture::{Backend, Observed, TapSender, budget::RingOptions},
    meter::Metered,
};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn text(text: &str) -> Label {
    Label::new(text).unwrap()
}

pub fn vm(n: u128) -> DomainUuid {
    DomainUuid(Uuid::from_u128(n))
}

pub fn run(n: u128) -> PayloadUid {
    PayloadUid(Uuid::from_u128(n))
}

pub fn claim(uid: u128, first: u16) -> PayloadClaim {
    PayloadClaim {
        uid: run(uid),
        holder: Holder::Payload,
        pilot: PilotId::new("p").unwrap(),
        payload: PayloadId::new("t").unwrap(),
        user: User { issuer: text("https://iam.example"), subject: text("alice") },
        vo: Vo::new("atlas").unwrap(),
        trust: Trust::AssertedByVo,
        task: None,
        token: None,
        access: None,
        executable: None,
        interpreter: None,
        command: vec!["./a".to_owned()],
        leases: vec![Lease::Ports(PortBlock { first, last: first + 1023 })],
        isolation: BTreeMap::new(),
    }
}

pub fn own(uid: u128, holder: Holder, first: u16) -> Claim {
    Claim::PayloadStart(PayloadClaim { holder, vo: Vo::new("none").unwrap(), command: vec![], ..claim(uid, first) })
}

pub struct Host {
    machines: mpsc::Sender<MachineEvent>,
    pub taps: Arc<TapQueues>,
    /// What the threads of the VMs' taps would hold.
    senders: std::sync::Mutex<BTreeMap<u128, TapSender>>,
    pub interfaces: mpsc::Sender<LinkNews>,
    /// The VMs that the service wants to hear of.
    pub rechecks: mpsc::Receiver<DomainUuid>,
    pub bans: watch::Sender<Arc<BanSet>>,
    pub vos: watch::Sender<VoMap>,
    pub asks: mpsc::Sender<Ask>,
    pub nat: crate::nat::Nat,
    stop: oneshot::Sender<()>,
    service: JoinHandle<Result<(), Ended>>,
    recorder: Recorder,
    ledger: std::thread::JoinHandle<()>,
}

impl Host {
    /// Begins, or goes on where an earlier life ended.
    pub fn start(root: &Path) -> Self {
        let host = HostId::new("hv1").unwrap();
        let options =
            WriterOptions { host: host.clone(), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
        let (recorder, recovered, ledger) = Recorder::start(&root.join("ledger"), options).unwrap();
        let (machines, machine_events) = mpsc::channel(64);
        let (bans, changed) = watch::channel(Arc::default());
        let (vos, vos_read) = watch::channel(VoMap::default());
        let nat = crate::nat::Nat::off(host.clone());
        let options = ServiceOptions {
            host,
            capture: Capture::new(Backend::Ring, RingOptions::default()),
            meter: MeterOptions::default(),
            coverage: Duration::from_secs(60),
            agent_silent: Duration::from_secs(45),
            bans: changed,
            vos: vos_read,
            nat: nat.clone(),
        };
        let (asks, asked) = mpsc::channel(8);
        let (recheck, rechecks) = mpsc::channel(64);
        let (interfaces, link_news) = mpsc::channel(64);
        let feeds = Feeds { machines: machine_events, recheck, interfaces: link_news, asks: asked };
        let (service, inputs) = Service::new(options, recorder.clone(), recovered, feeds);
        let (taps, (stop, stopped)) = (Arc::clone(&service.watching.queues), oneshot::channel());
        let service = tokio::spawn(service.run(inputs, stopped));
        Self {
            machines,
            taps,
            senders: Default::default(),
            interfaces,
            rechecks,
            bans,
            vos,
            asks,
            nat,
            stop,
            service,
            recorder,
            ledger,
        }
    }

    /// Ends in order; gives what the ledger holds then.
    pub async fn stop(self, root: &Path) -> Facts {
        self.stop_with_flows(root).await.0
    }

    /// The same, with the flows.
    pub async fn stop_with_flows(self, root: &Path) -> (Facts, Vec<Flow>) {
        self.settled().await;
        drop(self.senders);
        self.stop.send(()).unwrap();
        self.service.await.unwrap().unwrap();
        self.ledger.join().unwrap();
        let all = TimeRange::new(Timestamp::from_nanos(i64::MIN), Timestamp::from_nanos(i64::MAX)).unwrap();
        let ledger = Ledger::open_folders(&[root.join("ledger")]).unwrap();
        let flows = vestigo_ledger::FlowFilter { range: all, ip: None, vo: None };
        (ledger.facts(all).unwrap(), ledger.flows(&flows).unwrap())
    }

    /// The ledger's thread ends by itself; gives what that makes of the service.
    pub async fn without_ledger(self) -> Result<(), Ended> {
        self.recorder.stop();
        self.service.await.unwrap()
    }

    /// What the service shows.
    pub async fn status(&self) -> crate::status::Status {
        let (ask, answer) = Ask::new();
        self.asks.send(ask).await.unwrap();
        answer.await.unwrap()
    }

    /// Has the VM run; gives what its agent would connect to.
    pub async fn boot(&self, root: &Path, n: u128) -> UnixListener {
        let path = root.join(format!("{n}.sock"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        self.runs(n, SystemClock.now(), None, &[]).await;
        self.machines.send(MachineEvent::Channel(vm(n), Ok(path))).await.unwrap();
        listener
    }

    /// libvirt says that the VM runs, with these taps.
    pub async fn runs(&self, n: u128, start: Timestamp, began: Option<Timestamp>, taps: &[&str]) {
        self.runs_as(n, None, (start, began), taps).await;
    }

    /// The same, with libvirt's number of the run.
    pub async fn runs_as(
        &self,
        n: u128,
        run: Option<u32>,
        (start, began): (Timestamp, Option<Timestamp>),
        taps: &[&str],
    ) {
        let tap = |name: &&str| {
            let (name, mac) = (TapName::new(*name).unwrap(), Mac([2, 0, 0, 0, 0, 1]));
            Tap { name, mac, expected: vec![], learnt: vec![], network: None, not_capturable: None }
        };
        let instance = Instance {
            host: HostId::new("hv1").unwrap(),
            domain: vm(n),
            id: InstanceId::new(format!("i-{n}")).unwrap(),
            name: text("n"),
            cloud: Cloud::Plain,
            project: None,
            vo: Some(Vo::new("atlas").unwrap()),
            owner: None,
            flavour: None,
            image: None,
            taps: taps.iter().map(tap).collect(),
            disks: vec![],
            xml_sha256: Digest::of(b""),
            start,
            end: None,
        };
        let inspection = Inspection {
            instance,
            xml: String::new(),
            agent_socket: None,
            console_log: None,
            unpinnable: vec![],
            running: true,
            run,
        };
        self.machines.send(MachineEvent::Up { inspection: Box::new(inspection), began }).await.unwrap();
    }

    /// Waits until the service has taken every flow, and all that libvirt said.
    pub async fn settled(&self) {
        let waits = || self.senders.lock().unwrap().values().any(|sender| sender.room() < sender.capacity());
        let unread = || self.machines.capacity() < self.machines.max_capacity();
        while waits() || unread() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // One thing after the other: what was taken last is done when this is answered.
        self.status().await;
    }

    /// The queue of a tap of the VM's.
    pub fn tap(&self, n: u128) -> TapSender {
        self.special_tap(n, |_| {})
    }

    /// The queue of a tap with something special.
    fn special_tap(&self, n: u128, special: impl FnOnce(&mut Observed)) -> TapSender {
        let mut observed = Observed {
            host: HostId::new("hv1").unwrap(),
            domain: vm(n),
            instance: InstanceId::new(format!("i-{n}")).unwrap(),
            vo: None,
            tap: Tap {
                name: TapName::new("vnet0").unwrap(),
                mac: Mac([0; 6]),
                expected: vec![],
                learnt: vec![],
                network: None,
                not_capturable: None,
            },
            witness: crate::witness::TapWitness::new(Mac([0; 6]), vec![]),
        };
        special(&mut observed);
        self.taps.open(Arc::new(observed))
    }

    /// A flow of the VM's.
    pub async fn flow(&self, n: u128, port: u16, change: impl FnOnce(&mut Metered)) {
        let mut record = record(port);
        change(&mut record);
        let mut senders = self.senders.lock().unwrap();
        assert_eq!(senders.entry(n).or_insert_with(|| self.tap(n)).send(vec![record]), 0);
    }

    /// A flow of the VM's, on a tap with something special. All of a VM's go the way of its first.
    pub async fn flow_of(
        &self,
        n: u128,
        port: u16,
        special: impl FnOnce(&mut Observed),
        change: impl FnOnce(&mut Metered),
    ) {
        self.senders.lock().unwrap().entry(n).or_insert_with(|| self.special_tap(n, special));
        self.flow(n, port, change).await;
    }
}

/// A record of a connection from that port.
pub fn record(port: u16) -> Metered {
    let now = SystemClock.now();
    Metered {
        notes: vestigo_model::FlowNotes::default(),
        direction: Direction::Outgoing,
        orig: ("10.0.0.5".parse().unwrap(), port),
        resp: ("192.0.2.1".parse().unwrap(), 443),
        proto: 6,
        vlan: None,
        began: now,
        first: now,
        last: now,
        from_orig: (1, 40, 2),
        from_resp: (1, 40, 18),
        end_reason: EndReason::Idle,
        initiator: Initiator::Seen,
    }
}

/// What an agent's side of the link does.
pub struct Agent {
    stream: BufReader<UnixStream>,
    seq: u64,
    prev: Digest,
    /// What the last welcome said.
    pub acked: u64,
}

impl Agent {
    /// Waits for hostd and introduces itself.
    pub async fn meet(listener: &UnixListener, boot: u128) -> Self {
        let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut agent = Self { stream: BufReader::new(stream), seq: 0, prev: Digest::ZERO, acked: 0 };
        agent.hello(boot).await;
        agent
    }

    async fn hello(&mut self, boot: u128) {
        let boot = BootId(Uuid::from_u128(boot));
        let hello = link::Hello { protocol: PROTOCOL, boot, agent: text("test"), last: 0, time: SystemClock.now() };
        self.send(&GuestFrame::Hello(hello)).await;
        loop {
            if let HostFrame::Welcome { acked, head, .. } = self.next().await {
                (self.acked, self.seq, self.prev) = (acked, acked, head);
                return;
            }
        }
    }

    async fn send(&mut self, frame: &GuestFrame) {
        self.stream.write_all(&link::encode(frame).unwrap()).await.unwrap();
    }

    /// Sends a line that is no frame.
    pub async fn babble(&mut self, line: &[u8]) {
        self.stream.write_all(line).await.unwrap();
    }

    /// Says hello under a boot, whichever it was before.
    pub async fn met_again(&mut self, boot: u128) {
        self.hello(boot).await;
    }

    /// The next frame of the host's.
    pub async fn next(&mut self) -> HostFrame {
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(PATIENCE, self.stream.read_line(&mut line)).await.unwrap().unwrap();
            assert!(read > 0, "hostd closed the channel");
            if line.trim().is_empty() {
                continue;
            }
            return link::decode(line.trim().as_bytes()).unwrap();
        }
    }

    /// The next whole list of bans.
    pub async fn bans(&mut self) -> Vec<Ban> {
        let mut whole = Vec::new();
        loop {
            if let HostFrame::Bans { bans, more } = self.next().await {
                whole.extend(bans);
                if !more {
                    return whole;
                }
            }
        }
    }

    /// Sends a statement; gives its number.
    pub async fn state(&mut self, claim: Claim) -> u64 {
        self.seq += 1;
        let frame = GuestFrame::Record(Record { seq: self.seq, prev: self.prev, time: SystemClock.now(), claim });
        let line = link::encode(&frame).unwrap();
        self.prev = Digest::of(&line[..line.len() - 1]);
        self.stream.write_all(&line).await.unwrap();
        self.seq
    }

    /// Waits until everything up to the number is acknowledged; gives what was refused on the way.
    pub async fn acknowledged(&mut self, seq: u64) -> Option<String> {
        let mut refused = None;
        loop {
            match self.next().await {
                HostFrame::Ack { seq: acked } if acked >= seq => return refused,
                HostFrame::Refuse { seq: no, reason } if no == seq => refused = Some(reason.to_string()),
                _ => {}
            }
        }
    }

    /// Sends a statement and waits for its verdict: the reason, if it was refused.
    pub async fn say(&mut self, claim: Claim) -> Option<String> {
        let seq = self.state(claim).await;
        self.acknowledged(seq).await
    }
}
