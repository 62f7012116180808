//! Finding the program that is to run, with the payload's own rights and in its own tree, and hashing the very file that
//! will be executed.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::AT_FDCWD,
    unistd::{AccessFlags, faccessat},
};
use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, Executable};

use crate::protocol::{Refusal, code};

/// Where programs without a slash in their name are looked for, and what PATH says inside.
pub const SEARCH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// A program, opened.
pub(super) struct Program {
    pub file: File,
    pub executable: Executable,
    /// Whether another program will read it (`#!`), through the same descriptor.
    pub script: bool,
}

/// Opens and hashes.
pub(super) fn open(name: &str) -> Result<Program, Refusal> {
    let refuse = |code, why: &str| Refusal { code, reason: format!("{name}: {why}") };
    let path = find(name).ok_or_else(|| {
        refuse(code::NOT_FOUND, "not found inside the sandbox; name a file below /usr, /work or an exposed folder")
    })?;
    let about = path.metadata().map_err(|e| refuse(code::NOT_EXECUTABLE, &e.to_string()))?;
    if !about.is_file() {
        return Err(refuse(code::NOT_EXECUTABLE, "not a regular file"));
    }
    faccessat(AT_FDCWD, &path, AccessFlags::X_OK, nix::fcntl::AtFlags::AT_EACCESS)
        .map_err(|_| refuse(code::NOT_EXECUTABLE, "not executable for the payload; set its execute permission"))?;
    let mut file = File::open(&path).map_err(|e| {
        refuse(code::NOT_EXECUTABLE, &format!("cannot be read, and what is not read cannot be recorded: {e}"))
    })?;
    let (digest, script) = digest(&mut file).map_err(|e| refuse(code::NOT_EXECUTABLE, &e.to_string()))?;
    let path = path.to_string_lossy().into_owned();
    Ok(Program { file, executable: Executable { path, sha256: digest }, script })
}

fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(|p| p.exists());
    }
    SEARCH.split(':').map(|folder| Path::new(folder).join(name)).find(|p| p.is_file())
}

fn digest(file: &mut File) -> io::Result<(Digest, bool)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut start = Vec::new();
    loop {
        let count = file.read(&mut buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            return Ok((Digest(hash.finalize().into()), start.starts_with(b"#!")));
        }
        if start.len() < 2 {
            start.extend_from_slice(bytes.get(..2.min(count)).unwrap_or_default());
        }
        hash.update(bytes);
    }
}
