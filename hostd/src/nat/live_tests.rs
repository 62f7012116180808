//! Real packets through the kernel's own NAT, between network namespaces that the test made. Each test has its thread in a namespace of its
//! own, which stands for the hypervisor; all of it is gone with the test's process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fs::File,
    io::IoSliceMut,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvmsg, sendto, socket},
};
use vestigo_model::{
    Attribution, Clock, CoverageState, Direction, DomainUuid, EndReason, Event, Expected, Flow, FlowNotes, HostId,
    Initiator, InstanceId, Quality, SystemClock, TapName, Translation,
};

use super::{BookOptions, Nat, NatCounters, WatchOptions};

const PATIENCE: Duration = Duration::from_secs(60);
/// The two sides of the hypervisor: a VM behind `v0`, the world behind `w0`.
const VM: &str = "10.0.0.5";
const WORLD: &str = "192.0.2.9";
const PUBLIC: &str = "192.0.2.1";

/// Puts the calling thread into a network and a mount namespace of its own, with its own `/run/netns`. Without root: a named skip.
fn alone() -> bool {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            !std::env::var("CI").is_ok_and(|ci| ci == "true"),
            "this test needs root rights, and CI must have them"
        );
        eprintln!("SKIPPED: this test needs root rights");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    // `ip netns` keeps its names in /run/netns and replaces /sys for what it runs.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    run("ip link set lo up");
    true
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let done = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

