//! The flow records of one VM on one day.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use vestigo_model::{
    Attribution, Direction, EndReason, Expected, Flow, FlowNotes, Initiator, PostNat, Quality, Timestamp,
};

use super::{
    Site,
    draw::{Draw, byte, key, small, whole},
    machines::{Machine, Reach},
    shape::SECOND,
    work::Run,
};

/// hostd's active timeout: a record of a flow is at most this long.
const ACTIVE: i64 = 60 * SECOND;
/// Most records of one long flow.
const PARTS: u64 = 12;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a VM does on a day.
pub struct Traffic<'a> {
    site: &'a Site,
    machine: &'a Machine<'a>,
    own: Option<&'a Run<'a>>,
    /// Payloads with the stretch of the day in which they speak, and the sum of these stretches so far.
    payloads: Vec<(&'a Run<'a>, (i64, i64), i64)>,
    /// When the VM runs that day.
    span: (i64, i64),
    /// When hostd was down.
    blind: Option<(i64, i64)>,
    draw: Draw,
}

/// Who sends.
#[derive(Clone, Copy)]
struct Sender<'a> {
    run: Option<&'a Run<'a>>,
    span: (i64, i64),
}

impl<'a> Traffic<'a> {
    /// Of the VM from `day.0` to before `day.1`; `None` when it has no time for any.
    #[must_use]
    pub fn new(
        site: &'a Site,
        machine: &'a Machine<'a>,
        runs: &'a [Run<'a>],
        day: (i64, i64),
        blind: Option<(i64, i64)>,
    ) -> Option<Self> {
        let span = (machine.start.max(day.0) + SECOND, machine.end.min(day.1));
        let mut sum = 0;
        let stretch = |run: &'a Run<'a>| {
            let (from, to) = ((run.received + SECOND).max(span.0), run.until(machine).min(span.1));
            (to - from > 10 * SECOND).then(|| {
                sum += to - from;
                (run, (from, to), sum)
            })
        };
        let payloads = runs.iter().filter(|run| run.user.is_some()).filter_map(stretch).collect();
        let own = runs.iter().find(|run| run.user.is_none()).filter(|run| run.received + 10 * SECOND < span.1);
        let draw = Draw::new(key(&[machine.key, 30, day.0.cast_unsigned()]));
        (span.1 - span.0 > 60 * SECOND).then_some(Self { site, machine, own, payloads, span, blind, draw })
    }

    /// How much of the host's traffic of the day is this VM's.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // A weight.
    pub fn weight(&self) -> f64 {
        self.machine.activity * (self.span.1 - self.span.0) as f64
    }

    /// Adds so many records.
    ///
    /// # Errors
    /// The site has no such host.
    pub fn records(&mut self, count: u64, flows: &mut Vec<Flow>) -> Result<()> {
        let blank = self.blank()?;
        let wanted = flows.len() + usize::try_from(count)?;
        while flows.len() < wanted {
            let kind = self.draw.below(100);
            let public = self.machine.reach == Reach::Public;
            match kind {
                0..=7 if public => flows.push(self.scanned(&blank)),
                8..=19 => flows.push(self.service(&blank)),
                20..=21 => flows.push(self.ping(&blank)),
                22 => {
                    let parts = 2 + self.draw.below(PARTS - 2);
                    self.long(&blank, parts.min(u64::try_from(wanted - flows.len())?), flows);
                }
                _ => flows.push(self.transfer(&blank)),
            }
        }
        Ok(())
    }

    /// What all of its records have.
    fn blank(&self) -> Result<Flow> {
        let machine = self.machine;
        Ok(Flow {
            host: self.site.host(machine.host)?.clone(),
            tap: machine.tap.clone(),
            domain: machine.domain,
            instance: machine.id.clone(),
            vo: machine.tenant.vo.clone(),
            direction: Direction::Outgoing,
            orig_ip: IpAddr::V4(machine.address),
            orig_port: 0,
            resp_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            resp_port: 0,
            proto: TCP,
            vlan: None,
            first: Timestamp::from_nanos(0),
            last: Timestamp::from_nanos(0),
            orig_packets: 0,
            orig_bytes: 0,
            resp_packets: 0,
            resp_bytes: 0,
            orig_flags: 0,
            resp_flags: 0,
            end_reason: EndReason::EndOfFlow,
            initiator: Initiator::Seen,
            src_expected: Expected::Yes,
            post_nat: None,
            notes: FlowNotes::default(),
            attribution: Attribution { quality: Quality::Instance, payload: None, reason: "agent-absent".to_owned() },
        })
    }

    /// A payload of the moment; the VM itself where there is none.
    fn worker(&mut self) -> Sender<'a> {
        let Some((_, _, total)) = self.payloads.last() else { return self.system() };
        let wanted = self.draw.between(0, *total);
        let index = self.payloads.partition_point(|(_, _, sum)| *sum <= wanted);
        let found = self.payloads.get(index).map(|(run, span, _)| Sender { run: Some(*run), span: *span });
        found.unwrap_or(Sender { run: None, span: self.span })
    }

    fn system(&self) -> Sender<'a> {
        let span = self.own.map_or(self.span, |own| (self.span.0.max(own.received + SECOND), self.span.1));
        Sender { run: self.own, span }
    }

    /// First and last packet of something this long that ends within the sender's time. Nothing is recorded while hostd is down.
    fn time(&mut self, sender: Sender<'_>, length: i64) -> (i64, i64) {
        let mut last = self.draw.between(sender.span.0, sender.span.1);
        if let Some((from, to)) = self.blind
            && (from..=to + length).contains(&last)
        {
            // Before the hole, if the sender was there then; else behind it.
            last = if sender.span.0 < from { self.draw.between(sender.span.0, from) } else { to + length + 1 };
            if last >= sender.span.1 {
                last = sender.span.1 - 1;
            }
        }
        ((last - length).max(sender.span.0 - SECOND / 2), last)
    }

    /// From whom: the VM's own address with a port of the block, or the payload's own address with any port.
    fn source(&mut self, flow: &mut Flow, sender: Sender<'_>, v6: f64) {
        let v6_address = match sender.run {
            Some(run) => run.address,
            None => self.machine.own_v6,
        };
        let v6_address = v6_address.filter(|_| self.draw.happens(v6));
        let port = match (sender.run, v6_address) {
            (Some(run), None) => run.ports + small(self.draw.below(1024)),
            _ => 32_768 + small(self.draw.below(28_232)),
        };
        flow.orig_port = port;
        if let Some(address) = v6_address {
            flow.orig_ip = IpAddr::V6(address);
        } else if let Reach::Behind(address) = self.machine.reach {
            flow.post_nat = Some(PostNat { ip: IpAddr::V4(address), port: 1024 + small(self.draw.below(64_000)) });
        }
        if let Some(run) = sender.run {
            flow.attribution = Attribution { quality: Quality::Lease, payload: Some(run.uid), reason: String::new() };
        }
    }

    fn stamp(flow: &mut Flow, (first, last): (i64, i64)) {
        (flow.first, flow.last) = (Timestamp::from_nanos(first), Timestamp::from_nanos(last));
    }

    fn length(&mut self, median: f64, sigma: f64) -> i64 {
        let seconds = self.draw.log_normal(median, sigma).min(59.9);
        i64::try_from(whole(seconds * 1e9)).unwrap_or(ACTIVE)
    }

    /// A payload fetches or stores something.
    fn transfer(&mut self, blank: &Flow) -> Flow {
        let (sender, mut flow) = (self.worker(), blank.clone());
        let length = self.length(0.8, 1.6);
        Self::stamp(&mut flow, self.time(sender, length));
        self.source(&mut flow, sender, 0.5);
        self.towards_server(&mut flow);
        self.sizes(&mut flow, 1800.0, 14_000.0);
        if self.draw.happens(0.08) {
            flow.end_reason = EndReason::Idle;
        }
        flow
    }

    fn towards_server(&mut self, flow: &mut Flow) {
        let peer = self.site.peer(&mut self.draw);
        (flow.resp_ip, flow.resp_port) = (peer.like(flow.orig_ip), peer.port);
        (flow.orig_flags, flow.resp_flags) = (0x1b, 0x1b);
    }

    fn sizes(&mut self, flow: &mut Flow, out: f64, back: f64) {
        let packets = |bytes: u64, room: u64| 3 + bytes / room;
        flow.orig_bytes = 180 + whole(self.draw.log_normal(out, 1.4));
        flow.resp_bytes = 160 + whole(self.draw.log_normal(back, 2.0));
        flow.orig_packets = packets(flow.orig_bytes, 900).max(flow.resp_bytes / 2900);
        flow.resp_packets = packets(flow.resp_bytes, 1400);
    }

    /// A name is looked up, by a payload or by the VM itself.
    fn service(&mut self, blank: &Flow) -> Flow {
        let sender = if self.draw.happens(0.5) { self.system() } else { self.worker() };
        let mut flow = blank.clone();
        let length = self.length(0.004, 1.0);
        Self::stamp(&mut flow, self.time(sender, length));
        self.source(&mut flow, sender, 0.0);
        let server = Ipv4Addr::new(100, 64, 0, 53 + byte(self.draw.below(3)));
        (flow.resp_ip, flow.resp_port, flow.proto) = (IpAddr::V4(server), 53, UDP);
        (flow.orig_packets, flow.resp_packets) = (1, 1);
        (flow.orig_bytes, flow.resp_bytes) = (58 + self.draw.below(30), 90 + self.draw.below(160));
        (flow.end_reason, flow.initiator) = (EndReason::Idle, Initiator::Seen);
        flow
    }

    fn ping(&mut self, blank: &Flow) -> Flow {
        let (sender, mut flow) = (self.worker(), blank.clone());
        let length = self.length(3.0, 0.5);
        Self::stamp(&mut flow, self.time(sender, length));
        self.source(&mut flow, sender, 0.3);
        let peer = self.site.peer(&mut self.draw);
        flow.resp_ip = peer.like(flow.orig_ip);
        // Echo request: what stands in the responder's place is type and code.
        (flow.proto, flow.resp_port) = if flow.orig_ip.is_ipv4() { (ICMP, 0x0800) } else { (ICMPV6, 0x8000) };
        let count = 1 + self.draw.below(5);
        (flow.orig_packets, flow.resp_packets) = (count, count);
        (flow.orig_bytes, flow.resp_bytes) = (84 * count, 84 * count);
        flow.end_reason = EndReason::Idle;
        flow
    }

    /// Somebody out there knocks.
    fn scanned(&mut self, blank: &Flow) -> Flow {
        let mut flow = blank.clone();
        let answered = self.draw.happens(0.3);
        let length = if answered { self.length(2.0, 1.0) } else { 0 };
        Self::stamp(&mut flow, self.time(Sender { run: None, span: self.span }, length));
        let from = self.draw.below(1 << 16);
        flow.direction = Direction::Incoming;
        flow.orig_ip = IpAddr::V4(Ipv4Addr::new(100, 127, byte(from >> 8), byte(from)));
        flow.orig_port = 1024 + small(self.draw.below(64_000));
        (flow.resp_ip, flow.resp_port) = (IpAddr::V4(self.machine.address), 22);
        (flow.orig_packets, flow.orig_bytes, flow.orig_flags) = (1, 60, 0x02);
        flow.end_reason = EndReason::Idle;
        let reason = if answered { "vm-service" } else { "unanswered" };
        if answered {
            self.sizes(&mut flow, 900.0, 1500.0);
            (flow.orig_flags, flow.resp_flags, flow.end_reason) = (0x1f, 0x1b, EndReason::EndOfFlow);
        }
        flow.attribution.reason = if self.machine.agent { reason } else { "agent-absent" }.to_owned();
        flow
    }

    /// One that goes on: a record for each minute of it.
    fn long(&mut self, blank: &Flow, parts: u64, flows: &mut Vec<Flow>) {
        let sender = self.worker();
        let length = ACTIVE.saturating_mul(i64::try_from(parts).unwrap_or(1));
        let (from, to) = self.time(sender, length.min(sender.span.1 - sender.span.0 - SECOND));
        let mut flow = blank.clone();
        self.source(&mut flow, sender, 0.5);
        self.towards_server(&mut flow);
        let part = (to - from) / i64::try_from(parts).unwrap_or(1).max(1);
        for number in 0..parts {
            let begins = from + part * i64::try_from(number).unwrap_or(0);
            Self::stamp(&mut flow, (begins, begins + part - 1));
            self.sizes(&mut flow, 60_000.0, 6_000_000.0);
            flow.end_reason = if number + 1 == parts { EndReason::EndOfFlow } else { EndReason::Active };
            // SYN with the first, FIN with the last.
            let flags = 0x18 | if number == 0 { 0x02 } else { 0 } | u8::from(number + 1 == parts);
            (flow.orig_flags, flow.resp_flags) = (flags, flags);
            flows.push(flow.clone());
        }
    }
}
