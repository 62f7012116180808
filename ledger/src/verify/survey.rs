//! What lies in the ledgers of one host: manifests, signatures, tombstones, and all other names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use vestigo_model::{Digest, HostId};

use super::{Findings, What};
use crate::{
    durable::{self, IoError},
    entry::{Entry, Head},
    log,
    manifest::{self, FORMAT, Manifest, Place, VERSION},
    retention::tombstone::{self, SITE_PRINCIPAL},
    sign::{
        self, SEGMENT_NAMESPACE, SIGNATURE_SUFFIX, TOMBSTONE_NAMESPACE,
        signers::{Refused, Signers},
    },
};

/// Largest manifest that is read: one with the most addresses and stretches has 300 KiB.
const MAX_MANIFEST: u64 = 16 << 20;

/// What the signature of a file is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signature {
    Good(String),
    Missing,
    Refused(Refused),
}

/// One copy of a manifest.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    pub(crate) root: usize,
    pub(crate) folder: PathBuf,
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) signature: Signature,
}

impl Copy {
    pub(crate) fn path(&self) -> String {
        self.folder.join(&self.name).display().to_string()
    }
}

/// The live log of a ledger.
#[derive(Debug, Clone)]
pub(crate) struct LiveLog {
    pub(crate) root: usize,
    pub(crate) folder: PathBuf,
    /// The newest segment that a header knows.
    pub(crate) head: Option<Head>,
    /// Lowest generation there.
    pub(crate) lowest: u64,
}

/// Everything that lies under one host's name.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// By the sequence number in the file's name.
    pub(crate) copies: BTreeMap<u64, Vec<Copy>>,
    /// Sequence numbers of manifests that are there and cannot be read.
    pub(crate) unreadable: BTreeSet<u64>,
    /// Tombstones whose signature holds, by sequence.
    pub(crate) tombstones: BTreeMap<u64, Vec<tombstone::Found>>,
    /// Names by folder, with the ledger's number.
    pub(crate) names: BTreeMap<PathBuf, (usize, Vec<String>)>,
    pub(crate) logs: Vec<LiveLog>,
}

/// The hosts that have anything in these ledgers.
pub(crate) fn hosts(roots: &[PathBuf]) -> Result<BTreeSet<HostId>, IoError> {
    let mut hosts = BTreeSet::new();
    for root in roots {
        for folder in manifest::folders(root, None)? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            hosts.extend(name.strip_prefix("host=").and_then(|name| HostId::new(name).ok()));
        }
        hosts.extend(log_headers(root)?.into_iter().map(|(host, ..)| host));
    }
    Ok(hosts)
}

/// Looks at everything under the host's name; what cannot be read or is badly signed is a finding already.
pub(crate) fn look(
    roots: &[PathBuf],
    host: &HostId,
    signers: &Signers,
    findings: &mut Findings,
) -> Result<Survey, IoError> {
    let mut survey = Survey::default();
    for (root, path) in roots.iter().enumerate() {
        for folder in manifest::folders(path, Some(host))? {
            survey.names.insert(folder.clone(), (root, durable::names(&folder)?));
            for place in manifest::places(&folder)? {
                survey.take_manifest(root, &place, signers, host, findings)?;
            }
            survey.take_tombstones(&folder, signers, host, findings)?;
        }
        let mut log: Option<LiveLog> = None;
        for (of, generation, head) in log_headers(path)?.into_iter().filter(|(of, ..)| of == host) {
            debug_assert_eq!(of, *host);
            let log = log.get_or_insert(LiveLog { root, folder: log::folder(path), head: None, lowest: generation });
            log.head = [log.head, head].into_iter().flatten().max_by_key(|head| head.sequence);
        }
        survey.logs.extend(log);
    }
    Ok(survey)
}

impl Survey {
    fn take_manifest(
        &mut self,
        root: usize,
        place: &Place,
        signers: &Signers,
        host: &HostId,
        findings: &mut Findings,
    ) -> Result<(), IoError> {
        let path = place.folder.join(&place.name);
        let bytes = read_bounded(&path, MAX_MANIFEST)?;
        let parsed = serde_json::from_slice::<Manifest>(&bytes);
        let manifest = match parsed {
            Ok(manifest) if manifest.format == FORMAT && manifest.version <= VERSION => manifest,
            other => {
                let why = match other {
                    Ok(manifest) => format!("is of version {}, newer than this program reads", manifest.version),
                    Err(_) => "is no manifest".to_owned(),
                };
                self.unreadable.insert(place.sequence);
                findings.add(
                    What::ManifestUnreadable,
                    host,
                    place.sequence,
                    path.display(),
                    format!("{} {why}", place.name),
                );
                return Ok(());
            }
        };
        let signature = signature_of(&path, |signature| {
            signers.check(host.as_str(), SEGMENT_NAMESPACE, &bytes, signature, manifest.sealed)
        })?;
        let digest = Digest::of(&bytes);
        let (folder, name) = (place.folder.clone(), place.name.clone());
        self.copies.entry(place.sequence).or_default().push(Copy { root, folder, name, digest, manifest, signature });
        Ok(())
    }

