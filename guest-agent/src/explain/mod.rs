//! `guest-agent explain`: what `exec` with the same options would enforce here. Nothing is started, nothing changed.
//!
//! What the daemon decides by its configuration is read from the same file; whether it runs is asked. [`text`] prints it.

mod text;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use vestigo_model::Enforcement;

use crate::{
    cgroup::{
        Layout, Limits, Part,
        layout::{Hierarchy, Version},
    },
    cli::Explain,
    client,
    config::{self, Config},
    environment,
    network::{ipv6, uplink::Surroundings},
    protocol::Refusal,
    sandbox::{
        HOME, HOSTNAME, INSIDE,
        landlock::{self, Applied},
        manifest::{Facts, manifest},
        mounts::{DEVICES, ETC, SYSTEM},
        seccomp::{Mode, groups},
    },
    selftest::payload::status,
    shape::Shape,
    terminal,
};

/// Version of the JSON form.
pub const VERSION: u32 = 1;

/// Where the answers come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sources {
    /// The agent's version: this program's, which need not be the daemon's.
    pub agent: String,
    /// The kernel's.
    pub kernel: String,
    /// The configuration, in words.
    pub configuration: String,
    /// The daemon, in words.
    pub daemon: String,
}

/// A namespace of the payload's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// As the kernel names it.
    pub kind: &'static str,
    /// What it is good for here.
    pub what: &'static str,
}

/// Something in the file tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Where, inside.
    pub at: PathBuf,
    /// What lies there.
    pub what: String,
    /// Whether the payload may write there.
    pub writable: bool,
}

/// Refused system calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// The group's name.
    pub group: &'static str,
    /// Why.
    pub why: &'static str,
    /// Rules that it serves.
    pub rules: &'static [&'static str],
    /// Which, each with its answer.
    pub calls: Vec<String>,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Of what.
    pub part: &'static str,
    /// How much; `None` is no limit.
    pub value: Option<String>,
    /// Where it is set, or why it cannot be.
    pub place: String,
    /// Whether this machine can set it.
    pub possible: bool,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Version of this form.
    pub version: u32,
    /// Where it comes from.
    pub sources: Sources,
    /// Whether a sandbox that is kept ready will do.
    pub usual: bool,
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Who the payload is.
    pub ids: String,
    /// Host name.
    pub hostname: String,
    /// Where it starts.
    pub directory: PathBuf,
    /// The file tree.
    pub mounts: Vec<Place>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The system call filter.
    #[serde(rename = "system-calls")]
    pub system_calls: Vec<Calls>,
    /// Landlock.
    pub landlock: Applied,
    /// Limits and processes.
    pub limits: Vec<Limit>,
    /// The network, line by line.
    pub network: Vec<String>,
    /// Rule by rule, as the record would have it.
    pub isolation: BTreeMap<String, Enforcement>,
}

/// Explains. The result is the process's exit code: 0, or as `exec` for what it would refuse.
#[must_use]
pub fn run(options: &Explain) -> u8 {
    match explain(options) {
        Ok(explanation) => {
            if options.json {
                let text = serde_json::to_string(&explanation).unwrap_or_default() + "\n";
                let _ = io::stdout().write_all(text.as_bytes());
            } else {
                terminal::print(&explanation.to_string());
            }
            0
        }
        Err(Refusal { code, reason }) => {
            eprintln!("guest-agent: {reason}");
            code
        }
    }
}