fn nft(rules: &str) {
    let done = Command::new("nft").arg(rules).output().unwrap();
    assert!(done.status.success(), "{rules}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A host named after its namespace, at the other end of an interface of ours.
fn host(name: &str, ours: &str, gateway: &str, address: &str) {
    let (four, bits) = if address.contains(':') { ("-6", 64) } else { ("-4", 24) };
    let nodad = if four == "-6" { "nodad" } else { "" };
    if !Path::new("/run/netns").join(name).exists() {
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add {ours} type veth peer name eth0 netns {name}"));
        run(&format!("ip link set {ours} up"));
        run(&format!("ip -n {name} link set lo up"));
        run(&format!("ip -n {name} link set eth0 up"));
    }
    run(&format!("ip {four} addr add {gateway}/{bits} dev {ours} {nodad}"));
    run(&format!("ip -n {name} {four} addr add {address}/{bits} dev eth0 {nodad}"));
    run(&format!("ip -n {name} {four} route add default via {gateway}"));
}

/// A VM and the world, and forwarding between them.
fn site() {
    host("vm", "v0", "10.0.0.1", VM);
    host("world", "w0", PUBLIC, WORLD);
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

/// Runs on a host of the site.
fn on<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(Path::new("/run/netns").join(name)).unwrap();
    let enter = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::spawn(enter).join().unwrap()
}

fn options() -> WatchOptions {
    // The grace is zero: what no flow took up is told at once.
    let book = BookOptions { grace: Duration::ZERO, ..BookOptions::default() };
    WatchOptions { book, ..WatchOptions::default() }
}

fn follow(options: WatchOptions) -> Nat {
    let (nat, _) = Nat::start(HostId::new("hv1").unwrap(), options).unwrap();
    until("the first dump", || (nat.counters().dumps > 0).then_some(()));
    nat
}

fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(got) = ask() {
            return got;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn flow(proto: u8, direction: Direction, vm: SocketAddr, peer: SocketAddr) -> Flow {
    let (orig, resp) = if direction == Direction::Outgoing { (vm, peer) } else { (peer, vm) };
    let now = SystemClock.now();
    Flow {
        host: HostId::new("hv1").unwrap(),
        tap: TapName::new("v0").unwrap(),
        domain: DomainUuid(uuid::Uuid::nil()),
        instance: InstanceId::new("i").unwrap(),
        vo: None,
        direction,
        orig_ip: orig.ip(),
        orig_port: orig.port(),
        resp_ip: resp.ip(),
        resp_port: resp.port(),
        proto,
        vlan: None,
        first: now,
        last: now,
        orig_packets: 1,
        orig_bytes: 40,
        resp_packets: 0,
        resp_bytes: 0,
        orig_flags: 0,
        resp_flags: 0,
        end_reason: EndReason::Active,
        initiator: Initiator::Seen,
        src_expected: Expected::Unknown,
        post_nat: None,
        notes: FlowNotes::default(),
        attribution: Attribution { quality: Quality::Instance, payload: None, reason: String::new() },
    }
}

/// What the book says that the world saw of a flow, as soon as it knows.
fn public(nat: &Nat, flow: &Flow) -> SocketAddr {
    let seen = until("the translation", || nat.translate(flow, false));
    SocketAddr::new(seen.ip, seen.port)
}

/// Two ends of a conversation: the caller's own address and whom it called; what the called one saw, and under which address.
#[derive(Debug, Clone, Copy)]
struct Call {
    caller: SocketAddr,
    called: SocketAddr,
    seen: SocketAddr,
    listener: SocketAddr,
}

/// A TCP connection from one host to an address, accepted by another host on a port.
fn tcp((from, bind): (&str, &str), to: &str, (by, port): (&'static str, u16)) -> (Call, TcpStream, TcpStream) {
    let family = if to.starts_with('[') { "[::]" } else { "0.0.0.0" };
    let listener = on(by, move || TcpListener::bind(format!("{family}:{port}")).unwrap());
    let (bind, to): (SocketAddr, SocketAddr) = (bind.parse().unwrap(), to.parse().unwrap());
    let stream = on(from, move || {
        // A port of our choice wants a socket of our own making.
        let family = if bind.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let addr = nix::sys::socket::SockaddrStorage::from;
        nix::sys::socket::bind(fd.as_raw_fd(), &addr(bind)).unwrap();
        nix::sys::socket::connect(fd.as_raw_fd(), &addr(to)).unwrap();
        TcpStream::from(fd)
    });
    let (accepted, seen) = listener.accept().unwrap();
    let call =
        Call { caller: stream.local_addr().unwrap(), called: to, seen, listener: accepted.local_addr().unwrap() };
    (call, stream, accepted)
}

fn told(nat: &Nat) -> Vec<Translation> {
    nat.due(SystemClock.now()).iter().filter_map(Translation::from_event).collect()
}

#[test]
fn a_masqueraded_call_leads_from_what_the_world_saw_to_the_vm() {
    if !alone() {
        return;
    }
    site();
    nft("table ip nat { chain post { type nat hook postrouting priority 100; oifname w0 masquerade random; }; }");
    let nat = follow(options());
    let (call, client, server) = tcp(("vm", "0.0.0.0:41000"), "192.0.2.9:7001", ("world", 7001));
    assert_eq!(call.caller.to_string(), "10.0.0.5:41000");
    assert_eq!(call.seen.ip().to_string(), PUBLIC);
    let outgoing = flow(6, Direction::Outgoing, call.caller, call.called);
    assert_eq!(public(&nat, &outgoing), call.seen);
    // Its end is told, and the record that comes later still finds it.
    drop((client, server));
    assert_eq!(public(&nat, &outgoing), call.seen);

    // A datagram.
    let answerer = on("world", || UdpSocket::bind("0.0.0.0:7002").unwrap());
    let sender = on("vm", || UdpSocket::bind("10.0.0.5:42000").unwrap());
    sender.send_to(b"one", "192.0.2.9:7002").unwrap();
    let (_, seen) = answerer.recv_from(&mut [0; 8]).unwrap();
    let datagram = flow(17, Direction::Outgoing, sender.local_addr().unwrap(), "192.0.2.9:7002".parse().unwrap());
    assert_eq!(public(&nat, &datagram), seen);

    // An echo: its identifier is its port.
    let listener = on("world", raw_icmp);
    let pinger = on("vm", raw_icmp);
    ping(&pinger, WORLD, 4711);
    let (source, identifier) = request(&listener);
    let echo = flow(1, Direction::Outgoing, "10.0.0.5:4711".parse().unwrap(), "192.0.2.9:2048".parse().unwrap());
    assert_eq!(public(&nat, &echo), SocketAddr::new(source, identifier));
    assert_eq!(told(&nat), [], "the records tell of all of them");
    assert!(matches!(nat.coverage(SystemClock.now())[..], [ref one] if one.state == CoverageState::NatOk));
    nat.stop();
}

fn raw_icmp() -> std::os::fd::OwnedFd {
    socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap()
}

fn ping(from: &std::os::fd::OwnedFd, to: &str, identifier: u16) {
    let mut echo = [8, 0, 0, 0, 0, 0, 0, 1];
    echo[4..6].copy_from_slice(&identifier.to_be_bytes());
    let words = echo.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum::<u32>();
    let sum = !u16::try_from((words & 0xffff) + (words >> 16)).unwrap();
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    let to: std::net::SocketAddrV4 = format!("{to}:0").parse().unwrap();
    sendto(from.as_raw_fd(), &echo, &SockaddrIn::from(to), MsgFlags::empty()).unwrap();
}

/// Source and identifier of the next echo request.
fn request(on: &std::os::fd::OwnedFd) -> (IpAddr, u16) {
    loop {
        let mut packet = [0; 128];
        let mut iov = [IoSliceMut::new(&mut packet)];
        recvmsg::<SockaddrIn>(on.as_raw_fd(), &mut iov, None, MsgFlags::empty()).unwrap();
        if packet[20] == 8 {
            let source: [u8; 4] = packet[12..16].try_into().unwrap();
            return (IpAddr::from(source), u16::from_be_bytes([packet[24], packet[25]]));
        }
    }
}

#[test]
fn a_range_of_ports_and_ipv6_are_translated_as_the_world_sees() {
    if !alone() {
        return;
    }
    site();
    host("vm", "v0", "fd00::1", "fd00::5");
    host("world", "w0", "2001:db8::1", "2001:db8::9");
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname w0 meta l4proto tcp snat to 192.0.2.1:50000-50010; }; }",
    );
    nft("table ip6 nat { chain post { type nat hook postrouting priority 100; oifname w0 masquerade random; }; }");
    let nat = follow(options());
    let (call, ..) = tcp(("vm", "0.0.0.0:41000"), "192.0.2.9:7001", ("world", 7001));
    assert!((50_000..=50_010).contains(&call.seen.port()), "{call:?}");
    assert_eq!(public(&nat, &flow(6, Direction::Outgoing, call.caller, call.called)), call.seen);
    let (call, ..) = tcp(("vm", "[::]:41001"), "[2001:db8::9]:7002", ("world", 7002));
    assert_eq!(call.seen.ip().to_string(), "2001:db8::1");
    assert_eq!(public(&nat, &flow(6, Direction::Outgoing, call.caller, call.called)), call.seen);
    nat.stop();
}

#[test]
fn a_floating_address_and_a_hairpin_lead_to_the_vm_that_answered() {
    if !alone() {
        return;
    }
    site();
    run("ip -n vm addr add 10.0.0.6/24 dev eth0");
    nft("table ip nat { \
           chain pre { type nat hook prerouting priority -100; ip daddr 192.0.2.1 tcp dport 80 dnat to 10.0.0.5:8080; }; \
           chain post { type nat hook postrouting priority 100; ip saddr 10.0.0.0/24 masquerade random; }; }");
    let nat = follow(options());
    let (call, ..) = tcp(("world", "0.0.0.0:5555"), "192.0.2.1:80", ("vm", 8080));
    assert_eq!((call.listener.to_string(), call.seen.to_string()), ("10.0.0.5:8080".into(), "192.0.2.9:5555".into()));
    assert_eq!(public(&nat, &flow(6, Direction::Incoming, call.listener, call.seen)), call.called);
    assert_eq!(told(&nat), []);
    // One VM calls another by its public address: each has its own tap and its own view.
    let (call, ..) = tcp(("vm", "10.0.0.6:41000"), "192.0.2.1:80", ("vm", 8080));
    assert_ne!(call.seen, call.caller);
    assert_eq!(public(&nat, &flow(6, Direction::Outgoing, call.caller, call.called)), call.seen);
    assert_eq!(public(&nat, &flow(6, Direction::Incoming, call.listener, call.seen)), call.called);
    let told = told(&nat);
    assert_eq!((told.len(), told[0].why.as_str()), (1, "both-ends"));
    nat.stop();
}

#[test]
fn events_that_found_no_room_are_counted_and_a_dump_makes_up_for_them() {
    if !alone() {
        return;
    }
    site();
    nft("table ip nat { chain post { type nat hook postrouting priority 100; oifname w0 masquerade random; }; }");
    // The least that the kernel grants: two or three events.
    let nat = follow(WatchOptions { receive_buffer: 1, ..options() });
    let answerer = on("world", || UdpSocket::bind("0.0.0.0:7002").unwrap());
    let sender = on("vm", || UdpSocket::bind("0.0.0.0:0").unwrap());
    let calls = nat.hold(|| {
        // The thread stands still: what the buffer cannot hold is lost for certain.
        (0..200_u16)
            .map(|n| {
                let sender = if n == 0 {
                    sender.try_clone().unwrap()
                } else {
                    on("vm", || UdpSocket::bind("10.0.0.5:0").unwrap())
                };
                sender.send_to(b"one", "192.0.2.9:7002").unwrap();
                let (_, seen) = answerer.recv_from(&mut [0; 8]).unwrap();
                (sender.local_addr().unwrap().port(), seen)
            })
            .collect::<Vec<_>>()
    });
    for (port, seen) in calls {
        let vm = SocketAddr::new(VM.parse().unwrap(), port);
        assert_eq!(public(&nat, &flow(17, Direction::Outgoing, vm, "192.0.2.9:7002".parse().unwrap())), seen);
    }
    let counters: NatCounters = nat.counters();
    assert!(counters.overruns > 0 && counters.dumps > 1, "{counters:?}");
    let states: Vec<_> = nat.coverage(SystemClock.now()).into_iter().map(|one| one.state).collect();
    assert_eq!(states, [CoverageState::NatLost { count: None, place: "nat-events".to_owned() }]);
    nat.stop();
}

/// Two tenants with one private address, each in its own zone: with other ports they are known apart; where even the ports are
/// the same, both are told and neither is chosen.
#[test]
fn one_address_of_two_tenants_is_never_taken_for_one_of_them() {
    if !alone() {
        return;
    }
    site();
    run("ip netns add other");
    run("ip link add v1 type veth peer name eth0 netns other");
    run("ip link set v1 up");
    run("ip -n other link set eth0 up");
    run("ip -n other addr add 10.0.0.5/24 dev eth0");
    run("ip -n other route add default via 10.0.0.1");
    run("ip addr add 10.0.0.1/24 dev v1 noprefixroute");
    run("ip rule add fwmark 2 lookup 2");
    run("ip route add 10.0.0.0/24 dev v1 table 2");
    nft("table ip nat { \
           chain raw { type filter hook prerouting priority -300; iifname v0 ct original zone set 1; iifname v1 ct original zone set 2; }; \
           chain tag { type filter hook prerouting priority -150; iifname v1 ct mark set 2; meta mark set ct mark; }; \
           chain post { type nat hook postrouting priority 100; oifname w0 masquerade random; }; }");
    let nat = follow(options());
    let call =
        |from, port: u16, to: u16| tcp((from, &format!("10.0.0.5:{port}")), &format!("192.0.2.9:{to}"), ("world", to));
    let (apart, a1, a2) = call("vm", 41_000, 7001);
    let (apart2, b1, b2) = call("other", 41_001, 7002);
    assert_eq!(public(&nat, &flow(6, Direction::Outgoing, apart.caller, apart.called)), apart.seen);
    assert_eq!(public(&nat, &flow(6, Direction::Outgoing, apart2.caller, apart2.called)), apart2.seen);
    let (one, c1, c2) = call("vm", 43_000, 7003);
    let (two, d1, d2) = call("other", 43_000, 7003);
    assert_eq!((one.caller, one.called), (two.caller, two.called));
    assert_ne!(one.seen, two.seen);
    let same = flow(6, Direction::Outgoing, one.caller, one.called);
    let told = until("both to be told", || {
        assert_eq!(nat.translate(&same, false).filter(|_| nat.counters().held == 4), None, "none is chosen");
        let told = (nat.counters().held == 4).then(|| told(&nat))?;
        (told.len() == 2).then_some(told)
    });
    let mut both: Vec<_> = told.iter().map(|t| (t.zone, t.reply.1.1, t.why.as_str())).collect();
    both.sort_unstable();
    assert_eq!(both, [(1, one.seen.port(), "several"), (2, two.seen.port(), "several")]);
    drop((a1, a2, b1, b2, c1, c2, d1, d2));
    nat.stop();
}

/// Neutron's way: a router in a namespace of its own, which comes and goes.
#[test]
fn a_routers_namespace_is_followed_when_it_comes_and_let_go_when_it_goes() {
    if !alone() {
        return;
    }
    let nat = follow(WatchOptions { namespaces: vec!["qrouter-*".into(), "fip-*".into()], ..options() });
    assert_eq!(nat.counters().namespaces, 1);
    run("ip netns add qrouter-1");
    run("ip netns add elsewhere");
    until("the router to be followed", || (nat.counters().namespaces == 2 && nat.counters().dumps >= 2).then_some(()));
    // The whole site is the router's.
    on("qrouter-1", || {
        site();
        nft("table ip nat { chain post { type nat hook postrouting priority 100; oifname w0 masquerade random; }; }");
    });
    let (call, client, server) = tcp(("vm", "0.0.0.0:41000"), "192.0.2.9:7001", ("world", 7001));
    let outgoing = flow(6, Direction::Outgoing, call.caller, call.called);
    let events: Vec<Event> =
        until("the translation to be told", || Some(nat.due(SystemClock.now())).filter(|due| !due.is_empty()));
    let told = Translation::from_event(&events[0]).unwrap();
    assert_eq!((told.namespace.as_str(), told.why.as_str()), ("qrouter-1", "no-flow"));
    assert_eq!(told.faces()[0].public, (call.seen.ip(), call.seen.port()));
    assert_eq!(public(&nat, &outgoing), call.seen);
    drop((client, server));
    run("ip netns del qrouter-1");
    until("the router to be let go", || (nat.counters().namespaces == 1).then_some(()));
    // Its interfaces go with it: nothing of ours holds the namespace. Their other ends vanish.
    until("the router's interfaces to vanish", || on("vm", || !interface_is_there("eth0")).then_some(()));
    nat.stop();
}

fn interface_is_there(name: &str) -> bool {
    Command::new("ip").args(["link", "show", name]).output().unwrap().status.success()
}

/// The test runs itself once more, as root without any capability.
#[test]
fn without_rights_it_says_so_and_goes_on() {
    const INNER: &str = "VESTIGO_TEST_WITHOUT_RIGHTS";
    if std::env::var_os(INNER).is_none() {
        if alone() {
            run("ip netns add qrouter-1");
            let name = "nat::live_tests::without_rights_it_says_so_and_goes_on";
            let mut again = Command::new("setpriv");
            again.args(["--inh-caps=-all", "--bounding-set=-all", "--"]).arg(std::env::current_exe().unwrap());
            let done = again.args(["--exact", name, "--nocapture"]).env(INNER, "1").output().unwrap();
            let said = String::from_utf8_lossy(&done.stdout);
            assert!(
                done.status.success() && said.contains("1 passed"),
                "{said}{}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
        return;
    }
    let (nat, _) =
        Nat::start(HostId::new("hv1").unwrap(), WatchOptions { namespaces: vec!["*".into()], ..options() }).unwrap();
    let said = until("both faults", || {
        let states: Vec<_> = nat.coverage(SystemClock.now()).into_iter().map(|one| one.state.to_string()).collect();
        (states.len() == 2).then_some(states)
    });
    assert!(said[0].starts_with("nat-unseen(host: not permitted; hostd needs CAP_NET_ADMIN ("), "{said:?}");
    assert!(
        said[1].starts_with("nat-unseen(qrouter-1: not permitted; hostd needs CAP_NET_ADMIN and CAP_SYS_ADMIN"),
        "{said:?}"
    );
    nat.stop();
}
