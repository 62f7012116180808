//! The five tables of a segment. Their columns are documented in `docs/formats/ledger.md`; change both together.

use std::net::IpAddr;

use arrow::{array::RecordBatch, error::ArrowError};
use vestigo_model::{Coverage, CoverageState, Event, Exit, Fact, Instance, Payload};

use super::{
    content::{Content, FactRow},
    flows,
    table::Table,
};
use crate::manifest::Kind;

/// The table of this kind.
pub(crate) fn build(kind: Kind, content: &Content) -> Result<RecordBatch, ArrowError> {
    match kind {
        Kind::Flows => flows::build(&content.flows),
        Kind::Instances => instances(&content.facts),
        Kind::Payloads => payloads(&content.facts),
        Kind::Coverage => coverage(&content.facts),
        Kind::Events => events(&content.facts),
        // Written by whoever seals the names.
        Kind::People => Table::default().finish(),
    }
}

/// How an address is written: IPv4-mapped IPv6 is IPv4.
pub(crate) fn address_text(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

/// A fact of one kind with its row.
struct Row<'a, T> {
    row: &'a FactRow,
    fact: &'a T,
}

fn rows<'a, T>(facts: &'a [FactRow], pick: fn(&'a Fact) -> Option<&'a T>) -> Vec<Row<'a, T>> {
    facts.iter().filter_map(|row| pick(&row.record.fact).map(|fact| Row { row, fact })).collect()
}

