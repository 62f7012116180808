//! A VM in miniature: a network namespace with one interface, a peer in another, and a stand-in for hostd behind a Unix
//! socket. Everything ends with the test's thread: children have a parent-death signal, namespaces have no names.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    os::unix::{
        fs::chown,
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use guest_agent::network::netlink::{Change, End, Netlink};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use vestigo_model::{
    Clock, Digest, Label, PayloadClaim, PortBlock, SystemClock,
    link::{Claim, GuestFrame, HostFrame, LineReader, PROTOCOL, Record, decode, encode},
};

pub const VM: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub const VM6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 2);

/// A namespace on the other end of the VM's cable.
pub struct Peer(OwnedFd);

impl Peer {
    /// Runs something inside; sockets made there stay there.
    pub fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        inside(self.0.as_fd().try_clone_to_owned().unwrap(), f)
    }
}

/// Runs something in a network namespace.
pub fn inside<T: Send + 'static>(namespace: OwnedFd, f: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        f()
    })
    .join()
    .unwrap()
}

/// Puts the calling thread into its own network and mount namespaces, cabled to a peer.
pub fn network() -> Peer {
    assert!(nix::unistd::geteuid().is_root(), "these tests make namespaces: run them as root");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let peer: OwnedFd = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap();
    let mut here = Netlink::open().unwrap();
    let end = End { name: "eth0", mac: [0; 6] };
    here.veth(end, end, peer.as_fd(), 1500).unwrap();
    raise(&mut here, VM);
    let peer = Peer(peer);
    peer.inside(|| raise(&mut Netlink::open().unwrap(), PEER));
    wait_for("the cable", || here.link("eth0").unwrap().running);
    peer.inside(|| wait_for("the cable", || Netlink::open().unwrap().link("eth0").unwrap().running));
    peer
}

fn raise(netlink: &mut Netlink, address: Ipv4Addr) {
    let index = netlink.link("eth0").unwrap().index;
    netlink.apply(vec![Change::up(1), Change::address(index, address.into(), 24), Change::up(index)]).unwrap();
}

/// Gives both ends of the cable an address of one /64.
pub fn dual(peer: &Peer) {
    give6(VM6);
    peer.inside(|| give6(PEER6));
}

/// Gives the interface of the calling thread's namespace an address of a /64.
pub fn give6(address: Ipv6Addr) {
    let mut netlink = Netlink::open().unwrap();
    let index = netlink.link("eth0").unwrap().index;
    // Neighbours are asked from a link-local address; the kernel's own takes a second to be sure that it is its own.
    let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa, address.segments()[7]);
    netlink.apply([address, local].map(|address| Change::address(index, address.into(), 64)).into()).unwrap();
    // The kernel calls it tentative for a moment even so.
    let text = || fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    wait_for("the address", || guest_agent::network::ipv6::on_interface(&text(), "eth0").contains(&address));
}

/// What the stand-in holds.
#[derive(Default)]
pub struct Book {
    pub records: Vec<Record>,
    pub head: Option<Digest>,
    pub heartbeat_debt: u32,
    pub hellos: usize,
}

/// A stand-in for hostd: durable in memory.
pub struct Host {
    pub book: Arc<Mutex<Book>>,
    pub path: PathBuf,
    /// Takes records and says nothing.
    pub mute: Arc<AtomicBool>,
    /// Refuses every start, for this reason.
    pub refuse: Arc<Mutex<Option<&'static str>>>,
    /// Has taken the records and keeps its answers until this is over.
    pub hold: Arc<AtomicBool>,
    /// Once: hangs up instead of answering a start.
    pub sever: Arc<AtomicBool>,
    open: Arc<Mutex<Option<UnixStream>>>,
}

