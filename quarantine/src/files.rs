//! Writing files so that a crash at any moment leaves the old state or the new one.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

/// Makes a folder's entries durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// A hidden name beside `path`, this process's own.
#[must_use]
pub fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", uuid::Uuid::new_v4().simple()));
    parent(path).join(name)
}

/// Removes what [`replace`] left half-written when this program was killed.
pub fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".part")) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Gives the finished file `tmp` its final name unless that exists. `AlreadyExists` leaves both as they were.
pub fn publish(tmp: &Path, path: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, tmp, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => {}
        // NFS and others that know no such flag: a hard link refuses as well.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => {
            fs::hard_link(tmp, path)?;
            fs::remove_file(tmp)?;
        }
        Err(errno) => return Err(errno.into()),
    }
    sync_dir(parent(path))
}

/// Writes a file that other processes see whole or not at all, replacing the one before.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = beside(path);
    let written = write_synced(&tmp, bytes).and_then(|()| fs::rename(&tmp, path)).and_then(|()| sync_dir(parent(path)));
    if written.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    written
}

/// Writes a new file and makes its bytes durable.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes a file; one that is gone already is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a small file, refusing one that is larger than `limit`, and whatever is no regular file: a FIFO would hold the
/// reader for ever.
pub fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}
