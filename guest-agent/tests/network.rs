//! The rules that make a flow attributable by arithmetic, on real packets between network namespaces.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_precision_loss, missing_docs)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use common::{PEER, PEER6, Peer, VM, VM6, dual, give6, inside, network, wait_for};
use guest_agent::{
    config::Config,
    lease::Slot,
    network::{
        Namespace, Networks, Plan,
        netlink::{Change, End, Netlink},
        uplink,
    },
};
use nix::{
    mount::{MsFlags, mount},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind,
        recv, sendto, setsockopt, socket, sockopt,
    },
};
use vestigo_model::{Lease, PortBlock};

const PATIENCE: Duration = Duration::from_millis(400);
/// Of a container behind the VM.
const BEHIND6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 2);

struct Bed {
    peer: Peer,
    networks: Networks,
    config: Config,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(network(), change)
    }

    /// Both ends of the cable have an address of one /64.
    fn dual() -> Self {
        let peer = network();
        dual(&peer);
        Self::on(peer, |_| {})
    }

    fn on(peer: Peer, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { state_dir: folder.path().into(), ..Config::default() };
        change(&mut config);
        let networks = Networks::start(&config).unwrap();
        Self { peer, networks, config, _folder: folder }
    }

    fn plan(&self, slot: u16) -> Plan {
        let slot = Slot(slot);
        Plan::new(self.config.inner_network.base, slot, self.config.blocks().unwrap().ports(slot))
    }

    fn payload(&self, slot: u16) -> (Plan, Namespace) {
        let plan = self.plan(slot);
        let namespace = self.networks.add(&plan).unwrap();
        (plan, namespace)
    }

    fn udp(&self, port: u16) -> UdpSocket {
        self.udp_at(PEER.into(), port)
    }

    fn udp_at(&self, address: IpAddr, port: u16) -> UdpSocket {
        let socket = self.peer.inside(move || UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn raw(&self, family: AddressFamily, protocol: SockProtocol) -> OwnedFd {
        self.peer.inside(move || socket(family, SockType::Raw, SockFlag::empty(), protocol).unwrap())
    }
}

/// Gives the interface of the calling thread's namespace one more address.
fn give(address: IpAddr) {
    let mut netlink = Netlink::open().unwrap();
    let index = netlink.link("eth0").unwrap().index;
    netlink.apply(vec![Change::address(index, address, if address.is_ipv4() { 32 } else { 128 })]).unwrap();
}

fn route(gateway: Ipv4Addr) {
    Netlink::open().unwrap().apply(vec![Change::default_route(gateway.into(), None)]).unwrap();
}

/// Runs something as another user; only the calling thread changes, and ends with it.
fn as_user<T: Send>(uid: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // What a socket's owner is taken from when it is made; unlike setuid(2) it is the thread's own.
            let _ = nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
            f()
        });
        thread.join().unwrap()
    })
}

fn own(namespace: &Namespace) -> OwnedFd {
    namespace.fd().try_clone_to_owned().unwrap()
}

fn send_udp(namespace: &Namespace, from: impl Into<SocketAddr>, to: impl Into<SocketAddr>) {
    let (from, to) = (from.into(), to.into());
    inside(own(namespace), move || {
        let socket = UdpSocket::bind(from).unwrap();
        let _ = socket.send_to(b"x", to);
    });
}

fn heard(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.recv_from(&mut [0; 16]).ok().map(|(_, from)| from)
}

#[test]
fn tcp_udp_and_ping_leave_from_the_block_even_when_bound_elsewhere() {
    let bed = Bed::new();
    assert_eq!(bed.config.blocks().unwrap().count(), 54);
    let (first, one) = bed.payload(0);
    let (second, two) = bed.payload(53);
    assert_eq!(two.leases(), [Lease::Ports(PortBlock { first: 64512, last: 65535 })]);
    let udp = bed.udp(9000);
    let listener = bed.peer.inside(|| TcpListener::bind((PEER, 9000)).unwrap());
    let pings = bed.raw(AddressFamily::Inet, SockProtocol::Icmp);
    for (plan, namespace) in [(&first, &one), (&second, &two)] {
        for port in [0, 1500, 25000, 65000] {
            send_udp(namespace, (Ipv4Addr::UNSPECIFIED, port), (PEER, 9000));
            let from = heard(&udp).unwrap();
            assert!(from.ip() == VM && plan.ports.contains(from.port()), "UDP from {port} arrived from {from}");
        }
        for _ in 0..20 {
            let stream = inside(own(namespace), || TcpStream::connect((PEER, 9000)).unwrap());
            let (_, from) = listener.accept().unwrap();
            assert!(from.ip() == VM && plan.ports.contains(from.port()), "TCP from {from}");
            drop(stream);
        }
        let id = inside(own(namespace), || ping(77)).then(|| echo(&pings)).unwrap();
        assert!(plan.ports.contains(id), "echo id {id}");
    }
    assert!(bed.networks.remove(&first), "it was used");
    assert!(bed.networks.remove(&second));
    let (third, _three) = bed.payload(7);
    assert!(!bed.networks.remove(&third), "it never sent");
}

