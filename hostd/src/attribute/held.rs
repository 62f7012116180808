//! The payloads of one VM, and the index by which a flow finds its own. Pure.
//!
//! A flood asks once for each of its flows, and the guest decides how many leases there are: a look-up touches nothing but the leases
//! that mark the flow, and of each only what it needs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vestigo_model::{Exit, Holder, LEASE_REST, Lease, Payload, PayloadClaim, PayloadUid, PortBlock, Timestamp, Trace};

use super::{MAX_LIVE, REST_TOLERANCE, ports::PortIndex, weight::weight};

/// Most payloads remembered for one VM, live and rested; the oldest ended ones go first.
pub const MAX_PAYLOADS: usize = 2048;
/// Most bytes that the payloads of one VM may take here, about; half of it is for those that live.
pub const MAX_BYTES: usize = 32 << 20;

/// The n-th payload that was entered: the index's name for it.
type Serial = u64;

/// What a look-up needs to know of a payload.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    serial: Serial,
    received: Timestamp,
    ended: Option<Timestamp>,
    /// Its leases rest after its end.
    rests: bool,
    silent: bool,
    holder: Holder,
}

impl Stamp {
    fn of(serial: Serial, payload: &Payload) -> Self {
        Self {
            serial,
            received: payload.received,
            ended: payload.end.map(|end| end.received),
            rests: payload.end.is_some_and(|end| !end.rest().is_zero()),
            silent: payload.end.is_some_and(|end| end.silent),
            holder: payload.claim.holder,
        }
    }

    /// [`Payload::held_leases_at`].
    fn held_at(&self, time: Timestamp) -> bool {
        let until = |end: Timestamp| if self.rests { end + LEASE_REST } else { end };
        self.received <= time && self.ended.is_none_or(|end| time <= until(end))
    }

    /// Whether a lease that the payload did not hold explains the flow all the same: it was announced later, or its payload was lost
    /// a moment ago. One that has rested, or never sent anything, explains nothing: its ports were nobody's.
    fn excuses(&self, first: Timestamp) -> bool {
        first < self.received || self.ended.is_none_or(|end| !self.silent && first <= end + LEASE_REST)
    }
}

/// What the leases say of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is this payload's.
    One(PayloadUid),
    /// One lease fits, but was announced when the flow had begun.
    BeganBefore,
    /// Several fit.
    Several,
    /// None was held then; one that was held a moment before or after explains it.
    Excused,
    /// A folded record that reaches over more than one lease.
    Part,
    /// No lease knows of it.
    Nothing,
}

/// The payloads of one VM.
#[derive(Debug, Default)]
pub struct Held {
    payloads: BTreeMap<Serial, Box<Payload>>,
    next: Serial,
    serials: HashMap<PayloadUid, Serial>,
    ended: BTreeSet<Serial>,
    live_own: BTreeSet<Serial>,
    ports: PortIndex<Stamp>,
    addresses: HashMap<std::net::Ipv6Addr, Vec<Stamp>>,
    /// When payloads were lost: the VM's kernel, or its agent, was then.
    losses: BTreeMap<Timestamp, usize>,
    bytes: usize,
    live_bytes: usize,
}

impl Held {
    /// Enters a payload, or its end: the snapshot replaces the one before. How many others were forgotten for it.
    pub fn enter(&mut self, payload: Payload) -> usize {
        let known = self.serials.get(&payload.claim.uid).copied();
        if let Some(serial) = known {
            self.take(serial);
        }
        let forgotten = self.make_room(weight(&payload));
        let serial = known.unwrap_or(self.next);
        self.next = self.next.max(serial + 1);
        self.put(serial, payload);
        forgotten
    }

    fn make_room(&mut self, bytes: usize) -> usize {
        let mut forgotten = 0;
        while self.payloads.len() >= MAX_PAYLOADS || self.bytes.saturating_add(bytes) > MAX_BYTES {
            let oldest_ended = self.ended.first().copied();
            let Some(oldest) = oldest_ended.or_else(|| self.payloads.keys().next().copied()) else { break };
            self.take(oldest);
            forgotten += 1;
        }
        forgotten
    }

