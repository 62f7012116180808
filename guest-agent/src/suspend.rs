//! The hypervisor's bans as this VM holds them. Pure; what they do to running payloads is in the daemon.

use serde::{Deserialize, Serialize};
use vestigo_model::{Ban, Label, PayloadClaim, Timestamp};

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

/// The list in force. Outlives the agent, with what the hypervisor was not told yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Bans {
    bans: Vec<Ban>,
    /// In force, and not told: an agent that dies meanwhile leaves it to the next to say that nothing is left.
    untold: Vec<Label>,
}

impl Bans {
    /// The new list takes the place of the old one; gives what was not there, or not so, or not told before.
    pub fn replace(&mut self, bans: Vec<Ban>) -> Vec<Ban> {
        let news = |ban: &&Ban| !self.bans.contains(ban) || self.untold.contains(&ban.id);
        let fresh: Vec<Ban> = bans.iter().filter(news).cloned().collect();
        self.untold = fresh.iter().map(|ban| ban.id.clone()).collect();
        self.bans = bans;
        fresh
    }

    /// The hypervisor knows what became of it.
    pub fn told(&mut self, id: &Label) {
        self.untold.retain(|untold| untold != id);
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Ban] {
        &self.bans
    }

    /// The first that hits.
    #[must_use]
    pub fn hit(&self, claim: &PayloadClaim, now: Timestamp) -> Option<&Ban> {
        self.bans.iter().find(|ban| ban.hits(claim, now))
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
        let mut bans = Bans::default();
        assert_eq!(bans.replace(vec![ban("b")]), [ban("b")]);
        // Until it is told it is news, and that outlives the agent.
        let mut next: Bans = serde_json::from_str(&serde_json::to_string(&bans).unwrap()).unwrap();
        assert_eq!(next.replace(vec![ban("b")]), [ban("b")]);
        bans.told(&ban("b").id);
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
