//! `quarantine show`

use anyhow::Result;
use quarantine::{
    canonical::{self, printable},
    catalog, custody,
    custody::{CustodyError, Recorded, What},
    manifest::{self, Captured, LayerState, Manifest, Stored},
    vault::VaultError,
};
use serde_json::json;
use vestigo_model::Vo;

use super::{AccessArguments, VaultArguments, bytes, print};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The item's id, or its beginning
    item: String,
    #[command(flatten)]
    vault: VaultArguments,
    #[command(flatten)]
    access: AccessArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let vault = arguments.vault.open()?;
    let item = catalog::resolve(&*vault, &arguments.item)?;
    let stored = manifest::load(&*vault, &item)?;
    arguments.access.try_record(&*vault, item, What::Shown, &[]);
    let mut warning = custody::objection(&*vault, &item, stored.sha256)?;
    let history = match custody::of_item(&*vault, &item) {
        Err(error @ (CustodyError::Damaged(..) | CustodyError::Vault(VaultError::NotFound(_)))) => {
            warning.get_or_insert(error.to_string());
            Vec::new()
        }
        history => history?,
    };
    if arguments.vault.json {
        let entries: Vec<_> = history.iter().map(|r| json!({ "sha256": r.digest, "entry": r.entry })).collect();
        let all = json!({
            "v": 1, "manifest": stored.manifest, "manifest_sha256": stored.sha256, "custody": entries,
            "warning": warning,
        });
        return print(&canonical::to_text(&all)?);
    }
    if let Some(why) = warning {
        print(&format!("WARNING: this is not what was captured: {}", printable(&why)))?;
    }
    print(&describe(&stored, &history))
}

fn describe(Stored { manifest: m, sha256 }: &Stored, history: &[Recorded]) -> String {
    let mut lines = vec![format!("item {}", m.item)];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<16} {}", printable(&value)));
    line("manifest", format!("SHA-256 {sha256}"));
    line("root", format!("BLAKE3 {}", String::from(m.root)));
    line("made by", format!("{} on {}, {} attempt(s)", m.tool, m.host, m.timings.attempts));
    line("keep until", format!("{} (store enforces: {})", m.retention.until, m.retention.object_lock.as_str()));
    for remark in &m.remarks {
        line("REMARK", remark.clone());
    }
    host_facts(m, &mut line);
    for disk in &m.disks {
        for (number, layer) in disk.layers.iter().enumerate() {
            let shared = if layer.shared { ", backing file" } else { "" };
            line(
                &format!("{}.{number}", disk.target),
                format!("{} ({}{shared})", layer.original.display(), layer.format),
            );
            match &layer.state {
                LayerState::Missing { why } => line("", format!("MISSING: {why}")),
                LayerState::Captured(captured) => captured_lines(captured, &mut line),
            }
        }
    }
    lines.push("guest claims (true as far as the VO's image is)".to_owned());
    for p in &m.guest_claims.payloads {
        let end = p.end.map_or("the machine's end".to_owned(), |end| end.to_string());
        let claim = format!(
            "payload {} of {}, pilot {}, VO {}, {} to {end}, {}",
            p.payload,
            p.user,
            p.pilot,
            p.vo,
            p.start,
            p.trust.as_str()
        );
        lines.push(format!("  {}", printable(&claim)));
    }
    lines.push("custody".to_owned());
    lines.extend(history.iter().map(|r| format!("  {}", printable(&custody_line(r)))));
    lines.join("\n")
}

fn host_facts(m: &Manifest, line: &mut impl FnMut(&str, String)) {
    let i = &m.instance;
    line("VO", m.vo.as_ref().map_or("unmapped", Vo::as_str).to_owned());
    line("instance", format!("{} ({}, domain {}, {})", i.id, i.name, i.domain, i.cloud.as_str()));
    if let Some(project) = &i.project {
        let name = project.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        line("project", format!("{}{name}", project.id));
    }
    let end = i.end.map_or("?".to_owned(), |end| end.time.to_string());
    line("lived", format!("{} to {end}, deleted {}, handed over: {}", i.start, m.deleted, m.reason));
    for tap in &i.taps {
        let expected: Vec<String> = tap.expected.iter().map(ToString::to_string).collect();
        line("tap", format!("{} {} {}", tap.name, tap.mac, expected.join(" ")));
    }
}

fn captured_lines(captured: &Captured, line: &mut impl FnMut(&str, String)) {
    let c = captured.chunks;
    line(
        "",
        format!(
            "{} ({} allocated), changed last {}",
            bytes(captured.size),
            bytes(captured.allocated),
            captured.modified
        ),
    );
    line("", format!("SHA-256 {}", captured.sha256.map_or("not recorded".to_owned(), |d| d.to_string())));
    line("", format!("BLAKE3 root {}", String::from(captured.root)));
    let kinds = format!("{} data, {} hole, {} zero, {} unreadable", c.data, c.hole, c.zero, c.unreadable);
    line("", format!("chunks: {kinds}; {} new in {} ({})", c.stored, captured.domain, bytes(c.stored_bytes)));
}

fn custody_line(Recorded { entry, .. }: &Recorded) -> String {
    let what = canonical::to_text(&entry.what).unwrap_or_default();
    let sudo = entry.who.sudo_user.as_ref().map_or(String::new(), |user| format!(" (sudo by {user})"));
    let mut text = format!(
        "{:>6} {} {} by {}{sudo} on {}",
        entry.number,
        entry.time,
        what.trim_matches('"'),
        entry.who.user,
        entry.who.machine
    );
    for (name, value) in [("case", &entry.case), ("reason", &entry.reason)] {
        if let Some(value) = value {
            text.push_str(&format!(", {name}: {value}"));
        }
    }
    text
}
