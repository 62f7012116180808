//! The configuration file. Unknown keys are refused with their line: a typing error in a retention must not pass unnoticed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use vestigo_model::settings::{self, Mistake};

use crate::{
    chunk::MAX_CHUNK,
    vault::{S3Settings, Url, probe::LockMode, s3::S3Credentials},
};

/// What is wrong, with file, line and remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// `/etc/vestigo/quarantine.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder in which hostd lays its hand-overs.
    pub spool: PathBuf,
    /// The folders in which pins may be, as in hostd's `pins.folders`; empty: anywhere.
    #[serde(default)]
    pub pins: Vec<PathBuf>,
    /// The daemon's own folder: progress of items, cache of known chunks.
    pub state: PathBuf,
    /// Where evidence goes.
    pub vault: VaultSection,
    /// How long it stays.
    #[serde(default)]
    pub retention: RetentionSection,
    /// How it is cut and packed.
    #[serde(default)]
    pub store: StoreSection,
    /// The ledger whose segments are shipped.
    #[serde(default)]
    pub ledger: LedgerSection,
}

/// `[ledger]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerSection {
    /// hostd's folder; absent: nothing is shipped.
    pub path: Option<PathBuf>,
    /// Days that the store is to keep what it gets, where Object Lock is on.
    pub keep_days: u32,
}

impl Default for LedgerSection {
    fn default() -> Self {
        Self { path: None, keep_days: 180 }
    }
}

/// `[vault]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultSection {
    /// `file:///folder` or `s3://bucket/prefix`.
    pub url: String,
    /// Of the S3 server; AWS when absent.
    pub endpoint: Option<String>,
    /// Region.
    #[serde(default = "default_region")]
    pub region: String,
    /// Bucket in the path instead of the host name.
    #[serde(default = "default_true")]
    pub path_style: bool,
    /// File in the form of `~/.aws/credentials`; the `AWS_*` variables when absent.
    pub credentials: Option<PathBuf>,
}

/// `[retention]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    /// Days that an item is kept.
    pub days: u32,
    /// Whether the store enforces it.
    pub object_lock: LockMode,
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self { days: 90, object_lock: LockMode::Off }
    }
}

/// `[store]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// KiB per chunk.
    pub chunk_kib: u32,
    /// MiB per pack.
    pub pack_mib: u32,
    /// zstd level.
    pub zstd_level: i32,
    /// Threads that digest and compress; 0 for one per core.
    pub threads: usize,
    /// Packs in flight to the vault at once. Memory is about (uploads + 1) packs and 2 chunks per thread.
    pub uploads: usize,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { chunk_kib: 1024, pack_mib: 32, zstd_level: 1, threads: 0, uploads: 3 }
    }
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

const fn default_true() -> bool {
    true
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            ConfigError(format!("cannot read the configuration {}: {e}; name the file with --config", path.display()))
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = settings::parse(text).map_err(|Mistake { line, message }| {
            ConfigError(format!("{}:{line}: {message}; correct or remove it", path.display()))
        })?;
        config.check().map_err(|(key, why)| {
            let line = settings::line_of(text, key);
            ConfigError(format!("{}:{line}: {key}: {why}", path.display()))
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        Url::parse(&self.vault.url).map_err(|why| ("url", why))?;
        let ledger = self.ledger.path.as_ref().map(|path| ("path", path));
        for (key, path) in [("spool", &self.spool), ("state", &self.state)].into_iter().chain(ledger) {
            if !path.is_absolute() {
                return Err((key, format!("{} is not a whole path; write one that begins with /", path.display())));
            }
        }
        if let Some(path) = self.pins.iter().find(|path| !path.is_absolute()) {
            return Err(("pins", format!("{} is not a whole path; write one that begins with /", path.display())));
        }
        if self.spool == self.state {
            return Err(("state", "is the same folder as spool; give each its own".to_owned()));
        }
        if let Some(endpoint) = &self.vault.endpoint {
            let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
            if host.is_none_or(str::is_empty) {
                return Err(("endpoint", format!("{endpoint:?} is not one; write https://host:port")));
            }
        }
        self.store.check()?;
        if self.ledger.keep_days == 0 || self.ledger.keep_days > 36_500 {
            return Err(("keep_days", "must be between 1 and 36500".to_owned()));
        }
        if self.retention.days == 0 || self.retention.days > 36_500 {
            return Err(("days", "must be between 1 and 36500".to_owned()));
        }
        Ok(())
    }

    /// The vault's place; checked when the file was read.
    pub fn url(&self) -> Result<Url, ConfigError> {
        Url::parse(&self.vault.url).map_err(ConfigError)
    }

    /// How long an item is kept.
    #[must_use]
    pub fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention.days) * 86_400)
    }

    /// How to speak to S3.
    pub fn s3(&self) -> Result<S3Settings, ConfigError> {
        Ok(S3Settings {
            endpoint: self.vault.endpoint.clone(),
            region: self.vault.region.clone(),
            path_style: self.vault.path_style,
            credentials: credentials(self.vault.credentials.as_deref())?,
            lock: self.retention.object_lock,
            retention: self.retention(),
        })
    }
}

