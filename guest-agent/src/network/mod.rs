//! A network namespace per payload, whose packets leave the VM only from the payload's own port block.
//!
//! Addresses and names are computed from the slot ([`Plan`]); [`netlink`] makes interfaces; [`nft`] holds the rules.

pub mod netlink;
pub mod nft;
pub mod uplink;

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use tracing::warn;
use vestigo_model::PortBlock;

use self::{netlink::Netlink, nft::Rules, uplink::Uplink};
use crate::{config::Config, lease::Slot};

/// What every VM-side interface of a payload begins with; the rules match it.
pub const PREFIX: &str = "vgp";

/// Longest wait for a new interface to carry packets.
const SETTLE: Duration = Duration::from_secs(2);

/// Why a payload has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A namespace, a setting or an address query failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The packet filter refused.
    #[error(transparent)]
    Rules(#[from] nft::NftError),
    /// There is no way out of the VM.
    #[error("{0}")]
    NoUplink(String),
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Io { what, source }
}

/// Everything about a payload's network that follows from its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// VM-side interface.
    pub interface: String,
    /// VM side's address, the payload's gateway.
    pub gateway: Ipv4Addr,
    /// The payload's address.
    pub inner: Ipv4Addr,
    /// Its source ports outside.
    pub ports: PortBlock,
}

impl Plan {
    /// Four addresses per slot: network, gateway, payload, broadcast.
    #[must_use]
    pub fn new(base: Ipv4Addr, slot: Slot, ports: PortBlock) -> Self {
        let first = u32::from(base) + u32::from(slot.0) * 4;
        Self {
            interface: format!("{PREFIX}{}", slot.0),
            gateway: Ipv4Addr::from(first + 1),
            inner: Ipv4Addr::from(first + 2),
            ports,
        }
    }
}

/// The VM's side of all payload networks. Removing it is left to the next start: rules without payloads harm nobody.
#[derive(Debug)]
pub struct Networks {
    netlink: Netlink,
    uplink: Option<String>,
}

impl Networks {
    /// Clears what an earlier agent left and sets up the rules.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn start(config: &Config) -> Result<Self, NetworkError> {
        let mut netlink = Netlink::open().map_err(io("open a route socket"))?;
        for name in uplink::interfaces().map_err(io("list interfaces"))?.into_iter().filter(|n| is_ours(n)) {
            netlink.delete(&name).map_err(io("remove a left-over interface"))?;
        }
        let was_off = read("net/ipv4/ip_forward").trim() == "0";
        let marker = config.state_dir.join("forwarding-was-off");
        if was_off {
            fs::write(&marker, "").map_err(io("note that forwarding was off"))?;
        }
        // Rules first: from the moment the VM forwards, only what they allow passes.
        nft::install(&Rules { ports: config.ports, inner: config.inner_network, only_payloads: marker.exists() })?;
        let low = config.ports.first.saturating_sub(nft::OWN_PORTS).max(1024);
        write("net/ipv4/ip_local_port_range", &format!("{low} {}", config.ports.first - 1))?;
        write("net/ipv4/ip_forward", "1")?;
        if read("net/ipv4/conf/all/rp_filter").trim() == "2" {
            warn!(
                "net.ipv4.conf.all.rp_filter is 2 (loose) and weakens the payload interfaces' own; the packet filter still drops foreign sources"
            );
        }
        Ok(Self { netlink, uplink: config.uplink.clone() })
    }

    /// Makes a payload's namespace and joins it to the VM.
    ///
    /// # Errors
    /// [`NetworkError`]; nothing is left behind.
    pub fn add(&mut self, plan: &Plan) -> Result<Namespace, NetworkError> {
        let uplink = Uplink::find(self.uplink.as_deref()).map_err(NetworkError::NoUplink)?;
        let mut namespace = Namespace::new()?;
        let result = self.join(plan, &uplink, &mut namespace);
        if result.is_err() {
            self.remove(plan);
        }
        result.map(|()| namespace)
    }

    fn join(&mut self, plan: &Plan, uplink: &Uplink, namespace: &mut Namespace) -> Result<(), NetworkError> {
        let mtu = self.netlink.link(&uplink.name).map_err(io("read the uplink"))?.mtu;
        self.netlink.veth(&plan.interface, "eth0", namespace.fd(), mtu).map_err(io("make a veth pair"))?;
        write(&format!("net/ipv4/conf/{}/rp_filter", plan.interface), "1")?;
        let _ = write(&format!("net/ipv6/conf/{}/disable_ipv6", plan.interface), "1");
        nft::add(plan, uplink.address)?;
        let outer = self.netlink.link(&plan.interface).map_err(io("find the VM side"))?.index;
        self.netlink.address(outer, plan.gateway, 30).map_err(io("address the VM side"))?;
        self.netlink.up(outer).map_err(io("raise the VM side"))?;
        let inner = namespace.netlink.link("eth0").map_err(io("find the payload side"))?.index;
        namespace.netlink.up(1).map_err(io("raise loopback"))?;
        namespace.netlink.address(inner, plan.inner, 30).map_err(io("address the payload side"))?;
        namespace.netlink.up(inner).map_err(io("raise the payload side"))?;
        namespace.netlink.default_route(plan.gateway).map_err(io("route the payload side"))
    }

    /// Whether packets can leave the VM's side towards this payload.
    pub fn carries(&mut self, plan: &Plan) -> bool {
        self.netlink.link(&plan.interface).map_or(true, |link| link.running)
    }

    /// Whether nothing ever came from this payload.
    pub fn untouched(&mut self, plan: &Plan) -> bool {
        self.netlink.link(&plan.interface).is_ok_and(|link| link.received == 0)
    }

    /// Takes a payload's network away.
    pub fn remove(&mut self, plan: &Plan) {
        // The interface first: what comes later from the namespace must find neither way nor map.
        if let Err(error) = self.netlink.delete(&plan.interface) {
            warn!(interface = plan.interface, %error, "a payload interface could not be removed");
        }
        if let Err(error) = nft::remove(plan) {
            warn!(interface = plan.interface, %error, "a payload's rules could not be removed");
        }
    }
}

