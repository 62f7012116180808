//! From the taps' queues to the ledger's, and what the service does about taps that come and go.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use vestigo_model::{DomainUuid, Fact, TapName, Timestamp};

use super::Service;
use crate::{
    capture::{Capture, Tapped, links::LinkNews},
    join::join,
};

/// Most records taken in one turn: a few milliseconds of work, then everything else has its chance.
const TURN: usize = 1024;

impl Service {
    /// Takes a share of every tap, as far as the ledger's queue has room.
    pub(super) async fn flows(&mut self) {
        let turn = self.watching.queues.turn(self.recorder.room().min(TURN));
        for tapped in &turn.records {
            self.flow(tapped).await;
        }
        for ended in &turn.ended {
            self.tap_ended(ended.domain, &ended.tap.name);
        }
        self.starved = turn.more && self.recorder.room() == 0;
        if turn.more && !self.starved {
            self.watching.queues.ring();
        }
    }

    async fn flow(&mut self, tapped: &Tapped) {
        let agent = self.agent(tapped.observed.domain);
        let mut flow = join(tapped, &self.book, agent);
        flow.post_nat = self.options.nat.translate(&flow, tapped.record.began < tapped.record.first);
        let marked = self.scitag(&flow, tapped);
        flow.notes.scitag = marked.map(|(tag, _)| tag);
        self.note_flow(&flow, tapped, marked.is_some_and(|(_, news)| news)).await;
        // There is room: it was asked for, and nobody else takes it. What does not get it has lost its ledger.
        if !self.recorder.flow(flow) {
            tracing::error!(domain = %tapped.observed.domain, "a flow found no ledger");
        }
    }

    /// Takes the last records of a VM whose captures are ending; those that find no room in time are left to be counted.
    pub(super) async fn last_flows(&mut self, domain: DomainUuid, deadline: Instant) {
        let queues = Arc::clone(&self.watching.queues);
        while queues.has(domain) {
            let turn = queues.turn_of(domain, self.recorder.room());
            for tapped in &turn.records {
                self.flow(tapped).await;
            }
            if !turn.records.is_empty() || !turn.ended.is_empty() {
                continue;
            }
            let full = self.recorder.room() == 0;
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => queues.abandon(domain),
                () = queues.woken(), if !full => {}
                () = self.recorder.has_room(), if full => {}
            }
        }
        // Others may have rung meanwhile.
        queues.ring();
    }

    /// Captures the VM's taps that are not captured yet. Nothing of a new one was seen since `since`, or since it came up.
    pub(super) async fn watch_taps(&mut self, domain: DomainUuid, since: Timestamp) {
        let Some(this) = self.vms.get(&domain).map(|vm| &vm.instance) else { return };
        let (start, names) = (this.start, this.taps.iter().map(|tap| tap.name.clone()).collect::<BTreeSet<_>>());
        let mut others = BTreeSet::new();
        for other in self.vms.values().filter(|vm| vm.instance.domain != domain) {
            // One name, two VMs: libvirt gave it anew before the end of the old one was told.
            for tap in other.instance.taps.iter().filter(|tap| names.contains(&tap.name)) {
                if other.instance.start > start {
                    others.insert(tap.name.clone());
                } else if other.instance.start < start {
                    other.taps.release(&tap.name);
                }
            }
        }
        let appeared = |name: &TapName| {
            let seen = self.appeared.get(name).filter(|(index, _)| Capture::index(name) == Some(*index));
            seen.map_or(since, |(_, time)| since.min(*time))
        };
        let Some(vm) = self.vms.get_mut(&domain) else { return };
        let statements = vm.taps.watch(&vm.instance, appeared, &others, &self.watching);
        for coverage in vm.of_taps(statements) {
            self.recorder.submit(Fact::Coverage(coverage), None, None).await;
        }
    }

    /// Its interface is gone. If it belongs to a VM that runs on, it is made anew under the same name, or has been by now.
    fn tap_ended(&self, domain: DomainUuid, tap: &TapName) {
        if self.vms.get(&domain).is_some_and(|vm| vm.taps.misses(tap)) {
            tracing::info!(%domain, %tap, "a tap is gone");
            self.ask(domain);
        }
    }

    pub(super) fn interface(&mut self, news: LinkNews) {
        match news {
            LinkNews::Appeared { name, index, time } => {
                let missing = self.vms.iter().filter(|(_, vm)| vm.taps.misses(&name));
                missing.for_each(|(domain, _)| self.ask(*domain));
                self.appeared.insert(name, (index, time));
            }
            LinkNews::Missed => {
                tracing::warn!("the kernel left out news of interfaces");
                let missing = self.vms.iter().filter(|(_, vm)| vm.taps.misses_any());
                missing.for_each(|(domain, _)| self.ask(*domain));
            }
        }
    }

    /// Asks for fresh news of a VM: only libvirt knows whose a name is now. If its thread has much to do, the comparison with
    /// all that runs is not far.
    fn ask(&self, domain: DomainUuid) {
        if self.recheck.try_send(domain).is_err() {
            tracing::debug!(%domain, "a VM is looked at again later");
        }
    }
}
