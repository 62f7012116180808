//! The cache on disk. Whatever is wrong with it, the answer is the same and comes later: no error of it leaves this module.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Row, Statement, params};
use vestigo_model::{Digest, HostId, TimeRange, Timestamp};

use super::{Blooms, Days, Entry, Folder, Folders, Seen, Summary, Wanted, days::NO_DAY, summary::Addresses};
use crate::{
    manifest::{Kind, Validity},
    reader::any_holds,
};

/// Raised when the tables change: an older file is emptied.
const VERSION: i64 = 1;
/// How long another process's writing is waited for.
const BUSY: Duration = Duration::from_secs(5);
/// Above this, all filters of a column are read in one sweep.
const SWEEP: usize = 2000;

const SCHEMA: &str = "
CREATE TABLE folders(store TEXT, path TEXT, stamp TEXT, PRIMARY KEY(store, path)) WITHOUT ROWID;
CREATE TABLE segments(
  store TEXT, folder TEXT, name TEXT, bytes INTEGER, stamp TEXT, digest BLOB, segment TEXT, host TEXT, sequence INTEGER,
  flows_from INTEGER, flows_to INTEGER, facts_from INTEGER, facts_to INTEGER, coverage_from INTEGER, coverage_to INTEGER,
  recorded_from INTEGER, recorded_to INTEGER, wal_last INTEGER, rows BLOB, addresses BLOB, blind BLOB, points INTEGER,
  replaces BLOB, expired INTEGER, PRIMARY KEY(store, folder, name)) WITHOUT ROWID;
CREATE TABLE filters(kind TEXT, column TEXT, digest BLOB, bits BLOB, PRIMARY KEY(kind, column, digest)) WITHOUT ROWID;
";

/// The file.
#[derive(Debug)]
pub(super) struct Database(Mutex<Connection>);

impl Database {
    /// Opens it; a damaged one is replaced.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let opened = connect(path).or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the catalog is made anew");
            for suffix in ["", "-wal", "-shm"] {
                // What cannot be removed is met again by the next line.
                let _ = fs::remove_file(format!("{}{suffix}", path.display()));
            }
            connect(path)
        });
        match opened {
            Ok(connection) => Some(Self(Mutex::new(connection))),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "questions are slower: no catalog can be kept here");
                None
            }
        }
    }

    fn with<T: Default>(&self, what: &str, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> T {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).unwrap_or_else(|error| {
            tracing::warn!(%error, what, "the catalog is left out");
            T::default()
        })
    }

    pub(super) fn load(&self, number: usize, store: &str, days: &Days) -> Folders {
        self.with("load", |connection| {
            let mut folders = Folders::new();
            let bounds = bounds(days);
            let mut all = connection.prepare(
                "SELECT path, stamp FROM folders WHERE store = ?1 AND (path >= ?2 AND path < ?3 OR path >= ?4 AND path < ?5)",
            )?;
            let none = [format!("{NO_DAY}/"), format!("{NO_DAY}0")];
            let mut rows = all.query(params![store, bounds.0, bounds.1, none[0], none[1]])?;
            while let Some(row) = rows.next()? {
                folders.insert(row.get(0)?, Folder { stamp: row.get(1)?, entries: Vec::new() });
            }
            let mut all = connection.prepare(
                "SELECT * FROM segments WHERE store = ?1 AND (folder >= ?2 AND folder < ?3 OR folder >= ?4 AND folder < ?5)",
            )?;
            let mut rows = all.query(params![store, bounds.0, bounds.1, none[0], none[1]])?;
            while let Some(row) = rows.next()? {
                let entry = entry(number, row)?;
                if let (Some(entry), Some(folder)) = (entry, folders.get_mut(&row.get::<_, String>("folder")?)) {
                    folder.entries.push(entry);
                }
            }
            Ok(folders)
        })
    }

    pub(super) fn save(&self, store: &str, changed: &BTreeMap<String, Option<Folder>>) {
        self.with("save", |connection| {
            let transaction = connection.transaction()?;
            {
                let marks = (1..=24).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
                let mut segment = transaction.prepare(&format!("INSERT OR REPLACE INTO segments VALUES ({marks})"))?;
                let mut new = transaction.prepare("INSERT OR REPLACE INTO folders VALUES (?1, ?2, ?3)")?;
                let mut old = transaction.prepare("DELETE FROM segments WHERE store = ?1 AND folder = ?2")?;
                let mut gone = transaction.prepare("DELETE FROM folders WHERE store = ?1 AND path = ?2")?;
                for (path, folder) in changed {
                    old.execute(params![store, path])?;
                    match folder {
                        Some(folder) => {
                            new.execute(params![store, path, folder.stamp])?;
                            folder.entries.iter().try_for_each(|entry| insert_segment(&mut segment, store, entry))?;
                        }
                        None => _ = gone.execute(params![store, path])?,
                    }
                }
            }
            transaction.commit()
        });
    }

    pub(super) fn may_hold(&self, wanted: &Wanted<'_>, segments: &[Arc<Summary>]) -> Vec<Option<bool>> {
        let mut verdicts = self.with("look up", |connection| {
            let mut verdicts: HashMap<Digest, bool> = HashMap::new();
            for column in wanted.columns {
                let mut note = |digest: Digest, bits: &[u8]| {
                    let blooms = Blooms::from([((*column).to_owned(), unpack(bits))]);
                    if let Some(holds) = any_holds(&blooms, &[*column], wanted.values) {
                        *verdicts.entry(digest).or_default() |= holds;
                    }
                };
                if segments.len() > SWEEP {
                    sweep(connection, wanted.kind, column, &mut note)?;
                } else {
                    one_by_one(connection, wanted.kind, column, segments, &mut note)?;
                }
            }
            Ok(verdicts)
        });
        segments.iter().map(|segment| verdicts.remove(&segment.digest)).collect()
    }

    pub(super) fn keep(&self, kept: &[(Arc<Summary>, Kind, Blooms)]) {
        if kept.is_empty() {
            return;
        }
        self.with("keep", |connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare("INSERT OR REPLACE INTO filters VALUES (?1, ?2, ?3, ?4)")?;
                for (segment, kind, blooms) in kept {
                    for (column, groups) in blooms {
                        insert.execute(params![kind.as_str(), column, segment.digest.0.as_slice(), pack(groups)])?;
                    }
                }
            }
            transaction.commit()
        });
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let io = |error: std::io::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(io)?;
    }
    // For the owner only: it holds addresses.
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io)?;
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "mmap_size", 256 << 20)?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version != VERSION {
        transaction.execute_batch(
            "DROP TABLE IF EXISTS folders; DROP TABLE IF EXISTS segments; DROP TABLE IF EXISTS filters;",
        )?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(connection)
}

