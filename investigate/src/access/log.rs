//! The file: JSON Lines, each line with the SHA-256 of the one before, so that none can be changed or taken out unnoticed
//! (lines cut off at the end show only beside an older digest of the last line: `vestigo access` prints it).

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use vestigo_model::Digest;

use super::Entry;

/// Most bytes of a line. A question of this length is refused, so that the last line can be found by reading so many bytes.
const MAX_LINE: u64 = 1 << 20;

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file.
    #[error(
        "Cannot {doing} the record of questions {}, and without it there is no answer; give the group that asks the right to \
         write there, or set `log` in [access] of vestigo.toml",
        path.display()
    )]
    File {
        /// Verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is only looked at.
    #[error("Cannot read the record of questions {}; name it with --log, or set `log` in [access] of vestigo.toml", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The question.
    #[error("The question is longer than {MAX_LINE} bytes and cannot be recorded; ask a shorter one")]
    TooLong,
}

/// Appends the entry behind the last one. When this returns it is on the disk.
///
/// # Errors
/// The file cannot be written, or the entry is too long.
pub fn append(path: &Path, mut entry: Entry) -> Result<(), LogError> {
    let at = |doing| move |source| LogError::File { doing, path: path.to_owned(), source };
    let (mut file, new) = open(path).map_err(at("open"))?;
    // Two questions at one moment follow each other.
    file.lock().map_err(at("lock"))?;
    let (last, torn) = last_line(&mut file).map_err(at("read"))?;
    entry.previous = last.map_or(Digest::ZERO, |line| Digest::of(&line)).to_string();
    let mut line = serde_json::to_vec(&entry).map_err(|error| at("write")(error.into()))?;
    if line.len() as u64 >= MAX_LINE {
        return Err(LogError::TooLong);
    }
    // A line that a crash left unfinished stays as it is; nobody saw its answer.
    if torn {
        line.insert(0, b'\n');
    }
    line.push(b'\n');
    file.write_all(&line).and_then(|()| file.sync_all()).map_err(at("write"))?;
    if new {
        let folder = path.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(at("sync the folder of"))?;
    }
    Ok(())
}

/// The file, and whether it was made now. Group members who ask must be able to write what others began.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o660);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map(|file| (file, false)),
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        DirBuilder::new().recursive(true).mode(0o770).create(folder)?;
    }
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(0o660))?;
            Ok((file, true))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path).map(|file| (file, false)),
        Err(error) => Err(error),
    }
}

/// The last line without its end, and whether it lacks one.
fn last_line(file: &mut File) -> io::Result<(Option<Vec<u8>>, bool)> {
    let length = file.seek(SeekFrom::End(0))?;
    if length == 0 {
        return Ok((None, false));
    }
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LINE + 2)))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE + 2).read_to_end(&mut tail)?;
    let torn = tail.last() != Some(&b'\n');
    if !torn {
        tail.pop();
    }
    let begins = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    Ok((Some(tail.split_off(begins)), torn))
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Line, from 1.
    pub line: u64,
    /// `changed` (the line does not hash to what the next one says), `unfinished` (by a crash while it was written) or
    /// `unreadable`.
    pub what: &'static str,
}

/// What a reading found out about the whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Lines.
    pub lines: u64,
    /// SHA-256 of the last line: write it down elsewhere, and lines cut off later show.
    pub head: String,
    /// Whether the digest that was asked for is that of a line; absent when none was.
    pub holds: Option<bool>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// More of them than are listed.
    pub more_findings: u64,
}

const MAX_FINDINGS: usize = 100;

/// Reads the file from its beginning, hands every readable entry to `visit` and follows the chain.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path, head: Option<&str>, mut visit: impl FnMut(u64, Entry)) -> Result<Checked, LogError> {
    let at = |source| LogError::Read { path: path.to_owned(), source };
    let mut lines = BufReader::new(fs::File::open(path).map_err(at)?);
    let mut previous = Digest::ZERO.to_string();
    let mut checked = Checked {
        lines: 0,
        head: previous.clone(),
        holds: head.map(|_| false),
        findings: Vec::new(),
        more_findings: 0,
    };
    // A line that is no entry: whether a crash left it so, the next one knows.
    let mut odd = false;
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(2 * MAX_LINE).read_until(b'\n', &mut line).map_err(at)?;
        if read == 0 {
            if odd {
                checked.found(checked.lines, "unreadable");
            }
            checked.head = previous;
            return Ok(checked);
        }
        let before = checked.lines;
        checked.lines += 1;
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        match serde_json::from_slice::<Entry>(&line) {
            Ok(entry) => {
                match (entry.previous == previous, odd) {
                    (true, true) => checked.found(before, "unfinished"),
                    (true, false) => {}
                    (false, _) => checked.found(before.max(1), "changed"),
                }
                odd = false;
                visit(checked.lines, entry);
            }
            Err(_) if whole && !odd => odd = true,
            Err(_) => checked.found(checked.lines, if whole { "unreadable" } else { "unfinished" }),
        }
        previous = Digest::of(&line).to_string();
        if head == Some(previous.as_str()) {
            checked.holds = Some(true);
        }
    }
}

