//! Who may connect, and how often at once: each connection costs a thread and descriptors, and one uid must not take all of
//! them from the others.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::protocol::Refusal;

/// Most connections of one uid, besides one for each payload that can run.
const OF_UID: usize = 64;
/// Most connections of one uid that have not sent their request yet; more where more payloads can start in one moment.
const SILENT: usize = 64;
/// Most connections of all uids but root's.
const OF_ALL: usize = 512;

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    open: usize,
    silent: usize,
}

/// The counters.
#[derive(Debug)]
pub(super) struct Gate {
    allowed: Option<Vec<u32>>,
    payloads: Range<u32>,
    silent: usize,
    of_uid: usize,
    of_all: usize,
    counts: Mutex<BTreeMap<u32, Count>>,
}

/// One open connection. Dropping it makes room.
#[derive(Debug)]
pub(super) struct Entry {
    gate: Arc<Gate>,
    uid: u32,
    silent: bool,
}

impl Gate {
    /// `most`: how many payloads can run at once, each with a connection. `allowed`: who may call besides root. `payloads`:
    /// uids of payloads, who never may.
    pub(super) fn new(most: u16, allowed: Option<Vec<u32>>, payloads: Range<u32>) -> Self {
        let most = usize::from(most);
        let (silent, of_uid) = (SILENT.max(most), OF_UID + most);
        Self { allowed, payloads, silent, of_uid, of_all: OF_ALL.max(2 * of_uid), counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<u32, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, or says why not.
    pub(super) fn enter(self: &Arc<Self>, uid: u32) -> Result<Entry, Refusal> {
        if uid != 0 && self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(&uid)) {
            return Err(Refusal::policy(format!(
                "uid {uid} may not use the agent of this VM; have it added to `allow_uids` in the agent's configuration"
            )));
        }
        if self.payloads.contains(&uid) {
            return Err(Refusal::policy("a payload may not start payloads; let its pilot do it"));
        }
        let mut counts = self.counts();
        let all: usize = counts.iter().filter(|(other, _)| **other != 0).map(|(_, count)| count.open).sum();
        let count = counts.get(&uid).copied().unwrap_or_default();
        let full = if count.silent >= self.silent {
            Some(format!("uid {uid} has {} connections to the agent that have not said what they want", self.silent))
        } else if count.open >= self.of_uid {
            Some(format!("uid {uid} has {} connections to the agent, the most for one uid", self.of_uid))
        } else if uid != 0 && all >= self.of_all {
            Some(format!("the agent serves {} connections already", self.of_all))
        } else {
            None
        };
        match full {
            Some(why) => Err(Refusal::system(format!("{why}; end some of them, or try again later"))),
            None => {
                counts.insert(uid, Count { open: count.open + 1, silent: count.silent + 1 });
                Ok(Entry { gate: Arc::clone(self), uid, silent: true })
            }
        }
    }
}

impl Entry {
    /// Its request is there.
    pub(super) fn spoken(&mut self) {
        if std::mem::take(&mut self.silent)
            && let Some(count) = self.gate.counts().get_mut(&self.uid)
        {
            count.silent -= 1;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.spoken();
        let mut counts = self.gate.counts();
        if let Some(count) = counts.get_mut(&self.uid) {
            count.open -= 1;
            if count.open == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::protocol::code;

    #[test]
    fn one_uid_leaves_room_for_the_others() {
        let gate = Arc::new(Gate::new(44, None, 200_000..200_044));
        let enter = |uid: u32| {
            gate.enter(uid).map(|mut entry| {
                entry.spoken();
                entry
            })
        };
        let flood: Vec<Entry> = std::iter::from_fn(|| enter(1000).ok()).collect();
        assert_eq!(flood.len(), 64 + 44);
        assert!(gate.enter(1000).unwrap_err().reason.contains("uid 1000 has 108 connections"));
        assert!(gate.enter(1001).is_ok() && gate.enter(0).is_ok());
        // Many uids together fill it for all but root.
        let others: Vec<Entry> = (2000..2100).map_while(|uid| enter(uid).ok()).collect();
        let more: Vec<Entry> = (3000..3010).flat_map(|uid| std::iter::from_fn(move || enter(uid).ok())).collect();
        assert_eq!(flood.len() + others.len() + more.len(), 512);
        assert!(enter(4000).unwrap_err().reason.contains("512"));
        assert!(enter(0).is_ok());
        drop((flood, others, more));
        assert!(gate.enter(1000).is_ok());
        assert!(gate.counts().is_empty());
    }

    #[test]
    fn silence_is_scarcer_than_speech() {
        let gate = Arc::new(Gate::new(44, None, 200_000..200_044));
        let mut silent: Vec<Entry> = std::iter::from_fn(|| gate.enter(1000).ok()).collect();
        assert_eq!(silent.len(), SILENT);
        assert!(gate.enter(1000).unwrap_err().reason.contains("not said what they want"));
        silent.iter_mut().for_each(Entry::spoken);
        assert!(gate.enter(1000).is_ok());
    }

    #[test]
    fn only_who_is_allowed_gets_in() {
        let gate = Arc::new(Gate::new(44, Some(vec![1000, 200_001]), 200_000..200_044));
        assert!(gate.enter(1000).is_ok() && gate.enter(0).is_ok());
        assert_eq!(gate.enter(1001).unwrap_err().code, code::REFUSED);
        assert!(gate.enter(200_001).unwrap_err().reason.contains("a payload may not"));
    }
}
