//! What `guest-agent exec` and the daemon say to each other, and the numbers that a pilot gets back.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use vestigo_model::{Enforcement, Exit, Label, Lease, PayloadId, PayloadUid, PilotId, Trust, User, Vo};

use crate::{cgroup::Events, identity::token::TokenMark, shape::Shape, status::Status};

/// Where the daemon listens.
pub const SOCKET: &str = "/run/vestigo/agent.sock";
/// How long the daemon waits for a request once somebody has connected.
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// Exit codes of `guest-agent exec` that are not the payload's own. The status document tells them apart from the payload's.
pub mod code {
    /// The agent failed before the payload's first instruction.
    pub const AGENT: u8 = 125;
    /// The command is there but cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command is not there.
    pub const NOT_FOUND: u8 = 127;
    /// The caller asked for something impossible (as gLExec).
    pub const CALLER: u8 = 201;
    /// The agent, its daemon or the VM cannot do it now (as gLExec).
    pub const SYSTEM: u8 = 202;
    /// Refused by policy or by the hypervisor (as gLExec).
    pub const REFUSED: u8 = 203;
}

/// The first line of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// Start a payload. Standard input, output and error ride along, then what its [`Shape`] names.
    Exec(Box<ExecRequest>),
    /// How are you?
    Status,
}

/// Who and what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The VO's name for the work unit.
    pub payload: PayloadId,
    /// Whose it is, says the pilot. Signed tasks and verified tokens say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The VO.
    pub vo: Vo,
    /// The pilot; without one the daemon names the caller's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pilot: Option<PilotId>,
    /// What must stand behind the user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// A signed task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Signed>,
    /// A bearer token for the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// The tokens that the pilot itself holds, so that it cannot hand one of them on.
    #[serde(default)]
    pub pilot_tokens: Vec<TokenMark>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// More environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// What it opens in the sandbox.
    #[serde(default)]
    pub shape: Shape,
}

/// A statement and its signature, as they stand in their files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The statement.
    pub statement: String,
    /// The signature (SSHSIG in its armour).
    pub signature: String,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Later lines of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// Pass this on to the payload.
    Signal {
        /// Its number.
        signal: i32,
    },
}

/// The daemon's lines. Those of `exec` are also the status document (`--json-status-fd`), one per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Reply {
    /// The payload runs.
    Started {
        /// This run.
        uid: PayloadUid,
        /// What marks its packets.
        leases: Vec<Lease>,
        /// Whether the hypervisor has the record; `false` only with `fail_mode = "open"`.
        acknowledged: bool,
        /// Whose it is, and what stands behind the name.
        user: User,
        /// The kind of evidence.
        trust: Trust,
        /// Rule id → how it holds.
        isolation: BTreeMap<String, Enforcement>,
    },
    /// It does not run, and why.
    Refused {
        /// Exit code for the pilot.
        code: u8,
        /// One sentence: the thing and the remedy.
        reason: String,
    },
    /// It ended.
    Ended {
        /// Which.
        uid: PayloadUid,
        /// How.
        exit: Exit,
        /// What it used, and which limits it ran into.
        #[serde(default)]
        usage: Events,
        /// It was killed because of this ban.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        banned: Option<Label>,
    },
    /// Answer to [`Request::Status`].
    Status(Box<Status>),
}

/// A refusal on its way to the pilot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Exit code.
    pub code: u8,
    /// One sentence.
    pub reason: String,
}

impl Refusal {
    /// The caller's mistake.
    pub fn caller(reason: impl Into<String>) -> Self {
        Self { code: code::CALLER, reason: reason.into() }
    }

    /// Something is broken or exhausted.
    pub fn system(reason: impl Into<String>) -> Self {
        Self { code: code::SYSTEM, reason: reason.into() }
    }

    /// Not allowed.
    pub fn policy(reason: impl Into<String>) -> Self {
        Self { code: code::REFUSED, reason: reason.into() }
    }
}
