//! The book of translations: what conntrack says, looked up by what a tap sees. Pure; the clock is the caller's.
//!
//! A flow belongs to a translation by tuple alone. Private addresses are used by several tenants, in several zones and namespaces, and nothing
//! ties a zone to a tap: where more than one translation fits a flow record, none is chosen. A record is *given* the tuple that the world
//! saw only where exactly one fits. Everything else is *told*, as an event of its own, and joined when a question is asked:
//!
//! | why | |
//! |---|---|
//! | `no-flow` | no flow record took it up: the tap cannot be captured, the packet was lost, the VM's flows were folded, or it is no VM's |
//! | `late` | it became known after a record of its flow had been written |
//! | `several` | more than one fits a record |
//! | `both-ends` | the other end is translated too: a record has room for the VM's end only |

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use vestigo_model::{
    End, EndReason, Face, Flow, HostId, Label, PostNat, TRANSLATION_RETOLD, TimeRange, Timestamp, Translation, faces,
};

use super::message::Entry;
use crate::quota::Quota;

/// How long after the tap has seen a packet the connection may be told of that it begins: queues lie between.
const LAG: Duration = Duration::from_secs(1);
/// Time between two tellings of a translation that goes on: shorter than questions look ahead, as it takes a while to be written.
const RETELL: Duration = TRANSLATION_RETOLD.saturating_sub(Duration::from_secs(60));
/// How long a translation is kept whose flow's last record is written: a dump that was read late must not bring it back.
const DONE: Duration = Duration::from_secs(30);
/// Translations told: of one address, a burst and then so many a second; and of all.
const TOLD_OF_ONE: (f64, f64) = (2.0, 200.0);
const TOLD: (f64, f64) = (50.0, 5000.0);
/// One address may hold this part of the book.
const SHARE: usize = 4;

/// Bounds and periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BookOptions {
    /// Most translations held.
    pub max: usize,
    /// How long an ended one is kept: flow records come after the last packet.
    pub linger: Duration,
    /// How long a new one waits for its flow's record before it is told.
    pub grace: Duration,
}

impl Default for BookOptions {
    fn default() -> Self {
        Self { max: 131_072, linger: Duration::from_secs(360), grace: Duration::from_secs(15) }
    }
}

/// What could not be kept or told, since the last call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Translations for which the book had no room.
    pub refused: u64,
    /// Translations that would have been told, beyond the rate.
    pub untold: u64,
}

/// A network namespace that is followed, by its number.
pub type Space = u16;

/// What tells one live connection from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    space: Space,
    zone: u16,
    proto: u8,
    original: (End, End),
}

/// A face as a tap sees it.
type FaceKey = (u8, End, End);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    NoFlow,
    Late,
    Several,
    BothEnds,
}

impl Why {
    const fn as_str(self) -> &'static str {
        match self {
            Self::NoFlow => "no-flow",
            Self::Late => "late",
            Self::Several => "several",
            Self::BothEnds => "both-ends",
        }
    }
}

#[derive(Debug)]
struct Binding {
    key: Key,
    reply: (End, End),
    id: Option<u32>,
    not_before: Option<Timestamp>,
    /// First and last word of it.
    heard: (Timestamp, Timestamp),
    until: Option<Timestamp>,
    /// The kernel said that it ended (not only: a dump had it no more).
    destroyed: bool,
    /// Whether a flow record has taken the client's face up, and the server's.
    claimed: [bool; 2],
    /// The flow's last record is written.
    done: bool,
    why: Option<Why>,
    told: Option<Timestamp>,
    told_end: bool,
}

impl Binding {
    fn faces(&self) -> [Face; 2] {
        faces(self.key.original, self.reply)
    }

    fn face_keys(&self) -> [FaceKey; 2] {
        self.faces().map(|face| (self.key.proto, face.local, face.peer))
    }

    /// Whose it is, for shares and quotas: the address that is hidden.
    fn owner(&self) -> IpAddr {
        let [client, server] = self.faces();
        if client.is_hidden() { client.local.0 } else { server.local.0 }
    }

