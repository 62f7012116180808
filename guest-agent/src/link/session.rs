//! The guest's side of the protocol of [`vestigo_model::link`] as pure code: records and host frames in, lines and verdicts out.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use vestigo_model::{
    Ban, BootId, Digest, Label, PayloadUid, Timestamp,
    link::{Claim, GuestFrame, Heartbeat, Hello, HostFrame, PROTOCOL, Record, decode, encode},
};

use crate::suspend::Incoming;

/// A record's name inside this agent. Its sequence number can change when the host knows more of this boot than we do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Durable at the host.
    Acknowledged,
    /// The host will not keep it.
    Refused(String),
    /// Its place in the chain is taken, but the link broke before the host's word: it may have been a refusal. Said again,
    /// the record gets the same word again.
    Unclear,
}

/// A record cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Too much waits for an acknowledgement.
    #[error("{0} bytes of records wait for an acknowledgement by hostd, which is the limit")]
    Full(usize),
    /// A record does not fit into one frame.
    #[error("the record is too long for one frame")]
    TooLong,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pending {
    ticket: Ticket,
    seq: u64,
    line: Vec<u8>,
    debt: bool,
    answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Greeting,
    Open,
}

/// What survives the agent within one boot, records apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The boot it belongs to.
    pub boot: BootId,
    /// Last record made.
    pub last: u64,
    /// Digest of its line.
    pub head: Digest,
    /// Last record acknowledged.
    pub acked: u64,
    /// Digest of its line.
    pub acked_head: Digest,
    /// Payloads with a start and no end.
    pub live: BTreeSet<PayloadUid>,
}

/// Everything that survives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The chain's position.
    pub header: Header,
    /// Lines (without newline) that follow `header.acked`, and whether each is a debt.
    pub pending: Vec<(Vec<u8>, bool)>,
}

/// No chain of one boot gets so far. A host that says so is not believed: there would be no numbers left to go on with.
const FURTHEST: u64 = u64::MAX / 2;

/// The session.
#[derive(Debug)]
pub struct Session {
    header: Header,
    agent: Label,
    pending: VecDeque<Pending>,
    bytes: usize,
    limit: usize,
    phase: Phase,
    cursor: u64,
    tickets: u64,
    contradictions: u64,
    refused_full: u64,
    incoming: Incoming,
    bans: Option<Vec<Ban>>,
}

impl Session {
    /// A new chain, or the one that an earlier agent of this boot left.
    #[must_use]
    pub fn new(boot: BootId, agent: Label, limit: usize, saved: Option<Saved>) -> Self {
        let fresh =
            Header { boot, last: 0, head: Digest::ZERO, acked: 0, acked_head: Digest::ZERO, live: BTreeSet::new() };
        let (header, lines) = match saved.filter(|s| s.header.boot == boot) {
            Some(saved) => (saved.header, saved.pending),
            None => (fresh, Vec::new()),
        };
        let mut session = Self {
            header,
            agent,
            pending: VecDeque::new(),
            bytes: 0,
            limit,
            phase: Phase::Closed,
            cursor: 0,
            tickets: 0,
            contradictions: 0,
            refused_full: 0,
            incoming: Incoming::default(),
            bans: None,
        };
        let first = session.header.last.saturating_sub(u64::try_from(lines.len()).unwrap_or(0)) + 1;
        for (seq, (line, debt)) in (first..).zip(lines) {
            let ticket = session.ticket();
            session.bytes += line.len();
            session.pending.push_back(Pending { ticket, seq, line, debt, answered: false });
        }
        session
    }

    const fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Makes a record. The line comes back too, for the spool: it must be there before it is sent.
    ///
    /// When too much waits only the end of something that ran, or was banned, and the VM's own leases are still taken.
    ///
    /// # Errors
    /// [`AppendError`]; nothing has changed then, a counter apart.
    pub fn append(&mut self, claim: Claim, now: Timestamp) -> Result<(Ticket, Vec<u8>), AppendError> {
        if !always_taken(&claim) && self.bytes >= self.limit {
            // What is told besides payloads is left out in silence: it would only say the same.
            self.refused_full += u64::from(matches!(claim, Claim::PayloadStart(_)));
            return Err(AppendError::Full(self.bytes));
        }
        let line = self.make(claim.clone(), now).ok_or(AppendError::TooLong)?;
        match &claim {
            Claim::PayloadStart(start) => drop(self.header.live.insert(start.uid)),
            Claim::PayloadEnd { uid, .. } => drop(self.header.live.remove(uid)),
            _ => {}
        }
        let ticket = self.ticket();
        self.push(ticket, line.clone(), false);
        Ok((ticket, line))
    }

