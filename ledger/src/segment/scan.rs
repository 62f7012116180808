//! Reading a segment's files: row groups are skipped by statistics and bloom filters, rows by a filter over the few
//! columns that the question names; only the rows left are decoded.

use std::{fs::File, net::IpAddr, path::Path, sync::Arc};

use arrow::{
    array::{Array, AsArray, BooleanArray, RecordBatch},
    datatypes::{Int64Type, TimestampNanosecondType},
    error::ArrowError,
};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowPredicateFn, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowFilter},
    },
    errors::ParquetError,
    file::{
        metadata::{PageIndexPolicy, RowGroupMetaData},
        statistics::Statistics,
    },
};
use vestigo_model::{FactRecord, Flow, TimeRange, Vo};

use super::{SegmentError, decode, tables::address_text};
use crate::{
    durable::IoError,
    people::{PersonRow, row},
};

/// Which flows a question wants.
#[derive(Debug, Clone)]
pub struct FlowFilter {
    /// Flows that share an instant with it.
    pub range: TimeRange,
    /// Flows with this address on either side or as the translated one.
    pub ip: Option<IpAddr>,
    /// Flows of VMs of this VO.
    pub vo: Option<Vo>,
}

impl FlowFilter {
    /// Whether the flow is wanted: the one definition, also for flows that no file filter has seen.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let sides = [Some(flow.orig_ip), Some(flow.resp_ip), flow.post_nat.map(|nat| nat.ip)];
        self.range.touches(flow.first, Some(flow.last))
            && self.ip.is_none_or(|ip| sides.iter().flatten().any(|side| same(*side, ip)))
            && self.vo.as_ref().is_none_or(|vo| flow.vo.as_ref() == Some(vo))
    }
}

/// Whether two addresses are the same, IPv4-mapped IPv6 being IPv4.
pub(crate) fn same(a: IpAddr, b: IpAddr) -> bool {
    a.to_canonical() == b.to_canonical()
}

type Builder = ParquetRecordBatchReaderBuilder<File>;

fn open(path: &Path) -> Result<Builder, SegmentError> {
    let file = File::open(path).map_err(IoError::at("open", path))?;
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    Builder::try_new_with_options(file, options).map_err(decode_error(path))
}

fn decode_error(path: &Path) -> impl Fn(ParquetError) -> SegmentError {
    move |source| SegmentError::Decode { path: path.to_owned(), source }
}

/// The facts in a file, in the order written, and how many of them this version cannot read.
pub(crate) fn facts(path: &Path) -> Result<(Vec<FactRecord>, u64), SegmentError> {
    let builder = open(path)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["record"]);
    let reader = builder.with_projection(mask).build().map_err(decode_error(path))?;
    let (mut facts, mut unreadable) = (Vec::new(), 0);
    for batch in reader {
        let batch = batch.map_err(|error| decode_error(path)(error.into()))?;
        for text in decode::Columns::new(&batch, path).text("record")?.iter().flatten() {
            match serde_json::from_str(text) {
                Ok(fact) => facts.push(fact),
                Err(_) => unreadable += 1,
            }
        }
    }
    Ok((facts, unreadable))
}

/// The sealed persons in a file, and how many rows are none.
pub(crate) fn people(path: &Path) -> Result<(Vec<PersonRow>, u64), SegmentError> {
    let reader = open(path)?.build().map_err(decode_error(path))?;
    let (mut rows, mut unreadable) = (Vec::new(), 0);
    for batch in reader {
        let (more, bad) = row::read(&batch.map_err(|error| decode_error(path)(error.into()))?, path)?;
        rows.extend(more);
        unreadable += bad;
    }
    Ok((rows, unreadable))
}

/// The flows in a file that the filter wants.
pub(crate) fn flows(path: &Path, filter: &FlowFilter) -> Result<Vec<Flow>, SegmentError> {
    let mut builder = open(path)?;
    let groups = wanted_groups(&mut builder, filter).map_err(decode_error(path))?;
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let row_filter = row_filter(&builder, filter);
    let reader = builder.with_row_groups(groups).with_row_filter(row_filter).build().map_err(decode_error(path))?;
    let mut flows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| decode_error(path)(error.into()))?;
        flows.extend(decode::flows(&batch, path)?.into_iter().filter(|flow| filter.matches(flow)));
    }
    Ok(flows)
}

