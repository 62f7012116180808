//! Finding the program that is to run, with the payload's own rights and in its own tree, and making sure that what was
//! hashed is what runs.
//!
//! A file stays writable for its owner until the moment of exec, long after it was hashed. So only what nobody but root can
//! change is executed where it lies; everything else is copied into sealed memory while it is hashed, and the copy runs.

use std::{
    fs::File,
    io::{self, Read, Seek as _, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::{SFlag, fstat, stat},
        statvfs::{FsFlags, fstatvfs},
    },
    unistd::{AccessFlags, faccessat},
};
use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, Executable};

use super::Programs;
use crate::protocol::{Refusal, code};

/// Where programs without a slash in their name are looked for, and what PATH says inside.
pub const SEARCH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
/// Largest program that is copied: the copy lies in memory for as long as it runs.
const MAX_COPY: u64 = 512 << 20;

/// A program, found and open.
pub(super) struct Found {
    pub file: File,
    path: String,
}

/// A program, ready to run.
pub(super) struct Program {
    file: File,
    executable: Executable,
    /// Its first line, if another program is to read it.
    script: Option<Script>,
}

/// What `#!` says: the interpreter, and at most one argument for it (execve(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Script {
    interpreter: String,
    argument: Option<String>,
}

/// What runs: a program, or a script and its interpreter. Both were hashed through the descriptors that are executed and read.
pub(super) struct Loaded {
    pub program: Program,
    pub interpreter: Option<Program>,
}

impl Loaded {
    /// For the record.
    pub fn said(&self) -> Programs {
        Programs {
            executable: self.program.executable.clone(),
            interpreter: self.interpreter.as_ref().map(|program| program.executable.clone()),
        }
    }

    /// What to give to execveat(2).
    pub fn runs(&self) -> &File {
        &self.interpreter.as_ref().unwrap_or(&self.program).file
    }

    /// The script's descriptor, open for reading, stays for its interpreter.
    pub fn keep_script(&self) -> nix::Result<()> {
        match self.interpreter {
            Some(_) => fcntl(&self.program.file, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).map(drop),
            None => Ok(()),
        }
    }

    /// The argument list: as the kernel makes it for scripts, but with the descriptor in place of the path.
    pub fn arguments(&self, command: &[String]) -> Vec<String> {
        let Some(script) = self.program.script.as_ref().filter(|_| self.interpreter.is_some()) else {
            return command.to_vec();
        };
        let path = format!("/dev/fd/{}", self.program.file.as_fd().as_raw_fd());
        let mut arguments = vec![script.interpreter.clone()];
        arguments.extend(script.argument.clone());
        arguments.push(path);
        arguments.extend(command.iter().skip(1).cloned());
        arguments
    }
}

impl Program {
    /// The interpreter that a script names, found and open.
    pub fn interpreter(&self) -> Result<Option<Found>, Refusal> {
        let Some(script) = &self.script else { return Ok(None) };
        if !script.interpreter.starts_with('/') {
            let why = format!("its first line names the interpreter {:?}; give its full path", script.interpreter);
            return Err(refuse(code::NOT_EXECUTABLE, &self.executable.path, why));
        }
        open(&script.interpreter).map(Some).map_err(|refusal| {
            let why = format!("its interpreter: {}", refusal.reason);
            refuse(code::NOT_EXECUTABLE, &self.executable.path, why)
        })
    }

    /// An interpreter must be a program of its own: a chain of them could not be recorded in two fields.
    pub fn not_a_script(self, script: &str) -> Result<Self, Refusal> {
        match self.script {
            None => Ok(self),
            Some(_) => {
                let why = format!("its interpreter {} is itself a script; name a program", self.executable.path);
                Err(refuse(code::NOT_EXECUTABLE, script, why))
            }
        }
    }
}

fn refuse(code: u8, name: &str, why: impl std::fmt::Display) -> Refusal {
    Refusal { code, reason: format!("{name}: {why}") }
}

