//! A peer's listener: writes what it saw as JSON lines, `ready` first.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, socket};
use serde_json::json;

/// What the peer answers to the first line or datagram.
pub const ANSWER: &str = "vestigo-peer\n";

/// Accepts connections for ever: notes the first line, answers, reads until the client closes.
pub fn tcp(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    say_ready()?;
    for stream in listener.incoming() {
        let stream = stream?;
        let (time, remote) = (now(), stream.peer_addr()?);
        std::thread::spawn(move || serve(stream, time, remote));
    }
    Ok(())
}

/// Echoes datagrams for ever and notes their sender and first line.
pub fn udp(address: &str) -> Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    say_ready()?;
    let mut buffer = vec![0; 65536];
    loop {
        let (length, remote) = socket.recv_from(&mut buffer)?;
        let data = buffer.get(..length).unwrap_or_default();
        let line = String::from_utf8_lossy(data).lines().next().unwrap_or_default().to_owned();
        note(now(), remote, &line)?;
        // A sender that is gone already answers with an ICMP error; the next one must still be heard.
        let _ = socket.send_to(data, remote);
    }
}

/// Notes who pings, for ever: its identifier in place of the port, and the first line of what it sent. The kernel answers.
pub fn ping() -> Result<()> {
    let raw = |family, protocol| {
        socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).context("cannot open a raw socket")
    };
    let v4 = raw(AddressFamily::Inet, SockProtocol::Icmp)?;
    let v6 = raw(AddressFamily::Inet6, SockProtocol::IcmpV6)?;
    say_ready()?;
    std::thread::spawn(move || pings(&v4, 8, true));
    pings(&v6, 128, false)
}

/// `kind` is the echo request's type; only IPv4's raw sockets show the IP header.
fn pings(from: &OwnedFd, kind: u8, with_header: bool) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let (length, remote) = recvfrom::<SockaddrStorage>(from.as_raw_fd(), &mut buffer)?;
        let packet = buffer.get(..length).unwrap_or_default();
        let words = packet.first().map_or(0, |first| usize::from(first & 0x0f));
        let message = packet.get(if with_header { words * 4 } else { 0 }..).unwrap_or_default();
        let [found, _, _, _, high, low, _, _, text @ ..] = message else { continue };
        let Some(remote) = remote.as_ref().and_then(address_of).filter(|_| *found == kind) else { continue };
        let line = String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_owned();
        note(now(), SocketAddr::new(remote, u16::from_be_bytes([*high, *low])), &line)?;
    }
}

fn address_of(remote: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = remote.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| remote.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn serve(stream: TcpStream, time: u128, remote: SocketAddr) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    // Bounded: the peer of a test can be a flood. A client that resets has been seen all the same.
    let _ = reader.by_ref().take(4096).read_until(b'\n', &mut line);
    note(time, remote, String::from_utf8_lossy(&line).trim_end())?;
    let _ = (&stream).write_all(ANSWER.as_bytes());
    std::io::copy(&mut reader, &mut std::io::sink())?;
    Ok(())
}

fn note(time: u128, remote: SocketAddr, line: &str) -> Result<()> {
    let address = remote.ip().to_string();
    let record = json!({ "time_ns": u64::try_from(time)?, "address": address, "port": remote.port(), "line": line });
    // One write a record, so that records of two connections do not mix.
    std::io::stdout().lock().write_all(format!("{record}\n").as_bytes())?;
    Ok(())
}

fn say_ready() -> Result<()> {
    println!("ready");
    std::io::stdout().flush()?;
    Ok(())
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}
