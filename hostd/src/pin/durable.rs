//! Files that are whole or absent: written under a temporary name, then renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Names that start like this are remains of an interrupted write.
pub(super) const TEMPORARY: &str = ".new-";

/// Whether a crash of the machine (not only of the process) must be survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survive {
    /// The process: cheap, for a first note that a lasting one follows.
    Process,
    /// The machine.
    Machine,
}

/// Replaces the file's content in one step.
pub(super) fn write(path: &Path, bytes: &[u8], survive: Survive) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("the path has no folder"))?;
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    let temporary = folder.join(format!("{TEMPORARY}{}", name.to_string_lossy()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if survive == Survive::Machine {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if survive == Survive::Machine { sync_folder(folder) } else { Ok(()) }
}

/// Makes names that were made or removed in the folder last.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file; one that is not there is as good.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
