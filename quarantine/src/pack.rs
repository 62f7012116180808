//! Packs: append-only containers of chunks. `docs/formats/vault.md` gives the bytes; a pack describes itself, so the
//! bucket alone is enough to rebuild everything that any cache holds.

use bytes::Bytes;
use uuid::Uuid;

use crate::{
    chunk::{ChunkId, Domain, MAX_CHUNK},
    codec::{Reader, Short, as_u32, as_u64, as_usize},
};

const MAGIC: &[u8; 8] = b"VSTGPACK";
const END_MAGIC: &[u8; 8] = b"VSTGPEND";
const VERSION: u16 = 1;
/// Bytes before the first record.
pub const HEADER: usize = 128;
/// Bytes before each payload.
pub const RECORD: usize = 44;
const ENTRY: usize = 52;
/// Bytes at the very end.
pub const FOOTER: usize = 88;
const DOMAIN_FIELD: usize = 96;

/// Why bytes are not a (part of a) pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The bytes end too early.
    #[error(transparent)]
    Short(#[from] Short),
    /// Not a pack, or of a version this program does not know.
    #[error("not a pack that this version reads: {0}")]
    Foreign(&'static str),
    /// The pack contradicts itself.
    #[error("the pack is damaged: {0}")]
    Damaged(&'static str),
    /// A chunk's bytes cannot be unpacked.
    #[error("a chunk cannot be unpacked: {0}")]
    Unpack(String),
}

/// How a payload is stored. 16 and up are kept for encrypted payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

impl Method {
    /// The byte in a record.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The method that a byte names.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// One chunk's place in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Whose bytes.
    pub id: ChunkId,
    /// How they are stored.
    pub method: Method,
    /// Where its record begins; the payload follows [`RECORD`] bytes later.
    pub offset: u32,
    /// Bytes of the chunk.
    pub raw_len: u32,
    /// Bytes of the payload.
    pub stored_len: u32,
}

impl Entry {
    /// One past its last byte in the pack.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + as_u64(RECORD) + u64::from(self.stored_len)
    }
}

/// The payload for a chunk: compressed where that saves at least a thirty-second part.
pub fn encode_chunk(level: i32, raw: &[u8]) -> Result<(Method, Vec<u8>), PackError> {
    let packed = zstd::bulk::compress(raw, level).map_err(|e| PackError::Unpack(e.to_string()))?;
    if packed.len() < raw.len() - raw.len() / 32 { Ok((Method::Zstd, packed)) } else { Ok((Method::Raw, raw.to_vec())) }
}

/// The chunk in a payload. Never makes more than `raw_len` bytes, whatever the payload says.
pub fn decode_chunk(method: Method, payload: &[u8], raw_len: u32) -> Result<Vec<u8>, PackError> {
    if raw_len > MAX_CHUNK {
        return Err(PackError::Damaged("a chunk is longer than any can be"));
    }
    let raw = match method {
        Method::Raw => payload.to_vec(),
        Method::Zstd => zstd::bulk::decompress(payload, as_usize(u64::from(raw_len)))
            .map_err(|e| PackError::Unpack(e.to_string()))?,
    };
    if as_u64(raw.len()) == u64::from(raw_len) {
        Ok(raw)
    } else {
        Err(PackError::Damaged("a chunk has the wrong length"))
    }
}

/// A pack's first bytes, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub id: Uuid,
    /// Whose chunks it holds.
    pub domain: Domain,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let domain = self.domain.as_str().as_bytes();
        let mut out = Vec::with_capacity(HEADER);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        // Id scheme 0: plain BLAKE3. Cipher 0: none.
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&u16::try_from(domain.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(domain);
        out.resize(HEADER, 0);
        out
    }

    /// Reads the first [`HEADER`] bytes of a pack.
    pub fn decode(bytes: &[u8]) -> Result<Self, PackError> {
        let mut r = Reader::new(bytes);
        if r.array::<8>()? != *MAGIC {
            return Err(PackError::Foreign("the first bytes are not VSTGPACK"));
        }
        if r.u16()? != VERSION {
            return Err(PackError::Foreign("its version is unknown"));
        }
        if (r.u8()?, r.u8()?) != (0, 0) {
            return Err(PackError::Foreign("its id scheme or cipher is unknown"));
        }
        let len = usize::from(r.u16()?);
        r.take(2)?;
        let id = Uuid::from_bytes(r.array()?);
        let domain = r.take(DOMAIN_FIELD)?.get(..len).and_then(|d| std::str::from_utf8(d).ok()).and_then(Domain::parse);
        Ok(Self { id, domain: domain.ok_or(PackError::Damaged("it names no domain"))? })
    }
}

/// Reads the [`RECORD`] bytes before a payload; the offset is where they stand.
pub fn decode_record(bytes: &[u8], offset: u32) -> Result<Entry, PackError> {
    let mut r = Reader::new(bytes);
    let id = ChunkId(r.array()?);
    let method = Method::from_code(r.u8()?).ok_or(PackError::Foreign("a chunk's method is unknown"))?;
    if r.array::<3>()? != [0; 3] {
        return Err(PackError::Damaged("a record's spare bytes are not zero"));
    }
    Ok(Entry { id, method, offset, raw_len: r.u32()?, stored_len: r.u32()? })
}

