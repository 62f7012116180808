use super::Frame;
use crate::decode::{Packet, proto};

/// Where fireflies go (scitags.org).
const FIREFLY: u16 = 10_514;

/// A frame by which machines say who they are, or whose traffic theirs is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// ARP; `decode::arp` finds it in the frame.
    Arp,
    /// ICMPv6 133 to 137: router and neighbour discovery (RFC 4861).
    Neighbour(Packet),
    /// UDP to or from port 67 or 68, or 546 or 547 (IPv6).
    Dhcp(Packet),
    /// UDP to port 10514.
    Firefly(Packet),
}

impl Control {
    /// What the packet is, if it is such a one. `Packet::payload_of` has what it says; a later fragment is never asked.
    pub(super) fn of(packet: &Packet) -> Option<Self> {
        match packet.proto {
            proto::UDP if packet.dst_port == FIREFLY => Some(Self::Firefly(*packet)),
            proto::UDP if is_dhcp(packet.src_port) || is_dhcp(packet.dst_port) => Some(Self::Dhcp(*packet)),
            proto::ICMPV6 if matches!(packet.icmp, Some((133..=137, _))) => Some(Self::Neighbour(*packet)),
            _ => None,
        }
    }
}

const fn is_dhcp(port: u16) -> bool {
    matches!(port, 67 | 68 | 546 | 547)
}

/// Looks at the frames of control protocols as they pass. What it makes of them is its own affair; the meter asks for nothing back.
pub trait Witness {
    /// A frame that may say something. Hostile like every other.
    fn control(&mut self, frame: &Frame<'_>, control: Control);
}

/// Nobody looks.
impl Witness for () {
    fn control(&mut self, _: &Frame<'_>, _: Control) {}
}
