//! A network namespace per payload, whose packets leave the VM only from the payload's own port block and its own IPv6 address.
//!
//! Addresses and names are computed from the slot ([`Plan`]); [`netlink`] makes interfaces; [`nft`] holds the rules, and
//! [`filter`] the elements in them that are a payload. Many threads may add and remove at once: no lock is held meanwhile, but for the
//! look at the VM's own addresses once a second.

pub mod conntrack;
pub mod elements;
pub mod filter;
pub mod ipv6;
mod namespace;
pub mod netlink;
pub mod nft;
pub mod own;
pub mod resolver;
mod settings;
pub mod uplink;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::warn;
use vestigo_model::PortBlock;

pub use self::namespace::Namespace;
use self::{
    elements::Element,
    filter::Filter,
    ipv6::Setting,
    namespace::{GATEWAY_MAC, INSIDE},
    netlink::{Change, End, Netlink},
    nft::Rules,
    own::OwnHolder,
    settings::write,
    uplink::Surroundings,
};
use crate::{
    config::{Config, Network},
    lease::Slot,
};

/// What every VM-side interface of a payload begins with; the rules match it.
pub const PREFIX: &str = "vgp";

/// Longest wait for a new interface to carry packets.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the answer to "where is the way out?" is good for.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// How often an idle agent looks itself: a little before the answer would be too old for the next start.
pub const LOOK: Duration = Duration::from_millis(700);

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
    /// The configuration leaves the VM itself no ports.
    #[error("`ports` leaves too few ports for the VM's own connections; let it begin at 4096 or higher")]
    NoOwnPorts,
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Io { what, source }
}

/// Everything about a payload's network that follows from its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the VM-side interface's name begins with. Each network made from the plan has a name of its own, because the kernel
    /// takes its time to clear an old one away.
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

    fn elements(&self, outside: Ipv4Addr, address6: Option<Ipv6Addr>) -> Vec<Element> {
        let mut elements = vec![
            Element::Pace,
            Element::Mark(conntrack::mark(self.inner)),
            Element::Source(self.inner),
            Element::Block(self.inner, outside, self.ports),
        ];
        elements.extend(address6.into_iter().flat_map(|address| [Element::Source6(address), Element::Taken6(address)]));
        elements
    }
}

/// What has to be undone when a payload goes.
#[derive(Debug, Clone)]
struct Joined {
    interface: String,
    outside: Ipv4Addr,
    /// Address, and the interface that answers for it.
    proxy: Option<(Ipv6Addr, u32)>,
    /// Nothing passes any more; whether anything ever did.
    shut: Option<bool>,
}

impl Joined {
    fn elements(&self, plan: &Plan) -> Vec<Element> {
        plan.elements(self.outside, self.proxy.map(|(address, _)| address))
    }
}

/// The VM's side of all payload networks. Removing it is left to the next start: rules without payloads harm nobody.
#[derive(Debug)]
pub struct Networks {
    uplink: Option<String>,
    ipv6: Setting,
    own: [(OwnHolder, PortBlock); 2],
    dns: Ipv4Addr,
    /// How many networks were made.
    made: AtomicU32,
    filter: Filter,
    around: Mutex<Option<(Instant, Surroundings)>>,
    joined: Mutex<BTreeMap<String, Joined>>,
    /// The name server in the VM that the rules lead to, and the text that follows.
    resolver: Mutex<Option<(Option<Ipv4Addr>, Instant, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Networks {
    /// Clears what an earlier agent left and sets up the rules.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn start(config: &Config) -> Result<Self, NetworkError> {
        let own = own::leases(config.ports.first).ok_or(NetworkError::NoOwnPorts)?;
        let mut netlink = Netlink::open().map_err(io("open a route socket"))?;
        for name in uplink::interfaces().map_err(io("list interfaces"))?.into_iter().filter(|n| is_ours(n)) {
            netlink.delete(&name).map_err(io("remove a left-over interface"))?;
        }
        let [(_, system), (_, pilot)] = own;
        let before = settings::note(config)?;
        // Rules first: from the moment the VM forwards, only what they allow passes.
        nft::install(&Rules {
            ports: config.ports,
            system,
            pilot,
            inner: config.inner_network,
            dns: config.inner_network.dns(),
            connections: config.connections,
            only_payloads: before.no_forwarding,
            only_payloads6: before.no_forwarding6,
        })?;
        let filter = Filter::default();
        let Network { base, prefix } = config.inner_network;
        filter.forget(base, prefix).map_err(io(
            "make the kernel forget the connections of earlier payloads (it must have nf_conntrack_netlink)",
        ))?;
        settings::set(config, PortBlock { first: system.first, last: pilot.last })?;
        let networks = Self {
            uplink: config.uplink.clone(),
            ipv6: if settings::kernel_has_ipv6() { config.ipv6 } else { Setting::Off },
            own,
            dns: config.inner_network.dns(),
            made: AtomicU32::new(0),
            filter,
            around: Mutex::default(),
            joined: Mutex::default(),
            resolver: Mutex::default(),
        };
        networks.resolv_conf()?;
        Ok(networks)
    }

    /// The ports that the VM's own packets leave from.
    #[must_use]
    pub fn own_leases(&self) -> [(OwnHolder, PortBlock); 2] {
        self.own
    }

    /// Looks at the VM's addresses and name servers now, so that nobody who asks before [`LOOK`] has passed again has to. What
    /// is wrong is told to whoever asks.
    pub fn look(&self) {
        let _ = self.see(&mut lock(&self.around));
        let _ = self.ask(&mut lock(&self.resolver));
    }

    /// The text of every payload's `/etc/resolv.conf`. Where the VM's servers have moved, the rules move with them.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn resolv_conf(&self) -> Result<String, NetworkError> {
        let mut known = lock(&self.resolver);
        match known.as_ref().filter(|(_, at, _)| at.elapsed() < GOOD_FOR) {
            Some((_, _, text)) => Ok(text.clone()),
            None => self.ask(&mut known),
        }
    }

