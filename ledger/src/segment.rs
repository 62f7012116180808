//! Segments: what a stretch of the write-ahead log becomes when it is sealed.
//!
//! [`content`] gathers the records of the generations, [`table`] and [`tables`] turn them into columns, [`seal`] writes
//! the files and their manifest, [`scan`] and [`decode`] read them back
//! with as little I/O as the question allows.

pub(crate) mod content;
pub(crate) mod decode;
pub(crate) mod rows;
pub(crate) mod scan;
pub(crate) mod seal;
pub(crate) mod table;
pub(crate) mod tables;

pub use rows::rows_digest;
pub(crate) use rows::{read_batch, sorted};

use std::path::PathBuf;

use crate::{durable::IoError, manifest::ManifestError};

/// What is wrong with a segment.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The manifest cannot be read or written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Records could not be turned into columns.
    #[error("Cannot write the {kind} of a segment as Parquet")]
    Encode {
        /// Which file.
        kind: crate::manifest::Kind,
        /// The library's word.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The file is no Parquet file, or a damaged one.
    #[error("Cannot read {}; compare it with the SHA-256 in its manifest", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The library's word.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The columns do not hold what the documented format says.
    #[error("{} does not hold what a segment's file should: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
}
