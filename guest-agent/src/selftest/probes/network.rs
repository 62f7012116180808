//! Ways to reach others, or to look like them, through the network.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, sendto, setsockopt, socket,
        sockopt::{IpFreebind, IpTransparent},
    },
};

use super::{Probe, Stage, Verdict};
use crate::selftest::{Orders, broken, held, not_tested};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "vm-ports",
        rules: &["R-ISO-6", "R-ISO-29", "R-ISO-37"],
        what: "a port that the VM listens on answers",
        stage: Stage::Attack,
        run: vm_ports,
    },
    Probe {
        name: "neighbour",
        rules: &["R-ISO-26", "R-ISO-37"],
        what: "a port that another payload listens on answers",
        stage: Stage::Attack,
        run: neighbour,
    },
    Probe {
        name: "metadata-address",
        rules: &["R-ISO-3", "R-ISO-29"],
        what: "the cloud's metadata service answers, which may hold the pilot's secrets",
        stage: Stage::Attack,
        run: metadata_address,
    },
    Probe {
        name: "spoofed-source",
        rules: &["R-ISO-37"],
        what: "packets with another payload's address leave the VM",
        stage: Stage::Attack,
        run: send,
    },
    Probe {
        name: "neighbours-ports",
        rules: &["R-ISO-37"],
        what: "packets leave the VM with a source port of another payload's block",
        stage: Stage::Attack,
        run: |_| not_tested("sent together with the spoofed packets; the VM's side looks"),
    },
    Probe {
        name: "spoofed-source-6",
        rules: &["R-ISO-37"],
        what: "packets with another payload's IPv6 address leave the VM",
        stage: Stage::Attack,
        run: send6,
    },
];

const PATIENCE: Duration = Duration::from_millis(700);
/// Nobody answers there, and nobody minds (discard).
pub const DISCARD: u16 = 9;

/// The first that answers; together they may take 4 s.
fn answers(all: &[SocketAddr]) -> Option<&SocketAddr> {
    std::thread::scope(|scope| {
        let tries: Vec<_> = all
            .iter()
            .take(32)
            .map(|address| {
                scope.spawn(move || TcpStream::connect_timeout(address, PATIENCE).is_ok().then_some(address))
            })
            .collect();
        tries.into_iter().filter_map(|attempt| attempt.join().ok().flatten()).next()
    })
}

fn none_of(all: &[SocketAddr]) -> Verdict {
    match answers(all) {
        Some(address) => broken(format!("{address} answers")),
        None if all.is_empty() => not_tested("no bait could be laid"),
        None => held(format!("none of {} answers", all.len())),
    }
}

fn vm_ports(orders: &Orders) -> Verdict {
    none_of(&orders.vm)
}

fn neighbour(orders: &Orders) -> Verdict {
    none_of(&orders.neighbours)
}

fn metadata_address(_: &Orders) -> Verdict {
    none_of(&[80, 8080].map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), port)))
}

/// What the packets say: three of IPv4, two of IPv6.
#[must_use]
pub fn marks(token: &str) -> [String; 5] {
    ["own", "spoofed", "block", "own6", "spoofed6"].map(|what| format!("vestigo selftest {token} {what}"))
}

/// A socket that sends from there, whoever has the address.
fn from(source: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // One switch for both families.
    setsockopt(&fd, IpFreebind, &true)?;
    // Only who administers the network may; without it the kernel sends nothing from an IPv4 address that is not its own.
    let _ = setsockopt(&fd, IpTransparent, &true);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
    Ok(fd)
}

/// Sends each mark from its source. What came of it, in words.
fn send_from<'a>(peer: IpAddr, packets: impl Iterator<Item = (&'a String, SocketAddr)>) -> String {
    let to = SockaddrStorage::from(SocketAddr::new(peer, DISCARD));
    let said = packets.map(|(mark, source)| {
        let sent = from(source).and_then(|fd| {
            (0..2).try_for_each(|_| sendto(fd.as_raw_fd(), mark.as_bytes(), &to, MsgFlags::empty()).map(drop))
        });
        sent.map_or_else(|error| error.to_string(), |()| "sent".to_owned())
    });
    said.collect::<Vec<_>>().join(", ")
}

/// One packet as it should be, one with another payload's address, one from a port of another payload's block.
fn send(orders: &Orders) -> Verdict {
    let (Some(peer), Some(address), Some(port)) = (orders.peer, orders.foreign_address, orders.foreign_port) else {
        return not_tested("no host outside of the VM is known; name one with --peer");
    };
    let sources = [(Ipv4Addr::UNSPECIFIED, 0), (address, port), (Ipv4Addr::UNSPECIFIED, port)];
    let sources = sources.map(|(address, port)| SocketAddr::new(address.into(), port));
    let said = send_from(peer.into(), marks(&orders.token).iter().zip(sources));
    not_tested(format!("own, spoofed, foreign port: {said}; the VM's side looks what leaves"))
}

/// One packet as it should be, one with another payload's address.
fn send6(orders: &Orders) -> Verdict {
    let Some(peer) = orders.peer6 else {
        return not_tested("no host outside of the VM is known that has IPv6; name one with --peer6");
    };
    let Some(address) = orders.foreign_address6 else { return not_tested("payloads have no IPv6 in this VM") };
    let sources = [Ipv6Addr::UNSPECIFIED, address].map(|address| SocketAddr::new(address.into(), 0));
    let said = send_from(peer.into(), marks(&orders.token).iter().skip(3).zip(sources));
    not_tested(format!("own, spoofed: {said}; the VM's side looks what leaves"))
}
