//! What of the ledgers a question has to look at, and facts out of it.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use vestigo_model::{
    DomainUuid, Event, EventKind, Fact, FactRecord, HostId, PayloadUid, TRANSLATION_RETOLD, TimeRange, Timestamp,
    Translation,
};

use super::{
    Ledger, Place,
    facts::{Facts, Merge, touches},
    live::Live,
    rows::{Test, Times},
    scan::Opened,
    source::{self, Source},
};
use crate::{
    catalog::{Found, Summary, address_bytes},
    entry::Entry,
    error::LedgerError,
    manifest::Kind,
};

/// Segments and live logs that may matter.
pub(crate) struct Scope<'a> {
    pub(super) ledger: &'a Ledger,
    /// By host and sequence.
    pub(crate) segments: Vec<Arc<Summary>>,
    live: Vec<&'a Live>,
}

/// Which kinds of facts are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kinds(&'static [Kind]);

impl Kinds {
    pub(crate) const ALL: Self = Self(&[Kind::Instances, Kind::Payloads, Kind::Coverage, Kind::Events]);
    pub(crate) const INSTANCES: Self = Self(&[Kind::Instances]);
    pub(crate) const PAYLOADS: Self = Self(&[Kind::Payloads]);
    pub(crate) const COVERAGE: Self = Self(&[Kind::Coverage]);
    pub(crate) const EVENTS: Self = Self(&[Kind::Events]);
}

/// Which facts are wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Facts that touch it.
    pub(crate) range: TimeRange,
    pub(crate) kinds: Kinds,
    /// Of these VMs (instances, payloads and what speaks of one VM); `None`: of all.
    pub(crate) domains: Option<BTreeSet<DomainUuid>>,
    /// Of these hypervisors; `None`: of all.
    pub(crate) hosts: Option<BTreeSet<HostId>>,
    /// Of payloads: only these runs; `None`: all.
    pub(crate) payloads: Option<BTreeSet<PayloadUid>>,
}

impl Wish {
    /// All facts that touch the range.
    pub(crate) const fn all(range: TimeRange) -> Self {
        Self { range, kinds: Kinds::ALL, domains: None, hosts: None, payloads: None }
    }

    fn wants(&self, fact: &Fact) -> bool {
        if let (Some(runs), Fact::Payload(payload)) = (&self.payloads, fact)
            && !runs.contains(&payload.claim.uid)
        {
            return false;
        }
        let (host, domain) = match fact {
            Fact::Instance(instance) => (&instance.host, Some(instance.domain)),
            Fact::Payload(payload) => (&payload.host, Some(payload.domain)),
            Fact::Coverage(coverage) => (&coverage.host, coverage.domain),
            Fact::Event(event) => (&event.host, event.domain),
        };
        self.kinds.0.contains(&kind_of(fact))
            && self.hosts.as_ref().is_none_or(|hosts| hosts.contains(host))
            && self.domains.as_ref().is_none_or(|domains| domain.is_none_or(|domain| domains.contains(&domain)))
    }

    /// The part of it that a file's rows can be chosen by.
    fn tests(&self, kind: Kind) -> Vec<Test> {
        let by_vm = matches!(kind, Kind::Instances | Kind::Payloads);
        let domains = self.domains.as_ref().filter(|_| by_vm);
        let domains = domains.map(|all| Test { columns: &["domain"], values: texts(all) });
        let runs = self.payloads.as_ref().filter(|_| kind == Kind::Payloads);
        let runs = runs.map(|all| Test { columns: &["payload"], values: texts(all) });
        domains.into_iter().chain(runs).collect()
    }
}

fn texts<T: ToString>(all: &BTreeSet<T>) -> BTreeSet<String> {
    all.iter().map(ToString::to_string).collect()
}

const fn kind_of(fact: &Fact) -> Kind {
    match fact {
        Fact::Instance(_) => Kind::Instances,
        Fact::Payload(_) => Kind::Payloads,
        Fact::Coverage(_) => Kind::Coverage,
        Fact::Event(_) => Kind::Events,
    }
}

fn times(kind: Kind) -> Option<Times> {
    match kind {
        Kind::Coverage => Some(("start", "end")),
        Kind::Events => Some(("time", "time")),
        Kind::Flows | Kind::Instances | Kind::Payloads | Kind::People => None,
    }
}

impl<'a> Scope<'a> {
    /// A generation that a segment of its own store and host holds is not read twice.
    pub(super) fn new(ledger: &'a Ledger, found: Found) -> Self {
        let covered: HashMap<Place, u64> = found.covered;
        let is_open =
            |live: &&Live| covered.get(&(live.store, live.host.clone())).is_none_or(|last| live.generation > *last);
        Self { ledger, segments: found.segments, live: ledger.live.iter().filter(is_open).collect() }
    }

    /// The same with fewer segments, and the logs.
    pub(crate) fn only(&self, wanted: impl Fn(&Summary) -> bool) -> Self {
        let segments = self.segments.iter().filter(|one| wanted(one)).map(Arc::clone).collect();
        Self { ledger: self.ledger, segments, live: self.live.clone() }
    }

    /// The same without the logs, which were asked already.
    pub(crate) fn sealed_only(self) -> Self {
        Self { live: Vec::new(), ..self }
    }

