//! Files that survive a power cut: written under a temporary name, synced, renamed, and their folder synced too.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// What could not be done to which path. The cause is the source, so that a caller's chain prints it once.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {action} {}", path.display())]
pub struct IoError {
    /// The verb.
    pub action: &'static str,
    /// The object.
    pub path: PathBuf,
    /// The system's word.
    #[source]
    pub source: io::Error,
}

impl IoError {
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }

    /// Whether the path is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Makes the folder and its parents, for the owner and the group only: the ledger holds personal data.
pub(crate) fn create_folder(path: &Path) -> Result<(), IoError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(IoError::at("create the folder", path))?;
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder)
}

/// Closes the folder to everyone but its owner: names stand in the log in clear.
pub(crate) fn make_private(path: &Path) -> Result<(), IoError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(IoError::at("set the rights of", path))
}

/// Makes renames and removals in the folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), IoError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(IoError::at("sync the folder", path))
}

/// The name under which a file is written before it is whole.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Writes the file so that it is there whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let temporary = temporary(path);
    let written = write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(IoError::at("rename the new file to", path)));
    if written.is_err() {
        // Give the space back at once: the likeliest reason is a full disk. The error below is the one that matters.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    path.parent().map_or(Ok(()), sync_folder)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(path)
        .map_err(IoError::at("create", path))?;
    file.write_all(bytes).map_err(IoError::at("write", path))?;
    file.sync_all().map_err(IoError::at("sync", path))
}

/// Removes the file; one that is gone already is as good.
pub(crate) fn remove_file(path: &Path) -> Result<(), IoError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IoError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The names in the folder, sorted; none when there is no such folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, IoError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(IoError::at("list", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(IoError::at("list", folder))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
