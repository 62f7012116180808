//! Which chunks the vault holds already, and where. A cache on disk: it can be thrown away at any time, because packs
//! describe themselves and the bucket is read anew; and it is never believed when an item is sealed (see
//! [`crate::acquire`]), because a pack it names may be gone.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use uuid::Uuid;
use vestigo_model::Timestamp;

use crate::{
    chunk::{ChunkId, Domain},
    codec::Reader,
    fetch, layout,
    pack::{Entry, Method},
    vault::{Key, Vault, VaultError},
};

/// Small: the operating system's page cache holds the rest.
const CACHE_BYTES: usize = 32 << 20;
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
/// Clocks of hosts may differ, and a pack may wait for its vault: how far back a later listing begins.
const OVERLAP: std::time::Duration = std::time::Duration::from_secs(2 * 86_400);

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The file failed.
    #[error(
        "the cache of known chunks {path}: {error}; if this persists, stop the daemon and remove the file: it is rebuilt"
    )]
    Cache {
        /// Which file.
        path: PathBuf,
        /// How.
        error: Box<redb::Error>,
    },
    /// The folder failed.
    #[error("cannot prepare the cache of known chunks {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// How.
        error: std::io::Error,
    },
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// In which pack.
    pub pack: Uuid,
    /// Where its record begins.
    pub offset: u32,
    /// Bytes of the payload.
    pub stored_len: u32,
    /// How it is stored.
    pub method: Method,
}

impl Location {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.pack.as_bytes().to_vec();
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.stored_len.to_le_bytes());
        out.push(self.method.code());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let pack = Uuid::from_bytes(r.array().ok()?);
        let (offset, stored_len) = (r.u32().ok()?, r.u32().ok()?);
        Some(Self { pack, offset, stored_len, method: Method::from_code(r.u8().ok()?)? })
    }
}

/// The cache.
pub struct Known {
    path: PathBuf,
    db: Database,
    /// Domains whose packs were all listed since the start.
    listed: Mutex<HashSet<Domain>>,
}

struct Names {
    chunks: String,
    packs: String,
}

impl Names {
    fn of(domain: &Domain) -> Self {
        Self { chunks: format!("chunks/{domain}"), packs: format!("packs/{domain}") }
    }

    fn chunks(&self) -> TableDefinition<'_, &'static [u8; 32], &'static [u8]> {
        TableDefinition::new(&self.chunks)
    }

    fn packs(&self) -> TableDefinition<'_, &'static [u8; 16], u32> {
        TableDefinition::new(&self.packs)
    }
}

