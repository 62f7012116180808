//! A payload's folders on the VM's disk, and their removal whatever the payload left in them.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, chown},
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat},
    unistd::{UnlinkatFlags, geteuid, unlinkat},
};

use super::{
    failure::{StepError, step},
    mounts,
};
use crate::sys::MountRules;

/// So many names of a folder are in memory at a time when it is removed.
const BATCH: usize = 1024;

/// The folders of one payload; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes `work`, `tmp` and `vartmp` below `base`, which only the caller can enter: for this uid, or for the caller itself.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create(base: &Path, name: &str, owner: Option<u32>) -> io::Result<Self> {
        let scratch = Self { path: base.join(name) };
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).create(&scratch.path)?;
        for part in ["work", "tmp", "vartmp"] {
            let part = scratch.path.join(part);
            builder.create(&part)?;
            if owner.is_some() {
                chown(&part, owner, owner)?;
            }
        }
        Ok(scratch)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it the name of the payload that gets it, for whoever looks at the VM's disk later.
    ///
    /// # Errors
    /// As rename(2).
    pub fn name(&mut self, name: &str) -> io::Result<()> {
        let path = self.path.with_file_name(name);
        fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
    }

    /// Its folders as mounts for a sandbox: home, `/tmp`, `/var/tmp`.
    ///
    /// # Errors
    /// The step and the kernel's answer.
    pub fn mounts(&self) -> Result<[OwnedFd; 3], StepError> {
        mounts(&self.path)
    }
}

/// The same by the path of such a folder, in whatever mount namespace this process is.
pub(super) fn mounts(path: &Path) -> Result<[OwnedFd; 3], StepError> {
    let detached = |name: &str| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = nix::fcntl::open(&path.join(name), flags, Mode::empty()).map_err(step("open a home folder"))?;
        mounts::detach(folder.as_fd(), MountRules::NO_PRIVILEGE, false, None)
    };
    Ok([detached("work")?, detached("tmp")?, detached("vartmp")?])
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a payload's folder could not be removed");
        }
    }
}

/// Makes the base folder and removes what an earlier agent left in it.
///
/// # Errors
/// As the file system says.
pub fn clear(base: &Path) -> io::Result<()> {
    fs::create_dir_all(base)?;
    fs::set_permissions(base, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    for entry in fs::read_dir(base)? {
        remove(&entry?.path())?;
    }
    Ok(())
}

/// Removes a tree without recursion and without following links: a payload may leave folders nested so deeply that a
/// recursive removal runs out of stack or descriptors. Every sub-folder is first moved up beside its parent.
///
/// # Errors
/// As the file system says.
pub fn remove(top: &Path) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut root = Dir::openat(AT_FDCWD, top, flags, Mode::empty())?;
    let mut count = 0u64;
    loop {
        let some = some(&mut root)?;
        if some.is_empty() {
            return fs::remove_dir(top);
        }
        for (name, _) in some {
            match open_folder(&root, &name) {
                Ok(folder) => {
                    empty(&root, Dir::from_fd(folder)?, &mut count)?;
                    unlinkat(&root, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
                }
                Err(_) => unlinkat(&root, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?,
            }
        }
    }
}

/// The first entries of a folder: a payload may have made millions in one.
fn some(folder: &mut Dir) -> nix::Result<Vec<(CString, Option<Type>)>> {
    // The next look begins at the start again.
    let entries = folder.iter().map(|entry| entry.map(|entry| (entry.file_name().to_owned(), entry.file_type())));
    let others =
        |entry: &nix::Result<(CString, _)>| !matches!(entry, Ok((name, _)) if matches!(name.to_bytes(), b"." | b".."));
    entries.filter(others).take(BATCH).collect()
}

fn open_folder(parent: &Dir, name: &CStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::EACCES) => {
            unlock(parent, name)?;
            openat(parent, name, flags, Mode::empty())
        }
        other => other,
    }
}

/// Opens a folder to its owner again. Root needs no such thing.
fn unlock(parent: &Dir, name: &CStr) -> nix::Result<()> {
    let about = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
        return Err(Errno::ENOTDIR);
    }
    // Nothing lives that could put a link in its place.
    fchmodat(parent, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)
}

fn empty(root: &Dir, mut folder: Dir, count: &mut u64) -> io::Result<()> {
    loop {
        let some = some(&mut folder)?;
        if some.is_empty() {
            return Ok(());
        }
        for (name, kind) in some {
            take_out(root, &folder, &name, kind, count)?;
        }
    }
}

/// Removes an entry, or moves it up if it is a folder.
fn take_out(root: &Dir, folder: &Dir, name: &CStr, kind: Option<Type>, count: &mut u64) -> io::Result<()> {
    if kind == Some(Type::Directory) && !geteuid().is_root() {
        // To be moved elsewhere it must be writable, for its entry "..".
        unlock(folder, name)?;
    }
    if kind != Some(Type::Directory) && unlinkat(folder, name, UnlinkatFlags::NoRemoveDir).is_ok() {
        return Ok(());
    }
    // A folder, or of unknown kind; the number must not be one that stands there already.
    loop {
        *count += 1;
        let fresh = format!(".gone-{count}");
        match renameat(folder, name, root, fresh.as_str()) {
            Ok(()) => return Ok(()),
            Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) if *count < u64::MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn removes_what_a_payload_can_leave_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "").unwrap();
        let scratch = Scratch::create(folder.path(), "one", None).unwrap();
        std::os::unix::fs::symlink(&outside, scratch.path.join("work/link")).unwrap();
        fs::create_dir(scratch.path.join("work/.gone-1")).unwrap();
        fs::write(scratch.path.join("tmp/file"), "x").unwrap();
        // More than are looked at in one go, files and folders.
        fs::create_dir(scratch.path.join("tmp/many")).unwrap();
        for number in 0..2 * BATCH + 3 {
            fs::write(scratch.path.join(format!("tmp/many/{number}")), "").unwrap();
            fs::create_dir(scratch.path.join(format!("tmp/many/d{number}"))).unwrap();
        }
        let mut many = Dir::open(&scratch.path.join("tmp/many"), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        assert_eq!((some(&mut many).unwrap().len(), some(&mut many).unwrap().len()), (BATCH, BATCH));
        // Deeper than a path can be long and than a recursion can go.
        let mut at = openat(AT_FDCWD, &scratch.path.join("work"), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..2500 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        let path = scratch.path.to_owned();
        drop(scratch);
        assert!(!path.exists());
        assert!(outside.join("keep").exists());
    }
}
