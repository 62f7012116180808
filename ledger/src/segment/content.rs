//! The records of a segment, gathered from the generations of the log that it will replace.

use std::{collections::HashSet, path::Path};

use vestigo_model::{Fact, FactRecord, Flow, TimeRange, Timestamp};

use crate::{
    durable::IoError,
    entry::Entry,
    log,
    manifest::{Losses, Validity},
};

/// A fact and where it comes from.
#[derive(Debug, Clone)]
pub(crate) struct FactRow {
    pub(crate) record: FactRecord,
    /// The record as JSON text: stored beside the columns, so that nothing is lost in them.
    pub(crate) text: String,
    /// A copy of a record that an earlier segment holds.
    pub(crate) carried: bool,
}

/// Everything that goes into one segment.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) flows: Vec<Flow>,
    /// In the order written: of two records with the same key, the later one holds.
    pub(crate) facts: Vec<FactRow>,
    pub(crate) losses: Losses,
}

/// Reads the generations, in order.
pub(crate) fn gather(root: &Path, generations: &[u64]) -> Result<Content, IoError> {
    let mut content = Content::default();
    let mut known = HashSet::new();
    for generation in generations {
        let read = log::read(&log::path(root, *generation))?;
        content.losses.torn_bytes += read.torn;
        content.losses.damaged_bytes += read.damaged;
        content.losses.unreadable_records += read.unreadable;
        for entry in read.entries {
            content.take(entry, &mut known);
        }
    }
    content.flows.sort_by_key(|flow| (flow.first, flow.last));
    Ok(content)
}

impl Content {
    fn take(&mut self, entry: Entry, known: &mut HashSet<String>) {
        match entry {
            Entry::Header(_) | Entry::Link(_) | Entry::Task(_) => {}
            Entry::Flow(flow) => self.flows.push(*flow),
            Entry::Fact(record) => self.take_fact(*record, false, known),
            Entry::Carried(record) => self.take_fact(*record, true, known),
        }
    }

    /// A second generation's snapshot repeats facts of the first: one copy is enough.
    pub(crate) fn take_fact(&mut self, record: FactRecord, carried: bool, known: &mut HashSet<String>) {
        let text = serde_json::to_string(&record).unwrap_or_default();
        if known.insert(text.clone()) || !carried {
            self.facts.push(FactRow { record, text, carried });
        }
    }

    /// Whether there is anything that no earlier segment holds.
    pub(crate) fn is_new(&self) -> bool {
        !self.flows.is_empty() || self.facts.iter().any(|row| !row.carried)
    }

    /// Time of the first record: it names the segment and its day.
    pub(crate) fn first(&self) -> Option<Timestamp> {
        let facts = self.facts.iter().filter(|row| !row.carried).map(|row| row.record.recorded);
        facts.chain(self.flows.iter().map(|flow| flow.first)).min()
    }

    pub(crate) fn flow_range(&self) -> Option<TimeRange> {
        span(self.flows.iter().map(|flow| (flow.first, flow.last)))
    }

    pub(crate) fn recorded_range(&self) -> Option<TimeRange> {
        span(self.facts.iter().filter(|row| !row.carried).map(|row| (row.record.recorded, row.record.recorded)))
    }

    pub(crate) fn coverage_range(&self) -> Option<TimeRange> {
        span(self.facts.iter().filter_map(|row| match &row.record.fact {
            Fact::Coverage(coverage) => Some((coverage.from, coverage.to)),
            Fact::Event(event) => Some((event.time, event.time)),
            Fact::Instance(_) | Fact::Payload(_) => None,
        }))
    }

    /// When the instances and payloads held. A payload counts from its claimed start too, if that is earlier: its lease may
    /// have been announced late.
    pub(crate) fn validity(&self) -> Option<Validity> {
        let mut stretches = self.facts.iter().filter_map(|row| match &row.record.fact {
            Fact::Instance(i) => Some((i.start, i.end.map(|end| end.time))),
            Fact::Payload(p) => Some((p.received.min(p.claimed), p.end.map(|end| end.received.max(end.claimed)))),
            Fact::Coverage(_) | Fact::Event(_) => None,
        });
        let (from, to) = stretches.next()?;
        let (from, to) = stretches
            .fold((from, to), |(from, to), (start, end)| (from.min(start), to.zip(end).map(|(a, b)| a.max(b))));
        Some(Validity { from, to })
    }
}

fn span(mut stretches: impl Iterator<Item = (Timestamp, Timestamp)>) -> Option<TimeRange> {
    let (from, to) = stretches.next()?;
    let (from, to) = stretches.fold((from, to), |(a, b), (from, to)| (a.min(from), b.max(to)));
    TimeRange::new(from, to)
}
