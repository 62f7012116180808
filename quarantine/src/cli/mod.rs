//! The command line: what the commands share.

pub(crate) mod daemon;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod probe;
pub(crate) mod show;
pub(crate) mod verify;

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quarantine::{
    canonical,
    catalog::FindError,
    config::{self, Config, ConfigError},
    custody::{self, Actor, Draft, What},
    manifest::ManifestError,
    vault::{self, Open, S3Settings, Url, Vault},
};
use vestigo_model::{Clock, ItemId, SystemClock};

const CONFIG: &str = "/etc/vestigo/quarantine.toml";

/// Ends that are not plain failure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Verification found something; it has been printed.
    #[error("the item is not as it was stored")]
    Bad,
    /// The custody log is not as it was written; what is wrong has been printed.
    #[error("the custody log is not as it was written")]
    BadLog,
    /// What would be given out is not what was stored.
    #[error("{0}")]
    Altered(String),
}

pub(crate) fn exit_code(done: Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    if error.root_cause().downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "quarantine: {}", canonical::printable(&format!("{error:#}")));
    let find = error.downcast_ref::<FindError>();
    match error.downcast_ref::<End>() {
        Some(End::Usage(_)) => ExitCode::from(2),
        Some(End::NotFound(_)) => ExitCode::from(3),
        Some(End::Bad | End::BadLog | End::Altered(_)) => ExitCode::from(5),
        None if error.downcast_ref::<ConfigError>().is_some() => ExitCode::from(2),
        None if matches!(error.downcast_ref::<ManifestError>(), Some(ManifestError::Damaged { .. })) => {
            ExitCode::from(5)
        }
        None if matches!(find, Some(FindError::None { .. })) => ExitCode::from(3),
        None if matches!(find, Some(FindError::Several { .. })) => ExitCode::from(2),
        None => ExitCode::FAILURE,
    }
}

/// Logs go to stderr; under systemd that is the journal.
pub(crate) fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VESTIGO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,quarantine=info"));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
}

/// Where the vault is.
#[derive(clap::Args)]
pub(crate) struct VaultArguments {
    /// The vault: file:///folder or s3://bucket/prefix [default: the one in the configuration]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// Configuration file [default: /etc/vestigo/quarantine.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// S3 server, http(s)://host:port
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// S3 region
    #[arg(long)]
    region: Option<String>,
    /// JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

impl VaultArguments {
    pub(crate) fn config(&self) -> Result<Option<Config>> {
        match &self.config {
            Some(path) => Ok(Some(Config::load(path)?)),
            // With a vault on the command line an investigator needs no (perhaps unreadable) configuration.
            None if self.vault.is_some() => Ok(Config::load(Path::new(CONFIG)).ok()),
            None if Path::new(CONFIG).exists() => Ok(Some(Config::load(Path::new(CONFIG))?)),
            None => Ok(None),
        }
    }

    pub(crate) fn open(&self) -> Result<Arc<dyn Vault>> {
        let config = self.config()?;
        let url = match (&self.vault, &config) {
            (Some(url), _) => Url::parse(url).map_err(End::Usage)?,
            (None, Some(config)) => config.url()?,
            (None, None) => {
                let text =
                    format!("no vault is named: give --vault URL, or --config FILE, or put the latter at {CONFIG}");
                return Err(End::Usage(text).into());
            }
        };
        let mut s3 = match (&url, &config) {
            (Url::Folder(_), _) => S3Settings::default(),
            (_, Some(config)) => config.s3()?,
            (_, None) => S3Settings { credentials: config::credentials(None)?, ..S3Settings::default() },
        };
        if let Some(endpoint) = self.endpoint.clone().or_else(|| std::env::var("AWS_ENDPOINT_URL").ok()) {
            s3.endpoint.get_or_insert(endpoint.clone());
            if self.endpoint.is_some() {
                s3.endpoint = Some(endpoint);
            }
        }
        if let Some(region) = &self.region {
            s3.region.clone_from(region);
        }
        Ok(vault::open(&url, &s3, Open::Existing)?)
    }
}

/// Why somebody wants to see evidence.
#[derive(clap::Args)]
pub(crate) struct AccessArguments {
    /// Case that the access belongs to; goes into custody
    #[arg(long)]
    case: Option<String>,
    /// Why it is needed; goes into custody
    #[arg(long)]
    reason: Option<String>,
}

impl AccessArguments {
    /// Puts the access into custody.
    pub(crate) fn record(&self, vault: &dyn Vault, item: ItemId, what: What, detail: &[(&str, String)]) -> Result<()> {
        let draft = Draft {
            what,
            item: Some(item),
            who: Actor::current(),
            case: self.case.clone(),
            reason: self.reason.clone(),
            detail: detail.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        };
        custody::append(vault, &draft, SystemClock.now()).context("the access cannot be put into custody")?;
        Ok(())
    }

    /// The same where a store that we may only read must not stand in the way of looking.
    pub(crate) fn try_record(&self, vault: &dyn Vault, item: ItemId, what: What, detail: &[(&str, String)]) {
        if let Err(error) = self.record(vault, item, what, detail) {
            tracing::warn!("{error:#}");
        }
    }
}

pub(crate) fn print(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

/// A bar on stderr, on a terminal only.
pub(crate) fn bar(total: u64, doing: &'static str) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let form = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.with_message(doing)
}

/// Requests to the store at once.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 16)
}

/// Bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
