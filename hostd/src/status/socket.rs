//! The socket on which the document is given, and the other end of it. Who can open it may read it: root and its group.

use std::{
    fs, io,
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::{Gid, Group, chown};
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixListener,
    sync::{Semaphore, mpsc, oneshot},
};

use super::{Status, VERSION};

/// Most that are answered at once; others wait in the kernel's queue.
const AT_ONCE: usize = 4;
/// How long a reader may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest document that is read: several thousand VMs.
const MAX: u64 = 64 << 20;

/// A question to the service.
#[derive(Debug)]
pub struct Ask(oneshot::Sender<Status>);

impl Ask {
    /// A question, and where its answer comes.
    #[must_use]
    pub fn new() -> (Self, oneshot::Receiver<Status>) {
        let (asker, answer) = oneshot::channel();
        (Self(asker), answer)
    }

    /// Answers it, if somebody still waits.
    pub fn answer(self, status: impl FnOnce() -> Status) {
        if !self.0.is_closed() {
            // Whoever asked may have gone in between.
            let _ = self.0.send(status());
        }
    }
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The socket cannot be made.
    #[error("cannot listen on {}; is it in use by another hostd, or its folder missing?", path.display())]
    Listen {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group that may read it does not exist.
    #[error("there is no group {0:?}; make it (groupadd --system) or correct `status.group`")]
    Group(String),
    /// Nobody answers.
    #[error("cannot ask hostd on {}; does it run, and may you? (root, and the group in `status.group`)", path.display())]
    Ask {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It answered something else.
    #[error("what hostd answers cannot be read; is it of another version than this command?")]
    Answer(#[from] serde_json::Error),
    /// A later form.
    #[error("hostd speaks version {0} of its status, this command knows {VERSION}; use the command that came with it")]
    Version(u32),
}

/// Gives the document to everybody who connects, for as long as questions are taken.
///
/// # Errors
/// [`StatusError`]: the socket cannot be had.
pub fn serve(path: &Path, group: Option<&str>, asks: mpsc::Sender<Ask>) -> Result<(), StatusError> {
    let listen = |source| StatusError::Listen { path: path.to_owned(), source };
    let group = group.map(group_id).transpose()?;
    let listener = bind(path).map_err(listen)?;
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(|errno| listen(errno.into()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(listen)?;
    tokio::spawn(accept(listener, asks));
    Ok(())
}

/// The number of the group that may ask.
///
/// # Errors
/// [`StatusError::Group`]: there is none of that name.
pub fn group_id(name: &str) -> Result<Gid, StatusError> {
    let found = Group::from_name(name).ok().flatten();
    found.map(|group| group.gid).ok_or_else(|| StatusError::Group(name.to_owned()))
}

/// Binds, also where an earlier life has left its socket: nobody listens there any more.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

async fn accept(listener: UnixListener, asks: mpsc::Sender<Ask>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the status socket takes no connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let asks = asks.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let answered = tokio::time::timeout(PATIENCE, async {
                let (ask, answer) = Ask::new();
                asks.send(ask).await.ok()?;
                let document = serde_json::to_vec(&answer.await.ok()?).ok()?;
                stream.write_all(&document).await.ok()?;
                stream.write_all(b"\n").await.ok()
            });
            if !matches!(answered.await, Ok(Some(()))) {
                tracing::debug!("somebody who asked for the status did not read it");
            }
        });
    }
}

/// Asks the hostd that listens there.
///
/// # Errors
/// [`StatusError`].
pub fn fetch(path: &Path) -> Result<Status, StatusError> {
    let ask = |source| StatusError::Ask { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).map_err(ask)?;
    stream.set_read_timeout(Some(PATIENCE + PATIENCE)).map_err(ask)?;
    let mut text = Vec::new();
    stream.take(MAX).read_to_end(&mut text).map_err(ask)?;
    read(&text)
}

fn read(text: &[u8]) -> Result<Status, StatusError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(text)?;
    if version == VERSION { Ok(serde_json::from_slice(text)?) } else { Err(StatusError::Version(version)) }
}
