//! One file through the pipeline: read → zero? → BLAKE3 → known? → zstd → pack → vault.
//!
//! ```text
//! reader ─work─► workers (one per core) ─done─► packer ─packs─► uploaders
//!                                                              └─► known
//! ```
//! Every queue is bounded, so memory does not depend on the size of the disk; what grows with it are 33 bytes per MiB of
//! data for the list of digests. A failure anywhere closes the queues towards the reader and the first error is returned.

use std::{
    collections::HashSet,
    io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use vestigo_model::{Digest, ItemId};

use super::{AcquireError, Acquirer, Control, sha};
use crate::{
    chunk::{ChunkId, Domain, Kind, is_zero},
    codec::{as_u32, as_u64, as_usize},
    index::{DataChunk, LayerIndex, PackRef, Run},
    known::KnownError,
    layout,
    manifest::{Blake3, ByteRange, Captured, Counts, ObjectRef},
    pack::{self, Builder, Finished, Method, PackError},
    source::{Source, Stamp},
    vault::{Put, Vault, VaultError},
};

/// Granularity in which a bad spot is narrowed down.
const SALVAGE: usize = 4096;

/// Why a layer could not be acquired.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The daemon is told to stop.
    #[error("stopped in the middle; it goes on after the next start")]
    Stopped,
    /// The file cannot be read at all.
    #[error("cannot read the disk file: {0}")]
    Read(io::Error),
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The cache failed.
    #[error(transparent)]
    Known(#[from] KnownError),
    /// A chunk cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A name that is never given twice was taken.
    #[error("the vault already holds an object {0} with other content")]
    Taken(String),
    /// A mistake of this program.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

/// Chunks, packs, threads.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bytes per chunk.
    pub chunk_size: u32,
    /// Bytes after which a pack is closed.
    pub pack_size: usize,
    /// zstd level.
    pub level: i32,
    /// Threads that digest and compress.
    pub workers: usize,
    /// Packs in flight.
    pub uploads: usize,
}

/// Reads as much as can be read; what cannot is left zero and returned. A file that shrank counts as unreadable there.
pub(super) fn read_salvaging(source: &dyn Source, buffer: &mut [u8], offset: u64) -> Vec<ByteRange> {
    if source.read_at(buffer, offset).is_ok() {
        return Vec::new();
    }
    let mut bad: Vec<ByteRange> = Vec::new();
    for (number, block) in buffer.chunks_mut(SALVAGE).enumerate() {
        let at = offset + as_u64(number * SALVAGE);
        if source.read_at(block, at).is_err() {
            block.fill(0);
            note(&mut bad, ByteRange { offset: at, length: as_u64(block.len()) });
        }
    }
    bad
}

fn note(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    match ranges.last_mut() {
        Some(last) if last.offset + last.length == range.offset => last.length += range.length,
        _ => ranges.push(range),
    }
}

/// What the reader found, before anybody looked into the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Hole,
    Read,
    Unreadable,
}

#[derive(Debug, Default)]
struct Plan {
    runs: Vec<(Seen, u64)>,
    unreadable: Vec<ByteRange>,
}

impl Plan {
    fn push(&mut self, seen: Seen, count: u64) {
        match self.runs.last_mut() {
            Some((last, total)) if *last == seen => *total += count,
            _ if count > 0 => self.runs.push((seen, count)),
            _ => {}
        }
    }
}

struct Work {
    number: usize,
    bytes: Vec<u8>,
}

struct Done {
    number: usize,
    /// `None`: all zero.
    id: Option<ChunkId>,
    /// For chunks that the vault does not have: how, how long, the payload.
    fresh: Option<(Method, u32, Vec<u8>)>,
}

struct Shared<'a> {
    owner: &'a Acquirer,
    source: &'a dyn Source,
    domain: &'a Domain,
    settings: Settings,
    /// Chunks on their way to the vault: the second of two equal neighbours must not be stored as well.
    claimed: Mutex<HashSet<ChunkId>>,
    failure: Mutex<Option<LayerError>>,
    stored: AtomicU64,
    stored_bytes: AtomicU64,
}

