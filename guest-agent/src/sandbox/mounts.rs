//! The file tree that a payload sees: an empty root, and in it only what is named here.
//!
//! What all payloads share, read-only, is built once: the [`template`], in which the forker lives and which every payload's
//! mount namespace starts as a copy of. [`dress`] adds what is one payload's own. Every mount of something that exists is made
//! from a descriptor (`open_tree`, `move_mount`), so no path is looked up twice.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, symlink},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, mkdirat, mknodat},
    unistd::{chdir, pivot_root},
};
use serde::{Deserialize, Serialize};

use super::{
    HOME, INSIDE,
    failure::{StepError, mistake, step},
};
use crate::sys::{self, MountRules};

/// Programs and libraries of the VM. A symbolic link (`/bin` on a merged system) stays one.
pub const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Parts of `/etc` that programs need and that are nobody's secret.
pub const ETC: [&str; 8] =
    ["ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl/certs", "ca-certificates", "pki", "alternatives", "localtime"];
/// The harmless devices.
pub const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// What every sandbox has of its own, and another system's root cannot bring.
pub const OWN: [&str; 7] = ["dev", "proc", "sys", "run", "tmp", "work", "var/tmp"];
const PRIVATE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const SHARED: MountRules = MountRules::READ_ONLY.and(MountRules::NO_PRIVILEGE);
/// Where a tree other than the template's is put together: an empty folder of the template.
const SITE: &str = "/tmp";
/// Where another system's root waits meanwhile.
const FOREIGN: &str = "/var/tmp";
/// Most entries of another system's root, and of its `/var`.
const MAX_ENTRIES: usize = 256;
const RESOLVERS: &str = "/etc/resolv.conf";

type Result<T> = std::result::Result<T, StepError>;

/// What all payloads' trees have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// An empty folder of the VM to build on.
    pub root: PathBuf,
    /// More folders of the VM to show, read-only.
    pub expose: Vec<PathBuf>,
}

/// A mount that one payload asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extra {
    /// A detached mount that rides along, with its rules set.
    Tree(PathBuf),
    /// An empty folder in memory.
    Tmpfs(PathBuf),
}

/// Builds the template as the VM's root, in a mount namespace of the forker's own, and moves into it.
pub(super) fn template(template: &Template) -> Result<()> {
    // Slave, not private: what automounts in the VM later (CVMFS) still appears; nothing goes back.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(step("make mounts slave"))?;
    let root = template.root.as_path();
    tmpfs(root, PRIVATE, "mode=755,size=4m")?;
    for name in SYSTEM {
        show(&Path::new("/").join(name), root, MountRules::READ_ONLY.and(MountRules::NO_PRIVILEGE))?;
    }
    for path in template.expose.iter().filter(|path| path.is_dir()) {
        show(path, root, SHARED)?;
    }
    etc(root)?;
    devices(root)?;
    for name in OWN {
        folder(&root.join(name))?;
    }
    move_into(root)
}

/// Adds what is the payload's own, as the VM's root, in the payload's mount namespace: the private mounts (home, `/tmp`,
/// `/var/tmp`, `/etc/resolv.conf`), fresh `/proc`, `/dev/pts` and `/dev/shm`, what it asks for, and another system's root in place of
/// the VM's. `proc`: a `/proc` made before, see [`processes`].
pub(super) fn dress(
    private: &[OwnedFd; 4],
    extras: Vec<(Extra, Option<OwnedFd>)>,
    foreign: Option<OwnedFd>,
    processes: Option<&OwnedFd>,
) -> Result<()> {
    let other = !extras.is_empty() || foreign.is_some();
    let root = if other {
        other_root(foreign)?;
        Path::new(SITE)
    } else {
        Path::new("/")
    };
    for (tree, at) in private.iter().zip([HOME, "/tmp", "/var/tmp", RESOLVERS]) {
        let point = below(root, Path::new(at));
        // Another system's root may have no such file.
        if at != RESOLVERS || is_file(&point) {
            attach(tree, &point)?;
        }
    }
    special(root, processes)?;
    for (extra, tree) in extras {
        add(root, extra, tree)?;
    }
    if other { move_into(root) } else { Ok(()) }
}

