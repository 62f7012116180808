//! `/etc/vestigo/agent.toml`. Every key has a default; an unknown key or a bad value is refused with its line.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::Deserialize;
use vestigo_model::{
    Label,
    settings::{self, Mistake},
};

use crate::{
    cgroup::{Cgroups, Limits, Millicores, Part},
    lease::Blocks,
    link::Target,
    network::{ipv6, own},
};

/// Where the configuration is unless the command line says otherwise.
pub const PATH: &str = "/etc/vestigo/agent.toml";

/// What to do while the hypervisor does not acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailMode {
    /// Start nothing.
    #[default]
    Closed,
    /// Start, and count the debt.
    Open,
}

impl FailMode {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// What is told of a payload besides its leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detail {
    /// Nothing: attribution needs no more.
    #[default]
    Off,
    /// Each connection and a process that holds it.
    Connections,
}

/// An IPv4 network, `100.64.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    /// First address.
    pub base: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
}

impl TryFrom<String> for Network {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an IPv4 network; write it like 100.64.0.0/16");
        let (base, prefix) = text.split_once('/').ok_or_else(bad)?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(8..=29).contains(&prefix) || u32::from(base) << prefix != 0 {
            return Err(format!("{text:?} is not usable; the prefix is 8 to 29 and no bit after it may be set"));
        }
        Ok(Self { base, prefix })
    }
}

impl Network {
    /// How many addresses it has.
    #[must_use]
    pub const fn room(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The address that all payloads take for their name server: the last but one, which no slot uses.
    #[must_use]
    pub fn dns(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + (self.room() - 2))
    }
}

/// A range of ports, `10240-65535`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Ports {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

