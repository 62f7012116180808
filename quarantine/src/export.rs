//! Getting a file back, as it was.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use crossbeam_channel::{Sender, bounded};
use sha2::{Digest as _, Sha256};
use vestigo_model::Digest;

use crate::{
    chunk::Domain,
    fetch::{Fault, Reader},
    files,
    index::{IndexError, LayerIndex},
    manifest::Captured,
    vault::{Key, Vault, VaultError},
};

/// Why there is no file. In every case nothing stands under the wanted name.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The output exists.
    #[error("{0} exists already and is not overwritten; give another name or remove it")]
    Exists(PathBuf),
    /// The output cannot be written.
    #[error("cannot write {path}: {error}; check room and mode of the folder")]
    Write {
        /// Which.
        path: PathBuf,
        /// How.
        error: io::Error,
    },
    /// A chunk is not as it was stored.
    #[error(
        "the vault no longer gives what was stored: at byte {offset}: {fault}; `quarantine verify` names all that is wrong"
    )]
    Fault {
        /// Where in the file.
        offset: u64,
        /// What.
        fault: Fault,
    },
    /// The index is not as it was stored.
    #[error("the index {0} is not the one that was stored; `quarantine verify` names all that is wrong")]
    Index(String),
    /// The index cannot be read.
    #[error(transparent)]
    Decode(#[from] IndexError),
    /// The whole is another than was recorded.
    #[error("the file has SHA-256 {found}, the manifest says {said}; `quarantine verify` names all that is wrong")]
    Digest {
        /// What came out.
        found: Digest,
        /// What should have.
        said: Digest,
    },
}

enum Feed {
    Bytes(Vec<u8>),
    Zeros(u64),
}

/// SHA-256 on a thread of its own, fed in order.
pub(crate) struct Hashing {
    feed: Sender<Feed>,
    thread: JoinHandle<Digest>,
}

impl Hashing {
    pub(crate) fn start() -> Self {
        let (feed, input) = bounded(8);
        let thread = std::thread::spawn(move || {
            let zeros = vec![0; 1 << 20];
            let mut hasher = Sha256::new();
            for part in input {
                match part {
                    Feed::Bytes(bytes) => hasher.update(&bytes),
                    Feed::Zeros(mut count) => {
                        while count > 0 {
                            let now = usize::try_from(count).unwrap_or(usize::MAX).min(zeros.len());
                            hasher.update(zeros.get(..now).unwrap_or_default());
                            count -= now as u64;
                        }
                    }
                }
            }
            Digest(hasher.finalize().into())
        });
        Self { feed, thread }
    }

    pub(crate) fn bytes(&self, bytes: Vec<u8>) {
        let _ = self.feed.send(Feed::Bytes(bytes));
    }

    pub(crate) fn zeros(&self, count: u64) {
        let _ = self.feed.send(Feed::Zeros(count));
    }

    pub(crate) fn finish(self) -> Digest {
        drop(self.feed);
        self.thread.join().unwrap_or(Digest::ZERO)
    }
}

/// A layer's index, as the manifest says it is.
pub fn load_index(vault: &dyn Vault, captured: &Captured) -> Result<LayerIndex, ExportError> {
    let bytes = vault.get(&Key::new(captured.index.key.clone())?)?;
    if Digest::of(&bytes) != captured.index.sha256 {
        return Err(ExportError::Index(captured.index.key.clone()));
    }
    let index = LayerIndex::decode(&bytes)?;
    if index.root() == captured.root.0 && index.image_size == captured.size {
        Ok(index)
    } else {
        Err(ExportError::Index(captured.index.key.clone()))
    }
}

/// Removes an unfinished file when its writer gives up.
struct Unfinished {
    path: PathBuf,
    keep: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether a whole file's SHA-256 other than the recorded one is damage. In a file that changed while it was acquired it is
/// not: early versions recorded what a second reading gave. Each chunk is held against its own digest in any case.
#[must_use]
pub fn is_other(captured: &Captured, found: Digest) -> Option<Digest> {
    captured.sha256.filter(|said| *said != found && captured.changed.is_empty())
}

/// Writes one layer to `out`: sparse, under a hidden name, given its own when its SHA-256 is right.
pub fn layer(
    vault: &dyn Vault,
    captured: &Captured,
    out: &Path,
    threads: usize,
    progress: &dyn Fn(u64),
) -> Result<Digest, ExportError> {
    if out.symlink_metadata().is_ok() {
        return Err(ExportError::Exists(out.to_owned()));
    }
    let index = load_index(vault, captured)?;
    let domain = Domain::parse(&captured.domain).ok_or_else(|| ExportError::Index(captured.index.key.clone()))?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| ExportError::Write { path, error }
    };
    let mut tmp = Unfinished { path: files::beside(out), keep: false };
    let file = OpenOptions::new().write(true).create_new(true).open(&tmp.path).map_err(failed(out))?;
    file.set_len(captured.size).map_err(failed(out))?;
    let digest = write(&Reader { vault, index: &index, domain: &domain, threads }, &file, progress, out)?;
    if let Some(said) = is_other(captured, digest) {
        return Err(ExportError::Digest { found: digest, said });
    }
    file.sync_all().map_err(failed(out))?;
    match files::publish(&tmp.path, out) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(ExportError::Exists(out.to_owned())),
        published => published.map_err(failed(out))?,
    }
    tmp.keep = true;
    Ok(digest)
}

/// SHA-256 of a file that is there already.
fn digest_of(path: &Path) -> io::Result<Digest> {
    use io::Read;
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(hasher.finalize().into())),
            len => hasher.update(buffer.get(..len).unwrap_or_default()),
        }
    }
}

/// [`layer`], content with a file that is there already if it is the same: what was cut short can be tried again.
pub fn layer_again(
    vault: &dyn Vault,
    captured: &Captured,
    out: &Path,
    threads: usize,
    progress: &dyn Fn(u64),
) -> Result<Digest, ExportError> {
    let Ok(meta) = out.symlink_metadata() else { return layer(vault, captured, out, threads, progress) };
    let exists = || ExportError::Exists(out.to_owned());
    if !meta.is_file() || meta.len() != captured.size {
        return Err(exists());
    }
    let found = digest_of(out).map_err(|error| ExportError::Write { path: out.to_owned(), error })?;
    let said = match captured.sha256 {
        Some(said) if captured.changed.is_empty() => {
            progress(captured.size);
            said
        }
        // Nothing to compare with but the vault itself.
        _ => {
            let second = Unfinished { path: files::beside(out), keep: false };
            layer(vault, captured, &second.path, threads, progress)?
        }
    };
    if found == said { Ok(found) } else { Err(exists()) }
}

fn write(reader: &Reader<'_>, file: &File, progress: &dyn Fn(u64), out: &Path) -> Result<Digest, ExportError> {
    let hashing = Hashing::start();
    reader.read(
        |_| true,
        |piece, content| -> Result<(), ExportError> {
            match content {
                None => hashing.zeros(u64::from(piece.len)),
                Some(Err(fault)) => return Err(ExportError::Fault { offset: piece.offset, fault }),
                Some(Ok(bytes)) => {
                    let written = file.write_all_at(&bytes, piece.offset);
                    written.map_err(|error| ExportError::Write { path: out.to_owned(), error })?;
                    hashing.bytes(bytes);
                }
            }
            progress(u64::from(piece.len));
            Ok(())
        },
    )?;
    Ok(hashing.finish())
}
