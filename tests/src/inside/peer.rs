//! A peer's listener: writes what it saw as JSON lines, `ready` first.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
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
