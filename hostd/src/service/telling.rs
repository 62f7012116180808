//! What the service tells of its own accord: bans to agents, contradictions and numbers to the ledger.

use std::time::Instant;

use vestigo_model::{Flow, Label, PayloadClaim};

use super::*;
use crate::{bans, guestlink::BanList};

/// Most ids that one event names.
const NAMED: usize = 50;

impl Service {
    /// The bans that the VM's agent has to know.
    pub(super) fn bans_of(&self, domain: DomainUuid) -> BanList {
        let list = self.vms.get(&domain).map(|vm| {
            let set = self.options.bans.borrow();
            set.of_vm(domain, &vm.instance.id, SystemClock.now())
        });
        BanList::new(list.unwrap_or_default())
    }

    /// Has every agent told its list, where that has changed.
    pub(super) fn spread_bans(&self) {
        for (domain, vm) in &self.vms {
            if let Some((_, link)) = &vm.channel {
                link.set_bans(self.bans_of(*domain));
            }
        }
    }

    /// Writes down what an agent was told, when it is not what it was told before.
    pub(super) async fn bans_sent(&mut self, domain: DomainUuid, list: BanList) {
        let Some(vm) = self.vms.get_mut(&domain) else { return };
        let change = bans::change(&vm.told_bans, &list);
        let count = list.len();
        vm.told_bans = list;
        if change == bans::Change::default() {
            return;
        }
        let (added, lifted) = (names(&change.added), names(&change.lifted));
        tracing::info!(%domain, added, lifted, "bans were sent to the agent");
        let detail = [("bans", count.to_string()), ("added", added), ("lifted", lifted)];
        self.event(Some(domain), EventKind::BanSent, detail.into_iter().filter(|(_, value)| !value.is_empty())).await;
    }

    /// The reason, if a ban hits what is about to start: agents are old, or lie.
    pub(super) fn banned(&self, domain: DomainUuid, claim: &PayloadClaim, now: Timestamp) -> Option<String> {
        let instance = &self.vms.get(&domain)?.instance.id;
        let set = self.options.bans.borrow();
        set.hit(domain, instance, claim, now).map(|ban| format!("banned ({}): {}", ban.id, ban.reason))
    }

    /// A flow that no lease covers, of a VM whose agent says that everything has one: told at once, then once a minute.
    pub(super) async fn note_contradiction(&mut self, flow: &Flow, began: Timestamp) {
        let Some(vm) = self.vms.get_mut(&flow.domain) else { return };
        if flow.orig_packets + flow.resp_packets == 0 {
            // Only says how a flow ended that was told of before.
            return;
        }
        if !self.book.contradicts(flow, began, vm.watched + self.options.meter.idle.udp) {
            return;
        }
        let count = vm.limits.contradictions.note(Instant::now());
        vm.limits.last_contradiction = Some(facts::tuple(flow));
        if let Some(count) = count {
            self.outside_every_lease(flow.domain, count).await;
        }
    }

    async fn outside_every_lease(&mut self, domain: DomainUuid, count: u64) {
        let last = self.vms.get(&domain).and_then(|vm| vm.limits.last_contradiction.clone()).unwrap_or_default();
        tracing::warn!(%domain, count, last, "contradiction: the VM began flows outside of every lease");
        let what = "the VM began flows outside of every lease".to_owned();
        let detail = [("what", what), ("flow-records", count.to_string()), ("last", last)];
        self.event(Some(domain), EventKind::Contradiction, detail).await;
    }

    /// Numbers that wait to be told; all of them when the VM goes (`last`).
    pub(super) async fn tell_waiting(&mut self, domain: DomainUuid, last: bool) {
        let Some(vm) = self.vms.get_mut(&domain) else { return };
        let limits = &mut vm.limits;
        let outside =
            if last { limits.contradictions.rest() } else { limits.contradictions.due(Instant::now()).unwrap_or(0) };
        let (connections, statements) = (limits.connections.take_dropped(), limits.statements.take_dropped());
        let position = limits.unkept.take();
        if outside > 0 {
            self.outside_every_lease(domain, outside).await;
        }
        if connections + statements == 0 {
            return;
        }
        tracing::warn!(%domain, connections, statements, "a guest says more than is kept");
        let detail = [
            ("fault", "the guest said more than is kept".to_owned()),
            ("connections-left-out", connections.to_string()),
            ("statements-left-out", statements.to_string()),
        ];
        let now = SystemClock.now();
        let fact = facts::event(&self.options.host, Some(domain), now, EventKind::LinkFault, detail);
        self.recorder.submit(fact, position, None).await;
    }
}

fn names(ids: &[Label]) -> String {
    let named: Vec<&str> = ids.iter().take(NAMED).map(Label::as_str).collect();
    let more = ids.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    named.join(", ") + &rest
}
