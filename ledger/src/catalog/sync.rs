//! Bringing the cache up to date with a store, and reading only what changed.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use vestigo_model::HostId;

use super::{Cache, Days, Entry, Folder, Folders, Seen, Summary};
use crate::{
    error::LedgerError,
    manifest,
    store::{Listed, Stamp, Store},
};

const MANIFEST: &str = ".manifest.json";
const TOMBSTONE: &str = ".tombstone.json";
/// A change so shortly before it was looked at may be followed by another with the same stamp (grain of file systems' clocks, clocks of
/// file servers that are a little off).
const RACY: i64 = 10;

/// Names of the folders of these days in a store.
pub(crate) fn folders(store: &dyn Store, days: &Days) -> Result<Vec<String>, LedgerError> {
    let top = store.list("")?;
    Ok(top.into_iter().filter(|one| one.is_folder && days.has(&one.name)).map(|one| one.name).collect())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The stamp, if it can be relied on.
fn settled(stamp: Option<&Stamp>, now: i64) -> Option<String> {
    stamp.filter(|stamp| stamp.changed.is_none_or(|changed| changed < now.saturating_sub(RACY))).map(|s| s.text.clone())
}

/// The folders of these days as they are now.
pub(super) fn up_to_date(number: usize, store: &dyn Store, cache: &Cache, days: &Days) -> Result<Folders, LedgerError> {
    let mut known = cache.load(number, store, days);
    let mut work = Work { number, store, now: now(), current: Folders::new(), changed: BTreeMap::new() };
    for date in folders(store, days)? {
        work.date(&date, &mut known)?;
    }
    // What is left in `known` is gone.
    work.changed.extend(known.into_keys().map(|path| (path, None)));
    if !work.changed.is_empty() {
        cache.save(store, &work.changed);
    }
    Ok(work.current)
}

/// One host's segments of one day, read without the cache.
pub(crate) fn of_host(
    number: usize,
    store: &dyn Store,
    date: &str,
    host: &HostId,
) -> Result<Vec<Arc<Summary>>, LedgerError> {
    let path = format!("{date}/host={host}");
    let files = store.list(&path)?;
    let mut work = Work { number, store, now: now(), current: Folders::new(), changed: BTreeMap::new() };
    work.folder(path, None, &files, None)?;
    Ok(work.current.into_values().flat_map(|folder| folder.entries).map(|entry| entry.summary).collect())
}

struct Work<'a> {
    number: usize,
    store: &'a dyn Store,
    now: i64,
    current: Folders,
    changed: BTreeMap<String, Option<Folder>>,
}

impl Work<'_> {
    fn date(&mut self, date: &str, known: &mut Folders) -> Result<(), LedgerError> {
        let mut listed: Vec<(String, Option<String>, Vec<Listed>)> = Vec::new();
        if let Some(files) = self.store.walk(date)? {
            let mut by_folder: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
            for file in files {
                if let Some((folder, name)) = file.name.rsplit_once('/').map(|(f, n)| (f.to_owned(), n.to_owned())) {
                    by_folder.entry(folder).or_default().push(Listed { name, ..file });
                }
            }
            listed.extend(by_folder.into_iter().map(|(folder, files)| (format!("{date}/{folder}"), None, files)));
        } else {
            for folder in self.store.list(date)?.into_iter().filter(|one| one.is_folder) {
                let path = format!("{date}/{}", folder.name);
                // Taken before the folder is listed: a name that comes meanwhile changes the stamp after it.
                let stamp = settled(folder.stamp.as_ref(), self.now);
                match known.get(&path) {
                    Some(same) if stamp.is_some() && same.stamp == stamp => {
                        if let Some(folder) = known.remove(&path) {
                            self.current.insert(path, folder);
                        }
                    }
                    _ => listed.push((path.clone(), stamp, self.store.list(&path)?)),
                }
            }
        }
        for (path, stamp, files) in listed.into_iter().filter(|(path, ..)| is_of_a_host(path)) {
            let before = known.remove(&path);
            self.folder(path, stamp, &files, before)?;
        }
        Ok(())
    }

    fn folder(
        &mut self,
        path: String,
        stamp: Option<String>,
        files: &[Listed],
        before: Option<Folder>,
    ) -> Result<(), LedgerError> {
        let was = before.as_ref().and_then(|folder| folder.stamp.clone());
        let mut old: BTreeMap<String, Entry> =
            before.into_iter().flat_map(|f| f.entries).map(|e| (e.seen.name.clone(), e)).collect();
        let count = old.len();
        let (mut entries, mut fresh) = (Vec::new(), Vec::new());
        for file in files.iter().filter(|file| file.name.ends_with(MANIFEST) && !file.name.starts_with('.')) {
            let stem = file.name.strip_suffix(MANIFEST).unwrap_or_default();
            let expired = files.iter().any(|other| is_tombstone_of(&other.name, stem));
            let stamp = settled(file.stamp.as_ref(), self.now);
            let seen = Seen { name: file.name.clone(), bytes: file.bytes, stamp };
            match old.remove(&file.name) {
                Some(entry) if seen.stamp.is_some() && entry.seen == seen && entry.summary.expired == expired => {
                    entries.push(entry);
                }
                _ => fresh.push((seen, expired)),
            }
        }
        let changed = !fresh.is_empty() || !old.is_empty() || was != stamp || count == 0;
        entries.extend(read_all(self.number, self.store, &path, fresh)?);
        let folder = Folder { stamp, entries };
        if changed {
            self.changed.insert(path.clone(), Some(folder.clone()));
        }
        self.current.insert(path, folder);
        Ok(())
    }
}

/// `<segment>.tombstone.json`, or `<segment>.moved-….tombstone.json`: its data files are not here any more.
fn is_tombstone_of(name: &str, segment: &str) -> bool {
    let rest = name.strip_prefix(segment).and_then(|rest| rest.strip_suffix(TOMBSTONE));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(".moved-"))
}

fn is_of_a_host(path: &str) -> bool {
    path.split_once('/').is_some_and(|(_, folder)| folder.starts_with("host=") && !folder.contains('/'))
}

/// Reads manifests, several at once where the store mostly waits.
fn read_all(
    number: usize,
    store: &dyn Store,
    folder: &str,
    files: Vec<(Seen, bool)>,
) -> Result<Vec<Entry>, LedgerError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Ok(Vec::with_capacity(files.len())));
    let work = || {
        while let Some((seen, expired)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let read = read(number, store, folder, seen, *expired);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            match (done.as_mut(), read) {
                (Ok(entries), Ok(entry)) => entries.extend(entry),
                (Ok(_), Err(error)) => *done = Err(error),
                (Err(_), _) => return,
            }
        }
    };
    let threads = store.concurrency().min(files.len());
    if threads > 1 {
        std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
    } else {
        work();
    }
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// `None`: removed since it was listed.
fn read(
    number: usize,
    store: &dyn Store,
    folder: &str,
    seen: &Seen,
    expired: bool,
) -> Result<Option<Entry>, LedgerError> {
    let path = format!("{folder}/{}", seen.name);
    let bytes = match store.read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (manifest, digest) = manifest::parse(&Path::new(store.name()).join(&path), &bytes)?;
    let summary = Arc::new(Summary::new(number, folder, &manifest, digest, expired));
    Ok(Some(Entry { seen: seen.clone(), summary }))
}
