//! Capture on real interfaces, in a network namespace that the test's own thread makes and that dies with it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a failed step fails the test

mod net;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use hostd::{
    capture::{
        Backend, Capture, CaptureError, FrameSource, Link, Observed, TapCapture, TapQueues, Tapped,
        budget::RingOptions,
        links::{self, LinkNews},
    },
    decode::Heading,
    meter::{Meter, MeterOptions},
};
use nix::poll::{PollFd, PollFlags, poll};
use std::os::fd::AsFd as _;
use vestigo_model::{Clock as _, DomainUuid, HostId, InstanceId, Mac, SystemClock, Tap, TapName};

use net::{Guest, Neighbour, Sender, ip, isolated, udp};

const PATIENCE: Duration = Duration::from_secs(60);
const BOTH: [Backend; 2] = [Backend::Ring, Backend::Pnet];

fn name(name: &str) -> TapName {
    TapName::new(name).unwrap()
}

fn capture(backend: Backend) -> Capture {
    Capture::new(backend, RingOptions::default())
}

/// The smallest ring.
fn floor() -> Capture {
    Capture::new(Backend::Ring, RingOptions { lasts: Duration::from_millis(1), rate: 1, memory: 0 })
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    bytes: Vec<u8>,
    wire_len: usize,
    vlan: Option<u16>,
    heading: Heading,
}

/// Reads until enough was seen.
fn read_until(source: &mut dyn FrameSource, seen: &mut Vec<Seen>, enough: impl Fn(&[Seen]) -> bool) {
    let began = Instant::now();
    while !enough(seen) {
        assert!(began.elapsed() < PATIENCE, "only {} frames", seen.len());
        let taken = source.take(&mut |frame| {
            let age = SystemClock.now().since(frame.time);
            assert!(age < PATIENCE, "a time stamp of now: {age:?}");
            let bytes = frame.bytes.to_vec();
            seen.push(Seen { bytes, wire_len: frame.wire_len, vlan: frame.vlan, heading: frame.heading });
        });
        if taken.unwrap().is_none() {
            let mut waiting = [PollFd::new(source.socket().as_fd(), PollFlags::POLLIN)];
            poll(&mut waiting, 100_u8).unwrap();
        }
    }
}

/// A counter of the kernel's for an interface.
fn counter(interface: &str, what: &str) -> u64 {
    let shown = ip(&["-s", "-j", "link", "show", interface]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let (side, what) = what.split_once(' ').unwrap();
    shown[0]["stats64"][side][what].as_u64().unwrap()
}

/// Guests hand over frames of 64 KiB: none may count for less than it is.
#[test]
fn bulk_traffic_is_counted_to_the_byte_both_ways() {
    if !isolated() {
        return;
    }
    for backend in BOTH {
        let neighbour = Neighbour::start("v0", "10.9.0.1/24", "10.9.0.2/24");
        let (mut source, _) = capture(backend).open(&name("v0")).unwrap();
        let server = neighbour.run(|| {
            let listener = TcpListener::bind("10.9.0.2:5001").unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                received.len()
            })
        });
        let (before, packets) = (counter("v0", "tx bytes") + counter("v0", "rx bytes"), counter("v0", "tx packets"));
        let mut stream = TcpStream::connect("10.9.0.2:5001").unwrap();
        stream.write_all(&vec![7; 16 << 20]).unwrap();
        drop(stream);
        assert_eq!(server.join().unwrap(), 16 << 20);
        let mut seen = Vec::new();
        // The last one closes the connection from the other side; what comes later is waited for by its count.
        let total = || counter("v0", "tx packets") + counter("v0", "rx packets");
        read_until(&mut *source, &mut seen, |seen| seen.len() as u64 == total());
        let bytes = counter("v0", "tx bytes") + counter("v0", "rx bytes") - before;
        let longest = seen.iter().map(|frame| frame.wire_len).max().unwrap();
        assert_eq!(seen.iter().map(|frame| frame.wire_len as u64).sum::<u64>(), bytes + before, "{backend:?}");
        assert!(longest > 30_000, "{backend:?}: offload was not exercised: {longest}");
        let sent = seen.iter().filter(|frame| frame.heading == Heading::ToVm).count() as u64;
        assert_eq!(sent, counter("v0", "tx packets"), "{backend:?}: outgoing is to the VM");
        assert!(sent > packets && sent < seen.len() as u64);
        let kept = seen.iter().map(|frame| frame.bytes.len()).max().unwrap();
        assert!(backend == Backend::Pnet || kept <= 128 || seen.iter().all(|f| f.bytes.len() <= 2048), "{kept}");
    }
}

