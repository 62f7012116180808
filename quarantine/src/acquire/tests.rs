#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
use std::{io, path::PathBuf};

use proptest::prelude::*;
use vestigo_model::{ItemId, SystemClock, Timestamp};

use super::*;
use crate::{
    chunk::{ChunkId, Kind},
    export,
    index::LayerIndex,
    manifest::Captured,
    source::{Source, Stamp},
    vault::{FolderVault, Key, Open},
};

const CHUNK: u32 = 4096;

struct Site {
    dir: tempfile::TempDir,
    acquirer: Acquirer,
}

fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let vault = Arc::new(FolderVault::open(&dir.path().join("vault"), Open::Create).unwrap());
    let known = Known::open(&dir.path().join("state/known.redb"), &vault.url()).unwrap();
    let store = Settings { chunk_size: CHUNK, pack_size: 20_000, level: 1, workers: 2, uploads: 2 };
    let policy =
        Policy { store, retention: Duration::from_secs(60), object_lock: LockMode::Off, pins: vec![], vault: None };
    let journals = Journals::new(&dir.path().join("state"));
    let acquirer = Acquirer::new(vault, known, journals, policy, Arc::new(SystemClock), Arc::default());
    Site { dir, acquirer }
}

impl Site {
    fn capture(&self, source: &dyn Source, domain: &Domain) -> Captured {
        let item = ItemId(uuid::Uuid::now_v7());
        self.acquirer.capture(&item, (0, 0), source, domain).unwrap()
    }

    fn index(&self, captured: &Captured) -> LayerIndex {
        let bytes = self.acquirer.vault.get(&Key::new(captured.index.key.clone()).unwrap()).unwrap();
        LayerIndex::decode(&bytes).unwrap()
    }

    fn back(&self, captured: &Captured) -> Vec<u8> {
        let out: PathBuf = self.dir.path().join(uuid::Uuid::new_v4().to_string());
        export::layer(&*self.acquirer.vault, captured, &out, 2, &|_| ()).unwrap();
        std::fs::read(&out).unwrap()
    }
}

/// A disk in memory, with holes, bad sectors and a mind of its own.
#[derive(Debug, Default)]
struct Memory {
    bytes: Vec<u8>,
    /// Stretches that were written; everything else is a hole.
    data: Vec<(u64, u64)>,
    bad: Vec<(u64, u64)>,
    stamps: Mutex<Vec<Stamp>>,
    /// Each reading gives other bytes than the one before.
    restless: Option<AtomicU64>,
}