fn special(root: &Path, processes: Option<&OwnedFd>) -> Result<()> {
    let pts = below(root, Path::new("/dev/pts"));
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), &pts, Some("devpts"), quiet, Some("newinstance,ptmxmode=0666,mode=0620"))
        .map_err(step("mount /dev/pts"))?;
    tmpfs(&below(root, Path::new("/dev/shm")), PRIVATE, "mode=1777,size=50%")?;
    // Of the payload's own IPC namespace. Landlock lets queues be used only where their file system is named.
    let queues = below(root, Path::new("/dev/mqueue"));
    mount(Some("mqueue"), &queues, Some("mqueue"), PRIVATE | MsFlags::MS_NOEXEC, None::<&str>)
        .map_err(step("mount /dev/mqueue"))?;
    // Not masked: a payload may make a PID namespace of its own only below a whole /proc, and what is masked elsewhere is
    // root's alone to read.
    let proc = below(root, Path::new("/proc"));
    match processes {
        Some(tree) => attach(tree, &proc),
        None => mount_processes(&proc),
    }
}

fn mount_processes(at: &Path) -> Result<()> {
    mount(Some("proc"), at, Some("proc"), PRIVATE | MsFlags::MS_NOEXEC, None::<&str>).map_err(step("mount /proc"))
}

/// A fresh `/proc` of this PID namespace, mounted nowhere yet. Without rights over the VM the kernel allows it only where a
/// whole `/proc` can still be seen: so before the [`template`], and [`dress`] gets it. `site` is any folder.
pub(super) fn processes(site: &Path) -> Result<OwnedFd> {
    mount_processes(site)?;
    let tree = sys::clone_mount(AT_FDCWD, &text(site)?, false).map_err(step("copy /proc"))?;
    umount2(site, MntFlags::MNT_DETACH).map_err(step("put /proc aside"))?;
    Ok(tree)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Makes a mount point the root of this mount namespace, read-only.
fn move_into(root: &Path) -> Result<()> {
    let flags = PRIVATE | MsFlags::MS_RDONLY | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, root, None::<&str>, flags, None::<&str>).map_err(step("make the new root read-only"))?;
    chdir(root).map_err(step("enter the new root"))?;
    // The old root lands on top of the new one and is taken off again: no folder is needed for it.
    pivot_root(".", ".").map_err(step("pivot the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("leave the old root"))?;
    chdir("/").map_err(step("enter the new root"))
}

/// A root of the payload's own: the template's folders or another system's, with room for more mount points.
fn other_root(foreign: Option<OwnedFd>) -> Result<()> {
    let site = Path::new(SITE);
    tmpfs(site, PRIVATE, "mode=755,size=4m")?;
    let source = match &foreign {
        Some(tree) => {
            attach(tree, Path::new(FOREIGN))?;
            Path::new(FOREIGN)
        }
        None => Path::new("/"),
    };
    copy_entries(source, site, |name| OWN.iter().any(|own| name == *own) || name == "var")?;
    // Apart, because its `tmp` is the sandbox's own, and many systems have none. A link in its place is no folder of theirs.
    folder(&site.join("var"))?;
    if foreign.is_some() && is_folder(&source.join("var")) {
        copy_entries(&source.join("var"), &site.join("var"), |name| name == "tmp")?;
    }
    folder(&site.join("dev"))?;
    show_at(Path::new("/dev"), &site.join("dev"), None)?;
    if foreign.is_some() {
        // Names and resolvers are the sandbox's whatever system it shows.
        for name in ["resolv.conf", "hosts", "passwd", "group", "nsswitch.conf"] {
            let at = site.join("etc").join(name);
            if is_folder(&site.join("etc")) && is_file(&at) {
                show_at(&Path::new("/etc").join(name), &at, None)?;
            }
        }
        umount2(FOREIGN, MntFlags::MNT_DETACH).map_err(step("put the other root away"))?;
    }
    for name in OWN {
        let at = site.join(name);
        if !at.is_dir() {
            folder(&at)?;
        }
    }
    Ok(())
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_file())
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_dir())
}

/// Shows all entries of a folder but some: each costs a mount.
fn copy_entries(from: &Path, at: &Path, left_out: impl Fn(&OsStr) -> bool) -> Result<()> {
    for (number, entry) in fs::read_dir(from).map_err(step("read the root's folder"))?.enumerate() {
        if number == MAX_ENTRIES {
            let why = format!(
                "a folder of the image has more than {MAX_ENTRIES} entries; name the folder that holds usr and etc"
            );
            return Err(mistake("--rootfs", why));
        }
        let name = entry.map_err(step("read the root's folder"))?.file_name();
        if !left_out(&name) {
            copy_entry(&from.join(&name), &at.join(&name))?;
        }
    }
    Ok(())
}

fn copy_entry(from: &Path, at: &Path) -> Result<()> {
    let about = fs::symlink_metadata(from).map_err(step(format!("look at {}", from.display())))?;
    if about.is_symlink() {
        return link(from, at);
    }
    point(at, about.is_dir())?;
    show_at(from, at, None)
}

