//! The index of one layer: which chunk stands where, and in which pack its bytes are. Runs of holes cost eight bytes,
//! whatever their length; digests stand at a fixed stride, so a reader can find one without reading the rest.

use uuid::Uuid;

use crate::{
    chunk::{ChunkId, Kind, MAX_CHUNK, count_for},
    codec::{Reader, Short, as_u32, as_u64},
    pack::Method,
};

const MAGIC: &[u8; 8] = b"VSTGINDX";
const VERSION: u16 = 1;
/// Bytes before the first run.
pub const HEADER: usize = 96;

/// Why bytes are not an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The bytes end too early.
    #[error(transparent)]
    Short(#[from] Short),
    /// Not an index, or of a version this program does not know.
    #[error("not an index that this version reads: {0}")]
    Foreign(&'static str),
    /// The index contradicts itself.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
}

/// Neighbours of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The kind.
    pub kind: Kind,
    /// How many.
    pub count: u32,
}

/// A pack that the layer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackRef {
    /// Its name.
    pub id: Uuid,
    /// Whether it lies in the site's domain although the layer's own is another.
    pub site: bool,
}

/// A chunk of kind data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataChunk {
    /// Its id.
    pub id: ChunkId,
    /// Which of the index's packs.
    pub pack: u32,
    /// Where its record begins.
    pub offset: u32,
    /// Bytes of the payload.
    pub stored_len: u32,
    /// How the payload is stored.
    pub method: Method,
}

/// One layer, chunk by chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    /// Bytes per chunk; the last may be shorter.
    pub chunk_size: u32,
    /// Bytes of the file.
    pub image_size: u64,
    /// Kinds, in order.
    pub runs: Vec<Run>,
    /// Packs that are needed.
    pub packs: Vec<PackRef>,
    /// The data chunks, in order.
    pub data: Vec<DataChunk>,
}

/// One chunk of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where in the file.
    pub offset: u64,
    /// How long.
    pub len: u32,
    /// What.
    pub kind: Kind,
    /// Its bytes' place, for kind data.
    pub data: Option<&'a DataChunk>,
}

impl LayerIndex {
    /// Every chunk, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let kinds = self.runs.iter().flat_map(|run| std::iter::repeat_n(run.kind, run.count as usize));
        let mut data = self.data.iter();
        let size = u64::from(self.chunk_size);
        kinds.enumerate().map(move |(number, kind)| {
            let offset = as_u64(number) * size;
            let len = u32::try_from(self.image_size.saturating_sub(offset).min(size)).unwrap_or(self.chunk_size);
            Piece { offset, len, kind, data: if kind == Kind::Data { data.next() } else { None } }
        })
    }

    /// The layer's root: BLAKE3 over, for each chunk, its offset (64 bit, little-endian), its kind, and its id (zeros for
    /// every kind but data). Says nothing about packs: the same file has the same root in every vault.
    #[must_use]
    pub fn root(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for piece in self.pieces() {
            hasher.update(&piece.offset.to_le_bytes());
            hasher.update(&[piece.kind.code()]);
            hasher.update(&piece.data.map_or([0; 32], |d| d.id.0));
        }
        hasher.finalize().into()
    }

    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.runs.len() * 8 + self.packs.len() * 24 + self.data.len() * 48);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        // Id scheme 0: plain BLAKE3. Cipher 0: none.
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&self.chunk_size.to_le_bytes());
        out.extend_from_slice(&self.image_size.to_le_bytes());
        out.extend_from_slice(&as_u32(self.runs.len()).to_le_bytes());
        out.extend_from_slice(&as_u32(self.packs.len()).to_le_bytes());
        out.extend_from_slice(&as_u64(self.data.len()).to_le_bytes());
        out.extend_from_slice(&self.root());
        out.resize(HEADER, 0);
        for run in &self.runs {
            out.extend_from_slice(&[run.kind.code(), 0, 0, 0]);
            out.extend_from_slice(&run.count.to_le_bytes());
        }
        for pack in &self.packs {
            out.extend_from_slice(pack.id.as_bytes());
            out.extend_from_slice(&[u8::from(pack.site), 0, 0, 0, 0, 0, 0, 0]);
        }
        for chunk in &self.data {
            out.extend_from_slice(&chunk.id.0);
        }
        for chunk in &self.data {
            out.extend_from_slice(&chunk.pack.to_le_bytes());
            out.extend_from_slice(&chunk.offset.to_le_bytes());
            out.extend_from_slice(&chunk.stored_len.to_le_bytes());
            out.extend_from_slice(&[chunk.method.code(), 0, 0, 0]);
        }
        out
    }

    /// Reads a whole index and holds its parts against each other and against the root in its header.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let (head, mut body) = Head::decode(bytes)?;
        let runs = (0..head.runs).map(|_| decode_run(&mut body)).collect::<Result<Vec<_>, _>>()?;
        let packs = (0..head.packs).map(|_| decode_pack(&mut body)).collect::<Result<Vec<_>, _>>()?;
        let ids = (0..head.data).map(|_| body.array().map(ChunkId)).collect::<Result<Vec<_>, _>>()?;
        let data = ids.into_iter().map(|id| decode_place(&mut body, id, head.packs)).collect::<Result<Vec<_>, _>>()?;
        let index = Self { chunk_size: head.chunk_size, image_size: head.image_size, runs, packs, data };
        index.check_counts()?;
        if index.root() != head.root {
            return Err(IndexError::Damaged("its chunks do not give the root in its header"));
        }
        Ok(index)
    }

    fn check_counts(&self) -> Result<(), IndexError> {
        let chunks: u64 = self.runs.iter().map(|run| u64::from(run.count)).sum();
        if chunks != count_for(self.image_size, self.chunk_size) {
            return Err(IndexError::Damaged("its runs do not cover the file"));
        }
        let data: u64 = self.runs.iter().filter(|run| run.kind == Kind::Data).map(|run| u64::from(run.count)).sum();
        if data != as_u64(self.data.len()) {
            return Err(IndexError::Damaged("it has not one id for each data chunk"));
        }
        Ok(())
    }
}

