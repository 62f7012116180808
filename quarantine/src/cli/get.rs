//! `quarantine get`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use quarantine::{
    canonical::{self, printable},
    catalog,
    custody::{self, What},
    export::{self, ExportError},
    layout,
    manifest::{self, Captured, DiskRecord, LayerRecord, LayerState, Manifest},
    vault::{Key, Vault},
};
use serde_json::json;

use super::{AccessArguments, End, VaultArguments, bar, bytes, print, threads};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The item's id, or its beginning
    item: String,
    /// Which disk, as the guest named it [default: the only one]
    #[arg(long)]
    disk: Option<String>,
    /// Which file of the disk's chain: 0 is the image, then its backing files
    #[arg(long, default_value_t = 0, conflicts_with = "all")]
    layer: usize,
    /// All files of all disks (or of --disk), the manifest and the domain XML, into a folder
    #[arg(long)]
    all: bool,
    /// The file (or with --all the folder) to write; nothing is overwritten, and with --all what is there already may stay
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Give the files out even if custody does not confirm the manifest; goes into custody
    #[arg(long)]
    accept_unrecorded: bool,
    #[command(flatten)]
    vault: VaultArguments,
    #[command(flatten)]
    access: AccessArguments,
}

struct Job<'a> {
    disk: &'a DiskRecord,
    number: usize,
    captured: &'a Captured,
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let vault = arguments.vault.open()?;
    let item = catalog::resolve(&*vault, &arguments.item)?;
    let stored = manifest::load(&*vault, &item)?;
    let objection = custody::objection(&*vault, &item, stored.sha256)?;
    match &objection {
        Some(why) if !arguments.accept_unrecorded => {
            return Err(End::Altered(format!(
                "item {item} is not what was captured, and is not given out: {why}; `quarantine verify` names all that is \
                 wrong, --accept-unrecorded gives it out all the same"
            ))
            .into());
        }
        Some(why) => tracing::warn!("item {item} is not what was captured: {}", printable(why)),
        None => {}
    }
    let jobs = if arguments.all { all(&stored.manifest, arguments)? } else { vec![one(&stored.manifest, arguments)?] };
    if let Some(job) = jobs.iter().find(|job| !arguments.all && job.out.symlink_metadata().is_ok()) {
        return Err(ExportError::Exists(job.out.clone()).into());
    }
    // Custody first: bytes that leave the vault without a record would be worse than a record without bytes.
    let names: Vec<String> = jobs.iter().map(|job| format!("{}.{}", job.disk.target, job.number)).collect();
    let mut detail = vec![("files", names.join(" ")), ("out", arguments.out.display().to_string())];
    detail.extend(objection.map(|why| ("accepted", why)));
    arguments.access.record(&*vault, item, What::Exported, &detail)?;
    let mut troubles = Vec::new();
    if arguments.all {
        fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
        for (key, name) in [(layout::manifest(&item)?, "manifest.json"), (layout::domain_xml(&item)?, "domain.xml")] {
            troubles.extend(copy_object(&*vault, &key, &arguments.out.join(name)).err());
        }
    }
    let bar = bar(jobs.iter().map(|job| job.captured.size).sum(), "getting");
    for job in &jobs {
        let export = if arguments.all { export::layer_again } else { export::layer };
        let digest = match export(&*vault, job.captured, &job.out, threads(), &|count| bar.inc(count)) {
            Ok(digest) => digest,
            // The other files may be whole.
            Err(error) if arguments.all => {
                troubles.push(anyhow::Error::from(error).context(format!("{} is not written", job.out.display())));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if !job.captured.changed.is_empty() {
            let (how, path) = (printable(&job.captured.changed.join("; ")), job.out.display());
            tracing::warn!(
                "{path} changed while it was acquired: {how}. It is what was read then, not its state at one moment"
            );
        }
        let text = if arguments.vault.json {
            let record = json!({
                "v": 1, "item": item, "disk": job.disk.target, "layer": job.number, "path": job.out,
                "size": job.captured.size, "sha256": digest, "changed": job.captured.changed,
            });
            canonical::to_text(&record)?
        } else {
            let out = job.out.display().to_string();
            let agrees =
                if job.captured.sha256 == Some(digest) { "as in the manifest" } else { "none to compare it with" };
            printable(&format!("{out}: {}, SHA-256 {digest}, {agrees}", bytes(job.captured.size)))
        };
        bar.suspend(|| print(&text))?;
    }
    bar.finish_and_clear();
    let count = troubles.len();
    match troubles.pop() {
        None => Ok(()),
        Some(only) if count == 1 => Err(only),
        Some(last) => {
            troubles.iter().for_each(|trouble| tracing::error!("{}", printable(&format!("{trouble:#}"))));
            Err(last.context(format!("{count} files could not be got, among them")))
        }
    }
}

fn captured<'a>(layer: &'a LayerRecord, disk: &str, number: usize) -> Result<&'a Captured, End> {
    match &layer.state {
        LayerState::Captured(captured) => Ok(captured),
        LayerState::Missing { why } => {
            Err(End::NotFound(format!("file {number} of disk {disk} could not be kept: {why}")))
        }
    }
}

