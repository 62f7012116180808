//! Which rows of a file are worth decoding.

use std::collections::BTreeSet;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Int64Type, TimestampNanosecondType},
    error::ArrowError,
};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowPredicateFn, RowFilter, RowSelection, RowSelector},
    },
    file::{metadata::ParquetMetaData, page_index::column_index::ColumnIndexMetaData},
    schema::types::SchemaDescriptor,
};
use vestigo_model::TimeRange;

/// Names of the columns with a row's first and last instant.
pub(crate) type Times = (&'static str, &'static str);

/// A row is wanted if one of the columns has one of the values.
#[derive(Debug, Clone)]
pub(crate) struct Test {
    pub(crate) columns: &'static [&'static str],
    pub(crate) values: BTreeSet<String>,
}

/// The filter over the rows that statistics left.
pub(super) fn filter(schema: &SchemaDescriptor, times: Option<(Times, TimeRange)>, tests: Vec<Test>) -> RowFilter {
    let mut names: Vec<&str> = times.iter().flat_map(|((first, last), _)| [*first, *last]).collect();
    names.extend(tests.iter().flat_map(|test| test.columns));
    let mask = ProjectionMask::columns(schema, names);
    let wanted = move |batch: RecordBatch| wanted(&batch, times, &tests);
    RowFilter::new(vec![Box::new(ArrowPredicateFn::new(mask, wanted))])
}

fn wanted(batch: &RecordBatch, times: Option<(Times, TimeRange)>, tests: &[Test]) -> Result<BooleanArray, ArrowError> {
    let mut rows = vec![true; batch.num_rows()];
    if let Some(((first, last), range)) = times {
        let (first, last) = (instants(batch, first)?, instants(batch, last)?);
        for (row, wanted) in rows.iter_mut().enumerate() {
            *wanted = first.value(row) <= range.to.as_nanos() && range.from.as_nanos() <= last.value(row);
        }
    }
    for test in tests {
        let columns: Vec<&ArrayRef> = test.columns.iter().filter_map(|name| batch.column_by_name(name)).collect();
        let mut hits = vec![false; batch.num_rows()];
        for column in columns {
            mark(column, &test.values, &mut hits)?;
        }
        rows.iter_mut().zip(hits).for_each(|(wanted, hit)| *wanted &= hit);
    }
    Ok(BooleanArray::from(rows))
}

/// Marks the rows whose text is one of the values: of a dictionary each word is compared once.
fn mark(column: &ArrayRef, values: &BTreeSet<String>, hits: &mut [bool]) -> Result<(), ArrowError> {
    if let Some(dictionary) = column.as_any_dictionary_opt() {
        let words = texts(dictionary.values())?;
        let known: Vec<bool> =
            (0..words.len()).map(|word| words.is_valid(word) && values.contains(words.value(word))).collect();
        if known.iter().any(|known| *known) {
            for (row, key) in dictionary.normalized_keys().into_iter().enumerate() {
                let hit = column.is_valid(row) && known.get(key).is_some_and(|known| *known);
                hits.get_mut(row).into_iter().for_each(|wanted| *wanted |= hit);
            }
        }
        return Ok(());
    }
    let texts = texts(column)?;
    for (row, wanted) in hits.iter_mut().enumerate() {
        *wanted |= texts.is_valid(row) && values.contains(texts.value(row));
    }
    Ok(())
}

fn texts(column: &ArrayRef) -> Result<StringArray, ArrowError> {
    let plain = cast(column, &DataType::Utf8)?;
    plain.as_string_opt::<i32>().cloned().ok_or_else(|| missing("of text"))
}

fn missing(name: &str) -> ArrowError {
    ArrowError::SchemaError(format!("column {name} is missing or of another type"))
}

fn instants(batch: &RecordBatch, name: &str) -> Result<arrow::array::Int64Array, ArrowError> {
    let column = batch.column_by_name(name).ok_or_else(|| missing(name))?;
    let times = column.as_primitive_opt::<TimestampNanosecondType>().ok_or_else(|| missing(name))?;
    Ok(times.reinterpret_cast::<Int64Type>())
}

/// The rows of these groups whose pages can hold something of the time; `None` where all can, or nothing is known.
pub(super) fn selection(
    metadata: &ParquetMetaData,
    groups: &[usize],
    (first, last): Times,
    range: TimeRange,
) -> Option<RowSelection> {
    let early = |(earliest, _): (i64, i64)| earliest <= range.to.as_nanos();
    let late = |(_, latest): (i64, i64)| range.from.as_nanos() <= latest;
    let of = |name: &str, wanted: &dyn Fn((i64, i64)) -> bool| -> Option<RowSelection> {
        let mut selectors = Vec::new();
        for group in groups {
            pages(metadata, *group, name, wanted, &mut selectors)?;
        }
        Some(RowSelection::from(selectors))
    };
    match (of(first, &early), of(last, &late)) {
        (Some(a), Some(b)) => Some(a.intersection(&b)),
        (one, other) => one.or(other),
    }
}

fn pages(
    metadata: &ParquetMetaData,
    group: usize,
    name: &str,
    wanted: &dyn Fn((i64, i64)) -> bool,
    selectors: &mut Vec<RowSelector>,
) -> Option<()> {
    let row_group = metadata.row_groups().get(group)?;
    let column = super::scan::column(row_group, name)?;
    let ColumnIndexMetaData::INT64(index) = metadata.column_index()?.get(group)?.get(column)? else { return None };
    let locations = metadata.offset_index()?.get(group)?.get(column)?.page_locations();
    let total = row_group.num_rows();
    let (mut earliest, mut latest) = (index.min_values_iter(), index.max_values_iter());
    for (page, location) in locations.iter().enumerate() {
        let end = locations.get(page + 1).map_or(total, |next| next.first_row_index);
        let rows = usize::try_from(end.checked_sub(location.first_row_index)?).ok()?;
        // An index with fewer pages than there are is of no use.
        let bounds = earliest.next()?.copied().zip(latest.next()?.copied());
        let keep = bounds.is_none_or(wanted);
        selectors.push(if keep { RowSelector::select(rows) } else { RowSelector::skip(rows) });
    }
    Some(())
}