    fn make(&self, claim: Claim, time: Timestamp) -> Option<Vec<u8>> {
        let record = Record { seq: self.header.last + 1, prev: self.header.head, time, claim };
        let mut line = encode(&GuestFrame::Record(record))?;
        line.pop();
        Some(line)
    }

    fn push(&mut self, ticket: Ticket, line: Vec<u8>, debt: bool) {
        self.header.last += 1;
        self.header.head = Digest::of(&line);
        self.bytes += line.len();
        self.pending.push_back(Pending { ticket, seq: self.header.last, line, debt, answered: false });
    }

    /// The payload of this record runs although nobody has acknowledged it. Gives the record's number for the spool.
    pub fn mark_debt(&mut self, ticket: Ticket) -> Option<u64> {
        let pending = self.pending.iter_mut().find(|p| p.ticket == ticket)?;
        pending.debt = true;
        Some(pending.seq)
    }

    /// The channel has been opened: what to write first.
    pub fn opened(&mut self, now: Timestamp) -> Vec<u8> {
        let mut bytes = vec![b'\n'];
        self.incoming.forget();
        bytes.extend(self.hello(now));
        bytes
    }

    /// The introduction, also as a reminder while no welcome comes.
    pub fn hello(&mut self, time: Timestamp) -> Vec<u8> {
        self.phase = Phase::Greeting;
        let Header { boot, last, .. } = self.header;
        encode(&GuestFrame::Hello(Hello { protocol: PROTOCOL, boot, agent: self.agent.clone(), last, time }))
            .unwrap_or_default()
    }

    /// The channel is gone.
    pub const fn closed(&mut self) {
        self.phase = Phase::Closed;
    }

    /// Whether the host has greeted us on the channel as it is now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The host's list of bans, once after it came whole.
    pub fn take_bans(&mut self) -> Option<Vec<Ban>> {
        self.bans.take()
    }

    /// A sign of life; `None` while nobody listens.
    #[must_use]
    pub fn heartbeat(&self, time: Timestamp) -> Option<Vec<u8>> {
        let payloads = u32::try_from(self.header.live.len()).unwrap_or(u32::MAX);
        self.is_open().then(|| encode(&GuestFrame::Heartbeat(Heartbeat { time, payloads, debt: self.debt() })))?
    }

    /// Takes a line of the host. What it has decided comes back; `hello` is to be sent when it asks who is there.
    pub fn received(&mut self, line: &[u8], now: Timestamp) -> (Vec<(Ticket, Verdict)>, Option<Vec<u8>>) {
        match decode(line) {
            Ok(HostFrame::Identify { .. }) => (Vec::new(), Some(self.hello(now))),
            Ok(HostFrame::Welcome { acked, head, .. }) => (self.welcomed(acked, head), None),
            Ok(HostFrame::Ack { seq }) => (self.acknowledged(seq), None),
            Ok(HostFrame::Refuse { seq, reason }) => (self.refused(seq, reason.as_str()), None),
            Ok(HostFrame::Bans { bans, more }) if self.is_open() => {
                if let Some(list) = self.incoming.take(bans, more) {
                    self.bans = Some(list);
                }
                (Vec::new(), None)
            }
            Ok(HostFrame::Bans { .. } | HostFrame::Unknown) | Err(_) => {
                self.contradictions += 1;
                (Vec::new(), None)
            }
        }
    }

    fn welcomed(&mut self, acked: u64, head: Digest) -> Vec<(Ticket, Verdict)> {
        if acked > FURTHEST {
            self.contradictions += 1;
            return Vec::new();
        }
        self.phase = Phase::Open;
        if self.digest_at(acked) != Some(head) {
            // The host knows another chain of this boot: our state folder was wiped, or its ledger was. What waits goes
            // behind what it has; anything else would never be taken.
            self.contradictions += 1;
            self.renumber(acked, head);
            self.cursor = acked + 1;
            return Vec::new();
        }
        let verdicts = self.settle(acked, &Verdict::Unclear);
        self.cursor = acked + 1;
        verdicts
    }

