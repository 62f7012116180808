//! A compacted segment becomes part of the chain.

use std::{collections::HashSet, fs, net::IpAddr, path::PathBuf};

use vestigo_model::{Digest, Fact, HostId, TimeRange, Timestamp};

use super::{CompactError, Step};
use crate::{
    durable::{self, IoError},
    manifest::{
        self, FORMAT, FileEntry, Generations, Kind, Losses, MAX_ADDRESSES, MAX_BLIND, Manifest, Replaced, Sealed,
        VERSION, Validity,
    },
    segment::rows,
    sign::Signer,
};

/// A place at the end of a host's chain, lent by its one writer.
pub struct Link<'a> {
    pub(crate) host: &'a HostId,
    pub(crate) sequence: u64,
    pub(crate) previous: Digest,
    /// Highest generation of the log that a segment holds.
    pub(crate) covered: u64,
    pub(crate) signer: Option<&'a Signer>,
    pub(crate) now: Timestamp,
}

/// Files that wait for their names.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) folder: PathBuf,
    pub(crate) segments: Vec<Sealed>,
    /// Where each lies, and its entry (its name is the part behind the segment's).
    pub(crate) files: Vec<(PathBuf, FileEntry)>,
}

impl Prepared {
    /// Puts the segment into the chain.
    pub(crate) fn commit(&self, link: &Link<'_>, step: Step<'_>) -> Result<Sealed, CompactError> {
        let manifest = self.manifest(link)?;
        self.name_files(&manifest, step)?;
        step("manifest")?;
        Ok(manifest::write(&self.folder, manifest, link.signer)?)
    }

    /// Removes what a commit that failed has named already: the next segment takes its number under another name, and then nobody
    /// would list these files. They are written again from what was sealed.
    pub(crate) fn withdraw(&self, sequence: u64) {
        let names = durable::names(&self.folder).unwrap_or_default();
        let own = names.iter().filter(|name| !name.starts_with('.') && manifest::sequence_of(name) == Some(sequence));
        own.for_each(|name| drop(fs::remove_file(self.folder.join(name))));
    }

    fn name_files(&self, manifest: &Manifest, step: Step<'_>) -> Result<(), CompactError> {
        for ((from, _), entry) in self.files.iter().zip(&manifest.files) {
            step("name")?;
            let to = self.folder.join(&entry.name);
            fs::rename(from, &to).map_err(IoError::at("rename the new file to", &to))?;
        }
        Ok(durable::sync_folder(&self.folder)?)
    }

    fn manifest(&self, link: &Link<'_>) -> Result<Manifest, CompactError> {
        let olds: Vec<&Manifest> = self.segments.iter().map(|old| &old.manifest).collect();
        let began = olds.first().and_then(|old| old.segment.split_once('-')).map_or("", |(_, time)| time);
        let segment = format!("{:08}-{began}", link.sequence);
        let files = self
            .files
            .iter()
            .map(|(_, entry)| FileEntry { name: format!("{segment}-{}.parquet", entry.kind), ..entry.clone() });
        let (coverage, blind) = sight(&olds);
        Ok(Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            host: link.host.clone(),
            sequence: link.sequence,
            sealed: link.now,
            flows: hull(olds.iter().filter_map(|old| old.flows)),
            facts: validity(&olds),
            coverage,
            recorded: hull(olds.iter().filter_map(|old| old.recorded)),
            addresses: addresses(&olds),
            blind,
            points: Some(self.points()?),
            replaces: self
                .segments
                .iter()
                .map(|old| Replaced { sequence: old.manifest.sequence, sha256: old.digest })
                .collect(),
            files: files.collect(),
            // It holds no generation that another one does not: an empty stretch that ends where the chain's does.
            wal: Generations { first: link.covered + 1, last: link.covered },
            losses: losses(&olds),
            previous: link.previous,
            segment,
        })
    }

    /// Taps of all its VMs.
    fn points(&self) -> Result<u64, CompactError> {
        let Some((path, _)) = self.files.iter().find(|(_, entry)| entry.kind == Kind::Instances) else { return Ok(0) };
        let mut taps = HashSet::new();
        for record in rows::facts(path)?.0 {
            if let Fact::Instance(instance) = record.fact {
                taps.extend(instance.taps.into_iter().map(|tap| (instance.domain, tap.name)));
            }
        }
        Ok(u64::try_from(taps.len()).unwrap_or(u64::MAX))
    }
}

