//! `vestigo pilots`.

use anyhow::Result;
use vestigo_ledger::questions::pilots::{PilotsAnswer, PilotsQuestion, PilotsRow};

use super::{Body, Desk, Output, count, exit, json};
use crate::{
    arguments::{Pilots, open_range},
    render::{self, Style, coverage, parts, safe},
};

/// Asks and renders.
pub fn run(arguments: &Pilots, desk: &Desk) -> Result<Output> {
    let range = open_range(arguments.from, arguments.to)?;
    let ledger = desk.ledger()?;
    // An open end means the ledger's own end: the coverage of centuries that it says nothing about would only mislead.
    let range = match range {
        Some(range) => Some(clip(range, arguments, ledger.extent()?)),
        None => None,
    };
    let question = PilotsQuestion { subject: arguments.user.clone(), issuer: arguments.issuer.clone(), range };
    let answer = ledger.pilots(&question)?;
    let text =
        if arguments.common.json { json("pilots", &question, &answer)? } else { text(&question, &answer, desk.style) };
    let found = !answer.rows.is_empty();
    Ok(Output {
        body: Body::Text(text),
        found: Some(count(answer.rows.len())),
        exit: exit(found, answer.coverage.as_ref(), arguments.common.require_coverage),
    })
}

fn clip(
    range: vestigo_model::TimeRange,
    arguments: &Pilots,
    extent: Option<vestigo_model::TimeRange>,
) -> vestigo_model::TimeRange {
    let Some(extent) = extent else { return range };
    let from = arguments.from.unwrap_or(extent.from.min(range.to));
    let to = arguments.to.unwrap_or(extent.to.max(range.from));
    vestigo_model::TimeRange::new(from, to).unwrap_or(range)
}

fn text(question: &PilotsQuestion, answer: &PilotsAnswer, style: Style) -> String {
    let issuer = question.issuer.as_ref().map_or(String::new(), |issuer| format!(" ({})", safe(issuer.as_str())));
    let mut text = format!("Pilots that ran payloads of {}{issuer}\n\n", safe(question.subject.as_str()));
    if answer.rows.is_empty() {
        text.push_str("Nothing found: no payload of this user is recorded in this time.\n\n");
    }
    for row in &answer.rows {
        text.push_str(&pilot(row, style));
        text.push('\n');
    }
    for note in &answer.notes {
        text.push_str(&format!("{} {}\n\n", style.warning("NOTE"), safe(note)));
    }
    match &answer.coverage {
        Some(window) => text.push_str(&coverage::block(window, style)),
        None => text.push_str(&coverage::extent(None)),
    }
    text
}

fn pilot(row: &PilotsRow, style: Style) -> String {
    let instance = row.instance.as_ref().map_or("not recorded", |instance| instance.as_str());
    let mut text = format!("{}\n", style.heading(&format!("Pilot {}", safe(row.pilot.as_str()))));
    let facts = format!("VO {}, instance {}, host {}", parts::vo_word(row.vo.as_ref()), safe(instance), row.host);
    text.push_str(&format!("  {} {facts}\n", style.host("HOST FACTS  ")));
    text.push_str(&format!("  {}\n", style.guest("GUEST CLAIMS")));
    let mut table = render::table(&["PAYLOAD", "RUN", "VO", "ISSUER", "TRUST", "START", "END", "EXIT"]);
    for claims in &row.payloads {
        table.add_row([
            safe(claims.payload_id.as_str()),
            claims.payload.to_string(),
            claims.vo_claimed.to_string(),
            safe(claims.user.issuer.as_str()),
            claims.trust.as_str().to_owned(),
            claims.start_received.to_string(),
            claims.end.map_or("none recorded".to_owned(), |end| end.received.to_string()),
            claims.end.map_or(String::new(), |end| end.exit.to_string()),
        ]);
    }
    let lines = render::table_text(&table);
    text.extend(lines.lines().map(|line| format!("   {line}\n")));
    for note in &row.notes {
        text.push_str(&format!("  {} {}\n", style.warning("NOTE"), safe(note)));
    }
    text
}
