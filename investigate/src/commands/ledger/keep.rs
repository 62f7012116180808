//! `vestigo ledger compact`, `expire`, `hold`, `release`, `holds`.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use serde::Serialize;
use vestigo_ledger::{
    Signers, Writer, WriterOptions,
    compact::{self, CompactOptions},
    holds::{self, Hold},
    retention::{
        plan::{self, Limits, Plan},
        tombstone::{SITE_PRINCIPAL, Undertaker},
        turn,
    },
    sign::TOMBSTONE_NAMESPACE,
};
use vestigo_model::{Clock as _, SystemClock};

use super::{
    super::{Body, Output, json},
    arguments::{Compact, Expire, HoldArguments, Release, Where},
    only, signer, size, there,
};
use crate::{
    exit::{Exit, Usage},
    render::{self, Style, safe},
};

fn said(text: String) -> Output {
    Output { body: Body::Text(text), exit: Exit::Found, found: None }
}

/// Puts the days that are over together.
pub fn compact(arguments: &Compact) -> Result<Output> {
    let ledgers = arguments.place.ledgers();
    let root = only(&ledgers)?;
    let host = compact::written_by(root)?.ok_or_else(|| {
        anyhow!(
            "{} has no log: only the ledger that a hostd writes can be compacted, a copy would fork its chain",
            root.display()
        )
    })?;
    let _turn = turn::take(root)?;
    let options =
        WriterOptions { host: host.clone(), max_segment_age: Duration::from_secs(300), max_wal_bytes: 64 << 20 };
    let (mut writer, _) = Writer::open(root, options)?;
    writer.sign_with(Arc::new(signer(&arguments.key)?));
    let (mut days, mut segments) = (0, 0);
    for plan in compact::plan(root, &host, CompactOptions::default(), SystemClock.now())? {
        writer.adopt(&plan.prepare()?, SystemClock.now())?;
        days += 1;
        segments += plan.segments.len();
    }
    let freed = compact::tidy(root, &host)?;
    let answer = Compacted { into: days, segments, freed };
    Ok(said(match arguments.place.json {
        true => json("ledger-compact", &root.display().to_string(), &answer)?,
        false => format!("{segments} segments became {days}; {} came free.\n", size(freed)),
    }))
}

#[derive(Serialize)]
struct Compacted {
    into: usize,
    segments: usize,
    freed: u64,
}

#[derive(Serialize)]
struct Expired {
    dry_run: bool,
    keep_days: u32,
    due: Vec<DueRow>,
    removed_segments: u64,
    removed_bytes: u64,
}

#[derive(Serialize)]
struct DueRow {
    host: String,
    segment: String,
    until: String,
    bytes: u64,
    goes: bool,
    held_by: Vec<String>,
    unread: Option<String>,
}

/// Shows or applies the plan.
pub fn expire(arguments: &Expire, style: Style) -> Result<Output> {
    let ledgers = arguments.place.ledgers();
    let root = only(&ledgers)?;
    let limits = Limits { minimum: arguments.minimum, maximum: arguments.keep.max(arguments.minimum) };
    let now = SystemClock.now();
    let plan = |root| plan::plan(root, arguments.host.as_ref(), limits, arguments.keep, now);
    let (plan, (segments, bytes)) = if arguments.dry_run {
        (plan(root)?, (0, 0))
    } else {
        let _turn = turn::take(root)?;
        let signer = signer(&arguments.key)?;
        let line = format!("* namespaces=\"{TOMBSTONE_NAMESPACE}\" {}\n", signer.public());
        let own = Signers::parse(&arguments.key, line.as_bytes())?;
        // Removals that this key decided on and a crash left.
        plan::finish(root, arguments.host.as_ref(), &|found| found.is_signed(&own))?;
        let principal = arguments.site_key.then_some(SITE_PRINCIPAL);
        let plan = plan(root)?;
        let removed = plan::apply(&plan, &Undertaker { signer: &signer, principal, now })?;
        (plan, removed)
    };
    let rows: Vec<DueRow> = rows(&plan);
    let answer = Expired {
        dry_run: arguments.dry_run,
        keep_days: arguments.keep,
        due: rows,
        removed_segments: segments,
        removed_bytes: bytes,
    };
    Ok(said(match arguments.place.json {
        true => json("ledger-expire", &root.display().to_string(), &answer)?,
        false => expiry(&answer, style),
    }))
}

