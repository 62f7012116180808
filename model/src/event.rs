//! Events: things that happened once and have no end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DomainUuid, HostId, Timestamp};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Two witnesses disagree: a VO claimed that is not the tenant's, a lease that another payload holds.
    Contradiction,
    /// A VM sent from addresses that it was not given; the detail says how many flow records, and the last of them.
    Spoofing,
    /// An agent introduced itself.
    AgentHello,
    /// A guest sent bytes that are no frame, a frame out of order, or a record again with other content.
    LinkFault,
    /// hostd started.
    HostStarted,
    /// hostd stopped in order.
    HostStopped,
    /// A dead VM's disks were handed to quarantine.
    DiskHandedOver,
    /// Quarantine says that the disks are safe.
    DiskCaptured,
    /// Quarantine left the disks out by the site's policy.
    DiskSkipped,
    /// A disk could not be kept; the detail says why.
    DiskMissed,
    /// A disk was let go on purpose: nothing was terminated.
    DiskReleased,
    /// The VM cannot be given an agent channel; the detail says why.
    ChannelFault,
    /// An agent refused to start a payload.
    PayloadRefused,
    /// A ban was sent to a VM's agent.
    BanSent,
    /// An agent says that a ban is in force and what it ended.
    BanApplied,
    /// An agent raised an alarm.
    AgentAlarm,
    /// An agent saw a connection of a payload (detail, where it is switched on).
    Connection,
    /// The host translates a conversation of which no flow record says so; see [`crate::Translation`].
    NatBinding,
}

impl EventKind {
    /// The word used in records and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Contradiction => "contradiction",
            Self::Spoofing => "spoofing",
            Self::AgentHello => "agent-hello",
            Self::LinkFault => "link-fault",
            Self::HostStarted => "host-started",
            Self::HostStopped => "host-stopped",
            Self::DiskHandedOver => "disk-handed-over",
            Self::DiskCaptured => "disk-captured",
            Self::DiskSkipped => "disk-skipped",
            Self::DiskMissed => "disk-missed",
            Self::DiskReleased => "disk-released",
            Self::ChannelFault => "channel-fault",
            Self::PayloadRefused => "payload-refused",
            Self::BanSent => "ban-sent",
            Self::BanApplied => "ban-applied",
            Self::AgentAlarm => "agent-alarm",
            Self::Connection => "connection",
            Self::NatBinding => "nat-binding",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The hypervisor.
    pub host: HostId,
    /// The VM, if it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainUuid>,
    /// Host's clock.
    pub time: Timestamp,
    /// What.
    pub what: EventKind,
    /// Particulars, in words that need no schema.
    #[serde(default)]
    pub detail: BTreeMap<String, String>,
}
