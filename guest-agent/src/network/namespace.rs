//! A payload's network namespace, and what is done inside it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::sched::{CloneFlags, unshare};
use vestigo_model::{Lease, PortBlock};

use super::{
    NetworkError, Plan, io,
    netlink::{Change, End, Netlink},
    write,
};

/// The payload's side of its pair.
pub(super) const INSIDE: End<'static> = End { name: "eth0", mac: [2, 0, 0, 0, 0, 2] };
/// Link-layer address of the VM's side: each pair is a network of its own.
pub(super) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The payload's way out over IPv6. Nobody has this address: the payload's neighbour table names the VM's side for it.
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A payload's network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    /// Its own `/proc/net/sockstat`.
    sockets: fs::File,
    pub(super) interface: String,
    ports: PortBlock,
    pub(super) outside: Ipv4Addr,
    pub(super) address6: Option<Ipv6Addr>,
}

impl Namespace {
    /// Made by a thread of its own: the daemon's other threads stay where they are.
    pub(super) fn new(
        interface: String,
        ports: PortBlock,
        outside: Ipv4Addr,
        address6: Option<Ipv6Addr>,
    ) -> Result<(Self, Netlink), NetworkError> {
        let make = move || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(io("make a network namespace"))?;
            let fd = fs::File::open("/proc/thread-self/ns/net").map_err(io("open the network namespace"))?.into();
            let sockets = fs::File::open("/proc/thread-self/net/sockstat").map_err(io("open the count of sockets"))?;
            // What leaves must be attributable: without a lease no IPv6 at all, with one no address but that. Absent
            // where the VM has no IPv6.
            let (key, value) = if address6.is_some() { ("accept_ra", "0") } else { ("disable_ipv6", "1") };
            let _ = write(&format!("net/ipv6/conf/default/{key}"), value);
            // ping without raw sockets.
            write("net/ipv4/ping_group_range", "0 2147483647")?;
            let netlink = Netlink::open().map_err(io("open a route socket inside"))?;
            Ok((Self { fd, sockets, interface, ports, outside, address6 }, netlink))
        };
        let thread = std::thread::Builder::new().name("namespace".into()).stack_size(128 * 1024).spawn(make);
        let thread = thread.map_err(io("start a thread"))?;
        thread.join().unwrap_or_else(|_| Err(io("make a network namespace")(io::Error::other("the thread died"))))
    }

    /// For setns(2).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether there is no socket in it, of whatever kind, nor the remains of a connection.
    pub(super) fn is_empty(&self) -> bool {
        let mut buffer = [0; 1024];
        let count = self.sockets.read_at(&mut buffer, 0).unwrap_or(0);
        is_empty(&String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()))
    }

    /// The VM's side of its pair.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// What marks the payload's packets.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        [Some(Lease::Ports(self.ports)), self.address6.map(Lease::Address)].into_iter().flatten().collect()
    }

    /// Its IPv6 address, if it has one.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.address6
    }
}

/// The same, in the text of `/proc/net/sockstat`.
fn is_empty(text: &str) -> bool {
    let number = |line: &str, name: &str| {
        let words = text.lines().find_map(|l| l.strip_prefix(line))?;
        words.split_whitespace().skip_while(|word| *word != name).nth(1)?.parse::<u64>().ok()
    };
    number("sockets:", "used") == Some(0) && number("TCP:", "tw") == Some(0)
}

/// What has to be done inside. The neighbour is known from the start, so that the payload never has to ask who it is.
pub(super) fn changes(plan: &Plan, index: u32, address6: Option<Ipv6Addr>) -> Vec<Change> {
    let gateway = IpAddr::V4(plan.gateway);
    let mut changes = vec![Change::up(1)];
    changes.push(Change::raise(index, address6.is_some(), false));
    changes.push(Change::address(index, plan.inner.into(), 30));
    changes.push(Change::neighbour(index, gateway, GATEWAY_MAC));
    changes.push(Change::default_route(gateway, None));
    if let Some(address) = address6 {
        changes.push(Change::address(index, address.into(), 128));
        changes.push(Change::neighbour(index, GATEWAY6.into(), GATEWAY_MAC));
        changes.push(Change::default_route(GATEWAY6.into(), Some(index)));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::is_empty;

    #[test]
    fn any_socket_or_time_wait_counts() {
        let text = |used: u8, tw: u8| {
            format!("sockets: used {used}\nTCP: inuse 0 orphan 3 tw {tw} alloc 7 mem 1\nUDP: inuse 0 mem 0\n")
        };
        assert!(is_empty(&text(0, 0)));
        assert!(!is_empty(&text(1, 0)) && !is_empty(&text(0, 1)) && !is_empty(""));
    }
}