fn rows(plan: &Plan) -> Vec<DueRow> {
    let row = |due: &plan::Due| DueRow {
        host: due.sealed.manifest.host.to_string(),
        segment: due.sealed.manifest.segment.clone(),
        until: due.until.to_string(),
        bytes: due.bytes,
        goes: due.goes(),
        held_by: due.held_by.clone(),
        unread: due.unread.clone(),
    };
    plan.due.iter().map(row).collect()
}

fn expiry(answer: &Expired, style: Style) -> String {
    if answer.due.is_empty() {
        return format!("Nothing is older than {} days.\n", answer.keep_days);
    }
    let mut table = render::table(&["HOST", "SEGMENT", "RECORDS UNTIL", "SIZE", "FATE"]);
    for row in &answer.due {
        let fate = match (&row.unread, row.held_by.as_slice()) {
            (Some(why), _) => format!("stays: {why}"),
            (None, []) if answer.dry_run => "would go".to_owned(),
            (None, []) => "removed".to_owned(),
            (None, cases) => format!("held for {}", cases.join(", ")),
        };
        table.add_row([row.host.clone(), safe(&row.segment), row.until.clone(), size(row.bytes), safe(&fate)]);
    }
    let going: u64 = answer.due.iter().filter(|row| row.goes).map(|row| row.bytes).sum();
    let end = match answer.dry_run {
        true => format!("{} would come free. Nothing was changed.", size(going)),
        false => format!("{} segments removed, {} came free.", answer.removed_segments, size(answer.removed_bytes)),
    };
    format!("{}\n{}\n", render::table_text(&table), style.heading(&end))
}

/// Places a hold.
pub fn hold(arguments: &HoldArguments) -> Result<Output> {
    let ledgers = arguments.place.ledgers();
    let root = only(&ledgers)?;
    if arguments.from > arguments.to {
        return Err(Usage(format!("--from {} is after --to {}; exchange them", arguments.from, arguments.to)).into());
    }
    let hold = Hold {
        format: holds::FORMAT.to_owned(),
        version: 1,
        case: arguments.case.to_string(),
        reason: arguments.reason.to_string(),
        by: login(),
        placed: SystemClock.now(),
        from: arguments.from,
        to: arguments.to,
        host: arguments.host.clone(),
        instance: arguments.instance.clone(),
        vo: arguments.vo.clone(),
        released: None,
    };
    let path = holds::place(root, &hold)?;
    Ok(said(match arguments.place.json {
        true => json("ledger-hold", &root.display().to_string(), &hold)?,
        false => format!("Held for case {}: {}\n", hold.case, path.display()),
    }))
}

/// Lifts one.
pub fn release(arguments: &Release) -> Result<Output> {
    let ledgers = arguments.place.ledgers();
    let root = only(&ledgers)?;
    let hold = holds::release(root, arguments.case.as_str(), &login(), SystemClock.now())?;
    Ok(said(match arguments.place.json {
        true => json("ledger-release", &root.display().to_string(), &hold)?,
        false => format!("Case {} holds nothing any more.\n", hold.case),
    }))
}

/// Lists them.
pub fn holds(arguments: &Where, style: Style) -> Result<Output> {
    let mut all = Vec::new();
    for ledger in arguments.ledgers() {
        there(&ledger)?;
        all.extend(holds::all(&ledger)?);
    }
    if arguments.json {
        return Ok(said(json("ledger-holds", &(), &all)?));
    }
    if all.is_empty() {
        return Ok(said("No holds.\n".to_owned()));
    }
    let mut table = render::table(&["CASE", "FROM", "TO", "ONLY", "REASON", "BY", "SINCE"]);
    for hold in &all {
        let only = [
            hold.host.as_ref().map(|host| format!("host {host}")),
            hold.instance.as_ref().map(|id| format!("instance {}", safe(id.as_str()))),
            hold.vo.as_ref().map(|vo| format!("VO {vo}")),
        ];
        let only: Vec<String> = only.into_iter().flatten().collect();
        table.add_row([
            safe(&hold.case),
            hold.from.to_string(),
            hold.to.to_string(),
            only.join(", "),
            safe(&hold.reason),
            safe(&hold.by),
            hold.placed.to_string(),
        ]);
    }
    let heading = style.heading(&match all.len() {
        1 => "1 hold".to_owned(),
        many => format!("{many} holds"),
    });
    Ok(said(format!("{heading}\n{}\n", render::table_text(&table))))
}

/// Who asks, as far as the environment tells.
fn login() -> String {
    let named = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    named("SUDO_USER").or_else(|| named("USER")).unwrap_or_else(|| "unknown".to_owned())
}
