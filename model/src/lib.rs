//! The words that Vestigo's parts share.
//!
//! Leaf crate: no I/O, no async runtime, no `unsafe`. What stands here is either written to disk, sent over a
//! guest link or handed from one daemon to another, so every type round-trips through JSON and every reader of
//! foreign bytes is bounded.
//!
//! Two kinds of knowledge are kept apart by type: what the host saw ([`Instance`], [`Flow`], [`Coverage`]) and what a
//! guest said ([`PayloadClaim`], inside a [`Payload`] that carries the host's own stamp).

mod access;
mod ban;
mod connection;
mod coverage;
mod digest;
mod event;
mod fact;
mod flow;
mod handover;
mod id;
mod instance;
pub mod link;
mod mark;
mod nat;
mod payload;
mod receipt;
pub mod scitags;
pub mod settings;
mod source;
mod time;

pub use access::{Access, Caller, MAX_TASK_LIFE, MAX_TASK_RUNS, TaskMark, TokenMark};
pub use ban::{Ban, BanApplied, Scope};
pub use connection::Connection;
pub use coverage::{Coverage, CoverageState};
pub use digest::{Digest, ParseDigestError};
pub use event::{Event, EventKind};
pub use fact::{Fact, FactRecord, LinkPosition};
pub use flow::{
    Attribution, BEGAN_BEFORE, Direction, EndReason, Expected, Flow, FlowNotes, Folded, Initiator, PostNat, Quality,
    SciTag, SciTagSource, Tunnel, Tuple,
};
pub use handover::{Handover, HandoverResult, Outcome, PayloadSummary, PinnedDisk, PinnedLayer};
pub use id::{
    BootId, DomainUuid, HostId, IdError, InstanceId, ItemId, Label, Mac, PayloadId, PayloadUid, PilotId, TapName, Vo,
};
pub use instance::{Cloud, Disk, Instance, InstanceEnd, Layer, Project, StopReason, Tap};
pub use mark::{Mark, Trace};
pub use nat::{End, Face, TRANSLATION_RETOLD, Translation, faces};
pub use payload::{
    Enforcement, Executable, Exit, Holder, LEASE_REST, Lease, PSEUDONYM, Payload, PayloadClaim, PayloadEnd, PortBlock,
    RuleState, Trust, User,
};
pub use receipt::Receipt;
pub use source::{Basis, Learnt, expected};
pub use time::{Clock, ManualClock, ParseTimeError, SystemClock, TimeRange, Timestamp};
