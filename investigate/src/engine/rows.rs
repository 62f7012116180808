//! Rows as text: for the eye, as JSON Lines, as CSV. What comes from a ledger is escaped.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufWriter, Seek as _, Write as _},
};

use anyhow::{Context as _, Result};
use datafusion::arrow::{
    array::{Array, ArrayRef, AsArray as _, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, SchemaRef, TimeUnit, TimestampNanosecondType, UInt64Type},
    util::display::{ArrayFormatter, FormatOptions},
};
use serde::{Serialize, Serializer};
use serde_json::Value;
use vestigo_model::Timestamp;

use crate::{
    arguments::Format,
    render::{self, safe, safe_json},
};

/// Rows shown in a table for the eye; more are told, and printed by the other formats.
const SHOWN: u64 = 10_000;

/// The value in a row, as JSON.
pub fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            cast(column, &DataType::UInt64).map_or(Value::Null, |of| of.as_primitive::<UInt64Type>().value(row).into())
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            cast(column, &DataType::Int64).map_or(Value::Null, |of| of.as_primitive::<Int64Type>().value(row).into())
        }
        DataType::Float32 | DataType::Float64 => cast(column, &DataType::Float64)
            .map_or(Value::Null, |of| of.as_primitive::<Float64Type>().value(row).into()),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            Timestamp::from_nanos(column.as_primitive::<TimestampNanosecondType>().value(row)).to_string().into()
        }
        _ => shown(column, row).into(),
    }
}

fn shown(column: &ArrayRef, row: usize) -> String {
    let options = FormatOptions::default();
    ArrayFormatter::try_new(column.as_ref(), &options).map(|of| of.value(row).to_string()).unwrap_or_default()
}

/// A row: names and values, in the order of the columns, which a JSON object keeps as it was asked for.
#[derive(Debug, Clone)]
pub struct Row(pub Vec<(String, Value)>);

impl Row {
    /// The value of a column.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The row, for a JSON object.
pub fn object(batch: &RecordBatch, row: usize) -> Row {
    let schema = batch.schema();
    let cells = schema.fields().iter().zip(batch.columns());
    Row(cells.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
}

/// The value in words.
pub fn words(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => safe(text),
        other => other.to_string(),
    }
}

fn cell(value: &Value, lines: bool) -> String {
    match value {
        Value::String(text) if lines => text.trim_end().split('\n').map(safe).collect::<Vec<_>>().join("\n"),
        value => words(value),
    }
}

/// Takes rows and writes them into a file without a name, so that nothing is shown before all of it is there.
pub struct Printer {
    format: Format,
    file: BufWriter<File>,
    table: comfy_table::Table,
    names: Vec<String>,
    /// Whether a cell may have lines: in a plan, and never in what comes from a ledger.
    lines: bool,
    /// Rows taken.
    pub rows: u64,
}

impl Printer {
    /// Begins; CSV writes its line of names. `lines`: the rows are those of a plan.
    ///
    /// # Errors
    /// There is no room for temporary files.
    pub fn new(format: Format, schema: &SchemaRef, lines: bool) -> Result<Self> {
        let file =
            tempfile::tempfile().context("Cannot make a temporary file; set TMPDIR to a folder that can be written")?;
        let names: Vec<String> = schema.fields().iter().map(|field| safe(field.name())).collect();
        let header: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut printer =
            Self { format, file: BufWriter::new(file), table: render::table(&header), names, lines, rows: 0 };
        if format == Format::Csv {
            let line: Vec<String> = printer.names.iter().map(|name| quoted(name)).collect();
            writeln!(printer.file, "{}", line.join(","))?;
        }
        Ok(printer)
    }

    /// Takes the rows of a batch.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        for row in 0..batch.num_rows() {
            self.rows += 1;
            match self.format {
                Format::Table if self.rows > SHOWN => {}
                Format::Table => {
                    let lines = self.lines;
                    self.table.add_row(batch.columns().iter().map(|column| cell(&value(column, row), lines)));
                }
                Format::Jsonl => {
                    writeln!(self.file, "{}", safe_json(&serde_json::to_string(&object(batch, row))?))?;
                }
                Format::Csv => {
                    let cells: Vec<String> =
                        batch.columns().iter().map(|column| quoted(&words(&value(column, row)))).collect();
                    writeln!(self.file, "{}", cells.join(","))?;
                }
            }
        }
        Ok(())
    }

    /// The file, at its beginning.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub fn finish(mut self) -> Result<File> {
        if self.format == Format::Table {
            let mut text = render::table_text(&self.table);
            if self.rows > SHOWN {
                let _ =
                    writeln!(text, "The first {SHOWN} of {} rows are shown; --format csv or jsonl has all.", self.rows);
            }
            self.file.write_all(text.as_bytes())?;
        }
        let mut file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(file)
    }
}

/// A cell of a CSV file (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
