//! Generations of the write-ahead log: `wal/<number>.wal`, appended to by one writer, read by anyone.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    durable::{self, IoError},
    entry::Entry,
    frame,
};

/// The three things the log does to its file; a trait so that tests can make each of them fail.
pub(crate) trait LogFile: Send {
    /// Appends.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was appended durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl LogFile for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// How a generation is opened for appending.
pub(crate) type OpenLog = Box<dyn Fn(&Path) -> io::Result<Box<dyn LogFile>> + Send>;

/// The real thing.
pub(crate) fn open_file(path: &Path) -> io::Result<Box<dyn LogFile>> {
    let file = OpenOptions::new().append(true).mode(0o640).open(path)?;
    Ok(Box::new(file))
}

/// The folder of the generations.
pub(crate) fn folder(root: &Path) -> PathBuf {
    root.join("wal")
}

/// The file of a generation.
pub(crate) fn path(root: &Path, generation: u64) -> PathBuf {
    folder(root).join(format!("{generation:010}.wal"))
}

/// The generations there are, in order.
pub(crate) fn generations(root: &Path) -> Result<Vec<u64>, IoError> {
    let names = durable::names(&folder(root))?;
    let mut numbers: Vec<u64> =
        names.iter().filter_map(|name| name.strip_suffix(".wal").and_then(|stem| stem.parse().ok())).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A generation as read.
#[derive(Debug, Default)]
pub(crate) struct Generation {
    pub(crate) entries: Vec<Entry>,
    /// Where the last whole frame ends.
    pub(crate) good: u64,
    /// Bytes behind it.
    pub(crate) torn: u64,
    /// Bytes between frames that are no frame.
    pub(crate) damaged: u64,
    /// Whole frames that say nothing this version understands.
    pub(crate) unreadable: u64,
}

/// Reads a generation; safe while its writer appends (an unfinished frame is just a torn tail).
pub(crate) fn read(path: &Path) -> Result<Generation, IoError> {
    let mut entries = Vec::new();
    let generation = each(path, &mut |entry| entries.push(entry))?;
    Ok(Generation { entries, ..generation })
}

/// Gives each entry of a generation to the callback and keeps none: decoded, flows take several times the room of their bytes.
pub(crate) fn each(path: &Path, take: &mut dyn FnMut(Entry)) -> Result<Generation, IoError> {
    let bytes = std::fs::read(path).map_err(IoError::at("read", path))?;
    let scan = frame::scan(&bytes);
    let mut generation = Generation {
        good: as_u64(scan.good),
        torn: as_u64(scan.torn),
        damaged: as_u64(scan.damaged),
        ..Generation::default()
    };
    for payload in scan.payloads {
        match Entry::read(payload) {
            Some(entry) => take(entry),
            None => generation.unreadable += 1,
        }
    }
    Ok(generation)
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The generation that is appended to.
///
/// After a failed write the file is cut back to where it was good. After a failed sync nothing the kernel says about this
/// file can be trusted any more (it may have dropped the dirty pages and call the next sync a success), so the log
/// calls itself `suspect` and the writer goes on in a new generation.
pub(crate) struct Log {
    pub(crate) generation: u64,
    pub(crate) suspect: bool,
    path: PathBuf,
    file: Box<dyn LogFile>,
    good: u64,
    /// Bytes that were in it when it was opened: what a new generation carries on, which sealing would only carry on again.
    began: u64,
    tail: bool,
}

impl Log {
    /// Opens the generation, good up to `good`.
    pub(crate) fn open(root: &Path, generation: u64, good: u64, open: &OpenLog) -> Result<Self, IoError> {
        let path = path(root, generation);
        let mut file = open(&path).map_err(IoError::at("open", &path))?;
        file.cut(good).map_err(IoError::at("cut the torn end of", &path))?;
        Ok(Self { generation, suspect: false, path, file, good, began: good, tail: false })
    }

    /// Bytes in it.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> u64 {
        self.good
    }

    /// Bytes that were appended since it was opened.
    pub(crate) const fn grown(&self) -> u64 {
        self.good.saturating_sub(self.began)
    }

    /// Appends whole frames, all or nothing.
    pub(crate) fn append(&mut self, frames: &[u8], durable: bool) -> Result<(), IoError> {
        self.cut_tail()?;
        if let Err(error) = self.file.write_all(frames) {
            self.tail = true;
            // If even this fails, the next append tries again before it writes.
            let _ = self.cut_tail();
            return Err(IoError::at("write to", &self.path)(error));
        }
        if durable && let Err(error) = self.file.sync() {
            self.suspect = true;
            self.tail = true;
            let _ = self.cut_tail();
            return Err(IoError::at("sync", &self.path)(error));
        }
        self.good += as_u64(frames.len());
        Ok(())
    }

    /// Appends what the ledger says of itself: it makes no segment due.
    pub(crate) fn append_own(&mut self, frames: &[u8]) -> Result<(), IoError> {
        self.append(frames, false)?;
        self.began += as_u64(frames.len());
        Ok(())
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&mut self) -> Result<(), IoError> {
        self.file.sync().map_err(|error| {
            self.suspect = true;
            IoError::at("sync", &self.path)(error)
        })
    }

    /// Removes what a failed append left behind.
    pub(crate) fn cut_tail(&mut self) -> Result<(), IoError> {
        if self.tail {
            self.file.cut(self.good).map_err(IoError::at("cut the unfinished end of", &self.path))?;
            self.tail = false;
        }
        Ok(())
    }
}
