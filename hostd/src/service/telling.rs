//! What the service tells of its own accord: bans to agents, contradictions and numbers to the ledger.

use std::time::Instant;

use vestigo_model::{Basis, Expected, Flow, Label, PayloadClaim, Vo};

use super::*;
use crate::{bans, capture::Tapped, guestlink::BanList, join::source, quota::Pace};

/// What a flow can contradict.
#[derive(Debug, Clone, Copy)]
enum Finding {
    /// What the VM's agent says: that nothing leaves it but from a lease.
    Outside,
    /// Which addresses the VM was given.
    Spoofed,
    /// Whose VM it is.
    Mismarked,
}

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

    /// Counts the flow, and what it contradicts: told at once, then once a minute.
    /// `marked`: its mark has not been counted.
    pub(super) async fn note_flow(&mut self, flow: &Flow, tapped: &Tapped, marked: bool) {
        if flow.orig_packets + flow.resp_packets == 0 {
            // Only says how a flow ended that was told of before.
            return;
        }
        self.vos.entry(flow.vo.clone()).or_default().note(flow);
        let outside = self.contradicts(flow, tapped.record.began);
        let mismarked = if marked { self.mismarked(flow) } else { None };
        let Some(vm) = self.vms.get_mut(&flow.domain) else { return };
        vm.tally.note(flow);
        let (limits, tally, now) = (&mut vm.limits, &mut vm.tally, Instant::now());
        let mut due = Vec::new();
        if outside {
            tally.outside += 1;
            limits.last_contradiction = Some(facts::tuple(flow));
            due.extend(limits.contradictions.note(now).map(|count| (Finding::Outside, count)));
        }
        if flow.src_expected == Expected::No {
            tally.spoofed += 1;
            let basis = source(flow, &tapped.observed).1.map_or("-", Basis::as_str);
            limits.last_spoofed = Some(format!("{} (by the word of: {basis})", facts::tuple(flow)));
            due.extend(limits.spoofed.note(now).map(|count| (Finding::Spoofed, count)));
        }
        if let Some(what) = mismarked {
            tally.mismarked += 1;
            limits.last_mismarked = Some(what);
            due.extend(limits.mismarked.note(now).map(|count| (Finding::Mismarked, count)));
        }
        for (finding, count) in due {
            self.found(flow.domain, finding, count).await;
        }
    }

    /// A flow that no lease covers, of a VM whose agent says that everything has one.
    fn contradicts(&self, flow: &Flow, began: Timestamp) -> bool {
        let Some(vm) = self.vms.get(&flow.domain) else { return false };
        self.book.contradicts(flow, began, vm.watched + self.options.meter.idle.udp)
    }

    /// What the VM says of the flow's VO where that is not the tenant's, in words.
    fn mismarked(&self, flow: &Flow) -> Option<String> {
        let (tag, tenant) = (flow.notes.scitag?, flow.vo.as_ref()?);
        let vos = self.options.vos.borrow();
        let meant = vos.scitags().vos(tag.experiment).filter(|vos| !vos.contains(tenant))?;
        let meant: Vec<&str> = meant.iter().map(Vo::as_str).collect();
        let (by, experiment, meant) = (tag.by, tag.experiment, meant.join(", "));
        Some(format!(
            "{by} says experiment {experiment} ({meant}), the tenant's VO is {tenant}: {}",
            facts::tuple(flow)
        ))
    }

    async fn found(&mut self, domain: DomainUuid, finding: Finding, count: u64) {
        let Some(limits) = self.vms.get(&domain).map(|vm| &vm.limits) else { return };
        let (kind, what, last) = match finding {
            Finding::Outside => {
                (EventKind::Contradiction, "the VM began flows outside of every lease", &limits.last_contradiction)
            }
            Finding::Spoofed => {
                (EventKind::Spoofing, "the VM sent from addresses that it was not given", &limits.last_spoofed)
            }
            Finding::Mismarked => {
                (EventKind::Contradiction, "the VM marks its flows as another VO's", &limits.last_mismarked)
            }
        };
        let last = last.clone().unwrap_or_default();
        tracing::warn!(%domain, count, last, "{}: {what}", kind.as_str());
        let detail = [("what", what.to_owned()), ("flow-records", count.to_string()), ("last", last)];
        self.event(Some(domain), kind, detail).await;
    }

    /// Numbers that wait to be told; all of them when the VM goes (`last`).
    pub(super) async fn tell_waiting(&mut self, domain: DomainUuid, last: bool) {
        let Some(vm) = self.vms.get_mut(&domain) else { return };
        let limits = &mut vm.limits;
        let now = Instant::now();
        let waiting = |pace: &mut Pace| if last { pace.rest() } else { pace.due(now).unwrap_or(0) };
        let waiting = [
            (Finding::Outside, waiting(&mut limits.contradictions)),
            (Finding::Spoofed, waiting(&mut limits.spoofed)),
            (Finding::Mismarked, waiting(&mut limits.mismarked)),
        ];
        let (connections, statements) = (limits.connections.take_dropped(), limits.statements.take_dropped());
        let position = limits.unkept.take();
        vm.tally.left_out += connections + statements;
        for (finding, count) in waiting.into_iter().filter(|(_, count)| *count > 0) {
            self.found(domain, finding, count).await;
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
