use vestigo_model::{Direction, Initiator};

use super::key::Key;
use crate::decode::{Heading, Packet, experiment_and_activity, proto, tcp_flag};

/// A packet as the table takes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sighting {
    pub(super) key: Key,
    pub(super) hash: u64,
    /// The packet's own time, nanoseconds.
    pub(super) time: i64,
    /// The meter's, when it came.
    pub(super) seen: i64,
    pub(super) bytes: u64,
    pub(super) by_low: bool,
    pub(super) from_vm: bool,
    pub(super) headless: bool,
    pub(super) tcp_flags: u8,
    /// `type << 8 | code`.
    pub(super) icmp: Option<u16>,
    /// `experiment << 6 | activity`, 0 for none.
    pub(super) scitag: u16,
}

impl Sighting {
    /// `one_vm`: one end of every conversation is the VM's.
    pub(super) fn new(
        packet: &Packet,
        heading: Heading,
        one_vm: bool,
        (time, seen): (i64, i64),
        scitags: bool,
    ) -> Self {
        let from_vm = heading == Heading::FromVm;
        let (key, by_low) = Key::of(packet, one_vm.then_some(from_vm));
        let tag = (scitags && from_vm && packet.v6).then(|| experiment_and_activity(packet.flow_label)).flatten();
        Self {
            key,
            hash: 0,
            time,
            seen,
            bytes: packet.ip_bytes,
            by_low,
            from_vm,
            headless: packet.headless,
            tcp_flags: packet.tcp_flags,
            icmp: packet.icmp.map(|(kind, code)| u16::from_be_bytes([kind, code])),
            scitag: tag.map_or(0, |(experiment, activity)| experiment << 6 | u16::from(activity)),
        }
    }

    /// A connection is opened: SYN without ACK.
    pub(super) fn is_first_syn(&self) -> bool {
        self.key.proto() == proto::TCP && self.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
    }

    /// Whether the packet's source is the originator, and how sure that is.
    pub(super) fn originator(&self) -> (bool, Initiator) {
        if self.key.portless() {
            // Whose fragment it is, its first would say. That no header can be read is the sender's own doing.
            return (true, if self.headless { Initiator::Inferred } else { Initiator::Unknown });
        }
        match (self.key.proto(), self.icmp.map(u16::to_be_bytes)) {
            (proto::TCP, _) if self.is_first_syn() => (true, Initiator::Seen),
            (proto::TCP, _) if self.tcp_flags & tcp_flag::SYN != 0 => (false, Initiator::Inferred),
            // In the middle of a connection: the higher port is more likely the caller's.
            (proto::TCP, _) => {
                let (own, others) = (self.key.end(self.by_low).1, self.key.end(!self.by_low).1);
                (own >= others, Initiator::Inferred)
            }
            (_, Some([8 | 128, _])) => (true, Initiator::Seen),
            (_, Some([0 | 129, _])) => (false, Initiator::Inferred),
            _ => (true, Initiator::Inferred),
        }
    }

    /// Who began, seen from the VM.
    pub(super) fn direction(&self, by_source: bool) -> Direction {
        if self.from_vm == by_source { Direction::Outgoing } else { Direction::Incoming }
    }
}
