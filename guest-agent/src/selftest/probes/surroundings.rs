//! What a payload finds around it before it has done anything.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access, gethostname};

use super::{Probe, Stage, Verdict};
use crate::{
    sandbox::manifest::counted,
    sandbox::{HOME, HOSTNAME},
    selftest::{Orders, broken, held, not_tested},
};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "home",
        rules: &["R-ISO-17", "R-ISO-18"],
        what: "the home folder holds files of somebody else",
        stage: Stage::Attack,
        run: home,
    },
    Probe {
        name: "namespaces",
        rules: &["R-ISO-1", "R-ISO-8", "R-ISO-9", "R-ISO-10", "R-ISO-37"],
        what: "a namespace is the VM's",
        stage: Stage::Attack,
        run: namespaces,
    },
    Probe {
        name: "hostname",
        rules: &["R-ISO-1"],
        what: "the host name is the VM's",
        stage: Stage::Attack,
        run: hostname,
    },
    Probe {
        name: "environment",
        rules: &["R-ISO-3", "R-ISO-20"],
        what: "the environment holds a variable that nobody allowed",
        stage: Stage::Attack,
        run: environment,
    },
    Probe {
        name: "search-paths",
        rules: &["R-ISO-19", "R-ISO-20"],
        what: "a folder that programs or libraries are looked for in is writable and not private",
        stage: Stage::Attack,
        run: search_paths,
    },
    Probe {
        name: "mounts",
        rules: &["R-ISO-2", "R-ISO-8"],
        what: "something is mounted that is not on the list",
        stage: Stage::Attack,
        run: mounts,
    },
    Probe {
        name: "writable-mounts",
        rules: &["R-ISO-16", "R-ISO-19", "R-ISO-34"],
        what: "something is writable that is not private",
        stage: Stage::Attack,
        run: writable_mounts,
    },
    Probe {
        name: "mount-flags",
        rules: &["R-ISO-23"],
        what: "a mount lets set-user-id bits or device files work",
        stage: Stage::Attack,
        run: mount_flags,
    },
    Probe {
        name: "devices",
        rules: &["R-ISO-8", "R-ISO-29"],
        what: "/dev holds more than the harmless devices",
        stage: Stage::Attack,
        run: devices,
    },
];

/// Variables that the sandbox sets.
const VARIABLES: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TERM", "VESTIGO_PAYLOAD_UID"];
/// Variables whose value is a list of folders to load from.
const SEARCHED: [&str; 7] = ["PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PERL5LIB", "ROOTSYS", "CLASSPATH"];
/// Folders of this payload alone.
const PRIVATE: [&str; 7] = [HOME, "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/dev/pts", "/proc"];
const SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
const ETC: [&str; 9] = [
    "/etc/resolv.conf",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/etc/pki",
    "/etc/alternatives",
    "/etc/localtime",
];
const DEVICES: [&str; 14] = [
    "null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "mqueue", "fd", "stdin", "stdout",
    "stderr",
];

fn home(_: &Orders) -> Verdict {
    let home = env::var_os("HOME").map_or_else(|| PathBuf::from(HOME), PathBuf::from);
    match fs::read_dir(&home).map(|mut entries| entries.next()) {
        Ok(None) => held(format!("{} is empty", home.display())),
        Ok(Some(entry)) => {
            let name = entry.map(|entry| entry.file_name().display().to_string()).unwrap_or_default();
            broken(format!("{} holds {name:?} from before", home.display()))
        }
        Err(error) => broken(format!("{} cannot be read: {error}", home.display())),
    }
}

/// The namespaces of a process, by kind.
pub(crate) fn namespaces_of(process: &str) -> BTreeMap<String, String> {
    let kinds = ["user", "mnt", "pid", "ipc", "net", "uts", "cgroup"];
    let link = |kind: &str| fs::read_link(format!("/proc/{process}/ns/{kind}"));
    kinds.iter().filter_map(|kind| Some(((*kind).to_owned(), link(kind).ok()?.display().to_string()))).collect()
}

fn namespaces(orders: &Orders) -> Verdict {
    let own = namespaces_of("self");
    if orders.namespaces.is_empty() || own.len() < 7 {
        return not_tested("this kernel does not tell which namespaces a process is in");
    }
    let same: Vec<_> = own.iter().filter(|(kind, link)| orders.namespaces.get(*kind) == Some(link)).collect();
    match same.first() {
        None => held("user, mnt, pid, ipc, net, uts and cgroup are others than the VM's"),
        Some((kind, _)) => broken(format!("{} of 7 are the VM's own, among them {kind}", same.len())),
    }
}

fn hostname(orders: &Orders) -> Verdict {
    if orders.hostname == HOSTNAME {
        return not_tested("the VM itself has the name that payloads get");
    }
    match gethostname() {
        Ok(name) if name == *orders.hostname => broken(format!("the VM's name {} is seen", name.display())),
        Ok(name) => held(format!("the name is {}", name.display())),
        Err(error) => not_tested(format!("the name cannot be read: {error}")),
    }
}

fn environment(_: &Orders) -> Verdict {
    let names = env::vars_os().map(|(name, _)| name);
    let more: Vec<_> = names.filter(|name| !VARIABLES.iter().any(|known| name == *known)).collect();
    match more.first() {
        None => held("nothing but the sandbox's own variables"),
        Some(name) => broken(format!("{} more, among them {}", more.len(), name.display())),
    }
}

