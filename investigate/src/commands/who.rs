//! `vestigo who`.

use std::fmt::Write as _;

use anyhow::Result;
use vestigo_ledger::questions::{
    flooded::Flooded,
    parts::{GuestClaims, MatchedOn},
    who::{Candidate, WhoAnswer, WhoQuestion},
};
use vestigo_model::{Quality, TimeRange};

use super::{Body, Desk, Output, count, exit, json};
use crate::{
    arguments::{Who, protocol_word},
    render::{Style, coverage, parts, safe},
};

/// Flow records shown per candidate; `--json` has more.
const SHOWN: usize = 5;

/// Asks and renders.
pub fn run(arguments: &Who, desk: &Desk) -> Result<Output> {
    let question = WhoQuestion {
        range: TimeRange::around(arguments.time, arguments.window),
        ip: arguments.ip.to_canonical(),
        port: arguments.port,
        peer: arguments.peer,
        proto: arguments.proto,
        instance: arguments.instance.clone(),
    };
    let answer = desk.ledger()?.who(&question)?;
    let text =
        if arguments.common.json { json("who", &question, &answer)? } else { text(&question, &answer, desk.style) };
    let found = !answer.candidates.is_empty();
    Ok(Output {
        body: Body::Text(text),
        found: Some(count(answer.candidates.len())),
        exit: exit(found, Some(&answer.coverage), arguments.common.require_coverage),
    })
}

fn asked(question: &WhoQuestion) -> String {
    let mut asked = question.ip.to_string();
    if let Some(port) = question.port {
        let _ = write!(asked, " port {port}");
    }
    if let Some(proto) = question.proto {
        let _ = write!(asked, " ({})", protocol_word(proto));
    }
    match question.peer {
        Some((ip, Some(port))) => _ = write!(asked, " with {ip} port {port}"),
        Some((ip, None)) => _ = write!(asked, " with {ip}"),
        None => {}
    }
    if let Some(instance) = &question.instance {
        let _ = write!(asked, " in instance {}", safe(instance.as_str()));
    }
    asked
}

fn text(question: &WhoQuestion, answer: &WhoAnswer, style: Style) -> String {
    let (from, to) = (question.range.from, question.range.to);
    let mut text = format!("Who used {} between {from} and {to}?\n\n", asked(question));
    if answer.candidates.is_empty() {
        let _ = writeln!(text, "{}", nothing(question));
        text.push_str(&peers(answer));
        text.push('\n');
    }
    for (number, candidate) in answer.candidates.iter().enumerate() {
        let perhaps = if may_be_another(question, candidate) { "perhaps " } else { "" };
        let (number, of) = (number + 1, answer.candidates.len());
        let title = format!("Candidate {number} of {of}: {perhaps}{}", verdict(candidate));
        let _ = writeln!(text, "{}", style.heading(&title));
        text.push_str(&candidate_text(candidate, style));
        text.push('\n');
    }
    text.push_str(&translations(answer));
    for facts in &answer.also_given {
        let name = safe(facts.instance.as_str());
        let vo = parts::vo_word(facts.vo.as_ref());
        let _ = writeln!(
            text,
            "Also given this address, without a matching flow: instance {name} on {} (VO {vo})\n",
            facts.host
        );
    }
    for one in answer.flooded.iter().take(SHOWN) {
        let _ = writeln!(text, "{}\n", flooded(one));
    }
    text.push_str(&coverage::block(&answer.coverage, style));
    text
}

/// A VM of which no address is known to be its own any more.
fn flooded(one: &Flooded) -> String {
    let (vm, conversations) = (safe(&parts::vm(&one.host_facts)), one.conversations);
    let (first, last) = (one.first, one.last);
    format!(
        "Perhaps {vm}: it sent with more addresses than the host keeps apart; up to {conversations} conversations between {first} and \
         {last} are in one sum, and the address asked for may be among theirs."
    )
}

