//! Ports of later fragments: learnt from the first, for as long as its datagram is likely to be under way.

use std::collections::{HashMap, VecDeque};

use crate::decode::{Fragment, Packet};

/// Datagrams remembered at once; the oldest go first.
const MAX_DATAGRAMS: usize = 1024;

type Key = (u128, u128, u8, u32);
type Ports = (u16, u16, Option<(u8, u8)>);

/// The datagrams of one tap whose first fragment was seen.
#[derive(Debug, Default)]
pub struct Fragments {
    ports: HashMap<Key, Ports>,
    order: VecDeque<Key>,
    orphans: u64,
}

impl Fragments {
    /// Gives a later fragment the ports of its datagram. One whose first fragment was not seen stays without, and is counted.
    pub fn resolve(&mut self, packet: &mut Packet) {
        let Some(Fragment { id, header, first }) = packet.fragment else { return };
        let key = (packet.src, packet.dst, header, id);
        if first {
            self.learn(key, (packet.src_port, packet.dst_port, packet.icmp));
        } else if let Some((src_port, dst_port, icmp)) = self.ports.get(&key) {
            (packet.src_port, packet.dst_port, packet.icmp) = (*src_port, *dst_port, *icmp);
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

    fn learn(&mut self, key: Key, ports: Ports) {
        if self.ports.insert(key, ports).is_some() {
            return;
        }
        self.order.push_back(key);
        let surplus = self.order.len().saturating_sub(MAX_DATAGRAMS);
        for oldest in self.order.drain(..surplus) {
            self.ports.remove(&oldest);
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
        fragments.resolve(&mut fragment(1, true));
        let mut later = fragment(1, false);
        fragments.resolve(&mut later);
        assert_eq!((later.src_port, later.dst_port, later.portless()), (21_000, 53, false));
        let mut orphan = fragment(2, false);
        fragments.resolve(&mut orphan);
        assert!(orphan.portless());
        assert_eq!((fragments.take_orphans(), fragments.take_orphans()), (1, 0));
        for id in 10..10_000 {
            fragments.resolve(&mut fragment(id, true));
        }
        assert_eq!((fragments.ports.len(), fragments.order.len()), (MAX_DATAGRAMS, MAX_DATAGRAMS));
    }
}