impl Source for Memory {
    fn stamp(&self) -> io::Result<Stamp> {
        let still = Stamp { size: self.bytes.len() as u64, modified: Timestamp::from_nanos(1) };
        Ok(self.stamps.lock().unwrap().pop().unwrap_or(still))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn next_data(&self, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
        let later = self.data.iter().find(|(_, end)| *end > from);
        Ok(later.map(|(start, end)| ((*start).max(from), (*end).min(size))))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let (start, end) = (offset as usize, offset as usize + buffer.len());
        if self.bad.iter().any(|(s, e)| *s < end as u64 && offset < *e) {
            return Err(io::Error::from_raw_os_error(5));
        }
        buffer.copy_from_slice(&self.bytes[start..end]);
        if let Some(count) = &self.restless {
            buffer[0] = (count.fetch_add(1, Ordering::SeqCst) % 251) as u8;
        }
        Ok(())
    }
}

/// Random stretches of random bytes, sometimes zeros, sometimes repeated.
fn disk() -> impl Strategy<Value = Memory> {
    let stretch = (0u64..30_000, 1u64..20_000, prop_oneof![Just(0u8), any::<u8>()], any::<bool>());
    (prop::collection::vec(stretch, 0..6), 0u64..5000).prop_map(|(stretches, tail)| {
        let mut disk = Memory::default();
        for (gap, len, seed, same) in stretches {
            let start = disk.bytes.len() as u64 + gap;
            disk.bytes.resize(start as usize, 0);
            let mut part = vec![seed; len as usize];
            if !same && seed != 0 {
                blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut part);
            }
            disk.bytes.extend_from_slice(&part);
            disk.data.push((start, start + len));
        }
        let end = disk.bytes.len() + tail as usize;
        disk.bytes.resize(end, 0);
        disk
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_sparse_file_comes_back(disk in disk()) {
        let site = site();
        let captured = site.capture(&disk, &Domain::of_vo(None));
        prop_assert_eq!(captured.sha256.unwrap(), vestigo_model::Digest::of(&disk.bytes));
        prop_assert_eq!(site.back(&captured), disk.bytes.clone());
        let index = site.index(&captured);
        prop_assert_eq!(index.root(), captured.root.0);
        for piece in index.pieces() {
            let plain = &disk.bytes[piece.offset as usize..][..piece.len as usize];
            match piece.kind {
                Kind::Data => prop_assert_eq!(piece.data.unwrap().id, ChunkId::of(plain)),
                _ => prop_assert!(crate::chunk::is_zero(plain)),
            }
        }
    }
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn full(bytes: Vec<u8>) -> Memory {
    Memory { data: vec![(0, bytes.len() as u64)], bytes, ..Memory::default() }
}

#[test]
fn bad_sectors_are_zeros_and_said_to_be() {
    let site = site();
    let mut disk = full(noise(1, 40_960));
    // Half of chunk 1 (4 KiB blocks are what is given up), and all of chunks 4 and 5.
    disk.bad = vec![(5000, 5001), (16_384, 24_576)];
    let captured = site.capture(&disk, &Domain::site());
    assert_eq!(captured.chunks.unreadable, 3);
    let lost: Vec<_> = captured.unreadable.iter().map(|r| (r.offset, r.length)).collect();
    assert_eq!(lost, [(4096, 4096), (16_384, 8192)]);
    let mut expected = disk.bytes.clone();
    for (offset, length) in lost {
        expected[offset as usize..(offset + length) as usize].fill(0);
    }
    assert_eq!(site.back(&captured), expected);
}

#[test]
fn a_disk_that_changes_is_said_to_have() {
    let site = site();
    let disk = full(noise(2, 10_000));
    let stamp = |size, at| Stamp { size, modified: Timestamp::from_nanos(at) };
    *disk.stamps.lock().unwrap() = vec![stamp(10_001, 9), stamp(10_000, 8)];
    let captured = site.capture(&disk, &Domain::site());
    assert_eq!(captured.changed.len(), 2, "{:?}", captured.changed);
    assert!(captured.changed[0].contains("10000 to 10001"));
}

#[test]
fn the_same_base_is_stored_once_and_each_vo_keeps_to_itself() {
    let site = site();
    let base = full(noise(3, 100_000));
    assert_eq!(site.capture(&base, &Domain::site()).chunks.stored, 25);
    assert_eq!(site.capture(&base, &Domain::site()).chunks.stored, 0);
    let atlas = Domain::parse("vo/atlas").unwrap();
    assert_eq!(site.capture(&base, &atlas).chunks.stored, 25, "a VO must not learn what others have");
}

#[test]
fn equal_chunks_of_one_disk_are_stored_once() {
    let site = site();
    let disk = full(noise(4, 4096).repeat(64));
    let captured = site.capture(&disk, &Domain::site());
    assert_eq!((captured.chunks.data, captured.chunks.stored), (64, 1));
    assert_eq!(site.back(&captured), disk.bytes);
}

#[test]
fn a_vault_that_fails_stops_the_pipeline_with_its_own_words() {
    let site = site();
    let packs = site.dir.path().join("vault/packs");
    std::fs::write(&packs, "in the way").unwrap();
    let disk = full(noise(5, 2_000_000));
    let error = site.acquirer.capture(&ItemId(uuid::Uuid::now_v7()), (0, 0), &disk, &Domain::site()).unwrap_err();
    assert!(error.to_string().contains("vault") && error.to_string().contains("packs"), "{error}");
}

#[test]
fn told_to_stop_it_stops() {
    let site = site();
    site.acquirer.control.stop();
    let error = site
        .acquirer
        .capture(&ItemId(uuid::Uuid::now_v7()), (0, 0), &full(noise(6, 9000)), &Domain::site())
        .unwrap_err();
    assert!(error.is_stop(), "{error}");
}

/// What is stored must come back, whatever a second reading would give, and no SHA-256 of other bytes is recorded.
#[test]
fn a_disk_that_reads_differently_each_time_comes_back_as_it_was_stored() {
    let site = site();
    let disk = Memory { restless: Some(AtomicU64::new(1)), ..full(noise(7, 40_000)) };
    let captured = site.capture(&disk, &Domain::site());
    assert_eq!(captured.sha256, None);
    assert!(captured.changed.iter().any(|how| how.contains("SHA-256")), "{:?}", captured.changed);
    assert_eq!(site.back(&captured).len(), 40_000);
    // As early versions recorded it.
    let early = Captured { sha256: Some(vestigo_model::Digest::of(&disk.bytes)), ..captured.clone() };
    assert_eq!(site.back(&early).len(), 40_000);
    let still = Captured { changed: vec![], ..early };
    let out = site.dir.path().join("never");
    assert!(export::layer(&*site.acquirer.vault, &still, &out, 2, &|_| ()).is_err(), "that would be damage");
}