fn link(from: &Path, at: &Path) -> Result<()> {
    let target = fs::read_link(from).map_err(step(format!("read the link {}", from.display())))?;
    symlink(target, at).map_err(step(format!("link {}", at.display())))
}

/// Mounts what a payload asked for. The place is looked up inside the new root, whatever links an image may hold.
fn add(root: &Path, extra: Extra, tree: Option<OwnedFd>) -> Result<()> {
    let (Extra::Tree(at) | Extra::Tmpfs(at)) = &extra;
    let fresh = match &tree {
        Some(tree) => tree.try_clone().map_err(step("copy a descriptor"))?,
        None => memory()?,
    };
    let is_folder = File::from(fresh.try_clone().map_err(step("copy a descriptor"))?)
        .metadata()
        .map_err(step("look at a mount"))?
        .is_dir();
    let place = place(root, at, is_folder)?;
    let place_is_folder = File::from(place.try_clone().map_err(step("copy a descriptor"))?)
        .metadata()
        .map_err(step("look at a mount point"))?
        .is_dir();
    if place_is_folder != is_folder {
        return Err(no_place(at, Errno::ENOTDIR));
    }
    sys::attach_mount(&fresh, &place).map_err(step("mount what was asked for"))
}

/// An empty folder in memory, mounted nowhere yet.
fn memory() -> Result<OwnedFd> {
    let site = Path::new(FOREIGN);
    tmpfs(site, PRIVATE, "mode=1777,size=50%")?;
    let tree = sys::clone_mount(AT_FDCWD, &text(site)?, false).map_err(step("make a folder in memory"))?;
    umount2(site, MntFlags::MNT_DETACH).map_err(step("make a folder in memory"))?;
    Ok(tree)
}

/// Opens a place inside the new root, making it where the root is the sandbox's own. No link is followed: an image of the
/// caller's could lead a mount onto `/proc`, or the root itself, from which the last steps out of the VM's rights are taken.
fn place(root: &Path, at: &Path, folder: bool) -> Result<OwnedFd> {
    let how = |flags| {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
        OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve)
    };
    let root = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open the new root"))?;
    let relative = at.strip_prefix("/").unwrap_or(at);
    let mut parent = root.try_clone().map_err(step("copy a descriptor"))?;
    let mut done = PathBuf::new();
    let parts: Vec<_> = relative.components().collect();
    for (number, part) in parts.iter().enumerate() {
        let Component::Normal(name) = part else { return Err(no_place(at, Errno::EINVAL)) };
        done.push(name);
        let is_folder = folder || number + 1 < parts.len();
        let flags = if is_folder { OFlag::O_PATH | OFlag::O_DIRECTORY } else { OFlag::O_PATH };
        parent = match openat2(&root, &done, how(flags)) {
            Ok(there) => there,
            Err(Errno::ENOENT) => {
                make(&parent, name, is_folder).map_err(|e| no_place(at, e))?;
                openat2(&root, &done, how(flags)).map_err(|e| no_place(at, e))?
            }
            Err(error) => return Err(no_place(at, error)),
        };
    }
    Ok(parent)
}

/// An empty folder or file to mount on.
fn make(parent: &OwnedFd, name: &OsStr, folder: bool) -> nix::Result<()> {
    if folder {
        mkdirat(parent, name, Mode::from_bits_truncate(0o755))
    } else {
        mknodat(parent, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0)
    }
}

/// Why something of the caller's cannot be mounted there, and what would do.
fn no_place(at: &Path, error: Errno) -> StepError {
    let why = match error {
        Errno::EROFS => {
            "it does not exist, and the root is read-only there; mount on a folder that exists, on a new one beside /usr, or below /work or /tmp"
        }
        Errno::ELOOP => "there is a symbolic link on the way; name the folder that it leads to",
        Errno::ENOTDIR => "a folder is mounted on a folder, a file on a file; it is the other here",
        // A folder of the caller's, in which root has no name.
        Errno::EOVERFLOW | Errno::EACCES => "it does not exist in the caller's folder; make it there before the call",
        _ => error.desc(),
    };
    mistake(format!("{} inside the sandbox", at.display()), why)
}

fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(step(format!("make {}", path.display())))
}

/// Something to mount on.
fn point(at: &Path, is_folder: bool) -> Result<()> {
    if is_folder {
        return folder(at);
    }
    at.parent().map_or(Ok(()), folder)?;
    File::create(at).map(drop).map_err(step(format!("make {}", at.display())))
}

fn tmpfs(at: &Path, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)).map_err(step(format!("mount {}", at.display())))
}

fn text(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| step("name a path")(io::Error::other(e)))
}

