//! `hostd.toml`. Unknown keys and bad values are refused with their line.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use vestigo_ledger::retention::{plan::Limits, pressure::Thresholds};
use vestigo_model::{
    HostId,
    settings::{self, Mistake},
};

use crate::{
    capture::{Backend, budget::RingOptions},
    meter::{Idle, MeterOptions},
    nat::{BookOptions, WatchOptions},
};

/// Where the configuration is looked for.
pub const DEFAULT_PATH: &str = "/etc/vestigo/hostd.toml";

/// Where hostd shows its numbers.
pub const DEFAULT_STATUS: &str = "/run/vestigo/hostd/status.sock";

/// The longest time that makes sense, in seconds; sums of a few of them are times too.
const YEAR: u64 = 365 * 86_400;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {source}; write it (an example is in docs/operations.md) or name another with --config", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}, {mistake}; correct that line", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        mistake: Mistake,
    },
    /// A value is out of its range.
    #[error("{}: {key} {message}", path.display())]
    Value {
        /// Which.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This hypervisor's name in every record. One path component; never change it later.
    pub host: HostId,
    /// Folder of the ledger.
    #[serde(default = "default_ledger")]
    pub ledger: PathBuf,
    /// Folder of hand-overs to quarantine.
    #[serde(default = "default_spool")]
    pub spool: PathBuf,
    /// Folder of the agent channels' sockets. libvirt makes them, as root, and gives them to QEMU.
    #[serde(default = "default_channels")]
    pub channels: PathBuf,
    /// Table of projects and VOs.
    #[serde(default = "default_vos")]
    pub vos: PathBuf,
    /// Who must not run here. Without it nobody is banned.
    #[serde(default)]
    pub bans: Option<PathBuf>,
    /// libvirt.
    #[serde(default)]
    pub libvirt: Libvirt,
    /// How packets are read.
    #[serde(default)]
    pub capture: Capture,
    /// Metering.
    #[serde(default)]
    pub meter: Meter,
    /// Segments and coverage.
    #[serde(default)]
    pub record: Record,
    /// The key that signs segments.
    #[serde(default)]
    pub ledger_key: LedgerKey,
    /// How long records are kept, and what a full disk does.
    #[serde(default)]
    pub retention: Retention,
    /// Keys for names.
    #[serde(default)]
    pub people: People,
    /// Disk pins.
    #[serde(default)]
    pub pins: Pins,
    /// The host's own address translation.
    #[serde(default)]
    pub nat: NatSection,
    /// Numbers for `hostd top` and `hostd metrics`.
    #[serde(default)]
    pub status: StatusSocket,
    /// Numbers for node_exporter's textfile collector.
    #[serde(default)]
    pub metrics: Metrics,
}

/// `[nat]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatSection {
    /// Whether the kernel's connection tracking is followed.
    pub watch: bool,
    /// Names of network namespaces below `/run/netns` beside hostd's own; `*` stands for any characters.
    pub namespaces: Vec<String>,
    /// Receive buffer for the events of each namespace, in bytes.
    pub receive_buffer: usize,
    /// Most translations held at once.
    pub max_translations: usize,
}

impl Default for NatSection {
    fn default() -> Self {
        let options = WatchOptions::default();
        let (namespaces, receive_buffer) = (options.namespaces, options.receive_buffer);
        Self { watch: true, namespaces, receive_buffer, max_translations: options.book.max }
    }
}

impl NatSection {
    /// As the watcher wants them: translations wait for the meter's first record, and are kept until its last.
    #[must_use]
    pub fn options(&self, meter: &MeterOptions) -> WatchOptions {
        let defaults = WatchOptions::default();
        let idle = meter.idle.tcp.max(meter.idle.udp).max(meter.idle.other);
        WatchOptions {
            namespaces: self.namespaces.clone(),
            receive_buffer: self.receive_buffer,
            book: BookOptions {
                max: self.max_translations,
                linger: idle + Duration::from_secs(60),
                grace: meter.first + Duration::from_secs(13),
            },
            ..defaults
        }
    }
}

/// `[libvirt]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Libvirt {
    /// Connection URI.
    pub uri: String,
    /// Seconds between two full comparisons with what libvirt says runs.
    pub resync: u64,
    /// Whether an agent channel is plugged into VMs that have none.
    pub plug_channel: bool,
}

