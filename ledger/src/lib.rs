//! The append-only record of flows and facts.
pub mod frame;
mod durable;
mod entry;
mod error;
mod log;
mod manifest;
pub mod questions;
mod reader;
mod segment;
mod state;
mod writer;

pub use durable::IoError;
pub use error::LedgerError;
pub use manifest::{FileEntry, Generations, Kind, Losses, Manifest, ManifestError, Sealed, Validity};
pub use reader::{Facts, Ledger};
pub use segment::{SegmentError, scan::FlowFilter};
pub use writer::{Recovered, SegmentInfo, Writer, WriterOptions};
