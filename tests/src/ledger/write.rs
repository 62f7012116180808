//! Writes a generated ledger with the real writer.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use vestigo_ledger::{Writer, WriterOptions};
use vestigo_model::{FactRecord, Flow, HostId, Timestamp};

use super::{Site, day::Day, day::day};

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Flow records.
    pub flows: u64,
    /// Facts.
    pub facts: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of all files of all segments, manifests included.
    pub bytes: u64,
}

#[derive(Default)]
struct Totals {
    flows: AtomicU64,
    facts: AtomicU64,
    segments: AtomicU64,
    hosts: AtomicU32,
}

/// Writes the site's ledger into the folder: every host into one of its own, one segment a day, then all of them into one tree, as
/// shipping does. `threads` hosts at a time.
///
/// # Errors
/// The first that any host met.
pub fn ledger(site: &Site, root: &Path, threads: usize, progress: impl Fn(u32) + Sync) -> Result<Written> {
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    let (next, totals, failed) = (AtomicU32::new(0), Totals::default(), Mutex::new(None));
    let work = || {
        loop {
            let host = next.fetch_add(1, Ordering::Relaxed);
            if host >= site.shape.hosts {
                return;
            }
            if let Err(error) = one_host(site, host, root, &totals) {
                next.store(site.shape.hosts, Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            progress(totals.hosts.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    thread::scope(|scope| (0..threads.max(1)).for_each(|_| _ = scope.spawn(work)));
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    Ok(Written {
        flows: totals.flows.into_inner(),
        facts: totals.facts.into_inner(),
        segments: totals.segments.into_inner(),
        bytes: size(root)?,
    })
}

fn one_host(site: &Site, host: u32, root: &Path, totals: &Totals) -> Result<()> {
    let own = root.join(format!(".host-{host}"));
    let (mut writer, _) = Writer::open(&own, options(site.host(host)?.clone()))?;
    for number in 0..site.shape.days {
        let made = day(site, host, number)?;
        append(&mut writer, &made, site.shape.appends)?;
        // A moment before midnight: what follows belongs to the next day's segment.
        let sealed = writer.seal(Timestamp::from_nanos(site.shape.midnight(number + 1) - 1))?;
        totals.segments.fetch_add(u64::from(sealed.is_some()), Ordering::Relaxed);
        totals.flows.fetch_add(u64::try_from(made.flows.len())?, Ordering::Relaxed);
        totals.facts.fetch_add(u64::try_from(made.facts.len())?, Ordering::Relaxed);
    }
    drop(writer);
    merge(&own, root)
}

/// How the ledger of a host is written.
#[must_use]
pub const fn options(host: HostId) -> WriterOptions {
    WriterOptions { host, max_segment_age: Duration::from_secs(2 * 86_400), max_wal_bytes: 1 << 30 }
}

/// Appends in parts, each made durable: flows and facts as they come in one stretch of the day after the other.
fn append(writer: &mut Writer, made: &Day, parts: u32) -> Result<()> {
    let parts = usize::try_from(parts.max(1))?;
    let (mut facts, mut flows): (&[FactRecord], &[Flow]) = (&made.facts, &made.flows);
    for part in (1..=parts).rev() {
        let (now, later) = flows.split_at(flows.len() / part);
        let until = later.first().map(|flow| flow.last);
        let count = facts.partition_point(|fact| until.is_none_or(|until| fact.recorded <= until));
        let (facts_now, facts_later) = facts.split_at(count);
        writer.append(facts_now, now)?;
        (facts, flows) = (facts_later, later);
    }
    Ok(())
}

/// Moves the sealed segments into the common tree.
fn merge(own: &Path, root: &Path) -> Result<()> {
    for date in fs::read_dir(own)? {
        let date = date?;
        if !date.file_name().to_string_lossy().starts_with("date=") {
            continue;
        }
        let to = root.join(date.file_name());
        fs::create_dir_all(&to)?;
        for host in fs::read_dir(date.path())? {
            let host = host?;
            fs::rename(host.path(), to.join(host.file_name()))?;
        }
    }
    Ok(fs::remove_dir_all(own)?)
}

/// Bytes of all files below the folder.
///
/// # Errors
/// The disk's.
pub fn size(folder: &Path) -> Result<u64> {
    let (mut folders, mut bytes): (Vec<PathBuf>, u64) = (vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() { folders.push(entry.path()) } else { bytes += metadata.len() }
        }
    }
    Ok(bytes)
}
