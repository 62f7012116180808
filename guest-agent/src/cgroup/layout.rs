//! Where the kernel keeps what: cgroup v2, v1, or both side by side (hybrid). A parser over the kernel's own texts; the only
//! file that it cannot name beforehand (`cgroup.controllers` of the agent's own group) is asked for by a function.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Component, Path, PathBuf},
};

/// One thing that a group of processes is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Knowing and killing all of its processes.
    Tree,
    /// Stopping all of them at once.
    Freezer,
    /// A limit on memory and swap.
    Memory,
    /// A limit on the number of processes and threads.
    Pids,
    /// A limit on processor time.
    Cpu,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tree, Self::Freezer, Self::Memory, Self::Pids, Self::Cpu];
    /// Those that limit something.
    pub const LIMITS: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];
    /// Those that are a controller of their own on v1, in the order in which one is taken for [`Part::Tree`] without v2.
    const V1: [Self; 4] = [Self::Freezer, Self::Pids, Self::Memory, Self::Cpu];

    /// The kernel's name of the controller.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tree => "cgroup",
            Self::Freezer => "freezer",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a part is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// Nothing of it in `/proc/cgroups`, nor on v2.
    #[error("this kernel was built without it")]
    NotInKernel,
    /// `enabled` is 0.
    #[error("it is switched off on the kernel's command line (cgroup_disable=)")]
    SwitchedOff,
    /// No mount of it here.
    #[error("it is not mounted")]
    NotMounted,
    /// Mounted read-only, as in most containers.
    #[error("it is mounted read-only")]
    ReadOnly,
    /// v2 has it, but not for the agent's own group.
    #[error("the agent's own group does not have it; start the agent as a service with Delegate=yes")]
    NotDelegated,
    /// The agent's own group lies outside of what is mounted.
    #[error("the agent's own group lies outside of the mount")]
    Unreachable,
    /// It was there and could not be used.
    #[error("{0}")]
    Refused(String),
}

/// Which of the kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One tree per controller, or per set of them.
    One,
    /// One tree for all.
    Two,
}

/// One tree of groups that can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Interface.
    pub version: Version,
    /// The folder of the group that the agent was started in.
    pub own: PathBuf,
    /// What it is good for, [`Part::Tree`] apart.
    pub parts: Vec<Part>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    hierarchies: Vec<Hierarchy>,
    absent: BTreeMap<Part, Absence>,
}

/// The kernel's texts.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// `/proc/self/mountinfo`.
    pub mountinfo: &'a str,
    /// `/proc/self/cgroup`.
    pub own: &'a str,
    /// `/proc/cgroups`; empty where there is none.
    pub cgroups: &'a str,
}

impl Layout {
    /// Reads this process's.
    #[must_use]
    pub fn detect() -> Self {
        // A text that cannot be read is a text without anything in it: every part is then missing, with its reason.
        let read = |path: &str| fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let (mountinfo, own) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
        let sources = Sources { mountinfo: &mountinfo, own: &own, cgroups: &read("/proc/cgroups") };
        Self::parse(&sources, |group| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default())
    }

    /// Reads a machine's. `controllers` gives the content of `cgroup.controllers` in a folder.
    #[must_use]
    pub fn parse(sources: &Sources<'_>, controllers: impl Fn(&Path) -> String) -> Self {
        let mounts: Vec<Mount> = sources.mountinfo.lines().filter_map(Mount::parse).collect();
        let mounts: Vec<&Mount> = visible(&mounts);
        let groups: Vec<OwnGroup> = sources.own.lines().filter_map(OwnGroup::parse).collect();
        let kernel = Kernel::parse(sources.cgroups);
        let mut layout = Self::default();

        let two = locate(&mounts, &groups, None);
        let on_two = two.as_ref().map(|own| controllers(own)).unwrap_or_default();
        let on_two: Vec<&str> = on_two.split_whitespace().collect();
        let mut second = Vec::new();
        for part in Part::V1 {
            match locate(&mounts, &groups, Some(part)) {
                Ok(own) => layout.add_v1(own, part),
                // Freezing needs no controller there.
                Err(_) if part == Part::Freezer && two.is_ok() => {}
                Err(_) if on_two.contains(&part.name()) => second.push(part),
                Err(absence) => {
                    let why = kernel.why_not(part, absence, two.as_ref().err());
                    layout.absent.insert(part, why);
                }
            }
        }
        match two {
            Ok(own) => {
                // Its freezer reaches the processes at once and tells when it is done: v1's is left alone.
                for hierarchy in &mut layout.hierarchies {
                    hierarchy.parts.retain(|p| *p != Part::Freezer);
                }
                layout.hierarchies.retain(|h| !h.parts.is_empty());
                layout.absent.remove(&Part::Freezer);
                second.insert(0, Part::Freezer);
                layout.hierarchies.insert(0, Hierarchy { version: Version::Two, own, parts: second });
            }
            Err(absence) if layout.hierarchies.is_empty() => {
                layout.absent.insert(Part::Tree, absence);
            }
            Err(_) => {}
        }
        layout
    }

    fn add_v1(&mut self, own: PathBuf, part: Part) {
        // Controllers that are mounted together share one folder.
        match self.hierarchies.iter_mut().find(|h| h.own == own) {
            Some(hierarchy) => hierarchy.parts.push(part),
            None => self.hierarchies.push(Hierarchy { version: Version::One, own, parts: vec![part] }),
        }
    }

    /// A layout put together by hand: imitations of one in tests.
    #[must_use]
    pub const fn of(hierarchies: Vec<Hierarchy>, absent: BTreeMap<Part, Absence>) -> Self {
        Self { hierarchies, absent }
    }

