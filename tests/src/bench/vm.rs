//! A VM in miniature: this process' own network namespace with one interface, a peer behind it, and an agent.

use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use guest_agent::{protocol::Request, wire::Channel};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::Value;

use crate::process;

/// The peer's address.
pub(super) const PEER: &str = "10.9.0.2";
/// Rest before each measured run, the same for every contender: what the run before left to the kernel is done by then.
const PAUSE: Duration = Duration::from_millis(15);

/// The host on the other end of the VM's cable.
pub(super) struct Peer(OwnedFd);

impl Peer {
    /// Cables the namespace that this process is in to a new one.
    pub(super) fn cable() -> Result<Self> {
        let namespace = thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let peer = Self(namespace.join().map_err(|_| anyhow!("the peer's thread died"))??);
        let at = format!("/proc/{}/fd/{}", std::process::id(), peer.0.as_raw_fd());
        ip("link set lo up")?;
        ip(&format!("link add eth0 type veth peer name eth0 netns {at}"))?;
        ip("address add 10.9.0.1/24 dev eth0")?;
        ip("link set eth0 up")?;
        peer.inside(|| {
            ip(&format!("address add {PEER}/24 dev eth0"))?;
            ip("link set eth0 up")
        })??;
        Ok(peer)
    }

    /// Runs something on the peer; sockets made there stay there.
    pub(super) fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let namespace = self.0.as_fd().try_clone_to_owned()?;
        let done = thread::spawn(move || setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| f())).join();
        Ok(done.map_err(|_| anyhow!("a thread on the peer died"))??)
    }
}

fn ip(arguments: &str) -> Result<()> {
    process::output(Command::new("ip").args(arguments.split(' '))).map(drop)
}

/// A running agent with its folders.
pub(super) struct Agent {
    program: PathBuf,
    folder: PathBuf,
    daemon: Child,
}

impl Agent {
    /// Starts one below `folder`, whose link is `folder/host.sock`. As in a VM: state in memory (`/run`), homes on the disk.
    pub(super) fn start(program: &Path, folder: &Path) -> Result<Self> {
        let run = folder.join("run");
        fs::create_dir_all(&run)?;
        mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .context("mount a state folder")?;
        // Enough blocks for 50 payloads; else everything as delivered.
        let config = format!(
            "link = \"unix:{0}/host.sock\"\nstate_dir = \"{0}/run\"\nscratch_dir = \"{0}/scratch\"\nports = \"10240-65535\"\n",
            folder.display()
        );
        let file = folder.join("agent.toml");
        fs::write(&file, config)?;
        let log = File::create(folder.join("agent.log"))?;
        // `debug` tells how long each step of a start took.
        let level = std::env::var("VESTIGO_LOG").unwrap_or_else(|_| "warn".to_owned());
        let mut daemon = Command::new(program);
        daemon.arg("daemon").arg("--config").arg(&file).env("VESTIGO_LOG", level);
        let daemon = daemon.stdin(Stdio::null()).stderr(log).spawn().context("cannot start the agent")?;
        let agent = Self { program: program.into(), folder: folder.into(), daemon };
        process::wait_for("the agent's link", Duration::from_secs(20), || {
            Ok(agent.status().ok().filter(|status| status.pointer("/link/connected") == Some(&Value::Bool(true))))
        })
        .with_context(|| format!("see {}", folder.join("agent.log").display()))?;
        Ok(agent)
    }

    /// The daemon.
    pub(super) fn pid(&self) -> u32 {
        self.daemon.id()
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("run/agent.sock")
    }

    /// `guest-agent exec` with all that a pilot says.
    pub(super) fn exec(&self, command: &[&str]) -> Command {
        let mut exec = Command::new(&self.program);
        exec.args(["exec", "--payload-id", "job-1", "--user-issuer", "https://iam.example", "--user-subject", "alice"]);
        exec.args(["--vo", "atlas", "--socket"]).arg(self.socket()).arg("--").args(command).stdin(Stdio::null());
        exec
    }

    fn status(&self) -> Result<Value> {
        let mut channel = Channel::new(std::os::unix::net::UnixStream::connect(self.socket())?);
        channel.send(&Request::Status, &[])?;
        Ok(channel.receive()?)
    }

    /// Waits until the agent has nothing left to do: nothing held, nothing being torn down, every prepared sandbox made
    /// again. Then the pause.
    pub(super) fn rest(&self) -> Result<()> {
        process::wait_for("the agent to be idle", Duration::from_secs(20), || Ok(idle(&self.status()?).then_some(())))?;
        thread::sleep(PAUSE);
        Ok(())
    }

    /// Ends it and what it runs.
    pub(super) fn stop(mut self) -> Result<()> {
        process::stop(&mut self.daemon, Duration::from_secs(15)).map(drop)
    }
}

fn idle(status: &Value) -> bool {
    let none_held = status.pointer("/leases/in_use").and_then(Value::as_u64) == Some(0);
    // An agent without a pool has no such member; one with a pool is idle when it is full.
    let pool = |name: &str| status.pointer(&format!("/pool/{name}")).and_then(Value::as_u64);
    none_held && pool("ready").unwrap_or(0) >= pool("wanted").unwrap_or(0)
}
