//! `vestigo ledger …`: is the ledger whole, and what of it is kept for how long.

mod arguments;
mod keep;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use vestigo_ledger::{LedgerError, Signer};

pub use self::arguments::LedgerArguments;
use self::arguments::LedgerCommand;
use super::Output;
use crate::{exit::Usage, render::Style};

/// Does what was asked.
pub fn run(arguments: &LedgerArguments, style: Style) -> Result<Output> {
    match &arguments.command {
        LedgerCommand::Verify(arguments) => verify::run(arguments, style),
        LedgerCommand::Status(arguments) => verify::status(arguments, style),
        LedgerCommand::Compact(arguments) => keep::compact(arguments),
        LedgerCommand::Expire(arguments) => keep::expire(arguments, style),
        LedgerCommand::Hold(arguments) => keep::hold(arguments),
        LedgerCommand::Release(arguments) => keep::release(arguments),
        LedgerCommand::Holds(arguments) => keep::holds(arguments, style),
    }
}

/// The one ledger that is changed.
fn only(ledgers: &[PathBuf]) -> Result<&Path> {
    match ledgers {
        [one] => {
            there(one)?;
            Ok(one)
        }
        _ => Err(Usage("this changes one ledger; name it with --ledger DIR".to_owned()).into()),
    }
}

/// A hold in a folder that is no ledger would protect nothing, and nobody would know.
fn there(root: &Path) -> Result<(), LedgerError> {
    let of_ledger = |name: &str| name == "wal" || name.starts_with("date=");
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    match entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(of_ledger)) {
        true => Ok(()),
        false => Err(LedgerError::NotALedger { root: root.to_owned() }),
    }
}

fn signer(path: &Path) -> Result<Signer> {
    Signer::open(path).with_context(|| {
        format!(
            "Nothing may change without a signature; run this as root on the hypervisor, or name a key with --key ({})",
            path.display()
        )
    })
}

/// 10 MiB
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut left = bytes;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if left < 10_240 {
            break;
        }
        left /= 1024;
        unit = next;
    }
    format!("{left} {unit}")
}
