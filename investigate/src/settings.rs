//! `/etc/vestigo/vestigo.toml`: where the ledgers are and what a question must say of itself.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use quarantine::{
    config::credentials,
    vault::{S3Settings, probe::LockMode},
};
use serde::Deserialize;
use vestigo_model::settings::{self, Mistake};

/// Read unless another one is named.
const DEFAULT: &str = "/etc/vestigo/vestigo.toml";
/// Where hostd writes unless told otherwise.
const DEFAULT_LEDGER: &str = "/var/lib/vestigo/ledger";

/// The file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The ledgers to ask when neither `--ledger` nor `VESTIGO_LEDGER` names any.
    pub ledgers: Vec<String>,
    /// Keys that turn pseudonyms into names, when `--keys` names none.
    pub keys: Vec<PathBuf>,
    /// The record of questions.
    pub access: AccessSection,
    /// The object store of ledgers that begin with `s3://`.
    pub s3: S3Section,
    /// The SQL engine.
    pub sql: SqlSection,
}

/// `[access]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessSection {
    /// Whether a question needs a case and a reason, and a record of it before there is an answer.
    pub required: bool,
    /// Where questions are recorded.
    pub log: PathBuf,
}

impl Default for AccessSection {
    fn default() -> Self {
        Self { required: true, log: PathBuf::from("/var/lib/vestigo/access/access.jsonl") }
    }
}

/// `[s3]`, with the words of quarantine's `[vault]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Section {
    /// `http(s)://host:port`; AWS when absent.
    pub endpoint: Option<String>,
    /// Region.
    pub region: String,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
    /// File in the form of `~/.aws/credentials`; the `AWS_*` variables when absent.
    pub credentials: Option<PathBuf>,
}

impl Default for S3Section {
    fn default() -> Self {
        Self { endpoint: None, region: "us-east-1".to_owned(), path_style: true, credentials: None }
    }
}

impl S3Section {
    /// How to speak to the store.
    pub fn settings(&self) -> Result<S3Settings> {
        Ok(S3Settings {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style,
            credentials: credentials(self.credentials.as_deref())?,
            lock: LockMode::Off,
            retention: std::time::Duration::ZERO,
        })
    }
}

/// `[sql]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SqlSection {
    /// MiB that sorting, grouping and joining may hold in memory before they spill.
    pub memory_mib: u16,
    /// GiB that may be spilled to the folder for temporary files.
    pub spill_gib: u16,
}

impl Default for SqlSection {
    fn default() -> Self {
        Self { memory_mib: 256, spill_gib: 20 }
    }
}

impl Settings {
    /// Reads the file that is named by the option, else by `VESTIGO_CONFIG`, else the default one, which need not exist.
    ///
    /// # Errors
    /// It cannot be read, or holds what no setting is called.
    pub fn load(named: Option<&Path>) -> Result<Self> {
        let from_environment = || std::env::var_os("VESTIGO_CONFIG").filter(|name| !name.is_empty()).map(PathBuf::from);
        let named = named.map(Path::to_owned).or_else(from_environment);
        let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT));
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => {
                Err(error).with_context(|| format!("Cannot read the configuration {}; check --config", path.display()))
            }
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |line, message| anyhow!("{}:{line}: {message}; correct or remove it", path.display());
        let read: Self = settings::parse(text).map_err(|Mistake { line, message }| wrong(line, message))?;
        if !read.access.log.is_absolute() {
            let line = settings::line_of(text, "log");
            return Err(wrong(line, "log: is not a whole path that begins with /".to_owned()));
        }
        if read.sql.memory_mib < 16 {
            let line = settings::line_of(text, "memory_mib");
            return Err(wrong(line, "memory_mib: must be at least 16".to_owned()));
        }
        Ok(read)
    }

    /// The ledgers to ask: named on the command line, by `VESTIGO_LEDGER`, in the file, or the one that hostd writes.
    pub fn ledgers(&self, named: &[String]) -> Vec<String> {
        if !named.is_empty() {
            return named.to_vec();
        }
        match std::env::var("VESTIGO_LEDGER") {
            Ok(list) if !list.is_empty() => split(&list),
            _ if !self.ledgers.is_empty() => self.ledgers.clone(),
            _ => vec![DEFAULT_LEDGER.to_owned()],
        }
    }
}

/// A list with `:` between its parts, of which some may be URLs.
fn split(list: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in list.split(':').filter(|part| !part.is_empty()) {
        match parts.last_mut() {
            Some(scheme) if part.starts_with("//") && matches!(scheme.as_str(), "s3" | "file") => {
                scheme.push(':');
                scheme.push_str(part);
            }
            _ => parts.push(part.to_owned()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_question_must_say_why_unless_the_site_says_otherwise() {
        let read = |text| Settings::parse(text, Path::new("/etc/vestigo/vestigo.toml"));
        assert!(read("").unwrap().access.required);
        assert!(!read("[access]\nrequired = false\n").unwrap().access.required);
        let said = read("[access]\nrequierd = false\n").unwrap_err().to_string();
        assert!(said.contains("vestigo.toml:2:") && said.contains("requierd"), "{said}");
        let said = read("[access]\nlog = \"x\"\n").unwrap_err().to_string();
        assert!(said.contains(":2: log") && said.contains("whole path"), "{said}");
        assert!(read("[sql]\nmemory_mib = 1\n").unwrap_err().to_string().contains(":2: memory_mib"));
    }

    #[test]
    fn a_list_of_ledgers_may_hold_urls() {
        let list = split("/a:s3://bucket/x:file:///b:/c::s3");
        assert_eq!(list, ["/a", "s3://bucket/x", "file:///b", "/c", "s3"]);
    }
}