    fn ask(&self, known: &mut Option<(Option<Ipv4Addr>, Instant, String)>) -> Result<String, NetworkError> {
        let own = uplink::own_addresses().map_err(io("list addresses"))?;
        let vm = resolver::of_vm();
        let server = resolver::local_server(&vm, &own);
        if known.as_ref().map(|(server, ..)| *server) != Some(server) {
            nft::resolver(self.dns, server)?;
        }
        let text = resolver::resolvers(&vm, self.dns, &own);
        *known = Some((server, Instant::now(), text.clone()));
        Ok(text)
    }

    /// Why payloads have no IPv6 now; `None` if they have.
    #[must_use]
    pub fn no_ipv6(&self) -> Option<&'static str> {
        match (self.ipv6, self.surroundings()) {
            (Setting::Off, _) => Some("switched off, or unknown to the kernel"),
            (Setting::Auto, Ok(around)) if around.addresses6.is_empty() => Some("the uplink has no /64 of its own"),
            (_, Err(_)) => Some("the VM has no uplink"),
            _ => None,
        }
    }

    /// Whether a network that was made ahead would be made the same way now: the VM's own addresses may have changed.
    #[must_use]
    pub fn fits(&self, namespace: &Namespace) -> bool {
        self.surroundings().is_ok_and(|around| {
            let prefix = self.prefix(&around);
            around.uplink.address == namespace.outside && prefix == namespace.address6.map(ipv6::Prefix::of)
        })
    }

    fn prefix(&self, around: &Surroundings) -> Option<ipv6::Prefix> {
        match self.ipv6 {
            Setting::Off => None,
            Setting::Auto => around.addresses6.first().copied().map(ipv6::Prefix::of),
            Setting::Prefix(prefix) => Some(prefix),
        }
    }

    fn surroundings(&self) -> Result<Surroundings, NetworkError> {
        let mut known = lock(&self.around);
        match known.as_ref().filter(|(at, _)| at.elapsed() < GOOD_FOR) {
            Some((_, around)) => Ok(around.clone()),
            None => self.see(&mut known),
        }
    }

    /// Also makes the uplink answer for payloads as soon as they can have addresses behind it: its own may come later than the agent.
    fn see(&self, known: &mut Option<(Instant, Surroundings)>) -> Result<Surroundings, NetworkError> {
        let around = Surroundings::find(self.uplink.as_deref()).map_err(NetworkError::NoUplink)?;
        let answers = |around: &Surroundings| self.prefix(around).map(|prefix| (around.index, prefix));
        let before = known.as_ref().and_then(|(_, old)| answers(old));
        if answers(&around).is_some_and(|now| before != Some(now)) {
            settings::answer_for_others(&around.uplink.name)?;
        }
        *known = Some((Instant::now(), around.clone()));
        Ok(around)
    }

    /// Makes a payload's namespace, joins it to the VM, and waits until packets pass: until then the kernel drops them
    /// silently, and a payload's first datagram would be lost.
    ///
    /// # Errors
    /// [`NetworkError`]; nothing is left behind.
    pub fn add(&self, plan: &Plan) -> Result<Namespace, NetworkError> {
        let around = self.surroundings()?;
        let address6 = self.prefix(&around).map(|prefix| prefix.draw(ipv6::random, &around.addresses6));
        let outside = around.uplink.address;
        // At most 15 characters; no two of the same plan are there at once that are a million apart.
        let number = self.made.fetch_add(1, Ordering::Relaxed) % 1_000_000;
        let interface = format!("{}x{number}", plan.interface);
        let (namespace, mut inside) = Namespace::new(interface.clone(), plan.ports, outside, address6)?;
        let proxy = address6.map(|address| (address, around.index));
        lock(&self.joined).insert(plan.interface.clone(), Joined { interface, outside, proxy, shut: None });
        let result = join(plan, &around, &self.filter, &namespace, &mut inside);
        if result.is_err() {
            self.remove(plan);
        }
        result.map(|()| namespace)
    }

    /// Lets nothing more in or out of a payload's network. `true` if it ever sent a packet, to whomever, or nobody can tell.
    pub fn shut(&self, plan: &Plan) -> bool {
        let Some(joined) = lock(&self.joined).get(&plan.interface).cloned() else { return true };
        if let Some(used) = joined.shut {
            return used;
        }
        // The elements first: without them nothing passes, so no packet can make a new connection, and they tell what did.
        let removed = self.filter.remove(&joined.interface, &joined.elements(plan));
        let used = removed.map_or_else(
            |error| {
                warn!(interface = joined.interface, %error, "a payload's rules could not be removed");
                true
            },
            |packets| packets > 0,
        );
        if used && let Err(error) = self.filter.forget(plan.inner, 32) {
            warn!(interface = joined.interface, %error, "a payload's connections could not be removed");
        }
        if let Some(joined) = lock(&self.joined).get_mut(&plan.interface) {
            joined.shut = Some(used);
        }
        used
    }

    /// Takes a payload's network away; the value is that of [`Self::shut`]. The interfaces themselves
    /// go with the last descriptor of the namespace, so drop it soon: to remove one now would keep all others waiting for 20 ms.
    pub fn remove(&self, plan: &Plan) -> bool {
        let used = self.shut(plan);
        let Some(joined) = lock(&self.joined).remove(&plan.interface) else { return true };
        if let Err(error) = part(plan, &joined) {
            warn!(interface = joined.interface, %error, "a payload's address could not be removed");
        }
        used
    }

    /// Instead of [`Self::remove`]: gives a network back for the next payload of the same slot if it never sent a packet, there
    /// is no socket in it any more, and it would be made the same way again. That costs next to nothing. The
    /// payload's processes must be gone.
    ///
    /// # Errors
    /// It was removed; the value is that of `remove`.
    pub fn renew(&self, plan: &Plan, namespace: Namespace) -> Result<Namespace, bool> {
        let fresh = !self.shut(plan) && namespace.is_empty() && self.fits(&namespace);
        if fresh && self.open_again(plan) { Ok(namespace) } else { Err(self.remove(plan)) }
    }

    fn open_again(&self, plan: &Plan) -> bool {
        let mut all = lock(&self.joined);
        let Some(joined) = all.get_mut(&plan.interface) else { return false };
        let open = self.filter.add(&joined.interface, &joined.elements(plan)).is_ok();
        if open {
            joined.shut = None;
        }
        open
    }
}

