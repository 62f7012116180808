//! The right answers, from the generator alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use vestigo_model::{DomainUuid, Flow, HostId, Label, PayloadUid, PilotId, TimeRange, Timestamp, Vo};

use std::net::IpAddr;

use super::{
    Site,
    day::{day, outage},
    draw::{Draw, key},
    machines::machines,
    shape::SECOND,
    work::runs,
};

/// No record is longer.
const LONGEST: i64 = 61 * SECOND;

/// *Who used this address at this time?*, asked where the answer is known.
#[derive(Debug, Clone)]
pub struct WhoPoint {
    /// When.
    pub time: Timestamp,
    /// The address, as the VM has it or as the world sees it.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The record that it was taken from.
    pub flow: Flow,
}

/// Someone who may have done it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Someone {
    /// The hypervisor.
    pub host: HostId,
    /// The VM.
    pub domain: DomainUuid,
    /// Its VO.
    pub vo: Option<Vo>,
    /// The payload, where more than the VM is known.
    pub payload: Option<PayloadUid>,
}

/// An address of a VM.
pub type AddressOf = (IpAddr, HostId, DomainUuid);

/// What flows with it add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Records.
    pub flows: u64,
    /// Bytes both ways.
    pub bytes: u64,
}

/// A pilot that ran a user's payload: pilot, host, VM, run.
pub type PilotRun = (PilotId, HostId, DomainUuid, PayloadUid);

/// Questions with known answers.
#[derive(Debug, Clone, Copy)]
pub struct Truth<'a> {
    site: &'a Site,
}

impl<'a> Truth<'a> {
    /// Of the site.
    #[must_use]
    pub const fn new(site: &'a Site) -> Self {
        Self { site }
    }

    /// The `number`-th sample of records: every third is asked for by its public side, where it has one.
    ///
    /// # Errors
    /// The ledger is empty.
    pub fn point(&self, number: u64) -> Result<WhoPoint> {
        let shape = &self.site.shape;
        let mut draw = Draw::new(key(&[shape.seed, 50, number]));
        let host = u32::try_from(draw.below(u64::from(shape.hosts)))?;
        let number_of_day = u32::try_from(draw.below(u64::from(shape.days)))?;
        let made = day(self.site, host, number_of_day)?;
        let index = usize::try_from(draw.below(u64::try_from(made.flows.len())?))?;
        let flow = made.flows.get(index).cloned().context("a day without any flow")?;
        let (ip, port) = match flow.post_nat {
            Some(nat) if number.is_multiple_of(3) => (nat.ip, nat.port),
            _ => flow.local(),
        };
        Ok(WhoPoint { time: flow.first, ip, port, flow })
    }

    /// Everybody who used the address and port within the range.
    ///
    /// # Errors
    /// None that a site of its own shape has.
    pub fn who(&self, ip: IpAddr, port: u16, range: TimeRange) -> Result<BTreeSet<Someone>> {
        let is = |(own, own_port)| own == ip && own_port == port;
        let mut found = BTreeSet::new();
        self.flows(range, |flow| {
            let icmp = matches!(flow.proto, 1 | 58) && flow.direction == vestigo_model::Direction::Incoming;
            let public = flow.post_nat.map(|nat| (nat.ip, nat.port));
            if !icmp && (is(flow.local()) || public.is_some_and(is)) {
                found.insert(Someone {
                    host: flow.host.clone(),
                    domain: flow.domain,
                    vo: flow.vo.clone(),
                    payload: flow.attribution.payload,
                });
            }
        })?;
        Ok(found)
    }

    /// Records with this address on either side, or as a VM's public one, by VM.
    ///
    /// # Errors
    /// None that a site of its own shape has.
    pub fn flows_of(&self, ip: IpAddr, range: TimeRange) -> Result<BTreeMap<(HostId, DomainUuid), Sum>> {
        let mut found: BTreeMap<_, Sum> = BTreeMap::new();
        self.flows(range, |flow| {
            if flow.orig_ip == ip || flow.resp_ip == ip || flow.post_nat.is_some_and(|nat| nat.ip == ip) {
                found.entry((flow.host.clone(), flow.domain)).or_default().add(flow);
            }
        })?;
        Ok(found)
    }

    /// Addresses from which VMs of the VO sent within the range.
    ///
    /// # Errors
    /// None that a site of its own shape has.
    pub fn ips(&self, vo: &Vo, range: TimeRange) -> Result<BTreeMap<AddressOf, Sum>> {
        let mut found: BTreeMap<_, Sum> = BTreeMap::new();
        self.flows(range, |flow| {
            if flow.vo.as_ref() == Some(vo) && flow.sent_by_vm() > 0 {
                found.entry((flow.local().0, flow.host.clone(), flow.domain)).or_default().add(flow);
            }
        })?;
        Ok(found)
    }

    /// Runs of the user's payloads that overlap the range.
    ///
    /// # Errors
    /// None that a site of its own shape has.
    pub fn pilots(&self, subject: &Label, range: TimeRange) -> Result<BTreeSet<PilotRun>> {
        let (from, to) = (range.from.as_nanos(), range.to.as_nanos());
        let mut found = BTreeSet::new();
        for host in 0..self.site.shape.hosts {
            for machine in machines(self.site, host, self.site.shape.start(), self.site.shape.end())? {
                for run in runs(self.site, &machine)? {
                    let meant = run.user.is_some_and(|user| user.subject == *subject);
                    let recorded = run.received < self.site.shape.end();
                    if meant && recorded && run.received - 2_000_000 <= to && from <= run.until(&machine) {
                        found.insert((run.pilot, self.site.host(host)?.clone(), machine.domain, run.uid));
                    }
                }
            }
        }
        Ok(found)
    }

    /// When which host saw nothing, cut to the range.
    ///
    /// # Errors
    /// None that a site of its own shape has.
    pub fn outages(&self, range: TimeRange) -> Result<BTreeSet<(HostId, Timestamp, Timestamp)>> {
        let mut found = BTreeSet::new();
        for host in 0..self.site.shape.hosts {
            for number in 0..self.site.shape.days {
                let Some((from, to)) = outage(self.site, host, number) else { continue };
                let (from, to) = (Timestamp::from_nanos(from), Timestamp::from_nanos(to));
                if range.touches(from, Some(to)) {
                    found.insert((self.site.host(host)?.clone(), from.max(range.from), to.min(range.to)));
                }
            }
        }
        Ok(found)
    }

    /// All records that share an instant with the range.
    fn flows(&self, range: TimeRange, mut take: impl FnMut(&Flow)) -> Result<()> {
        // A record lies in the day of its last packet.
        let last = Timestamp::from_nanos(range.to.as_nanos().saturating_add(LONGEST));
        let days = (0..self.site.shape.days).filter(|number| {
            let midnight = |day| Timestamp::from_nanos(self.site.shape.midnight(day));
            midnight(*number) <= last && range.from < midnight(number + 1)
        });
        for number in days {
            for host in 0..self.site.shape.hosts {
                let made = day(self.site, host, number)?;
                made.flows.iter().filter(|f| range.touches(f.first, Some(f.last))).for_each(&mut take);
            }
        }
        Ok(())
    }
}

impl Sum {
    const fn add(&mut self, flow: &Flow) {
        self.flows += 1;
        self.bytes += flow.orig_bytes + flow.resp_bytes;
    }
}