/// A pack being filled, in memory: what is not durable in the vault is read again after a crash.
#[derive(Debug)]
pub struct Builder {
    header: Header,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// A pack ready for the vault.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its name.
    pub id: Uuid,
    /// All of it.
    pub bytes: Bytes,
    /// What it holds.
    pub entries: Vec<Entry>,
}

impl Builder {
    /// An empty pack.
    #[must_use]
    pub fn new(domain: Domain) -> Self {
        // Version 7: names sort by time, so another host finds what is new with one listing.
        let header = Header { id: Uuid::now_v7(), domain };
        let bytes = header.encode();
        Self { header, bytes, entries: Vec::new() }
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it holds no chunk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends a chunk.
    pub fn push(&mut self, id: ChunkId, method: Method, raw_len: u32, payload: &[u8]) {
        let entry = Entry { id, method, offset: as_u32(self.bytes.len()), raw_len, stored_len: as_u32(payload.len()) };
        self.bytes.extend_from_slice(&id.0);
        self.bytes.extend_from_slice(&[method.code(), 0, 0, 0]);
        self.bytes.extend_from_slice(&raw_len.to_le_bytes());
        self.bytes.extend_from_slice(&entry.stored_len.to_le_bytes());
        self.bytes.extend_from_slice(payload);
        self.entries.push(entry);
    }

    /// Writes trailer and footer.
    #[must_use]
    pub fn finish(self) -> Finished {
        let Self { header, mut bytes, entries } = self;
        let entries_offset = as_u64(bytes.len());
        let body = blake3::hash(&bytes);
        let trailer: Vec<u8> = entries.iter().flat_map(encode_entry).collect();
        bytes.extend_from_slice(&trailer);
        bytes.extend_from_slice(&entries_offset.to_le_bytes());
        bytes.extend_from_slice(&as_u32(entries.len()).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body.as_bytes());
        bytes.extend_from_slice(blake3::hash(&trailer).as_bytes());
        bytes.extend_from_slice(END_MAGIC);
        Finished { id: header.id, bytes: bytes.into(), entries }
    }
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRY);
    out.extend_from_slice(&entry.id.0);
    out.extend_from_slice(&[entry.method.code(), 0, 0, 0]);
    out.extend_from_slice(&u64::from(entry.offset).to_le_bytes());
    out.extend_from_slice(&entry.raw_len.to_le_bytes());
    out.extend_from_slice(&entry.stored_len.to_le_bytes());
    out
}

fn decode_entry(r: &mut Reader<'_>) -> Result<Entry, PackError> {
    let id = ChunkId(r.array()?);
    let method = Method::from_code(r.u8()?).ok_or(PackError::Foreign("a chunk's method is unknown"))?;
    r.take(3)?;
    let offset = u32::try_from(r.u64()?).map_err(|_| PackError::Damaged("an offset is too large"))?;
    Ok(Entry { id, method, offset, raw_len: r.u32()?, stored_len: r.u32()? })
}

/// A pack's last [`FOOTER`] bytes, read and held against the pack's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Where the trailer begins.
    pub entries_offset: u64,
    /// Bytes of the trailer.
    pub entries_len: u64,
    /// BLAKE3 of everything before the trailer.
    pub body_blake3: [u8; 32],
    entries_blake3: [u8; 32],
}

impl Footer {
    /// `bytes` are the last [`FOOTER`] of an object of `size` bytes.
    pub fn decode(bytes: &[u8], size: u64) -> Result<Self, PackError> {
        let mut r = Reader::new(bytes);
        let entries_offset = r.u64()?;
        let entries_len = u64::from(r.u32()?) * as_u64(ENTRY);
        r.take(4)?;
        let (body_blake3, entries_blake3) = (r.array()?, r.array()?);
        if r.array::<8>()? != *END_MAGIC {
            return Err(PackError::Damaged("it does not end as a pack does: cut short, or overwritten"));
        }
        if entries_offset.checked_add(entries_len + as_u64(FOOTER)) != Some(size) {
            return Err(PackError::Damaged("its lengths do not add up"));
        }
        Ok(Self { entries_offset, entries_len, body_blake3, entries_blake3 })
    }

    /// Reads the trailer that this footer describes.
    pub fn entries(&self, trailer: &[u8]) -> Result<Vec<Entry>, PackError> {
        if *blake3::hash(trailer).as_bytes() != self.entries_blake3 {
            return Err(PackError::Damaged("its trailer has another digest than its footer says"));
        }
        let mut r = Reader::new(trailer);
        let mut entries = Vec::with_capacity(trailer.len() / ENTRY);
        while r.left() > 0 {
            let entry = decode_entry(&mut r)?;
            if entry.end() > self.entries_offset {
                return Err(PackError::Damaged("a chunk reaches into the trailer"));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
