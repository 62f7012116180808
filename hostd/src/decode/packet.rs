use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vestigo_model::Tunnel;

/// What the meter keeps of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source address; of IPv4 in the mapped form of RFC 4291.
    pub src: u128,
    /// Destination address, likewise.
    pub dst: u128,
    /// Whether it is IPv6 (which may have addresses of the mapped form too: a guest can write what it likes).
    pub v6: bool,
    /// VLAN id, outermost tag.
    pub vlan: Option<u16>,
    /// VLAN id of the second tag.
    pub inner_vlan: Option<u16>,
    /// The tunnel that the packet was inside of.
    pub tunnel: Option<Tunnel>,
    /// IANA protocol number: of what comes behind the extension headers.
    pub proto: u8,
    /// Source port; ICMP echo identifier; of an ICMP error the port (or identifier) that its sender has in the packet that it
    /// speaks of; 0 where there is none.
    pub src_port: u16,
    /// Destination port; 0 where there is none.
    pub dst_port: u16,
    /// TCP flags, FIN = 1 (RFC 9293); 0 for other protocols.
    pub tcp_flags: u8,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// IP header and payload, in bytes, before it was cut.
    pub ip_bytes: u64,
    /// Set on a fragment of a datagram: only the first has ports.
    pub fragment: Option<Fragment>,
    /// Its transport header should be there and could not be read: cut off, or behind too many extension headers.
    pub headless: bool,
    /// IPv6 flow label, 20 bits.
    pub flow_label: u32,
    /// Where in the frame the transport header begins; may be beyond what was captured.
    pub transport: usize,
    /// Where in the frame the payload of the transport begins (behind the first eight bytes of an ICMP message); may be beyond what
    /// was captured.
    pub payload: usize,
    /// Where in the frame the IP packet ends; never beyond what was captured.
    pub end: usize,
}

/// Which datagram a fragment belongs to (together with its addresses).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// What IPv4 tells datagrams apart by too: the protocol of its header. 0 for IPv6 (RFC 8200, 4.5).
    pub header: u8,
    /// Whether it is the first, which has the transport header.
    pub first: bool,
}

impl Packet {
    /// Source address.
    #[must_use]
    pub fn src_ip(&self) -> IpAddr {
        address(self.src, self.v6)
    }

    /// Destination address.
    #[must_use]
    pub fn dst_ip(&self) -> IpAddr {
        address(self.dst, self.v6)
    }

    /// Its ports exist, and are not known: a later fragment, or one whose transport header could not be read.
    #[must_use]
    pub fn portless(&self) -> bool {
        self.headless || self.fragment.is_some_and(|fragment| !fragment.first)
    }

    /// The transport's payload, as far as it was captured, without what pads the frame.
    #[must_use]
    pub fn payload_of<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.payload..self.end).unwrap_or_default()
    }
}

/// From the form that the meter keeps.
#[must_use]
pub fn address(ip: u128, v6: bool) -> IpAddr {
    let whole = Ipv6Addr::from_bits(ip);
    if v6 {
        return IpAddr::V6(whole);
    }
    let [.., a, b, c, d] = whole.octets();
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// IPv4 in the mapped form.
pub(super) const fn mapped(ip: u32) -> u128 {
    0xffff_0000_0000 | ip as u128
}
