//! Where a pilot keeps its own tokens (WLCG Bearer Token Discovery): so that none of them is handed to a payload.
//!
//! A program that looks for its token takes the first that it finds; here all are wanted.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{libc, unistd::Uid};

use super::{jwt::MAX_TOKEN, token::TokenMark};

/// A place where a token may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The value of `BEARER_TOKEN`.
    Value(OsString),
    /// A file.
    File(PathBuf),
}

/// The places, in the order of the discovery procedure. `variable` is the environment.
#[must_use]
pub fn places(variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Vec<Place> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let own = format!("bt_u{uid}");
    let mut all = Vec::new();
    all.extend(set("BEARER_TOKEN").map(Place::Value));
    all.extend(set("BEARER_TOKEN_FILE").map(|path| Place::File(path.into())));
    all.extend(set("XDG_RUNTIME_DIR").map(|folder| Place::File(Path::new(&folder).join(&own))));
    all.push(Place::File(Path::new("/tmp").join(own)));
    all
}

/// The marks of what is in these places. A file that does not exist or holds no token is none.
///
/// # Errors
/// When a file is there and cannot be read: then nobody can say that the payload's token is another.
pub fn marks(places: &[Place], read: impl Fn(&Path) -> io::Result<Vec<u8>>) -> io::Result<Vec<TokenMark>> {
    let mut found: Vec<TokenMark> = Vec::new();
    for place in places {
        let mark = match place {
            Place::Value(value) => TokenMark::of(value.as_bytes()),
            Place::File(path) => match read(path) {
                Ok(bytes) => TokenMark::of(&bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            },
        };
        found.extend(mark.filter(|mark| !found.contains(mark)));
    }
    Ok(found)
}

/// Reads at most one byte more than a token may have. Neither a FIFO nor a device makes it wait.
///
/// # Errors
/// As open(2) and read(2); when it is no regular file.
pub fn read_token(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(u64::try_from(MAX_TOKEN).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The marks of this process's own tokens.
///
/// # Errors
/// As [`marks`].
pub fn own_marks() -> io::Result<Vec<TokenMark>> {
    marks(&places(|name| std::env::var_os(name), Uid::effective().as_raw()), read_token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_place_counts_not_only_the_first() {
        let environment = |name: &str| match name {
            "BEARER_TOKEN" => Some("value-token\n".into()),
            "BEARER_TOKEN_FILE" => Some("/pilot/token".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            _ => None,
        };
        let places = places(environment, 7);
        let file = |path: &str| Place::File(path.into());
        let expected =
            [Place::Value("value-token\n".into()), file("/pilot/token"), file("/run/user/7/bt_u7"), file("/tmp/bt_u7")];
        assert_eq!(places, expected);
        let marks = marks(&places, |path| match path.to_str().unwrap() {
            "/pilot/token" => Ok(b"  file-token \n".to_vec()),
            "/tmp/bt_u7" => Ok(b"value-token".to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        });
        let expected = [TokenMark::of(b"value-token").unwrap(), TokenMark::of(b"file-token").unwrap()];
        assert_eq!(marks.unwrap(), expected);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_no_token() {
        let unreadable = marks(&places(|_| None, 7), |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(unreadable.unwrap_err().to_string().starts_with("/tmp/bt_u7: "));
    }

    #[test]
    fn a_fifo_does_not_hold_up_the_pilot() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_token(&fifo).unwrap_err().to_string(), "not a regular file");
    }
}