impl TryFrom<String> for Ports {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a port range; write it like 10240-65535, from 4096 upwards");
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let range =
            Self { first: first.trim().parse().map_err(|_| bad())?, last: last.trim().parse().map_err(|_| bad())? };
        // Below is kept for the VM's own connections.
        if own::leases(range.first).is_none() || range.last < range.first { Err(bad()) } else { Ok(range) }
    }
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `auto`, the path of a character device, or `unix:/path`.
    pub link: Target,
    /// What to do while nobody acknowledges.
    pub fail_mode: FailMode,
    /// Seconds to wait for an acknowledgement.
    pub ack_timeout: f64,
    /// Source ports that belong to payloads.
    pub ports: Ports,
    /// How many of them one payload gets.
    pub block: u16,
    /// Seconds that a used block rests.
    pub rest: u32,
    /// Addresses between the VM and its payloads.
    pub inner_network: Network,
    /// `auto`, `off`, or the /64 that payloads get an address of.
    pub ipv6: ipv6::Setting,
    /// Most connections of one payload at once.
    pub connections: u32,
    /// The interface that payloads leave by; found by itself when absent.
    pub uplink: Option<String>,
    /// Socket, spool, leases: gone after a reboot.
    pub state_dir: PathBuf,
    /// Home folders of payloads, on the VM's disk.
    pub scratch_dir: PathBuf,
    /// Uid of the payload of slot 0; the others follow.
    pub uid_base: u32,
    /// More folders of the VM that payloads see, read-only (`/cvmfs`).
    pub expose: Vec<PathBuf>,
    /// Most bytes of records that may wait for an acknowledgement before new payloads are refused.
    pub spool_bytes: usize,
    /// Who may call besides root; everybody when absent.
    pub allow_uids: Option<Vec<u32>>,
    /// Sandboxes that are kept ready.
    pub ready: u16,
    /// Most memory of one payload in bytes; when absent all but a tenth of the VM's (at least 128 MiB) that the agent and the
    /// pilot keep. Also as text, `"2G"`.
    #[serde(deserialize_with = "bytes")]
    pub memory: Option<u64>,
    /// Most processes and threads of one payload.
    pub pids: u32,
    /// Most processors of one payload, as `"1.5"`; all when absent.
    #[serde(deserialize_with = "cores")]
    pub cpus: Option<Millicores>,
    /// OpenSSH `allowed_signers` of users whose signed tasks are believed.
    pub allowed_signers: Option<PathBuf>,
    /// Public keys that are not believed any more, one a line.
    pub revoked_keys: Option<PathBuf>,
    /// Folder with the keys of token issuers, one JSON file each.
    pub token_keys: Option<PathBuf>,
    /// Names under which signed tasks may address this VM (its site, its VO).
    pub audience: Vec<Label>,
    /// Hours that a payload's token may still be good for.
    pub token_max_hours: u32,
    /// Whether a payload may have a token that is no JWT, of which nothing can be known.
    pub opaque_tokens: bool,
    /// Name of the payloads' parent cgroup below the agent's own.
    pub cgroup: String,
    /// `off`, or `connections`.
    pub detail: Detail,
    /// Seconds between two looks at the payloads' connections.
    pub detail_interval: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            link: Target::Auto,
            fail_mode: FailMode::Closed,
            ack_timeout: 10.0,
            ports: Ports { first: 10240, last: 65535 },
            block: 1024,
            rest: 300,
            inner_network: Network { base: Ipv4Addr::new(100, 64, 0, 0), prefix: 16 },
            ipv6: ipv6::Setting::Auto,
            connections: 4096,
            uplink: None,
            state_dir: "/run/vestigo".into(),
            scratch_dir: "/var/lib/vestigo/scratch".into(),
            // Above everything that newuidmap hands out by default (SUB_UID_MAX of login.defs).
            uid_base: 1_879_048_192,
            expose: Vec::new(),
            spool_bytes: 8 << 20,
            allow_uids: None,
            ready: 4,
            memory: None,
            pids: 4096,
            cpus: None,
            allowed_signers: None,
            revoked_keys: None,
            token_keys: None,
            audience: Vec::new(),
            token_max_hours: 24,
            opaque_tokens: false,
            cgroup: "vestigo".into(),
            detail: Detail::Off,
            detail_interval: 1.0,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, or not for us.
    #[error("cannot read {}: {why}; create it or name another with --config", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// Something in it is wrong.
    #[error("{}, line {line}, key `{key}`: {message}", path.display())]
    Bad {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// Which key, as far as the line tells.
        key: String,
        /// What.
        message: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|why| ConfigError::Read { path: path.into(), why })?;
        Self::parse(&text).map_err(|(line, message)| ConfigError::Bad {
            path: path.into(),
            line,
            key: key_of(&text, line),
            message,
        })
    }

    /// Reads and checks a text. The error is a line and what is wrong there.
    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let config: Self = settings::parse(text).map_err(|Mistake { line, message }| (line, in_words(message)))?;
        config.check().map_err(|(key, message)| (settings::line_of(text, key), message))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let absolute = [("state_dir", &self.state_dir), ("scratch_dir", &self.scratch_dir)];
        if let Some((key, path)) = absolute.into_iter().find(|(_, path)| !path.is_absolute()) {
            return Err((key, format!("{} is not an absolute path", path.display())));
        }
        if let Some(path) = self.expose.iter().find(|p| !exposable(p)) {
            return Err((
                "expose",
                format!(
                    "{} cannot be shown to payloads; name a folder below / by its plain absolute path, not one that the sandbox makes itself",
                    path.display()
                ),
            ));
        }
        if !(0.1..=3600.0).contains(&self.ack_timeout) {
            return Err((
                "ack_timeout",
                format!("{} is not a number of seconds between 0.1 and 3600", self.ack_timeout),
            ));
        }
        if !(0.1..=60.0).contains(&self.detail_interval) {
            return Err((
                "detail_interval",
                format!("{} is not a number of seconds between 0.1 and 60", self.detail_interval),
            ));
        }
        let limits = Limits { memory: self.memory, pids: Some(self.pids), cpu: self.cpus };
        limits.check().map_err(|error| {
            let key = if self.pids == 0 {
                "pids"
            } else if self.memory.is_some() {
                "memory"
            } else {
                "cpus"
            };
            (key, error.to_string())
        })?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.cgroup.is_empty() || self.cgroup.len() > 64 || !self.cgroup.chars().all(plain) {
            return Err(("cgroup", format!("{:?} is no name; use letters, digits, - and _", self.cgroup)));
        }
        if !(65_536..=1 << 30).contains(&self.spool_bytes) {
            return Err(("spool_bytes", format!("{} is not between 65536 and 1073741824", self.spool_bytes)));
        }
        if self.uid_base < 65_536 || self.uid_base > u32::MAX - 131_072 {
            return Err((
                "uid_base",
                format!("{} is not between 65536 (ordinary users end there) and {}", self.uid_base, u32::MAX - 131_072),
            ));
        }
        self.check_times_and_uplink()?;
        let blocks = self.blocks().ok_or_else(|| {
            (
                "block",
                format!("not one block of {} ports fits into {}-{}", self.block, self.ports.first, self.ports.last),
            )
        })?;
        if !(16..=1 << 20).contains(&self.connections) {
            return Err(("connections", format!("{} is not between 16 and 1048576", self.connections)));
        }
        // Four for each, and as many for the name server.
        let (needed, room) = (u32::from(blocks.count()) * 4 + 4, self.inner_network.room());
        if needed > room {
            return Err((
                "inner_network",
                format!("{} payloads need {needed} addresses, the network has {room}", blocks.count()),
            ));
        }
        Ok(())
    }

    fn check_times_and_uplink(&self) -> Result<(), (&'static str, String)> {
        if self.rest > 86_400 {
            return Err(("rest", format!("{} is not a number of seconds between 0 and 86400", self.rest)));
        }
        if !(1..=744).contains(&self.token_max_hours) {
            return Err(("token_max_hours", format!("{} is not between 1 and 744", self.token_max_hours)));
        }
        // What the kernel takes for the name of an interface.
        let usable = |name: &str| {
            (1..16).contains(&name.len()) && !name.chars().any(|c| c == '/' || c.is_whitespace() || c.is_control())
        };
        if let Some(name) = self.uplink.as_deref().filter(|name| !usable(name)) {
            return Err(("uplink", format!("{name:?} is no interface's name; leave the key out to have it found")));
        }
        Ok(())
    }

    /// How long a payload's token may still be good for.
    #[must_use]
    pub fn token_life(&self) -> Duration {
        Duration::from_secs(u64::from(self.token_max_hours) * 3600)
    }

    /// What a payload may use, as far as this machine can limit it.
    #[must_use]
    pub fn limits(&self, cgroups: Option<&Cgroups>) -> Limits {
        let wanted = self.wanted_limits();
        let missing = cgroups.map_or_else(|| Part::LIMITS.to_vec(), |cgroups| cgroups.missing(&wanted));
        missing.into_iter().fold(wanted, Limits::without)
    }

    /// What a payload may use where everything can be limited.
    #[must_use]
    pub fn wanted_limits(&self) -> Limits {
        Limits { memory: self.memory.or_else(most_memory), pids: Some(self.pids), cpu: self.cpus }
    }

    /// The lease range, cut.
    #[must_use]
    pub fn blocks(&self) -> Option<Blocks> {
        Blocks::new(self.ports.first, self.ports.last, self.block)
    }

    /// Time between two looks at the payloads' connections; `None`: they are not looked at.
    #[must_use]
    pub fn detail(&self) -> Option<Duration> {
        let interval = Duration::try_from_secs_f64(self.detail_interval).unwrap_or(Duration::from_secs(1));
        (self.detail == Detail::Connections).then_some(interval)
    }

    /// How long to wait for an acknowledgement.
    #[must_use]
    pub fn ack_patience(&self) -> Duration {
        Duration::try_from_secs_f64(self.ack_timeout).unwrap_or(Duration::from_secs(10))
    }
}

