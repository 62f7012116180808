//! Whether a VM may use an address: who gave it, and whose word that is. Pure.
//!
//! | basis | whose word | forged by |
//! |---|---|---|
//! | `cloud` | Nova's ports, OpenNebula's leases, libvirt's filter parameters in the domain XML | who controls the cloud |
//! | `dhcp` | a server's acknowledgement of what the VM asked for, seen on its way to the VM | a helper of the VM's whose datagrams reach its port 68 |
//! | `announced` | the VM's own ARP or neighbour discovery | the VM |
//!
//! Each address family is judged by itself: a filter that names an IPv4 address says nothing about IPv6.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Expected, Tap, Timestamp};

/// Whose word it is that a VM may, or may not, use an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// The VM's own: no ground for a judgement.
    Announced,
    /// A DHCP server's.
    Dhcp,
    /// The cloud manager's. Where there is one, it alone counts.
    Cloud,
}

impl Basis {
    /// The word used in records and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Dhcp => "dhcp",
            Self::Cloud => "cloud",
        }
    }
}

/// An address seen given or announced on a tap: a host's observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Learnt {
    /// Which.
    pub ip: IpAddr,
    /// [`Basis::Dhcp`] or [`Basis::Announced`].
    pub by: Basis,
    /// When it was first seen.
    pub since: Timestamp,
    /// Until when it was given; `None` for ever, or for an announcement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Learnt {
    fn given_at(&self, time: Timestamp) -> bool {
        self.by == Basis::Dhcp && self.since <= time && self.until.is_none_or(|until| time <= until)
    }
}

impl Tap {
    /// [`expected`], by what is recorded of the tap.
    #[must_use]
    pub fn expects(&self, ip: IpAddr, time: Timestamp) -> (Expected, Option<Basis>) {
        expected(&self.expected, &self.learnt, ip, time)
    }
}

/// Whether the VM may send from `ip` at `time`, and by whose word, given the cloud's addresses of a tap and those learnt there.
///
/// An address that every interface may use (link-local, unspecified) says nothing. Where a DHCP server's word is all there is, an
/// address that the VM announced beside the given one may have been set by hand: not judged. One that it did not even announce is
/// forged, as nobody could answer it.
#[must_use]
pub fn expected(cloud: &[IpAddr], learnt: &[Learnt], ip: IpAddr, time: Timestamp) -> (Expected, Option<Basis>) {
    let ip = ip.to_canonical();
    let same_family = |other: &IpAddr| other.is_ipv4() == ip.is_ipv4();
    if is_anybodys(ip) {
        return (Expected::Unknown, None);
    }
    if cloud.iter().any(same_family) {
        let given = cloud.contains(&ip);
        return (if given { Expected::Yes } else { Expected::No }, Some(Basis::Cloud));
    }
    if learnt.iter().any(|one| one.ip == ip && one.given_at(time)) {
        return (Expected::Yes, Some(Basis::Dhcp));
    }
    if learnt.iter().any(|one| one.ip == ip) {
        // Announced, or given at another time.
        return (Expected::Unknown, Some(Basis::Announced));
    }
    if learnt.iter().any(|one| same_family(&one.ip) && one.given_at(time)) {
        return (Expected::No, Some(Basis::Dhcp));
    }
    (Expected::Unknown, None)
}

const fn is_anybodys(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn learnt(ip: &str, by: Basis, until: Option<i64>) -> Learnt {
        Learnt { ip: ip.parse().unwrap(), by, since: at(100), until: until.map(at) }
    }

    fn judged(cloud: &[&str], learnt: &[Learnt], ip: &str, time: i64) -> (&'static str, Option<&'static str>) {
        let cloud: Vec<IpAddr> = cloud.iter().map(|ip| ip.parse().unwrap()).collect();
        let (expected, basis) = expected(&cloud, learnt, ip.parse().unwrap(), at(time));
        (expected.as_str(), basis.map(Basis::as_str))
    }

    #[test]
    fn the_clouds_word_counts_alone_in_its_family() {
        let seen = [learnt("10.0.0.6", Basis::Dhcp, None), learnt("2001:db8::6", Basis::Announced, None)];
        assert_eq!(judged(&["10.0.0.5"], &seen, "10.0.0.5", 200), ("yes", Some("cloud")));
        assert_eq!(judged(&["10.0.0.5"], &seen, "10.0.0.6", 200), ("no", Some("cloud")), "whatever a DHCP server said");
        assert_eq!(judged(&["10.0.0.5"], &seen, "2001:db8::6", 200), ("unknown", Some("announced")));
        assert_eq!(judged(&["10.0.0.5"], &seen, "2001:db8::7", 200), ("unknown", None));
        assert_eq!(judged(&["10.0.0.5"], &[], "::ffff:10.0.0.5", 200), ("yes", Some("cloud")));
    }

    #[test]
    fn what_a_dhcp_server_gave_is_expected_while_it_is_given() {
        let seen = [learnt("10.0.0.5", Basis::Dhcp, Some(300)), learnt("10.0.0.9", Basis::Announced, None)];
        assert_eq!(judged(&[], &seen, "10.0.0.5", 200), ("yes", Some("dhcp")));
        assert_eq!(judged(&[], &seen, "10.0.0.5", 99), ("unknown", Some("announced")), "not yet given");
        assert_eq!(judged(&[], &seen, "10.0.0.5", 301), ("unknown", Some("announced")), "run out");
        assert_eq!(judged(&[], &seen, "10.0.0.9", 200), ("unknown", Some("announced")), "the VM's word excuses only");
        assert_eq!(judged(&[], &seen, "198.51.100.7", 200), ("no", Some("dhcp")));
        assert_eq!(judged(&[], &seen, "198.51.100.7", 301), ("unknown", None), "nobody's word stands");
    }

    #[test]
    fn a_word_of_the_vms_own_is_no_ground_to_accuse_it() {
        let seen = [learnt("10.0.0.5", Basis::Announced, None)];
        assert_eq!(judged(&[], &seen, "198.51.100.7", 200), ("unknown", None));
        assert_eq!(judged(&["10.0.0.5"], &[], "169.254.3.4", 200), ("unknown", None));
        assert_eq!(judged(&["2001:db8::5"], &[], "fe80::1", 200), ("unknown", None));
    }
}