fn wanted<'a>(manifest: &'a Manifest, arguments: &Arguments) -> Result<Vec<&'a DiskRecord>> {
    let names = || manifest.disks.iter().map(|d| d.target.as_str()).collect::<Vec<_>>().join(", ");
    match &arguments.disk {
        None => Ok(manifest.disks.iter().collect()),
        Some(name) => match manifest.disks.iter().find(|disk| disk.target == *name) {
            Some(disk) => Ok(vec![disk]),
            None => Err(End::NotFound(format!("the item has no disk {name:?}; it has: {}", names())).into()),
        },
    }
}

fn one<'a>(manifest: &'a Manifest, arguments: &Arguments) -> Result<Job<'a>> {
    let disks = wanted(manifest, arguments)?;
    let [disk] = disks.as_slice() else {
        let names: Vec<&str> = disks.iter().map(|d| d.target.as_str()).collect();
        return Err(End::Usage(format!(
            "the item has {} disks ({}); name one with --disk, or take --all",
            disks.len(),
            names.join(", ")
        ))
        .into());
    };
    let number = arguments.layer;
    let layer = disk.layers.get(number).ok_or_else(|| {
        End::NotFound(format!(
            "disk {} has {} file(s), counted from 0; there is no {number}",
            disk.target,
            disk.layers.len()
        ))
    })?;
    let captured = captured(layer, &disk.target, number)?;
    Ok(Job { disk, number, captured, out: arguments.out.clone() })
}

fn all<'a>(manifest: &'a Manifest, arguments: &Arguments) -> Result<Vec<Job<'a>>> {
    let mut jobs = Vec::new();
    for disk in wanted(manifest, arguments)? {
        for (number, layer) in disk.layers.iter().enumerate() {
            match layer.captured() {
                Some(captured) => {
                    let name = format!("{}.{number}.{}", plain(&disk.target), plain(&layer.format));
                    jobs.push(Job { disk, number, captured, out: arguments.out.join(name) });
                }
                None => {
                    tracing::warn!(disk = disk.target, number, "this file could not be kept; see `quarantine show`")
                }
            }
        }
    }
    Ok(jobs)
}

/// A name from a domain XML as part of a file name.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(32).collect()
}

fn copy_object(vault: &dyn Vault, key: &Key, out: &Path) -> Result<()> {
    let bytes = vault.get(key)?;
    if fs::symlink_metadata(out).is_ok_and(|meta| meta.is_file()) && fs::read(out).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let mut file = fs::File::create_new(out).with_context(|| format!("cannot write {}", out.display()))?;
    std::io::Write::write_all(&mut file, &bytes).with_context(|| format!("cannot write {}", out.display()))
}
