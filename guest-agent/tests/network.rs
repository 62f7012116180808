//! The rules that make a flow attributable by arithmetic, on real packets between network namespaces.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use common::{PEER, Peer, VM, inside, network};
use guest_agent::{
    config::Config,
    lease::Slot,
    network::{Namespace, Networks, Plan, netlink::Netlink, settle},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv, sendto, setsockopt, socket,
    sockopt,
};

const PATIENCE: Duration = Duration::from_millis(400);

struct Bed {
    peer: Peer,
    networks: Networks,
    config: Config,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let peer = network();
        let folder = tempfile::tempdir().unwrap();
        let config = Config { state_dir: folder.path().into(), ..Config::default() };
        let networks = Networks::start(&config).unwrap();
        Self { peer, networks, config, _folder: folder }
    }

    fn payload(&mut self, slot: u16) -> (Plan, Namespace) {
        let slot = Slot(slot);
        let plan = Plan::new(self.config.inner_network.base, slot, self.config.blocks().unwrap().ports(slot));
        let mut namespace = self.networks.add(&plan).unwrap();
        settle(|| namespace.carries() && self.networks.carries(&plan));
        (plan, namespace)
    }

    fn udp(&self, port: u16) -> UdpSocket {
        let socket = self.peer.inside(move || UdpSocket::bind((PEER, port)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

fn own(namespace: &Namespace) -> OwnedFd {
    namespace.fd().try_clone_to_owned().unwrap()
}

fn send_udp(namespace: &Namespace, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
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
    let mut bed = Bed::new();
    let (first, one) = bed.payload(0);
    let (second, two) = bed.payload(43);
    let udp = bed.udp(9000);
    let listener = bed.peer.inside(|| TcpListener::bind((PEER, 9000)).unwrap());
    let pings =
        bed.peer.inside(|| socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp).unwrap());
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
        let id = ping(namespace, &pings);
        assert!(plan.ports.contains(id), "echo id {id}");
    }
    assert!(!bed.networks.untouched(&first), "it was used");
    assert!(!bed.networks.untouched(&second));
    let (third, _three) = bed.payload(7);
    assert!(bed.networks.untouched(&third), "it never sent");
}

/// Sends an echo request as ping does without rights, and gives the identifier that the peer saw.
fn ping(namespace: &Namespace, pings: &OwnedFd) -> u16 {
    use std::os::fd::AsRawFd;
    inside(own(namespace), || {
        let echo = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp).unwrap();
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(PEER, 0));
        bind(echo.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 77))).unwrap();
        sendto(echo.as_raw_fd(), &[8, 0, 0, 0, 0, 0, 0, 1], &to, MsgFlags::empty()).unwrap();
    });
    let mut packet = [0; 128];
    loop {
        setsockopt(pings, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(2, 0)).unwrap();
        let count = recv(pings.as_fd().as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        // The IP header has 20 bytes here; type 8 is a request.
        if count >= 28 && packet[20] == 8 {
            return u16::from_be_bytes([packet[24], packet[25]]);
        }
    }
}

#[test]
fn a_neighbours_address_and_everything_else_forbidden_is_dropped() {
    let mut bed = Bed::new();
    let (first, one) = bed.payload(0);
    let (second, two) = bed.payload(1);
    let udp = bed.udp(9000);
    // The victim has a connection, so that a spoofed packet would find a translation ready.
    send_udp(&two, (second.inner, 5000), (PEER, 9000));
    assert!(second.ports.contains(heard(&udp).unwrap().port()));
    let (victim, stranger) = (second.inner, Ipv4Addr::new(100, 64, 200, 2));
    inside(own(&one), move || {
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("eth0").unwrap().index;
        netlink.address(index, victim, 32).unwrap();
        netlink.address(index, stranger, 32).unwrap();
    });
    for source in [victim, stranger] {
        // Also with the reverse-path filter off: the set alone must hold.
        for filter in ["1", "0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{}/rp_filter", first.interface), filter).unwrap();
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
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("eth0").unwrap().index;
        netlink.address(index, Ipv4Addr::new(169, 254, 169, 254), 32).unwrap();
        UdpSocket::bind(("0.0.0.0", 6000)).unwrap()
    });
    let mut netlink = Netlink::open().unwrap();
    netlink.default_route(PEER).unwrap();
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
        Netlink::open().unwrap().default_route(VM).unwrap();
        UdpSocket::bind((PEER, 0)).unwrap()
    });
    gateway_of_peer.send_to(b"x", (second.inner, 6000)).unwrap();
    assert_eq!(heard(&neighbour), None, "an unasked packet reached a payload");
}

#[test]
fn the_vms_own_connections_stay_out_of_the_blocks() {
    let bed = Bed::new();
    let udp = bed.udp(9000);
    for port in [0, 30000, 65535] {
        UdpSocket::bind((VM, port)).unwrap().send_to(b"x", (PEER, 9000)).unwrap();
        let from = heard(&udp).unwrap();
        assert!(from.port() < bed.config.ports.first, "bound to {port}, arrived from {from}");
    }
    // A low port is left as it is.
    UdpSocket::bind((VM, 123)).unwrap().send_to(b"x", (PEER, 9000)).unwrap();
    assert_eq!(heard(&udp).unwrap().port(), 123);
}

#[test]
fn a_second_start_clears_what_the_first_left() {
    let mut bed = Bed::new();
    let (plan, _namespace) = bed.payload(3);
    let again = Networks::start(&bed.config).unwrap();
    drop(again);
    assert!(Netlink::open().unwrap().link(&plan.interface).is_err());
    let (_, namespace) = bed.payload(3);
    drop(namespace);
}