/// Shows something of the VM at the same place below `root`, by these rules. A symbolic link stays one; what is not there is left out.
fn show(from: &Path, root: &Path, rules: MountRules) -> Result<()> {
    let at = below(root, from);
    let Ok(about) = fs::symlink_metadata(from) else { return Ok(()) };
    if about.is_symlink() {
        return link(from, &at);
    }
    point(&at, about.is_dir())?;
    show_at(from, &at, Some(rules))
}

fn show_at(from: &Path, at: &Path, rules: Option<MountRules>) -> Result<()> {
    let tree = sys::clone_mount(AT_FDCWD, &text(from)?, true).map_err(step(format!("copy {}", from.display())))?;
    if let Some(rules) = rules {
        sys::rule_mount(&tree, rules, true, None).map_err(step(format!("make {} read-only", from.display())))?;
    }
    attach(&tree, at)
}

fn attach(tree: impl AsFd, at: &Path) -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let place = nix::fcntl::open(at, flags, Mode::empty()).map_err(step(format!("open {}", at.display())))?;
    sys::attach_mount(tree, place).map_err(step(format!("mount {}", at.display())))
}

/// A detached copy of the mount below a folder, for a sandbox: made where the folder is mounted, so by the daemon.
///
/// # Errors
/// The step and the kernel's answer.
pub fn detach(
    folder: BorrowedFd<'_>,
    rules: MountRules,
    recursive: bool,
    owners: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    const HERE: &CStr = c"";
    let tree = sys::clone_mount(folder, HERE, recursive).map_err(step("copy the mount of a folder"))?;
    sys::rule_mount(&tree, rules, recursive, None).map_err(step("set the rules of a mount"))?;
    if owners.is_some() {
        // Alone: what is mounted below keeps its owners.
        sys::rule_mount(&tree, rules, false, owners)
            .map_err(step("map the owner of a folder (its file system may not support it)"))?;
    }
    Ok(tree)
}

/// A detached copy of one file, read-only.
///
/// # Errors
/// The step and the kernel's answer.
pub fn detach_file(path: &Path) -> Result<OwnedFd> {
    let tree = sys::clone_mount(AT_FDCWD, &text(path)?, false).map_err(step(format!("copy {}", path.display())))?;
    sys::rule_mount(&tree, SHARED.and(MountRules::NO_EXEC), false, None).map_err(step("set the rules of a mount"))?;
    Ok(tree)
}

fn etc(root: &Path) -> Result<()> {
    let etc = root.join("etc");
    folder(&etc)?;
    for name in ETC {
        // Followed: `localtime` is a link into /usr, and certificates may lie elsewhere.
        let from = Path::new("/etc").join(name);
        let Ok(from) = fs::canonicalize(&from) else { continue };
        let Ok(about) = fs::metadata(&from) else { continue };
        let at = etc.join(name);
        point(&at, about.is_dir())?;
        show_at(&from, &at, Some(SHARED.and(MountRules::NO_EXEC)))?;
    }
    let files = [
        (
            "passwd",
            format!(
                "root:x:0:0:root:/:/bin/false\npayload:x:{INSIDE}:{INSIDE}:payload:{HOME}:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
            ),
        ),
        ("group", format!("root:x:0:\npayload:x:{INSIDE}:\nnogroup:x:65534:\n")),
        ("hosts", "127.0.0.1 localhost payload\n::1 localhost\n".into()),
        ("hostname", "payload\n".into()),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".into()),
        // To mount on: name servers change while an agent runs.
        ("resolv.conf", String::new()),
    ];
    for (name, text) in files {
        fs::write(etc.join(name), text).map_err(step(format!("write /etc/{name}")))?;
    }
    Ok(())
}

fn devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    folder(&dev)?;
    tmpfs(&dev, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=755,size=64k")?;
    for name in DEVICES {
        let (from, at) = (Path::new("/dev").join(name), dev.join(name));
        let about = fs::symlink_metadata(&from).map_err(step(format!("look at {}", from.display())))?;
        if !about.file_type().is_char_device() {
            return Err(step(format!("check {}", from.display()))(io::Error::other("not a character device")));
        }
        point(&at, false)?;
        show_at(&from, &at, Some(MountRules::NO_SUID.and(MountRules::NO_EXEC)))?;
    }
    folder(&dev.join("pts"))?;
    folder(&dev.join("shm"))?;
    folder(&dev.join("mqueue"))?;
    let links =
        [("pts/ptmx", "ptmx"), ("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")];
    for (target, name) in links {
        symlink(target, dev.join(name)).map_err(step(format!("link /dev/{name}")))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, &dev, None::<&str>, flags, None::<&str>).map_err(step("make /dev read-only"))
}
