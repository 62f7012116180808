//! Which IPv6 address a payload gets: one of its own out of the VM's /64, never given out twice.

use std::net::Ipv6Addr;

use serde::Deserialize;

/// The key `ipv6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum Setting {
    /// The /64 of the uplink, if it has one.
    #[default]
    Auto,
    /// Payloads have no IPv6.
    Off,
    /// This /64: the uplink's own, or one that the site routes to the VM.
    Prefix(Prefix),
}

impl TryFrom<String> for Setting {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not understood; write \"auto\", \"off\" or a network like 2001:db8:0:1::/64");
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => {
                let base: Ipv6Addr = other.strip_suffix("/64").and_then(|b| b.parse().ok()).ok_or_else(bad)?;
                let prefix = Prefix::of(base);
                if !usable(base) || prefix.address(0) != base {
                    return Err(format!(
                        "{text:?} is not usable; it must be global or unique-local, without bits after the 64th"
                    ));
                }
                Ok(Self::Prefix(prefix))
            }
        }
    }
}

/// The upper half of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix(u64);

impl Prefix {
    /// The /64 that an address is in.
    #[must_use]
    pub fn of(address: Ipv6Addr) -> Self {
        let [a, b, c, d, ..] = address.segments();
        Self([a, b, c, d].iter().fold(0, |sum, part| sum << 16 | u64::from(*part)))
    }

    /// The address with this interface identifier.
    #[must_use]
    pub fn address(self, identifier: u64) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.0) << 64 | u128::from(identifier))
    }

    /// A new address: 64 random bits, so that no two payloads ever share one. Not one that anybody else may have by rule.
    #[must_use]
    pub fn draw(self, mut random: impl FnMut() -> u64, taken: &[Ipv6Addr]) -> Ipv6Addr {
        loop {
            let identifier = random();
            let address = self.address(identifier);
            if !reserved(identifier) && !taken.contains(&address) {
                return address;
            }
        }
    }
}

/// 64 bits of a version 4 UUID, without those that are the same in all.
#[must_use]
pub fn random() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    low << 2 | high >> 62
}

/// The registry of reserved interface identifiers (RFC 5453), and those that other mechanisms make out of IPv4 addresses (ISATAP) or small numbers
/// that people hand out.
const fn reserved(identifier: u64) -> bool {
    let isatap = identifier >> 32 & !0x0200_0000 == 0x0000_5efe;
    identifier <= 0xffff
        || isatap
        || identifier >= 0xfdff_ffff_ffff_ff80 && identifier <= 0xfdff_ffff_ffff_ffff
        || identifier >> 24 == 0x02_005e_fffe
}

/// Global or unique-local: what others can answer to.
#[must_use]
pub fn usable(address: Ipv6Addr) -> bool {
    let first = address.segments().first().copied().unwrap_or_default();
    first >> 13 == 1 || first >> 9 == 0xfc >> 1
}

/// Usable addresses with a /64 on an interface, in the text of `/proc/net/if_inet6`; those that are not valid yet or no longer are left out.
#[must_use]
pub fn on_interface(text: &str, interface: &str) -> Vec<Ipv6Addr> {
    const DADFAILED: u32 = 0x08;
    const DEPRECATED: u32 = 0x20;
    const TENTATIVE: u32 = 0x40;
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, _, prefix, _, flags, name] = fields.as_slice() else { return None };
        let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let fits = *name == interface && *prefix == "40" && flags & (DADFAILED | DEPRECATED | TENTATIVE) == 0;
        (fits && usable(address)).then_some(address)
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings() {
        let read = |text: &str| Setting::try_from(text.to_owned());
        assert_eq!(read("auto"), Ok(Setting::Auto));
        assert_eq!(read("off"), Ok(Setting::Off));
        assert_eq!(read("2001:db8:0:1::/64"), Ok(Setting::Prefix(Prefix(0x2001_0db8_0000_0001))));
        for bad in ["", "on", "2001:db8::/48", "2001:db8::1/64", "fe80::/64", "ff02::/64", "::/64", "10.0.0.0/64"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn drawn_addresses_are_in_the_prefix_and_nobody_elses() {
        let prefix = Prefix::of("2001:db8:1:2:3:4:5:6".parse().unwrap());
        let taken: Ipv6Addr = "2001:db8:1:2:aaaa:bbbb:cccc:dddd".parse().unwrap();
        // Anycast of routers, a small number, reserved anycast, the IANA block, ISATAP, the VM's own; then a good one.
        let mut ids = [
            0,
            1,
            0xfdff_ffff_ffff_ff80,
            0x0200_5eff_fe00_5213,
            0x0000_5efe_0a00_0001,
            0x0200_5efe_0a00_0001,
            0xaaaa_bbbb_cccc_dddd,
            0x1234_5678_9abc_def0,
        ]
        .into_iter();
        let drawn = prefix.draw(|| ids.next().unwrap(), &[taken]);
        assert_eq!(drawn, "2001:db8:1:2:1234:5678:9abc:def0".parse::<Ipv6Addr>().unwrap());
        // All 64 bits vary.
        let (ones, zeros) = (0..200).map(|_| random()).fold((0, 0), |(one, zero), bits| (one | bits, zero | !bits));
        assert_eq!((ones, zeros), (u64::MAX, u64::MAX));
    }

    #[test]
    fn only_settled_addresses_with_a_64_count() {
        let text = "fe800000000000000000000000000001 02 40 20 80 eth0\n\
            20010db8000000000000000000000001 02 80 00 80 eth0\n\
            20010db8000000000000000000000002 02 40 00 c0 eth0\n\
            20010db8000000000000000000000003 02 40 00 a0 eth0\n\
            20010db8000000010000000000000004 03 40 00 80 eth1\n\
            fd000000000000010000000000000005 02 40 00 80 eth0\n\
            00000000000000000000000000000001 01 80 10 80 lo\n\
            nonsense\n";
        assert_eq!(on_interface(text, "eth0"), ["fd00:0:0:1::5".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(on_interface(text, "lo"), Vec::<Ipv6Addr>::new());
    }
}
