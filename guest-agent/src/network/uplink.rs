//! The way out of the VM. Looked for again and again, because addresses change while an agent runs.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use super::{ipv6, netlink::Netlink};

/// An interface and the address that packets leave it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its first IPv4 address.
    pub address: Ipv4Addr,
}

/// All that a payload's network depends on besides its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Where it leaves.
    pub uplink: Uplink,
    /// The uplink's number.
    pub index: u32,
    /// The uplink's longest packet.
    pub mtu: u32,
    /// Its IPv6 addresses that a /64 belongs to.
    pub addresses6: Vec<Ipv6Addr>,
}

impl Surroundings {
    /// Looks around.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn find(wanted: Option<&str>) -> Result<Self, String> {
        let uplink = Uplink::find(wanted)?;
        let link = Netlink::open().and_then(|mut netlink| netlink.link(&uplink.name));
        let link = link.map_err(|error| format!("interface {} cannot be read: {error}", uplink.name))?;
        // Of this thread: another one's network need not be the same.
        let text = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
        let addresses6 = ipv6::on_interface(&text, &uplink.name);
        Ok(Self { uplink, index: link.index, mtu: link.mtu, addresses6 })
    }
}

impl Uplink {
    /// The named interface, else the one with the default route, else the first that is not loopback.
    ///
    /// # Errors
    /// A sentence for the pilot.
    pub fn find(wanted: Option<&str>) -> Result<Self, String> {
        let all = addresses().map_err(|error| format!("the VM's addresses cannot be listed: {error}"))?;
        let by_name = |name: &str| all.iter().find(|u| u.name == name).cloned();
        if let Some(name) = wanted {
            return by_name(name).ok_or_else(|| {
                format!(
                    "interface {name} has no IPv4 address; bring it up or correct `uplink` in the agent's configuration"
                )
            });
        }
        let routes = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
        default_interface(&routes)
            .and_then(by_name)
            .or_else(|| all.first().cloned())
            .ok_or_else(|| "the VM has no network interface with an IPv4 address; bring one up".to_owned())
    }
}

fn addresses() -> io::Result<Vec<Uplink>> {
    let usable = |a: &nix::ifaddrs::InterfaceAddress| {
        !a.flags.contains(InterfaceFlags::IFF_LOOPBACK) && !a.interface_name.starts_with(super::PREFIX)
    };
    Ok(getifaddrs()?
        .filter(usable)
        .filter_map(|a| Some(Uplink { address: a.address?.as_sockaddr_in()?.ip(), name: a.interface_name }))
        .collect())
}

/// The VM's own IPv4 addresses, loopback left out.
///
/// # Errors
/// As getifaddrs(3).
pub fn own_addresses() -> io::Result<Vec<Ipv4Addr>> {
    Ok(addresses()?.into_iter().map(|uplink| uplink.address).collect())
}

/// Names of all interfaces.
///
/// # Errors
/// As getifaddrs(3).
pub fn interfaces() -> io::Result<Vec<String>> {
    let mut names: Vec<String> = getifaddrs()?.map(|a| a.interface_name).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Interface of the default route with the lowest metric in the text of `/proc/net/route`.
fn default_interface(routes: &str) -> Option<&str> {
    let defaults = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        let metric: u32 = fields.get(6)?.parse().ok()?;
        is_default.then_some((metric, *fields.first()?))
    });
    defaults.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_default_route_wins() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth1\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth2\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        assert_eq!(default_interface(text), Some("eth0"));
        assert_eq!(default_interface(""), None);
    }
}
