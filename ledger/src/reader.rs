//! The reader: sealed segments and live logs of any number of ledgers.
//!
//! The order of reading makes it safe beside a writer that seals: the logs are read when the ledger is opened, manifests are listed by
//! each question after that. So a generation that is sealed meanwhile is found in one place at least, and dropped from the log when it
//! is in both. Manifests are listed only for the days that a question is about, and files opened only where their manifest does not
//! rule them out.

mod facts;
mod flows;
mod live;
mod pick;
mod query;
mod rows;
mod scan;
mod source;
mod tables;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use vestigo_model::{DomainUuid, Flow, HostId, Payload, TimeRange, Timestamp};

pub use facts::Facts;
pub(crate) use pick::{Kinds, Scope, Wish};
pub use query::FlowQuery;
pub(crate) use scan::any_holds;
pub use tables::{LiveRows, SegmentFile, TableHints};

use crate::{
    catalog::{self, Cache, Days, Summary},
    error::LedgerError,
    manifest::{self, Manifest},
    segment::scan::FlowFilter,
    store::{FolderStore, Store},
};
use live::Live;

/// How a ledger is opened.
#[derive(Debug, Default)]
pub struct OpenOptions {
    /// The file that keeps what manifests said (feature `catalog`). It may be removed at any time; without it questions over many
    /// segments are slower. It holds addresses, so it is made readable for its owner only.
    pub catalog: Option<PathBuf>,
}

/// Several ledgers.
pub struct Ledger {
    stores: Vec<Arc<dyn Store>>,
    cache: Cache,
    /// By store and host, then by generation.
    live: Vec<Live>,
    /// Logs that may not be read, by path: the newest minutes are missing from answers.
    closed: Vec<PathBuf>,
    /// Manifests read since it was opened: a question opens several files of one segment.
    manifests: Mutex<Vec<(vestigo_model::Digest, Arc<Manifest>)>>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({} stores, {} live generations)", self.stores.len(), self.live.len())
    }
}

/// Most manifests that are kept parsed.
const KEPT: usize = 64;

impl Ledger {
    /// Opens the ledgers, each possibly being written at this moment.
    ///
    /// # Errors
    /// [`LedgerError::NotALedger`], or what a store says.
    pub fn open(stores: Vec<Arc<dyn Store>>, options: OpenOptions) -> Result<Self, LedgerError> {
        let (mut live, mut closed) = (Vec::new(), Vec::new());
        for (number, store) in stores.iter().enumerate() {
            check(store.as_ref())?;
            live::read(number, store.as_ref(), &mut live, &mut closed)?;
        }
        live::sort(&mut live, &stores);
        Ok(Self { stores, cache: Cache::open(options.catalog), live, closed, manifests: Mutex::default() })
    }

