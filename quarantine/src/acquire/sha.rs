//! The plain SHA-256 of a file, for outsiders. On a thread of its own with reads of its own: without CPU support it is ten
//! times slower than everything else and must not hold the pipeline back. The page cache makes the second read cheap; each
//! chunk's BLAKE3 is computed along with it, so that a digest of other bytes than those that were stored is never recorded.

use sha2::{Digest as _, Sha256};
use vestigo_model::Digest;

use super::{
    Control,
    layer::{LayerError, read_salvaging},
};
use crate::{
    chunk::{ChunkId, is_zero},
    codec::as_usize,
    index::LayerIndex,
    source::Source,
};

/// Tells whether two readings of a file gave the same bytes, whatever was a hole in either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content([u8; 32]);

impl Content {
    /// What is stored.
    pub(super) fn of(index: &LayerIndex) -> Self {
        let mut hasher = blake3::Hasher::new();
        for piece in index.pieces() {
            hasher.update(&piece.data.map_or([0; 32], |chunk| chunk.id.0));
        }
        Self(hasher.finalize().into())
    }
}

/// The file's SHA-256, and the bytes that it is of.
pub(super) struct Whole {
    pub(super) sha256: Digest,
    pub(super) content: Content,
}

/// `useless` says that the pipeline has failed and nobody waits for the digest any more.
pub(super) fn digest(
    source: &dyn Source,
    (size, chunk): (u64, u64),
    control: &Control,
    useless: &dyn Fn() -> bool,
) -> Result<Whole, LayerError> {
    let mut hasher = Sha256::new();
    let mut content = blake3::Hasher::new();
    let zeros = vec![0; as_usize(chunk)];
    let mut buffer = vec![0; as_usize(chunk)];
    // The stretch of data that is not behind us yet.
    let mut data = (0, 0);
    let mut at = 0;
    while at < size {
        if control.stopping() || useless() {
            return Err(LayerError::Stopped);
        }
        let len = chunk.min(size - at);
        if data.1 <= at {
            data = source.next_data(at, size).map_err(LayerError::Read)?.unwrap_or((size, size));
        }
        let mut id = [0; 32];
        let block = if data.0 >= at + len { zeros.get(..as_usize(len)) } else { None };
        match (block, buffer.get_mut(..as_usize(len))) {
            (None, Some(block)) => {
                read_salvaging(source, block, at);
                hasher.update(&*block);
                if !is_zero(block) {
                    id = ChunkId::of(block).0;
                }
            }
            (hole, _) => hasher.update(hole.unwrap_or_default()),
        }
        content.update(&id);
        at += len;
        control.beat();
    }
    Ok(Whole { sha256: Digest(hasher.finalize().into()), content: Content(content.finalize().into()) })
}
