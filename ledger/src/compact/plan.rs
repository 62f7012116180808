//! Which segments become one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use vestigo_model::{HostId, Timestamp};

use super::{CompactError, Step};
use crate::{
    durable,
    manifest::{self, Sealed},
    retention::tombstone,
};

/// When, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactOptions {
    /// How long a day has to be over.
    pub rest: Duration,
    /// Most rows of one table of a compacted segment: they are in memory at once, with about 300 bytes a flow. A day that has more
    /// becomes several segments.
    pub max_rows: u64,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self { rest: Duration::from_secs(3600), max_rows: 1_000_000 }
    }
}

/// Segments that become one: of one folder, neighbours in the chain, oldest first.
#[derive(Debug, Clone)]
pub struct CompactPlan {
    /// Their folder.
    pub folder: PathBuf,
    /// They.
    pub segments: Vec<Sealed>,
}

/// What can be compacted of a host's ledger now.
///
/// # Errors
/// [`CompactError`].
pub fn plan(
    root: &Path,
    host: &HostId,
    options: CompactOptions,
    now: Timestamp,
) -> Result<Vec<CompactPlan>, CompactError> {
    let rest = i64::try_from(options.rest.as_nanos()).unwrap_or(i64::MAX);
    let over = Timestamp::from_nanos(now.as_nanos().saturating_sub(rest)).date();
    let mut plans = Vec::new();
    for folder in manifest::folders(root, Some(host))? {
        let date = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        // Records without a day of their own stay as they are: they are few, and a sign of a clock that jumped.
        let is_over =
            date.strip_prefix("date=").is_some_and(|day| day.starts_with(|c: char| c.is_ascii_digit()) && *day < *over);
        if is_over {
            plan_folder(&folder, options, &mut plans)?;
        }
    }
    Ok(plans)
}

fn plan_folder(folder: &Path, options: CompactOptions, plans: &mut Vec<CompactPlan>) -> Result<(), CompactError> {
    let mut places = manifest::places(folder)?;
    // A folder of one segment, or of one and those that it replaces, is read no further than its names.
    let with_files: BTreeSet<u64> = durable::names(folder)?
        .iter()
        .filter(|name| name.ends_with(".parquet") && !name.starts_with('.'))
        .filter_map(|name| manifest::sequence_of(name))
        .collect();
    if with_files.len() < 2 {
        return Ok(());
    }
    places.sort_by_key(|place| place.sequence);
    let all: Vec<Sealed> = places.iter().map(manifest::read).collect::<Result<_, _>>()?;
    // What a compacted segment holds already and a crash kept from being removed must not become part of another one.
    let replaced: BTreeSet<u64> = all.iter().flat_map(|by| &by.manifest.replaces).map(|old| old.sequence).collect();
    let files = |sealed: &Sealed| with_files.contains(&sealed.manifest.sequence);
    let (mut run, mut rows) = (Vec::<Sealed>::new(), BTreeMap::new());
    for sealed in all.into_iter().filter(|one| files(one) && !replaced.contains(&one.manifest.sequence)) {
        let fits = is_whole(&sealed)
            && run.last().is_none_or(|last| last.manifest.sequence + 1 == sealed.manifest.sequence)
            && sealed.manifest.files.iter().all(|f| rows.get(&f.kind).unwrap_or(&0) + f.rows <= options.max_rows);
        if !fits {
            finish(folder, &mut run, plans);
            rows.clear();
        }
        if is_whole(&sealed) {
            sealed.manifest.files.iter().for_each(|file| *rows.entry(file.kind).or_insert(0) += file.rows);
            run.push(sealed);
        }
    }
    finish(folder, &mut run, plans);
    Ok(())
}

fn finish(folder: &Path, run: &mut Vec<Sealed>, plans: &mut Vec<CompactPlan>) {
    let segments = std::mem::take(run);
    if segments.len() > 1 {
        plans.push(CompactPlan { folder: folder.to_owned(), segments });
    }
}

/// Whether a segment can be put into another: not a compacted one itself, all files there, each with the digest of its rows.
fn is_whole(sealed: &Sealed) -> bool {
    let manifest = &sealed.manifest;
    let own = |name: &str| tombstone::is_own(name, &manifest.segment) && sealed.folder.join(name).exists();
    manifest.replaces.is_empty() && manifest.files.iter().all(|file| file.rows_sha256.is_some() && own(&file.name))
}

/// Removes the data files of the segments whose rows another one holds (also those that a crash left), and what a failed
/// preparation left. Bytes that came free.
///
/// # Errors
/// [`CompactError`].
pub fn tidy(root: &Path, host: &HostId) -> Result<u64, CompactError> {
    tidy_by_steps(root, host, &mut |_| Ok(()))
}

pub(crate) fn tidy_by_steps(root: &Path, host: &HostId, step: Step<'_>) -> Result<u64, CompactError> {
    let mut freed = 0;
    for folder in manifest::folders(root, Some(host))? {
        let names = durable::names(&folder)?;
        let files: BTreeSet<u64> = names
            .iter()
            .filter(|name| name.ends_with(".parquet") && !name.starts_with('.'))
            .filter_map(|name| manifest::sequence_of(name))
            .collect();
        let mut places = manifest::places(&folder)?;
        places.retain(|place| files.contains(&place.sequence));
        // A compacted segment and what it replaces share a folder: with one that has files there is nothing to do.
        if places.len() < 2 {
            continue;
        }
        let sealed: Vec<Sealed> = places.iter().map(manifest::read).collect::<Result<_, _>>()?;
        let replaced: BTreeMap<u64, _> = sealed
            .iter()
            .filter(|by| by.manifest.files.iter().all(|file| folder.join(&file.name).exists()))
            .flat_map(|by| &by.manifest.replaces)
            .map(|old| (old.sequence, old.sha256))
            .collect();
        for old in sealed.iter().filter(|old| replaced.get(&old.manifest.sequence) == Some(&old.digest)) {
            for file in old.manifest.files.iter().filter(|file| tombstone::is_own(&file.name, &old.manifest.segment)) {
                step("remove")?;
                freed += if folder.join(&file.name).exists() { file.bytes } else { 0 };
                durable::remove_file(&folder.join(&file.name))?;
            }
        }
        durable::sync_folder(&folder)?;
    }
    Ok(freed)
}