impl Default for Libvirt {
    fn default() -> Self {
        Self { uri: "qemu:///system".into(), resync: 60, plug_channel: true }
    }
}

/// `[capture]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// How packets are read.
    pub backend: Backend,
    /// Milliseconds that a tap's ring lasts while hostd does not get to read it …
    pub ring_millis: u64,
    /// … and that many packets come in a second.
    pub ring_rate: u64,
    /// MiB that the rings of all taps may take together.
    pub ring_memory: u64,
}

impl Default for Capture {
    fn default() -> Self {
        let RingOptions { lasts, rate, memory } = RingOptions::default();
        let ring_millis = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        Self { backend: Backend::default(), ring_millis, ring_rate: rate, ring_memory: memory >> 20 }
    }
}

impl Capture {
    /// As the rings' budget wants them.
    #[must_use]
    pub const fn rings(&self) -> RingOptions {
        RingOptions {
            lasts: Duration::from_millis(self.ring_millis),
            rate: self.ring_rate,
            memory: self.ring_memory << 20,
        }
    }
}

/// `[meter]`: times, a number of flows, and what is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Meter {
    /// Age in milliseconds at which a flow that goes on gets its first record.
    pub first_ms: u64,
    /// Seconds between two records of a flow that goes on.
    pub active: u64,
    /// Quiet seconds that end a TCP flow.
    pub idle_tcp: u64,
    /// Quiet seconds that end a UDP flow.
    pub idle_udp: u64,
    /// Quiet seconds that end any other flow.
    pub idle_other: u64,
    /// Most flows held at once for one tap.
    pub max_flows: usize,
    /// Meter also what VXLAN and Geneve carry.
    pub tunnels: bool,
}

impl Default for Meter {
    fn default() -> Self {
        let options = MeterOptions::default();
        Self {
            first_ms: u64::try_from(options.first.as_millis()).unwrap_or(u64::MAX),
            active: options.active.as_secs(),
            idle_tcp: options.idle.tcp.as_secs(),
            idle_udp: options.idle.udp.as_secs(),
            idle_other: options.idle.other.as_secs(),
            max_flows: options.max_flows,
            tunnels: options.tunnels,
        }
    }
}

impl Meter {
    /// As the meter wants them. Whether flow labels are looked at says the table of VOs.
    #[must_use]
    pub fn options(&self) -> MeterOptions {
        MeterOptions {
            first: Duration::from_millis(self.first_ms),
            active: Duration::from_secs(self.active),
            idle: Idle {
                tcp: Duration::from_secs(self.idle_tcp),
                udp: Duration::from_secs(self.idle_udp),
                other: Duration::from_secs(self.idle_other),
            },
            max_flows: self.max_flows,
            tunnels: self.tunnels,
            ..MeterOptions::default()
        }
    }
}

/// `[record]`: seconds and bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// Age at which a segment is sealed.
    pub seal_after: u64,
    /// Size of the write-ahead log at which a segment is sealed.
    pub seal_bytes: u64,
    /// Length of a coverage statement.
    pub coverage: u64,
    /// Silence after which an agent counts as silent.
    pub agent_silent: u64,
}

impl Default for Record {
    fn default() -> Self {
        Self { seal_after: 300, seal_bytes: 64 << 20, coverage: 60, agent_silent: 45 }
    }
}

/// `[ledger_key]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerKey {
    /// OpenSSH private key, ed25519; made at the first start.
    pub file: PathBuf,
}

impl Default for LedgerKey {
    fn default() -> Self {
        Self { file: "/var/lib/vestigo/keys/host_ed25519".into() }
    }
}

/// `[retention]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Days before which nothing is removed by its age …
    pub minimum_days: u32,
    /// … and after which everything is, unless it is held.
    pub maximum_days: u32,
    /// Whether the segments of a day that is over become one.
    pub compact: bool,
    /// Percent of the file system; with less free there is an alarm.
    pub alarm_percent: u8,
    /// With less free the oldest shipped files go.
    pub evict_percent: u8,
    /// Where quarantine writes which segments it has shipped.
    pub shipped: PathBuf,
}

