//! Verifying an item from the store: everything that can be wrong has a name, and the search goes on behind it.

use serde::Serialize;
use vestigo_model::{Digest, ItemId};

use crate::{
    chunk::Domain,
    codec::as_u64,
    custody::{self, Break, CustodyError, Recorded, What},
    export::{self, Hashing},
    fetch::{self, Fault, FetchError, Reader},
    index::LayerIndex,
    layout,
    manifest::{self, Captured, Manifest, ManifestError, ObjectRef, Stored},
    pack::{HEADER, Header},
    vault::{Key, Vault, VaultError},
};

/// A vault that lost everything must not fill the report with a line per chunk.
const MOST: usize = 1000;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Custody failed.
    #[error(transparent)]
    Custody(#[from] CustodyError),
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// The manifest cannot be read.
    ManifestDamaged,
    /// The manifest is not the one that custody recorded.
    ManifestAltered,
    /// Custody has no record of the capture, or is damaged.
    Custody,
    /// An entry of the custody log is missing, damaged or rewritten.
    CustodyChain,
    /// The domain XML is gone or another.
    DomainXml,
    /// An index is gone or another.
    Index,
    /// The roots do not agree.
    Root,
    /// A pack is gone.
    MissingPack,
    /// A pack is shorter than it was.
    TruncatedPack,
    /// A pack's own header or trailer is damaged; its chunks may be whole.
    DamagedPack,
    /// A chunk's bytes are others.
    AlteredChunk,
    /// The whole file's SHA-256 is another.
    ImageDigest,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// Which disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Which layer of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Where in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// In words.
    pub detail: String,
}

/// The verdict.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which item.
    pub item: ItemId,
    /// Per cent of the chunks that were read; 100 for all.
    pub sample: f64,
    /// SHA-256 of the manifest as it is.
    pub manifest_sha256: Option<Digest>,
    /// Chunks read and held against their digests.
    pub chunks: u64,
    /// Plain bytes of them.
    pub bytes: u64,
    /// Layers whose whole SHA-256 was computed and agreed.
    pub images: u64,
    /// What is wrong; empty when nothing is.
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub unlisted: u64,
}

impl Report {
    /// Whether everything that was looked at is as it was stored.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, at: &Place<'_>, kind: FindingKind, offset: Option<u64>, detail: String) {
        if self.findings.len() >= MOST {
            self.unlisted += 1;
            return;
        }
        let (disk, layer) = at.map_or((None, None), |(disk, layer)| (Some(disk.to_owned()), Some(layer)));
        self.findings.push(Finding { kind, disk, layer, offset, detail });
    }
}

type Place<'a> = Option<(&'a str, usize)>;

/// Verifies.
pub struct Verifier<'a> {
    /// The vault.
    pub vault: &'a dyn Vault,
    /// Per cent of the chunks to read.
    pub sample: f64,
    /// Requests at once.
    pub threads: usize,
    /// Told how many bytes of the item are done.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

