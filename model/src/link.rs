//! The guest link: JSON Lines over virtio-serial, one object per line, at most [`MAX_FRAME`] bytes with its newline.
//!
//! ```text
//! host  ─ identify ─────────────────────────────►  guest     (whenever the host opens the channel)
//! host  ◄──────────────────────────── hello ─  guest     (whenever the guest opens it, and after identify)
//! host  ─ welcome: acked, head ────────────────►  guest     (records up to `acked` are durable; send what follows)
//! host  ◄────────────────────────── record ─  guest     (seq, prev = SHA-256 of the record line before)
//! host  ─ ack: seq ─────────────────────────────►  guest     (everything up to seq is durable)
//! host  ◄─────────────────────── heartbeat ─  guest
//! host  ─ bans: the whole list ─────────────────►  guest     (after welcome, and whenever it changes)
//! host  ◄─────── record: ban-applied ─  guest     (once for each ban: what it ended, and whether anything is left)
//! ```
//!
//! A side that (re)opens the channel sends one empty line first, so that the rest of a line the other side was reading
//! ends there. Unknown members are ignored, unknown types are skipped and counted. A chain belongs to one guest boot; a
//! record that was acknowledged and comes again is acknowledged again and not counted twice. A guest whose chain does not
//! contain `welcome`'s head (either side lost its state) puts its waiting records behind that head and goes on from there. Nothing
//! here says who the guest *is*: that is known from the channel.

use serde::{Deserialize, Serialize};

use crate::{
    Ban, BanApplied, BootId, Caller, Connection, Digest, Exit, Label, PayloadClaim, PayloadId, PayloadUid, PilotId,
    Timestamp, User, Vo,
};

/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "org.vestigo.attribution.0";
/// Version of this protocol.
pub const PROTOCOL: u32 = 1;
/// Longest line, newline included.
pub const MAX_FRAME: usize = 64 * 1024;

/// The guest introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// This boot of the guest.
    pub boot: BootId,
    /// Version of the agent.
    pub agent: Label,
    /// Sequence number of the last record the guest has made; 0 when none.
    pub last: u64,
    /// Guest's clock.
    pub time: Timestamp,
}

/// One durable statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 1 for the first of a boot, then one more each.
    pub seq: u64,
    /// SHA-256 of the line (without its newline) of record `seq - 1`; zeros for the first.
    pub prev: Digest,
    /// Guest's clock.
    pub time: Timestamp,
    /// What.
    pub claim: Claim,
}

/// What a guest can state.
// Values live one at a time, between the link and the ledger: a box would only add an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Claim {
    /// A payload is about to run; it will not before this is acknowledged.
    PayloadStart(PayloadClaim),
    /// A payload ended.
    PayloadEnd {
        /// Which.
        uid: PayloadUid,
        /// How.
        exit: Exit,
        /// It never sent a packet: its leases need no rest, there is nothing that could be confused.
        #[serde(default)]
        silent: bool,
    },
    /// A start was asked for and refused by the agent: nothing ran.
    PayloadRefused(PayloadRefused),
    /// A ban of the host's is in force here, and what it hit is dead.
    BanApplied(BanApplied),
    /// Something the site should know now, such as no free leases.
    Alarm {
        /// In one sentence.
        what: Label,
    },
    /// A connection that the agent saw, where such detail is switched on.
    Connection(Connection),
    /// Something a newer agent says; kept out, counted, acknowledged.
    #[serde(other)]
    Unknown,
}

/// A refusal, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadRefused {
    /// The run that did not come to be.
    pub uid: PayloadUid,
    /// Who asked.
    pub caller: Caller,
    /// What the caller named.
    pub pilot: PilotId,
    /// What the caller named.
    pub payload: PayloadId,
    /// What the caller named.
    pub user: User,
    /// What the caller named.
    pub vo: Vo,
    /// Exit code that the pilot got.
    pub code: u8,
    /// Why, cut to what a label holds.
    pub reason: Label,
}

