//! The options of `apptainer exec`, `run` and `test` (1.0 to 1.4, and of Singularity 3), and what becomes of each.

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The sandbox does at least that, whether asked or not.
    Met,
    /// Its value goes to this option of `guest-agent exec`.
    To(&'static str),
    /// Has a rule of its own.
    Special(Special),
    /// Cannot be had, and why, or what to do instead.
    Refused(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Bind,
    Home,
    Workdir,
    Scratch,
    Env,
    EnvFile,
    NoMount,
    Memory,
}

/// One option.
#[derive(Debug)]
pub(super) struct Known {
    /// Without the dashes.
    pub name: &'static str,
    /// One letter.
    pub short: Option<char>,
    /// A value follows.
    pub value: bool,
    pub fate: Fate,
}

use Fate::{Met, Refused, Special as By, To};

const fn known(name: &'static str, short: Option<char>, value: bool, fate: Fate) -> Known {
    Known { name, short, value, fate }
}

const fn flag(name: &'static str, fate: Fate) -> Known {
    known(name, None, false, fate)
}

const fn value(name: &'static str, fate: Fate) -> Known {
    known(name, None, true, fate)
}

const GPU: Fate = Refused("devices of graphics cards are not shown to payloads; leave it out");
const WRITE: Fate = Refused("the image is read-only; write below $HOME, /tmp or a folder given with --bind");
const NETWORK: Fate = Refused("each payload has a network of its own that the agent makes; leave it out");
const RIGHTS: Fate = Refused("a payload has no rights besides its own, also not seemingly; leave it out");
const CGROUP: Fate = Refused("only --memory, --cpus and --pids-limit can be set");
const FETCH: Fate = Refused("no image is fetched here; name an unpacked one");
const CRYPT: Fate = Refused("encrypted images are not opened here; name an unpacked one");

pub(super) const KNOWN: &[Known] = &[
    known("bind", Some('B'), true, By(Special::Bind)),
    known("home", Some('H'), true, By(Special::Home)),
    known("workdir", Some('W'), true, By(Special::Workdir)),
    known("scratch", Some('S'), true, By(Special::Scratch)),
    value("env", By(Special::Env)),
    value("env-file", By(Special::EnvFile)),
    value("no-mount", By(Special::NoMount)),
    value("memory", By(Special::Memory)),
    value("pwd", To("chdir")),
    value("cwd", To("chdir")),
    value("hostname", To("hostname")),
    value("cpus", To("cpus")),
    value("pids-limit", To("pids")),
    known("cleanenv", Some('e'), false, Met),
    known("contain", Some('c'), false, Met),
    known("containall", Some('C'), false, Met),
    known("ipc", Some('i'), false, Met),
    known("pid", Some('p'), false, Met),
    known("userns", Some('u'), false, Met),
    flag("uts", Met),
    flag("no-home", Met),
    flag("no-privs", Met),
    flag("no-setuid", Met),
    flag("no-nv", Met),
    flag("no-rocm", Met),
    flag("no-eval", Met),
    flag("no-https", Met),
    flag("nohttps", Met),
    flag("disable-cache", Met),
    flag("no-tmp-sandbox", Met),
    flag("underlay", Met),
    value("drop-caps", Met),
    flag("nv", GPU),
    flag("nvccli", GPU),
    flag("rocm", GPU),
    known("writable", Some('w'), false, WRITE),
    flag("writable-tmpfs", WRITE),
    known("overlay", Some('o'), true, WRITE),
    flag("compat", WRITE),
    known("net", Some('n'), false, NETWORK),
    value("network", NETWORK),
    value("network-args", NETWORK),
    value("dns", NETWORK),
    known("fakeroot", Some('f'), false, RIGHTS),
    flag("allow-setuid", RIGHTS),
    flag("keep-privs", RIGHTS),
    value("add-caps", RIGHTS),
    value("security", Refused("labels of SELinux, AppArmor and seccomp are the agent's; leave it out")),
    value("apply-cgroups", CGROUP),
    value("blkio-weight", CGROUP),
    value("blkio-weight-device", CGROUP),
    value("cpu-shares", CGROUP),
    value("cpuset-cpus", CGROUP),
    value("cpuset-mems", CGROUP),
    value("memory-reservation", CGROUP),
    value("memory-swap", CGROUP),
    flag("oom-kill-disable", CGROUP),
    flag("docker-login", FETCH),
    value("docker-username", FETCH),
    value("docker-password", FETCH),
    value("docker-host", FETCH),
    value("authfile", FETCH),
    flag("passphrase", CRYPT),
    value("pem-path", CRYPT),
    value("mount", Refused("write it as --bind SRC:DST[:ro]")),
    value("fusemount", Refused("mount it in the VM and show it with --bind")),
    value("app", Refused("apps inside of images are not looked for; name the program")),
    value("shell", Refused("name the shell as the command")),
    flag("sharens", Refused("payloads share nothing")),
    flag("no-init", Refused("a payload always has an init of its own; leave it out")),
    flag("no-umask", Refused("the umask is 0022; set another one in the payload")),
    flag("unsquash", Refused("image files are not opened here; name an unpacked image")),
    flag("vm", Refused("there are no virtual machines in here; leave it out")),
    flag("vm-err", Refused("there are no virtual machines in here; leave it out")),
];

/// Options before the verb: how much is said.
pub(super) const GLOBAL: &[(&str, &str)] =
    &[("--quiet", "-q"), ("--silent", "-s"), ("--debug", "-d"), ("--verbose", "-v"), ("--nocolor", "--nocolor")];

pub(super) fn long(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

pub(super) fn short(letter: char) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.short == Some(letter))
}
