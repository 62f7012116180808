//! The tables as an SQL engine wants them: schemas, and the rows of the live log that no segment holds yet.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use crate::{
    error::LedgerError,
    manifest::Kind,
    reader::LiveRows,
    segment::{SegmentError, content::Content, tables},
};

/// The columns of a table, as this version writes them. Older segments may lack some.
///
/// # Errors
/// Never in practice: the columns of an empty table cannot be built.
pub fn schema(kind: Kind) -> Result<SchemaRef, LedgerError> {
    if kind == Kind::People {
        return Ok(people());
    }
    Ok(batch(kind, &Content::default())?.schema())
}

/// As PEOPLE's table is documented.
fn people() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let mut fields: Vec<Field> =
        ["pseudonym", "vo", "period", "host", "domain", "payload", "key"].into_iter().map(text).collect();
    fields.push(Field::new("sealed", DataType::Binary, true));
    fields.push(Field::new("segment", DataType::UInt32, true));
    Arc::new(Schema::new(fields))
}

fn batch(kind: Kind, content: &Content) -> Result<RecordBatch, LedgerError> {
    let encode = |error: arrow::error::ArrowError| SegmentError::Encode { kind, source: error.into() };
    Ok(tables::build(kind, content).map_err(encode)?)
}

/// Rows of the live logs as rows of a table. Names of people stand in the logs in clear, and in no row of [`Kind::People`].
///
/// # Errors
/// The rows cannot be built.
pub fn of_live(kind: Kind, live: LiveRows) -> Result<RecordBatch, LedgerError> {
    if kind == Kind::People {
        return Ok(RecordBatch::new_empty(people()));
    }
    let (mut content, mut known) = (Content::default(), HashSet::new());
    content.flows = live.flows;
    for (record, carried) in live.facts {
        content.take_fact(record, carried, &mut known);
    }
    batch(kind, &content)
}