/// The kernel takes the tag out of a frame that comes in, and leaves it in one that goes out with it.
#[test]
fn the_vlan_is_known_in_both_directions() {
    if !isolated() {
        return;
    }
    ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    net::up(&["v0", "v1"]);
    let (mut source, _) = capture(Backend::Ring).open(&name("v0")).unwrap();
    let queues = TapQueues::default();
    let mut running = start(1, "v0", &capture(Backend::Ring), &queues, MeterOptions::default());
    let tagged = |ports| {
        let mut frame = udp(ports, 60);
        frame.splice(12..12, [0x81, 0, 0x60, 7]);
        frame
    };
    Sender::new("v1").send(&tagged((1, 2)));
    Sender::new("v0").send(&tagged((3, 4)));
    let mut seen = Vec::new();
    read_until(&mut *source, &mut seen, |seen| seen.len() == 2);
    let [came, went] = seen.as_slice() else { unreachable!("{seen:?}") };
    assert_eq!(
        (came.heading, came.vlan, came.wire_len, &came.bytes[12..14]),
        (Heading::FromVm, Some(7), 102, &[8, 0][..])
    );
    assert_eq!(
        (went.heading, went.vlan, went.wire_len, &went.bytes[12..14]),
        (Heading::ToVm, None, 106, &[0x81, 0][..])
    );
    running.end();
    let vlans: Vec<_> = drain(&queues, &[1]).iter().map(|tapped| tapped.record.vlan).collect();
    running.wait();
    assert_eq!(vlans, [Some(7), Some(7)]);
}

/// A tap as QEMU opens it, and a guest that hands over an unsegmented frame with an unfinished checksum.
#[test]
fn a_real_tap_gives_whole_lengths_tags_and_directions() {
    if !isolated() {
        return;
    }
    for backend in BOTH {
        let mut guest = Guest::boot("tap9");
        ip(&["addr", "add", "10.9.1.1/24", "dev", "tap9"]);
        let (mut source, _) = capture(backend).open(&name("tap9")).unwrap();
        let large = guest.segmented(60_000);
        guest.send(&large, true);
        let mut tagged = udp((1, 2), 100);
        tagged.splice(12..12, [0x81, 0, 0x20, 9]);
        guest.send(&tagged, false);
        ip(&["neigh", "add", "10.9.1.2", "lladdr", "02:00:00:00:00:01", "dev", "tap9"]);
        UdpSocket::bind("10.9.1.1:5000").unwrap().send_to(&[1; 500], "10.9.1.2:5001").unwrap();
        let mut seen = Vec::new();
        read_until(&mut *source, &mut seen, |seen| seen.iter().any(|frame| frame.wire_len == 14 + 20 + 8 + 500));
        let find = |length: usize| seen.iter().find(|frame| frame.wire_len == length).cloned().unwrap();
        let frame = find(large.len());
        assert_eq!((frame.heading, frame.vlan), (Heading::FromVm, None), "{backend:?}");
        assert_eq!(find(14 + 20 + 8 + 500).heading, Heading::ToVm, "{backend:?}");
        let frame = find(tagged.len() - 4);
        assert_eq!(frame.heading, Heading::FromVm);
        // The tag's bytes are gone in both; only the ring is told of it (docs/decisions/0003).
        assert_eq!(frame.vlan, if backend == Backend::Ring { Some(9) } else { None });
        drop(guest);
    }
}