    /// Opens ledgers that are folders (with `wal/` or `date=…/`), without a catalog.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_folders(roots: &[PathBuf]) -> Result<Self, LedgerError> {
        Self::open(roots.iter().map(|root| FolderStore::shared(root)).collect(), OpenOptions::default())
    }

    /// Logs that this process may not read: what hostd has not sealed yet is missing from its answers.
    #[must_use]
    pub fn unreadable_logs(&self) -> &[PathBuf] {
        &self.closed
    }

    /// From the first to the last instant that any record speaks of; `None` when there is no record.
    ///
    /// # Errors
    /// A store's word, or a damaged manifest.
    pub fn extent(&self) -> Result<Option<TimeRange>, LedgerError> {
        let mut days: Vec<String> = Vec::new();
        for store in &self.stores {
            days.extend(catalog::folders(store.as_ref(), &Days::ALL)?);
        }
        days.sort_unstable();
        days.dedup();
        days.retain(|day| day != catalog::days::NO_DAY);
        // A segment's first record lies in its day, its last one in the day after at most.
        let last = days.len().saturating_sub(2);
        let edges = days.first().into_iter().chain(days.get(last..).unwrap_or_default());
        let mut ranges: Vec<TimeRange> = self.live.iter().filter_map(Live::range).collect();
        for day in edges {
            let day = Days { from: Some(day.clone()), to: Some(day.clone()) };
            let segments = catalog::segments(&self.stores, &self.cache, &day)?;
            ranges.extend(segments.segments.iter().flat_map(|one| [one.flows, one.recorded, one.coverage]).flatten());
        }
        let hull = |a: TimeRange, b: TimeRange| TimeRange { from: a.from.min(b.from), to: a.to.max(b.to) };
        Ok(ranges.into_iter().reduce(hull))
    }

    /// The flows that the filter wants, by first packet.
    ///
    /// # Errors
    /// A segment that cannot be read: an answer that leaves it out in silence would be no evidence.
    pub fn flows(&self, filter: &FlowFilter) -> Result<Vec<Flow>, LedgerError> {
        let query = FlowQuery::from(filter);
        self.asked(|| self.scope(query.range)?.flows(&query))
    }

    /// Gives the callback every flow that the query wants, segment by segment, in no order across them; it may end that.
    ///
    /// # Errors
    /// [`LedgerError::Changed`] or a missing file when a segment was replaced meanwhile: flows were given by then, so whoever asked begins anew.
    /// A segment that cannot be read: an answer that leaves it out in silence would be no evidence.
    pub fn flows_matching(
        &self,
        query: impl Into<FlowQuery>,
        take: &mut dyn FnMut(Flow) -> std::ops::ControlFlow<()>,
    ) -> Result<(), LedgerError> {
        let query = query.into();
        self.scope(query.range)?.each_flow(&query, take)
    }

    /// The facts that touch the range.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn facts(&self, range: TimeRange) -> Result<Facts, LedgerError> {
        self.asked(|| self.scope(range)?.facts(&Wish::all(range)))
    }

    /// The payloads of one VM that touch the range, read without the facts of any other: on a host of many VMs those are many.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn payloads_of(&self, domain: DomainUuid, range: TimeRange) -> Result<Vec<Payload>, LedgerError> {
        let wish = Wish { kinds: Kinds::PAYLOADS, domains: Some([domain].into()), ..Wish::all(range) };
        self.asked(|| Ok(self.scope(range)?.facts(&wish)?.payloads))
    }

    /// Asks, and once again if a segment was replaced or removed meanwhile.
    pub(crate) fn asked<T>(&self, ask: impl Fn() -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        match ask() {
            Err(error) if error.is_of_a_moment() => ask(),
            answer => answer,
        }
    }

    /// The segments and logs in which records of the range can lie.
    pub(crate) fn scope(&self, range: TimeRange) -> Result<Scope<'_>, LedgerError> {
        Ok(Scope::new(self, catalog::segments(&self.stores, &self.cache, &Days::of(range))?))
    }

    /// One host's segments of one day, without logs.
    pub(crate) fn scope_of_host(&self, date: &str, host: &HostId) -> Result<Scope<'_>, LedgerError> {
        Ok(Scope::new(self, catalog::of_host(&self.stores, date, host)?).sealed_only())
    }

    /// The places asked.
    pub(crate) fn stores(&self) -> &[Arc<dyn Store>] {
        &self.stores
    }

    /// The manifest of a segment, read from where it lies: it has to be the one that the catalog knows.
    pub(crate) fn manifest(&self, segment: &Summary) -> Result<Arc<Manifest>, LedgerError> {
        let mut known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, manifest)) = known.iter().find(|(digest, _)| *digest == segment.digest) {
            return Ok(Arc::clone(manifest));
        }
        let store = self.store(segment)?;
        let path = format!("{}/{}.manifest.json", segment.folder, segment.segment);
        let shown = PathBuf::from(store.name()).join(&path);
        let (manifest, digest) = manifest::parse(&shown, &store.read(&path)?)?;
        if digest != segment.digest {
            self.cache.forget(store.as_ref(), &segment.folder);
            return Err(LedgerError::Changed { path: shown });
        }
        let manifest = Arc::new(manifest);
        if known.len() >= KEPT {
            known.remove(0);
        }
        known.push((digest, Arc::clone(&manifest)));
        Ok(manifest)
    }

    pub(crate) fn store(&self, segment: &Summary) -> Result<&Arc<dyn Store>, LedgerError> {
        let path = || PathBuf::from(&segment.folder);
        self.stores.get(segment.store).ok_or_else(|| LedgerError::Changed { path: path() })
    }
}

/// A host of a store: live logs belong to one writer, and two hosts may have one name.
pub(crate) type Place = (usize, HostId);

/// The whole of time.
pub(crate) const EVER: TimeRange =
    TimeRange { from: Timestamp::from_nanos(i64::MIN), to: Timestamp::from_nanos(i64::MAX) };

fn check(store: &dyn Store) -> Result<(), LedgerError> {
    let known = store.list("")?.iter().any(|one| one.name == "wal" || one.name.starts_with("date="));
    if known { Ok(()) } else { Err(LedgerError::NotALedger { root: PathBuf::from(store.name()) }) }
}