impl Default for Retention {
    fn default() -> Self {
        let (limits, space) = (Limits::default(), Thresholds::default());
        Self {
            minimum_days: limits.minimum,
            maximum_days: limits.maximum,
            compact: true,
            alarm_percent: space.alarm,
            evict_percent: space.evict,
            shipped: "/var/lib/vestigo-quarantine/shipped".into(),
        }
    }
}

impl Retention {
    /// As the upkeep wants them.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits { minimum: self.minimum_days, maximum: self.maximum_days }
    }

    /// As the upkeep wants them.
    #[must_use]
    pub const fn thresholds(&self) -> Thresholds {
        Thresholds { alarm: self.alarm_percent, evict: self.evict_percent }
    }
}

/// `[people]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct People {
    /// The site's keys without their secrets, as `vestigo keys new` writes them. Without it `/etc/vestigo/people.json`, if that is
    /// there.
    pub keys: Option<PathBuf>,
    /// Folder of keys that hostd makes for itself, for months that the site gave none for.
    pub own: PathBuf,
}

impl Default for People {
    fn default() -> Self {
        Self { keys: None, own: "/var/lib/vestigo/keys/people".into() }
    }
}

/// `[pins]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pins {
    /// One folder per file system that holds disks of VMs.
    pub folders: Vec<PathBuf>,
    /// Seconds between the deletion of a VM's first disk and the hand-over, so that all of them become one item.
    pub settle: u64,
}

impl Default for Pins {
    fn default() -> Self {
        Self { folders: vec!["/var/lib/libvirt/vestigo-pins".into()], settle: 2 }
    }
}

/// `[status]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusSocket {
    /// Where hostd answers.
    pub socket: PathBuf,
    /// The group that may ask beside root. Without it root alone.
    pub group: Option<String>,
}

impl Default for StatusSocket {
    fn default() -> Self {
        Self { socket: DEFAULT_STATUS.into(), group: None }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// The file, in the collector's folder and named `*.prom`. Without it none is written.
    pub file: Option<PathBuf>,
    /// Seconds between two writes.
    pub interval: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { file: None, interval: 30 }
    }
}

fn default_ledger() -> PathBuf {
    "/var/lib/vestigo/ledger".into()
}

fn default_spool() -> PathBuf {
    "/var/lib/vestigo/spool".into()
}

fn default_channels() -> PathBuf {
    "/run/vestigo/channels".into()
}