/// Sends an echo request as ping does without rights, with this identifier.
fn ping(id: u16) -> bool {
    let echo = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp).unwrap();
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(PEER, 0));
    bind(echo.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, id))).unwrap();
    sendto(echo.as_raw_fd(), &[8, 0, 0, 0, 0, 0, 0, 1], &to, MsgFlags::empty()).is_ok()
}

/// The same over IPv6.
fn ping6(id: u16) -> bool {
    let echo = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), SockProtocol::IcmpV6).unwrap();
    let at = |address, port| SockaddrIn6::from(std::net::SocketAddrV6::new(address, port, 0, 0));
    bind(echo.as_raw_fd(), &at(Ipv6Addr::UNSPECIFIED, id)).unwrap();
    sendto(echo.as_raw_fd(), &[128, 0, 0, 0, 0, 0, 0, 1], &at(PEER6, 0), MsgFlags::empty()).is_ok()
}

/// The identifier that the peer saw. A raw socket gives the IPv4 header (20 bytes here) and leaves the IPv6 header out.
fn echo(pings: &OwnedFd) -> u16 {
    let mut packet = [0; 128];
    loop {
        setsockopt(pings, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(2, 0)).unwrap();
        let count = recv(pings.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        let message = if packet[0] >> 4 == 4 { &packet[20..count] } else { &packet[..count] };
        if message.len() >= 8 && [8, 128].contains(&message[0]) {
            return u16::from_be_bytes([message[4], message[5]]);
        }
    }
}

#[test]
fn a_neighbours_address_and_everything_else_forbidden_is_dropped() {
    let bed = Bed::new();
    let (first, one) = bed.payload(0);
    let (second, two) = bed.payload(1);
    let udp = bed.udp(9000);
    // The victim has a connection, so that a spoofed packet would find a translation ready.
    send_udp(&two, (second.inner, 5000), (PEER, 9000));
    assert!(second.ports.contains(heard(&udp).unwrap().port()));
    let (victim, stranger) = (second.inner, Ipv4Addr::new(100, 64, 200, 2));
    inside(own(&one), move || [victim, stranger].map(|address| give(address.into())));
    for source in [victim, stranger] {
        // Also with the reverse-path filter off: the set alone must hold.
        for filter in ["1", "0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{}/rp_filter", one.interface()), filter).unwrap();
            send_udp(&one, (source, 5000), (PEER, 9000));
            assert_eq!(heard(&udp), None, "source {source} passed with rp_filter {filter}");
        }
    }
    send_udp(&one, (first.inner, 5000), (PEER, 9000));
    assert!(first.ports.contains(heard(&udp).unwrap().port()), "the honest source still works");

    // Payload to payload, payload to VM, and the cloud's metadata service.
    let neighbour = inside(own(&two), || UdpSocket::bind(("0.0.0.0", 6000)).unwrap());
    let vm = UdpSocket::bind(("0.0.0.0", 6000)).unwrap();
    let metadata = bed.peer.inside(|| {
        give(Ipv4Addr::new(169, 254, 169, 254).into());
        UdpSocket::bind(("0.0.0.0", 6000)).unwrap()
    });
    route(PEER);
    for (socket, to) in [
        (&neighbour, second.inner),
        (&vm, VM),
        (&vm, first.gateway),
        (&vm, second.gateway),
        (&metadata, Ipv4Addr::new(169, 254, 169, 254)),
    ] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        send_udp(&one, (first.inner, 0), (to, 6000));
        assert_eq!(heard(socket), None, "a packet to {to} passed");
    }
    // Nobody outside reaches a payload that has not called first.
    let gateway_of_peer = bed.peer.inside(|| {
        route(VM);
        UdpSocket::bind((PEER, 0)).unwrap()
    });
    gateway_of_peer.send_to(b"x", (second.inner, 6000)).unwrap();
    assert_eq!(heard(&neighbour), None, "an unasked packet reached a payload");
}

