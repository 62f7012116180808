//! Community ID: what other tools call the same conversation. Computed where it is shown: stored, its 28 bytes without
//! pattern would cost more than all the rest of a flow.

use std::net::IpAddr;

use community_id::calculate_community_id;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Community ID v1 with seed 0 of a conversation, originator first. For ICMP its "ports" are type and code of what the originator
/// sent, which stand in the place of the responder's port (`type << 8 | code`).
#[must_use]
pub fn community_id(orig: (IpAddr, u16), resp: (IpAddr, u16), proto: u8) -> String {
    let (source, destination) = match proto {
        ICMP | ICMPV6 => {
            let [kind, code] = resp.1.to_be_bytes();
            (Some(kind.into()), Some(code.into()))
        }
        TCP | UDP | SCTP => (Some(orig.1), Some(resp.1)),
        _ => (None, None),
    };
    // An error would mean two address families in one packet, which no decoder yields.
    calculate_community_id(0, orig.0, resp.0, source, destination, proto, false).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Values of the reference implementation's test suite (corelight/community-id-spec, baseline for seed 0).
    #[test]
    fn they_are_the_references() {
        let id = |orig: (&str, u16), resp: (&str, u16), proto| {
            community_id((orig.0.parse().unwrap(), orig.1), (resp.0.parse().unwrap(), resp.1), proto)
        };
        assert_eq!(id(("128.232.110.120", 34855), ("66.35.250.204", 80), 6), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        assert_eq!(id(("192.168.1.52", 54585), ("8.8.8.8", 53), 17), "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        assert_eq!(id(("192.168.0.89", 9), ("192.168.0.1", 8 << 8), 1), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
    }
}
