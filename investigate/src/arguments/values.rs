//! Values on the command line: lengths of time, addresses, protocols.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The other side of a flow.
pub type Peer = (IpAddr, Option<u16>);

/// A length of time.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a length of time; write it like 2s, 500ms, 5m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

/// An address with or without a port.
pub fn peer(text: &str) -> Result<Peer, String> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok((ip, None));
    }
    let both: SocketAddr = text.parse().map_err(|_| {
        format!("{text:?} is not an address with or without a port; write it like 192.0.2.9, 192.0.2.9:443 or [2001:db8::9]:443")
    })?;
    Ok((both.ip(), Some(both.port())))
}

/// A network: addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Network {
    /// Whether the address lies in it. IPv4-mapped IPv6 is IPv4.
    pub fn holds(self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                let shift = 32_u32.saturating_sub(u32::from(self.bits));
                (network.to_bits() ^ ip.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let shift = 128_u32.saturating_sub(u32::from(self.bits));
                (network.to_bits() ^ ip.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A network as ADDRESS/BITS; an address alone is a network of one.
pub fn network(text: &str) -> Result<Network, String> {
    let bad = || format!("{text:?} is no network; write it like 192.0.2.0/24 or 2001:db8::/32");
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| bad()))?;
    if bits > most { Err(bad()) } else { Ok(Network { address, bits }) }
}

/// A protocol by name or number.
pub fn protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        "icmp6" | "icmpv6" | "ipv6-icmp" => Ok(58),
        number => number
            .parse()
            .map_err(|_| format!("{text:?} is no protocol; write tcp, udp, icmp, icmp6 or a number up to 255")),
    }
}

/// The word for a protocol number.
pub fn protocol_word(proto: u8) -> String {
    match proto {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        other => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn peers_windows_and_protocols_are_read() {
        assert_eq!(peer("192.0.2.9").unwrap().1, None);
        assert_eq!(peer("192.0.2.9:443").unwrap().1, Some(443));
        assert_eq!(peer("2001:db8::9").unwrap().1, None);
        assert_eq!(peer("[2001:db8::9]:443").unwrap().1, Some(443));
        assert!(peer("192.0.2.9:99999").unwrap_err().contains("192.0.2.9:443"));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert!(duration("2").is_err() && duration("two").is_err() && duration("99999999999999999999s").is_err());
        assert_eq!((protocol("TCP").unwrap(), protocol("47").unwrap()), (6, 47));
        assert!(protocol("256").is_err());
    }

    #[test]
    fn networks_hold_what_shares_their_bits() {
        let holds = |net: &str, ip: &str| network(net).unwrap().holds(ip.parse().unwrap());
        assert!(holds("192.0.2.0/24", "192.0.2.255") && !holds("192.0.2.0/24", "192.0.3.0"));
        assert!(holds("0.0.0.0/0", "255.1.2.3") && !holds("0.0.0.0/0", "::1") && holds("::/0", "2001:db8::1"));
        assert!(holds("10.0.0.5", "10.0.0.5") && !holds("10.0.0.5", "10.0.0.4"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3") && holds("2001:db8::/32", "2001:db8:ffff::"));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10.0.0/8", "x/8"] {
            assert!(network(bad).unwrap_err().contains("192.0.2.0/24"), "{bad}");
        }
    }
}