struct Head {
    chunk_size: u32,
    image_size: u64,
    runs: u32,
    packs: u32,
    data: u64,
    root: [u8; 32],
}

impl Head {
    fn decode(bytes: &[u8]) -> Result<(Self, Reader<'_>), IndexError> {
        let mut r = Reader::new(bytes);
        let header = r.take(HEADER)?;
        let mut h = Reader::new(header);
        if h.array::<8>()? != *MAGIC {
            return Err(IndexError::Foreign("the first bytes are not VSTGINDX"));
        }
        if h.u16()? != VERSION {
            return Err(IndexError::Foreign("its version is unknown"));
        }
        if (h.u8()?, h.u8()?) != (0, 0) {
            return Err(IndexError::Foreign("its id scheme or cipher is unknown"));
        }
        let (chunk_size, image_size, runs, packs) = (h.u32()?, h.u64()?, h.u32()?, h.u32()?);
        let head = Self { chunk_size, image_size, runs, packs, data: h.u64()?, root: h.array()? };
        if chunk_size == 0 || chunk_size > MAX_CHUNK {
            return Err(IndexError::Damaged("its chunk size is not possible"));
        }
        // Checked before anything is read, so that a count cannot ask for more memory than the object has bytes.
        let wanted = u128::from(runs) * 8 + u128::from(packs) * 24 + u128::from(head.data) * 48;
        if wanted != r.left() as u128 {
            return Err(IndexError::Damaged("its length is not what its header says"));
        }
        Ok((head, r))
    }
}

fn decode_run(r: &mut Reader<'_>) -> Result<Run, IndexError> {
    let kind = Kind::from_code(r.u8()?).ok_or(IndexError::Foreign("a kind of chunk is unknown"))?;
    r.take(3)?;
    Ok(Run { kind, count: r.u32()? })
}

fn decode_pack(r: &mut Reader<'_>) -> Result<PackRef, IndexError> {
    let id = Uuid::from_bytes(r.array()?);
    let site = r.u8()? == 1;
    r.take(7)?;
    Ok(PackRef { id, site })
}

fn decode_place(r: &mut Reader<'_>, id: ChunkId, packs: u32) -> Result<DataChunk, IndexError> {
    let (pack, offset, stored_len) = (r.u32()?, r.u32()?, r.u32()?);
    let method = Method::from_code(r.u8()?).ok_or(IndexError::Foreign("a chunk's method is unknown"))?;
    r.take(3)?;
    if pack >= packs {
        return Err(IndexError::Damaged("a chunk lies in a pack that is not listed"));
    }
    Ok(DataChunk { id, pack, offset, stored_len, method })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
    use super::*;
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Data), Just(Kind::Hole), Just(Kind::Zero), Just(Kind::Unreadable)]
    }

    prop_compose! {
        fn index()(runs in prop::collection::vec((kind(), 1u32..5), 0..20), tail in 1u64..=4096) -> LayerIndex {
            let runs: Vec<Run> = runs.into_iter().map(|(kind, count)| Run { kind, count }).collect();
            let chunks: u64 = runs.iter().map(|r| u64::from(r.count)).sum();
            let data: u32 = runs.iter().filter(|r| r.kind == Kind::Data).map(|r| r.count).sum();
            let data = (0..data).map(|n| DataChunk {
                id: ChunkId::of(&n.to_le_bytes()), pack: n % 2, offset: 128 + n * 100, stored_len: 56, method: Method::Zstd,
            }).collect();
            let image_size = if chunks == 0 { 0 } else { (chunks - 1) * 4096 + tail };
            let packs = vec![PackRef { id: Uuid::from_u128(1), site: true }, PackRef { id: Uuid::from_u128(2), site: false }];
            LayerIndex { chunk_size: 4096, image_size, runs, packs, data }
        }
    }

    proptest! {
        #[test]
        fn round_trips(index in index()) {
            prop_assert_eq!(LayerIndex::decode(&index.encode()).unwrap(), index);
        }

        #[test]
        fn pieces_cover_the_file_once(index in index()) {
            let mut at = 0;
            for piece in index.pieces() {
                prop_assert_eq!(piece.offset, at);
                prop_assert_eq!(piece.kind == Kind::Data, piece.data.is_some());
                at += u64::from(piece.len);
            }
            prop_assert_eq!(at, index.image_size);
        }

        #[test]
        fn any_flipped_bit_of_the_chunk_list_is_noticed(index in index(), bit in 0usize..768) {
            let mut bytes = index.encode();
            // The sizes and the spare bytes of the header are not in the root; the manifest holds a digest of the whole object.
            prop_assume!(!(72 * 8..96 * 8).contains(&bit));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(LayerIndex::decode(&bytes).is_err() || (12..24).contains(&(bit / 8)));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = LayerIndex::decode(&bytes);
        }
    }
}