impl Host {
    pub fn start(path: &Path) -> Self {
        let host = Self {
            book: Arc::default(),
            path: path.into(),
            mute: Arc::default(),
            refuse: Arc::default(),
            hold: Arc::default(),
            sever: Arc::default(),
            open: Arc::default(),
        };
        let listener = UnixListener::bind(path).unwrap();
        let (book, mute, open, refuse) =
            (Arc::clone(&host.book), Arc::clone(&host.mute), Arc::clone(&host.open), Arc::clone(&host.refuse));
        let (hold, sever) = (Arc::clone(&host.hold), Arc::clone(&host.sever));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                *open.lock().unwrap() = Some(stream.try_clone().unwrap());
                converse(stream, &book, [&mute, &hold, &sever], &refuse);
            }
        });
        host
    }

    /// As when hostd dies; it takes the next connection.
    pub fn hang_up(&self) {
        if let Some(stream) = self.open.lock().unwrap().take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Of users' payloads.
    pub fn starts(&self) -> Vec<PayloadClaim> {
        self.claims().into_iter().filter(|claim| claim.holder.is_payload()).collect()
    }

    /// Of the VM's own leases too.
    pub fn claims(&self) -> Vec<PayloadClaim> {
        let claims = |r: &Record| match &r.claim {
            Claim::PayloadStart(start) => Some(start.clone()),
            _ => None,
        };
        self.book.lock().unwrap().records.iter().filter_map(claims).collect()
    }

    /// Everything else that was said.
    pub fn said(&self) -> Vec<Claim> {
        let other = |claim: &Claim| !matches!(claim, Claim::PayloadStart(_) | Claim::PayloadEnd { .. });
        self.book.lock().unwrap().records.iter().map(|r| r.claim.clone()).filter(other).collect()
    }

    /// Tells the agent who is banned.
    pub fn ban(&self, bans: Vec<vestigo_model::Ban>) {
        self.say(&encode(&HostFrame::Bans { bans, more: false }).unwrap());
    }

    /// Bytes of its own on the channel.
    pub fn say(&self, bytes: &[u8]) {
        self.open.lock().unwrap().as_ref().unwrap().write_all(bytes).unwrap();
    }

    /// What became of bans.
    pub fn applied(&self) -> Vec<vestigo_model::BanApplied> {
        let applied = |claim| if let Claim::BanApplied(applied) = claim { Some(applied) } else { None };
        self.said().into_iter().filter_map(applied).collect()
    }

    /// The starts that the agent refused.
    pub fn refused(&self) -> Vec<vestigo_model::link::PayloadRefused> {
        let refused = |claim| if let Claim::PayloadRefused(refused) = claim { Some(refused) } else { None };
        self.said().into_iter().filter_map(refused).collect()
    }

    pub fn ends(&self) -> Vec<vestigo_model::Exit> {
        let own: Vec<_> = self.claims().into_iter().filter(|c| !c.holder.is_payload()).map(|c| c.uid).collect();
        let exits = |r: &Record| match r.claim {
            Claim::PayloadEnd { uid, exit, .. } if !own.contains(&uid) => Some(exit),
            _ => None,
        };
        self.book.lock().unwrap().records.iter().filter_map(exits).collect()
    }
}

fn converse(
    mut stream: UnixStream,
    book: &Mutex<Book>,
    [mute, hold, sever]: [&AtomicBool; 3],
    refuse: &Mutex<Option<&'static str>>,
) {
    let mut reader = LineReader::new();
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 {
            return;
        }
        for line in reader.push(&buffer[..count]) {
            let line = line.unwrap();
            let answers = answer(&line, &mut book.lock().unwrap(), *refuse.lock().unwrap());
            while hold.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if is_start(&line) && sever.swap(false, Ordering::SeqCst) {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
            for answer in answers.iter().filter(|_| !mute.load(Ordering::SeqCst)) {
                let _ = stream.write_all(&encode(answer).unwrap());
            }
        }
    }
}

fn is_start(line: &[u8]) -> bool {
    matches!(decode(line), Ok(GuestFrame::Record(Record { claim: Claim::PayloadStart(_), .. })))
}

fn answer(line: &[u8], book: &mut Book, refuse: Option<&'static str>) -> Vec<HostFrame> {
    match decode(line).unwrap() {
        GuestFrame::Hello(_) => {
            book.hellos += 1;
            let (acked, head) = (book.records.len() as u64, book.head.unwrap_or(Digest::ZERO));
            vec![HostFrame::Welcome { protocol: PROTOCOL, acked, head, time: SystemClock.now() }]
        }
        GuestFrame::Record(record) => {
            let seq = record.seq;
            if seq == book.records.len() as u64 + 1 {
                assert_eq!(record.prev, book.head.unwrap_or(Digest::ZERO));
                book.head = Some(Digest::of(line));
                book.records.push(record.clone());
            } else {
                assert!(seq <= book.records.len() as u64, "gap");
            }
            let ack = HostFrame::Ack { seq: book.records.len() as u64 };
            match (refuse, record.claim) {
                // As hostd: the refusal, and then that its place in the chain is taken.
                (Some(reason), Claim::PayloadStart(_)) => {
                    vec![HostFrame::Refuse { seq, reason: Label::new(reason).unwrap() }, ack]
                }
                _ => vec![ack],
            }
        }
        GuestFrame::Heartbeat(beat) => {
            book.heartbeat_debt = beat.debt;
            Vec::new()
        }
        GuestFrame::Unknown => Vec::new(),
    }
}

