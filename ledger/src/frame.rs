//! Frames of the write-ahead log: length and CRC-32 (both little-endian `u32`), then the payload, one JSON object or one batch of flows.
//!
//! ```text
//! ┌────────────┬────────────┬──────────────────────────┐
//! │ length u32 │ crc32 u32  │ {…} or STX … ETX (≤1 MiB)│
//! └────────────┴────────────┴──────────────────────────┘
//! ```
//!
//! A payload is JSON text, or bytes between STX and ETX from which COBS has taken the zeros; so it holds no zero byte, whereas a length
//! below 16 MiB always does: nothing that a guest says or sends can pass for a frame when the reader looks for the next whole
//! one behind damaged bytes.

/// Longest payload. A fact is at most a guest-link frame (64 KiB) and what the host adds.
pub const MAX_PAYLOAD: usize = 1 << 20;

const HEADER: usize = 8;
/// First byte of a batch of flows …
pub const STX: u8 = 0x02;
/// … and the last.
pub const ETX: u8 = 0x03;

/// The payload is longer than [`MAX_PAYLOAD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A record of {0} bytes is longer than the {MAX_PAYLOAD} bytes that the write-ahead log takes")]
pub struct TooLong(pub usize);

/// Appends the payload's frame to `out`.
///
/// # Errors
/// [`TooLong`]; `out` is untouched then.
pub fn encode(payload: &[u8], out: &mut Vec<u8>) -> Result<(), TooLong> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD);
    let length = length.ok_or(TooLong(payload.len()))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// What a stretch of log holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Payloads of the whole frames, in order.
    pub payloads: Vec<&'a [u8]>,
    /// Where the last whole frame ends: the log is good up to here.
    pub good: usize,
    /// Bytes between whole frames that are no frame: the medium's fault, not a torn write's.
    pub damaged: usize,
    /// Bytes behind the last whole frame: a write that did not finish.
    pub torn: usize,
}

/// Reads all whole frames. Never fails: what is no frame is counted.
#[must_use]
pub fn scan(bytes: &[u8]) -> Scan<'_> {
    let mut scan = Scan::default();
    let mut at = 0;
    while let Some((skipped, payload)) = next(bytes.get(at..).unwrap_or_default()) {
        scan.damaged += skipped;
        at += skipped + HEADER + payload.len();
        scan.payloads.push(payload);
        scan.good = at;
    }
    scan.torn = bytes.len() - scan.good;
    scan
}

/// The next whole frame and how many bytes stand before it.
fn next(bytes: &[u8]) -> Option<(usize, &[u8])> {
    (0..bytes.len().saturating_sub(HEADER)).find_map(|skip| Some((skip, whole(bytes.get(skip..)?)?)))
}

/// The payload of the frame that begins here, if one does.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    // The cheap checks first: behind damage this is asked for every byte. A length of zero is what unwritten blocks hold.
    if length == 0 || length > MAX_PAYLOAD {
        return None;
    }
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.get(..length)?;
    let framed = matches!((payload.first(), payload.last()), (Some(b'{'), Some(b'}')) | (Some(&STX), Some(&ETX)));
    (framed && crc32fast::hash(payload) == u32::from_le_bytes(*crc)).then_some(payload)
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
