//! Facts: everything the ledger keeps that is not a flow.

use serde::{Deserialize, Serialize};

use crate::{BootId, Coverage, Digest, DomainUuid, Event, Instance, Payload, Timestamp};

/// One fact. `Instance` and `Payload` are whole snapshots. Of an instance the last one recorded under its key holds: it is the host's
/// own word. Of a payload the first does, and a later one may only add its end: it is a guest's.
// Most facts of a busy host are payloads: a box would only add an allocation for each.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "kebab-case")]
pub enum Fact {
    /// A VM began, changed or ended.
    Instance(Instance),
    /// A payload began or ended.
    Payload(Payload),
    /// What could be seen.
    Coverage(Coverage),
    /// Something happened.
    Event(Event),
}

/// How far a guest's record chain has come. Stored with the fact it brought, so that both are durable or neither.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LinkPosition {
    /// The VM.
    pub domain: DomainUuid,
    /// The guest's boot.
    pub boot: BootId,
    /// Sequence number of the record.
    pub seq: u64,
    /// SHA-256 of the record's line: what the next record must name as the one before.
    pub digest: Digest,
}

/// A fact as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactRecord {
    /// Host's clock when it was written.
    pub recorded: Timestamp,
    /// What.
    #[serde(flatten)]
    pub fact: Fact,
    /// The guest record that brought it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkPosition>,
}
