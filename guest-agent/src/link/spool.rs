//! The file that keeps unacknowledged records over the agent's own death: one entry a line, appended and fsync'ed, rewritten
//! when most of it is old.
//!
//! `H {header}`, `R {record line}`, `A {seq}` (acknowledged), `D {seq}` (runs unacknowledged),
//! `X {uid}` (refused, never ran). A torn last line is ignored.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use vestigo_model::{
    Digest, PayloadUid,
    link::{Claim, GuestFrame, Record, decode},
};

use super::session::{Header, Saved};

/// Old entries that are worth keeping before the file is rewritten.
const SLACK: u64 = 256 * 1024;

/// The file.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Spool {
    /// What the file holds, if it is there and makes sense.
    ///
    /// # Errors
    /// Reading fails for another reason than the file's absence.
    pub fn load(path: &Path) -> io::Result<Option<Saved>> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(parse(&bytes))
    }

    /// Writes the file anew and keeps it open.
    ///
    /// # Errors
    /// As the file system says.
    pub fn create(path: &Path, saved: &Saved) -> io::Result<Self> {
        let (file, length) = write(path, saved)?;
        Ok(Self { path: path.into(), file, length })
    }

    /// Keeps a record.
    ///
    /// # Errors
    /// As the file system says; the record must not be sent then.
    pub fn record(&mut self, line: &[u8]) -> io::Result<()> {
        let mut entry = b"R ".to_vec();
        entry.extend_from_slice(line);
        self.append(entry)?;
        self.file.sync_data()
    }

    /// Notes that a payload runs although its start is not acknowledged.
    ///
    /// # Errors
    /// As the file system says.
    pub fn debt(&mut self, seq: u64) -> io::Result<()> {
        self.append(format!("D {seq}").into_bytes())
    }

    /// Notes that the host refused a payload: it never ran, so a later life of the agent has not lost it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn refused(&mut self, uid: PayloadUid) -> io::Result<()> {
        self.append(format!("X {uid}").into_bytes())
    }

    /// Notes what is acknowledged. Not synced: losing it only means sending a record again.
    ///
    /// # Errors
    /// As the file system says.
    pub fn acknowledged(&mut self, saved: impl FnOnce() -> Saved, acked: u64, waiting: usize) -> io::Result<()> {
        if self.length > SLACK + 2 * u64::try_from(waiting).unwrap_or(0) {
            (self.file, self.length) = write(&self.path, &saved())?;
            return Ok(());
        }
        self.append(format!("A {acked}").into_bytes())
    }

    /// Rewrites the file when the chain itself has changed.
    ///
    /// # Errors
    /// As the file system says.
    pub fn rewrite(&mut self, saved: &Saved) -> io::Result<()> {
        (self.file, self.length) = write(&self.path, saved)?;
        Ok(())
    }

    fn append(&mut self, mut entry: Vec<u8>) -> io::Result<()> {
        entry.push(b'\n');
        // After a failed write the file may end in half an entry; cut it off, so that the next one stands alone.
        if let Err(error) = self.file.write_all(&entry) {
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += u64::try_from(entry.len()).unwrap_or(0);
        Ok(())
    }
}

fn write(path: &Path, saved: &Saved) -> io::Result<(File, u64)> {
    let mut bytes = b"H ".to_vec();
    bytes.extend(serde_json::to_vec(&saved.header)?);
    bytes.push(b'\n');
    let first = saved.header.last.saturating_sub(u64::try_from(saved.pending.len()).unwrap_or(0)) + 1;
    for (seq, (line, debt)) in (first..).zip(&saved.pending) {
        bytes.extend_from_slice(b"R ");
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        if *debt {
            bytes.extend(format!("D {seq}\n").bytes());
        }
        // A start that waits and is not live was refused, or its end waits too.
        if let Ok(GuestFrame::Record(Record { claim: Claim::PayloadStart(start), .. })) = decode(line)
            && !saved.header.live.contains(&start.uid)
        {
            bytes.extend(format!("X {}\n", start.uid).bytes());
        }
    }
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    // Append mode, so that cutting a torn entry off moves the writing position too.
    let file = OpenOptions::new().append(true).open(path)?;
    Ok((file, u64::try_from(bytes.len()).unwrap_or(0)))
}

fn parse(bytes: &[u8]) -> Option<Saved> {
    let mut saved: Option<Saved> = None;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        match (line.get(..2), line.get(2..)) {
            (Some(b"H "), Some(rest)) => {
                let mut header: Header = serde_json::from_slice(rest).ok()?;
                // The header of a rewritten file counts the records that follow it; they are counted again as they come.
                header.last = header.acked;
                saved = Some(Saved { header, pending: Vec::new() });
            }
            (Some(b"R "), Some(rest)) => take(saved.as_mut()?, rest)?,
            (Some(b"A "), Some(rest)) => settle(saved.as_mut()?, number(rest)?),
            (Some(b"D "), Some(rest)) => debt(saved.as_mut()?, number(rest)?),
            (Some(b"X "), Some(rest)) => {
                let uid = std::str::from_utf8(rest).ok()?.parse().ok()?;
                saved.as_mut()?.header.live.remove(&uid);
            }
            _ => return saved,
        }
    }
    saved
}

fn number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn take(saved: &mut Saved, line: &[u8]) -> Option<()> {
    let Ok(GuestFrame::Record(Record { seq, claim, .. })) = decode(line) else { return None };
    match claim {
        Claim::PayloadStart(start) => drop(saved.header.live.insert(start.uid)),
        Claim::PayloadEnd { uid, .. } => drop(saved.header.live.remove(&uid)),
        _ => {}
    }
    saved.header.last = seq;
    saved.header.head = Digest::of(line);
    saved.pending.push((line.to_vec(), false));
    Some(())
}

fn settle(saved: &mut Saved, acked: u64) {
    let waiting = usize::try_from(saved.header.last.saturating_sub(acked)).unwrap_or(usize::MAX);
    let settled = saved.pending.drain(..saved.pending.len().saturating_sub(waiting)).next_back();
    if let Some((line, _)) = settled {
        saved.header.acked_head = Digest::of(&line);
    }
    saved.header.acked = saved.header.acked.max(acked);
}

fn debt(saved: &mut Saved, seq: u64) {
    let back = usize::try_from(saved.header.last.saturating_sub(seq)).unwrap_or(usize::MAX);
    let index = saved.pending.len().checked_sub(back.saturating_add(1));
    if let Some(entry) = index.and_then(|i| saved.pending.get_mut(i)) {
        entry.1 = true;
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