/// Port or identifier that arrived for each protocol, sent by the calling thread.
fn arrivals(bed: &Bed, port: u16, uid: u32) -> Vec<u16> {
    let udp = bed.udp(9000);
    let listener = bed.peer.inside(|| TcpListener::bind((PEER, 9000)).unwrap());
    let (echoes, echoes6) =
        (bed.raw(AddressFamily::Inet, SockProtocol::Icmp), bed.raw(AddressFamily::Inet6, SockProtocol::IcmpV6));
    let udp6 = bed.udp_at(PEER6.into(), 9000);
    as_user(uid, || UdpSocket::bind((VM, port)).unwrap().send_to(b"x", (PEER, 9000)).unwrap());
    as_user(uid, || UdpSocket::bind((VM6, port)).unwrap().send_to(b"x", (PEER6, 9000)).unwrap());
    let stream = as_user(uid, || TcpStream::connect((PEER, 9000)).unwrap());
    let accepted = listener.accept().unwrap().1;
    drop(stream);
    as_user(uid, || assert!(ping(port) && ping6(port)));
    vec![heard(&udp).unwrap().port(), heard(&udp6).unwrap().port(), accepted.port(), echo(&echoes), echo(&echoes6)]
}

#[test]
fn the_vms_own_packets_leave_from_the_block_of_their_user() {
    let bed = Bed::dual();
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    let [(_, system), (_, pilot)] = bed.networks.own_leases();
    assert_eq!((system.first, system.last, pilot.first, pilot.last), (2048, 4095, 4096, 10239));
    for (turn, (uid, block)) in (0..).zip([(0, system), (999, system), (1000, pilot), (65534, pilot)]) {
        for port in [3000, 5000, 30000, 65500] {
            // A port of another's would be part of the other's connection.
            let arrived = arrivals(&bed, port + turn, uid);
            assert!(arrived.iter().all(|port| block.contains(*port)), "uid {uid} bound {port}: {arrived:?}");
        }
    }
    // A privileged port is the system's in any case, and servers of NFS insist on it.
    UdpSocket::bind((VM, 123)).unwrap().send_to(b"x", (PEER, 9001)).ok();
    let udp = bed.udp(9001);
    UdpSocket::bind((VM, 123)).unwrap().send_to(b"x", (PEER, 9001)).unwrap();
    assert_eq!(heard(&udp).unwrap().port(), 123);
    // DHCP has its own.
    let dhcp = bed.udp(67);
    UdpSocket::bind((VM, 68)).unwrap().send_to(b"x", (PEER, 67)).unwrap();
    assert_eq!(heard(&dhcp).unwrap().port(), 68);
    // And what others began keeps its port: answers of a server in the VM.
    let server = UdpSocket::bind((VM, 30001)).unwrap();
    let client = bed.udp(0);
    client.send_to(b"x", (VM, 30001)).unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    server.send_to(b"x", from).unwrap();
    assert_eq!(heard(&client).unwrap().port(), 30001);
}

#[test]
fn a_connection_of_the_vm_survives_the_agents_start() {
    let peer = network();
    let listener = peer.inside(|| TcpListener::bind((PEER, 9000)).unwrap());
    let mut stream = TcpStream::connect((PEER, 9000)).unwrap();
    let (mut accepted, from) = listener.accept().unwrap();
    let bed = Bed::on(peer, |config| config.ports = "4096-65535".to_owned().try_into().unwrap());
    assert!(bed.networks.own_leases().iter().all(|(_, block)| !block.contains(from.port())), "the test says nothing");
    stream.write_all(b"on").unwrap();
    accepted.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    accepted.read_exact(&mut [0; 2]).unwrap();
}

