//! Segments of a ledger on their way into a vault: outages, lies, other people's objects, and what is changed on the disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quarantine::{
    acquire::Control,
    ship::{Round, Shipper},
    vault::{FolderVault, Key, Open, Put, Vault, VaultError, Visit, probe::Capabilities},
};
use support::noise;
use vestigo_model::{Digest, Receipt, SystemClock, Timestamp};

/// A folder vault that can be away, lose what it is given, and flip a bit of it.
struct Moody {
    inner: FolderVault,
    away: AtomicBool,
    loses: AtomicBool,
    flips: AtomicBool,
    puts: AtomicUsize,
}

impl Moody {
    fn up(&self) -> Result<(), VaultError> {
        let away = self.away.load(Ordering::SeqCst);
        if away { Err(VaultError::Unavailable("the store is away".to_owned())) } else { Ok(()) }
    }
}

impl Vault for Moody {
    fn url(&self) -> String {
        self.inner.url()
    }
    fn put_new(&self, key: &Key, bytes: Bytes) -> Result<Put, VaultError> {
        self.up()?;
        self.puts.fetch_add(1, Ordering::SeqCst);
        if self.loses.load(Ordering::SeqCst) && key.as_str().ends_with(".parquet") {
            return Ok(Put::Created);
        }
        let mut bytes = bytes.to_vec();
        if self.flips.load(Ordering::SeqCst) && key.as_str().ends_with(".parquet") {
            bytes[17] ^= 1;
        }
        self.inner.put_new(key, bytes.into())
    }
    fn get(&self, key: &Key) -> Result<Bytes, VaultError> {
        self.up().and_then(|()| self.inner.get(key))
    }
    fn get_range(&self, key: &Key, offset: u64, len: u64) -> Result<Bytes, VaultError> {
        self.up().and_then(|()| self.inner.get_range(key, offset, len))
    }
    fn size(&self, key: &Key) -> Result<Option<u64>, VaultError> {
        self.up().and_then(|()| self.inner.size(key))
    }
    fn list(&self, prefix: &str, after: Option<&str>, visit: Visit<'_>) -> Result<(), VaultError> {
        self.up().and_then(|()| self.inner.list(prefix, after, visit))
    }
    fn keep_until(&self, key: &Key, until: Timestamp) -> Result<(), VaultError> {
        self.up().and_then(|()| self.inner.keep_until(key, until))
    }
    fn probe(&self) -> Result<Capabilities, VaultError> {
        self.inner.probe()
    }
}

struct World {
    dir: tempfile::TempDir,
    vault: Arc<Moody>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = FolderVault::open(&dir.path().join("vault"), Open::Create).unwrap();
        let [away, loses, flips] = std::array::from_fn(|_| AtomicBool::new(false));
        let vault = Arc::new(Moody { inner, away, loses, flips, puts: AtomicUsize::new(0) });
        fs::create_dir(dir.path().join("ledger")).unwrap();
        Self { dir, vault }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A segment as hostd leaves it: data, signature, manifest. Gives the data file and the manifest.
    fn segment(&self, day: u64, sequence: u64) -> (PathBuf, PathBuf) {
        let folder = self.path("ledger").join(format!("date=2026-10-{day:02}/host=hv1"));
        fs::create_dir_all(&folder).unwrap();
        let stem = format!("{sequence:08}-202610{day:02}T000000Z");
        let data = noise(sequence, 5000);
        let file = format!("{stem}-flows.parquet");
        let manifest = serde_json::json!({
            "format": "vestigo-segment", "version": 2, "host": "hv1", "segment": stem, "sequence": sequence,
            "files": [
                {"name": file, "kind": "flows", "rows": 9, "bytes": data.len(), "sha256": Digest::of(&data).to_string()},
                {"name": format!("{stem}-events.parquet"), "kind": "events", "rows": 0, "bytes": 0, "sha256": Digest::ZERO.to_string()},
            ],
        });
        fs::write(folder.join(&file), data).unwrap();
        let path = folder.join(format!("{stem}.manifest.json"));
        fs::write(folder.join(format!("{stem}.manifest.json.sig")), format!("signature {sequence}")).unwrap();
        fs::write(&path, manifest.to_string()).unwrap();
        (folder.join(file), path)
    }

    fn shipper(&self) -> Shipper {
        let control = Arc::new(Control::default());
        let clock = Arc::new(SystemClock);
        Shipper::new(
            &self.path("ledger"),
            &self.path("state"),
            self.vault.clone(),
            Duration::from_secs(60),
            clock,
            control,
        )
    }

