//! The last steps of an item: domain XML, manifest, custody. From the manifest on, the item exists.

use std::collections::BTreeMap;

use bytes::Bytes;
use vestigo_model::{Digest, Handover, Outcome};

use super::{AcquireError, Acquirer, layer::put_ours};
use crate::{
    codec::as_u64,
    custody::{self, Actor, Draft, What},
    journal::{Announced, Journal},
    layout,
    manifest::{self, DiskRecord, GuestClaims, LayerState, Manifest, ObjectRef, Retention, Timings},
    vault::Put,
};

impl Acquirer {
    /// Writes what makes the item an item.
    pub(super) fn seal(
        &self,
        handover: &Handover,
        journal: &mut Journal,
        disks: Vec<DiskRecord>,
    ) -> Result<Outcome, AcquireError> {
        let xml = Bytes::from(handover.domain_xml.clone().into_bytes());
        let xml_key = layout::domain_xml(&handover.item)?;
        let domain_xml = ObjectRef { key: xml_key.to_string(), size: as_u64(xml.len()), sha256: Digest::of(&xml) };
        put_ours(&*self.vault, &xml_key, xml)?;
        let manifest = self.manifest(handover, journal, disks, domain_xml);
        let manifest_sha256 = self.put_manifest(&manifest)?;
        self.record(journal, &manifest, manifest_sha256)?;
        Ok(Outcome::Captured { vault: self.vault.url(), manifest_sha256 })
    }

    fn manifest(
        &self,
        handover: &Handover,
        journal: &Journal,
        disks: Vec<DiskRecord>,
        domain_xml: ObjectRef,
    ) -> Manifest {
        let sealed = self.clock.now();
        Manifest {
            format: manifest::FORMAT.to_owned(),
            item: handover.item,
            tool: crate::TOOL.to_owned(),
            host: handover.host.clone(),
            vo: handover.instance.vo.clone(),
            instance: handover.instance.clone(),
            guest_claims: GuestClaims { payloads: handover.payloads.clone() },
            reason: handover.reason.clone(),
            deleted: handover.deleted,
            remarks: remarks(handover, &disks, &domain_xml),
            domain_xml,
            root: Manifest::root_of(&disks),
            disks,
            retention: Retention { until: sealed + self.policy.retention, object_lock: self.policy.object_lock },
            timings: Timings { taken_up: journal.taken_up, sealed, attempts: journal.attempts },
        }
    }

    /// Stores the manifest. One that is there already was written by us before a crash, if it names the same content; the
    /// times in it differ, and it is the one that holds.
    fn put_manifest(&self, ours: &Manifest) -> Result<Digest, AcquireError> {
        let bytes = ours.encode()?;
        let digest = Digest::of(&bytes);
        if self.vault.put_new(&layout::manifest(&ours.item)?, bytes.into())? == Put::Created {
            return Ok(digest);
        }
        let theirs = manifest::load(&*self.vault, &ours.item)?;
        let same = theirs.manifest.root == ours.root
            && theirs.manifest.instance == ours.instance
            && theirs.manifest.domain_xml == ours.domain_xml;
        if same { Ok(theirs.sha256) } else { Err(AcquireError::Conflict(ours.item)) }
    }

    /// Puts the capture into custody, once: the journal says from which number on our entry may stand after a crash.
    fn record(&self, journal: &mut Journal, manifest: &Manifest, manifest_sha256: Digest) -> Result<(), AcquireError> {
        let vault = &*self.vault;
        let head = custody::head(vault)?;
        if let Some(Announced { after, manifest_sha256: announced }) = journal.announced
            && announced == manifest_sha256
        {
            for number in after + 1..=head {
                let found = custody::read(vault, number)?;
                if found.entry.what == What::Captured && found.entry.item == Some(journal.item) {
                    let copy = vault.get(&layout::custody(number)?)?;
                    vault.put_new(&layout::item_custody(&journal.item, number)?, copy)?;
                    return Ok(());
                }
            }
        }
        journal.announced = Some(Announced { manifest_sha256, after: head });
        self.journals.save(journal)?;
        let draft = Draft {
            what: What::Captured,
            item: Some(manifest.item),
            who: Actor::current(),
            case: None,
            reason: Some(manifest.reason.clone()),
            detail: BTreeMap::from([
                ("manifest_sha256".to_owned(), manifest_sha256.to_string()),
                ("root".to_owned(), hex::encode(manifest.root.0)),
                ("host".to_owned(), manifest.host.to_string()),
                ("instance".to_owned(), manifest.instance.id.to_string()),
            ]),
        };
        custody::append(vault, &draft, self.clock.now())?;
        Ok(())
    }
}

/// What an investigator must know before trusting the rest.
fn remarks(handover: &Handover, disks: &[DiskRecord], domain_xml: &ObjectRef) -> Vec<String> {
    let mut remarks = Vec::new();
    if domain_xml.sha256 != handover.instance.xml_sha256 {
        remarks.push("the domain XML handed over is not the one whose SHA-256 the instance record holds".to_owned());
    }
    for disk in disks {
        for (number, layer) in disk.layers.iter().enumerate() {
            let at = format!("disk {}, layer {number}", disk.target);
            match &layer.state {
                LayerState::Missing { why } => remarks.push(format!("{at}: missing: {why}")),
                LayerState::Captured(captured) => {
                    let lost: u64 = captured.unreadable.iter().map(|range| range.length).sum();
                    if lost > 0 {
                        remarks.push(format!("{at}: {lost} bytes could not be read and are zeros here"));
                    }
                    remarks
                        .extend(captured.changed.iter().map(|how| format!("{at}: changed while it was read: {how}")));
                }
            }
        }
    }
    remarks
}