impl Verifier<'_> {
    /// Looks at everything that makes up the item.
    pub fn item(&self, item: &ItemId) -> Result<Report, VerifyError> {
        let mut report = Report {
            item: *item,
            sample: self.sample,
            manifest_sha256: None,
            chunks: 0,
            bytes: 0,
            images: 0,
            findings: Vec::new(),
            unlisted: 0,
        };
        let Stored { manifest, sha256 } = match manifest::load(self.vault, item) {
            Ok(stored) => stored,
            Err(ManifestError::Vault(error)) => return Err(error.into()),
            Err(error) => {
                report.add(&None, FindingKind::ManifestDamaged, None, error.to_string());
                return Ok(report);
            }
        };
        report.manifest_sha256 = Some(sha256);
        self.custody(&mut report, item, sha256)?;
        if let Err(why) = self.object(&manifest.domain_xml)? {
            report.add(&None, FindingKind::DomainXml, None, why);
        }
        if Manifest::root_of(&manifest.disks) != manifest.root {
            report.add(&None, FindingKind::Root, None, "the layers' roots do not give the item's".to_owned());
        }
        for disk in &manifest.disks {
            for (number, layer) in disk.layers.iter().enumerate() {
                if let Some(captured) = layer.captured() {
                    self.layer(&mut report, (&disk.target, number), captured)?;
                }
            }
        }
        Ok(report)
    }

    fn custody(&self, report: &mut Report, item: &ItemId, sha256: Digest) -> Result<(), VerifyError> {
        let entries = match custody::of_item(self.vault, item) {
            Ok(entries) => entries,
            Err(CustodyError::Vault(error @ (VaultError::Unavailable(_) | VaultError::Refused(_)))) => {
                return Err(error.into());
            }
            Err(error) => {
                report.add(&None, FindingKind::Custody, None, error.to_string());
                return Ok(());
            }
        };
        for Recorded { entry, digest } in &entries {
            let copy = self.vault.get(&layout::item_custody(item, entry.number)?)?;
            if Digest::of(&copy) != *digest {
                let detail = format!("custody entry {} is not what its copy beside the item says", entry.number);
                report.add(&None, FindingKind::Custody, None, detail);
            }
        }
        let breaks = if self.sample >= 100.0 {
            custody::walk(self.vault, self.threads)?.breaks
        } else {
            let near = entries.iter().map(|r| custody::neighbours(self.vault, r.entry.number));
            let mut breaks: Vec<_> = near.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
            breaks.sort_by_key(|b| b.number);
            breaks.dedup();
            breaks
        };
        for Break { number, why } in breaks {
            report.add(&None, FindingKind::CustodyChain, None, format!("custody entry {number}: {why}"));
        }
        let searched =
            if entries.iter().any(|r| r.entry.what == What::Captured) { vec![] } else { self.captures(item)? };
        let mut captured = entries.iter().chain(&searched).filter(|r| r.entry.what == What::Captured).peekable();
        if captured.peek().is_none() {
            report.add(
                &None,
                FindingKind::Custody,
                None,
                "custody has no record that this item was captured".to_owned(),
            );
        }
        for recorded in captured {
            let said = recorded.entry.detail.get("manifest_sha256").map_or("nothing", String::as_str);
            if said != sha256.to_string() {
                let number = recorded.entry.number;
                let detail = format!("its SHA-256 is {sha256}, custody entry {number} recorded {said}");
                report.add(&None, FindingKind::ManifestAltered, None, detail);
            }
        }
        Ok(())
    }

    fn captures(&self, item: &ItemId) -> Result<Vec<Recorded>, VerifyError> {
        match custody::captures(self.vault, item) {
            // Found and named already.
            Err(CustodyError::Damaged(..) | CustodyError::Vault(VaultError::NotFound(_))) => Ok(vec![]),
            found => Ok(found?),
        }
    }

    fn object(&self, object: &ObjectRef) -> Result<Result<bytes::Bytes, String>, VerifyError> {
        let Ok(key) = Key::new(object.key.clone()) else { return Ok(Err(format!("{:?} is no key", object.key))) };
        match self.vault.get(&key) {
            Ok(bytes) if Digest::of(&bytes) == object.sha256 => Ok(Ok(bytes)),
            Ok(_) => Ok(Err(format!("{key} has another SHA-256 than the manifest says"))),
            Err(VaultError::NotFound(_)) => Ok(Err(format!("{key} is gone"))),
            Err(error) => Err(error.into()),
        }
    }

    fn layer(&self, report: &mut Report, at: (&str, usize), captured: &Captured) -> Result<(), VerifyError> {
        let place = Some(at);
        let index = match self.object(&captured.index)? {
            Err(why) => Err(why),
            Ok(bytes) => LayerIndex::decode(&bytes).map_err(|e| e.to_string()),
        };
        let (index, domain) = match (index, Domain::parse(&captured.domain)) {
            (Ok(index), Some(domain)) => (index, domain),
            (Err(why), _) => {
                report.add(&place, FindingKind::Index, None, why);
                return Ok(());
            }
            (_, None) => {
                report.add(&place, FindingKind::Index, None, format!("{:?} is no domain", captured.domain));
                return Ok(());
            }
        };
        if index.root() != captured.root.0 || index.image_size != captured.size {
            let detail = "the index does not give the root and size in the manifest".to_owned();
            report.add(&place, FindingKind::Root, None, detail);
        }
        let reader = Reader { vault: self.vault, index: &index, domain: &domain, threads: self.threads };
        self.packs(report, at, &reader)?;
        self.chunks(report, at, &reader, captured)
    }

    /// The frames around the chunks: header and trailer of each pack.
    fn packs(&self, report: &mut Report, at: (&str, usize), reader: &Reader<'_>) -> Result<(), VerifyError> {
        for (number, pack) in (0u32..).zip(&reader.index.packs) {
            let key = reader.pack_key(number)?;
            let damaged = match fetch::pack_trailer(self.vault, &key) {
                // Missing and cut-short packs show at each chunk in them.
                Err(FetchError::Vault(VaultError::NotFound(_) | VaultError::TooShort { .. })) => continue,
                Err(FetchError::Vault(error)) => return Err(error.into()),
                Err(FetchError::Pack { error, .. }) => Some(error.to_string()),
                Ok(_) => match Header::decode(&self.vault.get_range(&key, 0, as_u64(HEADER))?) {
                    Err(error) => Some(error.to_string()),
                    Ok(header) if header.id != pack.id => Some("its header bears another name".to_owned()),
                    Ok(_) => None,
                },
            };
            if let Some(why) = damaged {
                report.add(&Some(at), FindingKind::DamagedPack, None, format!("pack {key}: {why}"));
            }
        }
        Ok(())
    }

    fn chunks(
        &self,
        report: &mut Report,
        at: (&str, usize),
        reader: &Reader<'_>,
        captured: &Captured,
    ) -> Result<(), VerifyError> {
        let whole = self.sample >= 100.0;
        let hashing = (whole && captured.sha256.is_some()).then(Hashing::start);
        let mut sampler = Sampler::new(self.sample);
        let mut faults = 0u64;
        let read: Result<(), VerifyError> = reader.read(
            |piece| whole || (piece.data.is_some() && sampler.take()),
            |piece, content| {
                (self.progress)(u64::from(piece.len));
                match content {
                    Some(Ok(bytes)) => {
                        report.chunks += 1;
                        report.bytes += as_u64(bytes.len());
                        if let Some(hashing) = &hashing {
                            hashing.bytes(bytes);
                        }
                    }
                    Some(Err(fault)) => {
                        faults += 1;
                        report.add(&Some(at), kind(&fault), Some(piece.offset), fault.to_string());
                        if let Some(hashing) = &hashing {
                            hashing.zeros(u64::from(piece.len));
                        }
                    }
                    None => {
                        if let Some(hashing) = &hashing {
                            hashing.zeros(u64::from(piece.len));
                        }
                    }
                }
                Ok(())
            },
        );
        read?;
        if let Some(hashing) = hashing {
            let found = hashing.finish();
            if captured.sha256 == Some(found) {
                report.images += 1;
            } else if let (0, Some(said)) = (faults, export::is_other(captured, found)) {
                let detail = format!("the whole file has SHA-256 {found}, the manifest says {said}");
                report.add(&Some(at), FindingKind::ImageDigest, None, detail);
            }
        }
        Ok(())
    }
}

