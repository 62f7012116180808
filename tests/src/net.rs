//! Bridges, and peers: hosts in their own network namespace, joined to one bridge, with no way out.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::site::Site;
use crate::{bins, process};

/// A bridge without an address. Two bridges may carry the same addresses: two tenants.
#[derive(Clone, Debug)]
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// The interface's name inside the site.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A host beside the VMs.
pub struct Peer<'a> {
    site: &'a Site,
    name: String,
    address: String,
}

/// What a peer saw of one connection or datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it was accepted, nanoseconds since 1970 (UTC).
    pub time_ns: u64,
    /// The remote address.
    pub address: String,
    /// The remote port: after any translation inside the VM.
    pub port: u16,
    /// The first line received.
    pub line: String,
}

/// A listener of a peer; ends when dropped.
pub struct PeerListener {
    child: Child,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Site {
    /// Makes a bridge (its name is an interface name: at most 15 characters).
    pub fn bridge(&self, name: &str) -> Result<Bridge> {
        ensure!(name.len() < 16, "{name} is too long for an interface");
        self.run("ip", &["link", "add", name, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"])?;
        self.run("ip", &["link", "set", name, "up"])?;
        Ok(Bridge { name: name.to_owned() })
    }

    /// Makes a peer on the bridge with an address such as `10.77.0.1/24`; more are added with [`Peer::add_address`].
    pub fn peer<'a>(&'a self, name: &str, bridge: &Bridge, address: &str) -> Result<Peer<'a>> {
        // The outer end is named after the peer, so that a capture of the bridge's ports can be read.
        let outer = format!("v-{name}");
        ensure!(outer.len() < 16, "{name} is too long: an interface name has 15 characters");
        self.run("ip", &["netns", "add", name])?;
        self.run("ip", &["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        self.run("ip", &["link", "set", &outer, "master", bridge.name(), "up"])?;
        self.run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        self.run("ip", &["-n", name, "link", "set", "eth0", "up"])?;
        let bare = address.split('/').next().unwrap_or(address).to_owned();
        let peer = Peer { site: self, name: name.to_owned(), address: bare };
        peer.add_address(address)?;
        Ok(peer)
    }
}

impl Peer<'_> {
    /// The peer's first address, without the prefix length.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Adds an address (IPv4 or IPv6, with prefix length).
    pub fn add_address(&self, address: &str) -> Result<()> {
        let family = if address.contains(':') { "-6" } else { "-4" };
        let mut arguments = vec!["-n", &self.name, family, "addr", "add", address, "dev", "eth0"];
        if family == "-6" {
            // No duplicate detection: the address must work at once.
            arguments.push("nodad");
        }
        self.site.run("ip", &arguments).map(drop)
    }

    /// A command that runs on the peer; see [`Site::command`].
    pub fn command(&self, program: impl AsRef<std::path::Path>) -> Result<Command> {
        self.site.command_in(&self.name, program.as_ref())
    }

    /// Listens on a TCP port of every address.
    pub fn listen_tcp(&self, port: u16) -> Result<PeerListener> {
        self.listen("tcp", &format!("[::]:{port}"))
    }

    /// Echoes datagrams on a UDP port of every address.
    pub fn listen_udp(&self, port: u16) -> Result<PeerListener> {
        self.listen("udp", &format!("[::]:{port}"))
    }

    /// Notes who pings it (its kernel answers): [`Seen::port`] is the identifier, [`Seen::line`] what the request held.
    pub fn listen_ping(&self) -> Result<PeerListener> {
        self.listen("ping", "-")
    }

    fn listen(&self, protocol: &str, place: &str) -> Result<PeerListener> {
        // `::` takes IPv4 too, whose addresses then show as mapped ones; see `parse`.
        let mut command = self.command(bins::path("testbed")?)?;
        command.args([protocol, place]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the peer's listener")?;
        let mut lines = BufReader::new(child.stdout.take().context("the listener has no output")?).lines();
        let first = lines.next().transpose()?;
        ensure!(first.as_deref() == Some("ready"), "the peer could not listen ({protocol} {place})");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let store = Arc::clone(&seen);
        std::thread::spawn(move || {
            for record in lines.map_while(Result::ok).filter_map(|line| parse(&line)) {
                store.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            }
        });
        Ok(PeerListener { child, seen })
    }
}

impl PeerListener {
    /// What has been seen so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until at least `count` have been seen and returns all.
    pub fn wait_for(&self, count: usize, limit: Duration) -> Result<Vec<Seen>> {
        process::wait_for(&format!("{count} connections at the peer"), limit, || {
            let seen = self.seen();
            Ok((seen.len() >= count).then_some(seen))
        })
    }
}

impl Drop for PeerListener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Option<Seen> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = value.get("address")?.as_str()?;
    Some(Seen {
        time_ns: value.get("time_ns")?.as_u64()?,
        address: address.strip_prefix("::ffff:").unwrap_or(address).to_owned(),
        port: value.get("port")?.as_u64()?.try_into().ok()?,
        line: value.get("line")?.as_str()?.to_owned(),
    })
}
