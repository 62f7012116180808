//! What an ICMP packet says, in words: RFC 792 and 1122 (IPv4), RFC 4443, 4861 and 2710 (IPv6).

/// IANA's number of ICMP.
pub(crate) const V4: u8 = 1;
/// IANA's number of ICMP for IPv6.
pub(crate) const V6: u8 = 58;

/// The words for a type and code; those that this does not know get their numbers.
pub(crate) fn words(v6: bool, kind: u8, code: u8) -> String {
    let known = if v6 { of_v6(kind, code) } else { of_v4(kind, code) };
    known.map_or_else(|| format!("type {kind} code {code}"), str::to_owned)
}

const fn of_v4(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (0, _) => "echo reply",
        (8, _) => "echo request",
        (3, 0 | 6) => "unreachable: network unreachable",
        (3, 1 | 7) => "unreachable: host unreachable",
        (3, 2) => "refused: protocol unreachable",
        (3, 3) => "refused: port unreachable",
        (3, 4) => "too big: fragmentation needed",
        (3, 5) => "unreachable: source route failed",
        (3, 9 | 10 | 13) => "filtered: administratively prohibited",
        (3, 11 | 12) => "unreachable: not with this type of service",
        (3, 14 | 15) => "filtered: precedence",
        (4, _) => "source quench",
        (5, _) => "redirected to another router",
        (11, 0) => "time exceeded: too many hops",
        (11, 1) => "time exceeded: fragments missing",
        (12, _) => "parameter problem",
        _ => return None,
    })
}

const fn of_v6(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, 0) => "unreachable: no route",
        (1, 1) => "filtered: administratively prohibited",
        (1, 2) => "unreachable: beyond the scope of the source address",
        (1, 3) => "unreachable: address unreachable",
        (1, 4) => "refused: port unreachable",
        (1, 5 | 6) => "filtered: route or source address refused",
        (2, _) => "too big: packet larger than the next link takes",
        (3, 0) => "time exceeded: too many hops",
        (3, 1) => "time exceeded: fragments missing",
        (4, _) => "parameter problem",
        (128, _) => "echo request",
        (129, _) => "echo reply",
        (130..=132 | 143, _) => "multicast listeners",
        (133, _) => "router solicitation",
        (134, _) => "router advertisement",
        (135, _) => "neighbour solicitation",
        (136, _) => "neighbour advertisement",
        (137, _) => "redirected to another router",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn the_same_number_says_different_things_in_the_two_families() {
        assert_eq!(words(false, 3, 3), "refused: port unreachable");
        assert_eq!(words(true, 1, 4), "refused: port unreachable");
        assert_eq!(words(true, 3, 0), "time exceeded: too many hops");
        assert_eq!(words(false, 200, 7), "type 200 code 7");
    }
}
