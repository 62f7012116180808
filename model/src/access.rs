//! How a payload came to be: who asked, on whose word, and when what was established.

use std::time::Duration;

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

/// Longest time between a task's `not_before` and `expires`: 31 days.
pub const MAX_TASK_LIFE: Duration = Duration::from_secs(31 * 86_400);
/// Most runs of one task.
pub const MAX_TASK_RUNS: u32 = 10_000;

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

impl TaskMark {
    /// Whether a user could have signed this. What an agent verified always holds to it; a guest that makes tasks up must not
    /// have hosts remember them for ever.
    ///
    /// # Errors
    /// The first thing that is out of bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        let (nonce, key) = (self.nonce.as_str(), self.key.as_str());
        let digits = nonce.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
        let fingerprint = |hash: &str| hash.len() == 43 && hash.bytes().all(base64);
        if self.expires <= self.not_before || self.expires.since(self.not_before) > MAX_TASK_LIFE {
            Err("a signed task that expires before it begins, or more than 31 days later")
        } else if !(1..=MAX_TASK_RUNS).contains(&self.runs) {
            Err("a signed task with other than 1 to 10000 runs")
        } else if !(32..=128).contains(&nonce.len()) || !digits {
            Err("a signed task whose nonce is not 32 to 128 lower-case hexadecimal digits")
        } else if !key.strip_prefix("SHA256:").is_some_and(fingerprint) {
            Err("a signed task whose key is no SHA-256 fingerprint")
        } else {
            Ok(())
        }
    }
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
