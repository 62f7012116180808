//! Reading chunks back: neighbours in one request, several requests at once, in order, every byte checked against the
//! digest it was stored under. The store may lose or alter what it holds; a caller never sees unchecked bytes.

use std::thread;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use uuid::Uuid;

use crate::{
    chunk::{ChunkId, Domain},
    codec::{as_u64, as_usize},
    index::{DataChunk, LayerIndex, Piece},
    layout,
    pack::{self, Entry, FOOTER, Footer, PackError, RECORD},
    vault::{Key, Vault, VaultError},
};

/// Plain bytes fetched with one request, at most.
const GROUP: u64 = 4 << 20;
/// A pack's footer is fetched with as much of the trailer as this holds: for most packs one request does.
const TAIL: u64 = 16 << 10;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// What it gave is damaged.
    #[error("{key}: {error}")]
    Pack {
        /// Which object.
        key: String,
        /// How.
        error: PackError,
    },
}

/// What is wrong with a chunk in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The pack is gone.
    #[error("pack {0} is missing")]
    MissingPack(String),
    /// The pack ends before the chunk does.
    #[error("pack {0} is cut short")]
    TruncatedPack(String),
    /// The chunk's bytes are not those that were stored.
    #[error("pack {pack}, record at {offset}: {why}")]
    Altered {
        /// Which pack.
        pack: String,
        /// Where in it.
        offset: u32,
        /// How it shows.
        why: String,
    },
}

/// A pack's footer, checked against its size, and its trailer.
pub fn pack_trailer(vault: &dyn Vault, key: &Key) -> Result<(Footer, Vec<Entry>), FetchError> {
    let damaged = |error: PackError| FetchError::Pack { key: key.to_string(), error };
    let size = vault.size(key)?.ok_or_else(|| VaultError::NotFound(key.to_string()))?;
    let tail_len = size.min(TAIL);
    let tail = vault.get_range(key, size - tail_len, tail_len)?;
    let split =
        tail.len().checked_sub(FOOTER).ok_or_else(|| damaged(PackError::Damaged("it is too short to be a pack")))?;
    let (before, footer) = tail.split_at(split);
    let footer = Footer::decode(footer, size).map_err(damaged)?;
    let wanted = as_usize(footer.entries_len);
    let entries = match before.len().checked_sub(wanted) {
        Some(start) => footer.entries(before.get(start..).unwrap_or_default()),
        None => footer.entries(&vault.get_range(key, footer.entries_offset, footer.entries_len)?),
    };
    Ok((footer, entries.map_err(damaged)?))
}

/// What a pack says that it holds.
pub fn pack_entries(vault: &dyn Vault, key: &Key) -> Result<Vec<Entry>, FetchError> {
    pack_trailer(vault, key).map(|(_, entries)| entries)
}

/// Chunks that lie one behind the other in one pack.
struct Group<'a> {
    pack: u32,
    pieces: Vec<(Piece<'a>, DataChunk)>,
}

impl Group<'_> {
    fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |(_, chunk)| record_end(chunk))
    }

    fn raw(&self) -> u64 {
        self.pieces.iter().map(|(piece, _)| u64::from(piece.len)).sum()
    }
}

fn record_end(chunk: &DataChunk) -> u64 {
    u64::from(chunk.offset) + as_u64(RECORD) + u64::from(chunk.stored_len)
}

type Fetched = Result<Vec<Result<Vec<u8>, Fault>>, VaultError>;

enum Next<'a> {
    Gap(Piece<'a>),
    Group(Vec<Piece<'a>>, Receiver<Fetched>),
}

struct Task<'a> {
    group: Group<'a>,
    answer: Sender<Fetched>,
}

/// Reads layers.
pub struct Reader<'a> {
    /// The vault.
    pub vault: &'a dyn Vault,
    /// The layer's index.
    pub index: &'a LayerIndex,
    /// The layer's domain.
    pub domain: &'a Domain,
    /// Requests at once.
    pub threads: usize,
}

/// What the caller of [`Reader::read`] is given for a piece: bytes for data, `None` for the kinds that have none.
pub type Content = Option<Result<Vec<u8>, Fault>>;

