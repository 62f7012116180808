//! Where ledgers are: folders and buckets.

mod s3;

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc};

use anyhow::Result;
use quarantine::vault::{S3Vault, Url};
use vestigo_ledger::{FolderStore, Ledger, OpenOptions, Store};

use crate::{exit::Usage, settings::Settings};

/// Reads what `--ledger` takes: a folder, `file:///folder` or `s3://bucket/prefix`.
fn parse(text: &str) -> Result<Url, Usage> {
    if !text.contains("://") {
        return Ok(Url::Folder(PathBuf::from(text)));
    }
    let bad = |_| {
        let how = "write a folder, file:///folder or s3://bucket/prefix with --ledger or VESTIGO_LEDGER";
        Usage(format!("{text:?} is no ledger; {how}"))
    };
    Url::parse(text).map_err(bad)
}

/// Opens the ledgers.
///
/// # Errors
/// One of them is not there or cannot be read.
pub fn open(ledgers: &[String], settings: &Settings) -> Result<Ledger> {
    let stores: Result<Vec<Arc<dyn Store>>> = ledgers.iter().map(|ledger| store(ledger, settings)).collect();
    Ok(Ledger::open(stores?, OpenOptions { catalog: catalog() })?)
}

fn store(ledger: &str, settings: &Settings) -> Result<Arc<dyn Store>> {
    Ok(match parse(ledger)? {
        Url::Folder(folder) => FolderStore::shared(&folder),
        Url::S3 { bucket, prefix } => {
            let vault = S3Vault::open(&bucket, &prefix, &settings.s3.settings()?)?;
            vault.check_bucket()?;
            Arc::new(s3::BucketStore::new(vault))
        }
    })
}

/// Where what manifests said is kept: a cache of the user's own.
fn catalog() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = std::fs::metadata("/proc/self").is_ok_and(|of| of.uid() == 0);
    let cache = folder("XDG_CACHE_HOME")
        .or_else(|| root.then(|| PathBuf::from("/var/cache")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("vestigo/catalog.sqlite"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn folders_and_urls() {
        assert_eq!(parse("some/folder").unwrap(), Url::Folder("some/folder".into()));
        assert_eq!(parse("file:///srv/ledger").unwrap(), Url::Folder("/srv/ledger".into()));
        assert_eq!(parse("s3://bucket/ledger").unwrap().to_string(), "s3://bucket/ledger");
        for bad in ["http://x", "file://srv", "s3://B"] {
            assert!(parse(bad).unwrap_err().to_string().contains("write a folder"), "{bad}");
        }
    }
}
