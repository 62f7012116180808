//! Holds: records that a case needs outlive the longest time for which records are kept. `holds/<case>.json` in the ledger.
//!
//! A hold is lifted by [`release`], which moves its file to `holds/released/`: who held what, and why, stays on record. A hold that
//! cannot be read stops every removal: what it protects is not known.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Fact, FactRecord, HostId, InstanceId, TimeRange, Timestamp, Vo};

use crate::{
    durable::{self, IoError},
    manifest::{Kind, Sealed},
    segment::{SegmentError, rows},
    sign,
};

/// Value of [`Hold::format`].
pub const FORMAT: &str = "vestigo-hold";

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// [`FORMAT`].
    pub format: String,
    /// 1.
    pub version: u32,
    /// The case.
    pub case: String,
    /// Why.
    pub reason: String,
    /// Who placed it (login).
    pub by: String,
    /// When.
    pub placed: Timestamp,
    /// Records of this time.
    pub from: Timestamp,
    /// To.
    pub to: Timestamp,
    /// Of this hypervisor only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Of segments that know this VM only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Of segments that know a VM of this VO only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vo: Option<Vo>,
    /// When it was lifted, and by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<(Timestamp, String)>,
}

/// What is wrong with holds.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// A file.
    #[error(transparent)]
    Io(#[from] IoError),
    /// One that says nothing.
    #[error("{} is no hold; nothing is removed until it is restored or taken away", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
    },
    /// There is one.
    #[error("there is a hold for case {case} already; release it first, or give this one a case of its own")]
    Exists {
        /// Which.
        case: String,
    },
    /// There is none.
    #[error("there is no hold for case {case}; `vestigo ledger holds` lists those there are")]
    Unknown {
        /// Which.
        case: String,
    },
    /// It cannot be written.
    #[error("a hold cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
}

fn folder(root: &Path) -> PathBuf {
    root.join("holds")
}

/// The case's file name: every byte other than letters, digits and `_ -` as `%XX`, so that no case leads elsewhere.
fn file_name(case: &str) -> String {
    let mut name = String::new();
    for byte in case.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => name.push(char::from(byte)),
            other => name.push_str(&format!("%{other:02X}")),
        }
    }
    name
}

fn write(path: &Path, hold: &Hold) -> Result<(), HoldError> {
    let mut bytes = serde_json::to_vec_pretty(hold).map_err(HoldError::Encode)?;
    bytes.push(b'\n');
    Ok(durable::write_file(path, &bytes)?)
}

fn read(path: &Path) -> Result<Hold, HoldError> {
    let malformed = || HoldError::Malformed { path: path.to_owned() };
    let bytes = sign::read_bounded(path)?.ok_or_else(malformed)?;
    let hold: Hold = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
    if hold.format == FORMAT && hold.version == 1 { Ok(hold) } else { Err(malformed()) }
}

/// Places a hold.
///
/// # Errors
/// [`HoldError::Exists`], or the disk's.
pub fn place(root: &Path, hold: &Hold) -> Result<PathBuf, HoldError> {
    durable::create_folder(&folder(root))?;
    let path = folder(root).join(format!("{}.json", file_name(&hold.case)));
    if path.exists() {
        return Err(HoldError::Exists { case: hold.case.clone() });
    }
    write(&path, hold)?;
    Ok(path)
}

/// Lifts the hold of a case.
///
/// # Errors
/// [`HoldError::Unknown`], or the disk's.
pub fn release(root: &Path, case: &str, by: &str, now: Timestamp) -> Result<Hold, HoldError> {
    let path = folder(root).join(format!("{}.json", file_name(case)));
    let mut hold = match read(&path) {
        Err(HoldError::Io(error)) if error.is_not_found() => {
            return Err(HoldError::Unknown { case: case.to_owned() });
        }
        other => other?,
    };
    hold.released = Some((now, by.to_owned()));
    let old = folder(root).join("released");
    durable::create_folder(&old)?;
    write(&old.join(format!("{}-{}.json", file_name(case), now.as_nanos())), &hold)?;
    durable::remove_file(&path)?;
    durable::sync_folder(&folder(root))?;
    Ok(hold)
}

/// The holds in force.
///
/// # Errors
/// [`HoldError::Malformed`]: one that cannot be read may protect anything.
pub fn all(root: &Path) -> Result<Vec<Hold>, HoldError> {
    let folder = folder(root);
    let names = durable::names(&folder)?;
    let holds = names.iter().map(|name| folder.join(name)).filter(|path| !fs::metadata(path).is_ok_and(|m| m.is_dir()));
    // A write that a crash left unfinished was never told to have been placed.
    let holds = holds.filter(|path| path.extension().is_none_or(|end| end != "tmp"));
    holds.map(|path| read(&path)).collect()
}

impl Hold {
    /// Whether the segment is held: its records touch the time, and it knows the VM or VO.
    ///
    /// # Errors
    /// A segment that cannot be read; it counts as held then.
    pub fn holds(&self, sealed: &Sealed) -> Result<bool, SegmentError> {
        let manifest = &sealed.manifest;
        let asked = TimeRange { from: self.from, to: self.to };
        let spans = [manifest.flows, manifest.coverage, manifest.recorded];
        let in_time = spans.iter().flatten().any(|span| span.overlaps(&asked));
        if !in_time || self.host.as_ref().is_some_and(|host| *host != manifest.host) {
            return Ok(false);
        }
        if self.instance.is_none() && self.vo.is_none() {
            return Ok(true);
        }
        let Some(path) = sealed.file(Kind::Instances)? else { return Ok(false) };
        let (facts, unreadable) = rows::facts(&path)?;
        Ok(unreadable > 0 || facts.iter().any(|fact| self.concerns(fact)))
    }

    fn concerns(&self, record: &FactRecord) -> bool {
        let Fact::Instance(instance) = &record.fact else { return false };
        self.instance.as_ref().is_none_or(|id| *id == instance.id || id.as_str() == instance.domain.to_string())
            && self.vo.as_ref().is_none_or(|vo| instance.vo.as_ref() == Some(vo))
    }
}
