//! Ports of later fragments: learnt from the first, for as long as its datagram is likely to be under way.

use std::collections::{HashMap, VecDeque};

use vestigo_model::Tunnel;

use crate::decode::{Fragment, Heading, Packet};

/// Datagrams remembered at once; the oldest go first.
const MAX_DATAGRAMS: usize = 1024;
/// How long a datagram may be under way, by the meter's clock (RFC 8200, 4.5: 60 s to reassemble).
const LIFETIME: i64 = 60_000_000_000;

/// Everything by which two fragments belong together, and what keeps two networks apart. That they go the same way too: others can send under the
/// VM's address, and it under theirs.
type Key = (Heading, u128, u128, u8, u32, [Option<u16>; 2], Option<Tunnel>);

#[derive(Debug, Clone, Copy)]
struct First {
    proto: u8,
    ports: (u16, u16),
    icmp: Option<(u8, u8)>,
    seen: i64,
}

/// The datagrams of one tap whose first fragment was seen.
#[derive(Debug, Default)]
pub struct Fragments {
    firsts: HashMap<Key, First>,
    order: VecDeque<Key>,
    orphans: u64,
}

impl Fragments {
    /// Gives a later fragment the ports of its datagram. One whose first fragment was not seen stays without, and is counted.
    pub fn resolve(&mut self, packet: &mut Packet, heading: Heading, now: i64) {
        let Some(Fragment { id, header, first }) = packet.fragment else { return };
        let key = (heading, packet.src, packet.dst, header, id, [packet.vlan, packet.inner_vlan], packet.tunnel);
        if first {
            if !packet.headless {
                let ports = (packet.src_port, packet.dst_port);
                self.learn(key, First { proto: packet.proto, ports, icmp: packet.icmp, seen: now });
            }
        } else if let Some(first) = self.firsts.get(&key).filter(|first| now.saturating_sub(first.seen) < LIFETIME) {
            (packet.src_port, packet.dst_port) = first.ports;
            (packet.proto, packet.icmp) = (first.proto, first.icmp);
            // As good as a first one from here on: its ports are known.
            packet.fragment = None;
        } else {
            self.orphans += 1;
        }
    }

    /// Fragments without ports since the last call.
    pub fn take_orphans(&mut self) -> u64 {
        std::mem::take(&mut self.orphans)
    }

    fn learn(&mut self, key: Key, first: First) {
        if self.firsts.insert(key, first).is_some() {
            return;
        }
        self.order.push_back(key);
        let surplus = self.order.len().saturating_sub(MAX_DATAGRAMS);
        for oldest in self.order.drain(..surplus) {
            self.firsts.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::proto;

    fn fragment(id: u32, first: bool) -> Packet {
        let mut packet = crate::meter::tests::packet("10.0.0.5", 21_000, "192.0.2.7", 53, proto::UDP, 0);
        if !first {
            (packet.src_port, packet.dst_port) = (0, 0);
        }
        Packet { ip_bytes: 1500, fragment: Some(Fragment { id, header: proto::UDP, first }), ..packet }
    }

    #[test]
    fn later_fragments_get_the_ports_and_orphans_are_counted() {
        let mut fragments = Fragments::default();
        fragments.resolve(&mut fragment(1, true), Heading::FromVm, 0);
        let mut later = fragment(1, false);
        fragments.resolve(&mut later, Heading::FromVm, 1);
        assert_eq!((later.src_port, later.dst_port, later.portless()), (21_000, 53, false));
        let mut under_its_name = fragment(1, false);
        fragments.resolve(&mut under_its_name, Heading::ToVm, 1);
        assert!(under_its_name.portless() && fragments.take_orphans() == 1, "others can send under its address");
        let mut late = fragment(1, false);
        fragments.resolve(&mut late, Heading::FromVm, LIFETIME);
        assert!(late.portless());
        let mut orphan = fragment(2, false);
        fragments.resolve(&mut orphan, Heading::FromVm, 1);
        assert!(orphan.portless());
        assert_eq!((fragments.take_orphans(), fragments.take_orphans()), (2, 0));
        for id in 10..10_000 {
            fragments.resolve(&mut fragment(id, true), Heading::FromVm, 2);
        }
        assert_eq!((fragments.firsts.len(), fragments.order.len()), (MAX_DATAGRAMS, MAX_DATAGRAMS));
    }
}