/// Paths from the first folder of the first day to behind the last of the last.
fn bounds(days: &Days) -> (String, String) {
    let from = days.from.as_ref().map_or_else(|| "date=".to_owned(), |from| format!("{from}/"));
    // `0` follows `/`, and `>` follows `=`.
    let to = days.to.as_ref().map_or_else(|| "date>".to_owned(), |to| format!("{to}0"));
    (from, to)
}

fn sweep(
    connection: &Connection,
    kind: Kind,
    column: &str,
    note: &mut impl FnMut(Digest, &[u8]),
) -> rusqlite::Result<()> {
    let mut all = connection.prepare("SELECT digest, bits FROM filters WHERE kind = ?1 AND column = ?2")?;
    let mut rows = all.query(params![kind.as_str(), column])?;
    while let Some(row) = rows.next()? {
        if let (Some(digest), Ok(bits)) = (digest(row.get_ref(0)?.as_blob().ok()), row.get_ref(1)?.as_blob()) {
            note(digest, bits);
        }
    }
    Ok(())
}

fn one_by_one(
    connection: &Connection,
    kind: Kind,
    column: &str,
    segments: &[Arc<Summary>],
    note: &mut impl FnMut(Digest, &[u8]),
) -> rusqlite::Result<()> {
    let sql = "SELECT bits FROM filters WHERE kind = ?1 AND column = ?2 AND digest = ?3";
    let mut one = connection.prepare(sql)?;
    for segment in segments {
        let key = params![kind.as_str(), column, segment.digest.0.as_slice()];
        let found = one.query_row(key, |row| {
            if let Ok(bits) = row.get_ref(0)?.as_blob() {
                note(segment.digest, bits);
            }
            Ok(())
        });
        found.optional()?;
    }
    Ok(())
}

fn digest(bytes: Option<&[u8]>) -> Option<Digest> {
    bytes.and_then(|bytes| bytes.try_into().ok()).map(Digest)
}

/// Groups with their lengths before them.
fn pack(groups: &[Vec<u8>]) -> Vec<u8> {
    let mut packed = Vec::new();
    for group in groups {
        packed.extend(u32::try_from(group.len()).unwrap_or(0).to_le_bytes());
        packed.extend(group);
    }
    packed
}

