//! A private world: own mount, network, process, IPC and host-name namespaces, a folder, and a libvirtd in it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::inside::init::{NO_KVM, PRIVATE, PRIVATE_FILES};
use crate::{bins, guest, paths, process};

/// libvirtd's own settings: local socket, no passwords; its log is kept in the site's folder.
const LIBVIRTD_CONF: &str = r#"auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"#;

/// QEMU under its own account, as on a real hypervisor: what it must reach belongs to it or is open to it, and what it must
/// not write is not. No confinement beyond that: the site's namespaces are the confinement, and this machine's cgroups belong to
/// others. `stdio_handler`: guests' output goes to files, which saves a virtlogd.
const QEMU_CONF: &str = r#"user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 1
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"#;

const LIBVIRT_PATIENCE: Duration = Duration::from_secs(60);

/// A site; everything in it ends when it is dropped or when the process that made it ends, even by SIGKILL.
pub struct Site {
    name: String,
    /// Its end of the pipe closes with this process; the first process inside ends then.
    lifeline: Option<ChildStdin>,
    world: Child,
    init: u32,
    libvirtd: Mutex<Option<Child>>,
    dir: TempDir,
    /// Held while the site lives, so that another test does not take its folder for a leftover.
    _lock: File,
}

impl Site {
    /// Makes the namespaces and starts libvirtd in them; returns when libvirt answers.
    pub fn start(name: &str) -> Result<Site> {
        let site = Site::start_without_libvirt(name)?;
        site.start_libvirtd()?;
        Ok(site)
    }

    /// Makes the namespaces only, for tests of networks and stores.
    pub fn start_without_libvirt(name: &str) -> Result<Site> {
        let (dir, lock) = make_dir(name)?;
        lay_out(name, dir.path())?;
        let mut world = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"])
            .args(["--mount-proc", "--propagation", "private", "--"])
            .arg(bins::path("testbed")?)
            .args(["init", name])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let lifeline = world.stdin.take();
        let mut said = String::new();
        BufReader::new(world.stdout.take().context("unshare has no output")?).read_line(&mut said)?;
        let init = process::first_child(world.id()).filter(|_| said == "ready\n");
        let Some(init) = init else {
            let status = world.wait()?;
            bail!("cannot make the namespaces of site {name} ({status}); is this root?");
        };
        Ok(Site { name: name.to_owned(), lifeline, world, init, libvirtd: Mutex::new(None), dir, _lock: lock })
    }

    /// The name given at the start, which is also the host name inside.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The site's folder on the real disk, the same path inside and outside. Removed with the site
    /// (set `VESTIGO_KEEP_SITES` to look at it afterwards).
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The folder that is `/etc/libvirt` inside, for hooks and settings.
    pub fn etc_libvirt(&self) -> PathBuf {
        self.dir().join("etc-libvirt")
    }

    /// The process id, seen from outside, of the site's first process.
    pub fn init_pid(&self) -> u32 {
        self.init
    }

    /// The path outside of a file that a program inside sees at `path` (differs for the folders that the site replaces, such
    /// as `/run`).
    pub fn outside(&self, path: &Path) -> PathBuf {
        let own = PRIVATE.iter().find_map(|(seen, own)| Some(self.dir().join(own).join(path.strip_prefix(seen).ok()?)));
        own.unwrap_or_else(|| path.to_owned())
    }

    /// Connects from outside to a Unix socket that a program inside made at `path`. Sockets belong in `/run`: paths below
    /// [`Site::dir`] may be longer than a socket address holds.
    pub fn connect(&self, path: &Path) -> Result<UnixStream> {
        let outside = self.outside(path);
        let (dir, name) = (outside.parent().context("no folder")?, outside.file_name().context("no name")?);
        // Through the open folder the address is short, however long the path is.
        let dir = File::open(dir)?;
        let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        UnixStream::connect(short).with_context(|| format!("cannot connect to {}", outside.display()))
    }

