//! `vestigo flows`: every flow that matches, or their sums.

use std::fmt::Write as _;

use anyhow::Result;
use datafusion::{
    arrow::array::RecordBatch,
    functions_aggregate::expr_fn::{count, max, min, sum},
    prelude::{DataFrame, Expr, col, lit},
};
use serde::Serialize;
use vestigo_ledger::{Ledger, questions::coverage::WindowCoverage};
use vestigo_model::{TimeRange, Timestamp};

use super::{Body, Desk, Output, count as counted, exit, json};
use crate::{
    arguments::{
        flows::{By, Filter, Flows, State},
        open_range,
    },
    engine::{
        Engine,
        rows::{Row, object, words},
    },
    render::{self, Style, coverage},
};

/// Most rows of one answer; `vestigo sql` has no such bound.
const MOST: usize = 100_000;
const VM: &str = "CASE WHEN direction = 'outgoing' THEN orig_ip ELSE resp_ip END";
const PEER: &str = "CASE WHEN direction = 'outgoing' THEN resp_ip ELSE orig_ip END";
const OUT: &str = "CASE WHEN direction = 'outgoing' THEN orig_bytes ELSE resp_bytes END";
const BACK: &str = "CASE WHEN direction = 'outgoing' THEN resp_bytes ELSE orig_bytes END";

#[derive(Serialize)]
struct Question<'a> {
    filter: &'a Filter,
    limit: usize,
    sum: &'a [By],
}

#[derive(Serialize)]
struct Answer {
    /// Flows with the columns of the view, or sums.
    rows: Vec<Row>,
    /// Whether there are more than `rows`.
    more: bool,
    coverage: Option<WindowCoverage>,
}

/// Asks and renders.
pub fn run(arguments: &Flows, desk: &Desk) -> Result<Output> {
    let ledger = desk.ledger()?;
    let coverage = window(&arguments.filter, &ledger)?.map(|window| ledger.coverage(window)).transpose()?;
    let engine = Engine::new(ledger, desk.settings.sql)?;
    let plan = plan(arguments, &engine).map_err(|error| match error.downcast() {
        Ok(error) => engine.explain(error),
        Err(error) => error,
    })?;
    let limit = if arguments.limit == 0 { MOST } else { arguments.limit.min(MOST) };
    let mut rows = Vec::new();
    engine.run(plan.limit(0, Some(limit + 1))?, |batch: &RecordBatch| {
        rows.extend((0..batch.num_rows()).map(|row| object(batch, row)));
        Ok(())
    })?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let answer = Answer { rows, more, coverage };
    let question = Question { filter: &arguments.filter, limit: arguments.limit, sum: &arguments.sum };
    let text = if arguments.common.json { json("flows", &question, &answer)? } else { text(&answer, desk.style) };
    let exit = exit(!answer.rows.is_empty(), answer.coverage.as_ref(), arguments.common.require_coverage);
    Ok(Output { body: Body::Text(text), exit, found: Some(counted(answer.rows.len())) })
}

/// The window whose coverage the answer carries: what was asked for, within what the ledgers speak of.
fn window(filter: &Filter, ledger: &Ledger) -> Result<Option<TimeRange>> {
    let asked = open_range(filter.from, filter.to)?;
    let Some(extent) = ledger.extent()? else {
        return Ok(asked.filter(|_| filter.from.is_some() && filter.to.is_some()));
    };
    let (from, to) = (filter.from.unwrap_or(extent.from), filter.to.unwrap_or(extent.to));
    Ok(TimeRange::new(from, to).or(asked))
}

fn plan(arguments: &Flows, engine: &Engine) -> Result<DataFrame> {
    let mut frame = engine.view("flows")?;
    for condition in conditions(&arguments.filter) {
        let condition = frame.parse_sql_expr(&format!("({condition})"))?;
        frame = frame.filter(condition)?;
    }
    if arguments.sum.is_empty() {
        return Ok(frame.sort(vec![col("first").sort(true, false), col("last").sort(true, false)])?);
    }
    // What is inside a tunnel is counted with the tunnel's own flow.
    frame = frame.filter(col("tunnel").is_null())?;
    let expression = |text: &str| frame.parse_sql_expr(text);
    let mut groups = Vec::new();
    for by in &arguments.sum {
        groups.extend(
            columns(*by)
                .iter()
                .map(|(name, text)| Ok(expression(text)?.alias(*name)))
                .collect::<Result<Vec<Expr>>>()?,
        );
    }
    let sums = vec![
        count(lit(1)).alias("flows"),
        sum(expression(OUT)?).alias("bytes_out"),
        sum(expression(BACK)?).alias("bytes_in"),
        min(col("first")).alias("first"),
        max(col("last")).alias("last"),
    ];
    let frame = frame.clone().aggregate(groups, sums)?;
    Ok(frame.sort(vec![(col("bytes_out") + col("bytes_in")).sort(false, false)])?)
}

