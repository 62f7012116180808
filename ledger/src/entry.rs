//! What a frame of the write-ahead log says.

use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, FactRecord, Flow, HostId, LinkPosition, Timestamp};

use crate::tasks::TaskUse;

/// Version of the write-ahead log's entries.
pub(crate) const VERSION: u32 = 1;

/// First entry of every generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) host: HostId,
    pub(crate) generation: u64,
    /// Time of the last record of the generations before: the snapshot alone would forget it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_recorded: Option<Timestamp>,
    /// The newest segment when the generation began: a tail that vanishes is missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) head: Option<Head>,
}

/// The end of the chain of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) sequence: u64,
    /// SHA-256 of its manifest file.
    pub(crate) sha256: Digest,
}

/// A guest's chain position without the fact that brought it (which may have ended long ago).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CarriedLink {
    pub(crate) recorded: Timestamp,
    pub(crate) link: LinkPosition,
}

/// One entry, as read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Entry {
    /// Begins a generation.
    Header(Header),
    /// A fact that held when the generation began: a copy of one in an earlier generation.
    Carried(Box<FactRecord>),
    /// A chain position that held when the generation began.
    Link(CarriedLink),
    /// A run of a signed task that counted when the generation began.
    Task(Box<TaskUse>),
    /// A fact.
    Fact(Box<FactRecord>),
    /// A flow.
    Flow(Box<Flow>),
}

/// One entry, as written: the same words over borrowed values.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EntryRef<'a> {
    Header(&'a Header),
    Carried(&'a FactRecord),
    Link(&'a CarriedLink),
    Task(&'a TaskUse),
    Fact(&'a FactRecord),
    Flow(&'a Flow),
}
