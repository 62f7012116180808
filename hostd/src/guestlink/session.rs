//! The host's half of the guest link, as a pure machine: lines in, steps out. Protocol: `vestigo_model::link`.
//!
//! Identity never enters here: the caller knows the VM from the channel it opened.

use vestigo_model::{
    BootId, Digest, DomainUuid, LinkPosition, Timestamp,
    link::{self, Claim, FrameError, GuestFrame, Heartbeat, Hello, HostFrame, PROTOCOL, Record},
};

/// Most boots of one VM whose chains are remembered.
pub const MAX_BOOTS: usize = 16;

/// What the caller has to do, in order.
#[allow(clippy::large_enum_variant)] // short-lived, and moved once
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this, after everything asked before is durable.
    Send(HostFrame),
    /// Make this durable; then its place in the chain is acknowledged by the [`Step::Send`] that follows.
    Commit {
        /// The record's place.
        position: LinkPosition,
        /// Guest's clock.
        time: Timestamp,
        /// What it says.
        claim: Claim,
    },
    /// The agent introduced itself.
    Met(Hello),
    /// The agent lives.
    Heard(Heartbeat),
    /// The guest broke the protocol; in words for the record.
    Fault(String),
}

/// One VM's chains.
#[derive(Debug)]
pub struct Session {
    domain: DomainUuid,
    boot: Option<BootId>,
    /// Where each boot's chain ends, the latest boot last.
    heads: Vec<(BootId, (u64, Digest))>,
}

impl Session {
    /// A session that remembers where the chains of earlier boots ended.
    #[must_use]
    pub fn new(domain: DomainUuid, known: impl IntoIterator<Item = LinkPosition>) -> Self {
        let heads = known.into_iter().filter(|p| p.domain == domain).map(|p| (p.boot, (p.seq, p.digest))).collect();
        Self { domain, boot: None, heads }
    }

    /// What to send when the channel has been opened.
    #[must_use]
    pub fn greeting(now: Timestamp) -> HostFrame {
        HostFrame::Identify { protocol: PROTOCOL, time: now }
    }

    /// Takes one line of the guest's.
    pub fn line(&mut self, line: &Result<Vec<u8>, FrameError>, now: Timestamp) -> Vec<Step> {
        let bytes = match line {
            Ok(bytes) => bytes,
            Err(error) => return vec![Step::Fault(error.to_string())],
        };
        match link::decode::<GuestFrame>(bytes) {
            Ok(GuestFrame::Hello(hello)) => self.hello(hello, now),
            Ok(GuestFrame::Record(record)) => self.record(record, Digest::of(bytes), now),
            Ok(GuestFrame::Heartbeat(beat)) => vec![Step::Heard(beat)],
            Ok(GuestFrame::Unknown) => Vec::new(),
            Err(error) => vec![Step::Fault(error.to_string())],
        }
    }

    fn hello(&mut self, hello: Hello, now: Timestamp) -> Vec<Step> {
        if hello.protocol != PROTOCOL {
            return vec![Step::Fault(format!("the agent speaks protocol {}, hostd {PROTOCOL}", hello.protocol))];
        }
        let head = self.head(hello.boot).unwrap_or((0, Digest::ZERO));
        self.boot = Some(hello.boot);
        self.set_head(hello.boot, head);
        let welcome = self.welcome(now);
        [Some(Step::Met(hello)), welcome].into_iter().flatten().collect()
    }

    fn head(&self, boot: BootId) -> Option<(u64, Digest)> {
        self.heads.iter().find(|(known, _)| *known == boot).map(|(_, head)| *head)
    }

    /// Forgets the boot not heard of for longest when there are too many: a guest may make them up. What it then says again
    /// under an old one is known by its run id.
    fn set_head(&mut self, boot: BootId, head: (u64, Digest)) {
        self.heads.retain(|(known, _)| *known != boot);
        self.heads.push((boot, head));
        let surplus = self.heads.len().saturating_sub(MAX_BOOTS);
        self.heads.drain(..surplus);
    }

    fn welcome(&self, now: Timestamp) -> Option<Step> {
        let (acked, head) = self.head(self.boot?)?;
        Some(Step::Send(HostFrame::Welcome { protocol: PROTOCOL, acked, head, time: now }))
    }

    fn record(&mut self, record: Record, digest: Digest, now: Timestamp) -> Vec<Step> {
        let Some((boot, (seq, head))) = self.boot.and_then(|boot| Some((boot, self.head(boot)?))) else {
            return vec![Step::Fault("a record before hello".into()), Step::Send(Self::greeting(now))];
        };
        if record.seq <= seq {
            // Sent again because our acknowledgement was lost; counted once.
            let differs = record.seq == seq && digest != head;
            let fault = differs.then(|| Step::Fault(format!("record {} came again with other content", record.seq)));
            return fault.into_iter().chain([Step::Send(HostFrame::Ack { seq })]).collect();
        }
        if record.seq != seq + 1 || record.prev != head {
            let fault = format!("record {} does not follow record {seq}", record.seq);
            return [Some(Step::Fault(fault)), self.welcome(now)].into_iter().flatten().collect();
        }
        self.set_head(boot, (record.seq, digest));
        let position = LinkPosition { domain: self.domain, boot, seq: record.seq, digest };
        vec![
            Step::Commit { position, time: record.time, claim: record.claim },
            Step::Send(HostFrame::Ack { seq: record.seq }),
        ]
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
