//! Where a plain payload's home and temporary files lie: a folder of the caller's, wiped afterwards. Nobody is left to wipe it when
//! the client is killed; the next client does.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    libc,
    unistd::geteuid,
};

use crate::{
    protocol::Refusal,
    sandbox::{
        rootless,
        scratch::{self, Scratch},
    },
};

const PREFIX: &str = "vestigo-plain-";
/// Longer than it takes to make a folder and to lock it.
const YOUNG: Duration = Duration::from_secs(60);

/// The folder, locked for as long as its client lives.
#[derive(Debug)]
pub(super) struct Folder {
    scratch: Scratch,
    _lock: Flock<File>,
}

impl Folder {
    /// Makes it below `$TMPDIR`, else `/tmp`.
    pub(super) fn make(resolvers: String) -> Result<Self, Refusal> {
        let base = env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        if !base.is_absolute() {
            return Err(Refusal::caller(format!("TMPDIR is {}; give an absolute path", base.display())));
        }
        let made = clear(&base).and_then(|()| Self::below(&base, &resolvers));
        made.map_err(|e| {
            Refusal::system(format!(
                "no folder for the payload below {}: {e}; let TMPDIR name one that you can write to",
                base.display()
            ))
        })
    }

    fn below(base: &Path, resolvers: &str) -> io::Result<Self> {
        let name = format!("{PREFIX}{}", uuid::Uuid::new_v4());
        let scratch = Scratch::create(base, &name, None)?;
        let lock = lock(scratch.path())?;
        rootless::furnish_scratch(scratch.path(), resolvers)?;
        Ok(Self { scratch, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Wipes it, and says so if that does not work: there is no log here.
    pub(super) fn remove(self) {
        let path = self.path().to_owned();
        drop(self);
        if path.exists() {
            eprintln!("guest-agent: {} could not be removed; remove it by hand", path.display());
        }
    }
}

fn lock(folder: &Path) -> io::Result<Flock<File>> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Removes what killed clients of this user left.
fn clear(base: &Path) -> io::Result<()> {
    for entry in fs::read_dir(base)?.flatten() {
        let Ok(about) = entry.metadata() else { continue };
        let left = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && about.is_dir()
            && about.uid() == geteuid().as_raw()
            && about.modified()?.elapsed().is_ok_and(|age| age > YOUNG);
        if left && let Ok(_lock) = lock(&entry.path()) {
            // Another client may be at it too.
            let _ = scratch::remove(&entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_killed_client_left_is_wiped_and_what_lives_is_not() {
        let base = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - 2 * YOUNG;
        let age = |path: &Path| File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(old)).unwrap();
        let living = Folder::below(base.path(), "").unwrap();
        age(living.path());
        let left = base.path().join(format!("{PREFIX}left"));
        fs::create_dir_all(left.join("work/deep")).unwrap();
        age(&left);
        let young = base.path().join(format!("{PREFIX}young"));
        let other = base.path().join("other");
        fs::create_dir(&young).unwrap();
        fs::create_dir(&other).unwrap();
        age(&other);
        clear(base.path()).unwrap();
        assert!(!left.exists() && living.path().exists() && young.exists() && other.exists());
        let path = living.path().to_owned();
        living.remove();
        assert!(!path.exists());
    }
}
