//! One run id, one claim: a guest can add the end of a payload to what it said of it, and change nothing else.
//!
//! Whoever controls a guest controls what its agent says, also about a payload whose record is evidence by now. So the
//! first claim under a key (host, domain, uid) holds; what contradicts it is kept as *conflicting*, and counted.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::people::withhold::same_claim;
use vestigo_model::{DomainUuid, HostId, Payload, PayloadUid, Timestamp};

/// What a later record under the key of a first one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    /// A copy, or an earlier state of the same.
    Copy,
    /// The same with the end it did not have.
    End,
    /// Something else.
    Conflict,
}

/// Compares a record with the one that holds under its key.
pub(crate) fn compare(first: &Payload, later: &Payload) -> Later {
    let same =
        first.received == later.received && first.claimed == later.claimed && same_claim(&first.claim, &later.claim);
    match (first.end, later.end) {
        _ if !same => Later::Conflict,
        (None, Some(_)) => Later::End,
        (Some(known), Some(end)) if known != end => Later::Conflict,
        _ => Later::Copy,
    }
}

pub(crate) type Key = (HostId, DomainUuid, PayloadUid);

/// Host's stamp, guest's stamp, and the claim as text: what tells two claims under one key apart.
type Said = (Timestamp, Timestamp, String);

/// Payloads in the order written: what holds, and what conflicts with it.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    first: BTreeMap<Key, Payload>,
    /// With the text of the end, empty without one. Segments carry copies: each counts once, and an end replaces its start.
    conflicting: BTreeMap<(Key, Said, String), Payload>,
}

impl Claims {
    /// Takes the next record.
    pub(crate) fn take(&mut self, payload: Payload) {
        match self.first.entry((payload.host.clone(), payload.domain, payload.claim.uid)) {
            Entry::Vacant(free) => {
                free.insert(payload);
            }
            Entry::Occupied(mut known) => match compare(known.get(), &payload) {
                Later::Copy => {}
                Later::End => {
                    known.insert(payload);
                }
                Later::Conflict => {
                    let key = known.key().clone();
                    self.conflict(key, payload);
                }
            },
        }
    }

    fn conflict(&mut self, key: Key, payload: Payload) {
        let said = (payload.received, payload.claimed, text(&payload.claim));
        let start = (key.clone(), said.clone(), String::new());
        match payload.end {
            Some(end) => {
                self.conflicting.remove(&start);
                self.conflicting.insert((key, said, text(&end)), payload);
            }
            None => {
                let next = self.conflicting.range(start.clone()..).next();
                if next.is_none_or(|((known_key, known_said, _), _)| (known_key, known_said) != (&key, &said)) {
                    self.conflicting.insert(start, payload);
                }
            }
        }
    }

    /// The latest arrival of a claim that the test wants.
    pub(crate) fn latest(&self, wanted: impl Fn(&Payload) -> bool) -> Option<Timestamp> {
        self.first.values().filter(|payload| wanted(payload)).map(|payload| payload.received).max()
    }

    /// What holds and is wanted, and what conflicts with it or is itself wanted, both by key and arrival.
    pub(crate) fn finish(self, wanted: impl Fn(&Payload) -> bool) -> (Vec<Payload>, Vec<Payload>) {
        let first = &self.first;
        let conflicts =
            self.conflicting.into_iter().filter(|((key, ..), p)| wanted(p) || first.get(key).is_some_and(&wanted));
        let conflicting = conflicts.map(|(_, payload)| payload).collect();
        (self.first.into_values().filter(&wanted).collect(), conflicting)
    }
}

fn text(said: &impl serde::Serialize) -> String {
    serde_json::to_string(said).unwrap_or_default()
}
