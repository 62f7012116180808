//! A table as a whole: read back, in its canonical order, digested. `docs/formats/ledger.md`, "Digest of rows", is the same for
//! people.

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array},
    compute::{cast, concat_batches, take_record_batch},
    datatypes::{DataType, Field, Int32Type, Schema},
    error::ArrowError,
    row::{RowConverter, SortField},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, FactRecord};

use super::{SegmentError, decode::Columns};
use crate::{durable::IoError, flows::number, manifest::Kind};

/// The column that tells in which segment a row was sealed first. It is no part of the row.
pub(crate) const SEGMENT: &str = "segment";

/// Rows of flows stand in the order of these columns, text by its bytes, null first; rows that are alike in all of them stay as they are.
const ORDER: [&str; 20] = [
    "host",
    "tap",
    "domain",
    "instance",
    "vo",
    "payload",
    "first",
    "last",
    "orig_ip",
    "orig_port",
    "resp_ip",
    "resp_port",
    "proto",
    "vlan",
    "orig_packets",
    "orig_bytes",
    "resp_packets",
    "resp_bytes",
    "orig_flags",
    "resp_flags",
];

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

/// The rows in canonical order; facts are in it as they were written.
pub(crate) fn sorted(kind: Kind, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    if kind != Kind::Flows {
        return Ok(batch.clone());
    }
    let columns: Vec<ArrayRef> = ORDER.iter().filter_map(|name| batch.column_by_name(name)).cloned().collect();
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let keys = RowConverter::new(fields)?.convert_columns(&columns)?;
    let mut order: Vec<usize> = (0..batch.num_rows()).collect();
    order.sort_by(|a, b| keys.row(*a).cmp(&keys.row(*b)));
    take_record_batch(batch, &order.into_iter().map(|at| Some(number(at))).collect::<UInt32Array>())
}

/// SHA-256 over the rows, whatever their encoding and order in the file.
///
/// # Errors
/// A column of a type that no segment has.
pub fn rows_digest(kind: Kind, batch: &RecordBatch) -> Result<Digest, ArrowError> {
    digest(&sorted(kind, batch)?)
}

/// The same of rows that are in canonical order already.
pub(crate) fn digest(batch: &RecordBatch) -> Result<Digest, ArrowError> {
    let mut hash = Sha256::new();
    hash.update(length(batch.num_rows()));
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()).filter(|(f, _)| f.name() != SEGMENT) {
        hash.update(field.name().as_bytes());
        hash.update([0]);
        add_column(&mut hash, column)?;
    }
    Ok(Digest(hash.finalize().into()))
}

fn length(of: usize) -> [u8; 8] {
    u64::try_from(of).unwrap_or(u64::MAX).to_le_bytes()
}

fn add_column(hash: &mut Sha256, column: &ArrayRef) -> Result<(), ArrowError> {
    match column.data_type() {
        DataType::Dictionary(..) | DataType::Utf8 | DataType::Binary => add_texts(hash, column),
        DataType::Boolean => {
            let flags = column.as_boolean();
            let bytes: Vec<u8> =
                (0..flags.len()).map(|row| u8::from(flags.is_valid(row) && flags.value(row))).collect();
            hash.update(&bytes);
            Ok(())
        }
        other => {
            let width = other
                .primitive_width()
                .ok_or_else(|| ArrowError::SchemaError(format!("no segment has a column of type {other}")))?;
            add_numbers(hash, column, width)
        }
    }
}

/// A byte that says whether all (0), none (1) or some (2) are null; for some, a bit for each row, 1 where there is a value; then
/// the values, zero for null; nothing where all are null.
fn add_numbers(hash: &mut Sha256, column: &ArrayRef, width: usize) -> Result<(), ArrowError> {
    let rows = column.len();
    if column.null_count() == rows && rows > 0 {
        hash.update([0]);
        return Ok(());
    }
    let data = column.to_data();
    let all = data.buffers().first().map(|buffer| buffer.as_slice()).unwrap_or_default();
    let from = data.offset() * width;
    let values = all
        .get(from..from + rows * width)
        .ok_or_else(|| ArrowError::SchemaError("a column is cut short".to_owned()))?;
    if column.null_count() == 0 {
        hash.update([1]);
        hash.update(values);
        return Ok(());
    }
    let mut bits = vec![0_u8; rows.div_ceil(8)];
    let mut own = values.to_vec();
    for (row, value) in own.chunks_exact_mut(width).enumerate() {
        if column.is_null(row) {
            value.fill(0);
        } else if let Some(byte) = bits.get_mut(row / 8) {
            *byte |= 1 << (row % 8);
        }
    }
    hash.update([2]);
    hash.update(&bits);
    hash.update(&own);
    Ok(())
}

fn add_texts(hash: &mut Sha256, column: &ArrayRef) -> Result<(), ArrowError> {
    match column.data_type() {
        DataType::Dictionary(key, _) if **key == DataType::Int32 => {
            let dictionary = column.as_dictionary::<Int32Type>();
            let words = cast(dictionary.values(), &DataType::Utf8)?;
            let (words, keys) = (words.as_string::<i32>(), dictionary.keys());
            let word = |key: i32| {
                let key = usize::try_from(key).ok().filter(|key| *key < words.len() && words.is_valid(*key));
                key.map(|key| words.value(key).as_bytes())
            };
            add_runs(hash, keys.iter().map(|key| key.and_then(word)));
        }
        DataType::Binary => add_runs(hash, column.as_binary::<i32>().iter()),
        _ => add_runs(hash, cast(column, &DataType::Utf8)?.as_string::<i32>().iter().map(|t| t.map(str::as_bytes))),
    }
    Ok(())
}

/// Runs of equal values: how many, how long each is (all ones for null), and its bytes.
fn add_runs<'a>(hash: &mut Sha256, values: impl Iterator<Item = Option<&'a [u8]>>) {
    let mut add = |count: u32, value: Option<&[u8]>| {
        hash.update(count.to_le_bytes());
        hash.update(value.map_or(u32::MAX, |bytes| number(bytes.len())).to_le_bytes());
        hash.update(value.unwrap_or_default());
    };
    let (mut held, mut count) = (None, 0);
    for value in values {
        if count > 0 && value != held {
            add(count, held);
            count = 0;
        }
        held = value;
        count += 1;
    }
    if count > 0 {
        add(count, held);
    }
}

/// With the number of the segment in which the rows were sealed.
pub(crate) fn numbered(batch: &RecordBatch, sequence: u64) -> Result<RecordBatch, ArrowError> {
    let number = u32::try_from(sequence).unwrap_or(u32::MAX);
    let column: ArrayRef = Arc::new(UInt32Array::from(vec![number; batch.num_rows()]));
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(SEGMENT, column.data_type().clone(), false)));
    let mut columns = batch.columns().to_vec();
    columns.push(column);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
