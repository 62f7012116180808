//! The hypervisor's bans as this VM holds them. Pure; what they do to running payloads is in the daemon.

use vestigo_model::{Ban, PayloadClaim, Timestamp};

/// Most bans that are held. What is beyond is counted and hit by hostd alone, which refuses such starts itself.
pub const MAX_BANS: usize = 4096;

/// A list that arrives in parts.
#[derive(Debug, Default)]
pub struct Incoming {
    parts: Vec<Ban>,
    /// How many did not fit, over all lists.
    pub lost: u64,
}

impl Incoming {
    /// Takes a part; gives the whole list with the last one.
    pub fn take(&mut self, bans: Vec<Ban>, more: bool) -> Option<Vec<Ban>> {
        let room = MAX_BANS.saturating_sub(self.parts.len());
        self.lost += u64::try_from(bans.len().saturating_sub(room)).unwrap_or(u64::MAX);
        self.parts.extend(bans.into_iter().take(room));
        (!more).then(|| std::mem::take(&mut self.parts))
    }

    /// The channel was opened anew: half a list is none.
    pub fn forget(&mut self) {
        self.parts.clear();
    }
}

/// The list in force.
#[derive(Debug, Default)]
pub struct Bans(Vec<Ban>);

impl Bans {
    /// One from an earlier life of the agent.
    #[must_use]
    pub const fn new(bans: Vec<Ban>) -> Self {
        Self(bans)
    }

    /// The new list takes the place of the old one; gives what was not there, or not so, before.
    pub fn replace(&mut self, bans: Vec<Ban>) -> Vec<Ban> {
        let fresh = bans.iter().filter(|ban| !self.0.contains(ban)).cloned().collect();
        self.0 = bans;
        fresh
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Ban] {
        &self.0
    }

    /// The first that hits.
    #[must_use]
    pub fn hit(&self, claim: &PayloadClaim, now: Timestamp) -> Option<&Ban> {
        self.0.iter().find(|ban| ban.hits(claim, now))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use vestigo_model::{Label, Scope};

    use super::*;

    fn ban(id: &str) -> Ban {
        Ban { id: Label::new(id).unwrap(), scope: Scope::Everything, reason: Label::new("r").unwrap(), until: None }
    }

    #[test]
    fn a_list_in_parts_counts_when_it_is_whole_and_only_what_is_new_is_fresh() {
        let mut incoming = Incoming::default();
        assert_eq!(incoming.take(vec![ban("a")], true), None);
        incoming.forget();
        assert_eq!(incoming.take(vec![ban("b")], true), None);
        let list = incoming.take(vec![ban("c")], false).unwrap();
        assert_eq!(list, [ban("b"), ban("c")]);
        let mut bans = Bans::new(vec![ban("b")]);
        assert_eq!(bans.replace(list), [ban("c")]);
        assert!(bans.replace(Vec::new()).is_empty() && bans.all().is_empty());
    }

    #[test]
    fn a_flood_of_bans_is_bounded_and_counted() {
        let mut incoming = Incoming::default();
        for _ in 0..5 {
            assert!(incoming.take(vec![ban("x"); 1000], true).is_none());
        }
        assert_eq!((incoming.take(Vec::new(), false).unwrap().len(), incoming.lost), (MAX_BANS, 904));
    }
}
