//! `quarantine probe`

use anyhow::Result;
use quarantine::{canonical, custody::Actor, daemon, vault::probe};
use serde_json::json;
use vestigo_model::SystemClock;

use super::{VaultArguments, print};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    vault: VaultArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let vault = arguments.vault.open()?;
    let caps = vault.probe()?;
    let recorded = daemon::append_probe(&*vault, &caps, Actor::current(), &SystemClock)?;
    if arguments.vault.json {
        let all = json!({ "v": 1, "vault": vault.url(), "capabilities": caps, "custody": recorded.entry.number });
        return print(&canonical::to_text(&all)?);
    }
    let create_only = if caps.create_only { "works" } else { "IGNORED: objects can be overwritten" };
    print(&format!(
        "vault        {}\ncreate-only  {create_only}\nchecksums    {}\nobject lock  {}\n             {}\ncustody      entry {}",
        vault.url(),
        caps.checksum.describe(),
        caps.object_lock.describe(),
        caps.detail,
        recorded.entry.number
    ))?;
    let wanted = arguments.vault.config()?.map_or(probe::LockMode::Off, |config| config.retention.object_lock);
    probe::judge(&vault.url(), &caps, wanted).map_err(anyhow::Error::msg)
}
