//! The guest's serial console: runs shell commands in the VM as root. Its other side is `/etc/init.d/console` of the image.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A terminal line holds 4095 bytes; base64 pieces must be a multiple of 4 to be readable one by one.
const PIECE: usize = 3000;
const READY: &str = "vestigo-console-ready";
/// For commands that take no time of their own; emulated guests on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command in the guest did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleOutput {
    /// Its exit status.
    pub status: i32,
    /// Its standard output and error, without surrounding white space.
    pub output: String,
}

/// The text of the line so far, filled by a reading thread.
#[derive(Default)]
struct Text {
    bytes: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

/// One connection to a guest's serial line.
pub struct Console {
    stream: Mutex<UnixStream>,
    text: Arc<Text>,
    tag: AtomicU64,
    log: PathBuf,
}

impl Console {
    /// Speaks over a connection to the socket that QEMU serves; everything read is also kept in `log`.
    pub(crate) fn open(stream: UnixStream, log: &Path) -> Result<Console> {
        let text = Arc::new(Text::default());
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let (reader, store) = (stream.try_clone()?, Arc::clone(&text));
        std::thread::spawn(move || store.fill(reader, file));
        Ok(Console { stream: Mutex::new(stream), text, tag: AtomicU64::new(0), log: log.to_owned() })
    }

    /// Runs a shell command (any number of lines) in the guest and waits for its end. A command that does not end in time is
    /// an error and leaves the console busy with it.
    pub fn run(&self, command: &str, timeout: Duration) -> Result<ConsoleOutput> {
        // One command at a time: the lock spans question and answer.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let tag = format!("t{}x{}", std::process::id(), self.tag.fetch_add(1, Ordering::Relaxed));
        let from = self.text.length();
        let encoded = base64(command.as_bytes());
        let mut message = String::new();
        for piece in encoded.as_bytes().chunks(PIECE) {
            message.push_str(&format!("+ {}\n", String::from_utf8_lossy(piece)));
        }
        message.push_str(&format!("! {tag}\n"));
        stream.write_all(message.as_bytes()).context("the guest's console is closed")?;
        let (head, tail) = (format!("\n<{tag}\n"), format!("\n>{tag} "));
        self.text.wait(from, timeout, |text| answer(text, &head, &tail)).with_context(|| {
            format!(
                "the guest did not finish within {timeout:?}: {command}\n(the console's text is in {})",
                self.log.display()
            )
        })
    }

    /// Runs a command that must succeed and returns its output.
    pub fn check(&self, command: &str) -> Result<String> {
        let done = self.run(command, PATIENCE)?;
        ensure!(done.status == 0, "in the guest, `{command}` ended with {}: {}", done.status, done.output);
        Ok(done.output)
    }

    /// Repeats a command until it succeeds and returns its output.
    pub fn until(&self, command: &str, limit: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let done = self.run(command, limit)?;
            if done.status == 0 {
                return Ok(done.output);
            }
            ensure!(start.elapsed() < limit, "in the guest, `{command}` never succeeded: {}", done.output);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes a file in the guest, with its folder. Meant for settings and keys: a serial line carries kilobytes, not more.
    pub fn put(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let text = base64(content);
        let command = format!(
            "mkdir -p \"$(dirname '{path}')\" && base64 -d > '{path}' <<'END' && chmod {mode:o} '{path}'\n{text}\nEND"
        );
        self.check(&command).map(drop)
    }

    /// Everything the serial line has said since the connection.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.bytes.lock().unwrap_or_else(PoisonError::into_inner).0).into_owned()
    }

    /// Waits for the console's greeting after byte `from`.
    pub(crate) fn wait_greeting(&self, from: usize, timeout: Duration) -> Result<()> {
        self.text
            .wait(from, timeout, |text| text.contains(READY).then_some(Ok(())))
            .with_context(|| format!("the guest's shell did not come up; its console: {}", self.text()))
    }

    /// How much has been read so far.
    pub(crate) fn position(&self) -> usize {
        self.text.length()
    }
}

impl Text {
    fn fill(&self, mut from: impl Read, mut log: File) {
        let mut buffer = [0; 4096];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let data = buffer.get(..count).unwrap_or_default();
            let _ = log.write_all(data);
            let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
            // Without carriage returns: the terminal adds them to the kernel's own lines.
            bytes.0.extend(data.iter().filter(|byte| **byte != b'\r'));
            bytes.1 = count == 0;
            self.grown.notify_all();
            if count == 0 {
                return;
            }
        }
    }

    fn length(&self) -> usize {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).0.len()
    }

    fn wait<T>(&self, from: usize, timeout: Duration, find: impl Fn(&str) -> Option<Result<T>>) -> Result<T> {
        let start = Instant::now();
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let text = String::from_utf8_lossy(bytes.0.get(from..).unwrap_or_default());
            if let Some(found) = find(&text) {
                return found;
            }
            ensure!(!bytes.1, "the guest's console was closed");
            let Some(left) = timeout.checked_sub(start.elapsed()) else { bail!("timed out") };
            bytes = self.grown.wait_timeout(bytes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What stands between the two markers, once the second one's line is complete.
fn answer(text: &str, head: &str, tail: &str) -> Option<Result<ConsoleOutput>> {
    let (_, after) = text.split_once(head)?;
    let (output, rest) = after.split_once(tail)?;
    let (status, _) = rest.split_once('\n')?;
    let status = status.trim().parse().with_context(|| format!("the console said {status:?} for a status"));
    Some(status.map(|status| ConsoleOutput { status, output: output.trim().to_owned() }))
}

fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(data.len().div_ceil(3) * 4);
    for group in data.chunks(3) {
        let bits = group.iter().chain([0, 0].iter()).take(3).fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        for place in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * place) & 63) as usize).copied().unwrap_or(b'=');
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{answer, base64};

    #[test]
    fn base64_pads() {
        let pairs = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (text, encoded) in pairs {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn answers_are_found_whole_only() {
        let parse = |text: &str| answer(text, "\n<t\n", "\n>t ").transpose().ok().flatten();
        assert_eq!(parse("\n<t\nhello\n>t 3"), None);
        assert_eq!(
            parse("junk\n<t\nhello\n\n>t 3\n").map(|done| (done.status, done.output)),
            Some((3, "hello".to_owned()))
        );
        assert_eq!(parse("\n<t\n\n>t 0\n").map(|done| (done.status, done.output)), Some((0, String::new())));
    }
}