/// What a sum is taken over: names and expressions.
const fn columns(by: By) -> &'static [(&'static str, &'static str)] {
    match by {
        By::Vo => &[("vo", "vo")],
        By::Instance => &[("instance", "instance")],
        By::Host => &[("host", "host")],
        By::Payload => &[("payload", "payload")],
        By::Vm => &[("vm", VM)],
        By::Peer => &[("peer", PEER)],
        By::Service => &[("proto", "proto"), ("service", "resp_port")],
        By::Proto => &[("proto", "proto")],
        By::Direction => &[("direction", "direction")],
        By::Quality => &[("quality", "quality")],
        By::Day => &[("day", "date_trunc('day', first)")],
        By::Hour => &[("hour", "date_trunc('hour', first)")],
    }
}

/// A text as SQL has it.
fn text_of(text: impl std::fmt::Display) -> String {
    format!("'{}'", text.to_string().replace('\'', "''"))
}

/// A time as the columns have it.
fn time_of(time: Timestamp) -> String {
    format!("arrow_cast({}, 'Timestamp(Nanosecond, Some(\"UTC\"))')", time.as_nanos())
}

/// What must all hold, as SQL.
fn conditions(filter: &Filter) -> Vec<String> {
    let mut all = Vec::new();
    let mut equal = |column: &str, value: Option<String>| {
        if let Some(value) = value {
            all.push(format!("{column} = {value}"));
        }
    };
    equal("vo", filter.vo.as_ref().map(text_of));
    equal("instance", filter.instance.as_ref().map(text_of));
    equal("host", filter.host.as_ref().map(text_of));
    equal("payload", filter.payload.map(text_of));
    equal("proto", filter.proto.map(|proto| proto.to_string()));
    if let Some(ip) = filter.ip.map(|ip| text_of(ip.to_canonical())) {
        all.push(format!("orig_ip = {ip} OR resp_ip = {ip} OR nat_ip = {ip}"));
    }
    if let Some(net) = filter.net.map(text_of) {
        all.push(format!("in_net(orig_ip, {net}) OR in_net(resp_ip, {net}) OR in_net(nat_ip, {net})"));
    }
    if let Some(port) = filter.port {
        all.push(format!("orig_port = {port} OR resp_port = {port} OR nat_port = {port}"));
    }
    if let Some((ip, port)) = filter.peer {
        let ip = text_of(ip.to_canonical());
        let port = |column: &str| port.map(|port| format!(" AND {column} = {port}")).unwrap_or_default();
        let (called, caller) = (port("resp_port"), port("orig_port"));
        all.push(format!(
            "(direction = 'outgoing' AND resp_ip = {ip}{called}) OR (direction = 'incoming' AND orig_ip = {ip}{caller})"
        ));
    }
    if let Some(from) = filter.from {
        all.push(format!("last >= {}", time_of(from)));
    }
    if let Some(to) = filter.to {
        all.push(format!("first <= {}", time_of(to)));
    }
    if let Some(bytes) = filter.min_bytes {
        all.push(format!("orig_bytes + resp_bytes >= {bytes}"));
    }
    all.extend(filter.state.map(|state| {
        match state {
            State::Answered => "resp_packets > 0",
            State::Unanswered => "resp_packets = 0",
            // RST is 4, SYN is 2: a reset before there was a connection.
            State::Refused => "icmp_error IS NOT NULL OR (proto = 6 AND resp_flags & 4 = 4 AND resp_flags & 2 = 0)",
            State::Spoofed => "src_expected = 'no'",
        }
        .to_owned()
    }));
    all.extend(filter.condition.clone());
    all
}

/// Columns of a flow shown to the eye; `--json` has all.
const SHOWN: [&str; 12] = [
    "first",
    "vo",
    "instance",
    "proto",
    "orig_ip",
    "orig_port",
    "resp_ip",
    "resp_port",
    "orig_bytes",
    "resp_bytes",
    "quality",
    "payload",
];

fn text(answer: &Answer, style: Style) -> String {
    let mut text = String::new();
    match answer.rows.first() {
        None => text.push_str("Nothing found: no flow record fits.\n"),
        Some(first) => {
            let flows = first.get("orig_port").is_some();
            let names: Vec<&str> = match flows {
                true => SHOWN.to_vec(),
                false => first.0.iter().map(|(name, _)| name.as_str()).collect(),
            };
            let header: Vec<String> = names.iter().map(|name| name.replace('_', " ").to_uppercase()).collect();
            let mut table = render::table(&header.iter().map(String::as_str).collect::<Vec<_>>());
            for row in &answer.rows {
                table.add_row(names.iter().map(|name| row.get(name).map(words).unwrap_or_default()));
            }
            text.push_str(&render::table_text(&table));
        }
    }
    if answer.more {
        let _ = writeln!(text, "These are the first {}; --limit shows more, --sum adds them up.", answer.rows.len());
    }
    if let Some(seen) = &answer.coverage {
        text.push('\n');
        text.push_str(&coverage::block(seen, style));
    }
    text
}