/// What a filter leaves out is not absent: the sentence must not deny more than was asked.
fn nothing(question: &WhoQuestion) -> &'static str {
    if question.instance.is_some() || question.peer.is_some() || question.proto.is_some() || question.port.is_some() {
        "Nothing found: no VM used this address in the window in the way asked for. Ask without the other options for all who held it."
    } else {
        "Nothing found: no VM used or was given this address in the window."
    }
}

/// Whether all that matches is a range of folded conversations, among which the one asked for may not be.
fn may_be_another(question: &WhoQuestion, candidate: &Candidate) -> bool {
    let one = question.port.is_some() || question.peer.is_some();
    one && !candidate.flows.is_empty() && candidate.flows.iter().all(|flow| flow.matched_on == MatchedOn::Folded)
}

/// The answer in one line, before the particulars: who, of which VO, in which VM, and how certain.
fn verdict(candidate: &Candidate) -> String {
    let facts = &candidate.host_facts;
    let vm = format!("VO {}, instance {}", parts::vo_word(facts.vo.as_ref()), safe(facts.instance.as_str()));
    let own = candidate.guest_claims.as_ref().and_then(|claims| parts::own_traffic(claims.holder));
    if let (false, Some(own)) = (candidate.flows.is_empty(), own) {
        let how = match candidate.attribution.quality {
            Quality::Lease => "by lease",
            Quality::Observed => "seen by the agent",
            Quality::ClaimedLate => "claimed late",
            Quality::Instance => "not certain",
        };
        return format!("{own}, {vm} ({how})");
    }
    let user = candidate.guest_claims.as_ref().map(|claims| safe(claims.user.subject.as_str()));
    match (candidate.flows.is_empty(), candidate.attribution.quality, user) {
        (true, ..) => format!("{vm} was given this address, but no flow that matches was seen"),
        (_, Quality::Lease, Some(user)) => format!("{user} (claimed), {vm} (by lease)"),
        (_, Quality::Observed, Some(user)) => format!("{user} (claimed), {vm} (seen by the agent)"),
        (_, Quality::ClaimedLate, Some(user)) => format!("{vm}; perhaps {user} (claimed late)"),
        _ => format!("{vm}; nobody more precise is certain"),
    }
}

fn candidate_text(candidate: &Candidate, style: Style) -> String {
    let mut text = format!("  {}\n", style.host("HOST FACTS (seen by the hypervisor; the VM cannot forge them)"));
    text.push_str(&parts::host_facts(&candidate.host_facts));
    for flow in candidate.flows.iter().take(SHOWN) {
        text.push_str(&parts::flow(flow));
    }
    if candidate.totals.flows > u64::try_from(SHOWN).unwrap_or(0) {
        let (flows, out, back) = (candidate.totals.flows, candidate.totals.bytes_out, candidate.totals.bytes_in);
        let _ = writeln!(text, "    in all {flows} flow records, {out} bytes out, {back} bytes in");
    }
    text.push_str(&folded(candidate));
    text.push_str(&elsewhere(candidate));
    let claims = "GUEST CLAIMS (said by the agent in the VM; as true as the VO's image)";
    let _ = writeln!(text, "  {}", style.guest(claims));
    match &candidate.guest_claims {
        Some(claims) => {
            if candidate.attribution.quality == Quality::ClaimedLate {
                let _ = writeln!(text, "    {}", style.warning("perhaps, and said only after the flow had begun:"));
            }
            text.push_str(&parts::guest_claims(claims));
        }
        None => text.push_str("    none can be tied to the flows\n"),
    }
    candidate.scitags.iter().for_each(|claim| text.push_str(&parts::scitag(claim)));
    text.push_str(&ran_then(candidate));
    text.push_str(&link(candidate, style));
    text
}

/// What was folded, in sum.
fn folded(candidate: &Candidate) -> String {
    let Some(folded) = candidate.folded.filter(|folded| folded.totals.flows > 1) else { return String::new() };
    let (records, out, back) = (folded.totals.flows, folded.totals.bytes_out, folded.totals.bytes_in);
    let conversations = folded.conversations;
    format!("    up to {conversations} conversations folded into {records} records, {out} bytes out, {back} bytes in\n")
}