/// Finds and opens.
pub(super) fn open(name: &str) -> Result<Found, Refusal> {
    let path = find(name).ok_or_else(|| {
        let why = "not found inside the sandbox; name a file below /usr, /work or an exposed folder; --work DIR shows your folder as /work";
        refuse(code::NOT_FOUND, name, why)
    })?;
    let about = path.metadata().map_err(|e| refuse(code::NOT_EXECUTABLE, name, e))?;
    if !about.is_file() {
        return Err(refuse(code::NOT_EXECUTABLE, name, "not a regular file"));
    }
    faccessat(AT_FDCWD, &path, AccessFlags::X_OK, nix::fcntl::AtFlags::AT_EACCESS).map_err(|_| {
        refuse(code::NOT_EXECUTABLE, name, "not executable for the payload; set its execute permission")
    })?;
    let file = File::open(&path).map_err(|e| {
        let why = format!("cannot be read, and what is not read cannot be recorded: {e}");
        refuse(code::NOT_EXECUTABLE, name, why)
    })?;
    Ok(Found { file, path: path.to_string_lossy().into_owned() })
}

/// Whether nobody but root can change this open file: one of the VM's own system, root's alone to write, and read-only
/// where the payload sees it. Asked outside of the user namespace, inside which all owners look alike.
pub(super) fn only_root_changes(file: BorrowedFd<'_>) -> bool {
    seems_fixed(file) && fstat(file).is_ok_and(|about| about.st_uid == 0)
}

/// The same, its owner apart: what can be seen from inside too.
fn seems_fixed(file: BorrowedFd<'_>) -> bool {
    let (Ok(about), Ok(mount), Ok(system)) = (fstat(file), fstatvfs(file), stat("/usr")) else { return false };
    SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
        && about.st_mode & 0o022 == 0
        // What a file system of somebody's own making (FUSE, network) says of owners is its own matter.
        && about.st_dev == system.st_dev
        && mount.flags().contains(FsFlags::ST_RDONLY)
}

/// What was read, and the file's last change before that.
pub(super) struct Hashed {
    sha256: Digest,
    script: Option<Script>,
    changed: (i64, i64),
}

impl Found {
    /// Whether it is worth asking about: nobody seems to be able to change it.
    pub(super) fn seems_fixed(&self) -> bool {
        seems_fixed(self.file.as_fd())
    }

    /// Hashes it as it lies there.
    pub(super) fn hash(&mut self) -> Result<Hashed, Refusal> {
        let failed = |e: io::Error| refuse(code::NOT_EXECUTABLE, &self.path, e);
        let changed = last_change(&self.file).map_err(|e| failed(e.into()))?;
        let (sha256, script) = digest(&mut self.file, &mut io::sink()).map_err(failed)?;
        Ok(Hashed { sha256, script, changed })
    }

    /// Runs as it is, if nobody can change it (which the caller knows), and nobody did before that was known: it may have been somebody
    /// else's while it was read.
    pub(super) fn fixed(self, hashed: Hashed) -> Result<Program, Refusal> {
        match last_change(&self.file) {
            Ok(changed) if changed == hashed.changed => {
                let executable = Executable { path: self.path, sha256: hashed.sha256 };
                Ok(Program { file: self.file, executable, script: hashed.script })
            }
            _ => self.copied(),
        }
    }

    /// A copy runs, which is hashed while it is made.
    pub(super) fn copied(mut self) -> Result<Program, Refusal> {
        let (sha256, script, copy) = self
            .file
            .rewind()
            .map_err(|e| e.to_string())
            .and_then(|()| copy(&mut self.file))
            .map_err(|why| refuse(code::NOT_EXECUTABLE, &self.path, why))?;
        Ok(Program { file: copy, executable: Executable { path: self.path, sha256 }, script })
    }
}

/// Of content, owner or mode.
fn last_change(file: &File) -> nix::Result<(i64, i64)> {
    fstat(file).map(|about| (about.st_ctime, about.st_ctime_nsec))
}

fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(|p| p.exists());
    }
    SEARCH.split(':').map(|folder| Path::new(folder).join(name)).find(|p| p.is_file())
}