    /// Segments in which one of the addresses may stand on the VM's side.
    pub(crate) fn holding(&self, addresses: &BTreeSet<IpAddr>) -> Self {
        let wanted: BTreeSet<[u8; 16]> = addresses.iter().map(|ip| address_bytes(*ip)).collect();
        self.only(|segment| segment.may_have(&wanted))
    }

    /// Hypervisors with a segment or a log in it.
    pub(crate) fn hosts(&self) -> BTreeSet<HostId> {
        let sealed = self.segments.iter().map(|segment| segment.host.clone());
        sealed.chain(self.live.iter().map(|live| live.host.clone())).collect()
    }

    /// Hypervisors whose log speaks of this time, or of a VM that ran then: what no segment says yet has to be looked at.
    pub(crate) fn live_hosts(&self, range: TimeRange) -> BTreeSet<HostId> {
        let ran = |entry: &Entry| match entry {
            Entry::Fact(record) | Entry::Carried(record) => match &record.fact {
                Fact::Instance(one) => range.touches(one.start, one.end.map(|end| end.time)),
                _ => false,
            },
            _ => false,
        };
        let speaks =
            |live: &&&Live| live.range().is_some_and(|own| own.overlaps(&range)) || live.entries.iter().any(ran);
        self.live.iter().filter(speaks).map(|live| live.host.clone()).collect()
    }

    /// Whether there are logs that may not be read.
    pub(crate) fn has_closed_logs(&self) -> bool {
        !self.ledger.closed.is_empty()
    }

    /// The entries of logs, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &'a Entry> {
        self.live.iter().flat_map(|live| &live.entries)
    }

    /// The file of a segment, with its manifest looked at first.
    pub(super) fn open(&self, segment: &Summary, kind: Kind) -> Result<Option<Source>, LedgerError> {
        if segment.rows(kind) == 0 || segment.expired {
            return Ok(None);
        }
        let manifest = self.ledger.manifest(segment)?;
        source::open(self.ledger.store(segment)?, &segment.folder, &manifest, kind)
    }

    /// The facts that are wanted, as they stand.
    pub(crate) fn facts(&self, wish: &Wish) -> Result<Facts, LedgerError> {
        let merge = self.merge(wish, wish.range.to)?;
        // A claim that arrived after the range and only says that it ran in it may not be the first under its key.
        match merge.payloads.latest(|payload| touches(&wish.range, payload)) {
            Some(latest) if latest > wish.range.to => Ok(self.merge(wish, latest)?.finish(wish.range)),
            _ => Ok(merge.finish(wish.range)),
        }
    }

    /// Translations told apart from flow records, each statement by itself, that may have held in the range.
    pub(crate) fn translations(&self, range: TimeRange) -> Result<Vec<Translation>, LedgerError> {
        // Told at their end, or a while after they began and then again and again.
        let told = TimeRange { from: range.from, to: range.to + TRANSLATION_RETOLD };
        let mut translations = Vec::new();
        let mut take = |event: &Event| {
            if told.touches(event.time, Some(event.time)) {
                translations.extend(Translation::from_event(event));
            }
        };
        for segment in self.segments.iter().filter(|one| one.coverage.is_some_and(|range| told.overlaps(&range))) {
            let Some(source) = self.open(segment, Kind::Events)? else { continue };
            let bindings = Test { columns: &["what"], values: [EventKind::NatBinding.as_str().to_owned()].into() };
            Opened::new(source)?.facts(Some((("time", "time"), told)), vec![bindings], |record| {
                if let Fact::Event(event) = &record.fact {
                    take(event);
                }
            })?;
        }
        self.live_events().for_each(&mut take);
        Ok(translations)
    }

    /// Instances and payloads of the range and on to `until`, and what was seen and happened in the range.
    fn merge(&self, wish: &Wish, until: Timestamp) -> Result<Merge, LedgerError> {
        let mut merge = Merge::default();
        let (range, held) = (wish.range, TimeRange { from: wish.range.from, to: until });
        let of_host = |one: &&Arc<Summary>| wish.hosts.as_ref().is_none_or(|hosts| hosts.contains(&one.host));
        for segment in self.segments.iter().filter(of_host) {
            for kind in wish.kinds.0 {
                let touched = match kind {
                    Kind::Flows | Kind::People => false,
                    Kind::Instances | Kind::Payloads => segment.facts.is_some_and(|v| held.touches(v.from, v.to)),
                    Kind::Coverage | Kind::Events => segment.coverage.is_some_and(|c| range.overlaps(&c)),
                };
                // Nothing of no VM is wanted: not even the file's end has to be read.
                let of_none = matches!(kind, Kind::Instances | Kind::Payloads)
                    && wish.domains.as_ref().is_some_and(BTreeSet::is_empty);
                if !touched || of_none {
                    continue;
                }
                let Some(source) = self.open(segment, *kind)? else { continue };
                let rows = times(*kind).map(|times| (times, range));
                let take = |record: FactRecord| {
                    if wish.wants(&record.fact) {
                        merge.take(record);
                    }
                };
                let unreadable = Opened::new(source)?.facts(rows, wish.tests(*kind), take)?;
                merge.unreadable += unreadable;
            }
        }
        merge.unreadable += u64::try_from(self.live.iter().filter(|live| live.damaged).count()).unwrap_or(u64::MAX);
        for entry in self.entries() {
            if let Entry::Carried(record) | Entry::Fact(record) = entry
                && wish.wants(&record.fact)
            {
                merge.take(record.as_ref().clone());
            }
        }
        Ok(merge)
    }
}
