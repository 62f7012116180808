//! A table as a whole: read back, sorted, digested.

use std::{fs::File, path::Path};

use arrow::{
    array::{ArrayRef, RecordBatch, UInt32Array},
    compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, FactRecord};

use super::{SegmentError, decode::Columns};
use crate::{durable::IoError, manifest::Kind};

/// All rows of a segment's file. The file is one that a signed manifest lists: it has a segment's size.
pub(crate) fn read_batch(path: &Path) -> Result<RecordBatch, SegmentError> {
    let decode = |source| SegmentError::Decode { path: path.to_owned(), source };
    let file = File::open(path).map_err(IoError::at("open", path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build()).map_err(decode)?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches = reader.collect::<Result<Vec<_>, ArrowError>>().map_err(|error| decode(error.into()))?;
    concat_batches(&schema, &batches).map_err(|error| decode(error.into()))
}

/// The facts in a file, in the order written, and how many of them this version cannot read.
pub(crate) fn facts(path: &Path) -> Result<(Vec<FactRecord>, u64), SegmentError> {
    let batch = read_batch(path)?;
    let (mut facts, mut unreadable) = (Vec::new(), 0);
    for text in Columns::new(&batch, path).text("record")?.iter().flatten() {
        match serde_json::from_str(text) {
            Ok(fact) => facts.push(fact),
            Err(_) => unreadable += 1,
        }
    }
    Ok((facts, unreadable))
}

/// The rows in the order in which a segment has them.
pub(crate) fn sorted(kind: Kind, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if kind != Kind::Flows {
        return Ok(batch.clone());
    }
    let by = ["first", "last"].into_iter().filter_map(|name| batch.column_by_name(name)).cloned();
    let by: Vec<SortColumn> = by.map(|values: ArrayRef| SortColumn { values, options: None }).collect();
    let order = lexsort_to_indices(&by, None)?;
    take_record_batch(batch, &order)
}

/// PROVISIONAL until the documented one.
pub fn rows_digest(_kind: Kind, batch: &RecordBatch) -> Result<Digest, ArrowError> {
    let schema = batch.schema();
    let columns: Vec<_> = schema.fields().iter().zip(batch.columns()).filter(|(f, _)| f.name() != "segment").collect();
    let columns: Vec<(_, ArrayRef)> = columns
        .into_iter()
        .map(|(f, c)| match c.data_type() {
            arrow::datatypes::DataType::Timestamp(..) => {
                Ok((f, arrow::compute::cast(c, &arrow::datatypes::DataType::Int64)?))
            }
            _ => Ok((f, std::sync::Arc::clone(c))),
        })
        .collect::<Result<_, ArrowError>>()?;
    let options = FormatOptions::default().with_null("\u{0}");
    let formats =
        columns.iter().map(|(_, c)| ArrayFormatter::try_new(c.as_ref(), &options)).collect::<Result<Vec<_>, _>>()?;
    let mut rows: Vec<String> = (0..batch.num_rows())
        .map(|row| formats.iter().map(|f| f.value(row).to_string()).collect::<Vec<_>>().join("\u{1}"))
        .collect();
    rows.sort_unstable();
    Ok(Digest(Sha256::digest(rows.join("\u{2}")).into()))
}

/// With the number of the segment in which the rows were sealed.
pub(crate) fn numbered(batch: &RecordBatch, sequence: u64) -> Result<RecordBatch, ArrowError> {
    let number = u32::try_from(sequence).unwrap_or(u32::MAX);
    let column: ArrayRef = std::sync::Arc::new(UInt32Array::from(vec![number; batch.num_rows()]));
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(std::sync::Arc::new(arrow::datatypes::Field::new("segment", column.data_type().clone(), false)));
    let mut columns = batch.columns().to_vec();
    columns.push(column);
    RecordBatch::try_new(std::sync::Arc::new(arrow::datatypes::Schema::new(fields)), columns)
}
