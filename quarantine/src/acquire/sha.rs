//! The plain SHA-256 of a file, for outsiders. On a thread of its own with reads of its own: without CPU support it is ten
//! times slower than everything else and must not hold the pipeline back. The page cache makes the second read cheap.

use sha2::{Digest as _, Sha256};
use vestigo_model::Digest;

use super::{
    Control,
    layer::{LayerError, read_salvaging},
};
use crate::{codec::as_usize, source::Source};

const BLOCK: u64 = 1 << 20;

/// `useless` says that the pipeline has failed and nobody waits for the digest any more.
pub(super) fn digest(
    source: &dyn Source,
    size: u64,
    control: &Control,
    useless: &dyn Fn() -> bool,
) -> Result<Digest, LayerError> {
    let mut hasher = Sha256::new();
    let zeros = vec![0; as_usize(BLOCK)];
    let mut buffer = vec![0; as_usize(BLOCK)];
    let mut at = 0;
    while at < size {
        let (start, end) = source.next_data(at, size).map_err(LayerError::Read)?.unwrap_or((size, size));
        at = feed(start, at, control, useless, |len, _| {
            hasher.update(zeros.get(..len).unwrap_or_default());
        })?;
        at = feed(end, at, control, useless, |len, offset| {
            if let Some(block) = buffer.get_mut(..len) {
                read_salvaging(source, block, offset);
                hasher.update(&*block);
            }
        })?;
    }
    Ok(Digest(hasher.finalize().into()))
}

fn feed(
    end: u64,
    mut at: u64,
    control: &Control,
    useless: &dyn Fn() -> bool,
    mut take: impl FnMut(usize, u64),
) -> Result<u64, LayerError> {
    while at < end {
        if control.stopping() || useless() {
            return Err(LayerError::Stopped);
        }
        let len = (end - at).min(BLOCK);
        take(as_usize(len), at);
        at += len;
        control.beat();
    }
    Ok(at)
}