    /// A command that runs inside the site and dies with it. The child stands for the program: signals are handed on, a kill
    /// kills it, its status is the program's; its own process id is [`process::inner_pid`].
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        self.command_in("-", program.as_ref())
    }

    /// The same in a named network namespace of the site.
    pub(crate) fn command_in(&self, netns: &str, program: &Path) -> Result<Command> {
        let mut command = Command::new(bins::path("testbed")?);
        command.arg("exec").arg(self.init.to_string()).arg(netns).arg(program);
        Ok(command)
    }

    /// Runs a program inside to its end and returns its output; failing is an error that carries what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        process::output(self.command(program)?.args(arguments).stdin(Stdio::null()))
    }

    /// Runs virsh against the site's libvirtd.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["-q", "-c", "qemu:///system"];
        all.extend(arguments);
        self.run("virsh", &all)
    }

    /// Starts libvirtd and waits until it answers.
    pub fn start_libvirtd(&self) -> Result<()> {
        let log = File::create(self.dir().join("libvirtd.out"))?;
        let mut child = self
            .command("libvirtd")?
            .args(["--config", "/etc/libvirt/libvirtd.conf"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start libvirtd")?;
        process::wait_for("libvirtd to answer", LIBVIRT_PATIENCE, || {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(self.dir().join("libvirtd.out")).unwrap_or_default();
                bail!("libvirtd ended ({status}): {said}");
            }
            // Asking before the socket is there only costs virsh's own retries.
            let up = self.dir().join("run/libvirt/libvirt-sock").exists();
            Ok((up && self.virsh(&["list"]).is_ok()).then_some(()))
        })?;
        *self.libvirtd.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Ends libvirtd (its guests run on).
    pub fn stop_libvirtd(&self) -> Result<()> {
        let taken = self.libvirtd.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = taken {
            process::stop(&mut child, Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Restarts libvirtd under its running guests.
    pub fn restart_libvirtd(&self) -> Result<()> {
        self.stop_libvirtd()?;
        self.start_libvirtd()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let start = Instant::now();
        while matches!(self.world.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(10) {
                let _ = self.world.kill();
                let _ = self.world.wait();
                break;
            }
            sleep(Duration::from_millis(5));
        }
        if std::env::var_os("VESTIGO_KEEP_SITES").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept {}", self.dir.path().display());
        }
    }
}

/// A fresh locked folder; sweeps those of tests that were killed.
fn make_dir(name: &str) -> Result<(TempDir, File)> {
    let root = paths::target("tmp")?;
    let gate = File::create(root.join(".gate"))?;
    // Between making a folder and locking it, it looks like a leftover.
    gate.lock()?;
    sweep(&root);
    let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&root)?;
    // QEMU's account must get through to the disks.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let lock = File::create(dir.path().join(".lock"))?;
    lock.lock()?;
    Ok((dir, lock))
}

fn sweep(root: &Path) {
    let keep = std::env::var_os("VESTIGO_KEEP_SITES").is_some();
    for entry in fs::read_dir(root).into_iter().flatten().flatten().filter(|_| !keep) {
        let Ok(lock) = File::open(entry.path().join(".lock")) else { continue };
        if lock.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The folders that the first process binds over the machine's own, with libvirt's settings.
fn lay_out(name: &str, dir: &Path) -> Result<()> {
    for (_, own) in PRIVATE {
        fs::create_dir_all(dir.join(own))?;
    }
    for (path, own) in PRIVATE_FILES {
        let text = if *path == "/etc/hosts" { hosts(name) } else { with_qemu_account(path)? };
        fs::write(dir.join(own), text)?;
    }
    if guest::kvm_is_broken() {
        fs::write(dir.join(NO_KVM), "")?;
        fs::set_permissions(dir.join(NO_KVM), fs::Permissions::from_mode(0o000))?;
    }
    fs::create_dir_all(dir.join("run/lock"))?;
    fs::create_dir_all(dir.join("etc-libvirt/hooks"))?;
    fs::write(dir.join("etc-libvirt/libvirtd.conf"), LIBVIRTD_CONF)?;
    fs::write(dir.join("etc-libvirt/qemu.conf"), QEMU_CONF)?;
    Ok(())
}

/// libvirt asks for the full name of its host; no name server can be reached from a site.
fn hosts(name: &str) -> String {
    format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n")
}

/// The machine's list of accounts with the one that libvirt's QEMU driver insists on, although it will not be used. It is
/// made by a package (libvirt-daemon-system) whose services nobody wants on a developer's machine.
fn with_qemu_account(path: &str) -> Result<String> {
    let mut text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    if !text.lines().any(|line| line.starts_with("libvirt-qemu:")) {
        let rest = if path.ends_with("group") { "" } else { "64055::/var/lib/libvirt:/usr/sbin/nologin" };
        text.push_str(&format!("libvirt-qemu:x:64055:{rest}\n"));
    }
    Ok(text)
}
