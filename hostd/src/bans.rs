//! Bans of this host: which concern a VM, which hits a start, what has changed. Pure; where they come from is [`mod@file`]'s
//! business.

pub mod file;

use std::collections::HashSet;

use vestigo_model::{
    Ban, DomainUuid, InstanceId, Label, PayloadClaim, Timestamp,
    link::{HostFrame, MAX_FRAME},
};

/// Most bans at once: agents hold them in memory.
pub const MAX_BANS: usize = 1024;
/// What a frame needs beside its bans.
const FRAME_SHELL: usize = 64;

/// A ban, and where it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostBan {
    /// As agents get it.
    pub ban: Ban,
    /// The one VM in which it holds, by its domain's UUID or its cloud id; `None`: every VM of the host.
    pub vm: Option<InstanceId>,
}

impl HostBan {
    fn concerns(&self, domain: DomainUuid, instance: &InstanceId) -> bool {
        self.vm.as_ref().is_none_or(|vm| vm == instance || vm.as_str().parse() == Ok(domain))
    }
}

/// All bans of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BanSet(Vec<HostBan>);

/// Why some bans are no set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BanSetError {
    /// Too many.
    #[error("there are {0} bans, more than {MAX_BANS}; remove those that are over, or ban an issuer or a VO")]
    TooMany(usize),
    /// Two have one name.
    #[error("two bans have the id {0:?}; give each its own")]
    Twice(Label),
}

impl BanSet {
    /// Takes the bans.
    ///
    /// # Errors
    /// [`BanSetError`].
    pub fn new(bans: Vec<HostBan>) -> Result<Self, BanSetError> {
        if bans.len() > MAX_BANS {
            return Err(BanSetError::TooMany(bans.len()));
        }
        let mut ids = HashSet::new();
        match bans.iter().find(|ban| !ids.insert(&ban.ban.id)) {
            Some(twice) => Err(BanSetError::Twice(twice.ban.id.clone())),
            None => Ok(Self(bans)),
        }
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that the VM's agent has to know.
    #[must_use]
    pub fn of_vm(&self, domain: DomainUuid, instance: &InstanceId, now: Timestamp) -> Vec<Ban> {
        let concern = |ban: &&HostBan| ban.concerns(domain, instance) && ban.ban.until.is_none_or(|until| now < until);
        self.0.iter().filter(concern).map(|ban| ban.ban.clone()).collect()
    }

    /// A ban that the claim hits.
    #[must_use]
    pub fn hit(&self, domain: DomainUuid, instance: &InstanceId, claim: &PayloadClaim, now: Timestamp) -> Option<&Ban> {
        self.0.iter().filter(|ban| ban.concerns(domain, instance)).map(|ban| &ban.ban).find(|ban| ban.hits(claim, now))
    }
}

/// What is different between two lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// New, or altered under an old id.
    pub added: Vec<Label>,
    /// Gone.
    pub lifted: Vec<Label>,
}

/// Compares the list that was sent with the one that is.
#[must_use]
pub fn change(before: &[Ban], after: &[Ban]) -> Change {
    let (old, new): (HashSet<&Ban>, HashSet<&Ban>) = (before.iter().collect(), after.iter().collect());
    let ids: HashSet<&Label> = after.iter().map(|ban| &ban.id).collect();
    Change {
        added: new
            .difference(&old)
            .map(|ban| ban.id.clone())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect(),
        lifted: before.iter().map(|ban| &ban.id).filter(|id| !ids.contains(id)).cloned().collect(),
    }
}

/// The list as frames for an agent, each within the link's bound: all but the last with `more`.
#[must_use]
pub fn frames(bans: &[Ban]) -> Vec<HostFrame> {
    let mut chunks: Vec<Vec<Ban>> = vec![Vec::new()];
    let mut room = MAX_FRAME - FRAME_SHELL;
    for ban in bans {
        // A ban is made of short texts, so it always fits into a frame of its own.
        let length = serde_json::to_vec(ban).map_or(MAX_FRAME, |text| text.len() + 1);
        if length > room {
            chunks.push(Vec::new());
            room = MAX_FRAME - FRAME_SHELL;
        }
        room = room.saturating_sub(length);
        chunks.last_mut().into_iter().for_each(|chunk| chunk.push(ban.clone()));
    }
    let last = chunks.len() - 1;
    chunks.into_iter().enumerate().map(|(n, bans)| HostFrame::Bans { bans, more: n < last }).collect()
}

#[cfg(test)]
#[path = "bans/tests.rs"]
mod tests;