    fn put(&mut self, serial: Serial, payload: Payload) {
        let (stamp, bytes) = (Stamp::of(serial, &payload), weight(&payload));
        blocks(&payload).into_iter().for_each(|block| self.ports.insert(block, stamp));
        for address in addresses(&payload) {
            self.addresses.entry(address).or_default().push(stamp);
        }
        self.serials.insert(payload.claim.uid, serial);
        self.bytes += bytes;
        match payload.end {
            Some(end) => {
                self.ended.insert(serial);
                if end.exit == Exit::Lost {
                    *self.losses.entry(end.received).or_default() += 1;
                }
            }
            None if payload.claim.holder.is_payload() => self.live_bytes += bytes,
            None => _ = self.live_own.insert(serial),
        }
        self.payloads.insert(serial, Box::new(payload));
    }

    fn take(&mut self, serial: Serial) {
        let Some(payload) = self.payloads.remove(&serial) else { return };
        let bytes = weight(&payload);
        blocks(&payload).into_iter().for_each(|block| self.ports.remove(block, |of| of.serial == serial));
        for address in addresses(&payload) {
            if let Some(stamps) = self.addresses.get_mut(&address) {
                stamps.retain(|of| of.serial != serial);
                if stamps.is_empty() {
                    self.addresses.remove(&address);
                }
            }
        }
        self.serials.remove(&payload.claim.uid);
        self.bytes -= bytes;
        match payload.end {
            Some(end) => {
                self.ended.remove(&serial);
                if end.exit == Exit::Lost {
                    self.unlose(end.received);
                }
            }
            None if payload.claim.holder.is_payload() => self.live_bytes -= bytes,
            None => _ = self.live_own.remove(&serial),
        }
    }

    fn unlose(&mut self, time: Timestamp) {
        if let Some(count) = self.losses.get_mut(&time) {
            *count -= 1;
            if *count == 0 {
                self.losses.remove(&time);
            }
        }
    }

    /// Forgets those that had ended by then.
    pub fn forget_ended_before(&mut self, time: Timestamp) {
        let old = |serial: &Serial| {
            self.payloads.get(serial).and_then(|payload| payload.end).is_some_and(|end| end.received < time)
        };
        let old: Vec<Serial> = self.ended.iter().copied().filter(old).collect();
        old.into_iter().for_each(|serial| self.take(serial));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// All of them, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Payload> {
        self.payloads.values().map(AsRef::as_ref)
    }

    /// One of them.
    pub fn get(&self, uid: PayloadUid) -> Option<&Payload> {
        self.payloads.get(self.serials.get(&uid)?).map(AsRef::as_ref)
    }

    /// How many payloads live. The VM's own parts are none.
    pub fn live(&self) -> usize {
        self.payloads.len() - self.ended.len() - self.live_own.len()
    }

    /// Everything that has not ended.
    pub fn iter_live(&self) -> impl Iterator<Item = &Payload> {
        self.payloads.iter().filter(|(serial, _)| !self.ended.contains(serial)).map(|(_, payload)| payload.as_ref())
    }

    /// The claim that stands for this part of the VM's own traffic.
    pub fn live_own(&self, holder: Holder) -> Option<&Payload> {
        let own = self.live_own.iter().filter_map(|serial| self.payloads.get(serial));
        own.map(AsRef::as_ref).find(|payload| payload.claim.holder == holder)
    }

    /// Bytes that they take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Why no more payload can live here.
    pub fn full(&self, claim: &PayloadClaim) -> Option<String> {
        if self.live() >= MAX_LIVE {
            Some(format!("{MAX_LIVE} payloads of this VM are running already"))
        } else if self.live_bytes + super::weight::of_claim(claim) > MAX_BYTES / 2 {
            let mebibytes = MAX_BYTES >> 21;
            Some(format!("what is claimed of this VM's running payloads fills {mebibytes} MiB already"))
        } else {
            None
        }
    }