    /// What can be used, the one that [`Part::Tree`] lives in first.
    #[must_use]
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Where a part lives.
    ///
    /// # Errors
    /// Why it is missing.
    pub fn home(&self, part: Part) -> Result<&Hierarchy, Absence> {
        let found = match part {
            Part::Tree => self.hierarchies.first(),
            _ => self.hierarchies.iter().find(|h| h.parts.contains(&part)),
        };
        found.ok_or_else(|| self.absent.get(&part).cloned().unwrap_or(Absence::NotMounted))
    }
}

/// A line of mountinfo that is about groups.
#[derive(Debug)]
struct Mount {
    version: Version,
    controllers: Vec<String>,
    root: PathBuf,
    at: PathBuf,
    read_only: bool,
}

impl Mount {
    /// `31 23 0:28 /root /mount/point options tags… - type source super-options`, proc(5).
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let version = match right.next()? {
            "cgroup2" => Version::Two,
            "cgroup" => Version::One,
            _ => return None,
        };
        let super_options = right.nth(1).unwrap_or_default();
        let mut left = left.split(' ').skip(3);
        let (root, at, options) = (left.next()?, left.next()?, left.next()?);
        let read_only = [options, super_options].iter().any(|o| o.split(',').any(|o| o == "ro"));
        let controllers = match version {
            Version::One => super_options.split(',').map(str::to_owned).collect(),
            Version::Two => Vec::new(),
        };
        Some(Self { version, controllers, root: unescape(root), at: unescape(at), read_only })
    }

    fn carries(&self, part: Option<Part>) -> bool {
        match part {
            None => self.version == Version::Two,
            Some(part) => self.version == Version::One && self.controllers.iter().any(|c| c == part.name()),
        }
    }
}

/// Of mounts on top of each other only the last can be reached.
fn visible(mounts: &[Mount]) -> Vec<&Mount> {
    let hidden = |(index, mount): (usize, &Mount)| mounts.iter().skip(index + 1).any(|later| later.at == mount.at);
    mounts.iter().enumerate().filter(|(i, m)| !hidden((*i, m))).map(|(_, mount)| mount).collect()
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(first));
        rest = after.get(if code.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// A line of `/proc/self/cgroup`: `4:memory:/path`, on v2 `0::/path`.
#[derive(Debug)]
struct OwnGroup<'a> {
    controllers: Vec<&'a str>,
    path: &'a Path,
}

impl<'a> OwnGroup<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let controllers = controllers.split(',').filter(|c| !c.is_empty()).collect();
        path.starts_with('/').then(|| Self { controllers, path: Path::new(path) })
    }

    fn is_in(&self, part: Option<Part>) -> bool {
        part.map_or(self.controllers.is_empty(), |part| self.controllers.contains(&part.name()))
    }
}

/// The folder of the own group in the tree of a v1 controller, or of v2 (`None`).
fn locate(mounts: &[&Mount], groups: &[OwnGroup<'_>], part: Option<Part>) -> Result<PathBuf, Absence> {
    let mut why = Absence::NotMounted;
    let Some(own) = groups.iter().find(|g| g.is_in(part)) else { return Err(why) };
    for mount in mounts.iter().filter(|m| m.carries(part)) {
        match below(mount, own.path) {
            Some(path) if !mount.read_only => return Ok(path),
            Some(_) => why = Absence::ReadOnly,
            None if why == Absence::NotMounted => why = Absence::Unreachable,
            None => {}
        }
    }
    Err(why)
}

/// Container engines mount a group as the root, with (`/` in both texts) or without (the whole path in both) a namespace.
fn below(mount: &Mount, own: &Path) -> Option<PathBuf> {
    let inside = own.strip_prefix(&mount.root).ok()?;
    // `/../x`: outside of the namespace. " (deleted)": nothing can be made there any more.
    let plain = inside.components().all(|c| matches!(c, Component::Normal(_)));
    let deleted = own.as_os_str().as_encoded_bytes().ends_with(b" (deleted)");
    let up = mount.root.components().any(|c| c == Component::ParentDir);
    (plain && !deleted && !up)
        .then(|| if inside.as_os_str().is_empty() { mount.at.clone() } else { mount.at.join(inside) })
}

/// `/proc/cgroups`: name, hierarchy, number of groups, enabled. Newer kernels list v1's controllers only, or have none.
#[derive(Debug, Default)]
struct Kernel {
    listed: BTreeMap<String, Listed>,
}

#[derive(Debug, Clone, Copy)]
struct Listed {
    enabled: bool,
    /// To a tree of v1, whether mounted here or not: v2 cannot have it.
    attached: bool,
}

impl Kernel {
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next().filter(|name| !name.starts_with('#'))?.to_owned();
            let attached = words.next()? != "0";
            Some((name, Listed { enabled: words.nth(1)? != "0", attached }))
        };
        Self { listed: text.lines().filter_map(line).collect() }
    }

    /// `v2`: why that is no alternative, if the whole of it is not.
    fn why_not(&self, part: Part, on_v1: Absence, v2: Option<&Absence>) -> Absence {
        match (self.listed.get(part.name()), v2) {
            (Some(Listed { enabled: false, .. }), _) => Absence::SwitchedOff,
            _ if on_v1 != Absence::NotMounted => on_v1,
            (Some(Listed { attached: true, .. }), _) => Absence::NotMounted,
            (None, _) if !self.listed.is_empty() => Absence::NotInKernel,
            (_, Some(absence)) => absence.clone(),
            // Also without any list: a missing text proves nothing about the kernel.
            (_, None) => Absence::NotDelegated,
        }
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
