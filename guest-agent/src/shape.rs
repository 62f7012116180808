//! What a caller opens in the sandbox, or adds to it. Everything is closed unless one of these opens it, each by one flag.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Limits,
    protocol::Refusal,
    sandbox::mounts::{OWN, SYSTEM},
};

/// Most folders and files that one caller may show its payload.
pub const MAX_BINDS: usize = 16;

/// A folder or file of the VM for the payload. The descriptor that the caller opened rides along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where, inside.
    pub target: PathBuf,
    /// Whether the payload may write.
    pub writable: bool,
}

/// All of it. Descriptors ride along after the standard streams in this order: the root, the work directory, one for each bind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Another system's root instead of the VM's.
    pub rootfs: bool,
    /// A folder of the caller's as home.
    pub work: bool,
    /// More folders and files.
    pub binds: Vec<Bind>,
    /// Empty folders in memory.
    pub tmpfs: Vec<PathBuf>,
    /// The payload may make user namespaces (to run a container tool of its own), and what comes with them.
    pub nested: bool,
    /// Where it starts instead of its home.
    pub directory: Option<PathBuf>,
    /// Host name inside.
    pub hostname: Option<String>,
    /// Limits other than the VM's usual ones.
    pub limits: Limits,
}

impl Shape {
    /// Whether a sandbox that was prepared without knowing the payload will do.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        !self.rootfs
            && !self.work
            && !self.nested
            && self.binds.is_empty()
            && self.tmpfs.is_empty()
            && self.hostname.is_none()
    }

    /// What can be judged before anything is made.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.binds.len() + self.tmpfs.len() > MAX_BINDS {
            return Err(Refusal::caller(format!("more than {MAX_BINDS} folders are bound; bind one that holds them")));
        }
        // A folder of the caller's may take the place of the private one for temporary files, as its work directory does at home.
        let moved = |target: &Path| target == Path::new("/tmp") || target == Path::new("/var/tmp");
        let binds = self.binds.iter().filter(|bind| !(bind.writable && moved(&bind.target)));
        for target in binds.map(|bind| &bind.target).chain(&self.tmpfs) {
            check_target(target)?;
        }
        if let Some(directory) = self.directory.as_ref().filter(|directory| !directory.is_absolute()) {
            return Err(Refusal::caller(format!("--chdir {}: give an absolute path inside", directory.display())));
        }
        let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        self.limits.check().map_err(|e| Refusal::caller(e.to_string()))?;
        match &self.hostname {
            Some(name) if name.is_empty() || name.len() > 63 || !name.chars().all(named) => {
                Err(Refusal::caller(format!("--hostname {name:?}: use at most 63 letters, digits, dots and hyphens")))
            }
            _ => Ok(()),
        }
    }
}

impl Shape {
    /// Whether it leaves a signed task what its user signed: with other libraries in the system's place it would be another
    /// program. (A whole other root is a choice that the record shows.)
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check_for_task(&self) -> Result<(), Refusal> {
        if self.rootfs {
            return Err(Refusal::policy(
                "another system's root can make another program of a task than its user signed; leave --rootfs out, or the signed task",
            ));
        }
        let system =
            |target: &&PathBuf| SYSTEM.iter().chain(&["etc"]).any(|name| target.starts_with(Path::new("/").join(name)));
        match self.binds.iter().map(|bind| &bind.target).chain(&self.tmpfs).find(system) {
            Some(target) => Err(Refusal::policy(format!(
                "{} can make another program of a task than its user signed; mount on a folder that is not the system's",
                target.display()
            ))),
            None => Ok(()),
        }
    }
}

/// A mount must not take the place of what the sandbox makes itself.
fn check_target(target: &Path) -> Result<(), Refusal> {
    let plain = target.is_absolute() && target.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    let inside = target.strip_prefix("/").unwrap_or(target);
    if !plain || inside.as_os_str().is_empty() {
        let what = target.display();
        return Err(Refusal::caller(format!("{what} is no place to mount on; give an absolute path without . and ..")));
    }
    let covers = OWN.iter().any(|own| Path::new(own).starts_with(inside));
    let hidden = ["dev", "proc", "sys", "run"].iter().any(|own| inside.starts_with(own));
    if covers || hidden {
        let what = target.display();
        return Err(Refusal::caller(format!(
            "{what} is the sandbox's own; mount on another folder, or below /work or /tmp"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_sandbox_makes_stays_its_own() {
        for bad in
            ["/", "data", "/a/../b", "/proc", "/proc/x", "/dev/shm", "/work", "/tmp", "/var", "/var/tmp", "/run/x"]
        {
            let shape = Shape { tmpfs: vec![bad.into()], ..Shape::default() };
            assert!(shape.check().is_err(), "{bad}");
        }
        let bound = |target: &str, writable| {
            let binds = vec![Bind { target: target.into(), writable }];
            Shape { binds, ..Shape::default() }.check().is_ok()
        };
        assert!(bound("/tmp", true) && bound("/var/tmp", true) && !bound("/tmp", false) && !bound("/work", true));
        for good in ["/data", "/work/x", "/tmp/y", "/var/lib", "/opt/a/b", "/home/user"] {
            let shape = Shape { tmpfs: vec![good.into()], ..Shape::default() };
            assert!(shape.check().is_ok(), "{good}");
        }
    }
}