/// The other VMs that the candidate's conversations were with.
fn elsewhere(candidate: &Candidate) -> String {
    let mut text: String = candidate.also_seen.iter().take(SHOWN).map(parts::also_seen).collect();
    if let Some(more @ 1..) = candidate.also_seen.len().checked_sub(SHOWN) {
        let _ = writeln!(text, "    … and {more} more conversations seen at other taps; --json lists up to a hundred");
    }
    for facts in candidate.peers_given.iter().take(SHOWN) {
        let vm = safe(&parts::vm(facts));
        let _ = writeln!(text, "    a peer's address was given to {vm}, whose taps show nothing of it");
    }
    text
}

/// Payloads that may have been it, where none can be tied to the flows.
fn ran_then(candidate: &Candidate) -> String {
    let what = |claims: &GuestClaims| {
        let what =
            format!("{}, pilot {}, payload {} (run {})", claims.user, claims.pilot, claims.payload_id, claims.payload);
        safe(&what)
    };
    let mut text = String::new();
    for claims in &candidate.ran_then {
        let _ = writeln!(text, "    ran in the VM then: {}", what(claims));
    }
    for claims in &candidate.said_later {
        let (received, what) = (claims.start_received, what(claims));
        let _ = writeln!(text, "    announced at {received}, later; ran then by the guest's clock only: {what}");
    }
    let (shown, total) =
        (candidate.ran_then.len() + candidate.said_later.len(), candidate.ran_then_total + candidate.said_later_total);
    if total > shown {
        let _ = writeln!(text, "    {shown} of {total} such payloads are shown");
    }
    text
}

fn link(candidate: &Candidate, style: Style) -> String {
    let link = &candidate.attribution;
    let reason = match (link.reason.as_str(), link.quality) {
        ("", Quality::Lease) => "the flow's own address and port lie in the payload's lease".to_owned(),
        ("", _) => String::new(),
        (reason, _) => safe(reason),
    };
    let quality = match link.quality {
        Quality::ClaimedLate => style.warning(link.quality.as_str()),
        quality => quality.to_string(),
    };
    let mut text = format!("  {} {quality}: {reason}\n", style.heading("ATTRIBUTION"));
    for note in &candidate.notes {
        let _ = writeln!(text, "  {} {}", style.warning("NOTE"), safe(note));
    }
    text
}

/// Translations that the host told apart from flow records: shown where they are all that is known.
fn translations(answer: &WhoAnswer) -> String {
    let mut text = String::new();
    if !answer.candidates.is_empty() {
        return text;
    }
    for one in answer.translations.iter().take(SHOWN) {
        let (host, namespace) = (safe(one.host.as_str()), safe(one.namespace.as_str()));
        let since = one.not_before.map_or("an unknown time".to_owned(), |time| time.to_string());
        let _ = writeln!(
            text,
            "Host {host} (namespace {namespace}, zone {}) translated {} {} to {} for {}, between {since} and {}; no VM with that address is known.",
            one.zone,
            protocol_word(one.proto),
            one.vm,
            one.public,
            one.public_peer,
            one.until,
        );
    }
    if answer.translations_total > SHOWN && !text.is_empty() {
        let _ = writeln!(text, "{} such translations in all; --json has more", answer.translations_total);
    }
    text
}

fn peers(answer: &WhoAnswer) -> String {
    let mut text = String::new();
    for peer in &answer.seen_as_peer {
        let _ = writeln!(
            text,
            "The address was only seen as the other side of instance {} on {} (VO {}), {} flow records from {} to {}.",
            safe(peer.host_facts.instance.as_str()),
            peer.host_facts.host,
            parts::vo_word(peer.host_facts.vo.as_ref()),
            peer.flows,
            peer.first,
            peer.last,
        );
    }
    text
}
