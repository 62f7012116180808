//! Capture files, written.

use std::io::{self, Write};

/// Writes a pcap file, little-endian, with microseconds.
pub struct PcapWriter<W: Write> {
    out: W,
    snap: usize,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the header; frames are cut to `snap`.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(mut out: W, snap: u32, link_type: u32) -> io::Result<Self> {
        out.write_all(&0xa1b2_c3d4u32.to_le_bytes())?;
        out.write_all(&[2, 0, 4, 0])?;
        for word in [0, 0, snap, link_type] {
            out.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { out, snap: snap as usize })
    }

    /// Writes a packet.
    ///
    /// # Errors
    /// The writer's.
    pub fn packet(&mut self, micros: u64, bytes: &[u8]) -> io::Result<()> {
        let kept = bytes.get(..self.snap).unwrap_or(bytes);
        self.cut(micros, kept, bytes.len())
    }

    /// Writes a packet of which only these bytes are at hand.
    ///
    /// # Errors
    /// The writer's.
    pub fn cut(&mut self, micros: u64, kept: &[u8], wire_len: usize) -> io::Result<()> {
        let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        for number in [micros / 1_000_000, micros % 1_000_000, kept.len() as u64, wire_len as u64] {
            self.out.write_all(&word(number))?;
        }
        self.out.write_all(kept)
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Writes a pcapng file, big-endian, of two interfaces, the second with nanoseconds; packets alternate between them.
///
/// # Errors
/// The writer's.
pub fn write_pcapng(out: &mut impl Write, packets: &[(u64, Vec<u8>)]) -> io::Result<()> {
    block(out, 0x0a0d_0d0a, &[&0x1a2b_3c4du32.to_be_bytes()[..], &[0, 1, 0, 0], &[0xff; 8]].concat())?;
    block(out, 1, &[0, 1, 0, 0, 0, 0, 0xff, 0xff])?;
    block(out, 1, &[&[0, 1, 0, 0, 0, 0, 0xff, 0xff][..], &[0, 9, 0, 1, 9, 0, 0, 0], &[0; 4]].concat())?;
    for (at, (micros, bytes)) in packets.iter().enumerate() {
        let interface = u32::from(at % 2 == 1);
        let ticks = if interface == 0 { *micros } else { micros * 1000 };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut body = interface.to_be_bytes().to_vec();
        body.extend(ticks.to_be_bytes());
        body.extend(length.to_be_bytes());
        body.extend(length.to_be_bytes());
        body.extend(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        block(out, 6, &body)?;
    }
    Ok(())
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_be_bytes();
    out.write_all(&kind.to_be_bytes())?;
    out.write_all(&length)?;
    out.write_all(body)?;
    out.write_all(&length)
}
