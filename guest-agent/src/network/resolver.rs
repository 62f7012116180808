//! How a payload asks for names. Name servers outside are asked directly, through the payload's own lease. One that listens on
//! the VM itself cannot be: the payload's loopback is its own, and the VM is closed to it. It is reached through one address
//! that is the same for all payloads and that the packet filter turns into the server's, for port 53 only.

use std::{
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr},
};

/// The text of a payload's `/etc/resolv.conf`, from the VM's. `own` are the VM's addresses; servers on them or on loopback become
/// one line with `gateway`, in the place of the first of them.
#[must_use]
pub fn resolvers(text: &str, gateway: Ipv4Addr, own: &[Ipv4Addr]) -> String {
    let mut made = String::new();
    let mut said = false;
    for line in text.lines() {
        match server(line) {
            None if is_server(line) => {}
            Some(IpAddr::V4(address)) if is_local(address, own) => {
                if !std::mem::replace(&mut said, true) {
                    let _ = writeln!(made, "nameserver {gateway}");
                }
            }
            Some(IpAddr::V6(address)) if address.is_loopback() || address.is_unspecified() => {}
            _ => {
                let _ = writeln!(made, "{line}");
            }
        }
    }
    made
}

/// The first name server of the VM that listens on the VM itself, over IPv4.
#[must_use]
pub fn local_server(text: &str, own: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    text.lines().filter_map(server).find_map(|address| match address {
        // A server at 0.0.0.0 is one on this host (resolv.conf(5)).
        IpAddr::V4(address) if address.is_unspecified() => Some(Ipv4Addr::LOCALHOST),
        IpAddr::V4(address) => is_local(address, own).then_some(address),
        IpAddr::V6(_) => None,
    })
}

/// The VM's servers. Where systemd-resolved runs they are the ones that it asks itself: its own socket on 127.0.0.53 is bound to
/// the interface lo and hears nobody else.
#[must_use]
pub fn of_vm() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let text = read("/etc/resolv.conf");
    let stub = |line: &str| matches!(server(line), Some(IpAddr::V4(a)) if a == Ipv4Addr::new(127, 0, 0, 53));
    if text.lines().any(stub) {
        let upstream = read("/run/systemd/resolve/resolv.conf");
        if upstream.lines().any(|line| server(line).is_some()) {
            return upstream;
        }
    }
    text
}

fn is_local(address: Ipv4Addr, own: &[Ipv4Addr]) -> bool {
    address.is_loopback() || address.is_unspecified() || own.contains(&address)
}

fn is_server(line: &str) -> bool {
    line.split_whitespace().next() == Some("nameserver")
}

/// The address of a `nameserver` line. None for one that only the VM's interfaces give a meaning (`fe80::1%eth0`).
fn server(line: &str) -> Option<IpAddr> {
    let address = line.split_whitespace().nth(1).filter(|_| is_server(line))?.parse().ok()?;
    match address {
        IpAddr::V6(v6) if v6.segments().first().is_some_and(|first| first >> 6 == 0xfe80 >> 6) => None,
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DNS: Ipv4Addr = Ipv4Addr::new(100, 64, 255, 254);
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

    #[test]
    fn servers_outside_stay_and_those_inside_become_one() {
        let text = "# made by somebody\nsearch example.org\nnameserver 127.0.0.1\nnameserver 192.0.2.53\nnameserver 127.0.0.53\n\
            nameserver ::1\nnameserver 10.9.0.1\nnameserver 2001:db8::53\nnameserver fe80::1%eth0\noptions timeout:1\n";
        let expected = "# made by somebody\nsearch example.org\nnameserver 100.64.255.254\nnameserver 192.0.2.53\n\
            nameserver 2001:db8::53\noptions timeout:1\n";
        assert_eq!(resolvers(text, DNS, &[OWN]), expected);
        assert_eq!(local_server(text, &[OWN]), Some(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn only_local_servers_leave_one_line() {
        assert_eq!(resolvers("nameserver\t127.0.0.1", DNS, &[]), "nameserver 100.64.255.254\n");
        assert_eq!(resolvers("nameserver 0.0.0.0\n", DNS, &[]), "nameserver 100.64.255.254\n");
        assert_eq!(local_server("nameserver 0.0.0.0\n", &[]), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(local_server("nameserver 10.9.0.1\n", &[OWN]), Some(OWN));
        assert_eq!(local_server("nameserver 192.0.2.1\nnameservers 127.0.0.1\n", &[OWN]), None);
    }
}
