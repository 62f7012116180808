//! A file of a segment, wherever it lies, as the Parquet library reads it: by ranges, the end of a distant one fetched at once.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use parquet::{
    errors::{ParquetError, Result as ParquetResult},
    file::reader::{ChunkReader, Length},
};

use crate::{
    durable::IoError,
    error::LedgerError,
    manifest::{FileEntry, Kind, Manifest},
    segment::SegmentError,
    store::{MAX_RANGE, Store},
};

/// The footer, page index and bloom filters of an ordinary file: one request instead of five.
const TAIL: u64 = 48 << 10;
/// What is read at once where the library does not say how much it needs.
const PIECE: u64 = 64 << 10;

/// An open file. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Option<File>,
    store: Arc<dyn Store>,
    path: String,
    shown: PathBuf,
    size: u64,
    /// The end of a distant file.
    tail: Bytes,
}

/// The file of this kind of a segment in this folder, if it holds anything. Its length is compared with the manifest's: another
/// segment's file put in its place, or one cut short, must not pass for it. (Every byte is compared by whoever checks the digests.)
pub(crate) fn open(
    store: &Arc<dyn Store>,
    folder: &str,
    manifest: &Manifest,
    kind: Kind,
) -> Result<Option<Source>, LedgerError> {
    let Some(entry) = manifest.files.iter().find(|file| file.kind == kind && file.rows > 0) else { return Ok(None) };
    Source::new(store, folder, entry).map(Some)
}

impl Source {
    fn new(store: &Arc<dyn Store>, folder: &str, entry: &FileEntry) -> Result<Self, LedgerError> {
        let path = format!("{folder}/{}", entry.name);
        let shown = PathBuf::from(store.name()).join(&path);
        if entry.name.contains('/') {
            let what = "its manifest leads out of its folder".to_owned();
            return Err(SegmentError::Content { path: shown, what }.into());
        }
        let inner = |file, tail| {
            Self(Arc::new(Inner {
                file,
                store: Arc::clone(store),
                path: path.clone(),
                shown: shown.clone(),
                size: entry.bytes,
                tail,
            }))
        };
        let Some(local) = store.local(&path) else {
            let tail = store.read_range(&path, entry.bytes.saturating_sub(TAIL)..entry.bytes)?;
            return Ok(inner(None, tail));
        };
        let file = File::open(&local).map_err(IoError::at("open", &local))?;
        let found = file.metadata().map_err(IoError::at("find", &local))?.len();
        if found != entry.bytes {
            let what = format!("it is {found} bytes long, its manifest says {}; restore it from a copy", entry.bytes);
            return Err(SegmentError::Content { path: shown, what }.into());
        }
        Ok(inner(Some(file), Bytes::new()))
    }

    /// What a message calls it.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0.shown
    }

    fn fetch(&self, start: u64, length: u64) -> ParquetResult<Bytes> {
        let inner = &self.0;
        let end = start.checked_add(length).filter(|end| *end <= inner.size && length <= MAX_RANGE);
        let end = end.ok_or_else(|| ParquetError::EOF("it names bytes behind its own end".to_owned()))?;
        let tail = inner.size.saturating_sub(inner.tail.len() as u64);
        if start >= tail && !inner.tail.is_empty() {
            let at = |place: u64| usize::try_from(place - tail).unwrap_or(usize::MAX);
            return Ok(inner.tail.slice(at(start)..at(end)));
        }
        let external = |error: Box<dyn std::error::Error + Send + Sync>| ParquetError::External(error);
        match &inner.file {
            Some(file) => {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                file.read_exact_at(&mut bytes, start).map_err(|error| external(Box::new(error)))?;
                Ok(bytes.into())
            }
            None => inner.store.read_range(&inner.path, start..end).map_err(|error| external(Box::new(error))),
        }
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.0.size
    }
}

impl ChunkReader for Source {
    type T = Stream;

    fn get_read(&self, start: u64) -> ParquetResult<Stream> {
        Ok(Stream { source: self.clone(), at: start, piece: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.fetch(start, length as u64)
    }
}

/// The file from some place on, in pieces.
#[derive(Debug)]
pub(crate) struct Stream {
    source: Source,
    at: u64,
    piece: Bytes,
}

impl io::Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let length = PIECE.min(self.source.len().saturating_sub(self.at));
            self.piece = self.source.fetch(self.at, length).map_err(io::Error::other)?;
            self.at += length;
        }
        let length = into.len().min(self.piece.len());
        let (head, room) = (self.piece.split_to(length), into.get_mut(..length));
        room.map_or(Ok(0), |room| {
            room.copy_from_slice(&head);
            Ok(length)
        })
    }
}
