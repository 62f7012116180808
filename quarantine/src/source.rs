//! Reading a pinned disk. Its bytes are a stranger's: the file is opened by the pin's name alone, never through a symbolic
//! link, and nothing inside it is looked at.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    unistd::{Whence, lseek},
};
use vestigo_model::Timestamp;

/// Why a pin cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there.
    #[error("the pin {0} is gone")]
    Gone(PathBuf),
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
}

impl Pin {
    /// Opens the pin.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        // Not blocking: a FIFO in place of a disk must not stop the daemon before fstat unmasks it.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::options().read(true).custom_flags(flags.bits()).open(path).map_err(|error| {
            match (error.kind(), error.raw_os_error()) {
                (ErrorKind::NotFound, _) => SourceError::Gone(path.to_owned()),
                (_, Some(code)) if code == Errno::ELOOP as i32 || code == Errno::ENXIO as i32 => {
                    SourceError::NotRegular(path.to_owned())
                }
                _ => SourceError::Io { path: path.to_owned(), error },
            }
        })?;
        let meta = file.metadata().map_err(|error| SourceError::Io { path: path.to_owned(), error })?;
        if meta.is_file() { Ok(Self { file }) } else { Err(SourceError::NotRegular(path.to_owned())) }
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
            assert!(matches!(Pin::open(path), Err(SourceError::NotRegular(_))), "{}", path.display());
        }
        assert!(matches!(Pin::open(&dir.path().join("none")), Err(SourceError::Gone(_))));
    }
}