#[test]
fn the_kernel_runs_the_filter_as_it_is_meant() {
    if !isolated() {
        return;
    }
    ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    net::up(&["v0", "v1"]);
    let (mut source, _) = capture(Backend::Ring).open(&name("v0")).unwrap();
    let mut sender = Sender::new("v1");
    let mut arp = vec![2; 600];
    arp[12..14].copy_from_slice(&[8, 6]);
    let short = vec![2; 14];
    for frame in [&udp((1000, 2000), 600), &udp((68, 67), 600), &udp((5, 10_514), 1400), &arp, &short] {
        sender.send(frame);
    }
    let mut seen = Vec::new();
    read_until(&mut *source, &mut seen, |seen| seen.len() == 5);
    let kept: Vec<_> = seen.iter().map(|frame| (frame.bytes.len(), frame.wire_len)).collect();
    assert_eq!(kept, [(128, 642), (642, 642), (1442, 1442), (600, 600), (14, 14)]);
}

fn observed(n: u128, tap: &str) -> Arc<Observed> {
    Arc::new(Observed {
        witness: hostd::witness::TapWitness::new(Mac([0; 6]), vec![]),
        host: HostId::new("hv1").unwrap(),
        domain: vm(n),
        instance: InstanceId::new("i").unwrap(),
        vo: None,
        tap: Tap {
            name: name(tap),
            mac: Mac([0; 6]),
            expected: vec![],
            learnt: vec![],
            network: None,
            not_capturable: None,
        },
    })
}

fn vm(n: u128) -> DomainUuid {
    DomainUuid(uuid::Uuid::from_u128(n))
}

fn start(n: u128, tap: &str, capture: &Capture, queues: &TapQueues, options: MeterOptions) -> TapCapture {
    let source = capture.open(&name(tap)).unwrap();
    TapCapture::start(&name(tap), source, Meter::new(options, None), queues.open(observed(n, tap))).unwrap()
}

/// Takes all records until every capture has ended.
fn drain(queues: &TapQueues, vms: &[u128]) -> Vec<Tapped> {
    let (mut records, began) = (Vec::new(), Instant::now());
    while vms.iter().any(|n| queues.has(vm(*n))) {
        assert!(began.elapsed() < PATIENCE, "captures do not end");
        let turn = queues.turn(usize::MAX);
        if turn.records.is_empty() {
            std::thread::yield_now();
        }
        records.extend(turn.records);
    }
    records
}

fn packets(records: &[Tapped], n: u128) -> u64 {
    let of = records.iter().filter(|tapped| tapped.observed.domain == vm(n));
    of.map(|tapped| tapped.record.from_orig.0 + tapped.record.from_resp.0).sum()
}

#[test]
fn every_frame_is_metered_or_counted_as_lost() {
    if !isolated() {
        return;
    }
    ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    net::up(&["v0", "v1"]);
    let queues = TapQueues::default();
    // Opened, and read only when its ring is long full.
    let source = floor().open(&name("v0")).unwrap();
    let mut sender = Sender::new("v1");
    for n in 0..30_000 {
        sender.send(&udp((n, 9), 60));
    }
    let tap = name("v0");
    let mut capture =
        TapCapture::start(&tap, source, Meter::new(MeterOptions::default(), None), queues.open(observed(1, "v0")))
            .unwrap();
    for n in 0..1000 {
        sender.send(&udp((n, 10), 60));
    }
    sender.send(&[3; 60]);
    capture.end();
    let records = drain(&queues, &[1]);
    capture.wait();
    let report = capture.take_report();
    assert_eq!(report.offered, 31_001);
    assert_eq!(report.counts.frames + report.dropped, 31_001, "{report:?}");
    assert!(report.dropped > 10_000 && report.freezes > 0, "{report:?}");
    let no_ip: u64 = report.counts.undecodable.values().sum();
    assert_eq!(packets(&records, 1) + no_ip, report.counts.frames);
    assert_eq!((report.unqueued, report.ended.is_some()), (0, true));
}

