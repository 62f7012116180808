//! The same flows as a collector with nfdump would have them: one exporter for the whole site, a file for every five minutes,
//! in nfdump's own format (layout 2), LZ4 by nfdump itself.
//!
//! A record has what nfdump needs for the same questions: times, both addresses and ports, counters of both directions. There
//! is no extension for VM, VO or payload, and the translated address is left out, too: less to read for nfdump.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use vestigo_model::{Flow, Timestamp};

use super::{Site, day::day, shape::SECOND};

/// Seconds of one file: nfcapd's default.
const ROTATION: i64 = 300 * SECOND;
/// Bytes in a block, at most; nfcapd writes blocks of 1 MiB.
const BLOCK: usize = 1_000_000;

const MAGIC: u16 = 0xa50c;
const LAYOUT: u16 = 2;
const VERSION: u32 = 0x0107_0100;
const BY_NFCAPD: u32 = 1;
const DATA_BLOCK: u16 = 3;
const RECORD: u16 = 11;
const IPFIX: u8 = 10;

/// Writes the site's flows below the folder, in `YYYY/MM/DD/nfcapd.YYYYMMDDhhmm`.
///
/// # Errors
/// The disk's, or nfdump's when it compresses.
pub fn write(site: &Site, root: &Path, threads: usize, progress: impl Fn(u32) + Sync) -> Result<u64> {
    let (next, done, failed) = (AtomicU32::new(0), AtomicU32::new(0), Mutex::new(None));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= site.shape.days {
                return;
            }
            if let Err(error) = one_day(site, number, root) {
                next.store(site.shape.days, Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    thread::scope(|scope| (0..threads.max(1)).for_each(|_| _ = scope.spawn(work)));
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => super::write::size(root),
    }
}

/// The folder of a day.
#[must_use]
pub fn folder(root: &Path, time: Timestamp) -> PathBuf {
    root.join(time.date().replace('-', "/"))
}

/// The file that holds what was over at this time.
#[must_use]
pub fn file(root: &Path, time: Timestamp) -> PathBuf {
    let begins = Timestamp::from_nanos(time.as_nanos().div_euclid(ROTATION) * ROTATION);
    let digits: String = begins.to_string().chars().filter(char::is_ascii_digit).take(12).collect();
    folder(root, time).join(format!("nfcapd.{digits}"))
}

fn one_day(site: &Site, number: u32, root: &Path) -> Result<()> {
    let mut flows: Vec<Flow> = Vec::new();
    for host in 0..site.shape.hosts {
        flows.append(&mut day(site, host, number)?.flows);
    }
    flows.sort_by_key(|flow| flow.last);
    let midnight = Timestamp::from_nanos(site.shape.midnight(number));
    let folder = folder(root, midnight);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for of_file in flows.chunk_by(|a, b| file(root, a.last) == file(root, b.last)) {
        let Some(first) = of_file.first() else { continue };
        fs::write(file(root, first.last), file_of(of_file)?)?;
    }
    compress(&folder)
}

/// nfdump compresses all files of the folder in place.
fn compress(folder: &Path) -> Result<()> {
    let mut command = Command::new("nfdump");
    command.args(["-J", "3", "-R"]).arg(folder).stdin(Stdio::null());
    let output = command.output().context("cannot start nfdump; install Debian's nfdump")?;
    ensure!(output.status.success(), "nfdump -J failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn file_of(flows: &[Flow]) -> Result<Vec<u8>> {
    let (mut blocks, mut count): (Vec<u8>, u32) = (Vec::new(), 0);
    let mut block: (u32, Vec<u8>) = (0, Vec::with_capacity(BLOCK));
    for flow in flows {
        if block.1.len() + 200 > BLOCK {
            close(&mut blocks, &block)?;
            count += 1;
            block = (0, Vec::with_capacity(BLOCK));
        }
        record(flow, &mut block.1)?;
        block.0 += 1;
    }
    close(&mut blocks, &block)?;
    let created = flows.last().map_or(0, |flow| flow.last.as_nanos().div_euclid(SECOND));
    let mut file = Vec::with_capacity(blocks.len() + 40);
    file.extend(MAGIC.to_le_bytes());
    file.extend(LAYOUT.to_le_bytes());
    file.extend(VERSION.to_le_bytes());
    file.extend(created.to_le_bytes());
    // Neither compressed nor encrypted, and nothing behind the blocks.
    file.extend([0, 0, 0, 0]);
    file.extend(BY_NFCAPD.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    file.extend((count + 1).to_le_bytes());
    file.append(&mut blocks);
    Ok(file)
}

fn close(blocks: &mut Vec<u8>, (records, bytes): &(u32, Vec<u8>)) -> Result<()> {
    blocks.extend(records.to_le_bytes());
    blocks.extend(u32::try_from(bytes.len())?.to_le_bytes());
    blocks.extend(DATA_BLOCK.to_le_bytes());
    blocks.extend(0u16.to_le_bytes());
    blocks.extend(bytes);
    Ok(())
}

fn record(flow: &Flow, out: &mut Vec<u8>) -> Result<()> {
    let (addresses, addresses_size) = match flow.orig_ip {
        IpAddr::V4(_) => (2u16, 12u16),
        IpAddr::V6(_) => (3, 36),
    };
    for part in [RECORD, 12 + 52 + addresses_size + 28, 3] {
        out.extend(part.to_le_bytes());
    }
    out.extend([0, 0, 1, 0, 0, IPFIX]);
    let millis = |time: Timestamp| time.as_nanos().div_euclid(1_000_000);
    element(out, 1, 52);
    for time in [flow.first, flow.last, flow.last] {
        out.extend(millis(time).to_le_bytes());
    }
    out.extend(flow.orig_packets.to_le_bytes());
    out.extend(flow.orig_bytes.to_le_bytes());
    out.extend(flow.orig_port.to_le_bytes());
    out.extend(flow.resp_port.to_le_bytes());
    out.extend([flow.proto, flow.orig_flags, 0, 0]);
    element(out, addresses, addresses_size);
    match (flow.orig_ip, flow.resp_ip) {
        (IpAddr::V4(orig), IpAddr::V4(resp)) => {
            out.extend(u32::from(orig).to_le_bytes());
            out.extend(u32::from(resp).to_le_bytes());
        }
        (IpAddr::V6(orig), IpAddr::V6(resp)) => {
            for address in [u128::from(orig), u128::from(resp)] {
                // Two words, the upper one first, each in the machine's own order.
                out.extend(u64::try_from(address >> 64)?.to_le_bytes());
                out.extend(u64::try_from(address & u128::from(u64::MAX))?.to_le_bytes());
            }
        }
        (orig, resp) => bail!("{orig} and {resp} cannot talk to each other"),
    }
    element(out, 5, 28);
    for count in [1, flow.resp_packets, flow.resp_bytes] {
        out.extend(count.to_le_bytes());
    }
    Ok(())
}

fn element(out: &mut Vec<u8>, kind: u16, length: u16) {
    out.extend(kind.to_le_bytes());
    out.extend(length.to_le_bytes());
}

/// What nfdump finds: records and bytes both ways. `files` is what `-R` takes.
///
/// # Errors
/// nfdump fails, or says something else than a line per record.
pub fn ask(files: &[&str], filter: &str) -> Result<(u64, u64)> {
    let output = command(files, filter).output().context("cannot start nfdump; install Debian's nfdump")?;
    ensure!(output.status.success(), "nfdump {filter} failed: {}", String::from_utf8_lossy(&output.stderr));
    let mut found = (0, 0);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let bytes = line.split_whitespace().map(str::parse::<u64>).sum::<Result<u64, _>>();
        found = (found.0 + 1, found.1 + bytes.with_context(|| format!("nfdump says {line:?}"))?);
    }
    Ok(found)
}

/// The command of a question: each record that matches as a line with its bytes there and back.
#[must_use]
pub fn command(files: &[&str], filter: &str) -> Command {
    let mut command = Command::new("nfdump");
    command.env("TZ", "UTC").args(files).args(["-q", "-N", "-o", "fmt:%ibyt %obyt", filter]).stdin(Stdio::null());
    command
}
