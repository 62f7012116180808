//! The service's numbers as a document.

use std::collections::BTreeMap;

use super::*;
use crate::{
    status::{self, Counters, Rates, ShareStatus, Status, TapStatus, VmStatus, VoStatus},
    tally::Tally,
    vm::Shown,
};
use vestigo_model::Tap;

impl Service {
    /// Everything that can be shown.
    pub(super) fn status(&self) -> Status {
        let counts = self.recorder.counts();
        let links = count(self.links.max_capacity().saturating_sub(self.links.capacity()));
        let waiting = [("flows", counts.waiting.0), ("facts", counts.waiting.1), ("links", links)];
        let leases: usize = self.vms.keys().map(|domain| self.book.bytes(*domain)).sum();
        let mut vms: Vec<VmStatus> = self.vms.iter().map(|(domain, vm)| self.vm_status(*domain, vm)).collect();
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        let mut vos: Vec<VoStatus> =
            self.vos.iter().map(|(vo, of)| VoStatus { vo: vo.clone(), attribution: shares(of) }).collect();
        vos.sort_by(|a, b| a.vo.cmp(&b.vo));
        Status {
            version: status::VERSION,
            host: self.options.host.clone(),
            hostd: env!("CARGO_PKG_VERSION").to_owned(),
            time: SystemClock.now(),
            since: self.begun,
            memory: named([("resident", status::resident_bytes()), ("leases", count(leases))]),
            waiting: named(waiting),
            stages: self.stages(),
            vos,
            vms,
        }
    }

    /// What each stage of the host's own has done and lost. A new stage has its line here.
    fn stages(&self) -> BTreeMap<String, Counters> {
        let counts = self.recorder.counts();
        let ledger = [
            ("flows", counts.flows),
            ("flows_lost", counts.lost_flows),
            ("facts", counts.facts),
            ("facts_lost", counts.lost_facts),
        ];
        let nat = self.options.nat.counters();
        let nat = [
            ("entries", nat.entries),
            ("overruns", nat.overruns),
            ("dumps", nat.dumps),
            ("malformed", nat.malformed),
            ("refused", nat.refused),
            ("untold", nat.untold),
        ];
        let upkeep = named(self.options.upkeep.counters());
        [("ledger", named(ledger)), ("nat", named(nat)), ("upkeep", upkeep)]
            .into_iter()
            .map(|(stage, of)| (stage.to_owned(), of))
            .collect()
    }

    fn vm_status(&self, domain: DomainUuid, vm: &Vm) -> VmStatus {
        let instance = &vm.instance;
        VmStatus {
            domain,
            instance: instance.id.clone(),
            name: instance.name.clone(),
            cloud: instance.cloud,
            vo: instance.vo.clone(),
            agent: self.agent(domain).as_str().to_owned(),
            payloads: count(self.book.live(domain)),
            lease_bytes: count(self.book.bytes(domain)),
            taps: instance.taps.iter().map(|tap| tap_status(vm, tap)).collect(),
            attribution: shares(&vm.tally.shares),
            counters: of_vm(&vm.tally),
        }
    }
}

fn of_vm(tally: &Tally) -> Counters {
    named([
        ("outside_every_lease", tally.outside),
        ("spoofed", tally.spoofed),
        ("mismarked", tally.mismarked),
        ("contradicting_claims", tally.contradicted),
        ("link_faults", tally.link_faults),
        ("statements_left_out", tally.left_out),
        ("payloads_forgotten", tally.forgotten),
        ("folded_records", tally.folded.0),
        ("folded_flows", tally.folded.1),
    ])
}

fn tap_status(vm: &Vm, tap: &Tap) -> TapStatus {
    let Shown { tally, witness, failure } = vm.taps.shown(&tap.name);
    let mut counters: Counters = tally.counters.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
    counters.extend(named([
        ("witness_unread", witness.unread),
        ("witness_unreadable", witness.unreadable),
        ("witness_forgotten", witness.forgotten),
        ("fireflies", witness.fireflies),
    ]));
    let [packets_from_vm, bytes_from_vm, packets_to_vm, bytes_to_vm] = tally.rates;
    TapStatus {
        name: tap.name.clone(),
        mac: tap.mac,
        unseen: tap.not_capturable.clone().or(failure),
        flows: tally.live,
        rates: Rates { packets_from_vm, bytes_from_vm, packets_to_vm, bytes_to_vm },
        counters,
        undecodable: tally.undecodable.iter().map(|(reason, number)| ((*reason).to_owned(), *number)).collect(),
    }
}

fn shares(of: &Shares) -> Vec<ShareStatus> {
    let share = |(quality, reason, share): (_, &str, crate::tally::Share)| ShareStatus {
        quality,
        reason: reason.to_owned(),
        records: share.records,
        packets: share.packets,
        bytes: share.bytes,
    };
    of.iter().map(share).collect()
}

fn named<const N: usize>(numbers: [(&str, u64); N]) -> Counters {
    numbers.into_iter().map(|(name, number)| (name.to_owned(), number)).collect()
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
