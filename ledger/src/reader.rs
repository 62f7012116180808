//! The reader: sealed segments and the live log of any number of ledgers, at one moment.
//!
//! The order of reading makes it safe beside a writer that seals: the log is read before the manifests are listed, so a
//! generation that is sealed meanwhile is found in one place at least, and dropped from the log when it is in both.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use vestigo_model::{
    Coverage, DomainUuid, Event, Fact, FactRecord, Flow, HostId, Instance, Payload, PayloadUid, TRANSLATION_RETOLD,
    TimeRange, Timestamp, Translation,
};

use crate::{
    claims::Claims,
    entry::Entry,
    error::LedgerError,
    log,
    manifest::{self, Kind, Sealed},
    segment::scan::{self, FlowFilter},
};

/// A generation of a live log.
struct Live {
    host: HostId,
    generation: u64,
    entries: Vec<Entry>,
    /// Whether bytes between whole records are no record: some may be missing.
    damaged: bool,
}

/// Several ledgers, as they were when opened.
pub struct Ledger {
    /// By host, then by sequence.
    sealed: Vec<Sealed>,
    /// By host, then by generation.
    live: Vec<Live>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({} segments, {} live generations)", self.sealed.len(), self.live.len())
    }
}

/// The facts that touch a range: of a VM the last record under each key, of a payload the first claim and its end.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    /// VMs.
    pub instances: Vec<Instance>,
    /// Payloads.
    pub payloads: Vec<Payload>,
    /// What guests claimed under the key of one of `payloads` (or at this time) although something else had been claimed
    /// under it before: by key, then by arrival. None of it is in `payloads`.
    pub conflicting: Vec<Payload>,
    /// What could be seen.
    pub coverage: Vec<Coverage>,
    /// What happened.
    pub events: Vec<Event>,
    /// Records that this version cannot read.
    pub unreadable: u64,
}

impl Ledger {
    /// Opens the ledgers (folders with `wal/` or `date=…/`), each possibly being written at this moment.
    ///
    /// # Errors
    /// [`LedgerError::NotALedger`], or what the disk or a damaged manifest says.
    pub fn open(roots: &[PathBuf]) -> Result<Self, LedgerError> {
        let (mut live, mut sealed) = (Vec::new(), Vec::new());
        for root in roots {
            check(root)?;
            read_live(root, &mut live)?;
            read_sealed(root, &mut sealed)?;
        }
        sealed.sort_by(|a, b| key(a).cmp(&key(b)));
        // The same segment in two places (a folder and its copy) counts once.
        sealed.dedup_by(|a, b| key(a) == key(b) && a.digest == b.digest);
        let covered = covered(&sealed);
        live.retain(|l| covered.get(&l.host).is_none_or(|last| l.generation > *last));
        live.sort_by(|a, b| (&a.host, a.generation).cmp(&(&b.host, b.generation)));
        live.dedup_by(|a, b| (&a.host, a.generation) == (&b.host, b.generation));
        Ok(Self { sealed, live })
    }

    /// The manifests, by host and sequence.
    #[must_use]
    pub fn segments(&self) -> &[Sealed] {
        &self.sealed
    }

    /// What the live logs hold and no segment does.
    pub(crate) fn live_entries(&self) -> impl Iterator<Item = &Entry> {
        self.live.iter().flat_map(|live| &live.entries)
    }

    /// From the first to the last instant that any record speaks of; `None` when there is no record.
    #[must_use]
    pub fn extent(&self) -> Option<TimeRange> {
        let sealed = self.sealed.iter().flat_map(|s| [s.manifest.flows, s.manifest.recorded, s.manifest.coverage]);
        let live = self.live.iter().flat_map(|l| &l.entries).map(entry_range);
        let mut ranges = sealed.chain(live).flatten();
        let first = ranges.next()?;
        let hull = |a: TimeRange, b: TimeRange| TimeRange { from: a.from.min(b.from), to: a.to.max(b.to) };
        Some(ranges.fold(first, hull))
    }