impl Reader<'_> {
    /// The key of one of the index's packs.
    pub fn pack_key(&self, pack: u32) -> Result<Key, VaultError> {
        let found = self.index.packs.get(pack as usize).copied();
        let (id, site) = found.map_or((Uuid::nil(), false), |p| (p.id, p.site));
        layout::pack(if site { &SITE } else { self.domain }, &id)
    }

    /// Gives every wanted piece to `visit`, in order. An error of the vault that is no finding (it does not answer, it
    /// refuses us) and an error of `visit` end the reading.
    pub fn read<E: From<VaultError>>(
        &self,
        mut wanted: impl FnMut(&Piece<'_>) -> bool + Send,
        mut visit: impl FnMut(Piece<'_>, Content) -> Result<(), E>,
    ) -> Result<(), E> {
        let threads = self.threads.max(1);
        let (task_tx, task_rx) = bounded::<Task<'_>>(threads);
        let (next_tx, next_rx) = bounded::<Next<'_>>(threads * 2);
        thread::scope(|scope| {
            scope.spawn(move || plan(self.index.pieces().filter(|p| wanted(p)), &task_tx, &next_tx));
            for _ in 0..threads {
                let tasks = task_rx.clone();
                scope.spawn(move || {
                    for Task { group, answer } in tasks {
                        let _ = answer.send(self.fetch(&group));
                    }
                });
            }
            drop(task_rx);
            for next in next_rx {
                match next {
                    Next::Gap(piece) => visit(piece, None)?,
                    Next::Group(pieces, answer) => {
                        let gone = |_| VaultError::Unavailable("a reading thread crashed".to_owned());
                        for (piece, content) in pieces.into_iter().zip(answer.recv().map_err(gone)??) {
                            visit(piece, Some(content))?;
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn fetch(&self, group: &Group<'_>) -> Fetched {
        let key = self.pack_key(group.pack)?;
        let start = group.pieces.first().map_or(0, |(_, chunk)| u64::from(chunk.offset));
        let bytes = match self.vault.get_range(&key, start, group.end() - start) {
            Ok(bytes) => bytes,
            Err(VaultError::NotFound(_)) => return Ok(same(group, &Fault::MissingPack(key.to_string()))),
            // One chunk alone may still be whole: look at each.
            Err(VaultError::TooShort { .. }) if group.pieces.len() > 1 => return self.fetch_each(group),
            Err(VaultError::TooShort { .. }) => return Ok(same(group, &Fault::TruncatedPack(key.to_string()))),
            Err(error) => return Err(error),
        };
        Ok(group.pieces.iter().map(|(piece, chunk)| open_chunk(&key, &bytes, start, piece, chunk)).collect())
    }

    fn fetch_each(&self, group: &Group<'_>) -> Fetched {
        let one = |at: &(Piece<'_>, DataChunk)| self.fetch(&Group { pack: group.pack, pieces: vec![*at] });
        let all: Result<Vec<_>, _> = group.pieces.iter().map(one).collect();
        Ok(all?.into_iter().flatten().collect())
    }
}

static SITE: std::sync::LazyLock<Domain> = std::sync::LazyLock::new(Domain::site);

fn same(group: &Group<'_>, fault: &Fault) -> Vec<Result<Vec<u8>, Fault>> {
    group.pieces.iter().map(|_| Err(fault.clone())).collect()
}

fn plan<'a>(pieces: impl Iterator<Item = Piece<'a>>, tasks: &Sender<Task<'a>>, next: &Sender<Next<'a>>) {
    let mut open: Option<Group<'a>> = None;
    let flush = |group: Option<Group<'a>>| -> bool {
        let Some(group) = group else { return true };
        let (answer, result) = bounded(1);
        let pieces = group.pieces.iter().map(|(piece, _)| *piece).collect();
        tasks.send(Task { group, answer }).is_ok() && next.send(Next::Group(pieces, result)).is_ok()
    };
    for piece in pieces {
        let Some(chunk) = piece.data.copied() else {
            if !flush(open.take()) || next.send(Next::Gap(piece)).is_err() {
                return;
            }
            continue;
        };
        match &mut open {
            Some(group)
                if group.pack == chunk.pack
                    && group.end() == u64::from(chunk.offset)
                    && group.raw() + u64::from(piece.len) <= GROUP =>
            {
                group.pieces.push((piece, chunk));
            }
            _ => {
                let full = open.replace(Group { pack: chunk.pack, pieces: vec![(piece, chunk)] });
                if !flush(full) {
                    return;
                }
            }
        }
    }
    flush(open.take());
}

/// The chunk in a stretch of its pack: record, payload and digest must all be what the index says.
fn open_chunk(key: &Key, bytes: &Bytes, start: u64, piece: &Piece<'_>, chunk: &DataChunk) -> Result<Vec<u8>, Fault> {
    let altered = |why: String| Fault::Altered { pack: key.to_string(), offset: chunk.offset, why };
    let from = as_usize(u64::from(chunk.offset) - start);
    let to = as_usize(record_end(chunk) - start);
    let record = bytes.get(from..to).ok_or_else(|| Fault::TruncatedPack(key.to_string()))?;
    let (head, payload) = record.split_at_checked(RECORD).ok_or_else(|| Fault::TruncatedPack(key.to_string()))?;
    let entry = pack::decode_record(head, chunk.offset).map_err(|e| altered(e.to_string()))?;
    let said = Entry {
        id: chunk.id,
        method: chunk.method,
        offset: chunk.offset,
        raw_len: piece.len,
        stored_len: chunk.stored_len,
    };
    if entry != said {
        return Err(altered("the record is not the one that the index names".to_owned()));
    }
    let raw = pack::decode_chunk(chunk.method, payload, piece.len).map_err(|e| altered(e.to_string()))?;
    if ChunkId::of(&raw) == chunk.id { Ok(raw) } else { Err(altered("the chunk's BLAKE3 is another".to_owned())) }
}
