//! The payloads that live, and the bans they live under. One lock for both: a payload is listed before it asks about bans, and a ban is
//! entered before it looks for payloads, so that none slips through between.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vestigo_model::{Ban, Label, PayloadClaim, PayloadUid, Timestamp};

use crate::{cgroup::Tree, network::Plan, sandbox::Killer, status::LivePayload, suspend::Bans};

/// How to reach a payload.
#[derive(Debug, Clone)]
pub(super) struct Hit {
    /// Its PID 1.
    pub killer: Killer,
    /// Its processes, where there are cgroups.
    pub tree: Option<Tree>,
    /// Its network.
    pub line: Plan,
    /// The same as a namespace, where connections are watched.
    pub namespace: Option<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct Entry {
    shown: LivePayload,
    reach: Hit,
    /// As it is about to be recorded; before that it has not asked about bans either.
    claim: Option<PayloadClaim>,
    banned: Option<Label>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<PayloadUid, Entry>,
    bans: Bans,
}

/// Them.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Inner>);

impl Live {
    /// With the bans of an earlier life.
    pub(super) fn new(bans: Bans) -> Self {
        Self(Mutex::new(Inner { bans, ..Inner::default() }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, shown: LivePayload, reach: Hit) {
        let entry = Entry { shown, reach, claim: None, banned: None };
        self.inner().entries.insert(entry.shown.uid, entry);
    }

    /// It is known in full. Gives the ban that forbids it.
    pub(super) fn judge(&self, claim: &PayloadClaim, now: Timestamp) -> Option<Ban> {
        let mut inner = self.inner();
        if let Some(entry) = inner.entries.get_mut(&claim.uid) {
            entry.claim = Some(claim.clone());
        }
        inner.bans.hit(claim, now).cloned()
    }

    /// It is over. Gives the ban that ended it.
    pub(super) fn leave(&self, uid: PayloadUid) -> Option<Label> {
        self.inner().entries.remove(&uid)?.banned
    }

    /// The ban that ends it, if one does.
    pub(super) fn banned(&self, uid: PayloadUid) -> Option<Label> {
        self.inner().entries.get(&uid)?.banned.clone()
    }

    /// The hypervisor's new list. Gives what is new in it.
    pub(super) fn replace_bans(&self, bans: Vec<Ban>) -> Vec<Ban> {
        self.inner().bans.replace(bans)
    }

    /// Marks everything that a ban hits as ended by it, and gives it.
    pub(super) fn hit(&self, ban: &Ban, now: Timestamp) -> Vec<Hit> {
        let mut inner = self.inner();
        let hit = |entry: &&mut Entry| entry.claim.as_ref().is_some_and(|claim| ban.hits(claim, now));
        let mut hits = Vec::new();
        for entry in inner.entries.values_mut().filter(hit) {
            entry.banned = Some(Label::cut(&format!("{}: {}", ban.id, ban.reason)));
            hits.push(entry.reach.clone());
        }
        hits
    }

    /// Every payload and how to reach it.
    pub(super) fn reaches(&self) -> Vec<(PayloadUid, Hit)> {
        self.inner().entries.iter().map(|(uid, entry)| (*uid, entry.reach.clone())).collect()
    }

    /// The hypervisor knows what became of this ban.
    pub(super) fn told(&self, ban: &Label) {
        self.inner().bans.told(ban);
    }

    /// To be written down.
    pub(super) fn bans(&self) -> Bans {
        self.inner().bans.clone()
    }

    /// Kills every payload; how many are still there.
    pub(super) fn kill_all(&self) -> usize {
        let inner = self.inner();
        inner.entries.values().for_each(|entry| entry.reach.killer.kill());
        inner.entries.len()
    }

    /// Those of one caller; root sees all.
    pub(super) fn of(&self, asker: u32) -> Vec<LivePayload> {
        let inner = self.inner();
        let shown = inner.entries.values().map(|entry| &entry.shown);
        shown.filter(|payload| asker == 0 || payload.caller_uid == asker).cloned().collect()
    }
}