fn hull(spans: impl Iterator<Item = TimeRange>) -> Option<TimeRange> {
    spans.reduce(|a, b| TimeRange { from: a.from.min(b.from), to: a.to.max(b.to) })
}

fn validity(olds: &[&Manifest]) -> Option<Validity> {
    let spans = olds.iter().filter_map(|old| old.facts);
    spans.reduce(|a, b| Validity { from: a.from.min(b.from), to: a.to.zip(b.to).map(|(a, b)| a.max(b)) })
}

/// From when to when its statements speak, and what of that nobody saw: also what lies between two old segments.
fn sight(olds: &[&Manifest]) -> (Option<TimeRange>, Option<Vec<TimeRange>>) {
    let mut spans: Vec<TimeRange> = olds.iter().filter_map(|old| old.coverage).collect();
    spans.sort_by_key(|span| (span.from, span.to));
    let whole = hull(spans.iter().copied());
    let known: Option<Vec<TimeRange>> =
        olds.iter().map(|old| old.blind.clone()).collect::<Option<Vec<_>>>().map(|b| b.concat());
    let Some(mut blind) = known else { return (whole, None) };
    let mut seen: Option<Timestamp> = None;
    for span in spans {
        blind.extend(seen.filter(|seen| *seen < span.from).map(|seen| TimeRange { from: seen, to: span.from }));
        seen = seen.max(Some(span.to));
    }
    let joined = join(blind);
    (whole, (joined.len() <= MAX_BLIND).then_some(joined))
}

/// Stretches that touch become one, in order.
fn join(mut stretches: Vec<TimeRange>) -> Vec<TimeRange> {
    stretches.sort_by_key(|stretch| (stretch.from, stretch.to));
    let mut joined: Vec<TimeRange> = Vec::new();
    for next in stretches {
        match joined.last_mut() {
            Some(last) if next.from <= last.to => last.to = last.to.max(next.to),
            _ => joined.push(next),
        }
    }
    joined
}

fn addresses(olds: &[&Manifest]) -> Option<Vec<IpAddr>> {
    let lists = olds.iter().map(|old| old.addresses.clone()).collect::<Option<Vec<_>>>()?;
    let mut all = lists.concat();
    all.sort_unstable();
    all.dedup();
    (all.len() <= MAX_ADDRESSES).then_some(all)
}

fn losses(olds: &[&Manifest]) -> Losses {
    olds.iter().fold(Losses::default(), |sum, old| Losses {
        torn_bytes: sum.torn_bytes + old.losses.torn_bytes,
        damaged_bytes: sum.damaged_bytes + old.losses.damaged_bytes,
        unreadable_records: sum.unreadable_records + old.losses.unreadable_records,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range((from, length): (i64, i64)) -> TimeRange {
        TimeRange { from: Timestamp::from_nanos(from), to: Timestamp::from_nanos(from + length) }
    }

    proptest! {
        #[test]
        fn joined_stretches_hold_the_same_instants_in_order(list in proptest::collection::vec((0..60_i64, 0..9_i64), 0..12)) {
            let stretches: Vec<_> = list.into_iter().map(range).collect();
            let joined = join(stretches.clone());
            let inside = |all: &[TimeRange], at: i64| all.iter().any(|s| s.from.as_nanos() <= at && at <= s.to.as_nanos());
            for at in 0..80 {
                prop_assert_eq!(inside(&stretches, at), inside(&joined, at));
            }
            prop_assert!(joined.windows(2).all(|pair| pair[0].to < pair[1].from));
        }
    }
}