    fn receipt(&self, sequence: u64) -> Option<Receipt> {
        let bytes = fs::read(self.path("state").join(format!("shipped/hv1/{sequence}.json"))).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    fn stored(&self, local: &Path) -> PathBuf {
        self.path("vault/ledger").join(local.strip_prefix(self.path("ledger")).unwrap())
    }

    fn same(&self, local: &Path) -> bool {
        fs::read(self.stored(local)).ok() == Some(fs::read(local).unwrap())
    }
}

#[test]
fn sealed_segments_are_in_the_store_byte_for_byte_and_vouched_for() {
    let world = World::new();
    let (data, manifest) = world.segment(1, 1);
    let mut shipper = world.shipper();
    assert_eq!(shipper.round(), Round { shipped: 1, waiting: 0 });
    let signature = PathBuf::from(format!("{}.sig", manifest.display()));
    assert!(world.same(&data) && world.same(&manifest) && world.same(&signature));
    let receipt = world.receipt(1).unwrap();
    assert_eq!(receipt.manifest_sha256, Digest::of(&fs::read(&manifest).unwrap()));
    assert_eq!(receipt.vault, world.vault.url());
    assert_eq!(shipper.round(), Round::default(), "nothing twice");
    world.segment(2, 2);
    assert_eq!(shipper.round().shipped, 1);
    let puts = world.vault.puts.load(Ordering::SeqCst);
    assert_eq!(world.shipper().round(), Round::default(), "another life knows it by the receipts");
    assert_eq!(world.vault.puts.load(Ordering::SeqCst), puts);
}

#[test]
fn a_store_that_is_away_for_a_week_gets_everything_afterwards_in_order() {
    let world = World::new();
    world.vault.away.store(true, Ordering::SeqCst);
    let all: Vec<_> = (1..=7).flat_map(|day| (1..=20).map(move |n| (day, (day - 1) * 20 + n))).collect();
    let mut shipper = world.shipper();
    let mut files = Vec::new();
    for (day, sequence) in all {
        files.push(world.segment(day, sequence));
        if sequence % 20 == 0 {
            assert_eq!(shipper.round(), Round { shipped: 0, waiting: sequence });
        }
    }
    assert!(world.receipt(1).is_none());
    // A daemon of another life, while one data file had half come into the store before the outage.
    world.vault.away.store(false, Ordering::SeqCst);
    assert_eq!(world.shipper().round(), Round { shipped: 140, waiting: 0 });
    assert!(files.iter().all(|(data, manifest)| world.same(data) && world.same(manifest)));
}

#[test]
fn an_upload_that_broke_off_is_taken_up_again() {
    let world = World::new();
    let (data, manifest) = world.segment(1, 1);
    fs::create_dir_all(world.stored(&data).parent().unwrap()).unwrap();
    fs::copy(&data, world.stored(&data)).unwrap();
    assert_eq!(world.shipper().round().shipped, 1);
    assert!(world.same(&manifest));
}

#[test]
fn a_store_that_loses_or_changes_what_it_was_given_is_not_vouched_for() {
    for (lie, heals) in [(0, true), (1, false)] {
        let world = World::new();
        let (data, manifest) = world.segment(1, 1);
        let switch = if lie == 0 { &world.vault.loses } else { &world.vault.flips };
        switch.store(true, Ordering::SeqCst);
        let mut shipper = world.shipper();
        assert_eq!(shipper.round(), Round { shipped: 0, waiting: 1 });
        assert!(world.receipt(1).is_none());
        assert!(!world.stored(&manifest).exists(), "no segment in the store without its data");
        switch.store(false, Ordering::SeqCst);
        assert_eq!(shipper.round().shipped, u64::from(heals));
        assert_eq!(world.same(&data), heals);
    }
}

#[test]
fn another_history_in_the_store_is_left_alone_and_holds_nobody_else_up() {
    let world = World::new();
    let (_, manifest) = world.segment(1, 1);
    world.segment(2, 2);
    let theirs = world.stored(&manifest);
    fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    fs::write(&theirs, "another host of that name").unwrap();
    assert_eq!(world.shipper().round(), Round { shipped: 1, waiting: 1 });
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "another host of that name");
    assert!(world.receipt(1).is_none() && world.receipt(2).is_some());
}

#[test]
fn what_was_changed_on_the_disk_is_not_shipped() {
    let world = World::new();
    let (changed, _) = world.segment(1, 1);
    let mut bytes = fs::read(&changed).unwrap();
    bytes[100] ^= 1;
    fs::write(&changed, bytes).unwrap();
    let (longer, _) = world.segment(1, 2);
    fs::write(&longer, noise(2, 6000)).unwrap();
    let (_, leads_out) = world.segment(1, 3);
    let text = fs::read_to_string(&leads_out).unwrap().replace("00000003-20261001T000000Z-flows", "../../../../etc/x");
    fs::write(&leads_out, text).unwrap();
    fs::write(world.path("ledger/date=2026-10-01/host=hv1/00000004-x.manifest.json"), "{").unwrap();
    assert_eq!(world.shipper().round(), Round { shipped: 0, waiting: 4 });
    assert!(!world.path("vault/ledger").exists());
}

#[test]
fn files_that_are_gone_here_do_not_keep_the_chain_and_later_tombstones_out() {
    let world = World::new();
    let (data, manifest) = world.segment(1, 1);
    fs::remove_file(&data).unwrap();
    let mut shipper = world.shipper();
    assert_eq!(shipper.round(), Round { shipped: 1, waiting: 0 });
    assert!(world.same(&manifest));
    let stone = PathBuf::from(manifest.display().to_string().replace(".manifest.json", ".tombstone.json"));
    fs::write(&stone, "{}").unwrap();
    fs::write(format!("{}.sig", stone.display()), "s").unwrap();
    assert_eq!(shipper.round(), Round::default());
    assert!(world.same(&stone));
}
