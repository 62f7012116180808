//! `vestigo timeline`.

use std::fmt::Write as _;

use anyhow::Result;
use vestigo_ledger::questions::{
    parts::{GuestClaims, HostFacts},
    timeline::{FlowSum, Happening, Subject, TimelineAnswer, TimelineQuestion},
};

use super::{Body, Desk, Output, count, exit, json, payload};
use crate::{
    arguments::{Timeline, range},
    exit::Usage,
    render::{self, Style, coverage, parts, safe},
};

/// Asks and renders.
pub fn run(arguments: &Timeline, desk: &Desk) -> Result<Output> {
    let subject = match (&arguments.instance, &arguments.user) {
        (Some(instance), _) => Subject::Instance(instance.clone()),
        (None, Some(user)) => Subject::User { subject: user.clone(), issuer: arguments.issuer.clone() },
        (None, None) => return Err(Usage("Say whose: --instance or --user".to_owned()).into()),
    };
    let question = TimelineQuestion { subject, range: range(arguments.from, arguments.to)? };
    let answer = desk.ledger()?.timeline(&question)?;
    let text = if arguments.common.json {
        json("timeline", &question, &answer)?
    } else {
        text(&question, &answer, desk.style)
    };
    let found = !answer.moments.is_empty() || !answer.flows.is_empty();
    let exit = exit(found, Some(&answer.coverage), arguments.common.require_coverage);
    Ok(Output { body: Body::Text(text), exit, found: Some(count(answer.moments_total)) })
}

fn text(question: &TimelineQuestion, answer: &TimelineAnswer, style: Style) -> String {
    let of = match &question.subject {
        Subject::Instance(id) => format!("instance {}", safe(id.as_str())),
        Subject::User { subject, .. } => format!("user {}", safe(subject.as_str())),
    };
    let (from, to) = (question.range.from, question.range.to);
    let mut text = format!("What {of} did between {from} and {to}\n\n");
    if answer.moments.is_empty() && answer.flows.is_empty() {
        text.push_str("Nothing found: no record of it touches this time.\n\n");
    }
    for moment in &answer.moments {
        let (time, host) = (moment.time, safe(moment.host.as_str()));
        let _ = writeln!(text, "{time} {host} {}", happening(&moment.happening, style));
    }
    if answer.moments_total > answer.moments.len() {
        let (shown, total) = (answer.moments.len(), answer.moments_total);
        let _ = writeln!(text, "The first {shown} of {total} moments are shown; ask for a shorter time.");
    }
    if !answer.flows.is_empty() {
        let _ = writeln!(text, "\n{}", style.heading("FLOWS, in sum"));
        text.push_str(&sums(&answer.flows));
    }
    text.push('\n');
    text.push_str(&coverage::block(&answer.coverage, style));
    text
}

fn happening(what: &Happening, style: Style) -> String {
    match what {
        Happening::InstanceStarted { host_facts } => format!("{} began: {}", style.host("host"), vm(host_facts)),
        Happening::InstanceEnded { host_facts } => format!("{} ended: {}", style.host("host"), vm(host_facts)),
        Happening::PayloadStarted { guest_claims } => {
            format!("{} run began: {}", style.guest("guest"), run_of(guest_claims))
        }
        Happening::PayloadEnded { guest_claims } => {
            format!("{} run ended: {}", style.guest("guest"), run_of(guest_claims))
        }
        Happening::PayloadContradicted { guest_claims } => {
            format!("{} contradicts itself: {}", style.guest("guest"), run_of(guest_claims))
        }
        Happening::Event { event } => format!("{} {}", style.host("host"), payload::event(event)),
    }
}

fn vm(facts: &HostFacts) -> String {
    safe(&parts::vm(facts))
}

fn run_of(claims: &GuestClaims) -> String {
    let (user, pilot, id, run) = (&claims.user, &claims.pilot, &claims.payload_id, claims.payload);
    safe(
        &parts::own_traffic(claims.holder).map_or_else(
            || format!("{user}, pilot {pilot}, payload {id} (run {run})"),
            |own| format!("{own} (run {run})"),
        ),
    )
}

fn sums(flows: &[FlowSum]) -> String {
    let mut table = render::table(&["HOST", "DOMAIN", "RUN", "FIRST", "LAST", "FLOWS", "BYTES OUT", "BYTES IN"]);
    for sum in flows {
        table.add_row(vec![
            safe(sum.host.as_str()),
            sum.domain.to_string(),
            sum.payload.map_or("only the VM is certain".to_owned(), |run| run.to_string()),
            sum.first.to_string(),
            sum.last.to_string(),
            sum.totals.flows.to_string(),
            sum.totals.bytes_out.to_string(),
            sum.totals.bytes_in.to_string(),
        ]);
    }
    render::table_text(&table)
}
