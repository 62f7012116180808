//! The records of a file against the digests that were sealed with them, whatever the file's encoding is now.

use std::path::Path;

use arrow::array::{Array as _, AsArray as _, BooleanArray, RecordBatch};
use arrow::datatypes::UInt32Type;

use crate::{
    manifest::{FileEntry, Kind},
    segment::{self, rows_digest},
};

/// Whether the file has the rows that its entry speaks of; else how it differs.
pub(crate) fn check(path: &Path, entry: &FileEntry) -> Result<(), String> {
    let batch = segment::read_batch(path).map_err(|error| chain(&error))?;
    compare(&batch, entry)
}

/// Whether a compacted file has, for each of these segments, the rows that its entry speaks of, and none of others.
pub(crate) fn check_groups(path: &Path, kind: Kind, wanted: &[(u64, &FileEntry)]) -> Vec<(u64, String)> {
    let batch = match segment::read_batch(path) {
        Ok(batch) => batch,
        Err(error) => return vec![(0, chain(&error))],
    };
    let mut wrong = Vec::new();
    let mut told = 0_u64;
    for (sequence, entry) in wanted {
        let result = group(&batch, *sequence).and_then(|rows| compare(&rows, entry));
        wrong.extend(result.err().map(|how| (*sequence, how)));
        told += entry.rows;
    }
    let there = u64::try_from(batch.num_rows()).unwrap_or(u64::MAX);
    if wrong.is_empty() && there != told {
        wrong.push((0, format!("{there} rows of {kind}, {told} were sealed")));
    }
    wrong
}

fn compare(batch: &RecordBatch, entry: &FileEntry) -> Result<(), String> {
    let rows = u64::try_from(batch.num_rows()).unwrap_or(u64::MAX);
    if rows != entry.rows {
        return Err(format!("{rows} rows, {} were sealed", entry.rows));
    }
    // A segment of version 1 tells its rows by the file alone.
    let Some(sealed) = entry.rows_sha256 else { return Ok(()) };
    let digest = rows_digest(entry.kind, batch).map_err(|error| chain(&error))?;
    if digest == sealed { Ok(()) } else { Err(format!("rows hash to {digest}, those sealed to {sealed}")) }
}

/// The rows of one original segment.
pub(crate) fn group(batch: &RecordBatch, sequence: u64) -> Result<RecordBatch, String> {
    let column = batch.column_by_name("segment").and_then(|column| column.as_primitive_opt::<UInt32Type>());
    let column = column.ok_or("there is no column segment")?;
    let own: BooleanArray =
        (0..column.len()).map(|row| Some(column.is_valid(row) && u64::from(column.value(row)) == sequence)).collect();
    arrow::compute::filter_record_batch(batch, &own).map_err(|error| error.to_string())
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