    /// The flows that the filter wants, by first packet.
    ///
    /// # Errors
    /// A segment that cannot be read: an answer that leaves it out in silence would be no evidence.
    pub fn flows(&self, filter: &FlowFilter) -> Result<Vec<Flow>, LedgerError> {
        let mut flows = Vec::new();
        let touched = |s: &&Sealed| s.manifest.flows.is_some_and(|range| range.overlaps(&filter.range));
        for sealed in self.sealed.iter().filter(touched) {
            if let Some(path) = sealed.file(Kind::Flows)? {
                flows.extend(scan::flows(&path, filter)?);
            }
        }
        let live = self.live.iter().flat_map(|l| &l.entries).filter_map(|entry| match entry {
            Entry::Flow(flow) if filter.matches(flow) => Some(flow.as_ref().clone()),
            _ => None,
        });
        flows.extend(live);
        flows.sort_by_key(|flow| (flow.first, flow.last));
        Ok(flows)
    }

    /// The facts that touch the range.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn facts(&self, range: TimeRange) -> Result<Facts, LedgerError> {
        self.facts_of(range, &Kind::ALL, |_| true)
    }

    /// The payloads of one VM that touch the range, read without the facts of any other: on a host of many VMs those are many.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn payloads_of(&self, domain: DomainUuid, range: TimeRange) -> Result<Vec<Payload>, LedgerError> {
        let of_vm = |fact: &Fact| matches!(fact, Fact::Payload(payload) if payload.domain == domain);
        Ok(self.facts_of(range, &[Kind::Payloads], of_vm)?.payloads)
    }

    fn facts_of(&self, range: TimeRange, kinds: &[Kind], wanted: impl Fn(&Fact) -> bool) -> Result<Facts, LedgerError> {
        let merge = self.merge(range, range.to, kinds, &wanted)?;
        // A claim that arrived after the range and only says that it ran in it may not be the first under its key.
        match merge.payloads.latest(|payload| touches(&range, payload)) {
            Some(latest) if latest > range.to => Ok(self.merge(range, latest, kinds, &wanted)?.finish(range)),
            _ => Ok(merge.finish(range)),
        }
    }

    /// Translations told apart from flow records, each statement by itself, that may have held in the range.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn translations(&self, range: TimeRange) -> Result<Vec<Translation>, LedgerError> {
        // Told at their end, or a while after they began and then again and again.
        let told = TimeRange { from: range.from, to: range.to + TRANSLATION_RETOLD };
        let mut translations = Vec::new();
        let mut take = |record: &FactRecord| match &record.fact {
            Fact::Event(event) if told.touches(event.time, Some(event.time)) => {
                translations.extend(Translation::from_event(event));
            }
            _ => {}
        };
        for sealed in self.sealed.iter().filter(|s| s.manifest.coverage.is_some_and(|range| told.overlaps(&range))) {
            if let Some(path) = sealed.file(Kind::Events)? {
                scan::facts(&path)?.0.iter().for_each(&mut take);
            }
        }
        for entry in self.live.iter().flat_map(|l| &l.entries) {
            if let Entry::Fact(record) = entry {
                take(record);
            }
        }
        Ok(translations)
    }

    /// Instances and payloads of the range and on to `until`, and what was seen and happened in the range.
    fn merge(
        &self,
        range: TimeRange,
        until: Timestamp,
        kinds: &[Kind],
        wanted: &impl Fn(&Fact) -> bool,
    ) -> Result<Merge, LedgerError> {
        let mut merge = Merge::default();
        let held = TimeRange { from: range.from, to: until };
        for sealed in &self.sealed {
            let validity = sealed.manifest.facts.is_some_and(|v| held.touches(v.from, v.to));
            let coverage = sealed.manifest.coverage.is_some_and(|c| range.overlaps(&c));
            for kind in kinds {
                let touched = match kind {
                    Kind::Flows | Kind::People => false,
                    Kind::Instances | Kind::Payloads => validity,
                    Kind::Coverage | Kind::Events => coverage,
                };
                if !touched {
                    continue;
                }
                let Some(path) = sealed.file(*kind)? else { continue };
                let (facts, unreadable) = scan::facts(&path)?;
                merge.unreadable += unreadable;
                facts.into_iter().filter(|record| wanted(&record.fact)).for_each(|fact| merge.take(fact));
            }
        }
        merge.unreadable += u64::try_from(self.live.iter().filter(|live| live.damaged).count()).unwrap_or(u64::MAX);
        for entry in self.live.iter().flat_map(|l| &l.entries) {
            if let Entry::Carried(fact) | Entry::Fact(fact) = entry
                && wanted(&fact.fact)
            {
                merge.take(fact.as_ref().clone());
            }
        }
        Ok(merge)
    }
}

