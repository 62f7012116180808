//! Reading a segment's files: row groups are skipped by statistics and bloom filters, pages by the page index, rows by a filter over
//! the few columns that the question names; only the rows left are decoded.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    bloom_filter::Sbbf,
    errors::ParquetError,
    file::{
        metadata::{PageIndexPolicy, ParquetMetaData, RowGroupMetaData},
        statistics::Statistics,
    },
};
use vestigo_model::{FactRecord, Flow, TimeRange};

use super::{
    query::FlowQuery,
    rows::{self, Test},
    source::Source,
};
use crate::{
    catalog::Blooms,
    error::LedgerError,
    manifest::Kind,
    segment::{SegmentError, decode},
};

/// Rows decoded at once: bounds what a scan holds.
const BATCH: usize = 4096;

type Builder = ParquetRecordBatchReaderBuilder<Source>;

/// A file whose footer was read.
pub(super) struct Opened {
    source: Source,
    builder: Builder,
}

impl Opened {
    pub(super) fn new(source: Source) -> Result<Self, LedgerError> {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let builder = Builder::try_new_with_options(source.clone(), options).map_err(|e| error(&source, e))?;
        Ok(Self { source, builder: builder.with_batch_size(BATCH) })
    }

    fn metadata(&self) -> &Arc<ParquetMetaData> {
        self.builder.metadata()
    }

    /// The bloom filters of these columns, where the file has them.
    pub(super) fn blooms(&self, columns: &[&str]) -> Result<Blooms, LedgerError> {
        let mut blooms = Blooms::new();
        for name in columns {
            let mut groups = Vec::new();
            for group in self.metadata().row_groups() {
                let Some(index) = column(group, name) else { continue };
                let read = Sbbf::read_from_column_chunk(group.column(index), &self.source);
                let Some(bloom) = read.map_err(|e| error(&self.source, e))? else { continue };
                let mut bits = Vec::new();
                bloom.write_bitset(&mut bits).map_err(|e| error(&self.source, e))?;
                groups.push(bits);
            }
            // One group without a filter may hold anything.
            if groups.len() == self.metadata().num_row_groups() {
                blooms.insert((*name).to_owned(), groups);
            }
        }
        Ok(blooms)
    }

    /// Whether a column has a value at all.
    pub(super) fn has_any(&self, name: &str) -> bool {
        self.metadata().row_groups().iter().any(|group| {
            let Some(index) = column(group, name) else { return false };
            let nulls = group.column(index).statistics().and_then(Statistics::null_count_opt);
            nulls.is_none_or(|nulls| nulls < u64::try_from(group.num_rows()).unwrap_or(u64::MAX))
        })
    }

