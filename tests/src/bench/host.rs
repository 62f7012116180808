//! Who acknowledges: a stand-in that holds records in memory, or hostd's own service with its ledger on disk.

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hostd::{
    bans::BanSet,
    capture::{Backend, Capture, budget::RingOptions},
    domain::{Inspection, VoMap},
    machines::MachineEvent,
    meter::MeterOptions,
    nat::Nat,
    recorder::Recorder,
    service::{Feeds, Service, ServiceOptions},
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
};
use vestigo_ledger::WriterOptions;
use vestigo_model::{
    Clock, Digest, HostId, Instance, SystemClock,
    link::{Claim, GuestFrame, HostFrame, LineReader, PROTOCOL, decode, encode},
};

/// Takes everything, flushes nothing to disk. Tells when payloads ended.
pub(super) struct StandIn {
    ends: Receiver<Instant>,
}

impl StandIn {
    /// Listens at `folder/host.sock`.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let listener = UnixListener::bind(folder.join("host.sock"))?;
        let (said, ends) = channel();
        thread::spawn(move || {
            let mut book = Book { acked: 0, head: Digest::ZERO, ends: said };
            for stream in listener.incoming().map_while(io::Result::ok) {
                if let Err(error) = book.converse(stream) {
                    super::progress(&format!("the agent's link broke: {error}"));
                }
            }
        });
        Ok(Self { ends })
    }

    /// Forgets the ends told so far.
    pub(super) fn forget(&self) {
        self.ends.try_iter().for_each(drop);
    }

    /// When the next payload was told to have ended.
    pub(super) fn next_end(&self, patience: Duration) -> Result<Instant> {
        self.ends.recv_timeout(patience).context("no payload was told to have ended")
    }
}

struct Book {
    acked: u64,
    head: Digest,
    ends: Sender<Instant>,
}

impl Book {
    fn converse(&mut self, mut stream: UnixStream) -> io::Result<()> {
        let mut reader = LineReader::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let lines = reader.push(buffer.get(..count).unwrap_or_default());
            let answers = lines.iter().filter_map(|line| self.answer(line.as_ref().ok()?));
            let answers: Vec<u8> = answers.filter_map(|answer| encode(&answer)).flatten().collect();
            stream.write_all(&answers)?;
        }
    }

    fn answer(&mut self, line: &[u8]) -> Option<HostFrame> {
        match decode(line).ok()? {
            GuestFrame::Hello(_) => {
                let (acked, head, time) = (self.acked, self.head, SystemClock.now());
                Some(HostFrame::Welcome { protocol: PROTOCOL, acked, head, time })
            }
            GuestFrame::Record(record) => {
                if record.seq == self.acked + 1 && record.prev == self.head {
                    (self.acked, self.head) = (record.seq, Digest::of(line));
                    if matches!(record.claim, Claim::PayloadEnd { .. }) {
                        let _ = self.ends.send(Instant::now());
                    }
                }
                Some(HostFrame::Ack { seq: self.acked })
            }
            GuestFrame::Heartbeat(_) | GuestFrame::Unknown => None,
        }
    }
}

/// hostd's service, guest link and ledger as they are, without libvirt: it is told of one VM. Two sockets joined by a thread
/// each way stand for QEMU's serial port.
pub(super) struct Hostd {
    _runtime: Runtime,
    _machines: mpsc::Sender<MachineEvent>,
    _stop: oneshot::Sender<()>,
    _bans: watch::Sender<Arc<BanSet>>,
}

impl Hostd {
    /// The agent's end is `folder/host.sock`; the ledger lies below `folder`.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let channel = folder.join("channel.sock");
        let (guest, host) = (UnixListener::bind(folder.join("host.sock"))?, UnixListener::bind(&channel)?);
        thread::spawn(move || serial_port(&guest, &host));
        let name: HostId = "bench".parse()?;
        let ledger =
            WriterOptions { host: name.clone(), max_segment_age: Duration::from_secs(300), max_wal_bytes: 64 << 20 };
        let root = folder.join("ledger");
        fs::create_dir_all(&root)?;
        let (recorder, recovered, _thread) = Recorder::start(&root, ledger, |_| {})?;
        let (machines, told) = mpsc::channel(16);
        let (bans, banned) = watch::channel(Arc::default());
        let options = ServiceOptions {
            host: name.clone(),
            capture: Capture::new(Backend::default(), RingOptions::default()),
            meter: MeterOptions::default(),
            coverage: Duration::from_secs(60),
            agent_silent: Duration::from_secs(30),
            bans: banned,
            vos: watch::channel(VoMap::default()).1,
            nat: Nat::off(name),
            upkeep: hostd::ledger_upkeep::Upkeep::default(),
        };
        // No taps: nobody asks for news of the VM, and there are none of interfaces.
        let feeds = Feeds {
            machines: told,
            recheck: mpsc::channel(1).0,
            interfaces: mpsc::channel(1).1,
            asks: mpsc::channel(1).1,
        };
        let (service, inputs) = Service::new(options, recorder, recovered, feeds);
        let (stop, stopped) = oneshot::channel();
        let runtime = Runtime::new()?;
        runtime.spawn(service.run(inputs, stopped));
        let inspection = vm()?;
        let domain = inspection.instance.domain;
        let up = MachineEvent::Up { inspection: Box::new(inspection), began: None };
        machines.blocking_send(up).context("hostd's service has ended")?;
        machines.blocking_send(MachineEvent::Channel(domain, Ok(channel))).context("hostd's service has ended")?;
        Ok(Self { _runtime: runtime, _machines: machines, _stop: stop, _bans: bans })
    }
}

/// A VM without taps and disks.
fn vm() -> Result<Inspection> {
    let instance: Instance = serde_json::from_value(serde_json::json!({
        "host": "bench", "domain": "6a3cd2bb-9fd1-4f29-8c5b-2f9a7c1b0001", "id": "vm-1", "name": "vm-1", "cloud": "plain", "vo": "atlas",
        "taps": [], "disks": [], "xml_sha256": Digest::ZERO, "start": SystemClock.now(),
    }))?;
    Ok(Inspection {
        instance,
        xml: String::new(),
        agent_socket: None,
        console_log: None,
        unpinnable: Vec::new(),
        running: true,
        run: None,
    })
}

fn serial_port(guest: &UnixListener, host: &UnixListener) {
    while let (Ok((host, _)), Ok((guest, _))) = (host.accept(), guest.accept()) {
        let (Ok(from_host), Ok(from_guest)) = (host.try_clone(), guest.try_clone()) else { return };
        let other = thread::spawn(move || pass(from_host, guest));
        pass(from_guest, host);
        let _ = other.join();
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