    fn take_tombstones(
        &mut self,
        folder: &Path,
        signers: &Signers,
        host: &HostId,
        findings: &mut Findings,
    ) -> Result<(), IoError> {
        let names = durable::names(folder)?;
        let (found, unreadable) = tombstone::in_folder(folder, &names)?;
        for path in unreadable {
            let sequence = path.file_name().and_then(|n| n.to_str()).and_then(manifest::sequence_of).unwrap_or(0);
            findings.add(What::ManifestUnreadable, host, sequence, path.display(), "it is no tombstone");
        }
        for found in found {
            let stone = &found.tombstone;
            let by_whom = stone.by == host.as_str() || stone.by == SITE_PRINCIPAL;
            let signature = signature_of(&found.path, |signature| {
                signers.check(&stone.by, TOMBSTONE_NAMESPACE, &found.bytes, signature, stone.removed)
            })?;
            let at = (stone.sequence, found.path.display().to_string());
            match signature {
                Signature::Good(_) if by_whom => self.tombstones.entry(at.0).or_default().push(found),
                Signature::Good(key) => {
                    let what = format!(
                        "a tombstone is signed by {key} for {:?}, which is neither this host nor {SITE_PRINCIPAL}",
                        stone.by
                    );
                    findings.add(What::SignerUnknown, host, at.0, at.1, what);
                }
                bad => complain(&bad, "a tombstone", host, at, findings),
            }
        }
        Ok(())
    }

    /// The highest sequence number of which anything is known here.
    pub(crate) fn last(&self) -> u64 {
        let copies = self.copies.keys().next_back().copied();
        copies.max(self.unreadable.iter().next_back().copied()).unwrap_or(0)
    }

    /// Whether a tombstone accounts for the absence of the file.
    pub(crate) fn is_buried(&self, copy: &Copy, entry: &manifest::FileEntry) -> bool {
        let stones = self.tombstones.get(&copy.manifest.sequence);
        stones.into_iter().flatten().any(|found| found.tombstone.covers(copy.digest, entry))
    }
}

/// Says what is wrong with a signature.
pub(crate) fn complain(
    signature: &Signature,
    of: &str,
    host: &HostId,
    (sequence, place): (u64, String),
    findings: &mut Findings,
) {
    match signature {
        Signature::Good(_) => {}
        Signature::Missing => {
            findings.add(What::SignatureMissing, host, sequence, place, format!("{of} has no signature"));
        }
        Signature::Refused(Refused::Forged(why)) => {
            findings.add(
                What::SignatureForged,
                host,
                sequence,
                place,
                format!("the signature of {of} does not hold: {why}"),
            );
        }
        Signature::Refused(Refused::Unknown(key)) => {
            let what = format!("{of} is signed by key {key}, and nobody vouches that it is {host}'s");
            findings.add(What::SignerUnknown, host, sequence, place, what);
        }
    }
}

fn signature_of(path: &Path, check: impl FnOnce(&[u8]) -> Result<String, Refused>) -> Result<Signature, IoError> {
    match sign::read_bounded(&sign::beside(path, SIGNATURE_SUFFIX)) {
        Ok(Some(bytes)) => Ok(check(&bytes).map_or_else(Signature::Refused, Signature::Good)),
        Ok(None) => Ok(Signature::Refused(Refused::Forged("it is larger than a signature can be".into()))),
        Err(error) if error.is_not_found() => Ok(Signature::Missing),
        Err(error) => Err(error),
    }
}

fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, IoError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(IoError::at("open", path))?;
    file.take(most).read_to_end(&mut bytes).map_err(IoError::at("read", path))?;
    Ok(bytes)
}

/// The headers of a ledger's log. A log that may not be read (names in clear) or that moves meanwhile says nothing.
fn log_headers(root: &Path) -> Result<Vec<(HostId, u64, Option<Head>)>, IoError> {
    let generations = match log::generations(root) {
        Err(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => return Ok(Vec::new()),
        other => other?,
    };
    let mut headers = Vec::new();
    for generation in generations {
        let Ok(read) = log::read(&log::path(root, generation)) else { continue };
        // The first says whose log it is; a later one, which segment was sealed meanwhile.
        let of = read.entries.into_iter().filter_map(|entry| match entry {
            Entry::Header(header) => Some((header.host, generation, header.head)),
            _ => None,
        });
        headers.extend(of);
    }
    Ok(headers)
}
