//! A payload's folders on the VM's disk, and their removal whatever the payload left in them.

use std::{
    ffi::CStr,
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
        let mut left = Vec::new();
        for entry in root.iter().collect::<Vec<_>>() {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                left.push(name);
            }
        }
        if left.is_empty() {
            return fs::remove_dir(top);
        }
        for name in left {
            match open_folder(&root, &name) {
                Ok(folder) => {
                    empty(&root, Dir::from_fd(folder)?, &mut count)?;
                    unlinkat(&root, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
                }
                Err(_) => unlinkat(&root, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?,
            }
        }
        root = Dir::openat(AT_FDCWD, top, flags, Mode::empty())?;
    }
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
    let entries: Vec<_> = folder.iter().collect();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() == Some(Type::Directory) && !geteuid().is_root() {
            // To be moved elsewhere it must be writable, for its entry "..".
            unlock(&folder, name)?;
        }
        if entry.file_type() != Some(Type::Directory) && unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir).is_ok() {
            continue;
        }
        // A folder, or of unknown kind; the number must not be one that stands there already.
        loop {
            *count += 1;
            let fresh = format!(".gone-{count}");
            match renameat(&folder, name, root, fresh.as_str()) {
                Ok(()) => break,
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) if *count < u64::MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
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