fn kind(fault: &Fault) -> FindingKind {
    match fault {
        Fault::MissingPack(_) => FindingKind::MissingPack,
        Fault::TruncatedPack(_) => FindingKind::TruncatedPack,
        Fault::Altered { .. } => FindingKind::AlteredChunk,
    }
}

/// Picks chunks at random, anew for each verification, and always at least one.
struct Sampler {
    seed: blake3::Hasher,
    threshold: u64,
    number: u64,
}

impl Sampler {
    fn new(percent: f64) -> Self {
        let mut seed = blake3::Hasher::new();
        seed.update(uuid::Uuid::new_v4().as_bytes());
        // Ten decimal places of a per cent are finer than any disk has chunks.
        let parts = (percent.clamp(0.0, 100.0) * 1e10).round();
        let parts = format!("{parts:.0}").parse::<u64>().unwrap_or(u64::MAX);
        Self { seed, threshold: parts, number: 0 }
    }

    fn take(&mut self) -> bool {
        let mut hasher = self.seed.clone();
        hasher.update(&self.number.to_le_bytes());
        self.number += 1;
        let hash = hasher.finalize();
        let value = hash.as_bytes().first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
        self.number == 1 || value % 1_000_000_000_000 < self.threshold
    }
}

/// Bytes of the item that a verification of everything goes through, for a progress bar.
#[must_use]
pub fn volume(manifest: &Manifest) -> u64 {
    manifest.size()
}

/// Whether the item is there at all.
pub fn exists(vault: &dyn Vault, item: &ItemId) -> Result<bool, VaultError> {
    vault.exists(&layout::manifest(item)?)
}

#[cfg(test)]
mod tests {
    use super::Sampler;

    #[test]
    fn a_sample_is_about_as_large_as_asked() {
        let mut sampler = Sampler::new(10.0);
        let taken = (0..10_000).filter(|_| sampler.take()).count();
        assert!((800..1200).contains(&taken), "{taken}");
        let mut none = Sampler::new(0.0);
        assert!(none.take(), "never nothing at all");
        assert!(!none.take());
    }
}