/// Waits until both sides of a new network carry packets: until then the kernel drops them silently, and a payload's first
/// datagram, or the answer to its first address request, would be lost.
pub fn settle(mut carries: impl FnMut() -> bool) {
    let until = Instant::now() + SETTLE;
    while !carries() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn read(key: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{key}")).unwrap_or_default()
}

fn write(key: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(io("set a network parameter in /proc/sys"))
}

/// A payload's network namespace, and a socket inside it.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    netlink: Netlink,
}

impl Namespace {
    /// Made by a thread of its own: the daemon's other threads stay where they are.
    fn new() -> Result<Self, NetworkError> {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(io("make a network namespace"))?;
            let fd = fs::File::open("/proc/thread-self/ns/net").map_err(io("open the network namespace"))?.into();
            // No IPv6 lease, no IPv6: what leaves must be attributable. Absent where the VM has no IPv6 at all.
            for scope in ["all", "default"] {
                let _ = write(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1");
            }
            // ping without raw sockets.
            write("net/ipv4/ping_group_range", "0 2147483647")?;
            let netlink = Netlink::open().map_err(io("open a route socket inside"))?;
            Ok(Self { fd, netlink })
        })
        .join()
        .unwrap_or_else(|_| Err(io("make a network namespace")(io::Error::other("the thread died"))))
    }

    /// Whether nothing ever went through its loopback.
    pub fn untouched(&mut self) -> bool {
        self.netlink.link("lo").is_ok_and(|link| link.received == 0)
    }

    /// Whether packets can leave the payload's side.
    pub fn carries(&mut self) -> bool {
        self.netlink.link("eth0").map_or(true, |link| link.running)
    }

    /// For setns(2).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_share_addresses() {
        let ports = PortBlock { first: 1, last: 2 };
        let plan = Plan::new(Ipv4Addr::new(100, 64, 0, 0), Slot(64), ports);
        assert_eq!(plan.interface, "vgp64");
        assert_eq!((plan.gateway, plan.inner), (Ipv4Addr::new(100, 64, 1, 1), Ipv4Addr::new(100, 64, 1, 2)));
        assert!(is_ours("vgp0") && !is_ours("vgp") && !is_ours("vgpx") && !is_ours("eth0"));
    }
}
