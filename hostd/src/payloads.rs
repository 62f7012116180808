//! Who worked in a VM, for the hand-over of its disks: asked of the ledger, which alone remembers a VM's whole life.

use std::path::PathBuf;

use vestigo_ledger::Ledger;
use vestigo_model::{Clock, Instance, Payload, PayloadSummary, SystemClock, TimeRange};

use crate::{pin::Payloads, recorder::chain};

/// Most payloads that an item names; a guest decides how many there are.
const MAX_SUMMARIES: usize = 20_000;

/// Reads this host's own ledger.
#[derive(Debug, Clone)]
pub struct FromLedger(pub PathBuf);

impl Payloads for FromLedger {
    fn payloads(&self, instance: &Instance) -> Vec<PayloadSummary> {
        let until = instance.end.map_or_else(|| SystemClock.now(), |end| end.time);
        let range = TimeRange { from: instance.start.min(until), to: until };
        let ledger = Ledger::open_folders(std::slice::from_ref(&self.0));
        match ledger.and_then(|ledger| ledger.payloads_of(instance.domain, range)) {
            Ok(payloads) => {
                // The VM's own traffic is nobody's work.
                let work = payloads.into_iter().filter(|payload| payload.claim.holder.is_payload());
                let mut summaries: Vec<PayloadSummary> = work.map(summary).collect();
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
