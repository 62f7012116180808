//! The rows of several segments become those of one.

use std::path::PathBuf;

use arrow::array::RecordBatch;
use vestigo_model::Digest;

use super::{CompactError, CompactPlan, Prepared, Step};
use crate::{
    durable::{self, IoError},
    manifest::{FileEntry, Kind, Sealed},
    segment::{self, rows_digest, seal},
    verify,
};

impl CompactPlan {
    /// Reads the segments, compares every row with what was sealed, and writes the new files under temporary names.
    ///
    /// # Errors
    /// [`CompactError`]; nothing is left then but temporary files, which are written over or removed.
    pub fn prepare(&self) -> Result<Prepared, CompactError> {
        self.prepare_by_steps(&mut |_| Ok(()))
    }

    pub(crate) fn prepare_by_steps(&self, step: Step<'_>) -> Result<Prepared, CompactError> {
        let mut files = Vec::new();
        for kind in Kind::ALL {
            let olds: Vec<(&Sealed, &FileEntry)> = self.segments.iter().filter_map(|old| entry(old, kind)).collect();
            if olds.is_empty() {
                continue;
            }
            step("prepare")?;
            files.push(self.file(kind, &olds)?);
        }
        Ok(Prepared { folder: self.folder.clone(), segments: self.segments.clone(), files })
    }

    fn file(&self, kind: Kind, olds: &[(&Sealed, &FileEntry)]) -> Result<(PathBuf, FileEntry), CompactError> {
        let mut batches = Vec::new();
        for (old, entry) in olds {
            batches.push(read(old, entry)?);
        }
        let Some(schema) = batches.iter().max_by_key(|batch| batch.num_columns()).map(RecordBatch::schema) else {
            return Err(arrow::error::ArrowError::SchemaError("no file to put together".to_owned()).into());
        };
        let whole = arrow::compute::concat_batches(&schema, &batches)?;
        drop(batches);
        let sorted = segment::sorted(kind, &whole)?;
        for (old, entry) in olds {
            compare(old, entry, &sorted)?;
        }
        let bytes =
            seal::encode_parquet(kind, &sorted).map_err(|source| segment::SegmentError::Encode { kind, source })?;
        let entry = FileEntry {
            name: String::new(),
            kind,
            rows: length(sorted.num_rows()),
            bytes: length(bytes.len()),
            sha256: Digest::of(&bytes),
            rows_sha256: Some(rows_digest(kind, &sorted)?),
        };
        // A name that hostd removes when it starts.
        let path = self.folder.join(format!(".compact-{kind}.parquet.tmp"));
        durable::write_file(&path, &bytes)?;
        Ok((path, entry))
    }
}

fn entry(old: &Sealed, kind: Kind) -> Option<(&Sealed, &FileEntry)> {
    old.manifest.files.iter().find(|file| file.kind == kind).map(|file| (old, file))
}

/// Reads a file that must be the one that was sealed, to the byte.
fn read(old: &Sealed, entry: &FileEntry) -> Result<RecordBatch, CompactError> {
    let path = old.folder.join(&entry.name);
    let bytes = std::fs::read(&path).map_err(IoError::at("read", &path))?;
    if Digest::of(&bytes) != entry.sha256 {
        let how = format!("{} hashes to something else", entry.name);
        return Err(CompactError::Differs { sequence: old.manifest.sequence, how });
    }
    Ok(segment::read_batch(&path)?)
}

/// What was put together must still yield what was sealed.
fn compare(old: &Sealed, entry: &FileEntry, whole: &RecordBatch) -> Result<(), CompactError> {
    let sequence = old.manifest.sequence;
    let differs = |how: String| CompactError::Differs { sequence, how };
    let rows = verify::group(whole, sequence).map_err(differs)?;
    if length(rows.num_rows()) != entry.rows {
        return Err(differs(format!("{} of {} rows of {}", rows.num_rows(), entry.rows, entry.name)));
    }
    match entry.rows_sha256 {
        Some(sealed) if rows_digest(entry.kind, &rows)? != sealed => {
            Err(differs(format!("the rows of {} hash to something else", entry.name)))
        }
        _ => Ok(()),
    }
}

fn length(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}
