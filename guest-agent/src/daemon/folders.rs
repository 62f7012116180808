//! Folders of callers that payloads may write to. Payloads of two users never have one at the same time (R-ISO-17).
//!
//! A path says little: both payloads are started by one pilot, who may rename a folder meanwhile. So what is compared is the
//! folder itself, and where it and its parents lie now.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
};
use vestigo_model::{PayloadUid, User};

use crate::{protocol::Refusal, sandbox::places};

type Held = BTreeMap<PayloadUid, (User, Vec<Place>)>;

/// Who has which.
#[derive(Debug, Clone, Default)]
pub(super) struct Folders(Arc<Mutex<Held>>);

/// One payload's, until dropped.
#[derive(Debug)]
pub(super) struct Hold {
    folders: Folders,
    payload: PayloadUid,
}

/// A path of PATH_MAX bytes has no more parents.
const DEEPEST: usize = 2048;

/// An open folder or file, and where it lies.
#[derive(Debug)]
struct Place {
    /// Names its path at any later moment, and that without asking the file system: one that hangs must not stop others.
    open: OwnedFd,
    /// Device and inode.
    own: (u64, u64),
    /// The same of what it lies in, up to the root: they tell also of a folder that is mounted at two places.
    parents: Vec<(u64, u64)>,
}

impl Place {
    fn of(open: OwnedFd) -> nix::Result<Self> {
        let about = fstat(&open)?;
        let own = identity(&about);
        let folder = SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        // A file alone does not know its parents but by its path.
        let parents = if folder { parents(open.as_fd(), own)? } else { Vec::new() };
        Ok(Self { open, own, parents })
    }

    fn path(&self) -> PathBuf {
        places::path(&self.open)
    }

    fn meets(&self, other: &Self) -> bool {
        let (here, there) = (self.path(), other.path());
        let known = self.own == other.own || self.parents.contains(&other.own) || other.parents.contains(&self.own);
        known || here.starts_with(&there) || there.starts_with(&here)
    }
}

fn identity(about: &FileStat) -> (u64, u64) {
    (about.st_dev, about.st_ino)
}

/// As far up as root may look: on a network file system that is perhaps not far, and the path has to do.
fn parents(open: BorrowedFd<'_>, own: (u64, u64)) -> nix::Result<Vec<(u64, u64)>> {
    let up = |folder: BorrowedFd<'_>| {
        openat(folder, "..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
    };
    let mut all = vec![own];
    let mut next = up(open);
    while let Ok(at) = next {
        let parent = identity(&fstat(&at)?);
        // Only the root is its own parent.
        if all.last() == Some(&parent) {
            break;
        }
        all.push(parent);
        if all.len() > DEEPEST {
            return Err(Errno::ENAMETOOLONG);
        }
        next = up(at.as_fd());
    }
    Ok(all)
}

impl Folders {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes them for a payload: open folders or files, which stay open until the end of the hold.
    pub(super) fn hold(&self, payload: PayloadUid, user: &User, open: Vec<OwnedFd>) -> Result<Hold, Refusal> {
        let unclear = |e: Errno| {
            Refusal::caller(format!(
                "where a folder for writing lies cannot be seen ({e}); give one with a shorter path"
            ))
        };
        let mine: Vec<Place> = open.into_iter().map(Place::of).collect::<Result<_, _>>().map_err(unclear)?;
        let mut held = self.held();
        for (other, (owner, theirs)) in held.iter().filter(|(_, (owner, _))| owner != user) {
            if let Some(mine) = mine.iter().find(|mine| theirs.iter().any(|theirs| mine.meets(theirs))) {
                return Err(Refusal::policy(format!(
                    "{} is in use by payload {other} of {owner}; give each payload a folder of its own (R-ISO-17)",
                    mine.path().display()
                )));
            }
        }
        held.insert(payload, (user.clone(), mine));
        Ok(Hold { folders: self.clone(), payload })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.folders.held().remove(&self.payload);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        fs::{self, File},
        path::Path,
    };

    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    use vestigo_model::Label;

    use super::*;

