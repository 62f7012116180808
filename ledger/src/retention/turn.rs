//! One at a time: hostd's upkeep and an administrator's `vestigo ledger …` never remove or rewrite files side by side.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::durable::IoError;

/// Why it is not one's turn.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The lock's file.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Somebody else is at it.
    #[error("{} is held: hostd or another `vestigo ledger` works on these files; try again in a minute", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
}

/// Takes the turn; it ends when the file is dropped.
///
/// # Errors
/// [`TurnError`].
pub fn take(root: &Path) -> Result<File, TurnError> {
    let path = root.join("upkeep.lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o640).open(&path);
    let file = open.map_err(IoError::at("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TurnError::Busy { path }),
        Err(TryLockError::Error(error)) => Err(IoError::at("lock", &path)(error).into()),
    }
}
