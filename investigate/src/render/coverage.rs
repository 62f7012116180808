//! The coverage of an answer: what could, and what could not, be seen.

use std::fmt::Write as _;

use vestigo_ledger::questions::coverage::{NatPoint, Point, WindowCoverage};
use vestigo_model::{CoverageState, TimeRange};

use super::{Style, safe};

/// How many taps are listed; the JSON form has them all.
const LISTED: usize = 20;
/// How many unseen stretches of a host are listed.
const SHOWN: usize = 5;

/// The whole block.
pub fn block(coverage: &WindowCoverage, style: Style) -> String {
    let mut text = String::new();
    let window = format!("{} to {}", coverage.window.from, coverage.window.to);
    let verdict = if coverage.complete {
        style.heading("complete")
    } else {
        style.warning("incomplete: what is missing here proves nothing")
    };
    let _ = writeln!(text, "{} of {window}: {verdict}", style.heading("COVERAGE"));
    // Of a long window with holes the manifests tell the hosts, and no tap was looked into.
    if coverage.points > 0 || coverage.blind.is_empty() {
        let _ = writeln!(text, "  {} of {} taps were seen completely", coverage.complete_points, coverage.points);
    }
    text.push_str(&hosts(coverage));
    if coverage.hosts.is_empty() {
        let _ = writeln!(text, "  no host said anything about this window");
    }
    for point in coverage.details.iter().take(LISTED) {
        text.push_str(&point_lines(point));
    }
    if let Some(more @ 1..) = coverage.details.len().checked_sub(LISTED) {
        let _ = writeln!(text, "  … and {more} more taps; --json lists them all");
    }
    for point in coverage.nat.iter().filter(|point| !point.complete).take(LISTED) {
        text.push_str(&nat_lines(point));
    }
    if coverage.unreadable > 0 {
        let _ = writeln!(
            text,
            "  {} records, or stretches of damage in a live log, could not be read",
            coverage.unreadable
        );
    }
    text.push_str(&extent(coverage.ledger));
    text
}

/// What is known of whole hosts.
fn hosts(coverage: &WindowCoverage) -> String {
    let mut text = String::new();
    for one in coverage.blind.iter().take(LISTED) {
        let host = safe(one.host.as_str());
        let _ = writeln!(text, "  {host}: not everything was seen, by its manifests (a shorter time tells more):");
        for part in one.stretches.iter().take(SHOWN) {
            let _ = writeln!(text, "    {} to {}", part.from, part.to);
        }
        if let Some(more @ 1..) = one.stretches_total.checked_sub(one.stretches.len().min(SHOWN)) {
            let _ = writeln!(text, "    … and {more} more stretches");
        }
    }
    if let Some(more @ 1..) = coverage.blind.len().checked_sub(LISTED) {
        let _ = writeln!(text, "  … and {more} more hosts; --json lists them all");
    }
    for host in &coverage.expired {
        let host = safe(host.as_str());
        let _ = writeln!(text, "  {host}: records of about this time were removed here, and are not in the answer");
    }
    for host in &coverage.doubled {
        let host = safe(host.as_str());
        let _ = writeln!(text, "  {host}: two histories share this name; what is said of one may be the other's");
    }
    if coverage.newest_missing {
        text.push_str("  the newest records of a hostd may not be read here, and are not in the answer\n");
    }
    text
}

fn point_lines(point: &Point) -> String {
    let mut text = String::new();
    let tap = point.tap.as_ref().map_or("no tap", |tap| tap.as_str());
    let _ =
        writeln!(text, "  {} {} of instance {}:", safe(point.host.as_str()), safe(tap), safe(point.instance.as_str()));
    for statement in &point.statements {
        let state = safe(&statement.state.to_string());
        let _ = writeln!(text, "    {} to {}  {state}", statement.from, statement.to);
    }
    for gap in &point.gaps {
        let _ = writeln!(text, "    {} to {}  nothing was said", gap.from, gap.to);
    }
    text
}

fn nat_lines(point: &NatPoint) -> String {
    let mut text = String::new();
    let host = safe(point.host.as_str());
    let _ =
        writeln!(text, "  public addresses may not lead to their VM on {host}, as for its own address translation:");
    for statement in point.statements.iter().filter(|statement| statement.state != CoverageState::NatOk) {
        let state = safe(&statement.state.to_string());
        let _ = writeln!(text, "    {} to {}  {state}", statement.from, statement.to);
    }
    for gap in &point.gaps {
        let _ = writeln!(text, "    {} to {}  nothing was said", gap.from, gap.to);
    }
    text
}

/// What the ledger holds altogether.
pub fn extent(ledger: Option<TimeRange>) -> String {
    match ledger {
        Some(range) => format!("  the ledger holds records from {} to {}\n", range.from, range.to),
        None => "  the ledger holds no record at all\n".to_owned(),
    }
}