    /// Whether a packet of the range can have been translated so.
    fn held_in(&self, range: TimeRange) -> bool {
        self.not_before.is_none_or(|begin| begin <= range.to) && self.until.is_none_or(|end| range.from <= end)
    }

    /// Whether a hidden face waits for a flow record.
    fn is_missed(&self) -> bool {
        self.faces().iter().zip(self.claimed).any(|(face, claimed)| face.is_hidden() && !claimed)
    }

    fn forgotten_at(&self, linger: Duration) -> Option<Timestamp> {
        self.until.map(|end| end + if self.done { DONE } else { linger })
    }
}

/// The book.
#[derive(Debug)]
pub struct Book {
    options: BookOptions,
    bindings: HashMap<u64, Binding>,
    live: HashMap<Key, u64>,
    faces: BTreeSet<(FaceKey, u64)>,
    /// Ended ones in the order of their ends.
    ended: VecDeque<u64>,
    owners: HashMap<IpAddr, Owner>,
    /// Before this, the book had every connection of the namespace.
    synced: HashMap<Space, Timestamp>,
    next: u64,
    quota: Quota,
    left: Left,
}

#[derive(Debug)]
struct Owner {
    held: usize,
    quota: Quota,
}

impl Book {
    /// An empty one.
    #[must_use]
    pub fn new(options: BookOptions) -> Self {
        Self {
            options,
            bindings: HashMap::new(),
            live: HashMap::new(),
            faces: BTreeSet::new(),
            ended: VecDeque::new(),
            owners: HashMap::new(),
            synced: HashMap::new(),
            next: 0,
            quota: Quota::new(TOLD.0, TOLD.1),
            left: Left::default(),
        }
    }

    /// A connection began, after `quiet`: then no event was waiting.
    pub fn began(&mut self, space: Space, entry: &Entry, quiet: Timestamp, now: Timestamp) {
        self.take(space, entry, now, Some(quiet.min(now) - LAG));
    }

    /// A dump, begun at `dump`, lists a connection.
    pub fn listed(&mut self, space: Space, entry: &Entry, dump: Timestamp, now: Timestamp) {
        // What ended while the dump was under way may still be in it.
        let ended = |id: u64| {
            let old = self.bindings.get(&id);
            old.is_some_and(|old| old.destroyed && old.id == entry.id && old.until.is_some_and(|end| dump <= end))
        };
        let client = (entry.proto, canonical(entry.original.0), canonical(entry.original.1));
        if entry.is_translated() && !self.of_face(client).any(ended) {
            self.take(space, entry, now, self.synced.get(&space).copied());
        }
    }

    /// A connection ended. One that was not known is entered with its end: its flow's records are, or will be, there.
    pub fn ended(&mut self, space: Space, entry: &Entry, now: Timestamp) {
        let Some(id) = self.take(space, entry, now, self.synced.get(&space).copied()) else { return };
        let end = entry.ended.map_or(now, |nanos| stamp(nanos).min(now));
        self.end(id, end, true);
    }

    /// A dump begun at `dump` is complete: what it did not have, and nobody spoke of since, has ended unnoticed.
    pub fn synced(&mut self, space: Space, dump: Timestamp, now: Timestamp) {
        let gone = |id: &u64| self.bindings.get(id).is_some_and(|binding| binding.heard.1 < dump);
        let gone: Vec<u64> =
            self.live.iter().filter(|(key, _)| key.space == space).map(|(_, id)| *id).filter(gone).collect();
        for id in gone {
            self.end(id, now, false);
        }
        self.synced.insert(space, dump);
    }

    /// The namespace is gone, or is not followed any more.
    pub fn gone(&mut self, space: Space, now: Timestamp) {
        let all: Vec<u64> = self.live.iter().filter(|(key, _)| key.space == space).map(|(_, id)| *id).collect();
        for id in all {
            self.end(id, now, false);
        }
        self.synced.remove(&space);
    }