fn search_paths(_: &Orders) -> Verdict {
    let listed = |name: &str| env::var_os(name).map(|list| env::split_paths(&list).collect::<Vec<_>>());
    let folders: Vec<PathBuf> = SEARCHED.iter().filter_map(|name| listed(name)).flatten().collect();
    let private = |path: &Path| PRIVATE.iter().any(|own| path.starts_with(own));
    let writable = |path: &&PathBuf| access(path.as_path(), AccessFlags::W_OK).is_ok() && !private(path);
    let relative = folders.iter().find(|path| !path.is_absolute());
    match (folders.iter().find(writable), relative) {
        (Some(path), _) => broken(format!("{} can be written", path.display())),
        (None, Some(path)) => {
            broken(format!("{:?} is looked for in whatever folder the payload is in", path.display()))
        }
        (None, None) => held(format!("{}, none writable", counted(folders.len(), "folder"))),
    }
}

/// A line of mountinfo(5).
struct Mounted {
    at: PathBuf,
    options: String,
    writable: bool,
}

fn mounted() -> Vec<Mounted> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mount_line).collect()
}

fn mount_line(line: &str) -> Option<Mounted> {
    let (own, file_system) = line.split_once(" - ")?;
    let mut fields = own.split(' ').skip(4);
    let (at, options) = (fields.next()?, fields.next()?.to_owned());
    let super_options = file_system.split(' ').nth(2)?;
    let has = |options: &str| options.split(',').any(|option| option == "rw");
    let writable = has(&options) && has(super_options);
    Some(Mounted { at: at.replace("\\040", " ").into(), options, writable })
}

fn mounts(orders: &Orders) -> Verdict {
    let below = |list: &[&str], path: &Path| list.iter().any(|known| path.starts_with(known));
    let known = |path: &Path| {
        path == Path::new("/")
            || path == Path::new("/dev")
            // The made-up one; that it is not the VM's is for `foreign-files` to see.
            || path == Path::new("/etc")
            || PRIVATE.iter().any(|own| path == Path::new(own))
            || DEVICES.iter().any(|name| path == Path::new("/dev").join(name))
            || below(&SYSTEM, path)
            || below(&ETC, path)
            || orders.shown.iter().any(|shown| path.starts_with(shown))
    };
    let all = mounted();
    let strange: Vec<_> = all.iter().filter(|mount| !known(&mount.at)).collect();
    match strange.first() {
        None if all.is_empty() => broken("the list of mounts cannot be read"),
        None => held(format!("{} mounts, all on the list", all.len())),
        Some(_) => {
            let some: Vec<_> = strange.iter().take(5).map(|mount| mount.at.display().to_string()).collect();
            broken(format!("{} more, among them {}", strange.len(), some.join(" ")))
        }
    }
}

fn writable_mounts(_: &Orders) -> Verdict {
    let device = |path: &Path| DEVICES.iter().take(6).any(|name| path == Path::new("/dev").join(name));
    let private = |path: &Path| PRIVATE.iter().any(|own| path == Path::new(own));
    let all = mounted();
    match all.iter().find(|mount| mount.writable && !private(&mount.at) && !device(&mount.at)) {
        None if all.is_empty() => broken("the list of mounts cannot be read"),
        None => held("only the payload's own folders are writable"),
        Some(mount) => broken(format!("{} is writable", mount.at.display())),
    }
}

fn mount_flags(_: &Orders) -> Verdict {
    let all = mounted();
    let lacks = |mount: &Mounted, flag: &str| !mount.options.split(',').any(|option| option == flag);
    let devices = |path: &Path| path.starts_with("/dev");
    let weak = |mount: &&Mounted| lacks(mount, "nosuid") || (lacks(mount, "nodev") && !devices(&mount.at));
    match all.iter().find(weak) {
        None if all.is_empty() => broken("the list of mounts cannot be read"),
        None => held(format!("{} mounts, all nosuid, and all but those of /dev nodev", all.len())),
        Some(mount) => broken(format!("{} is mounted {}", mount.at.display(), mount.options)),
    }
}

fn devices(_: &Orders) -> Verdict {
    let Ok(entries) = fs::read_dir("/dev") else { return broken("/dev cannot be read") };
    let names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    match names.iter().find(|name| !DEVICES.iter().any(|known| *name == known)) {
        None => held(format!("{} entries, all on the list", names.len())),
        Some(name) => broken(format!("/dev/{} is there", name.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_writable_only_if_its_file_system_is_too() {
        let line = |own: &str, file_system: &str| {
            mount_line(&format!("1 2 0:3 / /a\\040b {own} shared:1 - tmpfs tmpfs {file_system}"))
                .map(|m| (m.at, m.writable))
        };
        assert_eq!(line("rw,nosuid", "rw,size=1k"), Some(("/a b".into(), true)));
        assert_eq!(line("ro,nosuid", "rw"), Some(("/a b".into(), false)));
        assert_eq!(line("rw,nosuid", "ro"), Some(("/a b".into(), false)));
        assert!(mount_line("nonsense").is_none());
    }
}
