//! The records of a segment, gathered from the generations of the log that it will replace.

use std::{collections::HashSet, path::Path};

use vestigo_model::{Fact, FactRecord, TimeRange, Timestamp};

use crate::{
    durable::IoError,
    entry::Entry,
    flows::Flows,
    log,
    manifest::{Losses, Validity},
    people::PersonRow,
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
    /// Sorted.
    pub(crate) flows: Flows,
    /// In the order written: of two records with the same key, the later one holds.
    pub(crate) facts: Vec<FactRow>,
    /// Who the pseudonyms in `facts` are, sealed. Empty where nobody seals.
    pub(crate) people: Vec<PersonRow>,
    pub(crate) losses: Losses,
}

/// Reads the generations, in order.
pub(crate) fn gather(root: &Path, generations: &[u64]) -> Result<Content, IoError> {
    let mut content = Content::default();
    let (mut known, mut singles) = (HashSet::new(), Vec::new());
    for generation in generations {
        let read = log::read(&log::path(root, *generation))?;
        content.losses.torn_bytes += read.torn;
        content.losses.damaged_bytes += read.damaged;
        content.losses.unreadable_records += read.unreadable;
        for entry in read.entries {
            match entry {
                Entry::Flow(flow) => singles.push(*flow),
                Entry::Flows(batch) => content.flows.append(batch),
                Entry::Fact(record) => content.take_fact(*record, false, &mut known),
                Entry::Carried(record) => content.take_fact(*record, true, &mut known),
                Entry::Header(_) | Entry::Link(_) | Entry::Task(_) => {}
            }
        }
    }
    content.flows.append(Flows::of(&singles));
    content.flows.sort();
    Ok(content)
}

impl Content {
    /// A second generation's snapshot repeats facts of the first: one copy is enough.
    pub(crate) fn take_fact(&mut self, record: FactRecord, carried: bool, known: &mut HashSet<String>) {
        let text = serde_json::to_string(&record).unwrap_or_default();
        if known.insert(text.clone()) || !carried {
            self.facts.push(FactRow { record, text, carried });
        }
    }

    /// Whether there is anything that no earlier segment holds.
    pub(crate) fn is_new(&self) -> bool {
        !self.flows.rows.is_empty() || self.facts.iter().any(|row| !row.carried)
    }

    /// All that its own records speak of.
    pub(crate) fn span(&self) -> Option<TimeRange> {
        let spans = [self.flow_range(), self.coverage_range(), self.recorded_range()];
        spans.into_iter().flatten().reduce(|a, b| TimeRange { from: a.from.min(b.from), to: a.to.max(b.to) })
    }

    /// Time of the first record: it names the segment.
    pub(crate) fn first(&self) -> Option<Timestamp> {
        let facts = self.facts.iter().filter(|row| !row.carried).map(|row| row.record.recorded);
        facts.chain(self.flows.rows.iter().map(|row| Timestamp::from_nanos(row.first))).min()
    }

    pub(crate) fn flow_range(&self) -> Option<TimeRange> {
        let at = Timestamp::from_nanos;
        span(self.flows.rows.iter().map(|row| (at(row.first), at(row.last()))))
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
