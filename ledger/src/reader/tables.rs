//! Files for engines that read Parquet themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use vestigo_model::{Event, Fact, FactRecord, Flow, HostId, TimeRange};

use super::{EVER, Ledger, pick::Scope, scan};
use crate::{catalog::Summary, entry::Entry, error::LedgerError, manifest::Kind, store::Store};

/// One file of a segment, whose length is in its manifest.
#[derive(Debug, Clone)]
pub struct SegmentFile {
    /// Where it lies.
    pub store: Arc<dyn Store>,
    /// Its path there.
    pub path: String,
    /// How long it is.
    pub bytes: u64,
    /// How many records.
    pub rows: u64,
    /// The hypervisor whose segment it is.
    pub host: HostId,
}

/// What is known of the rows wanted; what it does not rule out is given.
#[derive(Debug, Default, Clone)]
pub struct TableHints {
    /// Only of these hypervisors; empty: of all.
    pub hosts: BTreeSet<HostId>,
    /// Rows with one of these values in the column. Columns without bloom filters rule nothing out.
    pub equal: BTreeMap<String, BTreeSet<String>>,
    /// Flows with one of these addresses on either side or as the translated one; empty: any.
    pub addresses: BTreeSet<String>,
}

/// What no segment holds yet: the records of the logs.
#[derive(Debug, Default, Clone)]
pub struct LiveRows {
    /// Flows.
    pub flows: Vec<Flow>,
    /// Facts, and whether each is a copy of one that a segment holds.
    pub facts: Vec<(FactRecord, bool)>,
}

impl Ledger {
    /// The files of a kind in which rows of the time (without one: of any) can lie, by host and sequence.
    ///
    /// # Errors
    /// A store's word, or a damaged manifest.
    pub fn tables(
        &self,
        kind: Kind,
        range: Option<TimeRange>,
        hints: &TableHints,
    ) -> Result<Vec<SegmentFile>, LedgerError> {
        let range = range.unwrap_or(EVER);
        let scope = self.scope(range)?;
        let wanted = |one: &&Arc<Summary>| {
            one.rows(kind) > 0
                && in_time(one, kind, range)
                && (hints.hosts.is_empty() || hints.hosts.contains(&one.host))
        };
        let segments: Vec<_> = scope.segments.iter().filter(wanted).map(Arc::clone).collect();
        let known = scan::kept(kind);
        let columns: Vec<(&str, &BTreeSet<String>)> = hints
            .equal
            .iter()
            .filter(|(column, _)| known.contains(&column.as_str()))
            .map(|(c, v)| (c.as_str(), v))
            .collect();
        let names: Vec<[&str; 1]> = columns.iter().map(|(column, _)| [*column]).collect();
        let mut filters: Vec<(&[&str], Vec<String>)> = names
            .iter()
            .zip(&columns)
            .map(|(name, (_, values))| (name.as_slice(), values.iter().cloned().collect()))
            .collect();
        if kind == Kind::Flows && !hints.addresses.is_empty() {
            filters.push((&["orig_ip", "resp_ip", "nat_ip"], hints.addresses.iter().cloned().collect()));
        }
        let mut files = Vec::new();
        for (segment, _) in scope.ruled(kind, segments, &filters) {
            files.extend(self.files_of(&segment, kind)?);
        }
        Ok(files)
    }

    /// What the logs hold beside the segments of the time.
    ///
    /// # Errors
    /// A store's word, or a damaged manifest.
    pub fn live_rows(&self, range: Option<TimeRange>) -> Result<LiveRows, LedgerError> {
        let range = range.unwrap_or(EVER);
        let mut rows = LiveRows::default();
        for entry in self.scope(range)?.entries() {
            match entry {
                Entry::Flow(flow) if range.touches(flow.first, Some(flow.last)) => {
                    rows.flows.push(flow.as_ref().clone())
                }
                Entry::Fact(record) => rows.facts.push((record.as_ref().clone(), false)),
                Entry::Carried(record) => rows.facts.push((record.as_ref().clone(), true)),
                _ => {}
            }
        }
        Ok(rows)
    }

    fn files_of(&self, segment: &Summary, kind: Kind) -> Result<Vec<SegmentFile>, LedgerError> {
        let (manifest, store) = (self.manifest(segment)?, self.store(segment)?);
        let of_kind =
            manifest.files.iter().filter(|file| file.kind == kind && file.rows > 0 && !file.name.contains('/'));
        let file = |entry: &crate::manifest::FileEntry| SegmentFile {
            store: Arc::clone(store),
            path: format!("{}/{}", segment.folder, entry.name),
            bytes: entry.bytes,
            rows: entry.rows,
            host: segment.host.clone(),
        };
        // Of a segment with a tombstone some files may still be there: a full disk takes the flows first.
        let is_there = |file: &SegmentFile| !segment.expired || file.store.size(&file.path).is_ok();
        Ok(of_kind.map(file).filter(is_there).collect())
    }
}

fn in_time(segment: &Summary, kind: Kind, range: TimeRange) -> bool {
    match kind {
        Kind::Flows => segment.flows.is_some_and(|flows| flows.overlaps(&range)),
        Kind::Coverage | Kind::Events => segment.coverage.is_some_and(|coverage| coverage.overlaps(&range)),
        Kind::Instances | Kind::Payloads => segment.facts.is_some_and(|facts| range.touches(facts.from, facts.to)),
        Kind::People => true,
    }
}

impl Scope<'_> {
    /// Events of the logs.
    pub(crate) fn live_events(&self) -> impl Iterator<Item = &Event> {
        self.entries().filter_map(|entry| match entry {
            Entry::Fact(record) => match &record.fact {
                Fact::Event(event) => Some(event),
                _ => None,
            },
            _ => None,
        })
    }
}