impl Known {
    /// Opens the cache at `path` for the vault at `url`. One that belongs to another vault, or is damaged, is begun anew.
    pub fn open(path: &Path, url: &str) -> Result<Self, KnownError> {
        if let Ok(known) = Self::try_open(path)
            && known.belongs_to(url).unwrap_or(false)
        {
            return Ok(known);
        }
        let io = |error| KnownError::Io { path: path.to_owned(), error };
        crate::files::remove(path).map_err(io)?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io)?;
        }
        let known = Self::try_open(path)?;
        known.claim(url)?;
        Ok(known)
    }

    fn try_open(path: &Path) -> Result<Self, KnownError> {
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let db = db.map_err(|e| KnownError::Cache { path: path.to_owned(), error: Box::new(e.into()) })?;
        Ok(Self { path: path.to_owned(), db, listed: Mutex::default() })
    }

    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, KnownError> {
        work(&self.db).map_err(|error| KnownError::Cache { path: self.path.clone(), error: Box::new(error) })
    }

    fn belongs_to(&self, url: &str) -> Result<bool, KnownError> {
        self.run(|db| {
            let table = db.begin_read()?.open_table(META)?;
            Ok(table.get("vault")?.is_some_and(|found| found.value() == url))
        })
    }

    fn claim(&self, url: &str) -> Result<(), KnownError> {
        self.run(|db| {
            let write = db.begin_write()?;
            write.open_table(META)?.insert("vault", url)?;
            Ok(write.commit()?)
        })
    }

    /// Where the chunk lies in this domain, as far as the cache knows.
    pub fn lookup(&self, domain: &Domain, id: &ChunkId) -> Result<Option<Location>, KnownError> {
        self.run(|db| {
            let names = Names::of(domain);
            let table = match db.begin_read()?.open_table(names.chunks()) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            Ok(table.get(&id.0)?.and_then(|found| Location::decode(found.value())))
        })
    }

    /// Notes a pack that is durable. A chunk that is known keeps the place it has.
    pub fn insert_pack(&self, domain: &Domain, pack: Uuid, entries: &[Entry]) -> Result<(), KnownError> {
        self.run(|db| {
            let names = Names::of(domain);
            let write = db.begin_write()?;
            {
                let mut chunks = write.open_table(names.chunks())?;
                for entry in entries {
                    let Entry { offset, stored_len, method, .. } = *entry;
                    let place = Location { pack, offset, stored_len, method }.encode();
                    if chunks.get(&entry.id.0)?.is_none() {
                        chunks.insert(&entry.id.0, place.as_slice())?;
                    }
                }
                write.open_table(names.packs())?.insert(pack.as_bytes(), crate::codec::as_u32(entries.len()))?;
            }
            Ok(write.commit()?)
        })
    }

    /// Forgets a pack that the vault turned out not to hold, and every chunk in it.
    pub fn forget_pack(&self, domain: &Domain, pack: Uuid) -> Result<(), KnownError> {
        self.run(|db| {
            let names = Names::of(domain);
            let write = db.begin_write()?;
            write.open_table(names.packs())?.remove(pack.as_bytes())?;
            write.open_table(names.chunks())?.retain(|_, v| Location::decode(v).is_none_or(|l| l.pack != pack))?;
            Ok(write.commit()?)
        })
    }

    fn has_pack(&self, domain: &Domain, pack: &Uuid) -> Result<bool, KnownError> {
        self.run(|db| {
            let names = Names::of(domain);
            let table = match db.begin_read()?.open_table(names.packs()) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
                table => table?,
            };
            Ok(table.get(pack.as_bytes())?.is_some())
        })
    }

    /// Learns of packs that this host has not seen: those of other hosts, and those whose upload this host survived only
    /// to forget. The first listing since the start is complete, later ones begin two days back: pack names sort by time.
    pub fn sync(&self, vault: &dyn Vault, domain: &Domain, now: Timestamp) -> Result<usize, KnownError> {
        let complete = !self.listed.lock().is_ok_and(|listed| listed.contains(domain));
        let prefix = layout::packs(domain);
        let after = (!complete).then(|| format!("{prefix}{}", earliest_name(now - OVERLAP)));
        let mut fresh = Vec::new();
        let mut failed = None;
        vault.list(&prefix, after.as_deref(), &mut |listed| {
            if let Some(id) = layout::pack_id(&listed.key) {
                match self.has_pack(domain, &id) {
                    Ok(false) => fresh.push((listed.key, id)),
                    Ok(true) => {}
                    Err(error) => failed = Some(error),
                }
            }
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for (key, id) in &fresh {
            self.learn(vault, domain, key, *id)?;
        }
        if let Ok(mut listed) = self.listed.lock() {
            listed.insert(domain.clone());
        }
        Ok(fresh.len())
    }

    fn learn(&self, vault: &dyn Vault, domain: &Domain, key: &Key, id: Uuid) -> Result<(), KnownError> {
        match fetch::pack_entries(vault, key) {
            Ok(entries) => self.insert_pack(domain, id, &entries),
            Err(fetch::FetchError::Vault(error @ (VaultError::Unavailable(_) | VaultError::Refused(_)))) => {
                Err(error.into())
            }
            Err(error) => {
                tracing::warn!(pack = %key, %error, "this pack is damaged; its chunks are stored again when they are needed");
                Ok(())
            }
        }
    }

    /// How many chunks of the domain are known.
    pub fn count(&self, domain: &Domain) -> Result<u64, KnownError> {
        self.run(|db| {
            use redb::ReadableTableMetadata;
            let names = Names::of(domain);
            match db.begin_read()?.open_table(names.chunks()) {
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
                table => Ok(table?.len()?),
            }
        })
    }
}

/// Sorts before every version 7 UUID made at or after `time`.
fn earliest_name(time: Timestamp) -> String {
    let millis = u64::try_from(time.as_nanos().div_euclid(1_000_000)).unwrap_or(0) & 0xffff_ffff_ffff;
    let text = format!("{millis:012x}");
    let (high, low) = text.split_at(8);
    format!("{high}-{low}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        pack::Builder,
        vault::{FolderVault, Open},
    };
    use vestigo_model::{Clock, SystemClock};

    fn stored(vault: &FolderVault, domain: &Domain, bytes: &[u8]) -> (Uuid, ChunkId) {
        let mut builder = Builder::new(domain.clone());
        let id = ChunkId::of(bytes);
        builder.push(id, Method::Raw, crate::codec::as_u32(bytes.len()), bytes);
        let pack = builder.finish();
        vault.put_new(&layout::pack(domain, &pack.id).unwrap(), pack.bytes).unwrap();
        (pack.id, id)
    }

    #[test]
    fn learns_what_others_stored_and_forgets_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let vault = FolderVault::open(&dir.path().join("v"), Open::Create).unwrap();
        let site = Domain::site();
        let (pack, id) = stored(&vault, &site, b"one");
        let known = Known::open(&dir.path().join("s/known"), &vault.url()).unwrap();
        assert_eq!(known.sync(&vault, &site, SystemClock.now()).unwrap(), 1);
        assert_eq!(known.lookup(&site, &id).unwrap().unwrap().pack, pack);
        assert_eq!(known.lookup(&Domain::of_vo(None), &id).unwrap(), None, "domains are apart");
        let (_, later) = stored(&vault, &site, b"two");
        assert_eq!(known.sync(&vault, &site, SystemClock.now()).unwrap(), 1, "a later listing is short, and finds it");
        known.forget_pack(&site, pack).unwrap();
        assert_eq!(known.lookup(&site, &id).unwrap(), None);
        assert!(known.lookup(&site, &later).unwrap().is_some());
    }

    #[test]
    fn another_vault_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known");
        let vault = FolderVault::open(&dir.path().join("v"), Open::Create).unwrap();
        let (_, id) = stored(&vault, &Domain::site(), b"one");
        let known = Known::open(&path, "s3://one").unwrap();
        known.sync(&vault, &Domain::site(), SystemClock.now()).unwrap();
        drop(known);
        assert!(Known::open(&path, "s3://one").unwrap().lookup(&Domain::site(), &id).unwrap().is_some());
        assert!(Known::open(&path, "s3://two").unwrap().lookup(&Domain::site(), &id).unwrap().is_none());
        fs::write(&path, "no database").unwrap();
        assert!(Known::open(&path, "s3://two").is_ok());
    }
}