/// A copy that nobody can change any more, and what is in it.
fn copy(file: &mut File) -> Result<(Digest, Option<Script>, File), String> {
    let too_large = || {
        format!(
            "larger than {} MiB, and a program that others could change runs from a copy in memory; have it installed as root's below /usr, or start it from a small script",
            MAX_COPY >> 20
        )
    };
    if file.metadata().map_err(|e| e.to_string())?.len() > MAX_COPY {
        return Err(too_large());
    }
    let mut memory = memory().map_err(|e| match e {
        Errno::EACCES => "the VM forbids programs in memory; set vm.memfd_noexec to 0 or 1".to_owned(),
        _ => format!("no memory file: {e}"),
    })?;
    // One byte more than allowed: it may grow while it is read.
    let (digest, script) = digest(&mut file.take(MAX_COPY + 1), &mut memory).map_err(|e| e.to_string())?;
    if memory.metadata().map_err(|e| e.to_string())?.len() > MAX_COPY {
        return Err(too_large());
    }
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| format!("cannot be sealed: {e}"))?;
    // For reading only, and from the start: an interpreter may get this very descriptor.
    let copy = File::open(format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd())).map_err(|e| e.to_string())?;
    Ok((digest, script, copy))
}

fn memory() -> nix::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // MFD_EXEC, which kernels before 6.3 do not know and need not be told.
    match memfd_create("payload", flags | MFdFlags::from_bits_retain(0x10)) {
        Err(Errno::EINVAL) => memfd_create("payload", flags),
        other => other,
    }
    .map(File::from)
}

/// How much of a script's first line the kernel reads (BINPRM_BUF_SIZE).
const FIRST_LINE: usize = 256;

fn digest(from: &mut impl Read, to: &mut impl Write) -> io::Result<(Digest, Option<Script>)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut start = Vec::new();
    loop {
        let count = from.read(&mut buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            return Ok((Digest(hash.finalize().into()), Script::of(&start)));
        }
        let room = FIRST_LINE.saturating_sub(start.len()).min(count);
        start.extend_from_slice(bytes.get(..room).unwrap_or_default());
        hash.update(bytes);
        to.write_all(bytes)?;
    }
}

impl Script {
    /// Reads a first line as the kernel does. `None`: no script.
    fn of(start: &[u8]) -> Option<Self> {
        let line = start.strip_prefix(b"#!")?;
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let line = line.trim_matches([' ', '\t']);
        let (interpreter, argument) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let argument = argument.trim_matches([' ', '\t']);
        Some(Self {
            interpreter: interpreter.to_owned(),
            argument: (!argument.is_empty()).then(|| argument.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_changed_while_it_was_read_runs_as_a_copy_of_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let found = || Found { file: File::open(&path).unwrap(), path: "program".into() };
        let sha256 = |text: &str| Digest(Sha256::digest(text).into());
        std::fs::write(&path, "#!/bin/sh\none").unwrap();
        let mut same = found();
        let hashed = same.hash().unwrap();
        let program = same.fixed(hashed).unwrap();
        assert_eq!(program.executable.sha256, sha256("#!/bin/sh\none"));
        let mut other = found();
        let hashed = other.hash().unwrap();
        let before = last_change(&other.file).unwrap();
        // The kernel's clock for files may tick slowly.
        while last_change(&other.file).unwrap() == before {
            std::fs::write(&path, "#!/bin/sh\ntwo").unwrap();
        }
        let mut program = other.fixed(hashed).unwrap();
        assert_eq!(program.executable.sha256, sha256("#!/bin/sh\ntwo"));
        std::fs::write(&path, "#!/bin/sh\nthree").unwrap();
        let mut runs = String::new();
        program.file.read_to_string(&mut runs).unwrap();
        assert_eq!(runs, "#!/bin/sh\ntwo");
    }

    #[test]
    fn a_first_line_is_read_as_the_kernel_reads_it() {
        let script = |text: &str| Script::of(text.as_bytes()).map(|s| (s.interpreter, s.argument));
        let said =
            |interpreter: &str, argument: Option<&str>| Some((interpreter.to_owned(), argument.map(ToOwned::to_owned)));
        assert_eq!(script("#!/bin/sh\necho"), said("/bin/sh", None));
        assert_eq!(script("#! /usr/bin/env  -S python3 -u \t\n"), said("/usr/bin/env", Some("-S python3 -u")));
        assert_eq!(script("#!"), said("", None));
        assert_eq!(script("\u{7f}ELF"), None);
        assert_eq!(script(""), None);
    }
}
