//! `vestigo ips`.

use anyhow::Result;
use vestigo_ledger::questions::ips::{AddressKind, IpsAnswer, IpsQuestion, IpsRow};

use super::{Body, Desk, Output, count, exit, json};
use crate::{
    arguments::{Ips, range},
    render::{self, Style, coverage, safe},
};

/// Asks and renders.
pub fn run(arguments: &Ips, desk: &Desk) -> Result<Output> {
    let question = IpsQuestion {
        vo: arguments.vo.clone(),
        range: range(arguments.from, arguments.to)?,
        pilot: arguments.pilot.clone(),
    };
    let answer = desk.ledger()?.ips(&question)?;
    let text =
        if arguments.common.json { json("ips", &question, &answer)? } else { text(&question, &answer, desk.style) };
    let found = !answer.rows.is_empty();
    Ok(Output {
        body: Body::Text(text),
        found: Some(count(answer.rows.len())),
        exit: exit(found, Some(&answer.coverage), arguments.common.require_coverage),
    })
}

fn text(question: &IpsQuestion, answer: &IpsAnswer, style: Style) -> String {
    let pilot = question.pilot.as_ref().map_or(String::new(), |pilot| format!(" (pilot {})", safe(pilot.as_str())));
    let (from, to) = (question.range.from, question.range.to);
    let mut text = format!("Addresses of VO {}{pilot} between {from} and {to}\n\n", question.vo);
    if answer.rows.is_empty() {
        text.push_str("Nothing found: no VM of it ran or sent anything in this time.\n\n");
    } else {
        let mut table = render::table(&[
            "ADDRESS",
            "KIND",
            "INSTANCE",
            "HOST",
            "GIVEN",
            "FIRST SEEN",
            "LAST SEEN",
            "FLOWS",
            "BYTES",
        ]);
        for line in &answer.rows {
            table.add_row(row(line));
        }
        text.push_str(&style.host("HOST FACTS"));
        text.push('\n');
        text.push_str(&render::table_text(&table));
        text.push('\n');
    }
    if answer.unattributed_flows > 0 {
        let flows = answer.unattributed_flows;
        text.push_str(&format!(
            "{flows} more flow records of these VMs cannot be tied to any payload and are not counted.\n\n"
        ));
    }
    text.push_str(&coverage::block(&answer.coverage, style));
    text
}

fn row(row: &IpsRow) -> Vec<String> {
    let kind = match row.kind {
        AddressKind::Own => "own",
        AddressKind::PostNat if row.certain => "post-nat",
        AddressKind::PostNat => "post-nat?",
        AddressKind::InTunnel => "in-tunnel",
    };
    let time = |time: Option<vestigo_model::Timestamp>| time.map_or("never".to_owned(), |time| time.to_string());
    vec![
        row.ip.to_string(),
        kind.to_owned(),
        safe(row.instance.as_str()),
        row.host.to_string(),
        if row.expected { "yes" } else { "no" }.to_owned(),
        time(row.first),
        time(row.last),
        if row.folded > 0 { format!("{} ({} folded)", row.flows, row.folded) } else { row.flows.to_string() },
        row.bytes.to_string(),
    ]
}