    /// Digest of a record that is acknowledged last or waits.
    fn digest_at(&self, seq: u64) -> Option<Digest> {
        if seq == self.header.acked {
            return Some(self.header.acked_head);
        }
        self.pending.iter().find(|p| p.seq == seq).map(|p| Digest::of(&p.line))
    }

    fn renumber(&mut self, acked: u64, head: Digest) {
        let old = std::mem::take(&mut self.pending);
        self.bytes = 0;
        self.header.last = acked;
        self.header.acked = acked;
        self.header.acked_head = head;
        self.header.head = head;
        // What was refused needs no place in another chain, where it might be taken.
        for pending in old.into_iter().filter(|p| !p.answered) {
            let Ok(GuestFrame::Record(record)) = decode(&pending.line) else { continue };
            let Some(line) = self.make(record.claim, record.time) else { continue };
            self.push(pending.ticket, line, pending.debt);
        }
    }

    fn acknowledged(&mut self, seq: u64) -> Vec<(Ticket, Verdict)> {
        if !self.is_open() {
            // From before this greeting, perhaps of another life's numbering; the welcome will say it again.
            return Vec::new();
        }
        if seq > self.header.last {
            self.contradictions += 1;
            return Vec::new();
        }
        self.settle(seq, &Verdict::Acknowledged)
    }

    fn settle(&mut self, seq: u64, verdict: &Verdict) -> Vec<(Ticket, Verdict)> {
        let mut verdicts = Vec::new();
        if seq > self.header.acked {
            self.header.acked_head = self.digest_at(seq).unwrap_or(self.header.acked_head);
            self.header.acked = seq;
        }
        while let Some(pending) = self.pending.front().filter(|p| p.seq <= seq) {
            self.bytes -= pending.line.len();
            if !pending.answered {
                verdicts.push((pending.ticket, verdict.clone()));
            }
            self.pending.pop_front();
        }
        verdicts
    }

    /// The line stays until its place in the chain is acknowledged: the host must see an unbroken chain.
    fn refused(&mut self, seq: u64, reason: &str) -> Vec<(Ticket, Verdict)> {
        let Some(pending) = self.pending.iter_mut().find(|p| p.seq == seq && !p.answered) else {
            self.contradictions += 1;
            return Vec::new();
        };
        pending.answered = true;
        pending.debt = false;
        let verdict = (pending.ticket, Verdict::Refused(reason.to_owned()));
        if let Ok(GuestFrame::Record(Record { claim: Claim::PayloadStart(start), .. })) = decode(&pending.line) {
            self.header.live.remove(&start.uid);
        }
        vec![verdict]
    }

    /// The next line to write (newline included), if the host listens and something is left. Taken as written.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        if !self.is_open() {
            return None;
        }
        let pending = self.pending.iter().find(|p| p.seq >= self.cursor)?;
        self.cursor = pending.seq + 1;
        let mut line = pending.line.clone();
        line.push(b'\n');
        Some(line)
    }

    /// Payloads that run unacknowledged.
    #[must_use]
    pub fn debt(&self) -> u32 {
        u32::try_from(self.pending.iter().filter(|p| p.debt).count()).unwrap_or(u32::MAX)
    }

    /// The chain's position.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Everything that has to survive.
    #[must_use]
    pub fn saved(&self) -> Saved {
        let pending = self.pending.iter().map(|p| (p.line.clone(), p.debt)).collect();
        Saved { header: self.header.clone(), pending }
    }

    /// Bytes that wait; host lines that contradict; starts refused for want of room.
    #[must_use]
    pub const fn counters(&self) -> (usize, u64, u64) {
        (self.bytes, self.contradictions, self.refused_full)
    }
}

/// What must not be lost: an end, without which something would seem to go on for ever, and the VM's own leases, which are said once
/// in an agent's life.
const fn always_taken(claim: &Claim) -> bool {
    match claim {
        Claim::PayloadEnd { .. } | Claim::BanApplied(_) => true,
        Claim::PayloadStart(start) => !start.holder.is_payload(),
        _ => false,
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
