//! The file tree that a payload sees: an empty root, and in it only what is named here.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt, symlink},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};

use super::{
    INSIDE, Plan,
    stage::{StageError, step},
};

/// Programs and libraries of the VM. A symbolic link (`/bin` on a merged system) stays one.
const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Parts of `/etc` that programs need and that are nobody's secret.
const ETC: [&str; 8] =
    ["ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ssl/certs", "ca-certificates", "pki", "alternatives", "localtime"];
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const READ_ONLY: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV);
const PRIVATE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

type Result<T> = std::result::Result<T, StageError>;

/// Builds the tree on `plan.root`, as the VM's root, in a mount namespace of its own.
pub(super) fn build(plan: &Plan) -> Result<()> {
    // Slave, not private: what automounts in the VM later (CVMFS) still appears; nothing goes back.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).map_err(step("make mounts slave"))?;
    let root = plan.root.as_path();
    tmpfs(root, PRIVATE, "mode=755,size=4m")?;
    for name in SYSTEM {
        system(root, name)?;
    }
    for path in &plan.expose {
        if path.is_dir() {
            let at = root.join(path.strip_prefix("/").unwrap_or(path));
            folder(&at)?;
            bind_tree(path, &at)?;
        }
    }
    etc(root, plan)?;
    devices(root)?;
    private(root, plan)?;
    folder(&root.join("proc"))?;
    folder(&root.join("run"))
}

/// Mounts what only PID 1 of the new namespace can, and leaves the VM's tree behind.
pub(super) fn enter(root: &Path) -> Result<()> {
    let flags = PRIVATE | MsFlags::MS_NOEXEC;
    let proc = root.join("proc");
    mount(Some("proc"), &proc, Some("proc"), flags, None::<&str>).map_err(step("mount /proc"))?;
    remount(root, PRIVATE | MsFlags::MS_RDONLY)?;
    chdir(root).map_err(step("enter the new root"))?;
    // The old root lands on top of the new one and is taken off again: no folder is needed for it.
    pivot_root(".", ".").map_err(step("pivot the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("leave the old root"))?;
    chdir(super::HOME).map_err(step("enter the home folder"))
}

fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(step(format!("make {}", path.display())))
}

fn tmpfs(at: &Path, flags: MsFlags, options: &str) -> Result<()> {
    folder(at)?;
    mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options)).map_err(step(format!("mount {}", at.display())))
}

/// Bind mounts take their flags only in a second step.
fn bind(from: &Path, at: &Path, flags: MsFlags) -> Result<()> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(step(format!("bind {}", from.display())))?;
    remount(at, flags)
}

fn remount(at: &Path, flags: MsFlags) -> Result<()> {
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>).map_err(step(format!("remount {}", at.display())))
}

/// With everything mounted below it; each mount of the tree is made read-only on its own.
fn bind_tree(from: &Path, at: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), at, None::<&str>, flags, None::<&str>).map_err(step(format!("bind {}", from.display())))?;
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(step("read the mount table"))?;
    for line in table.lines() {
        let Some(point) = line.split(' ').nth(4).map(unescape) else { continue };
        if Path::new(&point).starts_with(at) {
            remount(Path::new(&point), READ_ONLY)?;
        }
    }
    Ok(())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn system(root: &Path, name: &str) -> Result<()> {
    let (from, at) = (Path::new("/").join(name), root.join(name));
    let Ok(about) = fs::symlink_metadata(&from) else { return Ok(()) };
    if about.is_symlink() {
        let target = fs::read_link(&from).map_err(step(format!("read the link {}", from.display())))?;
        return symlink(target, &at).map_err(step(format!("link {}", at.display())));
    }
    folder(&at)?;
    bind(&from, &at, READ_ONLY)
}

fn etc(root: &Path, plan: &Plan) -> Result<()> {
    let etc = root.join("etc");
    folder(&etc)?;
    for name in ETC {
        let (from, at) = (Path::new("/etc").join(name), etc.join(name));
        let Ok(about) = fs::metadata(&from) else { continue };
        if about.is_dir() {
            folder(&at)?;
        } else {
            at.parent().map_or(Ok(()), folder)?;
            File::create(&at).map_err(step(format!("make {}", at.display())))?;
        }
        bind(&from, &at, READ_ONLY | MsFlags::MS_NOEXEC)?;
    }
    let host = &plan.hostname;
    let files = [
        (
            "passwd",
            format!(
                "root:x:0:0:root:/:/bin/false\npayload:x:{INSIDE}:{INSIDE}:payload:{}:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
                super::HOME
            ),
        ),
        ("group", format!("root:x:0:\npayload:x:{INSIDE}:\nnogroup:x:65534:\n")),
        ("hosts", format!("127.0.0.1 localhost {host}\n")),
        ("hostname", format!("{host}\n")),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".into()),
        ("resolv.conf", resolvers()),
    ];
    for (name, text) in files {
        fs::write(etc.join(name), text).map_err(step(format!("write /etc/{name}")))?;
    }
    Ok(())
}

/// The VM's name servers without those on its loopback, which a payload's network namespace cannot reach.
fn resolvers() -> String {
    let text = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"].iter().find_map(|p| fs::read_to_string(p).ok());
    let text = text.unwrap_or_default();
    let local = |line: &&str| line.split_whitespace().nth(1).is_some_and(|a| a.starts_with("127.") || a == "::1");
    text.lines().filter(|l| !(l.starts_with("nameserver") && local(l))).flat_map(|l| [l, "\n"]).collect()
}

fn devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    tmpfs(&dev, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=755,size=64k")?;
    for name in DEVICES {
        let (from, at) = (Path::new("/dev").join(name), dev.join(name));
        let about = fs::symlink_metadata(&from).map_err(step(format!("look at {}", from.display())))?;
        if !about.file_type().is_char_device() {
            return Err(step(format!("check {}", from.display()))(io::Error::other("not a character device")));
        }
        File::create(&at).map_err(step(format!("make {}", at.display())))?;
        bind(&from, &at, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    let pts = dev.join("pts");
    folder(&pts)?;
    let options = "newinstance,ptmxmode=0666,mode=0620";
    mount(Some("devpts"), &pts, Some("devpts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some(options))
        .map_err(step("mount /dev/pts"))?;
    tmpfs(&dev.join("shm"), PRIVATE, "mode=1777,size=50%")?;
    let links =
        [("pts/ptmx", "ptmx"), ("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")];
    for (target, name) in links {
        symlink(target, dev.join(name)).map_err(step(format!("link /dev/{name}")))?;
    }
    remount(&dev, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY)
}

/// Home and temporary folders, on the VM's disk: what a payload leaves there is evidence until the agent removes it, and
/// still is when the VM dies first.
fn private(root: &Path, plan: &Plan) -> Result<()> {
    for (inside, name) in [("work", "work"), ("tmp", "tmp"), ("var/tmp", "vartmp")] {
        let at = root.join(inside);
        folder(&at)?;
        if !(inside == "work" && plan.work_owner.is_some()) {
            bind(&plan.scratch.join(name), &at, PRIVATE)?;
        }
    }
    Ok(())
}