    /// What the world saw of the VM's end of this flow record, where exactly one translation fits. `later`: earlier records of the
    /// flow were written.
    pub fn translate(&mut self, flow: &Flow, later: bool) -> Option<PostNat> {
        if flow.notes.tunnel.is_some() || flow.notes.folded.is_some() {
            return None;
        }
        let range = TimeRange::new(flow.first, flow.last)?;
        let face = (flow.proto, canonical(flow.local()), canonical(flow.peer()));
        let fits = |id: &u64| self.bindings.get(id).is_some_and(|binding| binding.held_in(range));
        let fitting: Vec<u64> = self.of_face(face).filter(fits).collect();
        match fitting.as_slice() {
            [one] => self.claim(*one, face, flow, later),
            several => {
                for id in several {
                    if let Some(binding) = self.bindings.get_mut(id) {
                        binding.why = Some(Why::Several);
                    }
                }
                None
            }
        }
    }

    /// The translations that are to be told now, see the table above. `namespace` names them.
    pub fn due(
        &mut self,
        host: &HostId,
        namespace: impl Fn(Space) -> Label,
        now: Timestamp,
        instant: Instant,
    ) -> Vec<Translation> {
        let mut due: Vec<u64> = Vec::new();
        for (id, binding) in &mut self.bindings {
            if binding.why.is_none() && binding.is_missed() && now.since(binding.heard.0) >= self.options.grace {
                binding.why = Some(Why::NoFlow);
            }
            let again = binding.told.is_none_or(|told| now.since(told) >= RETELL);
            let last = binding.until.is_some() && !binding.told_end;
            if binding.why.is_some() && (last || (again && binding.until.is_none())) {
                due.push(*id);
            }
        }
        due.sort_unstable();
        let tell = |id: u64| self.tell(id, host, &namespace, now, instant);
        due.into_iter().filter_map(tell).collect()
    }

    /// Forgets what has ended long enough ago.
    pub fn prune(&mut self, now: Timestamp) {
        while let Some(id) = self.ended.front().copied() {
            let due = self.bindings.get(&id).map(|binding| (binding.until, binding.forgotten_at(self.options.linger)));
            match due {
                Some((Some(_), Some(at))) if now < at => break,
                // It came back to life, and will be here again.
                Some((None, _)) => drop(self.ended.pop_front()),
                _ => {
                    self.ended.pop_front();
                    self.forget(id);
                }
            }
        }
        self.owners.retain(|_, owner| owner.held > 0);
    }

    /// Takes what could not be kept or told.
    pub fn take_left(&mut self) -> Left {
        std::mem::take(&mut self.left)
    }