    fn user(name: &str) -> User {
        User { issuer: Label::new("i").unwrap(), subject: Label::new(name).unwrap() }
    }

    fn hold(folders: &Folders, payload: u128, name: &str, path: &Path) -> Result<Hold, Refusal> {
        let open = File::open(path).unwrap().into();
        folders.hold(PayloadUid(uuid::Uuid::from_u128(payload)), &user(name), vec![open])
    }

    #[test]
    fn two_users_never_write_to_one_folder() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        fs::create_dir_all(path("one/below")).unwrap();
        fs::create_dir(path("one-more")).unwrap();
        let folders = Folders::default();
        let first = hold(&folders, 1, "a", &path("one")).unwrap();
        for refused in ["one", "one/below", ""] {
            assert!(hold(&folders, 2, "b", &path(refused)).is_err(), "{refused}");
        }
        let same = hold(&folders, 3, "a", &path("one"));
        assert!(same.is_ok() && hold(&folders, 4, "b", &path("one-more")).is_ok());
        drop((first, same));
        assert!(hold(&folders, 5, "b", &path("one")).is_ok());
    }

    #[test]
    fn a_folder_that_was_moved_is_still_in_use() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        fs::create_dir_all(path("one/below")).unwrap();
        let folders = Folders::default();
        let _held = hold(&folders, 1, "a", &path("one")).unwrap();
        fs::rename(path("one"), path("two")).unwrap();
        fs::create_dir(path("one")).unwrap();
        for refused in ["two", "two/below", ""] {
            let said = hold(&folders, 2, "b", &path(refused)).unwrap_err();
            assert!(said.reason.contains("R-ISO-17"), "{refused}");
        }
        assert!(hold(&folders, 2, "b", &path("one")).is_ok(), "another folder with the old name");
        // Into another one.
        fs::rename(path("two"), path("one/three")).unwrap();
        assert!(hold(&folders, 2, "b", &path("one")).is_err());
    }

    #[test]
    fn a_file_alone_is_known_by_any_name() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        for folder in ["one", "two"] {
            fs::create_dir(path(folder)).unwrap();
        }
        fs::write(path("one/file"), "").unwrap();
        let folders = Folders::default();
        let _held = hold(&folders, 1, "a", &path("one/file")).unwrap();
        fs::hard_link(path("one/file"), path("two/link")).unwrap();
        assert!(hold(&folders, 2, "b", &path("two/link")).is_err());
        assert!(hold(&folders, 2, "b", &path("one")).is_err());
        assert!(hold(&folders, 2, "b", &path("two")).is_ok());
        fs::rename(path("one/file"), path("two/file")).unwrap();
        assert!(hold(&folders, 2, "b", &path("two")).is_err());
        assert!(hold(&folders, 2, "b", &path("one")).is_ok());
    }

    /// Needs root.
    #[test]
    fn a_folder_that_is_mounted_at_two_places_is_one() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        fs::create_dir_all(path("one/below")).unwrap();
        fs::create_dir(path("other")).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let bind =
            |source: Option<&Path>, target: &Path, flags| mount(source, target, None::<&str>, flags, None::<&str>);
        bind(None, Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE).unwrap();
        bind(Some(&path("one")), &path("other"), MsFlags::MS_BIND).unwrap();
        let folders = Folders::default();
        let held = hold(&folders, 1, "a", &path("one")).unwrap();
        for refused in ["other", "other/below"] {
            assert!(hold(&folders, 2, "b", &path(refused)).is_err(), "{refused}");
        }
        drop(held);
        let _held = hold(&folders, 1, "a", &path("other/below")).unwrap();
        assert!(hold(&folders, 2, "b", &path("one")).is_err());
    }

    #[test]
    fn a_folder_too_deep_to_be_placed_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let mut at: OwnedFd = File::open(base.path()).unwrap().into();
        for _ in 0..DEEPEST {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        let folders = Folders::default();
        assert!(folders.hold(PayloadUid(uuid::Uuid::from_u128(1)), &user("a"), vec![at]).is_err());
        crate::sandbox::scratch::remove(base.path()).unwrap();
        fs::create_dir(base.path()).unwrap();
    }
}