/// The columns that every table of facts ends with.
fn finish<T>(mut table: Table, rows: &[Row<'_, T>]) -> Result<RecordBatch, ArrowError> {
    table.time("recorded", rows.iter().map(|r| Some(r.row.record.recorded)));
    table.flag("carried", rows.iter().map(|r| r.row.carried));
    table.text("record", rows.iter().map(|r| Some(r.row.text.as_str())));
    table.finish()
}

fn instances(facts: &[FactRow]) -> Result<RecordBatch, ArrowError> {
    let rows = rows::<Instance>(facts, |fact| if let Fact::Instance(i) = fact { Some(i) } else { None });
    let mut table = Table::default();
    let all = || rows.iter().map(|r| r.fact);
    table.time("start", all().map(|i| Some(i.start)));
    table.time("end", all().map(|i| i.end.map(|end| end.time)));
    table.text("end_reason", all().map(|i| i.end.and_then(|end| json_word(&end.why))));
    table.text("host", all().map(|i| Some(i.host.as_str())));
    table.text("domain", all().map(|i| Some(i.domain.to_string())));
    table.text("instance", all().map(|i| Some(i.id.as_str())));
    table.text("name", all().map(|i| Some(i.name.as_str())));
    table.word("cloud", all().map(|i| Some(i.cloud.as_str())));
    table.word("project_id", all().map(|i| i.project.as_ref().map(|p| p.id.as_str())));
    table.word("project_name", all().map(|i| i.project.as_ref()?.name.as_ref().map(|n| n.as_str())));
    table.word("vo", all().map(|i| i.vo.as_ref().map(|vo| vo.as_str())));
    table.word("owner", all().map(|i| i.owner.as_ref().map(|o| o.as_str())));
    table.word("flavour", all().map(|i| i.flavour.as_ref().map(|f| f.as_str())));
    table.word("image", all().map(|i| i.image.as_ref().map(|image| image.as_str())));
    table.text("taps", all().map(|i| serde_json::to_string(&i.taps).ok()));
    table.text("disks", all().map(|i| serde_json::to_string(&i.disks).ok()));
    table.text("xml_sha256", all().map(|i| Some(i.xml_sha256.to_string())));
    finish(table, &rows)
}

fn payloads(facts: &[FactRow]) -> Result<RecordBatch, ArrowError> {
    let rows = rows::<Payload>(facts, |fact| if let Fact::Payload(p) = fact { Some(p) } else { None });
    let mut table = Table::default();
    let all = || rows.iter().map(|r| r.fact);
    table.time("received", all().map(|p| Some(p.received)));
    table.time("claimed", all().map(|p| Some(p.claimed)));
    table.time("end_received", all().map(|p| p.end.map(|end| end.received)));
    table.time("end_claimed", all().map(|p| p.end.map(|end| end.claimed)));
    table.text("exit", all().map(|p| p.end.map(|end| exit_word(end.exit))));
    table.i32("exit_status", all().map(|p| p.end.and_then(|end| exit_status(end.exit))));
    table.text("host", all().map(|p| Some(p.host.as_str())));
    table.text("domain", all().map(|p| Some(p.domain.to_string())));
    claims(&mut table, &rows);
    finish(table, &rows)
}

fn claims(table: &mut Table, rows: &[Row<'_, Payload>]) {
    let all = || rows.iter().map(|r| &r.fact.claim);
    table.text("payload", all().map(|c| Some(c.uid.to_string())));
    table.text("pilot", all().map(|c| Some(c.pilot.as_str())));
    table.text("payload_id", all().map(|c| Some(c.payload.as_str())));
    table.text("user_issuer", all().map(|c| Some(c.user.issuer.as_str())));
    table.text("user_subject", all().map(|c| Some(c.user.subject.as_str())));
    table.word("vo_claimed", all().map(|c| Some(c.vo.as_str())));
    table.word("trust", all().map(|c| Some(c.trust.as_str())));
    table.text("executable", all().map(|c| c.executable.as_ref().map(|e| e.path.as_str())));
    table.text("executable_sha256", all().map(|c| c.executable.as_ref().map(|e| e.sha256.to_string())));
    table.text("command", all().map(|c| serde_json::to_string(&c.command).ok()));
    table.text("leases", all().map(|c| serde_json::to_string(&c.leases).ok()));
    table.text("isolation", all().map(|c| serde_json::to_string(&c.isolation).ok()));
    origin(table, rows);
}

/// Whose traffic it is and on whose word. Segments of older versions have none of these columns.
fn origin(table: &mut Table, rows: &[Row<'_, Payload>]) {
    let all = || rows.iter().map(|r| &r.fact.claim);
    table.word("holder", all().map(|c| Some(c.holder.as_str())));
    table.text("task_id", all().map(|c| c.task.as_ref().map(|task| task.id.as_str())));
    table.text("task_nonce", all().map(|c| c.task.as_ref().map(|task| task.nonce.as_str())));
    table.text("task_key", all().map(|c| c.task.as_ref().map(|task| task.key.as_str())));
    table.text("token_issuer", all().map(|c| c.token.as_ref().map(|token| token.issuer.as_str())));
    table.text("token_subject", all().map(|c| c.token.as_ref().map(|token| token.subject.as_str())));
    table.text("token_id", all().map(|c| c.token.as_ref()?.id.as_ref().map(|id| id.as_str())));
    table.text("interpreter", all().map(|c| c.interpreter.as_ref().map(|file| file.path.as_str())));
    table.text("interpreter_sha256", all().map(|c| c.interpreter.as_ref().map(|file| file.sha256.to_string())));
    table
        .text("caller", all().map(|c| c.access.as_ref().and_then(|access| serde_json::to_string(&access.caller).ok())));
    table.u64("runs_as", all().map(|c| c.access.as_ref().map(|access| u64::from(access.runs_as))));
}

fn coverage(facts: &[FactRow]) -> Result<RecordBatch, ArrowError> {
    let mut rows = rows::<Coverage>(facts, |fact| if let Fact::Coverage(c) = fact { Some(c) } else { None });
    rows.sort_by_key(|row| row.fact.from);
    let mut table = Table::default();
    let all = || rows.iter().map(|r| r.fact);
    table.time("start", all().map(|c| Some(c.from)));
    table.time("end", all().map(|c| Some(c.to)));
    table.text("host", all().map(|c| Some(c.host.as_str())));
    table.text("domain", all().map(|c| c.domain.map(|d| d.to_string())));
    table.word("tap", all().map(|c| c.tap.as_ref().map(|t| t.as_str())));
    table.word("state", all().map(|c| Some(state_word(&c.state))));
    table.u64("lost", all().map(|c| lost_count(&c.state)));
    table.text("detail", all().map(|c| state_detail(&c.state)));
    finish(table, &rows)
}

fn events(facts: &[FactRow]) -> Result<RecordBatch, ArrowError> {
    let mut rows = rows::<Event>(facts, |fact| if let Fact::Event(e) = fact { Some(e) } else { None });
    rows.sort_by_key(|row| row.fact.time);
    let mut table = Table::default();
    let all = || rows.iter().map(|r| r.fact);
    table.time("time", all().map(|e| Some(e.time)));
    table.text("host", all().map(|e| Some(e.host.as_str())));
    table.text("domain", all().map(|e| e.domain.map(|d| d.to_string())));
    table.word("what", all().map(|e| Some(e.what.as_str())));
    table.text("detail", all().map(|e| serde_json::to_string(&e.detail).ok()));
    finish(table, &rows)
}

/// The word under which a plain enum is serialised.
fn json_word<T: serde::Serialize>(value: &T) -> Option<String> {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned))
}

const fn exit_word(exit: Exit) -> &'static str {
    match exit {
        Exit::Code(_) => "code",
        Exit::Signal(_) => "signal",
        Exit::NotStarted => "not-started",
        Exit::Lost => "lost",
    }
}

const fn exit_status(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(status) | Exit::Signal(status) => Some(status),
        Exit::NotStarted | Exit::Lost => None,
    }
}

const fn state_word(state: &CoverageState) -> &'static str {
    match state {
        CoverageState::Ok => "ok",
        CoverageState::Nodata => "nodata",
        CoverageState::Lost { .. } => "lost",
        CoverageState::Folded { .. } => "folded",
        CoverageState::NotCapturable { .. } => "not-capturable",
        CoverageState::AgentAbsent => "agent-absent",
        CoverageState::AgentSilent => "agent-silent",
        CoverageState::NatOk => "nat-ok",
        CoverageState::NatLost { .. } => "nat-lost",
        CoverageState::NatUnseen { .. } => "nat-unseen",
    }
}

fn state_detail(state: &CoverageState) -> Option<&str> {
    match state {
        CoverageState::Lost { place, .. } | CoverageState::NatLost { place, .. } => Some(place),
        CoverageState::NotCapturable { why } | CoverageState::NatUnseen { why } => Some(why),
        _ => None,
    }
}

const fn lost_count(state: &CoverageState) -> Option<u64> {
    match state {
        CoverageState::Lost { count, .. } | CoverageState::NatLost { count, .. } => *count,
        _ => None,
    }
}
