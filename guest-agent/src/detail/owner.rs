//! Which process of a payload holds a socket, and who it is, as far as `/proc` says.
//!
//! Read through `/proc` of the agent's own PID namespace and in numbers of the agent's own user namespace; turned into the
//! payload's. A process that made itself a namespace inside the payload's is still named by the payload's numbers: what it
//! calls itself in there is its own choice and would tell nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::{OFlag, open, openat, readlinkat},
    sys::stat::Mode,
    unistd::Pid,
};

/// Number of a user or group that is not known, or has none in the payload: what the kernel itself calls no user.
pub const UNKNOWN: u32 = u32::MAX;

/// Descriptors that are looked at in one look at one payload (about a microsecond each).
const DESCRIPTORS: usize = 8192;
/// What one process more costs, in descriptors.
const PROCESS: usize = 8;
/// PID 1 of a payload is among the first of its group.
const FIRST: usize = 16;
/// Longest text read from a file of `/proc`.
const TEXT: u64 = 16 * 1024;
/// Longest path of a program, as `Connection` says.
const PATH: usize = 256;

/// A process that holds a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// It, its parent, its session; 0 for one outside of the payload.
    pub pid: (i32, i32, i32),
    /// Real and effective user.
    pub uid: (u32, u32),
    /// Real and effective group.
    pub gid: (u32, u32),
    /// Device number of its terminal.
    pub tty: u32,
    /// Its program.
    pub executable: String,
}

impl Owner {
    /// Nobody knows; but perhaps as whom the socket was made.
    #[must_use]
    pub const fn nobody(made_by: u32) -> Self {
        Self { pid: (0, 0, 0), uid: (UNKNOWN, made_by), gid: (UNKNOWN, UNKNOWN), tty: 0, executable: String::new() }
    }
}

/// Numbers of one user namespace as another one sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids(Vec<(u32, u32, u32)>);

impl Ids {
    /// Of the text of `uid_map` or `gid_map`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        // The kernel takes no more lines than these.
        let lines = text.lines().take(340).filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
        });
        Self(lines.collect())
    }

    /// What somebody is called inside.
    #[must_use]
    pub fn inside(&self, outside: u32) -> u32 {
        let within = |&(inside, first, count): &(u32, u32, u32)| {
            let offset = outside.checked_sub(first).filter(|offset| *offset < count)?;
            inside.checked_add(offset)
        };
        self.0.iter().find_map(within).unwrap_or(UNKNOWN)
    }
}

/// Users and groups of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Users.
    pub users: Ids,
    /// Groups.
    pub groups: Ids,
}

impl Names {
    fn of(process: &Process) -> io::Result<Self> {
        Ok(Self { users: Ids::parse(&process.text("uid_map")?), groups: Ids::parse(&process.text("gid_map")?) })
    }

    /// Those of the payload that these processes belong to: of its PID 1, if it is among them.
    #[must_use]
    pub fn find(pids: &[Pid]) -> Option<Self> {
        let processes = pids.iter().take(FIRST).filter_map(|pid| Process::open(*pid).ok());
        processes.into_iter().find_map(|process| {
            let status = Status::parse(&process.text("status").ok()?)?;
            (status.pids.get(1..) == Some(&[1])).then(|| Self::of(&process).ok())?
        })
    }
}

/// A process that cannot become another one: its folder stays its own when the number is given anew.
struct Process(OwnedFd);

impl Process {
    fn open(pid: Pid) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(Path::new(&format!("/proc/{pid}")), flags, Mode::empty())?))
    }

    fn text(&self, name: &str) -> io::Result<String> {
        let file = openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut bytes = Vec::with_capacity(2048);
        File::from(file).take(TEXT).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn executable(&self) -> String {
        let path = readlinkat(self.0.as_fd(), "exe").unwrap_or_default();
        // Ends up on terminals.
        let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        let mut path: String = path.to_string_lossy().chars().map(clean).collect();
        path.truncate((0..=PATH.min(path.len())).rev().find(|end| path.is_char_boundary(*end)).unwrap_or(0));
        path
    }

    fn owner(&self, names: Option<&Names>) -> Option<Owner> {
        let status = Status::parse(&self.text("status").ok()?)?;
        let own;
        let names = match names {
            Some(names) => names,
            None => {
                own = Names::of(self).ok()?;
                &own
            }
        };
        let parent = Self::open(Pid::from_raw(status.parent)).and_then(|parent| parent.text("status"));
        let parent = parent.ok().and_then(|text| Status::parse(&text));
        Some(Owner {
            pid: status.numbers(parent.as_ref()),
            uid: (names.users.inside(status.uid.0), names.users.inside(status.uid.1)),
            gid: (names.groups.inside(status.gid.0), names.groups.inside(status.gid.1)),
            tty: self.text("stat").ok().and_then(|text| tty(&text)).unwrap_or(0),
            executable: self.executable(),
        })
    }
}

