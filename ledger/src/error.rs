//! What a caller of the ledger can meet.

use std::path::PathBuf;

use vestigo_model::HostId;

use crate::{
    compact::CompactError, durable::IoError, frame::TooLong, manifest::ManifestError, segment::SegmentError,
    store::StoreError,
};

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
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Compaction.
    #[error(transparent)]
    Compact(#[from] CompactError),
    /// A place where segments lie.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest is not the one that was read a moment ago.
    #[error("{} changed while it was read; ask again", path.display())]
    Changed {
        /// The manifest.
        path: PathBuf,
    },
    /// Of what was asked there is more than an answer may hold.
    #[error("There is more of it than {limit} {what}; ask for a shorter time, or name an address, port or instance")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many are held at most.
        limit: usize,
    },
}

impl LedgerError {
    /// Whether something was replaced or removed between two looks at it (a compaction, a retention): asked again, the question may be
    /// answered.
    pub(crate) fn is_of_a_moment(&self) -> bool {
        match self {
            Self::Changed { .. } => true,
            Self::Io(error) | Self::Segment(SegmentError::Io(error)) => error.is_not_found(),
            Self::Store(error) => error.is_missing(),
            _ => false,
        }
    }
}