fn unpack(mut packed: &[u8]) -> Vec<Vec<u8>> {
    let mut groups = Vec::new();
    while let Some((length, rest)) = packed.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((group, rest)) = rest.split_at_checked(length) else { break };
        groups.push(group.to_vec());
        packed = rest;
    }
    groups
}

fn numbers<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [i64; N]> {
    bytes.chunks_exact(8 * N).map(|chunk| {
        let mut all = [0; N];
        for (number, eight) in all.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *number = i64::from_le_bytes(*eight);
        }
        all
    })
}

fn insert_segment(insert: &mut Statement<'_>, store: &str, entry: &Entry) -> rusqlite::Result<()> {
    let (seen, one) = (&entry.seen, entry.summary.as_ref());
    let from = |range: Option<TimeRange>| range.map(|range| range.from.as_nanos());
    let to = |range: Option<TimeRange>| range.map(|range| range.to.as_nanos());
    let rows: Vec<u8> = one.rows.iter().flat_map(|rows| rows.to_le_bytes()).collect();
    let pair = |range: &TimeRange| [range.from.as_nanos().to_le_bytes(), range.to.as_nanos().to_le_bytes()].concat();
    let blind = one.blind.as_ref().map(|blind| blind.iter().flat_map(pair).collect::<Vec<u8>>());
    let replaces: Vec<u8> = one.replaces.iter().flat_map(|digest| digest.0).collect();
    insert.execute(params![
        store,
        one.folder,
        seen.name,
        signed(seen.bytes),
        seen.stamp,
        one.digest.0.as_slice(),
        one.segment,
        one.host.as_str(),
        signed(one.sequence),
        from(one.flows),
        to(one.flows),
        one.facts.map(|facts| facts.from.as_nanos()),
        one.facts.and_then(|facts| facts.to).map(Timestamp::as_nanos),
        from(one.coverage),
        to(one.coverage),
        from(one.recorded),
        to(one.recorded),
        signed(one.wal_last),
        rows,
        one.addresses.as_ref().map(|list| list.0.as_slice()),
        blind,
        one.points.map(signed),
        replaces,
        one.expired,
    ])?;
    Ok(())
}

/// SQLite has signed numbers only; the bits are kept.
const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// `None`: a row that this program did not write so.
fn entry(store: usize, row: &Row<'_>) -> rusqlite::Result<Option<Entry>> {
    let time = |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(name)?.map(Timestamp::from_nanos));
    let range = |from: &str, to: &str| {
        Ok::<_, rusqlite::Error>(time(from)?.zip(time(to)?).and_then(|(from, to)| TimeRange::new(from, to)))
    };
    let unsigned = |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, i64>(name)?.cast_unsigned());
    let Some(digest) = digest(row.get_ref("digest")?.as_blob().ok()) else { return Ok(None) };
    let Ok(host) = HostId::new(row.get::<_, String>("host")?) else { return Ok(None) };
    let mut rows = [0; Kind::ALL.len()];
    let stored: Vec<u8> = row.get("rows")?;
    rows.iter_mut().zip(numbers::<1>(&stored)).for_each(|(rows, [number])| *rows = number.cast_unsigned());
    let blind: Option<Vec<u8>> = row.get("blind")?;
    let stretch = |[from, to]: [i64; 2]| TimeRange::new(Timestamp::from_nanos(from), Timestamp::from_nanos(to));
    let replaces: Vec<u8> = row.get("replaces")?;
    let seen = Seen { name: row.get("name")?, bytes: unsigned("bytes")?, stamp: row.get("stamp")? };
    let summary = Summary {
        store,
        folder: row.get("folder")?,
        segment: row.get("segment")?,
        digest,
        host,
        sequence: unsigned("sequence")?,
        flows: range("flows_from", "flows_to")?,
        facts: time("facts_from")?
            .map(|from| Ok::<_, rusqlite::Error>(Validity { from, to: time("facts_to")? }))
            .transpose()?,
        coverage: range("coverage_from", "coverage_to")?,
        recorded: range("recorded_from", "recorded_to")?,
        wal_last: unsigned("wal_last")?,
        rows,
        addresses: row.get::<_, Option<Vec<u8>>>("addresses")?.map(Addresses),
        blind: blind.map(|blind| numbers::<2>(&blind).filter_map(stretch).collect()),
        points: row.get::<_, Option<i64>>("points")?.map(i64::cast_unsigned),
        replaces: replaces.as_chunks::<32>().0.iter().map(|bytes| Digest(*bytes)).collect(),
        expired: row.get("expired")?,
    };
    Ok(Some(Entry { seen, summary: Arc::new(summary) }))
}