impl Shared<'_> {
    fn fail(&self, error: LayerError) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(error);
        }
    }

    fn failed(&self) -> bool {
        self.failure.lock().map_or(true, |failure| failure.is_some())
    }

    fn control(&self) -> &Control {
        &self.owner.control
    }

    fn read_all(&self, size: u64, out: &Sender<Work>) -> Result<Plan, LayerError> {
        let chunk = u64::from(self.settings.chunk_size);
        let (mut plan, mut next, mut number) = (Plan::default(), 0, 0);
        while let Some((start, end)) = self.source.next_data(next * chunk, size).map_err(LayerError::Read)? {
            let first = (start / chunk).max(next);
            plan.push(Seen::Hole, first - next);
            next = end.div_ceil(chunk);
            for index in first..next {
                if self.control().stopping() {
                    return Err(LayerError::Stopped);
                }
                let offset = index * chunk;
                let mut bytes = vec![0; as_usize(chunk.min(size - offset))];
                let bad = read_salvaging(self.source, &mut bytes, offset);
                let lost: u64 = bad.iter().map(|range| range.length).sum();
                bad.into_iter().for_each(|range| note(&mut plan.unreadable, range));
                if lost == as_u64(bytes.len()) {
                    plan.push(Seen::Unreadable, 1);
                } else {
                    plan.push(Seen::Read, 1);
                    if out.send(Work { number, bytes }).is_err() || self.failed() {
                        return Ok(plan);
                    }
                    number += 1;
                }
                self.control().beat();
            }
        }
        plan.push(Seen::Hole, size.div_ceil(chunk).saturating_sub(next));
        Ok(plan)
    }

    fn examine(&self, work: Work) -> Result<Done, LayerError> {
        let Work { number, bytes } = work;
        if is_zero(&bytes) {
            return Ok(Done { number, id: None, fresh: None });
        }
        let id = ChunkId::of(&bytes);
        let mut done = Done { number, id: Some(id), fresh: None };
        // Claim first, ask the cache second: the uploaders note a pack there before they drop its claims.
        let claim = || self.claimed.lock().is_ok_and(|mut claimed| claimed.insert(id));
        if claim() {
            if self.owner.known.lookup(self.domain, &id)?.is_some() {
                self.release([id]);
            } else {
                let (method, payload) = pack::encode_chunk(self.settings.level, &bytes)?;
                done.fresh = Some((method, as_u32(bytes.len()), payload));
            }
        }
        Ok(done)
    }

    fn release(&self, ids: impl IntoIterator<Item = ChunkId>) {
        if let Ok(mut claimed) = self.claimed.lock() {
            for id in ids {
                claimed.remove(&id);
            }
        }
    }

    fn work(&self, input: &Receiver<Work>, out: &Sender<Done>) {
        for work in input {
            match self.examine(work) {
                Ok(done) => {
                    if out.send(done).is_err() {
                        return;
                    }
                }
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Collects the digests in order and fills packs. Returns one entry per chunk that was read.
    fn pack_all(&self, input: &Receiver<Done>, out: &Sender<Finished>) -> Vec<Option<ChunkId>> {
        let mut slots = Vec::new();
        let mut builder = Builder::new(self.domain.clone());
        for Done { number, id, fresh } in input {
            if slots.len() <= number {
                slots.resize(number + 1, None);
            }
            if let Some(slot) = slots.get_mut(number) {
                *slot = id;
            }
            let (Some(id), Some((method, raw_len, payload))) = (id, fresh) else { continue };
            builder.push(id, method, raw_len, &payload);
            if builder.len() >= self.settings.pack_size {
                let full = std::mem::replace(&mut builder, Builder::new(self.domain.clone()));
                if out.send(full.finish()).is_err() {
                    return slots;
                }
            }
        }
        if !builder.is_empty() && !self.failed() {
            let _ = out.send(builder.finish());
        }
        slots
    }

    fn upload_all(&self, input: &Receiver<Finished>) {
        for pack in input {
            if let Err(error) = self.upload(pack) {
                return self.fail(error);
            }
            if self.control().stopping() {
                return self.fail(LayerError::Stopped);
            }
        }
    }

    fn upload(&self, pack: Finished) -> Result<(), LayerError> {
        let key = layout::pack(self.domain, &pack.id)?;
        put_ours(&*self.owner.vault, &key, pack.bytes.clone())?;
        self.owner.known.insert_pack(self.domain, pack.id, &pack.entries)?;
        if let Ok(mut here) = self.owner.stored_here.lock() {
            here.insert(pack.id);
        }
        self.release(pack.entries.iter().map(|entry| entry.id));
        self.stored.fetch_add(as_u64(pack.entries.len()), Ordering::Relaxed);
        self.stored_bytes.fetch_add(as_u64(pack.bytes.len()), Ordering::Relaxed);
        self.control().beat();
        Ok(())
    }

    fn run(&self, size: u64) -> Result<(Plan, Vec<Option<ChunkId>>, sha::Whole), LayerError> {
        let depth = self.settings.workers;
        let chunk = u64::from(self.settings.chunk_size);
        let (work_tx, work_rx) = bounded(depth);
        let (done_tx, done_rx) = bounded(depth);
        let (pack_tx, pack_rx) = bounded(0);
        let outcome = thread::scope(|scope| {
            let sha = scope.spawn(|| sha::digest(self.source, (size, chunk), self.control(), &|| self.failed()));
            let reader = scope.spawn(move || self.read_all(size, &work_tx).map_err(|error| self.fail(error)));
            for _ in 0..self.settings.workers {
                let (input, out) = (work_rx.clone(), done_tx.clone());
                scope.spawn(move || self.work(&input, &out));
            }
            drop((work_rx, done_tx));
            for _ in 0..self.settings.uploads {
                let input = pack_rx.clone();
                scope.spawn(move || self.upload_all(&input));
            }
            drop(pack_rx);
            let slots = self.pack_all(&done_rx, &pack_tx);
            drop((done_rx, pack_tx));
            let crashed = |_| LayerError::Internal("a pipeline thread crashed");
            let plan = reader.join().map_err(crashed)?;
            let digest = sha.join().map_err(crashed)?;
            let plan = plan.map_err(|()| LayerError::Internal("the reader failed without saying why"))?;
            Ok((plan, slots, digest?))
        });
        match self.failure.lock().ok().and_then(|mut failure| failure.take()) {
            Some(error) => Err(error),
            None => outcome,
        }
    }

    fn index(&self, size: u64, plan: &Plan, slots: Vec<Option<ChunkId>>) -> Result<LayerIndex, LayerError> {
        let mut index = LayerIndex {
            chunk_size: self.settings.chunk_size,
            image_size: size,
            runs: vec![],
            packs: vec![],
            data: vec![],
        };
        let mut places = std::collections::HashMap::new();
        let mut slots = slots.into_iter();
        for (seen, count) in &plan.runs {
            match seen {
                Seen::Hole => push_run(&mut index.runs, Kind::Hole, *count),
                Seen::Unreadable => push_run(&mut index.runs, Kind::Unreadable, *count),
                Seen::Read => {
                    for slot in slots.by_ref().take(as_usize(*count)) {
                        push_run(&mut index.runs, if slot.is_some() { Kind::Data } else { Kind::Zero }, 1);
                        let Some(id) = slot else { continue };
                        let found = self.owner.known.lookup(self.domain, &id)?;
                        let place = found.ok_or(LayerError::Internal("a chunk that was stored is not known"))?;
                        let pack = *places.entry(place.pack).or_insert_with(|| {
                            index.packs.push(PackRef { id: place.pack, site: false });
                            as_u32(index.packs.len() - 1)
                        });
                        let (offset, stored_len, method) = (place.offset, place.stored_len, place.method);
                        index.data.push(DataChunk { id, pack, offset, stored_len, method });
                    }
                }
            }
        }
        Ok(index)
    }
}

fn push_run(runs: &mut Vec<Run>, kind: Kind, mut count: u64) {
    while count > 0 {
        match runs.last_mut() {
            Some(last) if last.kind == kind && last.count < u32::MAX => {
                let room = count.min(u64::from(u32::MAX - last.count));
                last.count += u32::try_from(room).unwrap_or(0);
                count -= room;
            }
            _ => runs.push(Run { kind, count: 0 }),
        }
    }
}

/// Stores an object whose name only we give. If it exists, it must be ours: a put whose answer was lost.
pub(super) fn put_ours(vault: &dyn Vault, key: &crate::vault::Key, bytes: Bytes) -> Result<(), LayerError> {
    if vault.put_new(key, bytes.clone())? == Put::Exists && vault.get(key)? != bytes {
        return Err(LayerError::Taken(key.to_string()));
    }
    Ok(())
}

fn changes(before: Stamp, after: Stamp) -> Vec<String> {
    let mut found = Vec::new();
    if before.size != after.size {
        found.push(format!("its size went from {} to {} bytes", before.size, after.size));
    }
    if before.modified != after.modified {
        found.push(format!("it was written at {}", after.modified));
    }
    found
}

fn count(index: &LayerIndex) -> Counts {
    let mut counts = Counts::default();
    for run in &index.runs {
        let n = u64::from(run.count);
        match run.kind {
            Kind::Data => counts.data += n,
            Kind::Hole => counts.hole += n,
            Kind::Zero => counts.zero += n,
            Kind::Unreadable => counts.unreadable += n,
        }
    }
    counts
}

impl Acquirer {
    /// Acquires one file and stores its index.
    pub(super) fn capture(
        &self,
        item: &ItemId,
        (disk, layer): (usize, usize),
        source: &dyn Source,
        domain: &Domain,
    ) -> Result<Captured, AcquireError> {
        let started = self.clock.now();
        let before = source.stamp().map_err(LayerError::Read)?;
        let shared = Shared {
            owner: self,
            source,
            domain,
            settings: self.policy.store,
            claimed: Mutex::default(),
            failure: Mutex::default(),
            stored: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
        };
        let (plan, slots, whole) = shared.run(before.size)?;
        let index = shared.index(before.size, &plan, slots)?;
        let mut changed = changes(before, source.stamp().map_err(LayerError::Read)?);
        let sha256 = (whole.content == sha::Content::of(&index)).then_some(whole.sha256);
        if sha256.is_none() {
            changed.push("read again for its SHA-256 it gave other bytes, so none is recorded".to_owned());
        }
        let bytes = Bytes::from(index.encode());
        let key = layout::index(item, disk, layer, blake3::hash(&bytes).as_bytes())?;
        let index_ref = ObjectRef { key: key.to_string(), size: as_u64(bytes.len()), sha256: Digest::of(&bytes) };
        put_ours(&*self.vault, &key, bytes)?;
        let chunks = Counts {
            stored: shared.stored.load(Ordering::Relaxed),
            stored_bytes: shared.stored_bytes.load(Ordering::Relaxed),
            ..count(&index)
        };
        Ok(Captured {
            size: before.size,
            allocated: source.allocated().map_err(LayerError::Read)?,
            modified: before.modified,
            chunk_size: index.chunk_size,
            domain: domain.to_string(),
            root: Blake3(index.root()),
            sha256,
            index: index_ref,
            chunks,
            unreadable: plan.unreadable,
            changed,
            started,
            finished: self.clock.now(),
        })
    }

    /// The packs that a captured layer needs, from its index as the vault gives it back; `None` when the index is gone.
    pub(super) fn packs_of(&self, captured: &Captured, item: &ItemId) -> Result<Option<Vec<PackRef>>, AcquireError> {
        let key = crate::vault::Key::new(captured.index.key.clone())?;
        match self.vault.get(&key) {
            Ok(bytes) => {
                LayerIndex::decode(&bytes).map(|index| Some(index.packs)).map_err(|_| AcquireError::Conflict(*item))
            }
            Err(VaultError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
