//! How long records are kept: not shorter than the minimum, not longer than the maximum, and longer only under a hold.
//!
//! What is removed are a segment's data files. Its manifest and signature stay, and beside them a signed [`tombstone`] that
//! says which digests were removed, when and why: without one a missing file is a finding of `verify`.

pub mod plan;
pub mod pressure;
pub mod receipt;
pub mod tombstone;

#[cfg(test)]
mod tests;
