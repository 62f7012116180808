//! Packets out of pcap and pcapng files. The headers and blocks are parsed by `pcap-parser`; the buffer is ours, so that a pipe that gives
//! a few bytes at a time, a block that is larger than thought and a file that breaks off are all one case.

use std::io::{self, Read};

use pcap_parser::{
    PcapError, PcapHeader, nom, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified, parse_pcap_header,
    pcapng::{Block, InterfaceDescriptionBlock, parse_block_be, parse_block_le},
};
use vestigo_model::Timestamp;

use crate::decode::{self, Packet, Undecodable};

/// Bytes read at once, at first and when it turns out that there are many.
const READ: [usize; 2] = [4 << 10, 256 << 10];
/// A block that claims to be longer is none. Snap lengths go up to 256 KiB, comments and secrets can be somewhat longer.
const MAX_BLOCK: usize = 16 << 20;
/// First bytes of a pcapng file, in either order.
const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Interfaces of one section that are remembered.
const MAX_INTERFACES: usize = 65_536;

/// Why a file was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureFileError {
    /// Neither format.
    #[error("no pcap or pcapng file")]
    NotACapture,
    /// It ends in the middle of something.
    #[error("the file breaks off at byte {at}, in the middle of a packet or block; what came before was metered")]
    Truncated {
        /// Where what is not whole begins.
        at: u64,
    },
    /// What stands there cannot be.
    #[error("byte {at} is not the beginning of a packet or block ({what}); what came before was metered")]
    Corrupt {
        /// Where.
        at: u64,
        /// In a few words.
        what: &'static str,
    },
    /// The file system's.
    #[error("cannot read on from byte {at}: {source}; what came before was metered")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
}

/// One packet of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured<'a> {
    /// Its bytes, as far as they were captured.
    pub bytes: &'a [u8],
    /// Its length before it was cut.
    pub wire_len: usize,
    /// When; of a packet without a time that of the one before.
    pub time: Timestamp,
    /// The file's number for what stands at its beginning (LINKTYPE_…).
    pub link_type: u32,
}

impl Captured<'_> {
    /// Decodes it as its link type wants.
    ///
    /// # Errors
    /// Why it is no IP packet.
    pub fn decode(&self) -> Result<Packet, Undecodable> {
        let (bytes, wire_len) = (self.bytes, self.wire_len.max(self.bytes.len()));
        let word = |at: usize| {
            let two = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Undecodable::CutShort)?;
            Ok(u16::from_be_bytes(*two))
        };
        match self.link_type {
            1 => decode::ethernet(bytes, wire_len, None),
            // Raw IP, under the three numbers that systems have for it, and of one version.
            12 | 14 | 101 | 228 | 229 => decode::raw(bytes, 0, wire_len),
            // Loopback of BSD: four bytes of address family, whose values and order differ between systems.
            0 | 108 => decode::raw(bytes, 4, wire_len),
            // Linux "cooked", first and second version.
            113 => decode::cooked(word(14)?, bytes, 16, wire_len),
            276 => decode::cooked(word(0)?, bytes, 20, wire_len),
            _ => Err(Undecodable::LinkType),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link_type: u32,
    /// Units in a second.
    resolution: u64,
    /// Seconds to add.
    offset: i64,
    snap: u32,
}

#[derive(Debug)]
enum Format {
    Pcap { header: PcapHeader, nanos: bool },
    PcapNg { big_endian: bool, interfaces: Vec<Interface> },
}

/// A packet within the buffer.
struct Place {
    at: usize,
    length: usize,
    wire_len: u32,
    /// pcapng has packets without.
    time: Option<Timestamp>,
    link_type: u32,
}

/// What stands at the beginning of the buffer.
enum Step {
    Packet(Place, usize),
    Skip(usize),
    Interface(Interface, usize),
    Section { big_endian: bool, length: usize },
}

/// A file that is being read.
pub struct CaptureFile<R> {
    input: R,
    buffer: Vec<u8>,
    /// What is not used yet of the buffer.
    start: usize,
    end: usize,
    /// Bytes of the file before `start`.
    offset: u64,
    /// Time of the last packet that had one.
    time: Timestamp,
    format: Format,
}

impl<R: Read> CaptureFile<R> {
    /// Reads the file's header.
    ///
    /// # Errors
    /// [`CaptureFileError`].
    pub fn open(input: R) -> Result<Self, CaptureFileError> {
        let format = Format::PcapNg { big_endian: false, interfaces: Vec::new() };
        let mut file = Self {
            input,
            buffer: vec![0; READ[0]],
            start: 0,
            end: 0,
            offset: 0,
            time: Timestamp::from_nanos(0),
            format,
        };
        file.ensure(24)?;
        if file.rest().starts_with(&SECTION) {
            return Ok(file);
        }
        let (length, header) = match parse_pcap_header(file.rest()) {
            Ok((rest, header)) => (file.rest().len() - rest.len(), header),
            Err(_) => return Err(CaptureFileError::NotACapture),
        };
        file.skip(length);
        file.format = Format::Pcap { nanos: header.is_nanosecond_precision(), header };
        Ok(file)
    }

