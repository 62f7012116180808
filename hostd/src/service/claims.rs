//! What a guest states, turned into facts and verdicts.

use std::time::Instant;

use vestigo_ledger::TaskUse;

use super::*;
use crate::{guestlink::Verdict, vm::Limits};
use vestigo_model::{Label, PayloadClaim, PayloadUid, link::Claim};

impl Service {
    /// Turns a statement into a fact and a verdict. A payload's lease is in the book before its start is acknowledged, so
    /// that no flow of it can come first.
    pub(super) async fn claim(
        &mut self,
        domain: DomainUuid,
        position: LinkPosition,
        time: Timestamp,
        claim: Claim,
        done: oneshot::Sender<Verdict>,
    ) {
        let now = SystemClock.now();
        if let Some(vm) = self.vms.get_mut(&domain) {
            vm.heard(now);
        }
        self.note_position(&position);
        let mut verdict = Ok(());
        let fact = match claim {
            Claim::PayloadStart(claim) => match self.refusal(domain, &claim, now) {
                None => self.payload_starts(domain, now, time, claim).await,
                Some(reason) => {
                    let what = format!("payload {} was refused: {reason}", claim.uid);
                    verdict = Err(reason);
                    facts::link_fault(&self.options.host, domain, now, what)
                }
            },
            Claim::PayloadEnd { uid, exit, silent } => {
                self.payload_ends(domain, uid, PayloadEnd { received: now, claimed: time, exit, silent })
            }
            other => facts::of_statement(&self.options.host, domain, now, other),
        };
        if self.is_kept(domain, &fact, &position) {
            log_statement(domain, &fact);
            self.recorder.submit(fact, Some(position), Some(told(done, verdict))).await;
        } else {
            // Left out on purpose. The guest need not say it again.
            let _ = done.send(verdict);
        }
    }

    /// Whether the ledger takes it: every payload, and of the rest as much as an honest agent could have to say. The place in
    /// the chain of what is left out becomes durable with the next fact, at the latest with the number of those left out.
    fn is_kept(&mut self, domain: DomainUuid, fact: &Fact, position: &LinkPosition) -> bool {
        let Some(Limits { connections, statements, unkept, .. }) = self.vms.get_mut(&domain).map(|vm| &mut vm.limits)
        else {
            return true;
        };
        let now = Instant::now();
        let kept = match fact {
            Fact::Event(event) if event.what == EventKind::Connection => connections.take(now),
            Fact::Event(_) => statements.take(now),
            _ => true,
        };
        *unkept = (!kept).then(|| position.clone());
        kept
    }

    /// Remembers where the VM's chain ends; a guest that makes up boots pushes out its own.
    fn note_position(&mut self, position: &LinkPosition) {
        self.positions.retain(|known| (known.domain, known.boot) != (position.domain, position.boot));
        self.positions.push(position.clone());
        let of_vm = self.positions.iter().filter(|known| known.domain == position.domain).count();
        if of_vm > MAX_BOOTS {
            let oldest = self.positions.iter().position(|known| known.domain == position.domain);
            oldest.map(|index| self.positions.remove(index));
        }
    }

    /// Why a payload must not start. What was claimed once under a run id stays: a guest may not write its history anew.
    fn refusal(&self, domain: DomainUuid, claim: &PayloadClaim, now: Timestamp) -> Option<Label> {
        let known = self.book.payload(domain, claim.uid);
        let reason = if let Err(bound) = claim.check() {
            format!("the claim is out of bounds: {bound}")
        } else if known.is_some_and(|known| known.claim != *claim) {
            "its run id belongs to another payload".to_owned()
        } else if let Some(reason) = self.banned(domain, claim, now) {
            reason
        } else if known.is_some() || !claim.holder.is_payload() {
            // Said again by an agent that could not know that it was heard; or the VM's own part, of which there is one each.
            return None;
        } else if let Some(reason) =
            claim.task.as_ref().and_then(|task| self.tasks.refusal(domain, claim.uid, task, now))
        {
            reason
        } else {
            self.book.full(domain, claim)?
        };
        Some(Label::cut(&reason))
    }

    async fn payload_starts(
        &mut self,
        domain: DomainUuid,
        now: Timestamp,
        claimed: Timestamp,
        claim: PayloadClaim,
    ) -> Fact {
        if let Some(known) = self.book.payload(domain, claim.uid) {
            return Fact::Payload(known.clone());
        }
        if let Some(mut before) = self.book.live_own(domain, claim.holder).cloned() {
            // The agent was started anew, and says again which ports are the VM's own.
            before.end = Some(PayloadEnd { received: now, claimed: now, exit: Exit::Lost, silent: false });
            self.enter(before.clone());
            self.recorder.submit(Fact::Payload(before), None, None).await;
        }
        let payload = Payload { host: self.options.host.clone(), domain, received: now, claimed, claim, end: None };
        self.contradictions(&payload).await;
        if let Some((used, true)) = TaskUse::of(&payload) {
            self.tasks.start(domain, used.uid, &used.task);
        }
        self.enter(payload.clone());
        Fact::Payload(payload)
    }

    fn payload_ends(&mut self, domain: DomainUuid, uid: PayloadUid, end: PayloadEnd) -> Fact {
        let fault = |what| facts::link_fault(&self.options.host, domain, end.received, what);
        match self.book.payload(domain, uid).cloned() {
            None => fault(format!("the end of an unknown payload {uid}")),
            Some(payload) if payload.end.is_some() => fault(format!("another end of payload {uid}, which has ended")),
            Some(mut payload) => {
                payload.end = Some(end);
                if let Some((_, false)) = TaskUse::of(&payload) {
                    self.tasks.give_back(domain, uid);
                }
                self.enter(payload.clone());
                Fact::Payload(payload)
            }
        }
    }
}

/// What an administrator should see at once.
fn log_statement(domain: DomainUuid, fact: &Fact) {
    let Fact::Event(event) = fact else { return };
    let detail = &event.detail;
    match event.what {
        EventKind::AgentAlarm => tracing::warn!(%domain, ?detail, "an agent raises an alarm"),
        EventKind::BanApplied => tracing::info!(%domain, ?detail, "a ban is in force"),
        EventKind::LinkFault => tracing::warn!(%domain, ?detail, "a statement was not taken"),
        _ => {}
    }
}