impl Checked {
    fn found(&mut self, line: u64, what: &'static str) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { line, what });
        } else {
            self.more_findings += 1;
        }
    }

    /// Whether all is as it was written.
    pub fn whole(&self) -> bool {
        // A crash is no forgery: what it left unfinished was never answered, and the chain goes on over it.
        self.holds != Some(false)
            && self.findings.iter().all(|found| found.what == "unfinished")
            && self.more_findings == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::access::Who;

    fn entry(reason: &str) -> Entry {
        let who = Who { uid: 0, user: None, login_uid: None, login: None, sudo_user: None };
        let (time, host) = ("2026-11-22T14:03:22Z".parse().unwrap(), "desk".to_owned());
        let (case, reason) = (Some("C-1".to_owned()), Some(reason.to_owned()));
        Entry {
            time,
            host,
            who,
            case,
            reason,
            command: vec!["who".to_owned()],
            found: Some(1),
            exit: 0,
            previous: String::new(),
        }
    }

    fn log(folder: &Path) -> PathBuf {
        let path = folder.join("new/access.jsonl");
        ["one", "two", "three"].iter().for_each(|reason| append(&path, entry(reason)).unwrap());
        path
    }

    fn check(path: &Path) -> Checked {
        read(path, None, |_, _| ()).unwrap()
    }

    #[test]
    fn each_line_holds_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        let mut reasons = Vec::new();
        let checked = read(&path, None, |line, entry| reasons.push((line, entry.reason.unwrap()))).unwrap();
        assert_eq!(reasons, [(1, "one".to_owned()), (2, "two".to_owned()), (3, "three".to_owned())]);
        assert!(checked.whole() && checked.lines == 3 && checked.findings.is_empty());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o660);
    }

    #[test]
    fn a_changed_line_and_a_missing_one_show() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        let text = fs::read_to_string(&path).unwrap();
        let changed = |what: String| {
            fs::write(&path, what).unwrap();
            check(&path)
        };
        for word in ["one", "two"] {
            let checked = changed(text.replace(word, "0ne"));
            assert!(!checked.whole(), "{checked:?}");
        }
        let lines: Vec<&str> = text.lines().collect();
        assert!(!changed(format!("{}\n{}\n", lines[0], lines[2])).whole());
        assert!(!changed(format!("{}\n{}\n", lines[1], lines[2])).whole());
        assert!(!changed(format!("{}\nxx\n{}\n", lines[0], lines[2])).whole());
        let head = check(&log(folder.path())).head;
        let cut = format!("{}\n{}\n", lines[0], lines[1]);
        assert!(changed(cut).whole(), "nothing in the file tells that its end is gone");
        assert!(!read(&path, Some(&head), |_, _| ()).unwrap().whole(), "but a digest that was written down does");
        let second = Digest::of(lines[1].as_bytes()).to_string();
        assert!(read(&path, Some(&second), |_, _| ()).unwrap().whole());
    }

    #[test]
    fn a_crash_in_the_middle_of_a_line_is_no_forgery_and_the_chain_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = log(folder.path());
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        let checked = check(&path);
        assert!(checked.whole() && checked.findings == [Finding { line: 3, what: "unfinished" }], "{checked:?}");
        append(&path, entry("four")).unwrap();
        let checked = check(&path);
        assert_eq!(
            (checked.lines, checked.findings.as_slice()),
            (4, [Finding { line: 3, what: "unfinished" }].as_slice())
        );
        assert!(checked.whole());
    }

    #[test]
    fn many_at_once_follow_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.jsonl");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| append(&path, entry("again")).unwrap()));
            }
        });
        let checked = check(&path);
        assert!(checked.whole() && checked.lines == 80, "{checked:?}");
    }
}
