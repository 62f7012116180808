//! The table `people`: one sealed row for each record that a person was taken out of.

use std::{fs::File, path::Path, str::FromStr};

use arrow::{array::RecordBatch, error::ArrowError};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use vestigo_model::{DomainUuid, HostId, Label, PayloadUid, Vo};

use super::Period;
use crate::{
    durable::IoError,
    segment::{SegmentError, decode::Columns, table::Table},
};

/// Longest sealed box that a reader takes: a claim is bounded far below.
const MAX_SEALED: usize = 1 << 20;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonRow {
    /// What stands in the record.
    pub pseudonym: Label,
    /// The tenant's VO, a host fact; `None` is *unmapped*.
    pub vo: Option<Vo>,
    /// The month of the keys.
    pub period: Period,
    /// The hypervisor.
    pub host: HostId,
    /// The VM.
    pub domain: Option<DomainUuid>,
    /// The run.
    pub payload: Option<PayloadUid>,
    /// Id of the public key that sealed.
    pub key: String,
    /// A libsodium sealed box with a [`super::Person`] in JSON.
    pub sealed: Vec<u8>,
}

/// The rows as columns.
pub(crate) fn build(rows: &[PersonRow]) -> Result<RecordBatch, ArrowError> {
    let mut table = Table::default();
    let periods: Vec<String> = rows.iter().map(|row| row.period.to_string()).collect();
    table.text("pseudonym", rows.iter().map(|row| Some(row.pseudonym.as_str())));
    table.word("vo", rows.iter().map(|row| row.vo.as_ref().map(Vo::as_str)));
    table.word("period", periods.iter().map(|period| Some(period.as_str())));
    table.text("host", rows.iter().map(|row| Some(row.host.as_str())));
    table.text("domain", rows.iter().map(|row| row.domain.map(|domain| domain.to_string())));
    table.text("payload", rows.iter().map(|row| row.payload.map(|payload| payload.to_string())));
    table.word("key", rows.iter().map(|row| Some(row.key.as_str())));
    table.binary("sealed", rows.iter().map(|row| row.sealed.as_slice()));
    table.finish()
}

/// The rows of a stored file, and how many of them are none of this form.
///
/// # Errors
/// It cannot be read.
pub fn stored_rows(path: &Path) -> Result<(Vec<PersonRow>, u64), SegmentError> {
    let decode = |source| SegmentError::Decode { path: path.to_owned(), source };
    let file = File::open(path).map_err(IoError::at("open", path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build()).map_err(decode)?;
    let (mut rows, mut unreadable) = (Vec::new(), 0);
    for batch in reader {
        let (more, bad) = read(&batch.map_err(|error| decode(error.into()))?, path)?;
        rows.extend(more);
        unreadable += bad;
    }
    Ok((rows, unreadable))
}

/// Columns as rows; those that hold no row of this form are counted.
pub(crate) fn read(batch: &RecordBatch, path: &Path) -> Result<(Vec<PersonRow>, u64), SegmentError> {
    let columns = Columns::new(batch, path);
    let [pseudonym, vo, period, host] = ["pseudonym", "vo", "period", "host"].map(|name| columns.text(name));
    let [domain, payload, key] = ["domain", "payload", "key"].map(|name| columns.text(name));
    let (pseudonym, vo, period, host) = (pseudonym?, vo?, period?, host?);
    let (domain, payload, key) = (domain?, payload?, key?);
    let sealed = columns.binary("sealed")?;
    let (mut rows, mut unreadable) = (Vec::new(), 0);
    let texts = pseudonym.iter().zip(&vo).zip(&period).zip(&host).zip(&domain).zip(&payload).zip(&key).zip(&sealed);
    for (((((((pseudonym, vo), period), host), domain), payload), key), sealed) in texts {
        let row = || {
            Some(PersonRow {
                pseudonym: pseudonym?.parse().ok()?,
                vo: maybe(vo)?,
                period: period?.parse().ok()?,
                host: host?.parse().ok()?,
                domain: maybe(domain)?,
                payload: maybe(payload)?,
                key: key?.to_owned(),
                sealed: sealed.filter(|sealed| sealed.len() <= MAX_SEALED)?.to_vec(),
            })
        };
        match row() {
            Some(row) => rows.push(row),
            None => unreadable += 1,
        }
    }
    Ok((rows, unreadable))
}

/// `None`: there is a text, and it is none of these.
fn maybe<T: FromStr>(text: Option<&str>) -> Option<Option<T>> {
    text.map(str::parse).transpose().ok()
}
