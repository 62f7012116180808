//! `vestigo access`: the record of questions, and whether it is as it was written.

use std::collections::VecDeque;

use anyhow::Result;
use serde::Serialize;

use super::{Body, JSON_VERSION, Output};
use crate::{
    access::{
        Entry,
        log::{self, Checked},
    },
    arguments::AccessLog,
    exit::Exit,
    render::{self, safe, safe_json},
    settings::Settings,
};

#[derive(Serialize)]
struct Line<'a> {
    version: u32,
    kind: &'a str,
    line: u64,
    #[serde(flatten)]
    entry: &'a Entry,
}

#[derive(Serialize)]
struct Verdict<'a> {
    version: u32,
    kind: &'a str,
    whole: bool,
    #[serde(flatten)]
    checked: &'a Checked,
}

/// Reads and renders. Reading the record is no question about anybody's traffic and is not recorded itself.
pub fn run(arguments: &AccessLog) -> Result<Output> {
    let settings = Settings::load(arguments.config.as_deref())?;
    let path = arguments.log.clone().unwrap_or(settings.access.log);
    let (mut last, mut found) = (VecDeque::new(), 0);
    let checked = log::read(&path, arguments.head.as_deref(), |line, entry| {
        if wanted(arguments, &entry) {
            found += 1;
            last.push_back((line, entry));
            if last.len() > arguments.limit {
                last.pop_front();
            }
        }
    })?;
    let text = if arguments.json { json(&last, &checked)? } else { text(&last, found, &checked) };
    let exit = match (arguments.verify || arguments.head.is_some(), checked.whole(), found) {
        (true, false, _) => Exit::Broken,
        (_, _, 0) => Exit::Nothing,
        _ => Exit::Found,
    };
    Ok(Output { body: Body::Text(text), exit, found: Some(found) })
}

fn json(last: &VecDeque<(u64, Entry)>, checked: &Checked) -> Result<String> {
    let mut text = String::new();
    for (line, entry) in last {
        let line = Line { version: JSON_VERSION, kind: "access", line: *line, entry };
        text.push_str(&safe_json(&serde_json::to_string(&line)?));
        text.push('\n');
    }
    let verdict = Verdict { version: JSON_VERSION, kind: "access-check", whole: checked.whole(), checked };
    text.push_str(&(serde_json::to_string(&verdict)? + "\n"));
    Ok(text)
}

fn text(last: &VecDeque<(u64, Entry)>, found: u64, checked: &Checked) -> String {
    let mut text = String::new();
    if !last.is_empty() {
        let mut table = render::table(&["LINE", "TIME", "WHO", "CASE", "REASON", "QUESTION", "FOUND", "EXIT"]);
        for (line, entry) in last {
            table.add_row(row(*line, entry));
        }
        text.push_str(&render::table_text(&table));
        text.push_str(&format!("{} of {found} questions\n\n", last.len()));
    }
    text + &verdict(checked)
}

fn wanted(arguments: &AccessLog, entry: &Entry) -> bool {
    arguments.case.as_ref().is_none_or(|case| entry.case.as_ref() == Some(case))
        && arguments.from.is_none_or(|from| entry.time >= from)
        && arguments.to.is_none_or(|to| entry.time <= to)
}

fn row(line: u64, entry: &Entry) -> Vec<String> {
    let who = entry.who.login.as_ref().or(entry.who.user.as_ref());
    let who = who.map_or_else(|| format!("uid {}", entry.who.uid), |name| safe(name));
    let word = |word: &Option<String>| word.as_deref().map_or("-".to_owned(), safe);
    vec![
        line.to_string(),
        entry.time.to_string(),
        format!("{who}@{}", safe(&entry.host)),
        word(&entry.case),
        word(&entry.reason),
        safe(&entry.command.join(" ")),
        entry.found.map_or("-".to_owned(), |found| found.to_string()),
        entry.exit.to_string(),
    ]
}

fn verdict(checked: &Checked) -> String {
    let mut text = String::new();
    for found in &checked.findings {
        let (line, what) = (found.line, found.what);
        let words = match what {
            "changed" => "was changed, or lines beside it were taken out or put in; compare it with a backup",
            "unfinished" => "was left unfinished by a crash; its answer was never shown",
            _ => "is no record of a question; compare it with a backup",
        };
        text.push_str(&format!("Line {line} {words}.\n"));
    }
    if checked.more_findings > 0 {
        text.push_str(&format!("{} more findings are not listed.\n", checked.more_findings));
    }
    if checked.holds == Some(false) {
        text.push_str(
            "No line has the digest given with --head: lines were cut off at the end, or all was written anew.\n",
        );
    }
    let (lines, head) = (checked.lines, &checked.head);
    let state = if checked.whole() { "whole" } else { "NOT as it was written" };
    text.push_str(&format!("{lines} lines, chain {state}. Digest of the last line: {head}\n"));
    text
}