/// Puts it together.
///
/// # Errors
/// What `exec` would refuse because of these options.
pub fn explain(options: &Explain) -> Result<Explanation, Refusal> {
    let (shape, _) = client::shape(&options.openings)?;
    shape.check()?;
    let env = pairs(&options.env)?;
    environment::check(&env, false)?;
    let (config, configuration) = configured(options.config.as_deref())?;
    let mode = if shape.nested { Mode::Nested } else { Mode::Strict };
    let landlock = landlock::prepare(&[], mode).map_err(|e| Refusal::system(e.to_string()))?.applied().clone();
    let layout = Layout::detect();
    let limits = in_force(&shape, &config, &layout)?;
    let (network, ipv6) = network(&config);
    let facts = Facts {
        shape: shape.clone(),
        exposed: !config.expose.is_empty(),
        limits,
        landlock: Some(landlock.clone()),
        token: None,
        ipv6,
    };
    Ok(Explanation {
        version: VERSION,
        sources: Sources {
            agent: env!("CARGO_PKG_VERSION").into(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            configuration,
            daemon: daemon(&options.socket),
        },
        usual: shape.is_usual(),
        namespaces: namespaces(shape.nested),
        ids: format!(
            "uid and gid {INSIDE} inside, one of its own from {} upwards in the VM; no groups, no capabilities, no_new_privs",
            config.uid_base
        ),
        hostname: shape.hostname.clone().unwrap_or_else(|| HOSTNAME.to_owned()),
        directory: shape.directory.clone().unwrap_or_else(|| HOME.into()),
        mounts: places(&shape, &config),
        environment: environment::whole(&env, "(its number)").into_iter().collect(),
        system_calls: calls(mode),
        landlock,
        limits: where_limits(&limits, &layout, &config),
        network,
        isolation: manifest(&facts),
    })
}

fn pairs(given: &[String]) -> Result<Vec<(String, String)>, Refusal> {
    let pair = |text: &String| {
        let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        pair.ok_or_else(|| Refusal::caller(format!("--env {text}: write it as KEY=VALUE")))
    };
    given.iter().map(pair).collect()
}

/// The configuration and where it is from. Only a file that somebody named has to be readable.
fn configured(path: Option<&Path>) -> Result<(Config, String), Refusal> {
    let usual = Path::new(config::PATH);
    match (path, usual.exists()) {
        (None, false) => Ok((Config::default(), format!("the built-in defaults ({} is not there)", usual.display()))),
        (None, true) => match Config::read(usual) {
            Ok(config) => Ok((config, usual.display().to_string())),
            Err(error) => Ok((Config::default(), format!("the built-in defaults ({error})"))),
        },
        (Some(path), _) => match Config::read(path) {
            Ok(config) => Ok((config, path.display().to_string())),
            Err(error) => Err(Refusal::caller(error.to_string())),
        },
    }
}

/// The daemon tells how it is, not how it is configured.
fn daemon(socket: &Path) -> String {
    match status(socket) {
        Ok(status) => {
            let link = if status.link.connected { "hostd answers" } else { "hostd does not answer" };
            format!("agent {} runs; fail_mode {}; {link}", status.agent, status.fail_mode)
        }
        Err(Refusal { reason, .. }) => reason,
    }
}

fn namespaces(nested: bool) -> Vec<Namespace> {
    let user = if nested { "one uid; it may make 16 more inside it" } else { "one uid; it may make no more" };
    [
        ("user", user),
        ("mnt", "a root of its own, with what is listed under mounts"),
        ("pid", "sees and reaches no process but its own; all are killed with the first"),
        ("ipc", "System V memory and POSIX queues of its own"),
        ("net", "an interface and abstract sockets of its own; it may make no other network namespace"),
        ("uts", "a host name of its own"),
        ("cgroup", "sees its own group as the root"),
    ]
    .into_iter()
    .map(|(kind, what)| Namespace { kind, what })
    .collect()
}

fn places(shape: &Shape, config: &Config) -> Vec<Place> {
    let mut all = Vec::new();
    let mut add = |at: PathBuf, what: &str, writable: bool| all.push(Place { at, what: what.to_owned(), writable });
    let root = Path::new("/");
    if shape.rootfs {
        add(root.into(), "the other system's root, read-only, without set-user-id and devices", false);
    } else {
        add(root.into(), "an empty folder in memory, read-only", false);
        for name in SYSTEM.iter().filter(|name| root.join(name).exists()) {
            add(root.join(name), "the VM's, read-only, without set-user-id and devices", false);
        }
    }
    add("/etc".into(), "passwd, group, hosts, hostname, nsswitch.conf and resolv.conf are made up", false);
    if !shape.rootfs {
        let etc = ETC.iter().filter(|name| root.join("etc").join(name).exists());
        for name in etc {
            add(root.join("etc").join(name), "the VM's, read-only", false);
        }
        for path in config.expose.iter().filter(|path| path.is_dir()) {
            add(path.clone(), "the VM's, by `expose`, read-only", false);
        }
    }
    add("/dev".into(), &format!("{}, a terminal multiplexer of its own", DEVICES.join(", ")), false);
    add("/proc".into(), "of its own PID namespace", true);
    let home = if shape.work { "the caller's folder; stays" } else { "empty, on the VM's disk; removed afterwards" };
    add(HOME.into(), home, true);
    for at in ["/tmp", "/var/tmp"] {
        add(at.into(), "empty, on the VM's disk; removed afterwards", true);
    }
    add("/dev/shm".into(), "empty, in memory, at most half of it", true);
    add("/dev/mqueue".into(), "queues of its own IPC namespace", true);
    for bind in &shape.binds {
        let what = if bind.writable { "the caller's; stays" } else { "shown by the caller, read-only" };
        add(bind.target.clone(), what, bind.writable);
    }
    for at in &shape.tmpfs {
        add(at.clone(), "empty, in memory, at most half of it", true);
    }
    all
}

fn calls(mode: Mode) -> Vec<Calls> {
    let listed = groups().iter().map(|group| Calls {
        group: group.name,
        why: group.why,
        rules: group.rules,
        calls: group.calls.iter().filter(|call| call.is_in(mode)).map(ToString::to_string).collect(),
    });
    listed.filter(|group| !group.calls.is_empty()).collect()
}

/// What would be in force: what is asked for, else the usual. What is asked for and not possible, `exec` refuses.
fn in_force(shape: &Shape, config: &Config, layout: &Layout) -> Result<Limits, Refusal> {
    let missing = Part::LIMITS.into_iter().filter(|part| layout.home(*part).is_err());
    let missing: Vec<Part> = missing.collect();
    if let Some(part) = missing.iter().find(|part| shape.limits.has(**part)) {
        return Err(Refusal::system(format!(
            "this VM has no cgroup controller for the limit on {part}; leave the option out, or boot the VM with it"
        )));
    }
    let usual = config.wanted_limits();
    Ok(shape.limits.or(missing.into_iter().fold(usual, Limits::without)))
}

/// Seen from this process's own group: the daemon's may be another, but the kernel's layout is one.
fn where_limits(limits: &Limits, layout: &Layout, config: &Config) -> Vec<Limit> {
    let place = |part: Part| match layout.home(part) {
        Ok(Hierarchy { version, own, .. }) => {
            let version = if *version == Version::Two { "v2" } else { "v1" };
            let (name, own) = (&config.cgroup, own.display());
            (format!("cgroup {version}, {name} below the agent's own group (this process's is {own})"), true)
        }
        Err(why) => (format!("not possible: {why}"), false),
    };
    let value = |part: Part| match part {
        Part::Memory => limits.memory.map(|bytes| format!("{} MiB", bytes >> 20)),
        Part::Pids => limits.pids.map(|pids| format!("{pids} processes and threads")),
        Part::Cpu => limits.cpu.map(|cpu| format!("{cpu} processors")),
        Part::Tree => Some("all processes are known and killed together".to_owned()),
        Part::Freezer => Some("all processes can be stopped together".to_owned()),
    };
    let limit = |part: Part| {
        let (place, possible) = place(part);
        Limit { part: part.name(), value: value(part).filter(|_| possible), place, possible }
    };
    Part::ALL.into_iter().map(limit).collect()
}

/// In words, and whether there is IPv6.
fn network(config: &Config) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    if let Some(blocks) = config.blocks() {
        let (first, last, block) = (config.ports.first, config.ports.last, config.block);
        let count = blocks.count();
        lines.push(format!(
            "a block of {block} source ports (TCP, UDP, ICMP id) of its own, one of {count} in {first}-{last}"
        ));
    }
    let (base, prefix) = (config.inner_network.base, config.inner_network.prefix);
    lines.push(format!(
        "an address of its own in {base}/{prefix} towards the VM; source NAT at the VM, keyed by interface and address"
    ));
    let around = Surroundings::find(config.uplink.as_deref());
    let ipv6 = match (&config.ipv6, &around) {
        (ipv6::Setting::Off, _) => Err("switched off"),
        (ipv6::Setting::Auto, Ok(around)) if around.addresses6.is_empty() => Err("the uplink has no /64 of its own"),
        (_, Err(_)) => Err("the VM has no uplink"),
        _ => Ok(()),
    };
    match &ipv6 {
        Ok(()) => lines.push("an IPv6 address of its own".to_owned()),
        Err(why) => lines.push(format!("no IPv6: {why}")),
    }
    match around {
        Ok(around) => lines.push(format!("leaves by {} as {}", around.uplink.name, around.uplink.address)),
        Err(why) => lines.push(format!("leaves nowhere: {why}")),
    }
    lines.push("dropped: other sources, protocols other than TCP, UDP and ICMP echo, other payloads, the VM itself, 169.254.0.0/16".to_owned());
    lines.push(format!("at most {} connections at once", config.connections));
    (lines, ipv6.is_ok())
}
