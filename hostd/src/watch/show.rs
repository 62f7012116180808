use std::io::{self, Stdout, Write as _};

use serde::Serialize;
use vestigo_model::TapName;

use crate::{
    capture::{Report, Tapped},
    offline::show::Printer,
};

/// The counters of `--json`.
#[derive(Serialize)]
struct Counters<'a> {
    interface: &'a TapName,
    offered: u64,
    frames: u64,
    undecodable: u64,
    folded: u64,
    orphans: u64,
    dropped: u64,
    freezes: u64,
    unqueued: u64,
}

/// Flows on standard output, everything else on standard error.
pub(super) struct Output {
    flows: Option<Printer<Stdout>>,
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool, flows: bool) -> Self {
        Self { flows: flows.then(|| Printer::new(io::stdout(), json)), json }
    }

    /// From here on nothing that passes is missed.
    pub(super) fn ready(&self, interfaces: &[TapName]) -> io::Result<()> {
        let names: Vec<&str> = interfaces.iter().map(TapName::as_str).collect();
        writeln!(io::stderr(), "hostd: watching {}", names.join(", "))
    }

    pub(super) fn flows(&mut self, records: &[Tapped]) -> io::Result<()> {
        let Some(printer) = &mut self.flows else { return Ok(()) };
        for Tapped { observed, record } in records {
            printer.record(record, Some(&observed.tap.name))?;
        }
        printer.flush()
    }

    pub(super) fn counters(&self, interface: &TapName, report: &Report) -> io::Result<()> {
        let counters = Counters {
            interface,
            offered: report.offered,
            frames: report.counts.frames,
            undecodable: report.counts.undecodable.values().sum(),
            folded: report.counts.folded,
            orphans: report.counts.orphans,
            dropped: report.dropped,
            freezes: report.freezes,
            unqueued: report.unqueued,
        };
        let mut err = io::stderr().lock();
        if self.json {
            serde_json::to_writer(&mut err, &counters)?;
            return writeln!(err);
        }
        let Counters { offered, frames, undecodable, folded, dropped, freezes, unqueued, .. } = counters;
        writeln!(
            err,
            "{interface}: {offered} packets offered = {frames} metered ({undecodable} of them no IP) + {dropped} lost in the ring \
             (full {freezes} times); {folded} conversations folded; {unqueued} records lost"
        )
    }
}
