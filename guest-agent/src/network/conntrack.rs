//! The kernel's memory of connections, as far as it is about payloads. It outlives them: whoever has a payload's address next would get
//! what the old peers still send, and send on under the old translation. Pure: the message that makes the kernel forget.
//!
//! A payload's connections have a mark, its inner IPv4 address as a number. The layout is that of linux/netfilter/nfnetlink_conntrack.h.

use std::net::Ipv4Addr;

use super::elements::{ACK, REQUEST, attribute, message};

/// Subsystem 1, message 2 (linux/netfilter/nfnetlink.h).
const DELETE: u16 = 1 << 8 | 2;
const MARK: u16 = 8;
const MARK_MASK: u16 = 21;

/// The mark of a payload's connections, over IPv4 and IPv6.
#[must_use]
pub fn mark(inner: Ipv4Addr) -> u32 {
    u32::from(inner)
}

/// The message that deletes all connections of payloads of this network, `prefix` bits long: 32 for a single payload.
#[must_use]
pub fn forget(base: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    // Any family, version 0: with another version the kernel would look at the family.
    let mut body = vec![0; 4];
    body.extend(attribute(MARK, &mark(base).to_be_bytes()));
    body.extend(attribute(MARK_MASK, &mask.to_be_bytes()));
    message(DELETE, REQUEST | ACK, 1, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_message_is_that_of_the_header_files() {
        let expected = |mask: [u8; 4]| {
            let head = b"\x24\0\0\0\x02\x01\x05\0\x01\0\0\0\0\0\0\0\0\0\0\0\x08\0\x08\0\x64\x40\0\x0e\x08\0\x15\0";
            [head.as_slice(), &mask].concat()
        };
        let inner = Ipv4Addr::new(100, 64, 0, 14);
        assert_eq!(forget(inner, 32), expected([255; 4]));
        assert_eq!(forget(inner, 16), expected([255, 255, 0, 0]));
        assert_eq!(forget(inner, 0), expected([0; 4]));
    }
}
