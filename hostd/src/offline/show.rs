//! Records and the summary, for people and for programs.

use std::{
    io::{self, BufWriter, Write},
    net::IpAddr,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use vestigo_model::{EndReason, FlowNotes, Initiator, TapName, Timestamp};

use crate::{
    meter::{Counts, Metered},
};

/// One flow of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    /// Where it was seen, of a live capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a TapName>,
    start: Timestamp,
    end: Timestamp,
    orig_ip: IpAddr,
    orig_port: u16,
    resp_ip: IpAddr,
    resp_port: u16,
    proto: u8,
    orig_packets: u64,
    resp_packets: u64,
    orig_bytes: u64,
    resp_bytes: u64,
    orig_flags: u8,
    resp_flags: u8,
    end_reason: EndReason,
    initiator: Initiator,
    community_id: String,
    vlan: Option<u16>,
    #[serde(skip_serializing_if = "FlowNotes::is_empty")]
    notes: &'a FlowNotes,
}

impl<'a> Line<'a> {
    fn of(record: &'a Metered, interface: Option<&'a TapName>) -> Self {
        Self {
            interface,
            start: record.first,
            end: record.last,
            orig_ip: record.orig.0,
            orig_port: record.orig.1,
            resp_ip: record.resp.0,
            resp_port: record.resp.1,
            proto: record.proto,
            orig_packets: record.from_orig.0,
            resp_packets: record.from_resp.0,
            orig_bytes: record.from_orig.1,
            resp_bytes: record.from_resp.1,
            orig_flags: record.from_orig.2,
            resp_flags: record.from_resp.2,
            end_reason: record.end_reason,
            initiator: record.initiator,
            community_id: vestigo_ledger::community_id(record.orig, record.resp, record.proto),
            vlan: record.vlan,
            notes: &record.notes,
        }
    }
}

/// Writes records.
pub(crate) struct Printer<O: Write> {
    out: BufWriter<O>,
    json: bool,
    records: u64,
    flows: u64,
}

impl<O: Write> Printer<O> {
    pub(crate) fn new(out: O, json: bool) -> Self {
        Self { out: BufWriter::with_capacity(1 << 16, out), json, records: 0, flows: 0 }
    }

    /// Flows that ended: records of a flow that goes on are not counted.
    pub(crate) const fn flows(&self) -> u64 {
        self.flows
    }

    /// `interface`: where it was seen, of a live capture.
    pub(crate) fn record(&mut self, record: &Metered, interface: Option<&TapName>) -> io::Result<()> {
        if !self.json && self.records == 0 {
            row(&mut self.out, ["START", "SECONDS", "PROTO", "ORIGINATOR", "RESPONDER", "PACKETS", "BYTES", "END"])?;
        }
        self.records += 1;
        self.flows += u64::from(record.end_reason != EndReason::Active);
        if !self.json {
            return self.row(record);
        }
        serde_json::to_writer(&mut self.out, &Line::of(record, interface))?;
        self.out.write_all(b"\n")
    }

    fn row(&mut self, record: &Metered) -> io::Result<()> {
        let seconds = format!("{:.3}", record.last.since(record.first).as_secs_f64());
        let packets = format!("{}/{}", record.from_orig.0, record.from_resp.0);
        let bytes = format!("{}/{}", record.from_orig.1, record.from_resp.1);
        let (orig, resp) = (end(record.orig), end(record.resp));
        let proto = record.proto.to_string();
        let start = record.first.to_string();
        row(&mut self.out, [&start, &seconds, &proto, &orig, &resp, &packets, &bytes, record.end_reason.as_str()])
    }

    /// Everything so far is out.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn row(out: &mut impl Write, [start, seconds, proto, orig, resp, packets, bytes, end]: [&str; 8]) -> io::Result<()> {
    writeln!(out, "{start:<30}  {seconds:>9}  {proto:>5}  {orig:<28}  {resp:<28}  {packets:>15}  {bytes:>21}  {end}")
}

fn end((ip, port): (IpAddr, u16)) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// What is said when all is read.
pub(super) struct Summary {
    began: Duration,
}

impl Summary {
    pub(super) fn start() -> Self {
        Self { began: cpu() }
    }

    pub(super) fn write(&self, counts: &Counts, flows: u64, to: &mut impl Write) -> io::Result<()> {
        let spent = cpu().saturating_sub(self.began).as_secs_f64();
        // A count in a float: rounded beyond 2^53 packets.
        #[allow(clippy::cast_precision_loss)]
        let pace = counts.frames as f64 / spent.max(1e-9);
        writeln!(to, "packets: {}", counts.frames)?;
        writeln!(to, "flows: {flows}")?;
        for (reason, count) in &counts.undecodable {
            writeln!(to, "undecodable, {}: {count}", reason.as_str())?;
        }
        for (what, count) in [
            ("fragments without their first", counts.orphans),
            ("packets without a readable transport header", counts.headless),
            ("conversations folded", counts.folded),
        ] {
            if count > 0 {
                writeln!(to, "{what}: {count}")?;
            }
        }
        writeln!(to, "packets/s of CPU: {pace:.0} ({spent:.3} s)")
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