/// Frees what the next network of the same plan needs.
fn part(plan: &Plan, joined: &Joined) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut changes: Vec<Change> =
        joined.proxy.map(|(address, index)| Change::no_proxy(index, address)).into_iter().collect();
    match netlink.link(&joined.interface) {
        Ok(link) => changes.push(Change::no_address(link.index, plan.gateway, 30)),
        // Its last process is gone, and so is it.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => {}
        Err(error) => return Err(error),
    }
    match netlink.apply(changes) {
        // The same, a moment later.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::EADDRNOTAVAIL)) => Ok(()),
        other => other,
    }
}

fn join(
    plan: &Plan,
    around: &Surroundings,
    filter: &Filter,
    namespace: &Namespace,
    inside: &mut Netlink,
) -> Result<(), NetworkError> {
    let mut netlink = Netlink::open().map_err(io("open a route socket"))?;
    let name = namespace.interface();
    let here = End { name, mac: GATEWAY_MAC };
    netlink.veth(here, INSIDE, namespace.fd(), around.mtu).map_err(io("make a veth pair"))?;
    let link = netlink.link(name).map_err(io("find the VM side"))?;
    let index = link.index;
    let elements = plan.elements(around.uplink.address, namespace.address6);
    filter.add(name, &elements).map_err(io("add the payload to the packet filter"))?;
    let mut changes = vec![
        Change::raise(index, settings::kernel_has_ipv6(), true),
        Change::address(index, plan.gateway.into(), 30),
        Change::neighbour(index, plan.inner.into(), INSIDE.mac),
    ];
    if let Some(address) = namespace.address6 {
        changes.push(Change::host_route(address, index));
        changes.push(Change::neighbour(index, IpAddr::V6(address), INSIDE.mac));
        changes.push(Change::proxy(around.index, address));
    }
    netlink.apply(changes).map_err(io("set the VM side up"))?;
    inside.apply(namespace::changes(plan, link.peer, namespace.address6)).map_err(io("set the payload side up"))?;
    let until = Instant::now() + SETTLE;
    while !carries(inside, INSIDE.name) || !carries(&mut netlink, name) {
        if Instant::now() >= until {
            return Err(io("wait for the veth pair")(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

fn carries(netlink: &mut Netlink, name: &str) -> bool {
    netlink.link(name).is_ok_and(|link| link.running)
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b == b'x'))
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
        assert!(is_ours("vgp0") && !is_ours("vgp") && is_ours("vgp7x12") && !is_ours("vgpy") && !is_ours("eth0"));
    }
}