#[test]
fn every_payload_has_an_ipv6_address_of_its_own() {
    let bed = Bed::dual();
    let (first, one) = bed.payload(0);
    let (_, two) = bed.payload(1);
    let (address, other) = (one.ipv6().unwrap(), two.ipv6().unwrap());
    assert!(address != other && address.segments()[..4] == VM6.segments()[..4] && address != VM6);
    assert_eq!(one.leases(), [Lease::Ports(first.ports), Lease::Address(address)]);
    let udp = bed.udp_at(PEER6.into(), 9000);
    let listener = bed.peer.inside(|| TcpListener::bind((PEER6, 9000)).unwrap());
    let pings = bed.raw(AddressFamily::Inet6, SockProtocol::IcmpV6);
    for (namespace, address) in [(&one, address), (&two, other)] {
        let started = Instant::now();
        send_udp(namespace, (Ipv6Addr::UNSPECIFIED, 0), (PEER6, 9000));
        assert_eq!(heard(&udp).unwrap().ip(), address);
        let mut stream = inside(own(namespace), || TcpStream::connect((PEER6, 9000)).unwrap());
        // The peer has to ask who the address is; the VM answers at once.
        assert!(started.elapsed() < Duration::from_millis(700), "{:?}", started.elapsed());
        let (mut accepted, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), address);
        accepted.write_all(b"back").unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert!(inside(own(namespace), || ping6(5)));
        echo(&pings);
    }
    // Nothing unasked comes in, from outside or from the neighbour, and the VM is closed.
    let waiting = inside(own(&two), || UdpSocket::bind(("::", 6000)).unwrap());
    let vm = UdpSocket::bind(("::", 6000)).unwrap();
    for socket in [&waiting, &vm] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    udp.send_to(b"x", (other, 6000)).unwrap();
    assert_eq!(heard(&waiting), None);
    send_udp(&one, (Ipv6Addr::UNSPECIFIED, 0), (other, 6000));
    assert_eq!(heard(&waiting), None);
    UdpSocket::bind((VM6, 0)).unwrap().send_to(b"x", (other, 6000)).ok();
    assert_eq!(heard(&waiting), None, "the VM itself reached a payload");
    send_udp(&one, (Ipv6Addr::UNSPECIFIED, 0), (VM6, 6000));
    assert_eq!(heard(&vm), None);
    // The neighbour's and the VM's addresses are of no use, not even in a connection that is there.
    send_udp(&two, (other, 5000), (PEER6, 9000));
    assert_eq!(heard(&udp).unwrap(), (other, 5000).into());
    inside(own(&one), move || [other, VM6].map(|address| give(address.into())));
    for source in [other, VM6] {
        send_udp(&one, (source, 5000), (PEER6, 9000));
        assert_eq!(heard(&udp), None, "{source} passed");
    }
    assert!(bed.networks.remove(&first));
    // A new network has a new address, and one that only stands there was not used.
    let (first, again) = bed.payload(0);
    assert!(again.ipv6().is_some_and(|new| new != address));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!bed.networks.remove(&first), "noise of the kernel counts as use");
}

/// A datagram from an address that the VM need not have: no right is needed for that.
fn send_freely(from: SocketAddr, to: SocketAddr) {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let free = socket(family, SockType::Datagram, SockFlag::empty(), None).unwrap();
    // The same bit of the socket for both families.
    setsockopt(&free, sockopt::IpFreebind, &true).unwrap();
    bind(free.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    let _ = sendto(free.as_raw_fd(), b"x", &SockaddrStorage::from(to), MsgFlags::empty());
}

/// A namespace behind the VM that the agent knows nothing of, with an address of its own and this one.
fn container(address: Ipv6Addr) -> OwnedFd {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    };
    let namespace: OwnedFd = std::thread::spawn(make).join().unwrap();
    let (gateway, mac) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 1), [2, 0, 0, 0, 1, 1]);
    let mut here = Netlink::open().unwrap();
    let there = End { name: "eth0", mac: [2, 0, 0, 0, 1, 2] };
    here.veth(End { name: "box0", mac }, there, namespace.as_fd(), 1500).unwrap();
    let index = here.link("box0").unwrap().index;
    here.apply(vec![Change::up(index), Change::address(index, gateway.into(), 64)]).unwrap();
    inside(namespace.try_clone().unwrap(), move || {
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("eth0").unwrap().index;
        let changes = vec![
            Change::up(index),
            Change::address(index, BEHIND6.into(), 64),
            Change::address(index, address.into(), 128),
            Change::neighbour(index, gateway.into(), mac),
            Change::default_route(gateway.into(), Some(index)),
        ];
        netlink.apply(changes).unwrap();
        wait_for("the addresses", || [BEHIND6, address].iter().all(|own| UdpSocket::bind((*own, 0)).is_ok()));
        wait_for("the container's cable", || netlink.link("eth0").unwrap().running);
    });
    namespace
}

