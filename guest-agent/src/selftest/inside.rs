//! What runs in a payload: the agent itself, told by a line of JSON on standard input what to do.
//!
//! Every probe runs in a process of its own, because what succeeds changes the process, and with a deadline.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr as UnixAddr, UnixListener},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use nix::{
    libc,
    mqueue::{MQ_OFlag, MqAttr, MqdT, mq_open},
    sys::{signal::SigSet, stat::Mode},
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

use super::{
    Finding, Orders, Outcome, VERB, held,
    probes::{self, Probe},
};
use crate::sys::probe::Segment;

/// Longest time that one probe may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this a process that was left behind ends by itself.
const LINGER: Duration = Duration::from_secs(90);
/// Longest line of orders.
const MAX_ORDERS: u64 = 256 * 1024;
/// Longest answer of a probe.
const MAX_ANSWER: u64 = 64 * 1024;

/// What to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Run the probes that the orders name, each in a process of its own, and leave things behind.
    Run,
    /// Run one probe, in this process.
    One,
    /// Be another payload, with baits, until standard input ends.
    Victim,
    /// Do nothing, for a while, and be hard to end.
    Linger,
}

/// Baits that could be laid. One that could not proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Laid {
    /// Files.
    pub files: Vec<PathBuf>,
    /// A shared memory segment.
    pub segment: bool,
    /// A message queue.
    pub queue: bool,
    /// An abstract socket.
    pub socket: bool,
}

impl Laid {
    /// Tells a prober where they are.
    pub fn add_to(&self, orders: &mut Orders, whose: &str) {
        let token = orders.token.clone();
        orders.files.extend(self.files.iter().cloned());
        orders.keys.extend(self.segment.then(|| key(&token, whose)));
        orders.queues.extend(self.queue.then(|| queue(&token, whose)));
        orders.names.extend(self.socket.then(|| mark(&token, whose)));
    }
}

/// The victim's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// A port that it listens on.
    pub port: Option<u16>,
    /// What else it has.
    pub laid: Laid,
}

/// The victim's last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// Connections that somebody made to it.
    pub touched: usize,
}

/// The attacker's last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Probes that were run.
    pub done: usize,
    /// What it leaves behind.
    pub left: Laid,
}

/// Runs a role. The result is the process's exit code.
#[must_use]
pub fn run(role: Role, name: Option<&str>) -> u8 {
    let result = match role {
        Role::Run => everything(),
        Role::One => one(name.unwrap_or_default()),
        Role::Victim => victim(),
        Role::Linger => linger(),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("guest-agent: {VERB}: {error}");
            1
        }
    }
}