impl StoreSection {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let chunk = self.chunk_kib;
        if !(4..=MAX_CHUNK / 1024).contains(&chunk) || !chunk.is_power_of_two() {
            return Err(("chunk_kib", format!("{chunk} is not a power of two between 4 and {}", MAX_CHUNK / 1024)));
        }
        if !(1..=1024).contains(&self.pack_mib) || self.pack_mib * 1024 < chunk {
            return Err(("pack_mib", "must be between 1 and 1024 and hold at least one chunk".to_owned()));
        }
        if !(-7..=19).contains(&self.zstd_level) {
            return Err(("zstd_level", "must be between -7 and 19".to_owned()));
        }
        if self.threads > 256 {
            return Err(("threads", "must be at most 256; 0 means one per core".to_owned()));
        }
        if !(1..=64).contains(&self.uploads) {
            return Err(("uploads", "must be between 1 and 64".to_owned()));
        }
        Ok(())
    }

    /// Threads that digest and compress.
    #[must_use]
    pub fn workers(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// From a file of `key = value` lines (sections other than `[default]` are passed over), else from the environment.
/// Never from the command line, where every user of the machine could read them.
pub fn credentials(file: Option<&Path>) -> Result<S3Credentials, ConfigError> {
    let Some(path) = file else {
        let var = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
        return Ok(S3Credentials {
            access_key: var("AWS_ACCESS_KEY_ID").unwrap_or_default(),
            secret_key: var("AWS_SECRET_ACCESS_KEY").unwrap_or_default(),
            session_token: var("AWS_SESSION_TOKEN"),
        });
    };
    let text = std::fs::read_to_string(path).map_err(|e| {
        ConfigError(format!("cannot read the credentials file {}: {e}; check `credentials` in [vault] of quarantine.toml or [s3] of vestigo.toml", path.display()))
    })?;
    let mut keys = S3Credentials::default();
    let mut ours = true;
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(['#', ';'])) {
        if line.starts_with('[') {
            ours = line == "[default]";
        } else if let (true, Some((name, value))) = (ours, line.split_once('=')) {
            let value = value.trim().trim_matches('"').to_owned();
            match name.trim() {
                "aws_access_key_id" => keys.access_key = value,
                "aws_secret_access_key" => keys.secret_key = value,
                "aws_session_token" => keys.session_token = Some(value),
                _ => {}
            }
        }
    }
    if keys.access_key.is_empty() || keys.secret_key.is_empty() {
        return Err(ConfigError(format!(
            "the credentials file {} lacks aws_access_key_id or aws_secret_access_key under [default]; add them",
            path.display()
        )));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "spool = \"/a\"\nstate = \"/b\"\n[vault]\nurl = \"file:///v\"\n";

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/etc/vestigo/quarantine.toml")).unwrap_err().to_string()
    }

    #[test]
    fn the_least_is_enough() {
        let config = Config::parse(GOOD, Path::new("x")).unwrap();
        assert_eq!((config.retention.days, config.store.chunk_kib), (90, 1024));
    }

    #[test]
    fn each_error_names_line_and_key() {
        let said = error(&format!("{GOOD}endpont = \"x\"\n"));
        assert!(said.contains("quarantine.toml:5:") && said.contains("endpont"), "{said}");
        let said = error(&format!("{GOOD}[store]\nchunk_kib = 1000\n"));
        assert!(said.contains(":6: chunk_kib") && said.contains("power of two"), "{said}");
        let said = error(&GOOD.replace("file:///v", "ftp://x"));
        assert!(said.contains(":4: url") && said.contains("s3://bucket"), "{said}");
        let said = error(&format!("{GOOD}[retention]\nobject_lock = \"maybe\"\n"));
        assert!(said.contains(":6:") && said.contains("governance"), "{said}");
        assert!(error("spool = 1").contains(":1:"));
    }

    #[test]
    fn credentials_come_from_the_default_section() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        std::fs::write(
            &path,
            "[other]\naws_access_key_id=no\n[default]\naws_access_key_id = AK\naws_secret_access_key=\"SK\"\n",
        )
        .unwrap();
        let keys = credentials(Some(&path)).unwrap();
        assert_eq!((keys.access_key.as_str(), keys.secret_key.as_str()), ("AK", "SK"));
        std::fs::write(&path, "[default]\n").unwrap();
        assert!(credentials(Some(&path)).is_err());
    }
}