impl Facts {
    /// What the guest claimed under this key after something else had been claimed under it.
    #[must_use]
    pub fn conflicting_with(&self, host: &HostId, domain: DomainUuid, uid: PayloadUid) -> &[Payload] {
        let asked = (host, domain, uid);
        let from = self.conflicting.partition_point(|p| (&p.host, p.domain, p.claim.uid) < asked);
        let to = self.conflicting.partition_point(|p| (&p.host, p.domain, p.claim.uid) <= asked);
        self.conflicting.get(from..to).unwrap_or_default()
    }
}

/// Whether the payload ran in the range, by either clock.
fn touches(range: &TimeRange, payload: &Payload) -> bool {
    let end = payload.end.map(|end| end.received.max(end.claimed));
    range.touches(payload.received.min(payload.claimed), end)
}

fn key(sealed: &Sealed) -> (&HostId, u64) {
    (&sealed.manifest.host, sealed.manifest.sequence)
}

fn covered(sealed: &[Sealed]) -> BTreeMap<HostId, u64> {
    let mut covered = BTreeMap::new();
    for sealed in sealed {
        let last = covered.entry(sealed.manifest.host.clone()).or_insert(0);
        *last = sealed.manifest.wal.last.max(*last);
    }
    covered
}

fn check(root: &Path) -> Result<(), LedgerError> {
    let names = crate::durable::names(root)?;
    let known = names.iter().any(|name| name == "wal" || name.starts_with("date="));
    if known { Ok(()) } else { Err(LedgerError::NotALedger { root: root.to_owned() }) }
}

fn read_live(root: &Path, live: &mut Vec<Live>) -> Result<(), LedgerError> {
    for generation in log::generations(root)? {
        let read = match log::read(&log::path(root, generation)) {
            // Sealed and removed since the folder was listed: its manifest is there by now.
            Err(error) if error.is_not_found() => continue,
            read => read?,
        };
        if let Some(Entry::Header(header)) = read.entries.first() {
            live.push(Live { host: header.host.clone(), generation, entries: read.entries, damaged: read.damaged > 0 });
        }
    }
    Ok(())
}

fn read_sealed(root: &Path, sealed: &mut Vec<Sealed>) -> Result<(), LedgerError> {
    for folder in manifest::folders(root, None)? {
        for place in manifest::places(&folder)? {
            sealed.push(manifest::read(&place)?);
        }
    }
    Ok(())
}

fn entry_range(entry: &Entry) -> Option<TimeRange> {
    match entry {
        Entry::Flow(flow) => TimeRange::new(flow.first, flow.last),
        Entry::Fact(record) => TimeRange::new(record.recorded, record.recorded),
        Entry::Header(_) | Entry::Carried(_) | Entry::Link(_) | Entry::Task(_) => None,
    }
}

/// Later records of a VM replace earlier ones of the same key, payloads follow [`Claims`]. Events and coverage have no key: each counts once.
#[derive(Default)]
struct Merge {
    instances: BTreeMap<(HostId, DomainUuid, Timestamp), Instance>,
    payloads: Claims,
    coverage: Vec<Coverage>,
    events: Vec<Event>,
    unreadable: u64,
}

impl Merge {
    fn take(&mut self, record: FactRecord) {
        match record.fact {
            Fact::Instance(i) => {
                self.instances.insert((i.host.clone(), i.domain, i.start), i);
            }
            Fact::Payload(payload) => self.payloads.take(payload),
            Fact::Coverage(coverage) => self.coverage.push(coverage),
            Fact::Event(event) => self.events.push(event),
        }
    }

    fn finish(self, range: TimeRange) -> Facts {
        let of_instance = |i: &Instance| range.touches(i.start, i.end.map(|end| end.time));
        let (payloads, conflicting) = self.payloads.finish(|payload| touches(&range, payload));
        let mut facts = Facts {
            instances: self.instances.into_values().filter(of_instance).collect(),
            payloads,
            conflicting,
            coverage: self.coverage.into_iter().filter(|c| range.touches(c.from, Some(c.to))).collect(),
            events: self.events.into_iter().filter(|e| range.touches(e.time, Some(e.time))).collect(),
            unreadable: self.unreadable,
        };
        facts.coverage.sort_by_key(|c| (c.from, c.to));
        facts.events.sort_by_key(|e| e.time);
        facts
    }
}
