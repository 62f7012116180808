//! Reading a pinned disk. Its bytes are a stranger's: the file is opened by the pin's name alone, never through a symbolic
//! link, and nothing inside it is looked at.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    unistd::{Whence, lseek},
};
use serde::{Deserialize, Serialize};
use vestigo_model::Timestamp;

/// Why a pin cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there.
    #[error("the pin {0} is gone")]
    Gone(PathBuf),
    /// Its folder is not there: nothing can be said about the pin.
    #[error("the folder of the pin {0} is not there, so nothing is given up yet; is its file system mounted?")]
    Unreachable(PathBuf),
    /// It is in none of the folders that the configuration allows.
    #[error(
        "the pin {0} is in none of the folders that `pins` in the configuration allows; it is neither read nor removed"
    )]
    Outside(PathBuf),
    /// It is no regular file.
    #[error("the pin {0} is not a regular file (a symbolic link, folder or device); it is not opened")]
    NotRegular(PathBuf),
    /// The system refuses.
    #[error("cannot read the pin {path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// How.
        error: io::Error,
    },
}

/// Which file it is, whatever its name: only the very file that was read may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// File system.
    pub dev: u64,
    /// Inode on it.
    pub ino: u64,
}

impl Identity {
    /// Of a regular file.
    #[must_use]
    pub fn of(meta: &fs::Metadata) -> Option<Self> {
        meta.is_file().then(|| Self { dev: meta.dev(), ino: meta.ino() })
    }
}

/// What tells whether a file kept still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Last change of its content.
    pub modified: Timestamp,
}

/// A file whose bytes are to be kept. A trait so that tests can hold a disk with bad sectors.
pub trait Source: Sync {
    /// Size and time of the last change, now.
    fn stamp(&self) -> io::Result<Stamp>;
    /// Bytes on the host's disk.
    fn allocated(&self) -> io::Result<u64>;
    /// The next stretch that is not a hole, from `from` on.
    fn next_data(&self, from: u64, size: u64) -> io::Result<Option<(u64, u64)>>;
    /// Reads all of `buffer`; what lies behind the end of a file that shrank reads as an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A pin.
#[derive(Debug)]
pub struct Pin {
    file: File,
    identity: Identity,
}

/// Holds the pin's folder, with every link in it resolved, against the folders that are allowed. None given: all are.
fn allowed(path: &Path, folders: &[PathBuf]) -> Result<(), SourceError> {
    let io = |error| SourceError::Io { path: path.to_owned(), error };
    let dir = path.parent().ok_or_else(|| SourceError::Outside(path.to_owned()))?;
    let real = match dir.canonicalize() {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound) => {
            return Err(SourceError::Unreachable(path.to_owned()));
        }
        real => real.map_err(io)?,
    };
    let inside = |folder: &PathBuf| folder.canonicalize().is_ok_and(|folder| real.starts_with(folder));
    if folders.is_empty() || folders.iter().any(inside) { Ok(()) } else { Err(SourceError::Outside(path.to_owned())) }
}

impl Pin {
    /// Which file it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Opens the pin, if it is in (or below) one of `folders`; none given, anywhere.
    pub fn open(path: &Path, folders: &[PathBuf]) -> Result<Self, SourceError> {
        allowed(path, folders)?;
        // Not blocking: a FIFO in place of a disk must not stop the daemon before fstat unmasks it.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags.bits()).open(path).map_err(|error| {
            match (error.kind(), error.raw_os_error()) {
                // Looked at again: it may have gone away meanwhile with its file system.
                (ErrorKind::NotFound, _) if path.parent().is_some_and(Path::is_dir) => {
                    SourceError::Gone(path.to_owned())
                }
                (ErrorKind::NotFound, _) => SourceError::Unreachable(path.to_owned()),
                (_, Some(code)) if code == Errno::ELOOP as i32 || code == Errno::ENXIO as i32 => {
                    SourceError::NotRegular(path.to_owned())
                }
                _ => SourceError::Io { path: path.to_owned(), error },
            }
        })?;
        let meta = file.metadata().map_err(|error| SourceError::Io { path: path.to_owned(), error })?;
        match Identity::of(&meta) {
            Some(identity) => Ok(Self { file, identity }),
            None => Err(SourceError::NotRegular(path.to_owned())),
        }
    }
}

fn seek(file: &File, offset: u64, whence: Whence) -> Result<Option<u64>, Errno> {
    match lseek(file, i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Source for Pin {
    fn stamp(&self) -> io::Result<Stamp> {
        let meta = self.file.metadata()?;
        let nanos = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        Ok(Stamp { size: meta.len(), modified: Timestamp::from_nanos(nanos) })
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    fn next_data(&self, from: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
        if from >= size {
            return Ok(None);
        }
        // The file's own position is not used for reading, so several threads may seek at once.
        match seek(&self.file, from, Whence::SeekData) {
            Ok(Some(start)) if start < size => {
                let end = seek(&self.file, start, Whence::SeekHole)?.unwrap_or(size).min(size);
                Ok(Some((start, end.max(start + 1))))
            }
            Ok(_) => Ok(None),
            // A file system that does not know holes: everything is data.
            Err(Errno::EINVAL | Errno::ENOTSUP) => Ok(Some((from, size))),
            Err(errno) => Err(errno.into()),
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/shadow", &link).unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [link.as_path(), fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
            assert!(matches!(Pin::open(path, &[]), Err(SourceError::NotRegular(_))), "{}", path.display());
        }
        assert!(matches!(Pin::open(&dir.path().join("none"), &[]), Err(SourceError::Gone(_))));
    }

    #[test]
    fn a_pin_whose_folder_is_gone_is_not_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let error = Pin::open(&dir.path().join("unmounted/pin"), &[]).unwrap_err();
        assert!(matches!(error, SourceError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains("mounted?"), "{error}");
    }

    #[test]
    fn only_pins_in_the_folders_allowed_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (pins, other) = (dir.path().join("pins"), dir.path().join("other"));
        for folder in [&pins, &other] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("x"), "x").unwrap();
        }
        std::os::unix::fs::symlink(&other, pins.join("way-out")).unwrap();
        let folders = [pins.clone()];
        assert!(Pin::open(&pins.join("x"), &folders).is_ok());
        for outside in [other.join("x"), pins.join("way-out/x"), pins.join("../other/x")] {
            assert!(matches!(Pin::open(&outside, &folders), Err(SourceError::Outside(_))), "{}", outside.display());
        }
        assert!(Pin::open(&other.join("x"), &[]).is_ok(), "no folders given: no restriction");
    }
}