/// A VM with an agent.
pub struct World {
    pub folder: tempfile::TempDir,
    pub daemon: Child,
    pub peer: Peer,
}

impl World {
    /// `config` is added to the test's own keys.
    pub fn start(config: &str) -> Self {
        Self::start_after(config, || ())
    }

    /// The same with something done in the VM's mount namespace before the agent starts.
    pub fn start_after(config: &str, before: impl FnOnce()) -> Self {
        let peer = network();
        before();
        let folder = tempfile::tempdir().unwrap();
        // The pilot is an ordinary user.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "link = \"unix:{}\"\nstate_dir = \"{}\"\nscratch_dir = \"{}\"\ncgroup = \"{}\"\n{config}\n",
            at("host.sock"),
            at("run"),
            at("scratch"),
            // As many agents at once as there are tests.
            folder.path().file_name().unwrap().to_string_lossy().replace('.', "vestigo-test-")
        );
        fs::write(folder.path().join("agent.toml"), text).unwrap();
        let daemon = spawn_daemon(folder.path());
        Self { folder, daemon, peer }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn host(&self) -> Host {
        Host::start(&self.path("host.sock"))
    }

    /// A payload of this user, about to be started.
    pub fn exec(&self, user: &str, command: &[&str]) -> Command {
        self.exec_with(user, &[], command)
    }

    pub fn exec_with(&self, user: &str, options: &[&str], command: &[&str]) -> Command {
        let mut exec = agent();
        exec.arg("exec").args(["--payload-id", "job-1", "--user-issuer", "https://iam.example", "--vo", "atlas"]);
        exec.args(["--user-subject", user, "--socket"]).arg(self.path("run/agent.sock"));
        exec.args(options).arg("--").args(command);
        exec
    }

    /// Runs a payload of alice's for a caller of this uid: its exit code and all that was said.
    pub fn run(&self, uid: u32, options: &[&str], command: &[&str]) -> (Option<i32>, String) {
        let output = self.exec_with("alice", options, command).uid(uid).gid(uid).output().unwrap();
        (output.status.code(), text(&output))
    }

    /// The same with the lines of the status document.
    pub fn documented(&self, uid: u32, options: &[&str], command: &[&str]) -> (Output, Vec<serde_json::Value>) {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        chown(file.path(), Some(uid), Some(uid)).unwrap();
        let options = [&["--json-status-fd", "7"], options].concat();
        let exec = self.exec_with("alice", &options, command);
        let mut shell = Command::new("sh");
        let script = format!("exec 7>>{}; exec \"$@\"", file.path().display());
        shell.args(["-c", &script, "sh"]).arg(exec.get_program()).args(exec.get_args());
        let output = shell.uid(uid).gid(uid).output().unwrap();
        let lines = fs::read_to_string(file.path()).unwrap();
        (output, lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    /// A folder of this uid's.
    pub fn folder_of(&self, uid: u32, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        give(&path, uid, mode);
        path
    }

    pub fn status(&self) -> guest_agent::status::Status {
        let output = agent().args(["status", "--json", "--socket"]).arg(self.path("run/agent.sock")).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
    }

    pub fn restart(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        self.daemon = spawn_daemon(self.folder.path());
    }

    pub fn wait_connected(&self) {
        wait_for("the link", || self.status().link.connected);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.daemon.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.daemon.wait();
    }
}

fn spawn_daemon(folder: &Path) -> Child {
    let _ = fs::remove_file(folder.join("run/agent.sock"));
    let mut daemon = agent();
    daemon.arg("daemon").arg("--config").arg(folder.join("agent.toml"));
    let child = daemon.stdin(Stdio::null()).spawn().unwrap();
    wait_for("the agent", || UnixStream::connect(folder.join("run/agent.sock")).is_ok());
    child
}

/// A file of this uid's.
pub fn file_of(uid: u32, path: &Path, mode: u32, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    give(path, uid, mode);
}

fn give(path: &Path, uid: u32, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    chown(path, Some(uid), Some(uid)).unwrap();
}

/// How many processes on the machine have this argument list.
pub fn processes(command: &[&str]) -> usize {
    let wanted: Vec<u8> = command.iter().flat_map(|part| part.bytes().chain([0])).collect();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter(|e| fs::read(e.path().join("cmdline")).is_ok_and(|line| line == wanted)).count()
}

/// The built program, dying with the test's thread.
pub fn agent() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_guest-agent")]);
    command
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn ports(claim: &PayloadClaim) -> PortBlock {
    match claim.leases[0] {
        vestigo_model::Lease::Ports(block) => block,
        vestigo_model::Lease::Address(_) => panic!("no ports"),
    }
}
