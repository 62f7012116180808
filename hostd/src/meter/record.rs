use std::net::IpAddr;

use vestigo_model::{Direction, EndReason, FlowNotes, Initiator, Timestamp};

/// A record without the names: who the tap belongs to is added by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    /// Who began.
    pub direction: Direction,
    /// Originator.
    pub orig: (IpAddr, u16),
    /// Responder.
    pub resp: (IpAddr, u16),
    /// IANA protocol number.
    pub proto: u8,
    /// VLAN id.
    pub vlan: Option<u16>,
    /// First packet of the whole flow: earlier than `first` in all records of it but the first.
    pub began: Timestamp,
    /// First packet of the record.
    pub first: Timestamp,
    /// Last packet of the record. Of a last record without packets, both are the flow's last packet.
    pub last: Timestamp,
    /// Packets, bytes, TCP flags from the originator.
    pub from_orig: (u64, u64, u8),
    /// Packets, bytes, TCP flags from the responder.
    pub from_resp: (u64, u64, u8),
    /// Why the record is written.
    pub end_reason: EndReason,
    /// How sure the originator is.
    pub initiator: Initiator,
    /// What few flows have.
    pub notes: FlowNotes,
}
