//! The files of one host's segments: there, unchanged, with the records that were sealed.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, HostId};

use super::{
    Findings, HostReport, What,
    chain::Chain,
    rows,
    survey::{Copy, Survey},
};
use crate::{
    durable::IoError,
    manifest::{self, FileEntry, Kind},
    retention::tombstone,
    sign::SIGNATURE_SUFFIX,
};

/// How long what a crash or a running writer left is given before it is called rubble.
const YOUNG: std::time::Duration = std::time::Duration::from_secs(3600);

/// The files of one host.
pub(crate) struct Files<'a> {
    pub(crate) host: &'a HostId,
    pub(crate) survey: &'a Survey,
    pub(crate) chain: &'a Chain<'a>,
    /// Whether every byte and record is looked at.
    pub(crate) deep: bool,
}

impl Files<'_> {
    /// Checks all of them. `done` is told the bytes of each file that was looked at.
    pub(crate) fn check(
        &self,
        report: &mut HostReport,
        findings: &mut Findings,
        done: &mut dyn FnMut(u64),
    ) -> Result<(), IoError> {
        let replaced = self.replaced(findings);
        for (sequence, copy) in self.chain {
            let mut whole = BTreeMap::new();
            for entry in &copy.manifest.files {
                let place = self.file(copy, entry, replaced.contains_key(sequence), report, findings, done)?;
                whole.extend(place.map(|path| (entry.kind, path)));
            }
            report.segments += 1;
            report.replaced += u64::from(replaced.contains_key(sequence));
            if self.deep && !copy.manifest.replaces.is_empty() {
                self.compacted(copy, &whole, findings)?;
            }
        }
        self.rubble(findings)
    }

    /// The segments whose rows another one holds, and which.
    fn replaced(&self, findings: &mut Findings) -> BTreeMap<u64, u64> {
        let mut replaced = BTreeMap::new();
        for (by, copy) in self.chain {
            for old in &copy.manifest.replaces {
                match self.chain.get(&old.sequence) {
                    Some(there) if there.digest == old.sha256 && old.sequence < *by => {
                        replaced.insert(old.sequence, *by);
                    }
                    Some(there) => {
                        let detail = format!("segment {by} was compacted from another manifest than this one");
                        findings.add(What::Rewritten, self.host, old.sequence, there.path(), detail);
                    }
                    // A missing one has been told.
                    None => {}
                }
            }
        }
        replaced
    }

    /// Where a whole copy of the file lies.
    fn file(
        &self,
        copy: &Copy,
        entry: &FileEntry,
        replaced: bool,
        report: &mut HostReport,
        findings: &mut Findings,
        done: &mut dyn FnMut(u64),
    ) -> Result<Option<PathBuf>, IoError> {
        let sequence = copy.manifest.sequence;
        if !tombstone::is_own(&entry.name, &copy.manifest.segment) {
            let detail = format!("it lists {:?}, which is no file of its own", entry.name);
            findings.add(What::ManifestUnreadable, self.host, sequence, copy.path(), detail);
            return Ok(None);
        }
        let copies = self.survey.copies.get(&sequence).into_iter().flatten();
        let (mut there, mut whole) = (0, None);
        for path in copies.filter(|other| other.digest == copy.digest).map(|other| other.folder.join(&entry.name)) {
            match self.bytes(&path, entry, done)? {
                State::Absent => {}
                State::Changed(how) => {
                    there += 1;
                    findings.add(
                        What::FileChanged,
                        self.host,
                        sequence,
                        path.display(),
                        format!("{} {how}", entry.name),
                    );
                }
                State::Whole => {
                    there += 1;
                    self.rows(&path, entry, sequence, findings)?;
                    whole = whole.or(Some(path));
                }
            }
        }
        match &whole {
            Some(_) => {
                report.files += 1;
                report.bytes += entry.bytes;
                report.rows += entry.rows;
            }
            None if there == 0 && self.survey.is_buried(copy, entry) => report.removed += 1,
            None if there == 0 && !replaced => {
                let place = copy.folder.join(&entry.name);
                findings.add(
                    What::FileMissing,
                    self.host,
                    sequence,
                    place.display(),
                    format!("{} is not there", entry.name),
                );
            }
            None => {}
        }
        Ok(whole)
    }

    fn bytes(&self, path: &Path, entry: &FileEntry, done: &mut dyn FnMut(u64)) -> Result<State, IoError> {
        let mut file = match File::open(path).map_err(IoError::at("open", path)) {
            Err(error) if error.is_not_found() => return Ok(State::Absent),
            other => other?,
        };
        let length = file.metadata().map_err(IoError::at("look at", path))?.len();
        if length != entry.bytes {
            return Ok(State::Changed(format!("is {length} bytes long, its manifest says {}", entry.bytes)));
        }
        done(length);
        if !self.deep {
            return Ok(State::Whole);
        }
        match digest(&mut file) {
            Ok(digest) if digest == entry.sha256 => Ok(State::Whole),
            Ok(digest) => Ok(State::Changed(format!("hashes to {digest}, its manifest says {}", entry.sha256))),
            // A medium that gives no bytes has changed the file as surely as a hand.
            Err(error) => Ok(State::Changed(format!("cannot be read: {error}"))),
        }
    }

    fn rows(&self, path: &Path, entry: &FileEntry, sequence: u64, findings: &mut Findings) -> Result<(), IoError> {
        if !self.deep {
            return Ok(());
        }
        if let Err(how) = rows::check(path, entry) {
            findings.add(What::RowsDiffer, self.host, sequence, path.display(), format!("{}: {how}", entry.name));
        }
        Ok(())
    }

    /// A compacted segment must yield the rows of each segment that it replaces.
    fn compacted(&self, copy: &Copy, whole: &BTreeMap<Kind, PathBuf>, findings: &mut Findings) -> Result<(), IoError> {
        let originals = self.originals(copy);
        for kind in Kind::ALL {
            let Some(path) = whole.get(&kind) else { continue };
            let wanted: Vec<(u64, &FileEntry)> = originals
                .iter()
                .filter_map(|(sequence, original)| {
                    original.manifest.files.iter().find(|file| file.kind == kind).map(|file| (*sequence, file))
                })
                .collect();
            for (sequence, how) in rows::check_groups(path, kind, &wanted) {
                let detail = format!("the {kind} of segment {sequence} in segment {}: {how}", copy.manifest.sequence);
                findings.add(What::RowsDiffer, self.host, sequence, path.display(), detail);
            }
        }
        Ok(())
    }

    /// What was sealed, through compactions of compactions.
    fn originals(&self, copy: &Copy) -> BTreeMap<u64, &Copy> {
        let mut originals = BTreeMap::new();
        let mut next: Vec<u64> = copy.manifest.replaces.iter().map(|old| old.sequence).collect();
        let mut seen = HashSet::new();
        while let Some(sequence) = next.pop() {
            let Some(old) = self.chain.get(&sequence).filter(|_| seen.insert(sequence)) else { continue };
            if old.manifest.replaces.is_empty() {
                originals.insert(sequence, *old);
            }
            next.extend(old.manifest.replaces.iter().map(|older| older.sequence));
        }
        originals
    }

    /// Names that nothing accounts for.
    fn rubble(&self, findings: &mut Findings) -> Result<(), IoError> {
        for (folder, (_, names)) in &self.survey.names {
            let listed = self.listed(folder);
            for name in names.iter().filter(|name| !listed.contains(name.as_str())) {
                let path = folder.join(name);
                let sequence = manifest::sequence_of(name).unwrap_or(0);
                let unfinished = sequence > self.survey.last() || name.starts_with('.');
                if unfinished && is_young(&path) {
                    continue;
                }
                findings.add(
                    What::Rubble,
                    self.host,
                    sequence,
                    path.display(),
                    format!("{name} is listed by no manifest"),
                );
            }
        }
        Ok(())
    }

    fn listed(&self, folder: &Path) -> BTreeSet<String> {
        let mut listed = BTreeSet::new();
        let signed = |name: &str| [name.to_owned(), format!("{name}{SIGNATURE_SUFFIX}")];
        for copy in self.survey.copies.values().flatten().filter(|copy| copy.folder == folder) {
            listed.extend(copy.manifest.files.iter().map(|file| file.name.clone()));
            listed.extend(signed(&copy.name));
        }
        let names = self.survey.names.get(folder).map(|(_, names)| names.as_slice()).unwrap_or_default();
        // What is wrong with a manifest or a tombstone has been told.
        let own = |name: &&String| name.ends_with(manifest::SUFFIX) || name.ends_with(tombstone::SUFFIX);
        listed.extend(names.iter().filter(own).flat_map(|name| signed(name)));
        // A removal that a crash stopped before it was decided: it accounts for nothing, and the next run decides it.
        let undecided = format!("{}{SIGNATURE_SUFFIX}", tombstone::SUFFIX);
        listed.extend(names.iter().filter(|name| name.ends_with(&undecided)).cloned());
        listed
    }
}

enum State {
    Absent,
    Changed(String),
    Whole,
}

fn is_young(path: &Path) -> bool {
    let age = path.metadata().and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_none_or(|age| age < YOUNG)
}

fn digest(file: &mut File) -> std::io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let got = file.read(&mut buffer)?;
        match buffer.get(..got) {
            Some([]) | None => return Ok(Digest(hash.finalize().into())),
            Some(bytes) => hash.update(bytes),
        }
    }
}
