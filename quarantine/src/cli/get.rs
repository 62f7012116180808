//! `quarantine get`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use quarantine::{
    canonical::{self, printable},
    catalog,
    custody::What,
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
    /// The file (or with --all the folder) to write; nothing is overwritten
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
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
    let jobs = if arguments.all { all(&stored.manifest, arguments)? } else { vec![one(&stored.manifest, arguments)?] };
    if let Some(job) = jobs.iter().find(|job| job.out.symlink_metadata().is_ok()) {
        return Err(ExportError::Exists(job.out.clone()).into());
    }
    // Custody first: bytes that leave the vault without a record would be worse than a record without bytes.
    let names: Vec<String> = jobs.iter().map(|job| format!("{}.{}", job.disk.target, job.number)).collect();
    let detail = [("files", names.join(" ")), ("out", arguments.out.display().to_string())];
    arguments.access.record(&*vault, item, What::Exported, &detail)?;
    if arguments.all {
        fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
        copy_object(&*vault, &layout::manifest(&item)?, &arguments.out.join("manifest.json"))?;
        copy_object(&*vault, &layout::domain_xml(&item)?, &arguments.out.join("domain.xml"))?;
    }
    let bar = bar(jobs.iter().map(|job| job.captured.size).sum(), "getting");
    for job in &jobs {
        let digest = export::layer(&*vault, job.captured, &job.out, threads(), &|count| bar.inc(count))?;
        let text = if arguments.vault.json {
            let record = json!({
                "v": 1, "item": item, "disk": job.disk.target, "layer": job.number, "path": job.out,
                "size": job.captured.size, "sha256": digest,
            });
            canonical::to_text(&record)?
        } else {
            let out = job.out.display().to_string();
            printable(&format!("{out}: {}, SHA-256 {digest}, as in the manifest", bytes(job.captured.size)))
        };
        bar.suspend(|| print(&text))?;
    }
    bar.finish_and_clear();
    Ok(())
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
    let mut file = fs::File::create_new(out).with_context(|| format!("cannot write {}", out.display()))?;
    std::io::Write::write_all(&mut file, &bytes).with_context(|| format!("cannot write {}", out.display()))
}
