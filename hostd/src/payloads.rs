//! Who worked in a VM, for the hand-over of its disks: asked of the ledger, which alone remembers a VM's whole life.

use std::{path::PathBuf, sync::Arc};

use vestigo_ledger::{Ledger, people::Sealer};
use vestigo_model::{Clock, Instance, Label, PSEUDONYM, Payload, PayloadSummary, SystemClock, TimeRange, User};

use crate::{pin::Payloads, recorder::chain};

/// Most payloads that an item names; a guest decides how many there are.
const MAX_SUMMARIES: usize = 20_000;

/// Reads this host's own ledger. An item names users as segments do, by pseudonym: the newest, whose names still stand in the log, too.
#[derive(Debug, Clone)]
pub struct FromLedger(pub PathBuf, pub Option<Arc<Sealer>>);

impl Payloads for FromLedger {
    fn payloads(&self, instance: &Instance) -> Vec<PayloadSummary> {
        let until = instance.end.map_or_else(|| SystemClock.now(), |end| end.time);
        let range = TimeRange { from: instance.start.min(until), to: until };
        let ledger = Ledger::open_folders(std::slice::from_ref(&self.0));
        match ledger.and_then(|ledger| ledger.payloads_of(instance.domain, range)) {
            Ok(payloads) => {
                // The VM's own traffic is nobody's work.
                let work = payloads.into_iter().filter(|payload| payload.claim.holder.is_payload());
                let mut summaries: Vec<PayloadSummary> =
                    work.map(|payload| summary(self.pseudonymous(instance, payload))).collect();
                let more = summaries.len().saturating_sub(MAX_SUMMARIES);
                if more > 0 {
                    tracing::warn!(domain = %instance.domain, more, "an item of evidence names only the last users of its VM; the ledger has all");
                    summaries.drain(..more);
                }
                summaries
            }
            Err(error) => {
                let (domain, error) = (instance.domain, chain(&error));
                tracing::error!(%domain, error, "an item of evidence will not name its users: the ledger cannot be read");
                Vec::new()
            }
        }
    }
}

impl FromLedger {
    fn pseudonymous(&self, instance: &Instance, mut payload: Payload) -> Payload {
        let Some(sealer) = self.1.as_ref().filter(|_| !payload.claim.user.is_pseudonym()) else { return payload };
        let pseudonym = sealer.pseudonym(instance.vo.as_ref(), payload.received, &payload.claim.user);
        let subject = pseudonym.unwrap_or_else(|error| {
            let (run, error) = (payload.claim.uid, chain(&error));
            tracing::error!(%run, error, "an item of evidence will not name this user: there is no key for a pseudonym");
            Label::cut("unknown")
        });
        payload.claim.user = User { issuer: Label::cut(PSEUDONYM), subject };
        payload
    }
}

fn summary(payload: Payload) -> PayloadSummary {
    let claim = payload.claim;
    PayloadSummary {
        uid: claim.uid,
        pilot: claim.pilot,
        payload: claim.payload,
        user: claim.user,
        vo: claim.vo,
        trust: claim.trust,
        start: payload.received,
        end: payload.end.map(|end| end.received),
    }
}