    /// What the leases say of a flow with this trace, whose record begins at `first` and which itself began at `began`.
    pub fn find(&self, trace: &Trace, first: Timestamp, began: Timestamp) -> Found {
        let covering = self.covering(trace);
        let held = || covering.iter().filter(|stamp| stamp.held_at(first));
        let newest = held().map(|stamp| stamp.received).max();
        let mut then = held().filter(|stamp| !self.was_emptied(stamp.ended, newest.map(|newest| newest.min(first))));
        match (then.next(), then.next()) {
            (Some(stamp), None) if held_when_begun(stamp, &covering, began) => {
                self.payloads.get(&stamp.serial).map_or(Found::Nothing, |payload| Found::One(payload.claim.uid))
            }
            (Some(_), None) => Found::BeganBefore,
            (Some(_), Some(_)) => Found::Several,
            (None, _) if covering.iter().any(|stamp| stamp.excuses(first)) => Found::Excused,
            (None, _) if trace.ports.is_some_and(|range| self.reaches_over_leases(range)) => Found::Part,
            (None, _) => Found::Nothing,
        }
    }

    /// Those whose leases mark the flow most closely, as [`vestigo_model::Flow::marked`] has it.
    fn covering(&self, trace: &Trace) -> Vec<Stamp> {
        let at = trace.address.and_then(|address| self.addresses.get(&address)).map_or(&[][..], Vec::as_slice);
        let of_payloads: Vec<Stamp> = at.iter().filter(|stamp| stamp.holder.is_payload()).copied().collect();
        if !of_payloads.is_empty() {
            return of_payloads;
        }
        let by_port: Vec<Stamp> = trace.ports.iter().flat_map(|range| self.ports.covering(*range)).copied().collect();
        if by_port.is_empty() && trace.left_the_vm { at.to_vec() } else { by_port }
    }

    fn reaches_over_leases(&self, range: PortBlock) -> bool {
        range.first != range.last && self.ports.touching(range).next().is_some()
    }

    /// Whether the VM's kernel, or its agent, was lost between an end and a later time. A new life of the VM knows nothing of ports
    /// that rest, and nothing of what came before can still send: only within one life does a lease rest.
    fn was_emptied(&self, ended: Option<Timestamp>, by: Option<Timestamp>) -> bool {
        let (Some(ended), Some(by)) = (ended, by) else { return false };
        ended <= by && self.losses.range(ended..=by).next().is_some()
    }

    /// The first of those that hold a lease which overlaps one of this payload's, or rest it still. The VM's own parts share its
    /// address.
    pub fn contested(&self, payload: &Payload) -> Option<PayloadUid> {
        let now = payload.received;
        let itself = self.serials.get(&payload.claim.uid).copied();
        let own = !payload.claim.holder.is_payload();
        let by_address = addresses(payload).into_iter().filter_map(|address| self.addresses.get(&address)).flatten();
        let by_address = by_address.filter(|other| !own || other.holder.is_payload());
        let by_port = blocks(payload).into_iter().flat_map(|block| self.ports.touching(block));
        let held = |other: &Stamp| {
            other.ended.is_none() || (other.held_at(now + REST_TOLERANCE) && !self.was_emptied(other.ended, Some(now)))
        };
        let others = by_address.chain(by_port).filter(|other| Some(other.serial) != itself && held(other));
        let first = others.map(|other| other.serial).min()?;
        self.payloads.get(&first).map(|other| other.claim.uid)
    }
}

/// Whether the lease was announced before the flow began. An agent that was started anew announces the VM's own parts
/// again; they are the same as before.
fn held_when_begun(stamp: &Stamp, covering: &[Stamp], began: Timestamp) -> bool {
    let before = |other: &Stamp| other.holder == stamp.holder && other.held_at(began);
    stamp.received <= began || (!stamp.holder.is_payload() && covering.iter().any(before))
}

/// The payload's port blocks. Those that overlap each other are one, so that a port meets a payload once.
fn blocks(payload: &Payload) -> Vec<PortBlock> {
    let mut blocks = super::ports_of(payload);
    blocks.dedup_by(|next, block| {
        let same = next.first <= block.last;
        if same {
            block.last = block.last.max(next.last);
        }
        same
    });
    blocks
}

fn addresses(payload: &Payload) -> Vec<std::net::Ipv6Addr> {
    let address = |lease: &Lease| if let Lease::Address(address) = lease { Some(*address) } else { None };
    let mut addresses: Vec<_> = payload.claim.leases.iter().filter_map(address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
