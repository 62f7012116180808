//! A table under construction: named, typed columns. The few column types that a segment uses, each in one place.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, DictionaryArray, Int32Array, RecordBatch, StringArray, TimestampNanosecondArray,
        UInt8Array, UInt16Array, UInt32Array, UInt64Array,
    },
    datatypes::{Field, Int32Type, Schema},
    error::ArrowError,
};
use vestigo_model::Timestamp;

use super::flows::Coder;

/// Columns, in order.
#[derive(Debug, Default)]
pub(crate) struct Table {
    fields: Vec<Field>,
    columns: Vec<ArrayRef>,
    failed: Option<ArrowError>,
}

impl Table {
    fn push(&mut self, name: &str, nullable: bool, column: ArrayRef) {
        self.fields.push(Field::new(name, column.data_type().clone(), nullable));
        self.columns.push(column);
    }

    /// Text.
    pub(crate) fn text<S: AsRef<str>>(&mut self, name: &str, values: impl Iterator<Item = Option<S>>) {
        self.push(name, true, Arc::new(values.collect::<StringArray>()));
    }

    /// Text with few different values.
    pub(crate) fn word<'a>(&mut self, name: &str, values: impl Iterator<Item = Option<&'a str>>) {
        self.push(name, true, Arc::new(values.collect::<DictionaryArray<Int32Type>>()));
    }

    /// Text with few different values, one of an enum's.
    pub(crate) fn code<T: Copy + 'static>(
        &mut self,
        name: &str,
        all: &[T],
        word: fn(T) -> &'static str,
        codes: impl Iterator<Item = i32>,
    ) {
        self.dictionary(name, all.iter().map(|value| word(*value).to_owned()).collect(), codes.map(Some));
    }

    /// Text with few different values, each written out once by the coder.
    pub(super) fn coded<T, C: Coder<T>>(&mut self, name: &str, mut coder: C, values: impl Iterator<Item = Option<T>>) {
        let keys: Vec<Option<i32>> = values.map(|value| value.map(|value| coder.code(value))).collect();
        self.dictionary(name, coder.words(), keys.into_iter());
    }

    /// Text with few different values, by number.
    pub(crate) fn dictionary(&mut self, name: &str, words: Vec<String>, keys: impl Iterator<Item = Option<i32>>) {
        let keys: Int32Array = keys.collect();
        match DictionaryArray::try_new(keys, Arc::new(StringArray::from(words))) {
            Ok(column) => self.push(name, true, Arc::new(column)),
            Err(error) => self.failed = Some(error),
        }
    }

    /// UTC nanoseconds.
    pub(crate) fn time(&mut self, name: &str, values: impl Iterator<Item = Option<Timestamp>>) {
        let nanos: TimestampNanosecondArray = values.map(|time| time.map(Timestamp::as_nanos)).collect();
        self.push(name, true, Arc::new(nanos.with_timezone("UTC")));
    }

    /// 8 bits, always there.
    pub(crate) fn u8(&mut self, name: &str, values: impl Iterator<Item = u8>) {
        self.push(name, false, Arc::new(values.collect::<UInt8Array>()));
    }

    /// 8 bits that few rows have.
    pub(crate) fn maybe_u8(&mut self, name: &str, values: impl Iterator<Item = Option<u8>>) {
        self.push(name, true, Arc::new(values.collect::<UInt8Array>()));
    }

    /// 16 bits.
    pub(crate) fn u16(&mut self, name: &str, values: impl Iterator<Item = Option<u16>>) {
        self.push(name, true, Arc::new(values.collect::<UInt16Array>()));
    }

    /// 32 bits.
    pub(crate) fn u32(&mut self, name: &str, values: impl Iterator<Item = Option<u32>>) {
        self.push(name, true, Arc::new(values.collect::<UInt32Array>()));
    }

    /// 64 bits.
    pub(crate) fn u64(&mut self, name: &str, values: impl Iterator<Item = Option<u64>>) {
        self.push(name, true, Arc::new(values.collect::<UInt64Array>()));
    }

    /// 32 bits, signed.
    pub(crate) fn i32(&mut self, name: &str, values: impl Iterator<Item = Option<i32>>) {
        self.push(name, true, Arc::new(values.collect::<Int32Array>()));
    }

    /// Yes or no.
    pub(crate) fn flag(&mut self, name: &str, values: impl Iterator<Item = bool>) {
        self.push(name, false, Arc::new(values.map(Some).collect::<BooleanArray>()));
    }

    /// The finished batch.
    pub(crate) fn finish(self) -> Result<RecordBatch, ArrowError> {
        match self.failed {
            Some(error) => Err(error),
            None => RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.columns),
        }
    }
}

/// The documented schema is a contract: a changed type breaks other people's queries.
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::datatypes::DataType;

    #[test]
    fn columns_have_the_documented_types() {
        let mut table = Table::default();
        table.time("t", [Some(Timestamp::from_nanos(5))].into_iter());
        table.word("w", [Some("a")].into_iter());
        table.dictionary("d", vec!["x".to_owned()], [Some(0)].into_iter());
        let batch = table.finish().unwrap();
        let types: Vec<_> = batch.schema().fields().iter().map(|f| f.data_type().clone()).collect();
        let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, Some("UTC".into()));
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert_eq!(types, [time, dictionary.clone(), dictionary]);
    }
}
