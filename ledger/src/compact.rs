//! Compaction: the segments of one host's day, once it is over, become one. A question opens one file where it opened hundreds.
//!
//! ```text
//!   1. plan      which segments
//!   2. prepare   their rows into temporary files; every row is compared with the digests that were sealed
//!   3. commit    the files get their names, then signature and manifest: from here on the new segment exists and names in
//!                `replaces` whose rows it holds; readers leave the old ones out
//!   4. tidy      the old ones' data files go; their manifests and signatures stay
//! ```
//! A crash before the manifest leaves rubble, removed when hostd starts; after it, files that the next run of 4 removes.
//! The rows keep the number of the segment in which they were sealed (column `segment`), so that anybody can still compute each
//! old segment's `rows_sha256` and compare it with its signed manifest.

mod commit;
mod merge;
mod plan;

pub use self::{
    commit::{Link, Prepared},
    plan::{CompactOptions, CompactPlan, plan, tidy},
};
use crate::{durable::IoError, manifest::ManifestError, segment::SegmentError};

/// What stops a compaction. Nothing that was sealed is lost by any of these.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// A folder or file.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A segment's file.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Rows that are not those sealed.
    #[error("segment {sequence} is not as it was sealed ({how}); it is not compacted, run `vestigo ledger verify`")]
    Differs {
        /// Which.
        sequence: u64,
        /// How.
        how: String,
    },
    /// Columns that cannot be put together.
    #[error("cannot put the segments of a day together")]
    Merge(#[from] arrow::error::ArrowError),
}

/// Called before every durable step, so that tests can crash there.
pub(crate) type Step<'a> = &'a mut dyn FnMut(&str) -> Result<(), CompactError>;

#[cfg(test)]
mod tests;