/// The guest is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Guest's clock.
    pub time: Timestamp,
    /// Payloads that run now.
    pub payloads: u32,
    /// Payloads started without an acknowledgement (`fail_mode = "open"`) and not yet acknowledged.
    #[serde(default)]
    pub debt: u32,
}

/// Guest → host.
// Values live one at a time, between the link and the ledger: a box would only add an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum GuestFrame {
    /// Introduction.
    Hello(Hello),
    /// Statement.
    Record(Record),
    /// Sign of life.
    Heartbeat(Heartbeat),
    /// A type this version does not know.
    #[serde(other)]
    Unknown,
}

/// Host → guest. Never a command to run anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum HostFrame {
    /// "Who is there?"
    Identify {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Host's clock.
        time: Timestamp,
    },
    /// Answer to hello.
    Welcome {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Last durable record of this boot; 0 when none.
        acked: u64,
        /// SHA-256 of that record's line; zeros when none.
        head: Digest,
        /// Host's clock.
        time: Timestamp,
    },
    /// Everything up to here is durable.
    Ack {
        /// Sequence number.
        seq: u64,
    },
    /// The record is not and will not be kept; what it asked for must not happen. Its place in the chain is taken all
    /// the same: the next record follows it.
    Refuse {
        /// Sequence number.
        seq: u64,
        /// Why, in words for the pilot.
        reason: Label,
    },
    /// Who must not run in this VM: together with the frames before it that had `more`, the whole list. It takes the place
    /// of the list before.
    Bans {
        /// Some of them.
        bans: Vec<Ban>,
        /// The rest follows in the next frame.
        #[serde(default)]
        more: bool,
    },
    /// A type this version does not know.
    #[serde(other)]
    Unknown,
}

/// What is wrong with bytes on the link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A line went on beyond [`MAX_FRAME`]; it was skipped to its end.
    #[error("a line is longer than {MAX_FRAME} bytes")]
    TooLong,
    /// A line is no JSON object of the expected kind.
    #[error("a line is no frame: {0}")]
    Malformed(String),
}

/// Writes a frame as one line, newline included. `None` if it does not fit into [`MAX_FRAME`].
pub fn encode<F: Serialize>(frame: &F) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(frame).ok()?;
    line.push(b'\n');
    (line.len() <= MAX_FRAME).then_some(line)
}

/// Reads one line (without its newline).
///
/// # Errors
/// [`FrameError::Malformed`] when the line is no such frame.
pub fn decode<'a, F: Deserialize<'a>>(line: &'a [u8]) -> Result<F, FrameError> {
    serde_json::from_slice(line).map_err(|error| FrameError::Malformed(error.to_string()))
}

/// Cuts a stream into lines. Holds at most [`MAX_FRAME`] bytes, whatever comes.
#[derive(Debug, Default)]
pub struct LineReader {
    buffer: Vec<u8>,
    skipping: bool,
}

impl LineReader {
    /// An empty reader.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes and gives the lines that they complete, in order, without newlines and without empty ones. A line
    /// that is too long yields one error and is skipped to its end.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Result<Vec<u8>, FrameError>> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (head, tail) = bytes.split_at(end);
            self.take(head, &mut lines);
            if !self.skipping && !self.buffer.is_empty() {
                lines.push(Ok(std::mem::take(&mut self.buffer)));
            }
            self.skipping = false;
            bytes = tail.get(1..).unwrap_or_default();
        }
        self.take(bytes, &mut lines);
        lines
    }

    fn take(&mut self, bytes: &[u8], lines: &mut Vec<Result<Vec<u8>, FrameError>>) {
        if self.skipping {
            return;
        }
        if self.buffer.len() + bytes.len() >= MAX_FRAME {
            self.buffer.clear();
            self.skipping = true;
            lines.push(Err(FrameError::TooLong));
        } else {
            self.buffer.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
