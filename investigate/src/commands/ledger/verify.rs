//! `vestigo ledger verify` and `status`.

use anyhow::Result;
use serde::Serialize;
use vestigo_ledger::{
    Signers, holds,
    verify::{HostReport, Report, VerifyOptions, verify},
};

use super::{
    super::{Body, Output, json},
    arguments::{Verify, Where},
    size,
};
use crate::{
    exit::Exit,
    render::{Style, safe},
};

#[derive(Serialize)]
struct Question {
    ledgers: Vec<String>,
    signers: Vec<String>,
    quick: bool,
}

/// Verifies.
pub fn run(arguments: &Verify, style: Style) -> Result<Output> {
    let files = arguments.signers();
    let mut signers = Signers::default();
    for file in &files {
        signers = signers.and(Signers::read(file)?);
    }
    let ledgers = arguments.place.ledgers();
    let report = verify(&ledgers, &VerifyOptions { signers, quick: arguments.quick }, &mut |_| {})?;
    let exit = if report.findings.is_empty() { Exit::Found } else { Exit::Broken };
    let shown = |paths: &[std::path::PathBuf]| paths.iter().map(|path| path.display().to_string()).collect();
    let question = Question { ledgers: shown(&ledgers), signers: shown(&files), quick: arguments.quick };
    let text = match arguments.place.json {
        true => json("ledger-verify", &question, &report)?,
        false => text(&question, &report, style),
    };
    Ok(Output { body: Body::Text(text), exit, found: None })
}

fn text(question: &Question, report: &Report, style: Style) -> String {
    let mut text = String::new();
    for host in &report.hosts {
        text.push_str(&of_host(host, style));
    }
    if report.hosts.is_empty() {
        text.push_str("No host has written here yet.\n");
    }
    if question.signers.is_empty() {
        text.push_str("No trust file: nobody says whose keys these are. Name one with --signers.\n");
    }
    for finding in &report.findings {
        let which = match (finding.first, finding.last) {
            (first, last) if first == last => format!("segment {first}"),
            (first, last) => format!("segments {first} to {last}"),
        };
        let name = style.warning(&format!("{:<20}", finding.what.as_str()));
        text.push_str(&format!("\n{name} {} {which}: {}\n", finding.host, safe(&finding.detail)));
        text.push_str(&format!("{:21}at {}\n{:21}{}\n", "", safe(&finding.place), "", finding.advice));
    }
    let how = if question.quick { " (chain, signatures and lengths; no data file was read)" } else { "" };
    text.push_str(&match report.findings.len() {
        0 => format!("\nWhole{how}.\n"),
        1 => format!("\n1 finding{how}.\n"),
        many => format!("\n{many} findings{how}.\n"),
    });
    text
}

fn of_host(host: &HostReport, style: Style) -> String {
    let name = style.heading(host.host.as_str());
    let mut text = format!(
        "{name}  {} segments to number {}, {} records in {} files ({})\n",
        host.segments,
        host.last,
        host.rows,
        host.files,
        size(host.bytes)
    );
    if host.replaced > 0 {
        text.push_str(&format!("  of these {} were compacted into others\n", host.replaced));
    }
    if host.removed > 0 {
        text.push_str(&format!("  {} files were removed on purpose, with signed tombstones\n", host.removed));
    }
    if let Some(head) = host.head {
        text.push_str(&format!("  head {head}\n"));
    }
    text
}

#[derive(Serialize)]
struct Status {
    hosts: Vec<HostReport>,
    holds: usize,
}

/// What is there.
pub fn status(arguments: &Where, style: Style) -> Result<Output> {
    let ledgers = arguments.ledgers();
    let report = verify(&ledgers, &VerifyOptions { quick: true, ..VerifyOptions::default() }, &mut |_| {})?;
    let mut held = 0;
    for ledger in &ledgers {
        held += holds::all(ledger)?.len();
    }
    let status = Status { hosts: report.hosts, holds: held };
    let text = if arguments.json {
        let shown: Vec<String> = ledgers.iter().map(|path| path.display().to_string()).collect();
        json("ledger-status", &shown, &status)?
    } else {
        let hosts: String = status.hosts.iter().map(|host| of_host(host, style)).collect();
        format!("{hosts}{held} holds in force. Whether all of it is whole says `vestigo ledger verify`.\n")
    };
    Ok(Output { body: Body::Text(text), exit: Exit::Found, found: None })
}