fn wanted_groups(builder: &mut Builder, filter: &FlowFilter) -> Result<Vec<usize>, ParquetError> {
    let metadata = Arc::clone(builder.metadata());
    let mut wanted = Vec::new();
    for (number, group) in metadata.row_groups().iter().enumerate() {
        if in_time(group, filter.range) && may_hold(builder, number, group, filter.ip)? {
            wanted.push(number);
        }
    }
    Ok(wanted)
}

fn column(group: &RowGroupMetaData, name: &str) -> Option<usize> {
    group.columns().iter().position(|column| column.column_path().string() == name)
}

fn bounds(group: &RowGroupMetaData, name: &str) -> Option<(i64, i64)> {
    match group.column(column(group, name)?).statistics()? {
        Statistics::Int64(values) => Some((*values.min_opt()?, *values.max_opt()?)),
        _ => None,
    }
}

/// A group without statistics may hold anything.
fn in_time(group: &RowGroupMetaData, range: TimeRange) -> bool {
    bounds(group, "first").is_none_or(|(earliest, _)| earliest <= range.to.as_nanos())
        && bounds(group, "last").is_none_or(|(_, latest)| range.from.as_nanos() <= latest)
}

fn may_hold(
    builder: &mut Builder,
    number: usize,
    group: &RowGroupMetaData,
    ip: Option<IpAddr>,
) -> Result<bool, ParquetError> {
    let Some(ip) = ip.map(address_text) else { return Ok(true) };
    for name in ["orig_ip", "resp_ip", "nat_ip"] {
        let Some(index) = column(group, name) else { continue };
        let bloom = builder.get_row_group_column_bloom_filter(number, index)?;
        if bloom.is_none_or(|bloom| bloom.check(ip.as_str())) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn row_filter(builder: &Builder, filter: &FlowFilter) -> RowFilter {
    let mut names = vec!["first", "last"];
    if filter.ip.is_some() {
        names.extend(["orig_ip", "resp_ip", "nat_ip"]);
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), names);
    let (range, ip) = (filter.range, filter.ip.map(address_text));
    RowFilter::new(vec![Box::new(ArrowPredicateFn::new(mask, move |batch| wanted_rows(&batch, range, ip.as_deref())))])
}

fn wanted_rows(batch: &RecordBatch, range: TimeRange, ip: Option<&str>) -> Result<BooleanArray, ArrowError> {
    let first = times(batch, "first")?;
    let last = times(batch, "last")?;
    let sides = match ip {
        Some(_) => vec![texts(batch, "orig_ip")?, texts(batch, "resp_ip")?, texts(batch, "nat_ip")?],
        None => Vec::new(),
    };
    let wanted = (0..batch.num_rows()).map(|row| {
        let in_time = first.value(row) <= range.to.as_nanos() && range.from.as_nanos() <= last.value(row);
        let side = |column: &arrow::array::StringArray| column.is_valid(row) && Some(column.value(row)) == ip;
        in_time && (ip.is_none() || sides.iter().any(side))
    });
    Ok(wanted.map(Some).collect())
}

fn missing(name: &str) -> ArrowError {
    ArrowError::SchemaError(format!("column {name} is missing or of another type"))
}

fn times(batch: &RecordBatch, name: &str) -> Result<arrow::array::Int64Array, ArrowError> {
    let column = batch.column_by_name(name).ok_or_else(|| missing(name))?;
    let times = column.as_primitive_opt::<TimestampNanosecondType>().ok_or_else(|| missing(name))?;
    Ok(times.reinterpret_cast::<Int64Type>())
}

fn texts(batch: &RecordBatch, name: &str) -> Result<arrow::array::StringArray, ArrowError> {
    let column = batch.column_by_name(name).ok_or_else(|| missing(name))?;
    column.as_string_opt::<i32>().cloned().ok_or_else(|| missing(name))
}
