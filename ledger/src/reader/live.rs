//! The logs that no segment holds yet.

use std::{io, path::PathBuf, sync::Arc};

use vestigo_model::{HostId, TimeRange, Timestamp};

use crate::{entry::Entry, error::LedgerError, log, store::Store};

/// A generation of a live log.
pub(crate) struct Live {
    /// Which of the stores.
    pub(crate) store: usize,
    pub(crate) host: HostId,
    pub(crate) generation: u64,
    pub(crate) entries: Vec<Entry>,
    /// Whether bytes between whole records are no record: some may be missing.
    pub(crate) damaged: bool,
}

impl Live {
    /// What its records speak of.
    pub(crate) fn range(&self) -> Option<TimeRange> {
        let ranges = self.entries.iter().filter_map(entry_range);
        ranges.reduce(|a, b| TimeRange { from: a.from.min(b.from), to: a.to.max(b.to) })
    }
}

/// Reads the logs of a store. Names of users stand in them in clear, so that not everyone who may ask may read them.
pub(crate) fn read(
    number: usize,
    store: &dyn Store,
    live: &mut Vec<Live>,
    closed: &mut Vec<PathBuf>,
) -> Result<(), LedgerError> {
    let Some(root) = store.local("") else { return Ok(()) };
    let generations = match log::generations(&root) {
        Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
            closed.push(log::folder(&root));
            return Ok(());
        }
        generations => generations?,
    };
    for generation in generations {
        let path = log::path(&root, generation);
        let read = match log::read(&path) {
            // Sealed and removed since the folder was listed: its manifest is there by now.
            Err(error) if error.is_not_found() => continue,
            Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                closed.push(path);
                continue;
            }
            read => read?,
        };
        if let Some(Entry::Header(header)) = read.entries.first() {
            let (host, damaged) = (header.host.clone(), read.damaged > 0);
            live.push(Live { store: number, host, generation, entries: read.entries, damaged });
        }
    }
    Ok(())
}

/// One of each: the same folder may have been named twice.
pub(crate) fn sort(live: &mut Vec<Live>, stores: &[Arc<dyn Store>]) {
    let name = |number: usize| stores.get(number).map(|store| store.name());
    live.sort_by(|a, b| {
        (name(a.store), &a.host, a.generation, a.store).cmp(&(name(b.store), &b.host, b.generation, b.store))
    });
    live.dedup_by(|a, b| (name(a.store), &a.host, a.generation) == (name(b.store), &b.host, b.generation));
}

fn entry_range(entry: &Entry) -> Option<TimeRange> {
    let at = |time: Timestamp| TimeRange::new(time, time);
    match entry {
        Entry::Flow(flow) => TimeRange::new(flow.first, flow.last),
        Entry::Fact(record) => at(record.recorded),
        Entry::Header(_) | Entry::Carried(_) | Entry::Link(_) | Entry::Task(_) => None,
    }
}