fn default_vos() -> PathBuf {
    "/etc/vestigo/vos.toml".into()
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            settings::parse(text).map_err(|mistake| ConfigError::Parse { path: path.to_owned(), mistake })?;
        config.check(path)?;
        Ok(config)
    }

    /// Every number, and where it may lie.
    fn numbers(&self) -> [(&'static str, u64, RangeInclusive<u64>); 22] {
        let seconds = || 1..=YEAR;
        let Self { libvirt, capture, meter, record, pins, nat, metrics, retention, .. } = self;
        [
            ("libvirt.resync", libvirt.resync, seconds()),
            ("capture.ring_millis", capture.ring_millis, 10..=60_000),
            ("capture.ring_rate", capture.ring_rate, 1000..=10_000_000),
            ("capture.ring_memory", capture.ring_memory, 2..=1 << 20),
            ("meter.first_ms", meter.first_ms, 0..=YEAR * 1000),
            ("meter.active", meter.active, seconds()),
            ("meter.idle_tcp", meter.idle_tcp, seconds()),
            ("meter.idle_udp", meter.idle_udp, seconds()),
            ("meter.idle_other", meter.idle_other, seconds()),
            ("meter.max_flows", meter.max_flows as u64, 1..=1 << 30),
            ("record.seal_after", record.seal_after, seconds()),
            ("record.seal_bytes", record.seal_bytes, 1..=1 << 40),
            ("record.coverage", record.coverage, seconds()),
            ("record.agent_silent", record.agent_silent, seconds()),
            ("retention.minimum_days", retention.minimum_days.into(), 0..=36_500),
            ("retention.maximum_days", retention.maximum_days.into(), retention.minimum_days.max(1).into()..=36_500),
            ("retention.alarm_percent", retention.alarm_percent.into(), 0..=99),
            ("retention.evict_percent", retention.evict_percent.into(), 0..=retention.alarm_percent.into()),
            ("pins.settle", pins.settle, 0..=YEAR),
            ("nat.receive_buffer", nat.receive_buffer as u64, 1..=1 << 30),
            ("nat.max_translations", nat.max_translations as u64, 1..=1 << 30),
            ("metrics.interval", metrics.interval, seconds()),
        ]
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let value = |key, message: &str| ConfigError::Value { path: path.to_owned(), key, message: message.into() };
        if let Some((key, given, range)) = self.numbers().into_iter().find(|(_, given, range)| !range.contains(given)) {
            let (least, most) = (range.start(), range.end());
            return Err(value(key, &format!("is {given}; give a number from {least} to {most}")));
        }
        if let Some(file) = self.metrics.file.iter().find(|file| file.extension().is_none_or(|end| end != "prom")) {
            let message =
                format!("is {}; give a name that ends in .prom, node_exporter reads no other", file.display());
            return Err(value("metrics.file", &message));
        }
        let folders =
            [("ledger", &self.ledger), ("spool", &self.spool), ("channels", &self.channels), ("vos", &self.vos)];
        let relative = folders.into_iter().chain(self.pins.folders.iter().map(|folder| ("pins.folders", folder)));
        let relative = relative.chain([("people.own", &self.people.own)]);
        let relative = relative.chain(self.people.keys.iter().map(|file| ("people.keys", file)));
        let relative = relative.chain(self.bans.iter().map(|file| ("bans", file)));
        let relative = relative.chain([("status.socket", &self.status.socket)]);
        let relative = relative
            .chain([("ledger_key.file", &self.ledger_key.file), ("retention.shipped", &self.retention.shipped)]);
        let relative = relative.chain(self.metrics.file.iter().map(|file| ("metrics.file", file)));
        let mut relative = relative;
        if let Some((key, folder)) = relative.find(|(_, folder)| !folder.is_absolute()) {
            return Err(value(key, &format!("is {}, a relative path; give an absolute one", folder.display())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/vestigo/hostd.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_host_name_is_enough() {
        let config = parse("host = \"hv1\"").unwrap();
        assert_eq!(config.meter.options(), MeterOptions::default());
        assert_eq!(config.capture.rings(), RingOptions::default());
        assert_eq!(config.ledger, Path::new("/var/lib/vestigo/ledger"));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let message = parse("host = \"hv1\"\n[meter]\nactiv = 5\n").unwrap_err();
        assert!(message.starts_with("/etc/vestigo/hostd.toml, line 3: unknown field `activ`"), "{message}");
        let message = parse("host = \"hv 1\"").unwrap_err();
        assert!(message.contains("line 1") && message.contains("' '"), "{message}");
        let message = parse("host = \"hv1\"\n[meter]\nactive = 0\n").unwrap_err();
        assert!(message.contains("meter.active is 0; give a number from 1 to 31536000"), "{message}");
        let message = parse("host = \"hv1\"\n[meter]\nidle_tcp = 9223372036854775807\n").unwrap_err();
        assert!(message.contains("meter.idle_tcp is 9223372036854775807; give"), "{message}");
        let message = parse("host = \"hv1\"\n[metrics]\nfile = \"/var/lib/node_exporter/vestigo.txt\"\n").unwrap_err();
        assert!(message.contains("ends in .prom"), "{message}");
        let message = parse("host = \"hv1\"\n[capture]\nring_rate = 10\n").unwrap_err();
        assert!(message.contains("capture.ring_rate is 10; give a number from 1000 to 10000000"), "{message}");
        let message = parse("host = \"hv1\"\n[capture]\nbackend = \"pcap\"\n").unwrap_err();
        assert!(message.contains("line 3") && message.contains("`ring` or `pnet`"), "{message}");
        let message = parse("host = \"hv1\"\nspool = \"spool\"\n").unwrap_err();
        assert!(message.contains("spool is spool, a relative path"), "{message}");
        let message = parse("host = \"hv1\"\n[people]\nkeys = \"people.json\"\n").unwrap_err();
        assert!(message.contains("people.keys is people.json, a relative path"), "{message}");
        assert!(parse("").unwrap_err().contains("missing field `host`"));
    }
}
