//! Resource groups of payloads: who belongs to a payload, what it may use, and its end.
//!
//! [`Layout`] says where the kernel keeps what (v2, v1, both). [`Cgroups`] is the agent's parent group in each tree that is
//! used, [`Group`] one payload's, [`Tree`] its processes. Processes are known and killed in one tree (v2 wherever there is
//! one); limits are set wherever their controller lives. What a machine does not have is recorded, never assumed.
//!
//! Moving a process from one group to another stops all forks of the VM until every processor has passed a grace period:
//! 5 to 20 ms when nothing was moved just before. There are two ways around: on v2 a process is born in its group
//! ([`Group::v2_fd`]), on v1 a process with one thread moves itself ([`Group::doors`], [`join`]).

pub mod group;
pub mod layout;
pub mod limits;
pub mod parent;
pub mod tree;

use std::{fs, io, path::Path, path::PathBuf};

pub use self::{
    group::{Events, Group, join},
    layout::{Absence, Layout, Part},
    limits::{Limits, Millicores},
    parent::Cgroups,
    tree::Tree,
};

/// Why there is no group, or not this limit.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// What was asked for does not exist on this machine. The caller refuses, or does without and records it.
    #[error("{}: {why}", unavailable(*part))]
    Missing {
        /// What.
        part: Part,
        /// Why.
        why: Absence,
    },
    /// A number or a name makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Another agent uses the same parent group.
    #[error("another agent runs its payloads in {0}; stop it, or give this one another name")]
    InUse(PathBuf),
    /// The kernel said no to a limit.
    #[error("the kernel refused {value:?} for {file}: {source}")]
    Refused {
        /// Which file.
        file: PathBuf,
        /// What was written.
        value: String,
        /// Its answer.
        source: io::Error,
    },
    /// Anything else.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn unavailable(part: Part) -> String {
    match part {
        Part::Tree => "no group of processes can be made".to_owned(),
        Part::Freezer => "a payload cannot be frozen".to_owned(),
        _ => format!("no limit on {part} can be set"),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::Io { what, path: path.to_owned(), source }
}

/// One write(2): the kernel takes a value whole or not at all. Never creates a file, also not in an imitation of the
/// kernel's folders.
fn put(file: &Path, value: &str) -> io::Result<()> {
    use io::Write;
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// The number behind a key in a file of `key number` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Gone while it was looked at, which is what every removal wants: no such folder, or no such device for an open file.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV))
}
