//! Numbers of one VM, or of one VO, since hostd began to see it. Pure.

use std::collections::BTreeMap;

use vestigo_model::{Flow, Quality};

use crate::capture::Report;

/// Flow records, and what they hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Flow records.
    pub records: u64,
    /// Packets both ways.
    pub packets: u64,
    /// Bytes both ways.
    pub bytes: u64,
}

/// How the flows were attributed, and why not better.
#[derive(Debug, Clone, Default)]
pub struct Shares(Vec<(Quality, String, Share)>);

impl Shares {
    /// Counts a flow. What a tunnel carries is counted with the tunnel already.
    pub fn note(&mut self, flow: &Flow) {
        if flow.notes.tunnel.is_some() {
            return;
        }
        let (quality, reason) = (flow.attribution.quality, flow.attribution.reason.as_str());
        // The reasons are hostd's own words, about a dozen.
        let known = self.0.iter().position(|(of, why, _)| *of == quality && why == reason);
        let index = known.unwrap_or_else(|| {
            self.0.push((quality, reason.to_owned(), Share::default()));
            self.0.len() - 1
        });
        if let Some((_, _, share)) = self.0.get_mut(index) {
            share.records += 1;
            share.packets += flow.orig_packets + flow.resp_packets;
            share.bytes += flow.orig_bytes + flow.resp_bytes;
        }
    }

    /// Each with its quality and reason.
    pub fn iter(&self) -> impl Iterator<Item = (Quality, &str, Share)> {
        self.0.iter().map(|(quality, reason, share)| (*quality, reason.as_str(), *share))
    }
}

/// One VM's numbers.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// How its flows were attributed.
    pub shares: Shares,
    /// Records that stand for many conversations, and how many those were.
    pub folded: (u64, u64),
    /// Flow records outside of every lease, though its agent has leases for everything.
    pub outside: u64,
    /// Flow records from addresses that it was not given.
    pub spoofed: u64,
    /// Flows that it marks as another VO's.
    pub mismarked: u64,
    /// Statements of its agent that contradict what the host knows, or what was said before.
    pub contradicted: u64,
    /// Lines and frames of its agent that broke the protocol.
    pub link_faults: u64,
    /// Statements and connections of its agent that were left out.
    pub left_out: u64,
    /// Payloads forgotten because there were too many.
    pub forgotten: u64,
}

impl Tally {
    /// Counts a flow.
    pub fn note(&mut self, flow: &Flow) {
        self.shares.note(flow);
        if let Some(folded) = flow.notes.folded {
            self.folded.0 += 1;
            self.folded.1 += folded.flows;
        }
    }
}

/// What a tap's capture reported in all, and how fast it goes.
#[derive(Debug, Clone, Default)]
pub struct TapTally {
    /// All of it, by name: whatever can be lost has a number here, and a metric of this name.
    pub counters: BTreeMap<&'static str, u64>,
    /// Frames that are no IP packet, by reason.
    pub undecodable: BTreeMap<&'static str, u64>,
    /// Flows held.
    pub live: u64,
    /// Packets and bytes from the VM, then to it, per second.
    pub rates: [f64; 4],
    seen: [u64; 4],
}

impl TapTally {
    /// Takes what was counted in `seconds`.
    pub fn add(&mut self, report: &Report, seconds: f64) {
        let counts = &report.counts;
        self.count("offered", report.offered);
        self.count("ring_dropped", report.dropped);
        self.count("ring_freezes", report.freezes);
        self.count("unqueued", report.unqueued);
        let passed = [counts.from_vm.packets, counts.from_vm.bytes, counts.to_vm.packets, counts.to_vm.bytes];
        let names = ["packets_from_vm", "bytes_from_vm", "packets_to_vm", "bytes_to_vm"];
        for (name, number) in names.into_iter().zip(passed) {
            self.count(name, number);
        }
        self.count("frames", counts.frames);
        self.count("folded", counts.folded);
        self.count("headless", counts.headless);
        self.count("foreign", counts.foreign);
        self.count("orphan_fragments", counts.orphans);
        for (reason, number) in &counts.undecodable {
            *self.undecodable.entry(reason.as_str()).or_default() += number;
        }
        self.live = self.live.saturating_add_signed(counts.live);
        for (seen, passed) in self.seen.iter_mut().zip(passed) {
            *seen += passed;
        }
        if seconds > 0.0 {
            self.rates = std::mem::take(&mut self.seen).map(|seen| seen as f64 / seconds);
        }
    }

    /// Adds to the counter of this name.
    pub fn count(&mut self, name: &'static str, number: u64) {
        *self.counters.entry(name).or_default() += number;
    }
}
