//! What a caller of the ledger can meet.

use std::path::PathBuf;

use vestigo_model::HostId;

use crate::{durable::IoError, frame::TooLong, manifest::ManifestError, people::KeyError, segment::SegmentError};

/// Why the ledger could not do what was asked. After any of these from a [`crate::Writer`] the writer is still consistent:
/// nothing of the failed call was kept, and the call may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or folder.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Another process writes here.
    #[error("The ledger {} is written by another process; stop the other hostd, or give this one a ledger folder of its own", root.display())]
    Locked {
        /// The ledger.
        root: PathBuf,
    },
    /// The log was begun under another host's name.
    #[error("The ledger {} belongs to host {found}, not to {asked}; give this host a ledger folder of its own, or set its name back", root.display())]
    OtherHost {
        /// The ledger.
        root: PathBuf,
        /// Whose it is.
        found: HostId,
        /// Who wants it.
        asked: HostId,
    },
    /// There is no ledger there.
    #[error("There is no ledger at {}; name the folder that holds wal/ or date=…/ with --ledger or VESTIGO_LEDGER", root.display())]
    NotALedger {
        /// The folder.
        root: PathBuf,
    },
    /// A record cannot be written because it is too long; the whole batch was refused.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A record could not be turned into JSON.
    #[error("Cannot write a record as JSON")]
    Encode(#[source] serde_json::Error),
    /// The keys of persons.
    #[error(transparent)]
    People(#[from] KeyError),
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}
