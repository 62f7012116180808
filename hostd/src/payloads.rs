//! Who worked in a VM, for the hand-over of its disks: asked of the ledger, which alone remembers a VM's whole life.

use std::path::PathBuf;

use vestigo_ledger::Ledger;
use vestigo_model::{Clock, Instance, Payload, PayloadSummary, SystemClock, TimeRange};

use crate::{pin::Payloads, recorder::chain};

/// Reads this host's own ledger.
#[derive(Debug, Clone)]
pub struct FromLedger(pub PathBuf);

impl Payloads for FromLedger {
    fn payloads(&self, instance: &Instance) -> Vec<PayloadSummary> {
        let until = instance.end.map_or_else(|| SystemClock.now(), |end| end.time);
        let range = TimeRange { from: instance.start.min(until), to: until };
        let facts = Ledger::open(std::slice::from_ref(&self.0)).and_then(|ledger| ledger.facts(range));
        match facts {
            Ok(facts) => {
                let mine = facts.payloads.into_iter().filter(|payload| payload.domain == instance.domain);
                // The VM's own traffic is nobody's work.
                let mine = mine.filter(|payload| payload.claim.holder.is_payload());
                mine.map(summary).collect()
            }
            Err(error) => {
                let (domain, error) = (instance.domain, chain(&error));
                tracing::error!(%domain, error, "an item of evidence will not name its users: the ledger cannot be read");
                Vec::new()
            }
        }
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
