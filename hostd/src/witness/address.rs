//! Addresses in ARP, neighbour discovery and DHCP. Pure: bytes in, values out; every byte is hostile, and nothing is trusted beyond
//! what the message is.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use vestigo_model::Mac;

/// The address that the sender of an ARP packet (RFC 826) says is its own. `None` for a probe (RFC 5227), which only asks, and for one
/// that speaks of another hardware address.
#[must_use]
pub fn arp_sender(arp: &[u8], mac: Mac) -> Option<IpAddr> {
    const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let own = arp.starts_with(&ETHERNET_IPV4) && arp.get(8..14)? == mac.0;
    let ip: Ipv4Addr = read::<4>(arp, 14)?.into();
    (own && !ip.is_unspecified()).then_some(ip.into())
}

/// The address that a neighbour's message (RFC 4861) says is its sender's own: `after` is what follows the first eight bytes of an ICMPv6
/// message of this type from this source.
#[must_use]
pub fn neighbour_sender(icmp_type: u8, source: IpAddr, after: &[u8]) -> Option<IpAddr> {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    let target = || Some(IpAddr::V6(Ipv6Addr::from(read::<16>(after, 0)?)));
    match icmp_type {
        ADVERTISEMENT => target(),
        // Duplicate address detection (RFC 4862): the sender is about to use the target.
        SOLICITATION if source.is_unspecified() => target(),
        133 | SOLICITATION if !source.is_unspecified() => Some(source),
        _ => None,
    }
}

/// A DHCP message, as far as it concerns who may use an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dhcp {
    /// A client asks for an address, or to keep it.
    Request {
        /// What ties the answer to it.
        transaction: u32,
    },
    /// A client gives an address back.
    Release(IpAddr),
    /// A server gives addresses.
    Reply {
        /// Of the request.
        transaction: u32,
        /// Each for how long; `None` for ever, zero for not any more.
        given: Vec<(IpAddr, Option<Duration>)>,
    },
}

/// Reads a DHCP message (RFC 2131) that speaks of this hardware address.
#[must_use]
pub fn dhcp(message: &[u8], mac: Mac) -> Option<Dhcp> {
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    let ethernet = message.get(1..3)? == [1, 6] && message.get(28..34)? == mac.0;
    if !ethernet || message.get(236..240)? != COOKIE {
        return None;
    }
    let options = message.get(240..)?;
    let transaction = transaction(message, false)?;
    let address = |at| read::<4>(message, at).map(Ipv4Addr::from).filter(|ip| !ip.is_unspecified());
    match (message.first()?, dhcp_option(options, 53)?) {
        (1, [3]) => Some(Dhcp::Request { transaction }),
        (1, [7]) => Some(Dhcp::Release(address(12)?.into())),
        (2, [5]) => {
            let seconds = dhcp_option(options, 51).and_then(|value| read(value, 0)).map(u32::from_be_bytes);
            Some(Dhcp::Reply { transaction, given: vec![(address(16)?.into(), seconds.and_then(lasting))] })
        }
        _ => None,
    }
}

/// The number that ties requests and answers together, of whatever pretends to be a DHCP message.
#[must_use]
pub fn transaction(message: &[u8], v6: bool) -> Option<u32> {
    if v6 {
        let [_, a, b, c] = read::<4>(message, 0)?;
        Some(u32::from_be_bytes([0, a, b, c]))
    } else {
        read(message, 4).map(u32::from_be_bytes)
    }
}

fn dhcp_option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    const PAD: u8 = 0;
    const END: u8 = 255;
    loop {
        let (code, rest) = options.split_first()?;
        match *code {
            PAD => options = rest,
            END => return None,
            code => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if code == wanted {
                    return Some(value);
                }
                options = rest;
            }
        }
    }
}

/// Most addresses taken from one reply.
const MAX_GIVEN: usize = 8;

/// Reads a DHCPv6 message (RFC 9915) between a client and a server, not through a relay.
#[must_use]
pub fn dhcp6(message: &[u8]) -> Option<Dhcp> {
    const IA_NA: u16 = 3;
    const IA_ADDRESS: u16 = 5;
    let kind = *message.first()?;
    let transaction = transaction(message, true)?;
    let options = message.get(4..)?;
    let addresses = |options| {
        let associations = dhcp6_options(options).filter(|(code, _)| *code == IA_NA);
        // Behind the association's own number and two times.
        let inside = associations.filter_map(|(_, value)| value.get(12..));
        inside.flat_map(dhcp6_options).filter(|(code, _)| *code == IA_ADDRESS).map(|(_, value)| value)
    };
    match kind {
        // Solicit (answered by a reply where both sides know rapid commit), request, renew, rebind.
        1 | 3 | 5 | 6 => Some(Dhcp::Request { transaction }),
        7 => {
            let given = addresses(options).filter_map(|value| {
                let ip = Ipv6Addr::from(read::<16>(value, 0)?);
                Some((ip.into(), lasting(u32::from_be_bytes(read(value, 20)?))))
            });
            Some(Dhcp::Reply { transaction, given: given.take(MAX_GIVEN).collect() })
        }
        8 => {
            addresses(options).find_map(|value| read::<16>(value, 0)).map(|ip| Dhcp::Release(Ipv6Addr::from(ip).into()))
        }
        _ => None,
    }
}

fn dhcp6_options(mut options: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (code, length) = (u16::from_be_bytes(read(options, 0)?), u16::from_be_bytes(read(options, 2)?));
        let (value, rest) = options.get(4..)?.split_at_checked(usize::from(length))?;
        options = rest;
        Some((code, value))
    })
}

/// All ones mean for ever.
fn lasting(seconds: u32) -> Option<Duration> {
    (seconds != u32::MAX).then(|| Duration::from_secs(seconds.into()))
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