    /// Translations held, ended ones with them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    fn of_face(&self, face: FaceKey) -> impl Iterator<Item = u64> {
        self.faces.range((face, 0)..=(face, u64::MAX)).map(|(_, id)| *id)
    }

    /// Enters a connection or confirms it. `None` where it is no translation, or there is no room.
    fn take(&mut self, space: Space, entry: &Entry, now: Timestamp, not_before: Option<Timestamp>) -> Option<u64> {
        if !entry.is_translated() {
            return None;
        }
        let pair = |(a, b)| (canonical(a), canonical(b));
        let key = Key { space, zone: entry.zone, proto: entry.proto, original: pair(entry.original) };
        let reply = pair(entry.reply);
        if let Some(id) = self.live.get(&key).copied() {
            let same = self.bindings.get_mut(&id).filter(|known| known.reply == reply && known.id == entry.id);
            if let Some(known) = same {
                known.heard.1 = now;
                return Some(id);
            }
            // Another connection has the tuple now: the end of the earlier one was lost.
            self.end(id, now, false);
        }
        let not_before = entry.began.map(stamp).or(not_before);
        self.enter(Binding {
            key,
            reply,
            id: entry.id,
            not_before,
            heard: (now, now),
            until: None,
            destroyed: false,
            claimed: [false; 2],
            done: false,
            why: None,
            told: None,
            told_end: false,
        })
    }

    fn enter(&mut self, binding: Binding) -> Option<u64> {
        let (share, ip) = ((self.options.max / SHARE).max(1), binding.owner());
        // First its own share: who has it all must not cost another an ended one.
        let may = self.owners.get(&ip).is_none_or(|owner| owner.held < share);
        if may && self.bindings.len() >= self.options.max {
            // Room is made of those whose flows are over, the oldest first.
            let oldest = self.ended.pop_front();
            oldest.into_iter().for_each(|id| self.forget_ended(id));
        }
        if !may || self.bindings.len() >= self.options.max {
            self.left.refused += 1;
            return None;
        }
        let owner =
            self.owners.entry(ip).or_insert_with(|| Owner { held: 0, quota: Quota::new(TOLD_OF_ONE.0, TOLD_OF_ONE.1) });
        owner.held += 1;
        let id = self.next;
        self.next += 1;
        self.live.insert(binding.key, id);
        self.faces.extend(binding.face_keys().map(|face| (face, id)));
        self.bindings.insert(id, binding);
        Some(id)
    }

    fn end(&mut self, id: u64, at: Timestamp, destroyed: bool) {
        let Some(binding) = self.bindings.get_mut(&id) else { return };
        binding.until = Some(at.max(binding.heard.0));
        binding.destroyed = destroyed;
        if self.live.get(&binding.key) == Some(&id) {
            self.live.remove(&binding.key);
        }
        self.ended.push_back(id);
    }

    fn forget_ended(&mut self, id: u64) {
        if self.bindings.get(&id).is_some_and(|binding| binding.until.is_some()) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        let Some(binding) = self.bindings.remove(&id) else { return };
        if binding.is_missed() && binding.why.is_none() || binding.why.is_some() && !binding.told_end {
            // Room had to be made before it could be told.
            self.left.untold += 1;
        }
        for face in binding.face_keys() {
            self.faces.remove(&(face, id));
        }
        if let Some(owner) = self.owners.get_mut(&binding.owner()) {
            owner.held = owner.held.saturating_sub(1);
        }
    }

    fn claim(&mut self, id: u64, (proto, local, peer): FaceKey, flow: &Flow, later: bool) -> Option<PostNat> {
        let binding = self.bindings.get_mut(&id)?;
        let [client, server] = binding.faces();
        let is_client = (client.local, client.peer) == (local, peer);
        let face = if is_client { client } else { server };
        let claimed = if is_client { &mut binding.claimed[0] } else { &mut binding.claimed[1] };
        let first = !std::mem::replace(claimed, true);
        binding.done |= flow.end_reason != EndReason::Active;
        debug_assert_eq!(proto, binding.key.proto);
        if face.public_peer != face.peer {
            binding.why = binding.why.or(Some(Why::BothEnds));
        } else if first && later {
            binding.why = binding.why.or(Some(Why::Late));
        }
        face.is_hidden().then_some(PostNat { ip: face.public.0, port: face.public.1 })
    }

    fn tell(
        &mut self,
        id: u64,
        host: &HostId,
        namespace: &impl Fn(Space) -> Label,
        now: Timestamp,
        instant: Instant,
    ) -> Option<Translation> {
        let binding = self.bindings.get_mut(&id)?;
        let why = binding.why?;
        // Asked once in a period: what is left out is counted once.
        binding.told = Some(now);
        binding.told_end = binding.until.is_some();
        let owner = self.owners.get_mut(&binding.owner());
        let kept = owner.is_none_or(|owner| owner.quota.take(instant)) && self.quota.take(instant);
        if !kept {
            self.left.untold += 1;
            return None;
        }
        Some(Translation {
            host: host.clone(),
            namespace: namespace(binding.key.space),
            zone: binding.key.zone,
            proto: binding.key.proto,
            original: binding.key.original,
            reply: binding.reply,
            not_before: binding.not_before,
            until: binding.until.unwrap_or(now),
            ended: binding.until.is_some(),
            why: Label::cut(why.as_str()),
        })
    }
}

fn canonical((ip, port): End) -> End {
    (ip.to_canonical(), port)
}

fn stamp(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