/// The orders: the first line of standard input.
fn orders() -> io::Result<Orders> {
    let mut line = String::new();
    BufReader::with_capacity(1, io::stdin().take(MAX_ORDERS)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn say(line: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

fn until_end_of_input() {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}

fn one(name: &str) -> io::Result<()> {
    let probe = probes::named(name).ok_or_else(|| io::Error::other(format!("there is no probe {name:?}")))?;
    say(&probe.run(&orders()?))
}

fn everything() -> io::Result<()> {
    let orders = orders()?;
    let mut done = 0;
    for probe in orders.probes.iter().filter_map(|name| probes::named(name)) {
        say(&apart(probe, &orders))?;
        done += 1;
    }
    let (left, talk) = leave(&orders.token, "residue");
    say(&Done { done, left })?;
    // What was left behind has to be alive until this payload ends.
    until_end_of_input();
    // The queue and the segment are meant to stay.
    std::mem::forget(talk);
    Ok(())
}

/// One probe in a process of its own.
fn apart(probe: &Probe, orders: &Orders) -> Finding {
    match ask(probe, orders) {
        Ok(finding) => finding,
        // Nobody knows how far it came: for a test of security that is no success.
        Err(error) => probe.silent(Outcome::Broken, format!("the probe did not answer: {error}")),
    }
}

fn ask(probe: &Probe, orders: &Orders) -> io::Result<Finding> {
    let mut command = Command::new("/proc/self/exe");
    command.args([VERB, "one", probe.name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        let mut line = serde_json::to_vec(orders)?;
        line.push(b'\n');
        // One that does not read ends without an answer.
        let _ = input.write_all(&line);
    }
    let status = wait(&mut child)?;
    // A short line: it fits into the pipe, so that nobody waited for its reader. What the probe left behind does not hold it.
    let mut answer = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output.take(MAX_ANSWER)).read_line(&mut answer)?;
    }
    match serde_json::from_str(&answer) {
        Ok(finding) => Ok(finding),
        // For this one the kernel's answer is the end of the process.
        Err(_) if probe.name == "memory-bomb" && status.signal() == Some(libc::SIGKILL) => {
            Ok(probe.finding(held("the kernel ended it at the limit")))
        }
        Err(_) => Err(io::Error::other(status.to_string())),
    }
}

fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= until {
            let _ = child.kill();
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn linger() -> io::Result<()> {
    // Away from its terminal, session and group, and deaf to all that can be ignored.
    let _ = setsid();
    SigSet::all().thread_block()?;
    std::thread::sleep(LINGER);
    Ok(())
}

/// A name for what one of the three has.
#[must_use]
pub fn mark(token: &str, whose: &str) -> String {
    format!("{token}-{whose}")
}

/// A key for a shared memory segment (FNV-1a, never 0).
#[must_use]
pub fn key(token: &str, whose: &str) -> i32 {
    let text = mark(token, whose);
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    i32::try_from((hash >> 1) | 1).unwrap_or(1)
}

/// A message queue's name.
#[must_use]
pub fn queue(token: &str, whose: &str) -> String {
    format!("/{}", mark(token, whose))
}

/// Makes a message queue that everybody may use.
///
/// # Errors
/// As mq_open(3).
pub fn make_queue(name: &str) -> nix::Result<MqdT> {
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDWR;
    // With attributes: without them, nix passes no mode either.
    mq_open(name, flags, Mode::from_bits_truncate(0o666), Some(&MqAttr::new(0, 1, 64, 0)))
}

/// Shared memory, a queue and an abstract socket that others could find. Segment and queue stay until their IPC namespace ends.
pub(crate) struct Talk {
    pub segment: Option<Segment>,
    pub queue: Option<MqdT>,
    pub socket: Option<UnixListener>,
}

impl Talk {
    pub(crate) fn open(token: &str, whose: &str) -> Self {
        let address = UnixAddr::from_abstract_name(mark(token, whose).as_bytes());
        Self {
            segment: Segment::make(key(token, whose)).ok(),
            queue: make_queue(&queue(token, whose)).ok(),
            socket: address.and_then(|address| UnixListener::bind_addr(&address)).ok(),
        }
    }

    pub(crate) fn laid(&self, files: Vec<PathBuf>) -> Laid {
        Laid { files, segment: self.segment.is_some(), queue: self.queue.is_some(), socket: self.socket.is_some() }
    }
}

/// Puts things where others could find them.
fn leave(token: &str, whose: &str) -> (Laid, Talk) {
    let paths = probes::LEFT.into_iter().map(|folder| Path::new(folder).join(mark(token, whose)));
    let files = paths.filter(|path| std::fs::write(path, "a secret").is_ok()).collect();
    let talk = Talk::open(token, whose);
    (talk.laid(files), talk)
}

fn victim() -> io::Result<()> {
    let orders = orders()?;
    let token = &orders.token;
    let (laid, talk) = leave(token, "victim");
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).ok();
    let mut child = Command::new("/proc/self/exe");
    child.args([VERB, "linger", &mark(token, "victim")]).env("SECRET", mark(token, "victim"));
    let mut child = child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let port = listener.as_ref().and_then(|listener| Some(listener.local_addr().ok()?.port()));
    say(&Ready { address: address(), port, laid })?;
    until_end_of_input();
    let _ = child.kill();
    let _ = child.wait();
    drop(talk);
    let touched = listener.map_or(0, |listener| count(&listener));
    say(&Farewell { touched })
}

/// The address that packets to elsewhere come from; none is sent.
fn address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    }
}

/// Connections that wait.
fn count(listener: &TcpListener) -> usize {
    let _ = listener.set_nonblocking(true);
    std::iter::from_fn(|| listener.accept().ok()).take(1000).count()
}