    /// Gives every flow that the query wants; the callback may end it.
    pub(super) fn flows(
        mut self,
        query: &FlowQuery,
        take: &mut dyn FnMut(Flow) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LedgerError> {
        let tests = query.tests();
        let groups = self.wanted_groups(("first", "last"), query.range, &tests)?;
        if groups.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let (source, metadata) = (self.source, Arc::clone(self.builder.metadata()));
        if let Some(selection) = rows::selection(&metadata, &groups, ("first", "last"), query.range) {
            self.builder = self.builder.with_row_selection(selection);
        }
        let filter = rows::filter(self.builder.parquet_schema(), Some((("first", "last"), query.range)), tests);
        let reader = self.builder.with_row_groups(groups).with_row_filter(filter).build();
        for batch in reader.map_err(|e| error(&source, e))? {
            let batch = batch.map_err(|e| error(&source, e.into()))?;
            for flow in decode::flows(&batch, source.path())? {
                if query.matches(&flow) && take(flow).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The facts in the file, in the order written, and how many of them this version cannot read.
    pub(super) fn facts(
        mut self,
        times: Option<(rows::Times, TimeRange)>,
        tests: Vec<Test>,
        mut take: impl FnMut(FactRecord),
    ) -> Result<u64, LedgerError> {
        let whole = TimeRange {
            from: vestigo_model::Timestamp::from_nanos(i64::MIN),
            to: vestigo_model::Timestamp::from_nanos(i64::MAX),
        };
        let (columns, range) = times.unwrap_or((("", ""), whole));
        let groups = self.wanted_groups(columns, range, &tests)?;
        let metadata = Arc::clone(self.builder.metadata());
        if let Some(selection) = rows::selection(&metadata, &groups, columns, range) {
            self.builder = self.builder.with_row_selection(selection);
        }
        let schema = self.builder.parquet_schema();
        let (mask, filter) = (ProjectionMask::columns(schema, ["record"]), rows::filter(schema, times, tests));
        let source = self.source;
        let reader = self.builder.with_row_groups(groups).with_projection(mask).with_row_filter(filter).build();
        let mut unreadable = 0;
        for batch in reader.map_err(|e| error(&source, e))? {
            let batch = batch.map_err(|e| error(&source, e.into()))?;
            for text in decode::Columns::new(&batch, source.path()).text("record")?.iter().flatten() {
                match serde_json::from_str(text) {
                    Ok(fact) => take(fact),
                    Err(_) => unreadable += 1,
                }
            }
        }
        Ok(unreadable)
    }

    fn wanted_groups(&self, times: rows::Times, range: TimeRange, tests: &[Test]) -> Result<Vec<usize>, LedgerError> {
        let mut wanted = Vec::new();
        for (number, group) in self.metadata().row_groups().iter().enumerate() {
            if in_time(group, times, range) && self.may_hold(number, group, tests)? {
                wanted.push(number);
            }
        }
        Ok(wanted)
    }

    fn may_hold(&self, number: usize, group: &RowGroupMetaData, tests: &[Test]) -> Result<bool, LedgerError> {
        for test in tests {
            let mut may = false;
            for name in test.columns {
                let Some(index) = column(group, name) else { continue };
                let bloom = self.builder.get_row_group_column_bloom_filter(number, index);
                let bloom = bloom.map_err(|e| error(&self.source, e))?;
                may = bloom
                    .filter(|bloom| bloom.num_blocks() > 0)
                    .is_none_or(|bloom| test.values.iter().any(|value| bloom.check(value.as_str())));
                if may {
                    break;
                }
            }
            if !may {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Columns whose filters are kept in the catalog.
pub(super) fn kept(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Flows => &["orig_ip", "resp_ip", "nat_ip", "payload", "domain"],
        // `user_subject` before version 2, `user` since.
        Kind::Payloads => &["payload", "user", "user_subject"],
        Kind::People => &["pseudonym"],
        Kind::Instances | Kind::Coverage | Kind::Events => &[],
    }
}

fn error(source: &Source, error: ParquetError) -> LedgerError {
    SegmentError::Decode { path: source.path().to_owned(), source: error }.into()
}

pub(super) fn column(group: &RowGroupMetaData, name: &str) -> Option<usize> {
    group.columns().iter().position(|column| column.column_path().string() == name)
}

fn bounds(group: &RowGroupMetaData, name: &str) -> Option<(i64, i64)> {
    match group.column(column(group, name)?).statistics()? {
        Statistics::Int64(values) => Some((*values.min_opt()?, *values.max_opt()?)),
        _ => None,
    }
}

/// A group without statistics may hold anything.
fn in_time(group: &RowGroupMetaData, (first, last): rows::Times, range: TimeRange) -> bool {
    bounds(group, first).is_none_or(|(earliest, _)| earliest <= range.to.as_nanos())
        && bounds(group, last).is_none_or(|(_, latest)| range.from.as_nanos() <= latest)
}

/// The filters of a file, to be kept.
pub(super) fn filters(opened: &Opened, kind: Kind) -> Result<Blooms, LedgerError> {
    let mut blooms = opened.blooms(kept(kind))?;
    if kind == Kind::Flows {
        // Not a filter, but found at the same price: whether any record stands for many conversations.
        let folded = if opened.has_any("folded_flows") { vec![vec![1]] } else { Vec::new() };
        blooms.insert(FOLDED.to_owned(), folded);
    }
    Ok(blooms)
}

/// Kept beside the filters of flows: one byte where there are folded records, none where there are not.
pub(super) const FOLDED: &str = "folded";

/// What a map of filters says of one value set.
pub(crate) fn any_holds(blooms: &BTreeMap<String, Vec<Vec<u8>>>, columns: &[&str], values: &[String]) -> Option<bool> {
    let mut known = false;
    for name in columns {
        let Some(groups) = blooms.get(*name) else { continue };
        known = true;
        // Not a filter but a yes or no.
        if values.is_empty() {
            return Some(!groups.is_empty());
        }
        for bits in groups.iter().filter(|bits| !bits.is_empty() && bits.len() % 32 == 0) {
            let bloom = Sbbf::new(bits);
            if values.iter().any(|value| bloom.check(value.as_str())) {
                return Some(true);
            }
        }
    }
    known.then_some(false)
}