/// A witness with a bug.
struct Broken;

impl hostd::meter::Witness for Broken {
    #[allow(clippy::panic, reason = "the bug")]
    fn control(&mut self, _: &hostd::meter::Frame<'_>, _: hostd::meter::Control) {
        panic!("a frame that nobody thought of");
    }
}

#[test]
fn a_bug_in_a_taps_thread_ends_its_capture_and_is_seen_to() {
    if !isolated() {
        return;
    }
    ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    net::up(&["v0", "v1"]);
    let (queues, tap) = (TapQueues::default(), name("v0"));
    let source = floor().open(&tap).unwrap();
    let meter = Meter::with_witness(MeterOptions::default(), None, Broken);
    let capture = TapCapture::start(&tap, source, meter, queues.open(observed(1, "v0"))).unwrap();
    Sender::new("v1").send(&udp((68, 67), 60));
    drain(&queues, &[1]);
    assert!(capture.ended().is_some(), "when its queue ends, that is known");
}

#[test]
fn a_name_that_is_used_again_is_another_interface() {
    if !isolated() {
        return;
    }
    for backend in BOTH {
        let (capture, queues) = (capture(backend), TapQueues::default());
        let make = || {
            ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
            net::up(&["v0", "v1"]);
        };
        make();
        let mut first = start(1, "v0", &capture, &queues, MeterOptions::default());
        Sender::new("v1").send(&udp((1, 2), 60));
        ip(&["link", "del", "v0"]);
        make();
        // It ends by itself: nobody tells it to.
        let began = Instant::now();
        while first.ended().is_none() {
            assert!(began.elapsed() < PATIENCE, "{backend:?}");
            std::thread::yield_now();
        }
        let mut second = start(2, "v0", &capture, &queues, MeterOptions::default());
        assert_ne!(first.index(), second.index());
        assert!(first.ended().unwrap() >= first.opened() && second.opened() >= first.opened());
        Sender::new("v1").send(&udp((3, 4), 60));
        second.end();
        let records = drain(&queues, &[1, 2]);
        assert_eq!((packets(&records, 1), packets(&records, 2)), (1, 1), "{backend:?}: each its own");
        first.wait();
        second.wait();
        assert_eq!((first.take_report().offered, second.take_report().offered), (1, 1));
        ip(&["link", "del", "v0"]);
        let none = capture.open(&name("v0")).err().unwrap();
        assert!(matches!(none, CaptureError::NoInterface(_)), "{none}");
    }
}

#[test]
fn an_interface_that_was_down_goes_on_being_captured() {
    if !isolated() {
        return;
    }
    for backend in BOTH {
        ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
        net::up(&["v0", "v1"]);
        let (mut source, _) = capture(backend).open(&name("v0")).unwrap();
        ip(&["link", "set", "v0", "down"]);
        assert_eq!(source.socket().link().unwrap(), Link::Down);
        ip(&["link", "set", "v0", "up"]);
        assert_eq!(source.socket().link().unwrap(), Link::There);
        Sender::new("v1").send(&udp((1, 2), 60));
        let mut seen = Vec::new();
        read_until(&mut *source, &mut seen, |seen| seen.len() == 1);

        let queues = TapQueues::default();
        let mut running = start(1, "v0", &capture(backend), &queues, MeterOptions::default());
        ip(&["link", "set", "v0", "down"]);
        ip(&["link", "set", "v0", "up"]);
        Sender::new("v1").send(&udp((1, 2), 60));
        running.end();
        assert_eq!(packets(&drain(&queues, &[1]), 1), 1, "{backend:?}");
        running.wait();
        ip(&["link", "set", "v0", "down"]);
        ip(&["link", "del", "v0"]);
        assert_eq!(source.socket().link().unwrap(), Link::Gone, "{backend:?}");
    }
}