    /// The next packet; `None` at the end.
    ///
    /// # Errors
    /// [`CaptureFileError`]: there is no going on after one.
    #[allow(clippy::should_implement_trait, reason = "a packet borrows the buffer, which no iterator can do")]
    pub fn next(&mut self) -> Result<Option<Captured<'_>>, CaptureFileError> {
        let place = loop {
            if self.start == self.end && !self.fill()? {
                return Ok(None);
            }
            match self.step() {
                Ok(Step::Packet(place, length)) => {
                    let place = Place { at: self.start + place.at, ..place };
                    self.skip(length);
                    break place;
                }
                Ok(Step::Skip(length)) => self.skip(length),
                Ok(Step::Interface(interface, length)) => {
                    self.skip(length);
                    self.add_interface(interface)?;
                }
                Ok(Step::Section { big_endian, length }) => {
                    self.skip(length);
                    self.format = Format::PcapNg { big_endian, interfaces: Vec::new() };
                }
                Err(nom::Err::Incomplete(_)) => self.more()?,
                Err(nom::Err::Error(what) | nom::Err::Failure(what)) => return Err(self.corrupt(what)),
            }
        };
        let bytes = self.buffer.get(place.at..place.at + place.length).unwrap_or_default();
        let wire_len = place.wire_len as usize;
        self.time = place.time.unwrap_or(self.time);
        Ok(Some(Captured { bytes, wire_len, time: self.time, link_type: place.link_type }))
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn skip(&mut self, length: usize) {
        self.start = self.end.min(self.start + length);
        self.offset += length as u64;
    }

    fn corrupt(&self, what: &'static str) -> CaptureFileError {
        CaptureFileError::Corrupt { at: self.offset, what }
    }

    fn add_interface(&mut self, interface: Interface) -> Result<(), CaptureFileError> {
        match &mut self.format {
            Format::PcapNg { interfaces, .. } if interfaces.len() < MAX_INTERFACES => {
                interfaces.push(interface);
                Ok(())
            }
            _ => Err(self.corrupt("too many interfaces")),
        }
    }

    /// What stands at `start` is not whole: reads on.
    fn more(&mut self) -> Result<(), CaptureFileError> {
        if self.end - self.start >= MAX_BLOCK {
            return Err(self.corrupt("a block of more than 16 MiB"));
        }
        if self.fill()? { Ok(()) } else { Err(CaptureFileError::Truncated { at: self.offset }) }
    }

    /// At least so many bytes, or no capture.
    fn ensure(&mut self, least: usize) -> Result<(), CaptureFileError> {
        while self.end - self.start < least {
            if !self.fill()? {
                return Err(CaptureFileError::NotACapture);
            }
        }
        Ok(())
    }

    /// Reads some more; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, CaptureFileError> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        } else if self.offset > READ[0] as u64 && self.buffer.len() < READ[1] {
            self.buffer.resize(READ[1], 0);
        }
        let at = self.offset + self.end as u64;
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let got = loop {
            match self.input.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(|source| CaptureFileError::Read { at, source })?,
            }
        };
        self.end += got;
        Ok(got > 0)
    }

    fn step(&self) -> Result<Step, nom::Err<&'static str>> {
        match &self.format {
            Format::Pcap { header, nanos } => pcap_step(self.rest(), header, *nanos),
            Format::PcapNg { big_endian, interfaces } => pcapng_step(self.rest(), *big_endian, interfaces),
        }
    }
}

fn pcap_step(bytes: &[u8], header: &PcapHeader, nanos: bool) -> Result<Step, nom::Err<&'static str>> {
    let (parsed, at) = match (header.is_modified_format(), header.is_bigendian()) {
        (true, true) => return Err(nom::Err::Failure("a modified pcap header in big-endian order")),
        (true, false) => (parse_pcap_frame_modified(bytes), 24),
        (false, true) => (parse_pcap_frame_be(bytes), 16),
        (false, false) => (parse_pcap_frame(bytes), 16),
    };
    let (rest, packet) = parsed.map_err(in_words)?;
    let fraction = i64::from(packet.ts_usec) * if nanos { 1 } else { 1000 };
    let time = i64::from(packet.ts_sec).saturating_mul(1_000_000_000).saturating_add(fraction);
    let place = Place {
        at,
        length: packet.data.len(),
        wire_len: packet.origlen,
        time: Some(Timestamp::from_nanos(time)),
        link_type: header.network.0.cast_unsigned() & 0x0fff_ffff,
    };
    Ok(Step::Packet(place, bytes.len() - rest.len()))
}

