//! Where ledgers are: folders and buckets.

use std::path::PathBuf;

use anyhow::{Result, bail};
use quarantine::vault::Url;
use vestigo_ledger::Ledger;

use crate::{exit::Usage, settings::Settings};

/// Reads what `--ledger` takes: a folder, `file:///folder` or `s3://bucket/prefix`.
pub fn parse(text: &str) -> Result<Url, Usage> {
    if !text.contains("://") {
        return Ok(Url::Folder(PathBuf::from(text)));
    }
    Url::parse(text).map_err(|_| {
        Usage(format!("{text:?} is no ledger; write a folder, file:///folder or s3://bucket/prefix with --ledger or VESTIGO_LEDGER"))
    })
}

/// Opens the ledgers.
///
/// # Errors
/// One of them is not there or cannot be read.
pub fn open(ledgers: &[String], _settings: &Settings) -> Result<Ledger> {
    let mut folders = Vec::new();
    for ledger in ledgers {
        match parse(ledger)? {
            Url::Folder(folder) => folders.push(folder),
            Url::S3 { .. } => bail!("Object stores come with READ's stores"),
        }
    }
    Ok(Ledger::open(&folders)?)
}
