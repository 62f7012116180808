//! Looks at what passes the VM's interfaces: whether a packet that a payload sent under a false name left. Needs root.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    net::if_::if_indextoname,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};
use vestigo_model::PortBlock;

use super::{Verdict, broken, held, not_tested, probes::marks};
use crate::network::PREFIX;

/// Most packets that are kept.
const MOST: usize = 100;

/// A packet of the selftest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where.
    pub interface: String,
    /// Whose name it carries.
    pub source: IpAddr,
    /// And port.
    pub port: u16,
    /// Which of [`marks`].
    pub mark: usize,
}

impl Seen {
    fn outside(&self) -> bool {
        self.interface != "lo" && !self.interface.starts_with(PREFIX)
    }
}

/// Looks until it is asked what it saw.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Seen>>,
}

impl Watch {
    /// Starts to look for the marks of this token, in this network namespace.
    ///
    /// # Errors
    /// As packet(7); EPERM without CAP_NET_RAW.
    pub fn start(token: &str) -> nix::Result<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(50))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, marks) = (Arc::clone(&stop), marks(token));
        let thread = std::thread::spawn(move || look(&socket, &marks, &flag));
        Ok(Self { stop, thread })
    }

    /// What it saw. Waits a moment for packets that are on their way.
    #[must_use]
    pub fn seen(self) -> Vec<Seen> {
        std::thread::sleep(Duration::from_millis(200));
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap_or_default()
    }
}

fn look(socket: &OwnedFd, marks: &[String], stop: &AtomicBool) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::SeqCst) {
        let Ok((count, Some(link))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        let Some((source, port, text)) = datagram(buffer.get(..count).unwrap_or_default()) else { continue };
        let Some(mark) = marks.iter().position(|mark| mark.as_bytes() == text) else { continue };
        let index = u32::try_from(link.ifindex()).unwrap_or(0);
        let interface = if_indextoname(index).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if all.len() < MOST {
            all.push(Seen { interface, source, port, mark });
        }
    }
    all
}

/// Source and text of a UDP packet. IPv6 without extension headers, as the selftest sends it.
fn datagram(packet: &[u8]) -> Option<(IpAddr, u16, &[u8])> {
    let first = *packet.first()?;
    let (source, header, protocol) = match first >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (Ipv4Addr::from(source).into(), usize::from(first & 0xf) * 4, packet.get(9)?)
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (Ipv6Addr::from(source).into(), 40, packet.get(6)?)
        }
        _ => return None,
    };
    let port: [u8; 2] = packet.get(header..header + 2)?.try_into().ok()?;
    (*protocol == 17).then_some((source, u16::from_be_bytes(port), packet.get(header + 8..)?))
}

/// What was seen, as verdicts on `spoofed-source` and `neighbours-ports`. `own` are the ports that the sender may leave by.
#[must_use]
pub fn judge(seen: &[Seen], own: PortBlock) -> [Verdict; 2] {
    [1, 2].map(|mark| verdict(seen, 0, mark, |packet| own.contains(packet.port)))
}

/// The same for `spoofed-source-6`. `own` is the address that the sender may leave with.
#[must_use]
pub fn judge6(seen: &[Seen], own: Ipv6Addr) -> Verdict {
    verdict(seen, 3, 4, |packet| packet.source == own)
}

/// Whether a packet with this mark left under a false name, given that the ordinary one left under a true one.
fn verdict(seen: &[Seen], ordinary: usize, mark: usize, true_name: impl Fn(&Seen) -> bool) -> Verdict {
    let left = |mark| seen.iter().filter(move |packet| packet.mark == mark && packet.outside());
    let tried = seen.iter().any(|packet| packet.mark == mark);
    match (left(mark).find(|packet| !true_name(packet)), left(mark).next()) {
        (Some(Seen { interface, source, port, .. }), _) => {
            broken(format!("one left by {interface} as {source} port {port}"))
        }
        _ if !left(ordinary).any(&true_name) => not_tested("not even an ordinary packet was seen to leave the VM"),
        (None, Some(Seen { source, port, .. })) => {
            held(format!("left as {source} port {port}, which is the payload's own"))
        }
        (None, None) if tried => held("dropped at the VM's side of the payload's interface"),
        (None, None) => held("did not come out of the payload's namespace"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::Outcome;

    #[test]
    fn a_packet_that_leaves_under_a_false_name_breaks_and_silence_proves_nothing() {
        let own = PortBlock { first: 1000, last: 1999 };
        let seen = |interface: &str, port, mark| Seen {
            interface: interface.into(),
            source: Ipv4Addr::LOCALHOST.into(),
            port,
            mark,
        };
        let outcomes = |seen: &[Seen]| judge(seen, own).map(|verdict| verdict.outcome);
        assert_eq!(outcomes(&[]), [Outcome::NotTested; 2]);
        let control = seen("eth0", 1000, 0);
        assert_eq!(outcomes(&[seen("vgp3", 1000, 0), seen("vgp3", 2000, 1)]), [Outcome::NotTested; 2]);
        assert_eq!(outcomes(&[control.clone(), seen("vgp3", 2000, 1), seen("eth0", 1001, 2)]), [Outcome::Held; 2]);
        assert_eq!(outcomes(&[control, seen("eth0", 2000, 1), seen("eth0", 2001, 2)]), [Outcome::Broken; 2]);
    }

    #[test]
    fn with_ipv6_the_address_is_the_name() {
        let [own, foreign] = [1, 2].map(|n| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, n));
        let seen = |interface: &str, source: Ipv6Addr, mark| Seen {
            interface: interface.into(),
            source: source.into(),
            port: 1,
            mark,
        };
        let outcome = |seen: &[Seen]| judge6(seen, own).outcome;
        let ordinary = seen("eth0", own, 3);
        assert_eq!(outcome(&[seen("vgp3", foreign, 4)]), Outcome::NotTested);
        assert_eq!(outcome(&[seen("eth0", foreign, 3)]), Outcome::NotTested);
        assert_eq!(outcome(&[ordinary.clone(), seen("vgp3", foreign, 4)]), Outcome::Held);
        assert_eq!(outcome(&[ordinary, seen("eth0", foreign, 4)]), Outcome::Broken);
    }

    #[test]
    fn only_whole_datagrams_are_read() {
        let mut packet = vec![0x45; 1];
        packet.resize(28, 0);
        packet[9] = 17;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[20..22].copy_from_slice(&[4, 0]);
        packet.extend(b"x");
        assert_eq!(datagram(&packet), Some((Ipv4Addr::new(10, 0, 0, 1).into(), 1024, &b"x"[..])));
        for end in 0..28 {
            assert_eq!(datagram(&packet[..end]), None, "{end}");
        }
        let mut packet = vec![0x60; 1];
        packet.resize(48, 0);
        packet[6] = 17;
        packet[23] = 1;
        packet[40..42].copy_from_slice(&[4, 0]);
        packet.extend(b"x");
        assert_eq!(datagram(&packet), Some((Ipv6Addr::LOCALHOST.into(), 1024, &b"x"[..])));
        for end in 0..48 {
            assert_eq!(datagram(&packet[..end]), None, "{end}");
        }
    }
}
