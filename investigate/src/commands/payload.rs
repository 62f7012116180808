//! `vestigo payload`.

use std::fmt::Write as _;

use anyhow::Result;
use vestigo_ledger::questions::{
    payload::{PayloadAnswer, PayloadQuestion, Story},
    who::EventSeen,
};

use super::{Body, Desk, Output, count, json};
use crate::{
    arguments::PayloadStory,
    exit::Exit,
    render::{Style, coverage, parts, safe},
};

/// Flow records listed as text, and in JSON; sums count all.
const SHOWN: usize = 50;
const LISTED: usize = 10_000;

/// Asks and renders.
pub fn run(arguments: &PayloadStory, desk: &Desk) -> Result<Output> {
    let flows = if arguments.common.json { LISTED } else { SHOWN };
    let question = PayloadQuestion { uid: arguments.uid, flows };
    let answer = desk.ledger()?.payload(&question)?;
    let text =
        if arguments.common.json { json("payload", &question, &answer)? } else { text(&question, &answer, desk.style) };
    let seen = !answer.stories.is_empty() && answer.stories.iter().all(|story| story.coverage.complete);
    let exit = match (arguments.common.require_coverage && !seen, answer.stories.is_empty()) {
        (true, _) => Exit::Incomplete,
        (false, true) => Exit::Nothing,
        (false, false) => Exit::Found,
    };
    Ok(Output { body: Body::Text(text), exit, found: Some(count(answer.stories.len())) })
}

fn text(question: &PayloadQuestion, answer: &PayloadAnswer, style: Style) -> String {
    let mut text = format!("The story of run {}\n\n", question.uid);
    match answer.stories.len() {
        0 => text.push_str("Nothing found: no VM announced a payload with this run id.\n"),
        1 => {}
        many => {
            let _ = writeln!(text, "{} {many} VMs announced this run id\n", style.warning("NOTE"));
        }
    }
    answer.stories.iter().for_each(|one| text.push_str(&story(one, style)));
    text
}

fn story(story: &Story, style: Style) -> String {
    let (host, domain) = (safe(story.host.as_str()), story.domain);
    let mut text = format!("{}\n", style.heading(&format!("On {host}, in domain {domain}")));
    let _ = writeln!(text, "  {}", style.host("HOST FACTS (seen by the hypervisor; the VM cannot forge them)"));
    match &story.host_facts {
        Some(facts) => text.push_str(&parts::host_facts(facts)),
        None => text.push_str("    the ledgers hold no record of the VM\n"),
    }
    let claims = "GUEST CLAIMS (said by the agent in the VM; as true as the VO's image)";
    let _ = writeln!(text, "  {}", style.guest(claims));
    text.push_str(&parts::guest_claims(&story.guest_claims));
    for (rule, effect) in &story.guest_claims.isolation {
        let state = serde_json::to_value(effect.state).ok();
        let state = state.as_ref().and_then(|state| state.as_str()).unwrap_or("unknown");
        let _ = writeln!(text, "      {} {}", safe(&rule.to_string()), safe(state));
    }
    for later in &story.later_claims {
        let _ = writeln!(text, "  {} said later under the same run id, and different:", style.warning("CONTRADICTED"));
        text.push_str(&parts::guest_claims(later));
    }
    text.push_str(&flows(story, style));
    text.push_str(&events(&story.events, story.events_total, style));
    for note in &story.notes {
        let _ = writeln!(text, "  {} {}", style.warning("NOTE"), safe(note));
    }
    text.push('\n');
    text.push_str(&coverage::block(&story.coverage, style));
    text
}

fn flows(story: &Story, style: Style) -> String {
    let (out, back) = (story.totals.bytes_out, story.totals.bytes_in);
    let mut text = format!("  {} {} records", style.heading("FLOWS"), story.flows_total);
    let _ = writeln!(text, ", {out} bytes out, {back} bytes in");
    story.flows.iter().for_each(|flow| text.push_str(&parts::flow(flow)));
    let shown = u64::try_from(story.flows.len()).unwrap_or(u64::MAX);
    if story.flows_total > shown {
        let _ = writeln!(text, "    the first {shown} are shown; `vestigo flows --payload` has all");
    }
    text
}

/// What happened, one line each.
pub fn events(events: &[EventSeen], total: usize, style: Style) -> String {
    let mut text = String::new();
    if events.is_empty() {
        return text;
    }
    let _ = writeln!(text, "  {} {total}", style.heading("EVENTS"));
    for one in events {
        let _ = writeln!(text, "    {} {}", one.time, event(one));
    }
    if total > events.len() {
        let _ = writeln!(text, "    the first {} are shown", events.len());
    }
    text
}

/// An event in words.
pub fn event(event: &EventSeen) -> String {
    let detail: Vec<String> = event.detail.iter().map(|(name, value)| format!("{name} {value}")).collect();
    safe(&format!("{}: {}", event.what.as_str(), detail.join(", ")))
}
