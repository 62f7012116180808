//! What tells one conversation from another.

use std::net::IpAddr;

use vestigo_model::{Tunnel, Tuple};

use crate::decode::{Packet, packet_address, proto};

const PORT: u32 = 16;
const PROTO_AT: u32 = 32;
const V6_AT: u32 = 40;
const PORTLESS_AT: u32 = 41;
/// Twelve bits of a VLAN id and one that says whether there is one.
const VLAN_AT: u32 = 42;
const INNER_AT: u32 = 55;
/// 24 bits of a tunnel's network and two of its kind.
const TUNNEL_AT: u32 = 68;
/// Whether the low end is the VM's.
const VM_LOW_AT: u32 = 94;

const HAS_VLAN: u16 = 0x1000;
const VXLAN: u32 = 1 << 24;
const GENEVE: u32 = 2 << 24;

/// Both ends of a conversation, in an order that does not depend on who speaks, and everything else that makes it another one. Packed:
/// it is compared and hashed for every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    low: u128,
    high: u128,
    rest: u128,
}

impl Key {
    /// The key, and whether the packet came from its low end. `from_vm` where one end is a VM's: the kernel says which, and a packet under
    /// the other end's address (forged, or one that the VM routes) is none of the same conversation.
    pub(super) fn of(packet: &Packet, from_vm: Option<bool>) -> (Self, bool) {
        // Both directions of a ping share the identifier, which is neither end's port: give it to both.
        let dst_port = if packet.icmp.is_some() { packet.src_port } else { packet.dst_port };
        let (src, dst) = ((packet.src, packet.src_port), (packet.dst, dst_port));
        let by_low = src <= dst;
        let (low, high) = if by_low { (src, dst) } else { (dst, src) };
        let ports = u128::from(low.1) << PORT | u128::from(high.1);
        let rest = ports
            | u128::from(packet.proto) << PROTO_AT
            | u128::from(packet.v6) << V6_AT
            | u128::from(packet.portless()) << PORTLESS_AT
            | u128::from(vlan_bits(packet.vlan)) << VLAN_AT
            | u128::from(vlan_bits(packet.inner_vlan)) << INNER_AT
            | u128::from(tunnel_bits(packet.tunnel)) << TUNNEL_AT
            | u128::from(from_vm == Some(by_low)) << VM_LOW_AT;
        (Self { low: low.0, high: high.0, rest }, by_low)
    }

    pub(super) fn proto(&self) -> u8 {
        let [.., proto, _, _, _, _] = self.rest.to_be_bytes();
        proto
    }

    pub(super) fn is_icmp(&self) -> bool {
        matches!(self.proto(), proto::ICMP | proto::ICMPV6)
    }

    pub(super) const fn portless(&self) -> bool {
        self.rest >> PORTLESS_AT & 1 == 1
    }

    pub(super) const fn vlan(&self) -> Option<u16> {
        vlan_of(self.rest >> VLAN_AT)
    }

    pub(super) const fn inner_vlan(&self) -> Option<u16> {
        vlan_of(self.rest >> INNER_AT)
    }

    pub(super) const fn tunnel(&self) -> Option<Tunnel> {
        let bits = low_32(self.rest >> TUNNEL_AT);
        match bits >> 24 & 3 {
            1 => Some(Tunnel::Vxlan(bits & 0x00ff_ffff)),
            2 => Some(Tunnel::Geneve(bits & 0x00ff_ffff)),
            _ => None,
        }
    }

    /// Address and port of the low end, or of the high one.
    pub(super) fn end(&self, low: bool) -> (IpAddr, u16) {
        let [.., a, b, c, d] = self.rest.to_be_bytes();
        let (ip, port) = if low { (self.low, [a, b]) } else { (self.high, [c, d]) };
        (packet_address(ip, self.is_v6()), u16::from_be_bytes(port))
    }

    /// The VM's end of it, for what folds conversations: the address, its port, and all that is neither end's port.
    pub(super) fn of_end(&self, low: bool) -> (u128, u16, u128) {
        let ip = if low { self.low } else { self.high };
        let own = self.rest & !(1 << VM_LOW_AT);
        (ip, self.end(low).1, own >> (2 * PORT) << (2 * PORT))
    }

    pub(super) const fn is_v6(&self) -> bool {
        self.rest >> V6_AT & 1 == 1
    }

    /// The key of what has no share of its own: no address, no port.
    pub(super) fn catch_all(proto: u8, tunnel: bool) -> Self {
        let tunnel = if tunnel { VXLAN } else { 0 };
        Self { low: 0, high: 0, rest: u128::from(proto) << PROTO_AT | u128::from(tunnel) << TUNNEL_AT }
    }

    /// A key of one end only, as [`Key::of_end`] gives it.
    pub(super) const fn folded(ip: u128, block: u8, rest: u128) -> Self {
        Self { low: ip, high: 0, rest: rest | block as u128 }
    }
}

/// The five-tuple as its sender has it.
pub(super) fn tuple(packet: &Packet) -> Tuple {
    Tuple {
        src_ip: packet.src_ip(),
        src_port: packet.src_port,
        dst_ip: packet.dst_ip(),
        dst_port: packet.dst_port,
        proto: packet.proto,
    }
}

fn vlan_bits(id: Option<u16>) -> u16 {
    id.map_or(0, |id| HAS_VLAN | (id & 0x0fff))
}

const fn vlan_of(bits: u128) -> Option<u16> {
    let [.., a, b] = bits.to_be_bytes();
    let word = u16::from_be_bytes([a, b]);
    if word & HAS_VLAN == 0 { None } else { Some(word & 0x0fff) }
}

const fn low_32(bits: u128) -> u32 {
    let [.., a, b, c, d] = bits.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

const fn tunnel_bits(tunnel: Option<Tunnel>) -> u32 {
    match tunnel {
        None => 0,
        Some(Tunnel::Vxlan(network)) => VXLAN | (network & 0x00ff_ffff),
        Some(Tunnel::Geneve(network)) => GENEVE | (network & 0x00ff_ffff),
    }
}