#[test]
fn nobody_in_the_vm_sends_from_an_address_that_it_does_not_have() {
    let peer = network();
    give6(VM6);
    peer.inside(|| give6(PEER6));
    // It forwards for others too.
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    let bed = Bed::on(peer, |_| {});
    let (plan, namespace) = bed.payload(0);
    let address = namespace.ipv6().unwrap();
    let mut free = address.segments();
    free[7] ^= 1;
    let free = Ipv6Addr::from(free);
    let (udp, udp6) = (bed.udp(9000), bed.udp_at(PEER6.into(), 9000));
    for uid in [1000, 0] {
        for source in [address, free] {
            as_user(uid, || send_freely((source, 5000).into(), (PEER6, 9000).into()));
            assert_eq!(heard(&udp6), None, "uid {uid} sent from {source}");
        }
        for source in [plan.inner, Ipv4Addr::new(10, 9, 0, 77)] {
            as_user(uid, || send_freely((source, 5000).into(), (PEER, 9000).into()));
            assert_eq!(heard(&udp), None, "uid {uid} sent from {source}");
        }
        // The same socket with an honest address: the test can hear.
        as_user(uid, || send_freely((VM6, 5000).into(), (PEER6, 9000).into()));
        assert_eq!(heard(&udp6).unwrap().ip(), VM6);
        as_user(uid, || send_freely((VM, 5000).into(), (PEER, 9000).into()));
        assert_eq!(heard(&udp).unwrap().ip(), VM);
    }
    // Not even inside: a payload hears nobody who says he is its peer, and the VM nobody who says he is a payload.
    let asking = inside(own(&namespace), move || UdpSocket::bind((address, 5001)).unwrap());
    let vm = UdpSocket::bind((VM6, 7000)).unwrap();
    for socket in [&asking, &vm] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    asking.send_to(b"x", (PEER6, 9000)).unwrap();
    assert!(heard(&udp6).is_some());
    as_user(1000, || send_freely((PEER6, 9000).into(), (address, 5001).into()));
    assert_eq!(heard(&asking), None, "a user of the VM is taken for the peer");
    udp6.send_to(b"x", (address, 5001)).unwrap();
    assert_eq!(heard(&asking), Some((PEER6, 9000).into()));
    as_user(1000, || send_freely((address, 5001).into(), (VM6, 7000).into()));
    assert_eq!(heard(&vm), None, "a user of the VM is taken for a payload");
    as_user(1000, || send_freely((VM6, 5001).into(), (VM6, 7000).into()));
    assert!(heard(&vm).is_some());
    // Nor does anybody behind the VM: a container that takes the payload's address.
    let behind = container(address);
    let send_from = |source: Ipv6Addr| {
        let behind = behind.try_clone().unwrap();
        inside(behind, move || UdpSocket::bind((source, 5000)).unwrap().send_to(b"x", (PEER6, 9000)).unwrap());
    };
    send_from(address);
    assert_eq!(heard(&udp6), None, "a container sent from a payload's address");
    send_from(BEHIND6);
    assert_eq!(heard(&udp6).unwrap().ip(), BEHIND6, "its own address is its own affair");
    send_udp(&namespace, (address, 5000), (PEER6, 9000));
    assert_eq!(heard(&udp6).unwrap().ip(), address, "the payload itself still can");
}

#[test]
fn ipv6_that_comes_later_is_used_and_answered_for() {
    let bed = Bed::new();
    let (plan, before) = bed.payload(0);
    assert_eq!(before.ipv6(), None);
    dual(&bed.peer);
    bed.networks.look();
    assert_eq!(bed.networks.no_ipv6(), None);
    assert!(!bed.networks.fits(&before) && bed.networks.renew(&plan, before).is_err(), "it has no IPv6");
    let (_, namespace) = bed.payload(1);
    let udp = bed.udp_at(PEER6.into(), 9000);
    send_udp(&namespace, (Ipv6Addr::UNSPECIFIED, 0), (PEER6, 9000));
    assert_eq!(Some(heard(&udp).unwrap().ip()), namespace.ipv6().map(IpAddr::V6));
    // An answer comes only if the VM says whose the address is.
    assert!(inside(own(&namespace), || ping6(5)));
}

