//! `quarantine verify`

use anyhow::Result;
use quarantine::{
    canonical::{self, printable},
    catalog,
    custody::{self, Break, What},
    manifest,
    vault::Vault,
    verify::{Report, Verifier, volume},
};
use serde_json::json;

use super::{AccessArguments, End, VaultArguments, bar, bytes, print, threads};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The item's id, or its beginning
    #[arg(required_unless_present = "custody")]
    item: Option<String>,
    /// The whole custody log and nothing else
    #[arg(long, conflicts_with_all = ["item", "sample"])]
    custody: bool,
    /// Read only so many per cent of the chunks, chosen at random; whole-file digests are then not computed
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "100")]
    sample: f64,
    #[command(flatten)]
    vault: VaultArguments,
    #[command(flatten)]
    access: AccessArguments,
}

fn percent(text: &str) -> Result<f64, String> {
    let value: f64 = text.trim_end_matches('%').parse().map_err(|_| format!("{text:?} is not a number of per cent"))?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err(format!("{text} is not between 0 and 100 per cent")) }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let vault = arguments.vault.open()?;
    let Some(wanted) = &arguments.item else { return custody_log(&*vault, arguments.vault.json) };
    let item = catalog::resolve(&*vault, wanted)?;
    let total = manifest::load(&*vault, &item).map_or(0, |stored| volume(&stored.manifest));
    let bar = bar(total, "verifying");
    let progress = |count| bar.inc(count);
    let verifier = Verifier { vault: &*vault, sample: arguments.sample, threads: threads(), progress: &progress };
    let report = verifier.item(&item)?;
    bar.finish_and_clear();
    let result = if report.is_good() { "good".to_owned() } else { format!("{} findings", report.findings.len()) };
    let detail = [("result", result), ("sample", format!("{}%", report.sample)), ("chunks", report.chunks.to_string())];
    arguments.access.try_record(&*vault, item, What::Verified, &detail);
    if arguments.vault.json {
        print(&canonical::to_text(&json!({ "v": 1, "good": report.is_good(), "report": report }))?)?;
    } else {
        print(&describe(&report))?;
    }
    if report.is_good() { Ok(()) } else { Err(End::Bad.into()) }
}

fn custody_log(vault: &dyn Vault, json: bool) -> Result<()> {
    let chain = custody::walk(vault, threads())?;
    let good = chain.breaks.is_empty();
    if json {
        print(&canonical::to_text(&json!({ "v": 1, "good": good, "custody": chain }))?)?;
    } else {
        print(&format!("custody log of {}: {} entries", vault.url(), chain.entries))?;
        for Break { number, why } in &chain.breaks {
            print(&printable(&format!("  custody-chain: custody entry {number}: {why}")))?;
        }
        print(if good { "good" } else { "NOT as it was written" })?;
    }
    if good { Ok(()) } else { Err(End::BadLog.into()) }
}

fn describe(report: &Report) -> String {
    let mut lines = Vec::new();
    let extent =
        if report.sample >= 100.0 { "every chunk".to_owned() } else { format!("a sample of {}%", report.sample) };
    lines.push(format!(
        "item {}: {extent} read from the store: {} chunks, {}, {} whole-file SHA-256",
        report.item,
        report.chunks,
        bytes(report.bytes),
        report.images
    ));
    for finding in &report.findings {
        let kind = canonical::to_text(&finding.kind).unwrap_or_default();
        let disk = finding.disk.as_ref().map_or(String::new(), |disk| format!(" {disk}"));
        let layer = finding.layer.map_or(String::new(), |layer| format!(".{layer}"));
        let offset = finding.offset.map_or(String::new(), |offset| format!(" at byte {offset}"));
        lines.push(printable(&format!("  {}{disk}{layer}{offset}: {}", kind.trim_matches('"'), finding.detail)));
    }
    if report.unlisted > 0 {
        lines.push(format!("  and {} more", report.unlisted));
    }
    lines.push(if report.is_good() { "good".to_owned() } else { "NOT as it was stored".to_owned() });
    lines.join("\n")
}
