//! The tables as an SQL engine wants them: schemas, and the rows of the live log that no segment holds yet.

use std::collections::HashSet;

use arrow::{array::RecordBatch, datatypes::SchemaRef};

use crate::{
    error::LedgerError,
    flows::Flows,
    manifest::Kind,
    reader::LiveRows,
    segment::{SegmentError, content::Content, rows::numbered, tables},
};

/// The columns of a table, as this version writes them. Older segments may lack some.
///
/// # Errors
/// Never in practice: the columns of an empty table cannot be built.
pub fn schema(kind: Kind) -> Result<SchemaRef, LedgerError> {
    Ok(batch(kind, &Content::default())?.schema())
}

/// Number of the segment of rows that are in none yet.
const LIVE: u64 = 0;

fn batch(kind: Kind, content: &Content) -> Result<RecordBatch, LedgerError> {
    let encode = |error: arrow::error::ArrowError| SegmentError::Encode { kind, source: error.into() };
    let table = tables::build(kind, content).map_err(encode)?;
    Ok(numbered(&table, LIVE).map_err(encode)?)
}

/// Rows of the live logs as rows of a table. Names of people stand in the logs in clear, and in no row of [`Kind::People`].
///
/// # Errors
/// The rows cannot be built.
pub fn of_live(kind: Kind, live: LiveRows) -> Result<RecordBatch, LedgerError> {
    let (mut content, mut known) = (Content::default(), HashSet::new());
    content.flows = Flows::of(&live.flows);
    content.flows.sort();
    for (record, carried) in live.facts {
        content.take_fact(record, carried, &mut known);
    }
    batch(kind, &content)
}