#[test]
fn without_a_prefix_there_is_no_ipv6() {
    let bed = Bed::new();
    let (_, namespace) = bed.payload(0);
    assert_eq!(namespace.ipv6(), None);
    assert!(bed.networks.no_ipv6().is_some_and(|why| why.contains("/64")));
    let addresses = inside(own(&namespace), || fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
    assert!(!addresses.contains("eth0"), "{addresses}");
    let off = Bed::with(|config| config.ipv6 = guest_agent::network::ipv6::Setting::Off);
    assert!(off.networks.no_ipv6().unwrap().contains("off"));
    // One that the site routes to the VM need not be the uplink's.
    let routed = Bed::with(|config| config.ipv6 = "fd00:1:2:3::/64".to_owned().try_into().unwrap());
    let address = routed.payload(0).1.ipv6().unwrap();
    assert_eq!(address.segments()[..4], [0xfd00, 1, 2, 3]);
}

#[test]
fn forwarding_keeps_the_router_that_the_vm_learnt() {
    let peer = network();
    fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
    let _bed = Bed::on(peer, |_| {});
    let read = |key: &str| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{key}")).unwrap();
    assert_eq!((read("all/forwarding").trim(), read("eth0/accept_ra").trim()), ("1", "2"));
}

/// Puts a file in the place of the VM's `/etc/resolv.conf`, for this thread.
fn resolv_conf(folder: &Path, text: &str) {
    let file = folder.join("resolv.conf");
    fs::write(&file, text).unwrap();
    mount(Some(&file), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn a_name_server_on_the_vms_loopback_answers_payloads_and_nothing_else_does() {
    let peer = network();
    let folder = tempfile::tempdir().unwrap();
    resolv_conf(folder.path(), "search example.org\nnameserver 127.0.0.1\n");
    let bed = Bed::on(peer, |_| {});
    let (plan, namespace) = bed.payload(0);
    let dns = bed.config.inner_network.dns();
    assert_eq!(bed.networks.resolv_conf().unwrap(), format!("search example.org\nnameserver {dns}\n"));
    let udp = UdpSocket::bind("127.0.0.1:53").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:53").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let asking = inside(own(&namespace), || UdpSocket::bind("0.0.0.0:0").unwrap());
    asking.set_read_timeout(Some(PATIENCE)).unwrap();
    asking.send_to(b"?", (dns, 53)).unwrap();
    let from = heard(&udp).unwrap();
    udp.send_to(b"!", from).unwrap();
    assert_eq!(heard(&asking), Some((dns, 53).into()));
    let mut stream = inside(own(&namespace), move || TcpStream::connect((dns, 53)).unwrap());
    let (mut answering, _) = tcp.accept().unwrap();
    answering.write_all(b"!").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    // Not another port, nor the server's address itself, nor anything behind the other addresses of the VM.
    let other = UdpSocket::bind("127.0.0.1:5300").unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    inside(own(&namespace), || {
        let index = Netlink::open().unwrap().link("eth0").unwrap().index;
        // Loopback addresses would not leave the payload's namespace otherwise.
        Netlink::open().unwrap().apply(vec![Change::raise(index, false, true)]).unwrap();
        let _ = std::process::Command::new("ip")
            .args(["route", "del", "table", "local", "127.0.0.0/8", "dev", "lo"])
            .status();
        let _ = std::process::Command::new("ip")
            .args(["route", "del", "table", "local", "127.0.0.1", "dev", "lo"])
            .status();
    });
    for (socket, to) in [
        (&other, (dns, 5300)),
        (&other, (Ipv4Addr::LOCALHOST, 5300)),
        (&udp, (Ipv4Addr::LOCALHOST, 53)),
        (&udp, (plan.gateway, 53)),
        (&udp, (VM, 53)),
    ] {
        send_udp(&namespace, (plan.inner, 0), to);
        assert_eq!(heard(socket), None, "{to:?} was reached");
    }
    // The server asked on behalf of the payload: that is use.
    let gone = bed.networks.renew(&plan, namespace);
    assert!(matches!(gone, Err(true)), "{gone:?}");
    // The VM moves to a server outside: the text follows, and the way in is closed.
    fs::write(folder.path().join("resolv.conf"), format!("nameserver {PEER}\n")).unwrap();
    wait_for("the new server", || bed.networks.resolv_conf().unwrap() == format!("nameserver {PEER}\n"));
    let (_, namespace) = bed.payload(1);
    send_udp(&namespace, (Ipv4Addr::UNSPECIFIED, 0), (dns, 53));
    assert_eq!(heard(&udp), None);
    let outside = bed.udp(53);
    send_udp(&namespace, (Ipv4Addr::UNSPECIFIED, 0), (PEER, 53));
    assert!(heard(&outside).is_some());
}

#[test]
fn one_payload_cannot_take_the_connections_of_the_others() {
    let bed = Bed::with(|config| config.connections = 50);
    let (plan, one) = bed.payload(0);
    let (_, two) = bed.payload(1);
    let udp = bed.udp(9000);
    let burst = |namespace: &Namespace, count: u32| {
        inside(own(namespace), move || {
            for _ in 0..count {
                let _ = UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (PEER, 9000));
            }
        });
    };
    udp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let arrived = || std::iter::from_fn(|| heard(&udp)).count();
    burst(&one, 200);
    let count = arrived();
    assert!((40..=51).contains(&count), "{count} of 200 with a bound of 50");
    // By then the bound on new connections a second alone would let all of them through.
    std::thread::sleep(Duration::from_millis(1600));
    burst(&one, 10);
    let count = arrived();
    assert!(count <= 2, "there is room for {count} again though nothing has ended");
    burst(&two, 10);
    assert_eq!(arrived(), 10, "the neighbour suffers");
    // The next payload of the same slot does not inherit it.
    assert!(bed.networks.remove(&plan));
    drop(one);
    let (_, next) = bed.payload(0);
    burst(&next, 10);
    assert_eq!(arrived(), 10, "the next one suffers");
}

#[test]
fn the_next_payload_of_a_slot_inherits_no_connection() {
    let bed = Bed::dual();
    let (udp, udp6) = (bed.udp(9000), bed.udp_at(PEER6.into(), 9000));
    let vm = UdpSocket::bind((VM, 9001)).unwrap();
    vm.send_to(b"x", (PEER, 9000)).unwrap();
    let of_vm = heard(&udp).unwrap();
    let (plan, one) = bed.payload(0);
    let (_, other) = bed.payload(1);
    // A neighbour and the VM itself keep theirs.
    let kept = inside(own(&other), || UdpSocket::bind(("0.0.0.0", 5000)).unwrap());
    kept.send_to(b"x", (PEER, 9000)).unwrap();
    let of_other = heard(&udp).unwrap();
    let first = inside(own(&one), || UdpSocket::bind(("0.0.0.0", 5000)).unwrap());
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    first.send_to(b"x", (PEER, 9000)).unwrap();
    let old = heard(&udp).unwrap();
    udp.send_to(b"x", old).unwrap();
    assert!(heard(&first).is_some(), "the peer's way back");
    send_udp(&one, (Ipv6Addr::UNSPECIFIED, 5006), (PEER6, 9000));
    assert!(heard(&udp6).is_some());
    let tracked = |inner: &str| {
        let text = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
        text.lines().filter(|line| line.contains(inner)).count()
    };
    let (inner, address) = (format!("src={} ", plan.inner), ipv6_in_full(one.ipv6().unwrap()));
    assert_eq!((tracked(&inner), tracked(&address)), (1, 1), "the test says nothing");
    drop(first);
    assert!(matches!(bed.networks.renew(&plan, one), Err(true)));
    assert_eq!((tracked(&inner), tracked(&address)), (0, 0));

    let (_, two) = bed.payload(0);
    let second = inside(own(&two), || UdpSocket::bind(("0.0.0.0", 5000)).unwrap());
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    udp.send_to(b"x", old).unwrap();
    assert_eq!(heard(&second), None, "it got what its predecessor had asked for");
    second.send_to(b"x", (PEER, 9000)).unwrap();
    let new = heard(&udp).unwrap();
    assert!(plan.ports.contains(new.port()) && tracked(&inner) == 1);
    udp.send_to(b"x", new).unwrap();
    assert!(heard(&second).is_some(), "its own connection works");
    for (to, socket) in [(of_vm, &vm), (of_other, &kept)] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        udp.send_to(b"x", to).unwrap();
        assert!(heard(socket).is_some(), "{to} lost its connection");
    }
    // An agent that starts again knows nothing of the payloads before it.
    let _again = Networks::start(&bed.config).unwrap();
    assert_eq!(tracked(&inner), 0);
    assert!(matches!(bed.networks.renew(&plan, two), Err(true)), "one datagram is use");
}

/// As connection tracking writes it.
fn ipv6_in_full(address: Ipv6Addr) -> String {
    let words: Vec<String> = address.segments().iter().map(|word| format!("{word:04x}")).collect();
    format!("src={} ", words.join(":"))
}

#[test]
fn an_unused_network_serves_again_and_a_used_one_does_not() {
    let bed = Bed::dual();
    let (plan, namespace) = bed.payload(0);
    let name = namespace.interface().to_owned();
    // A socket that somebody still holds: not empty. It goes in a moment after it was closed.
    let held = inside(own(&namespace), || UdpSocket::bind("127.0.0.1:0").unwrap());
    let namespace = {
        let gone = bed.networks.renew(&plan, namespace);
        assert!(matches!(gone, Err(false)), "{gone:?}");
        drop(held);
        bed.payload(0).1
    };
    assert_ne!(namespace.interface(), name);
    let (name, leases) = (namespace.interface().to_owned(), namespace.leases());
    drop(inside(own(&namespace), || UdpSocket::bind("127.0.0.1:0").unwrap()));
    std::thread::sleep(Duration::from_millis(100));
    let namespace = bed.networks.renew(&plan, namespace).unwrap();
    assert_eq!((namespace.interface(), namespace.leases()), (name.as_str(), leases));
    let udp = bed.udp(9000);
    send_udp(&namespace, (Ipv4Addr::UNSPECIFIED, 0), (PEER, 9000));
    assert!(plan.ports.contains(heard(&udp).unwrap().port()));
    std::thread::sleep(Duration::from_millis(100));
    assert!(matches!(bed.networks.renew(&plan, namespace), Err(true)));
    assert!(!bed.payload(0).1.leases().is_empty(), "the slot is free again");
}

#[test]
fn the_rules_know_what_the_encoder_says() {
    let bed = Bed::dual();
    let (plan, namespace) = bed.payload(3);
    let list = || {
        let output = std::process::Command::new("nft").args(["list", "table", "inet", "vestigo"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (name, text) = (namespace.interface().to_owned(), list());
    for line in [
        format!("elements = {{ \"{name}\" . 100.64.0.14 counter packets 0 bytes 0 }}"),
        format!("elements = {{ \"{name}\" . 100.64.0.14 : {VM} . 13312-14335 }}"),
        format!("elements = {{ \"{name}\" : 0x6440000e }}"),
        format!("elements = {{ {} }}", namespace.ipv6().unwrap()),
        format!("elements = {{ \"{name}\" . {} counter packets 0 bytes 0 }}", namespace.ipv6().unwrap()),
        format!("elements = {{ \"{name}\" limit rate over 512/second burst 4096 packets }}"),
    ] {
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    for key in ["rp_filter", "route_localnet"] {
        assert_eq!(fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/{key}")).unwrap().trim(), "1", "{key}");
    }
    bed.networks.remove(&plan);
    assert!(!list().contains("elements = { \"vgp"), "{}", list());
}

#[test]
fn a_second_start_clears_what_the_first_left() {
    let bed = Bed::new();
    let (_, namespace) = bed.payload(3);
    let again = Networks::start(&bed.config).unwrap();
    assert!(Netlink::open().unwrap().link(namespace.interface()).is_err());
    drop(namespace);
    let _namespace = again.add(&bed.plan(3)).unwrap();
}

#[test]
fn fifty_networks_leave_nothing() {
    let bed = Bed::dual();
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for round in 0..50 {
        let (plan, namespace) = bed.payload(round % 5);
        assert!(bed.networks.fits(&namespace));
        assert!(!bed.networks.remove(&plan));
        drop(namespace);
        if round == 0 {
            before = descriptors();
        }
    }
    assert!(descriptors() <= before + 20, "descriptors leak: other tests of this process open some, but not 50");
    let said = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!said("nft", &["list", "table", "inet", "vestigo"]).contains("elements = { \"vgp"));
    assert_eq!(said("ip", &["-6", "neigh", "show", "proxy"]), "");
    wait_for("the kernel to clear up", || !uplink::interfaces().unwrap().iter().any(|name| name.starts_with("vgp")));
    assert!(!said("ip", &["-6", "route", "show"]).contains("vgp"));
}

/// Bytes a second from a namespace to the peer over one TCP connection, for half a second.
fn blast(bed: &Bed, from: Option<OwnedFd>) -> f64 {
    let listener = bed.peer.inside(|| TcpListener::bind((PEER, 9100)).unwrap());
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut sum, start) = (vec![0; 256 * 1024], 0, Instant::now());
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 {
                break;
            }
            sum += count;
        }
        sum as f64 / start.elapsed().as_secs_f64()
    });
    let connect = || TcpStream::connect((PEER, 9100)).unwrap();
    let mut stream = from.map_or_else(connect, |namespace| inside(namespace, connect));
    let (buffer, start) = (vec![0; 256 * 1024], Instant::now());
    while start.elapsed() < Duration::from_millis(500) {
        stream.write_all(&buffer).unwrap();
    }
    drop(stream);
    reader.join().unwrap()
}

/// The figure of the issue is 90 % of the VM's own, on a quiet machine; a test machine is not quiet.
#[test]
fn a_payload_sends_about_as_fast_as_the_vm() {
    let bed = Bed::new();
    let (_, namespace) = bed.payload(0);
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        direct.push(blast(&bed, None));
        through.push(blast(&bed, Some(own(&namespace))));
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (direct, through) = (median(direct), median(through));
    println!("throughput_vm_gbit_s: {:.1}\nthroughput_payload_gbit_s: {:.1}", direct * 8e-9, through * 8e-9);
    println!("throughput_ratio_vs_vm: {:.2}", through / direct);
    assert!(through > direct * 0.5, "{through} of {direct}");
}
