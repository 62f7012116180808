//! Bans: who must not run, now and from now on.

use serde::{Deserialize, Serialize};

use crate::{Digest, Label, PayloadClaim, PayloadId, PayloadUid, PilotId, Timestamp, User, Vo};

/// Whom a ban hits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// One user.
    User(User),
    /// Every user of an issuer.
    Issuer(Label),
    /// A whole VO.
    Vo(Vo),
    /// Everything that a pilot starts.
    Pilot(PilotId),
    /// Every run of a work unit.
    Payload(PayloadId),
    /// One run.
    Run(PayloadUid),
    /// A program, whoever runs it (also as the interpreter of a script).
    Executable(Digest),
    /// Tasks signed with a key (fingerprint `SHA256:…`).
    Key(Label),
    /// Everything in the VM.
    Everything,
}

/// A ban.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ban {
    /// Its name, by which it is lifted.
    pub id: Label,
    /// Whom it hits.
    pub scope: Scope,
    /// Why, in words for the pilot.
    pub reason: Label,
    /// When it ends by itself; `None`: when somebody lifts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Ban {
    /// Whether the payload must not run at `now`. The VM's own traffic is no payload and is never hit.
    #[must_use]
    pub fn hits(&self, claim: &PayloadClaim, now: Timestamp) -> bool {
        if !claim.holder.is_payload() || self.until.is_some_and(|until| now >= until) {
            return false;
        }
        match &self.scope {
            Scope::User(user) => claim.user == *user,
            Scope::Issuer(issuer) => claim.user.issuer == *issuer,
            Scope::Vo(vo) => claim.vo == *vo,
            Scope::Pilot(pilot) => claim.pilot == *pilot,
            Scope::Payload(payload) => claim.payload == *payload,
            Scope::Run(uid) => claim.uid == *uid,
            Scope::Executable(sha256) => {
                [&claim.executable, &claim.interpreter].into_iter().flatten().any(|file| file.sha256 == *sha256)
            }
            Scope::Key(key) => claim.task.as_ref().is_some_and(|task| task.key == *key),
            Scope::Everything => true,
        }
    }
}

/// What became of a ban in a VM: the proof that it is over, or what is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanApplied {
    /// Which.
    pub id: Label,
    /// Payloads that it ended.
    pub payloads: u32,
    /// Processes that were frozen and then killed.
    pub processes: u32,
    /// Processes of them that still exist (stuck in the kernel); their network is cut.
    pub left: u32,
    /// Guest's clock when the ban arrived.
    pub received: Timestamp,
    /// Guest's clock when all that it hit was frozen and cut off.
    pub frozen: Timestamp,
    /// Guest's clock when nothing of it was left, or the agent stopped waiting.
    pub dead: Timestamp,
}