/// What `/proc/PID/status` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its number here and in each PID namespace below.
    pub pids: Vec<i32>,
    /// Its session's.
    pub sessions: Vec<i32>,
    /// Its parent's number here.
    pub parent: i32,
    /// Real and effective.
    pub uid: (u32, u32),
    /// Real and effective.
    pub gid: (u32, u32),
}

impl Status {
    /// Of the file's text. A process may choose its name, but no line breaks for it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        // The kernel nests no deeper than 32.
        let list =
            |key| line(key)?.split_whitespace().take(33).map(|word| word.parse().ok()).collect::<Option<Vec<i32>>>();
        let two = |key| {
            let mut words = line(key)?.split_whitespace().map(str::parse);
            Some((words.next()?.ok()?, words.next()?.ok()?))
        };
        Some(Self {
            pids: list("NSpid:")?,
            sessions: list("NSsid:")?,
            parent: line("PPid:")?.trim().parse().ok()?,
            uid: two("Uid:")?,
            gid: two("Gid:")?,
        })
    }

    /// Process, parent and session as the payload numbers them: one PID namespace below the agent's, or in the agent's own
    /// where the payload has none.
    fn numbers(&self, parent: Option<&Self>) -> (i32, i32, i32) {
        let level = usize::from(self.pids.len() > 1);
        let at = |list: &[i32]| list.get(level).copied().unwrap_or(0);
        (at(&self.pids), parent.map_or(0, |parent| at(&parent.pids)), at(&self.sessions))
    }
}

/// Device number of the terminal in the text of `/proc/PID/stat`. The name in it may hold anything, also brackets.
fn tty(text: &str) -> Option<u32> {
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(4)?.parse::<i32>().ok().map(i32::cast_unsigned)
}

/// Number of the socket that a link of `/proc/PID/fd` names.
fn inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The processes that hold these sockets; of several that hold one, the one that is younger in its group. Those not found
/// are missing: on their way to another process, closed meanwhile, or behind more descriptors than one look takes.
#[must_use]
pub fn find(pids: &[Pid], mut wanted: BTreeSet<u32>, names: Option<&Names>) -> BTreeMap<u32, Owner> {
    let (mut found, mut left) = (BTreeMap::new(), DESCRIPTORS);
    for pid in pids.iter().rev() {
        if wanted.is_empty() || left < PROCESS {
            break;
        }
        left -= PROCESS;
        // Opened before its descriptors are read: if the number is somebody else's by now, nothing can be read here.
        let Ok(process) = Process::open(*pid) else { continue };
        let held = held(*pid, &wanted, &mut left);
        if held.is_empty() {
            continue;
        }
        let Some(owner) = process.owner(names) else { continue };
        for inode in held {
            wanted.remove(&inode);
            found.insert(inode, owner.clone());
        }
    }
    found
}

/// Those of the sockets that a process holds.
fn held(pid: Pid, wanted: &BTreeSet<u32>, left: &mut usize) -> BTreeSet<u32> {
    let mut held = BTreeSet::new();
    let Ok(folder) = open(Path::new(&format!("/proc/{pid}/fd")), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
    else {
        return held;
    };
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return held };
    for entry in entries.map_while(Result::ok) {
        if *left == 0 || held.len() == wanted.len() {
            break;
        }
        *left -= 1;
        let socket = link(folder.as_fd(), &entry).filter(|inode| wanted.contains(inode));
        held.extend(socket);
    }
    held
}

fn link(folder: BorrowedFd<'_>, entry: &fs::DirEntry) -> Option<u32> {
    inode(readlinkat(folder, entry.file_name().as_os_str()).ok()?.to_str()?)
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
