//! How a payload came to be: who asked, on whose word, and when what was established.

use serde::{Deserialize, Serialize};

use crate::{Digest, Label, Timestamp};

/// A process outside of every sandbox, as the guest's kernel names it (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its number.
    pub pid: i32,
}

/// The security events of one start, on the guest's clock (traceability policy: connect, authenticate, authorize with changes
/// of identity; the disconnect is the payload's end).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Who asked.
    pub caller: Caller,
    /// When it connected to the agent.
    pub connected: Timestamp,
    /// When what stands behind the user's name had been checked.
    pub authenticated: Timestamp,
    /// When the agent allowed it.
    pub authorized: Timestamp,
    /// The uid and gid in the VM that the payload was given in place of the caller's.
    pub runs_as: u32,
}

/// A user's signed task, as far as a host needs it to let it run no more often than its user said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskMark {
    /// The user's name for the task.
    pub id: Label,
    /// Drawn by the user; with `key` it names the permission to run.
    pub nonce: Label,
    /// How often it may run.
    pub runs: u32,
    /// From when.
    pub not_before: Timestamp,
    /// Until when.
    pub expires: Timestamp,
    /// SHA-256 of the signed statement.
    pub statement: Digest,
    /// Fingerprint of the key that signed (`SHA256:…`).
    pub key: Label,
}

/// What a payload's bearer token says of itself (WLCG token profile).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenMark {
    /// `iss`.
    pub issuer: Label,
    /// `sub`.
    pub subject: Label,
    /// `jti`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Label>,
    /// `exp`.
    pub expires: Timestamp,
    /// Whether the issuer's signature was checked and good.
    pub verified: bool,
}
