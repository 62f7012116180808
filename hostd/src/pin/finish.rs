//! From the decision to quarantine, and quarantine's answers.
//!
//! Three steps, each idempotent: note the item's id beside the pins, write the hand-over into the spool, take the disks out of
//! the note. A crash after the first finds the id and goes on with it; a crash after the second finds the hand-over (or its
//! answer, which stays until it is acknowledged) and does the third.

use std::collections::BTreeSet;

use uuid::{NoContext, Uuid};
use vestigo_model::{
    DomainUuid, Handover, HandoverResult, ItemId, Outcome as Answer, PinnedDisk, PinnedLayer, Timestamp,
};

use super::{
    Outcome,
    durable::Survive,
    keeper::{PinKeeper, home},
    policy::{PinId, Reason},
    store::{Pending, PinDisk},
};

impl PinKeeper {
    pub(super) fn hand_over(
        &mut self,
        domain: DomainUuid,
        pins: &[PinId],
        deleted: Timestamp,
        reason: Reason,
    ) -> Option<Outcome> {
        let ended = pins.iter().find_map(|id| self.pins.get(id)?.instance.end).map_or(deleted, |end| end.time);
        let item = new_item(ended);
        let mut homes = BTreeSet::new();
        for id in pins {
            self.policy.remove(*id);
            if let Some(disk) = self.pins.get_mut(id) {
                disk.pending = Some(Pending { item, deleted, reason: reason.as_str().to_owned() });
                homes.insert(home(disk));
            }
        }
        self.save(homes, Survive::Machine);
        self.pending.insert(item, false);
        self.item_domains.insert(item, domain);
        self.finish(item)
    }

    /// Tries again what could not be written.
    pub(super) fn finish_pending(&mut self) -> Vec<Outcome> {
        let items: Vec<ItemId> = self.pending.keys().copied().collect();
        items.into_iter().filter_map(|item| self.finish(item)).collect()
    }

    /// The second and the third step.
    fn finish(&mut self, item: ItemId) -> Option<Outcome> {
        let of_item = |d: &PinDisk| d.pending.as_ref().is_some_and(|p| p.item == item);
        let ids: Vec<PinId> = self.pins.iter().filter(|(_, d)| of_item(d)).map(|(id, _)| *id).collect();
        let disks: Vec<PinDisk> = ids.iter().filter_map(|id| self.pins.get(id)).cloned().collect();
        let Some(handover) = self.request(item, &disks) else {
            self.pending.remove(&item);
            return None;
        };
        if !self.spool.has(item)
            && let Err(error) = self.spool.put(&handover)
        {
            let reported = self.pending.insert(item, true).unwrap_or(false);
            if !reported {
                tracing::error!(%item, %error, "cannot write into the spool; the disks stay pinned and it is tried again");
            }
            return None;
        }
        let layers = disks.iter().flat_map(|d| &d.layers);
        self.handed.extend(layers.map(|l| (l.pin.clone(), l.file())));
        self.item_domains.insert(item, handover.instance.domain);
        self.pending.remove(&item);
        for id in &ids {
            self.pins.remove(id);
        }
        self.unwatch();
        self.save(disks.iter().map(home).collect(), Survive::Machine);
        Some(Outcome::HandedOver {
            item,
            domain: handover.instance.domain,
            disks: handover.disks.into_iter().map(|d| d.target).collect(),
            reason: handover.reason,
        })
    }

    fn request(&self, item: ItemId, disks: &[PinDisk]) -> Option<Handover> {
        let first = disks.first()?;
        let pending = first.pending.as_ref()?;
        Some(Handover {
            version: 1,
            item,
            host: self.options.host.clone(),
            instance: first.instance.clone(),
            payloads: self.payloads.payloads(&first.instance),
            deleted: pending.deleted,
            reason: pending.reason.clone(),
            disks: disks.iter().map(pinned_disk).collect(),
            domain_xml: first.domain_xml.clone(),
        })
    }

    pub(super) fn answers(&mut self) -> Vec<Outcome> {
        match self.spool.answers() {
            Ok(answers) => answers.into_iter().map(|answer| self.answer(answer)).collect(),
            Err(error) => {
                tracing::warn!(%error, "cannot read quarantine's answers");
                Vec::new()
            }
        }
    }

    fn answer(&self, result: HandoverResult) -> Outcome {
        let HandoverResult { version: _, item, time, outcome } = result;
        let domain = self.item_domains.get(&item).copied();
        match outcome {
            Answer::Captured { vault, manifest_sha256 } => {
                Outcome::Captured { item, domain, time, vault, manifest_sha256 }
            }
            Answer::Skipped { policy } => Outcome::Skipped { item, domain, time, policy },
            Answer::Missed { reason } => Outcome::Missed { item: Some(item), domain, target: None, reason },
        }
    }
}

fn pinned_disk(disk: &PinDisk) -> PinnedDisk {
    let layer = |(number, layer): (usize, &super::store::PinLayer)| PinnedLayer {
        original: layer.original.clone(),
        pin: layer.pin.clone(),
        format: layer.format.clone(),
        shared: number > 0,
    };
    PinnedDisk { target: disk.target.clone(), layers: disk.layers.iter().enumerate().map(layer).collect() }
}

/// An id that sorts by the end of the VM.
fn new_item(ended: Timestamp) -> ItemId {
    const SECOND: i64 = 1_000_000_000;
    let seconds = u64::try_from(ended.as_nanos().div_euclid(SECOND)).unwrap_or(0);
    let nanos = u32::try_from(ended.as_nanos().rem_euclid(SECOND)).unwrap_or(0);
    ItemId(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, nanos)))
}