/// Removed while it was down: the kernel tells a socket of the first only.
#[test]
fn an_interface_that_goes_while_down_ends_its_capture() {
    if !isolated() {
        return;
    }
    ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    net::up(&["v0", "v1"]);
    let queues = TapQueues::default();
    let capture = start(1, "v0", &capture(Backend::Ring), &queues, MeterOptions::default());
    ip(&["link", "set", "v0", "down"]);
    ip(&["link", "del", "v0"]);
    drain(&queues, &[1]);
    assert!(capture.ended().is_some());
}

#[tokio::test]
async fn interfaces_that_appear_are_told_of() {
    if !isolated() {
        return;
    }
    let mut news = links::watch().unwrap();
    for round in 0..2 {
        ip(&["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
        let told = async {
            loop {
                match news.recv().await.unwrap() {
                    LinkNews::Appeared { name, index, .. } if name.as_str() == "v0" => return index,
                    other => assert_ne!(other, LinkNews::Missed),
                }
            }
        };
        let index = tokio::time::timeout(PATIENCE, told).await.unwrap();
        assert_eq!(Capture::index(&name("v0")), Some(index), "round {round}");
        ip(&["link", "del", "v0"]);
    }
}

/// `make bench-capture` sends a million.
const FLOOD: u32 = 200_000;

/// One VM sends flows of one packet each; the other has ten conversations. Whoever takes the records is slow.
#[test]
fn a_flood_beside_it_costs_a_quiet_vm_nothing() {
    if !isolated() {
        return;
    }
    for (n, pair) in [("v0", "v1"), ("w0", "w1")] {
        ip(&["link", "add", n, "type", "veth", "peer", "name", pair]);
    }
    net::up(&["v0", "v1", "w0", "w1"]);
    let (capture, queues) = (capture(Backend::Ring), TapQueues::default());
    let options = MeterOptions { max_flows: 4096, ..MeterOptions::default() };
    let mut loud = start(1, "v0", &capture, &queues, options);
    let mut quiet = start(2, "w0", &capture, &queues, options);
    let flood = std::thread::spawn(|| {
        let mut sender = Sender::new("v1");
        let mut frame = udp((0, 9), 18);
        for n in 0..FLOOD {
            // Another source address and port each time.
            let [high, middle, port @ ..] = n.to_be_bytes();
            frame[28..30].copy_from_slice(&[high, middle]);
            frame[34..36].copy_from_slice(&port);
            sender.send(&frame);
        }
    });
    let mut sender = Sender::new("w1");
    let (mut records, mut sent) = (Vec::new(), 0);
    while !flood.is_finished() {
        if sent < 1000 {
            sender.send(&udp((4000 + sent % 10, 53), 100));
            sent += 1;
        }
        records.extend(queues.turn(100).records);
    }
    flood.join().unwrap();
    loud.end();
    quiet.end();
    records.extend(drain(&queues, &[1, 2]));
    loud.wait();
    quiet.wait();
    let (loud, quiet) = (loud.take_report(), quiet.take_report());
    assert_eq!((quiet.offered, quiet.dropped, quiet.unqueued), (sent.into(), 0, 0));
    assert_eq!(packets(&records, 2), u64::from(sent));
    let flows = records.iter().filter(|tapped| tapped.observed.domain == vm(2));
    assert!(flows.clone().all(|tapped| tapped.record.resp.1 == 53 && (4000..4010).contains(&tapped.record.orig.1)));
    assert_eq!(flows.map(|tapped| tapped.record.orig.1).collect::<std::collections::BTreeSet<_>>().len(), 10);
    assert_eq!(loud.offered, u64::from(FLOOD));
    assert_eq!(loud.counts.frames + loud.dropped, u64::from(FLOOD));
    assert_eq!(packets(&records, 1) + loud.dropped, u64::from(FLOOD), "{loud:?}");
}
