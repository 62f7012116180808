//! `quarantine list`

use anyhow::Result;
use comfy_table::{Table, presets};
use quarantine::{
    canonical::{self, printable},
    catalog::{self, Filter, Listing},
    config::Config,
    journal::Journals,
    layout,
    manifest::{Manifest, Stored},
    spool::Spool,
    vault::identity,
};
use serde_json::json;
use vestigo_model::{Timestamp, Vo};

use super::{End, VaultArguments, bytes, print};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    vault: VaultArguments,
    /// Machines of this VO (`unmapped` for those of none)
    #[arg(long)]
    vo: Option<String>,
    /// The machine of this instance id, libvirt name or domain UUID
    #[arg(long)]
    instance: Option<String>,
    /// Machines in which this user worked (a guest claim)
    #[arg(long)]
    user: Option<String>,
    /// Machines that still lived then
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// Machines that lived already then
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// What still waits in the spool, and why
    #[arg(long)]
    pending: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.pending {
        return pending(arguments);
    }
    if let (Some(from), Some(to)) = (arguments.from, arguments.to)
        && from > to
    {
        return Err(End::Usage(format!("--from {from} is after --to {to}; exchange them")).into());
    }
    let vault = arguments.vault.open()?;
    if identity::find(&*vault)?.is_none() {
        let (url, name) = (vault.url(), layout::IDENTITY);
        anyhow::bail!("{url} is no vault, or none that a daemon has used yet (it has no {name}); check the URL");
    }
    let filter = Filter {
        vo: arguments.vo.clone(),
        instance: arguments.instance.clone(),
        user: arguments.user.clone(),
        from: arguments.from,
        to: arguments.to,
    };
    let listing = catalog::list(&*vault, &filter)?;
    if arguments.vault.json {
        for stored in &listing.items {
            print(&canonical::to_text(&summary(stored))?)?;
        }
        for (item, why) in &listing.damaged {
            print(&canonical::to_text(&json!({ "v": 1, "item": item, "damaged": why }))?)?;
        }
    } else {
        print(&table(&listing).to_string())?;
    }
    for (item, why) in &listing.damaged {
        tracing::warn!(%item, "{}", printable(why));
    }
    match listing.damaged.len() {
        0 => Ok(()),
        count => {
            Err(End::Altered(format!("{count} item(s) have a damaged manifest and may be among those asked for"))
                .into())
        }
    }
}

fn users(manifest: &Manifest) -> Vec<String> {
    let mut users: Vec<String> =
        manifest.guest_claims.payloads.iter().map(|p| p.user.subject.as_str().to_owned()).collect();
    users.sort();
    users.dedup();
    users
}

fn summary(Stored { manifest, sha256 }: &Stored) -> serde_json::Value {
    json!({
        "v": 1,
        "item": manifest.item,
        "vo": manifest.vo,
        "instance": manifest.instance.id,
        "name": manifest.instance.name,
        "domain": manifest.instance.domain,
        "host": manifest.host,
        "start": manifest.instance.start,
        "end": manifest.instance.end,
        "deleted": manifest.deleted,
        "reason": manifest.reason,
        "size": manifest.size(),
        "disks": manifest.disks.iter().map(|d| json!({ "target": d.target, "layers": d.layers.len() })).collect::<Vec<_>>(),
        "claimed_users": users(manifest),
        "keep_until": manifest.retention.until,
        "remarks": manifest.remarks,
        "manifest_sha256": sha256,
    })
}

fn table(listing: &Listing) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["ITEM", "VO", "INSTANCE", "HOST", "ENDED", "DISKS", "SIZE", "USERS (CLAIMED)", "REMARKS"]);
    for Stored { manifest, .. } in &listing.items {
        let ended = manifest.instance.end.map_or(manifest.deleted, |end| end.time);
        let disks: Vec<&str> = manifest.disks.iter().map(|disk| disk.target.as_str()).collect();
        let users = users(manifest);
        table.add_row([
            manifest.item.to_string(),
            manifest.vo.as_ref().map_or("unmapped", Vo::as_str).to_owned(),
            printable(manifest.instance.id.as_str()),
            manifest.host.to_string(),
            ended.to_string(),
            printable(&disks.join(",")),
            bytes(manifest.size()),
            printable(&users.join(",")),
            if manifest.remarks.is_empty() { "-".to_owned() } else { manifest.remarks.len().to_string() },
        ]);
    }
    for (item, _) in &listing.damaged {
        table.add_row([&item.to_string(), "DAMAGED"]);
    }
    table
}

fn pending(arguments: &Arguments) -> Result<()> {
    let Some(config) = arguments.vault.config()? else {
        let text = "--pending looks into the spool of this host: name its configuration with --config FILE";
        return Err(End::Usage(text.to_owned()).into());
    };
    let rows = waiting(&config)?;
    if arguments.vault.json {
        for row in &rows {
            print(&canonical::to_text(&json!({
                "v": 1, "item": row.item, "instance": row.instance, "state": row.state, "attempts": row.attempts,
                "trouble": row.trouble,
            }))?)?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["ITEM", "INSTANCE", "STATE", "ATTEMPTS", "TROUBLE"]);
    for row in rows {
        let attempts = row.attempts.to_string();
        table.add_row([row.item, printable(&row.instance), row.state.to_owned(), attempts, printable(&row.trouble)]);
    }
    print(&table.to_string())
}

struct Row {
    item: String,
    instance: String,
    state: &'static str,
    attempts: u32,
    trouble: String,
}

fn waiting(config: &Config) -> Result<Vec<Row>> {
    let journals = Journals::new(&config.state);
    let rows = Spool::view(&config.spool).waiting()?.into_iter().map(|waiting| match waiting.handover {
        Err(why) => {
            let item = waiting.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            Row { item: printable(&item), instance: "-".to_owned(), state: "unusable", attempts: 0, trouble: why }
        }
        Ok(handover) => {
            let journal = journals.find(&handover.item);
            let trouble = journal.as_ref().and_then(|j| j.trouble.clone());
            let state = match &journal {
                Some(j) if j.result.is_some() => "clearing up",
                Some(_) if trouble.is_some() => "waiting to try again",
                Some(_) => "being acquired",
                None => "waiting",
            };
            Row {
                item: handover.item.to_string(),
                instance: handover.instance.id.to_string(),
                state,
                attempts: journal.map_or(0, |j| j.attempts),
                trouble: trouble.unwrap_or_default(),
            }
        }
    });
    Ok(rows.collect())
}
