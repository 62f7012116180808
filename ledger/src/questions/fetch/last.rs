//! How it ended. A segment repeats what runs, so what a window's segments say of a VM may be long out of date: its last record stands in
//! the last segment that knows it, which is found by halving the days.

use std::collections::BTreeMap;

use vestigo_model::{DomainUuid, HostId, InstanceEnd, TimeRange, Timestamp};

use crate::{
    catalog::{self, Days},
    error::LedgerError,
    questions::{parts::HostFacts, who::WhoAnswer},
    reader::{EVER, Kinds, Ledger, Scope, Wish},
};

/// Most VMs of one answer whose end is looked for; of the others the answer says what was known in its window.
const MOST: usize = 64;

/// A VM's interval: its host, domain and start.
type Vm = (HostId, DomainUuid, Timestamp);

impl Ledger {
    /// Fills in ends that came later than the window's segments.
    pub(super) fn finish(&self, scope: &Scope<'_>, answer: &mut WhoAnswer) -> Result<(), LedgerError> {
        let mut days: Option<Vec<String>> = None;
        let mut found: BTreeMap<Vm, Option<InstanceEnd>> = BTreeMap::new();
        let candidates = answer.candidates.iter_mut().map(|candidate| &mut candidate.host_facts);
        let all =
            candidates.chain(&mut answer.also_given).chain(answer.seen_as_peer.iter_mut().map(|s| &mut s.host_facts));
        for facts in all {
            let Some(vm) = open_vm(facts) else { continue };
            if let Some(end) = found.get(&vm) {
                facts.end = *end;
                continue;
            }
            if found.len() >= MOST {
                continue;
            }
            let later = match &mut days {
                Some(days) => days,
                None => days.insert(self.days_after(scope)?),
            };
            facts.end = self.end_of(&vm, later)?;
            found.insert(vm, facts.end);
        }
        Ok(())
    }

    /// Days behind those that the question looked into.
    fn days_after(&self, scope: &Scope<'_>) -> Result<Vec<String>, LedgerError> {
        let mut days = Vec::new();
        for store in self.stores() {
            days.extend(catalog::folders(store.as_ref(), &Days::ALL)?);
        }
        days.sort_unstable();
        days.dedup();
        let looked = scope.segments.iter().filter_map(|one| one.folder.split_once('/')).map(|(day, _)| day.to_owned());
        let last = looked.filter(|day| day != catalog::days::NO_DAY).max();
        days.retain(|day| day != catalog::days::NO_DAY && last.as_ref().is_none_or(|last| day > last));
        Ok(days)
    }

    /// The end in the last of these days on which the VM is known; `None` where it still runs, or is not known later at all.
    fn end_of(&self, vm: &Vm, days: &[String]) -> Result<Option<InstanceEnd>, LedgerError> {
        let (mut low, mut high) = (0, days.len());
        while low < high {
            let middle = low + (high - low) / 2;
            // A day without any segment of the host (it was down) says nothing: the next that has one does.
            let mut next = middle;
            let said = loop {
                let Some(day) = days.get(next).filter(|_| next < high) else { break None };
                match self.on_day(vm, day)? {
                    Known::Nothing => next += 1,
                    said => break Some(said),
                }
            };
            match said {
                Some(Known::Ended(end)) => return Ok(Some(end)),
                Some(Known::Runs) => low = next + 1,
                Some(Known::Gone | Known::Nothing) | None => high = middle,
            }
        }
        Ok(None)
    }

    /// What the day's segments say of the VM.
    fn on_day(&self, (host, domain, start): &Vm, day: &str) -> Result<Known, LedgerError> {
        let of_day = self.scope_of_host(day, host)?;
        if of_day.segments.is_empty() {
            return Ok(Known::Nothing);
        }
        let range = TimeRange { from: *start, to: EVER.to };
        let wish = Wish {
            kinds: Kinds::INSTANCES,
            hosts: Some([host.clone()].into()),
            domains: Some([*domain].into()),
            ..Wish::all(range)
        };
        let facts = of_day.facts(&wish)?;
        let known = facts.instances.iter().find(|one| one.start == *start);
        Ok(known.map_or(Known::Gone, |vm| vm.end.map_or(Known::Runs, Known::Ended)))
    }
}

fn open_vm(facts: &HostFacts) -> Option<Vm> {
    facts.start.filter(|_| facts.end.is_none()).map(|start| (facts.host.clone(), facts.domain, start))
}

/// What a day's segments say of a VM.
enum Known {
    /// There are none.
    Nothing,
    /// They do not know it: it had ended before.
    Gone,
    /// It ran at the day's end.
    Runs,
    Ended(InstanceEnd),
}
