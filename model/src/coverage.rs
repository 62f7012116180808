//! Coverage: what could, and what could not, be seen. Part of every answer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DomainUuid, HostId, TapName, Timestamp};

/// What one observation point can say about one stretch of time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum CoverageState {
    /// Everything was seen, and there was something.
    Ok,
    /// Everything was seen, and there was nothing.
    Nodata,
    /// Something was lost.
    Lost {
        /// How many (packets, records), where it can be known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
        /// At which stage: `ring`, `table`, `ledger`, `hostd-down` …
        #[serde(rename = "where")]
        place: String,
    },
    /// Everything was seen and counted, but so many conversations are not told apart: the VM had more at once than are kept.
    Folded {
        /// How many, at most.
        count: u64,
    },
    /// The tap's frames cannot be seen from the host.
    NotCapturable {
        /// Why.
        why: String,
    },
    /// The VM has no agent: flows are known to the VM, not to a payload.
    AgentAbsent,
    /// The VM has an agent that does not speak.
    AgentSilent,
    /// The host's own address translation was followed, and nothing of it was lost.
    NatOk,
    /// It was followed, and something of it was lost: a public address may not lead to its VM.
    NatLost {
        /// How many translations, where it can be known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
        /// At which stage: `nat-events`, `nat-table`, `nat-statements`.
        #[serde(rename = "where")]
        place: String,
    },
    /// It cannot be followed.
    NatUnseen {
        /// Why.
        why: String,
    },
}

impl CoverageState {
    /// Whether it speaks of address translation, not of packets.
    #[must_use]
    pub const fn is_of_nat(&self) -> bool {
        matches!(self, Self::NatOk | Self::NatLost { .. } | Self::NatUnseen { .. })
    }
}

impl fmt::Display for CoverageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Nodata => f.write_str("nodata"),
            Self::Lost { count: Some(count), place } => write!(f, "lost({count}, {place})"),
            Self::Lost { count: None, place } => write!(f, "lost(unknown number, {place})"),
            Self::Folded { count } => write!(f, "folded({count})"),
            Self::NotCapturable { why } => write!(f, "not-capturable({why})"),
            Self::AgentAbsent => f.write_str("agent-absent"),
            Self::AgentSilent => f.write_str("agent-silent"),
            Self::NatOk => f.write_str("nat-ok"),
            Self::NatLost { count: Some(count), place } => write!(f, "nat-lost({count}, {place})"),
            Self::NatLost { count: None, place } => write!(f, "nat-lost(unknown number, {place})"),
            Self::NatUnseen { why } => write!(f, "nat-unseen({why})"),
        }
    }
}

/// One statement of coverage, at most a minute long in ordinary operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coverage {
    /// The hypervisor.
    pub host: HostId,
    /// The VM; `None` speaks of every VM of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainUuid>,
    /// The tap; `None` speaks of the VM's agent, or of everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<TapName>,
    /// From.
    pub from: Timestamp,
    /// To, not before `from`.
    pub to: Timestamp,
    /// What can be said.
    #[serde(flatten)]
    pub state: CoverageState,
}
