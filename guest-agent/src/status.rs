//! What `guest-agent status` shows.

use std::fmt;

use serde::{Deserialize, Serialize};
use vestigo_model::{BootId, Lease, PayloadId, PayloadUid, PilotId, Timestamp, User, Vo};

/// State of the guest link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// This boot, the name of the record chain.
    pub boot: BootId,
    /// Whether hostd has greeted us on the channel as it is now.
    pub connected: bool,
    /// Last record made.
    pub last: u64,
    /// Last record that hostd holds.
    pub acked: u64,
    /// Payloads started without an acknowledgement that has not come yet.
    pub debt: u32,
    /// Bytes of records that wait for an acknowledgement.
    pub spooled: usize,
    /// Payloads refused because the spool was full.
    pub refused_full: u64,
    /// Lines of hostd that were not understood or contradicted what we know.
    pub contradictions: u64,
}

/// Sandboxes that wait for their payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolStatus {
    /// How many are there.
    pub ready: usize,
    /// How many there are when nobody has just taken one.
    pub wanted: usize,
}

/// The payloads' port blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseCounts {
    /// With a running payload.
    pub in_use: usize,
    /// Resting after use.
    pub resting: usize,
    /// How many there are.
    pub all: usize,
}

/// One running payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePayload {
    /// This run.
    pub uid: PayloadUid,
    /// The VO's name for it.
    pub payload: PayloadId,
    /// Its pilot.
    pub pilot: PilotId,
    /// Whose it is.
    pub user: User,
    /// The VO.
    pub vo: Vo,
    /// What marks its packets.
    pub leases: Vec<Lease>,
    /// Guest's clock when the request came.
    pub since: Timestamp,
    /// Uid of the process that asked (SO_PEERCRED).
    pub caller_uid: u32,
    /// Its pid.
    pub caller_pid: i32,
}

/// The whole answer. `version` changes when a member's meaning does, as that of `leases` did with 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// 2.
    pub version: u32,
    /// Version of the agent.
    pub agent: String,
    /// `closed` or `open`.
    pub fail_mode: String,
    /// The link.
    pub link: LinkStatus,
    /// Leases.
    pub leases: LeaseCounts,
    /// Sandboxes prepared ahead.
    #[serde(default)]
    pub pool: PoolStatus,
    /// Why payloads have no IPv6 now; absent when they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_ipv6: Option<String>,
    /// Running payloads: all of them for root, else those of the asking uid.
    pub payloads: Vec<LivePayload>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = &self.link;
        let state = if link.connected { "connected" } else { "not connected" };
        writeln!(f, "link      {state}, boot {}", link.boot)?;
        writeln!(f, "records   {} made, {} acknowledged, {} bytes waiting", link.last, link.acked, link.spooled)?;
        writeln!(
            f,
            "fail mode {}, debt {}, refused for a full spool {}",
            self.fail_mode, link.debt, link.refused_full
        )?;
        let LeaseCounts { in_use, resting, all } = self.leases;
        writeln!(
            f,
            "leases    {in_use} in use, {resting} resting, {all} in all; {} of {} sandboxes ready",
            self.pool.ready, self.pool.wanted
        )?;
        if let Some(why) = &self.no_ipv6 {
            writeln!(f, "IPv6      payloads have none: {why}")?;
        }
        for p in &self.payloads {
            let leases: Vec<String> = p.leases.iter().map(ToString::to_string).collect();
            let leases = leases.join(", ");
            writeln!(
                f,
                "payload   {} {} of {} ({}), {leases}, pilot {}, since {}",
                p.uid, p.payload, p.user, p.vo, p.pilot, p.since
            )?;
        }
        Ok(())
    }
}