fn pcapng_step(bytes: &[u8], big_endian: bool, interfaces: &[Interface]) -> Result<Step, nom::Err<&'static str>> {
    const ENHANCED_HEADER: usize = 28;
    const SIMPLE_HEADER: usize = 12;
    check_length(bytes, big_endian)?;
    let (rest, block) = if big_endian { parse_block_be(bytes) } else { parse_block_le(bytes) }.map_err(in_words)?;
    let length = bytes.len() - rest.len();
    let unknown = || nom::Err::Failure("a packet of an interface that was not described");
    Ok(match block {
        Block::SectionHeader(section) => Step::Section { big_endian: section.big_endian(), length },
        Block::InterfaceDescription(description) => Step::Interface(interface(&description), length),
        Block::EnhancedPacket(packet) => {
            let interface = interfaces.get(packet.if_id as usize).ok_or_else(unknown)?;
            let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            let place = Place {
                at: ENHANCED_HEADER,
                length: packet.data.len().min(packet.caplen as usize),
                wire_len: packet.origlen,
                time: Some(interface.time(ticks)),
                link_type: interface.link_type,
            };
            Step::Packet(place, length)
        }
        Block::SimplePacket(packet) => {
            let interface = interfaces.first().ok_or_else(unknown)?;
            let snap = if interface.snap == 0 { u32::MAX } else { interface.snap };
            let place = Place {
                at: SIMPLE_HEADER,
                length: packet.data.len().min(packet.origlen.min(snap) as usize),
                wire_len: packet.origlen,
                time: None,
                link_type: interface.link_type,
            };
            Step::Packet(place, length)
        }
        _ => Step::Skip(length),
    })
}

/// pcap-parser (0.17) takes 12 from the length before it looks whether it is as much. A section's header has its own order, and its own check there.
fn check_length(bytes: &[u8], big_endian: bool) -> Result<(), nom::Err<&'static str>> {
    let Some(four) = bytes.get(4..).and_then(|rest| rest.first_chunk()) else { return Ok(()) };
    let length = if big_endian { u32::from_be_bytes(*four) } else { u32::from_le_bytes(*four) };
    let possible = bytes.starts_with(&SECTION) || (12..=MAX_BLOCK).contains(&(length as usize));
    if possible { Ok(()) } else { Err(nom::Err::Failure("its length cannot be")) }
}

fn interface(description: &InterfaceDescriptionBlock<'_>) -> Interface {
    Interface {
        link_type: description.linktype.0.cast_unsigned(),
        resolution: description.ts_resolution().unwrap_or(1_000_000).max(1),
        offset: description.ts_offset(),
        snap: description.snaplen,
    }
}

impl Interface {
    fn time(&self, ticks: u64) -> Timestamp {
        let nanos = match self.resolution {
            1_000_000_000 => i64::try_from(ticks).unwrap_or(i64::MAX),
            1_000_000 => i64::try_from(ticks).unwrap_or(i64::MAX).saturating_mul(1000),
            other => i64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(other)).unwrap_or(i64::MAX),
        };
        Timestamp::from_nanos(nanos.saturating_add(self.offset.saturating_mul(1_000_000_000)))
    }
}

/// The parser's own words repeat the bytes.
fn in_words(error: nom::Err<PcapError<&[u8]>>) -> nom::Err<&'static str> {
    error.map(|_| "its lengths or its kind cannot be")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    }

    fn section() -> Vec<u8> {
        block(0x0a0d_0d0a, &[&0x1a2b_3c4du32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat())
    }

    fn read(bytes: &[u8]) -> (usize, Option<String>) {
        let mut file = CaptureFile::open(bytes).unwrap();
        let mut packets = 0;
        loop {
            match file.next() {
                Ok(Some(_)) => packets += 1,
                Ok(None) => return (packets, None),
                Err(error) => return (packets, Some(error.to_string())),
            }
        }
    }

    /// Found by the fuzzer: the parser subtracted 12 from the length.
    #[test]
    fn a_block_shorter_than_its_own_frame_is_refused() {
        let bytes = [section(), [12u32, 8, 8, 0].map(u32::to_le_bytes).concat()].concat();
        let (packets, said) = read(&bytes);
        assert_eq!(packets, 0);
        assert!(said.unwrap().starts_with("byte 28 is not the beginning of a packet or block (its length cannot be)"));
    }

    #[test]
    fn a_packet_of_no_interface_and_one_without_a_time() {
        let simple = block(3, &[&14u32.to_le_bytes()[..], &[0; 16]].concat());
        assert!(read(&[section(), simple.clone()].concat()).1.unwrap().contains("was not described"));
        let interface = block(1, &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read(&[section(), interface, simple].concat()), (1, None));
    }

    #[test]
    fn times_have_the_resolution_of_their_interface() {
        let time =
            |resolution, ticks| Interface { link_type: 1, resolution, offset: 0, snap: 0 }.time(ticks).as_nanos();
        assert_eq!([time(1_000_000, 5), time(1_000_000_000, 5), time(1 << 10, 512)], [5_000, 5, 500_000_000]);
        assert_eq!(time(1, u64::MAX), i64::MAX);
    }
}
