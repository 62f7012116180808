//! A second lock under the mount root: Landlock forbids writing outside of the payload's own folders, and signals and
//! abstract sockets to whoever is outside, whatever becomes of mounts and ids.
//!
//! Prepared by PID 1 inside the new root; applied in the payload's process between fork and exec. What the kernel cannot do
//! is left out right by right and named. Reading and executing are not restricted: what is in the root is for reading.

use std::path::{Path, PathBuf};

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use serde::{Deserialize, Serialize};

use super::seccomp::Mode;
use crate::sys;

/// Devices: opened for writing wherever they appear below (new terminals too). No file can be made there.
const DEVICES: &str = "/dev";
/// Processes set up themselves and their children through files here; whose they are is for the kernel to say.
const PROCESSES: &str = "/proc";

/// Landlock could not be used, though the kernel has it.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// A path to allow.
    #[error("Landlock rules could not be made: {path}: {source}", path = .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: PathFdError,
    },
    /// The kernel refused.
    #[error("Landlock rules could not be made or applied: {0}")]
    Rules(#[from] RulesetError),
    /// For the new process.
    #[error("Landlock rules could not be applied: {0}")]
    Copy(#[from] std::io::Error),
    /// It was said to be in force and is not.
    #[error("the kernel did not put the Landlock rules in force; this agent will not pretend that it did")]
    NotInForce,
}

/// What is in force, for the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Version of the kernel's interface; 0 where it has none.
    pub abi: u32,
    /// Writing is limited to the writable folders.
    pub fs: bool,
    /// Signals and abstract sockets stay among the payload's processes.
    pub scoped: bool,
    /// What is not in force, in words.
    pub missing: Vec<String>,
}

/// Rules ready to be applied.
#[derive(Debug)]
pub struct Prepared {
    rules: Option<RulesetCreated>,
    applied: Applied,
}

/// What to ask of a kernel.
fn plan(abi: u32, mode: Mode) -> Applied {
    let mut missing = Vec::new();
    let mut has = |condition: bool, what: &'static str| {
        if !condition {
            missing.push(what.to_owned());
        }
        condition
    };
    let fs = if abi == 0 {
        has(false, "Landlock is not in this kernel or not switched on")
    } else {
        // The first version forbids to move a file from one folder to another, everywhere: no build would work.
        has(mode == Mode::Strict, "write rules: they would forbid mounts in nested namespaces")
            && has(abi >= 2, "write rules: this kernel's would forbid to move files between folders")
    };
    if fs {
        has(abi >= 3, "truncation outside of the writable folders");
        has(abi >= 5, "device ioctl outside of /dev");
    }
    let scoped = abi > 0 && has(abi >= 6, "signals and abstract sockets");
    Applied { abi, fs, scoped, missing }
}

/// Makes the rules: write only below `writable` (folders of the root that this process sees), to devices and to /proc. A
/// payload that may use POSIX message queues needs their file system mounted and named here: queues are opened there,
/// whatever lies above the mount. With
/// [`Mode::Nested`] there are no rules for files, because the kernel forbids mounts under such rules.
///
/// # Errors
/// A path cannot be opened, or the kernel refuses rules that it says it knows.
pub fn prepare(writable: &[&Path], mode: Mode) -> Result<Prepared, LandlockError> {
    prepare_for(sys::landlock_abi(), writable, mode)
}

fn prepare_for(abi: u32, writable: &[&Path], mode: Mode) -> Result<Prepared, LandlockError> {
    let applied = plan(abi, mode);
    if !applied.fs && !applied.scoped {
        return Ok(Prepared { rules: None, applied });
    }
    let known = known(abi);
    let write = AccessFs::from_write(known);
    // Only what this kernel has is asked for, so that what is asked for must be granted.
    let mut rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if applied.fs {
        rules = rules.handle_access(write)?;
    }
    if applied.scoped {
        rules = rules.scope(Scope::from_all(known))?;
    }
    let mut rules = rules.create()?;
    if applied.fs {
        let new_devices: BitFlags<AccessFs> = AccessFs::MakeChar | AccessFs::MakeBlock;
        let device_ioctl: BitFlags<AccessFs> = AccessFs::IoctlDev.into();
        let files = write & (AccessFs::WriteFile | AccessFs::Truncate);
        for path in writable {
            // A file alone can be bound too; the kernel takes no rights over folders for it.
            let access = if path.is_dir() { write & !new_devices & !device_ioctl } else { files };
            rules = allow(rules, path, access)?;
        }
        rules = allow(rules, Path::new(DEVICES), files | (write & device_ioctl))?;
        rules = allow(rules, Path::new(PROCESSES), files)?;
    }
    Ok(Prepared { rules: Some(rules), applied })
}

/// The newest version that this was tested with is 7.
fn known(abi: u32) -> ABI {
    ABI::from(i32::try_from(abi.min(7)).unwrap_or(0))
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, LandlockError> {
    let open = PathFd::new(path).map_err(|source| LandlockError::Path { path: path.to_owned(), source })?;
    // A payload may be shown a single file: of that, the kernel takes no rights that only a folder can give.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V7) };
    Ok(rules.add_rule(PathBeneath::new(open, access))?)
}

impl Prepared {
    /// What [`Self::restrict`] will put in force.
    #[must_use]
    pub const fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Restricts the calling thread and all that it starts, for ever. Needs no_new_privs, and sets it. The system call
    /// filter may be in force already.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn restrict(&self) -> Result<(), LandlockError> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let status = rules.try_clone()?.restrict_self()?;
        match status.ruleset {
            RulesetStatus::FullyEnforced => Ok(()),
            RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Err(LandlockError::NotInForce),
        }
    }
}

#[cfg(test)]
#[path = "landlock_tests.rs"]
mod tests;