fn most_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = total.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    Some(total.saturating_sub((total / 10).max(128 << 20)).max(total / 2))
}

/// What the sandbox makes itself must not be covered by the VM's own, and `/run` and `/dev` hold the agent's means.
fn exposable(path: &Path) -> bool {
    const OWN: [&str; 8] = ["dev", "proc", "sys", "run", "tmp", "work", "var", "etc"];
    let mut parts = path.components();
    parts.next() == Some(std::path::Component::RootDir)
        && path.components().skip(1).all(|p| matches!(p, std::path::Component::Normal(_)))
        && parts.next().is_some_and(|first| !OWN.iter().any(|own| first.as_os_str() == *own))
}

fn key_of(text: &str, line: usize) -> String {
    let line = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    line.split('=').next().unwrap_or_default().trim().chars().take(64).collect()
}

/// As people write it, `"1.5"` or `2`.
fn cores<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Millicores>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "not a number of processors; write 2 or 1.5")]
    enum Cores {
        Text(String),
        Whole(u32),
        Part(f64),
    }
    let text = match Cores::deserialize(deserializer)? {
        Cores::Text(text) => text,
        Cores::Whole(number) => number.to_string(),
        Cores::Part(number) => number.to_string(),
    };
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// As people write it: `1073741824`, or `"1G"` as on the command line.
fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "not a size; write bytes, or a text like \"2G\"")]
    enum Size {
        Text(String),
        Whole(u64),
    }
    match Size::deserialize(deserializer)? {
        Size::Text(text) => crate::cli::size(&text).map(Some).map_err(serde::de::Error::custom),
        Size::Whole(number) => Ok(Some(number)),
    }
}

/// The parser's names of types mean nothing to whoever writes a configuration.
fn in_words(message: String) -> String {
    const WORDS: [(&str, &str); 9] = [
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected usize", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list in brackets"),
        ("expected path string", "expected a path in quotes"),
        ("expected a string", "expected a text in quotes"),
        ("expected a boolean", "expected true or false"),
        ("floating point `", "number with a point `"),
    ];
    WORDS.into_iter().fold(message, |message, (type_name, words)| message.replace(type_name, words))
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_str(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
