//! The chain of one host: nothing missing, moved, rewritten or doubled, everything signed.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use vestigo_model::{Digest, HostId};

use super::{Findings, What};
use crate::{
    manifest,
    verify::survey::{self, Copy, Signature, Survey},
};

/// The manifests that hold, one for each place in the chain.
pub(crate) type Chain<'a> = BTreeMap<u64, &'a Copy>;

/// Checks it, and gives the manifests that hold.
pub(crate) fn check<'a>(roots: &[PathBuf], host: &HostId, survey: &'a Survey, findings: &mut Findings) -> Chain<'a> {
    let chain = choose(survey);
    two_histories(roots, host, survey, findings);
    let known: HashMap<Digest, u64> = chain.iter().map(|(sequence, copy)| (copy.digest, *sequence)).collect();
    let mut broken = Vec::new();
    let mut before = (0, Some(Digest::ZERO));
    for sequence in survey.copies.keys().chain(&survey.unreadable).copied().collect::<std::collections::BTreeSet<_>>() {
        if sequence > before.0 + 1 {
            let missing = (before.0 + 1, sequence - 1);
            let detail =
                format!("{} of {host}'s manifests are not there, although later ones are", missing.1 - before.0);
            findings.add_run(What::SegmentMissing, host, missing, place_of(roots, &chain, sequence), detail);
            before.1 = None;
        }
        let link = chain.get(&sequence).map(|copy| link(host, copy, before, &known, &chain, findings));
        if link == Some(false) || link.is_none() || before.1.is_none() {
            broken.push(sequence);
        }
        before = (sequence, chain.get(&sequence).map(|copy| copy.digest));
    }
    signatures(host, survey, &chain, &broken, findings);
    chain
}

fn place_of(roots: &[PathBuf], chain: &Chain<'_>, sequence: u64) -> String {
    let copy = chain.get(&sequence).map(|copy| copy.path());
    copy.or_else(|| roots.first().map(|root| root.display().to_string())).unwrap_or_default()
}

/// Of several histories the one that the later manifests continue; from the newest to the oldest.
fn choose(survey: &Survey) -> Chain<'_> {
    let mut chain = Chain::new();
    let mut wanted = None;
    for (sequence, copies) in survey.copies.iter().rev() {
        let continued = copies.iter().find(|copy| Some(copy.digest) == wanted);
        let signed = || copies.iter().find(|copy| matches!(copy.signature, Signature::Good(_)));
        if let Some(copy) = continued.or_else(signed).or_else(|| copies.first()) {
            wanted = Some(copy.manifest.previous);
            chain.insert(*sequence, copy);
        }
    }
    chain
}

fn two_histories(roots: &[PathBuf], host: &HostId, survey: &Survey, findings: &mut Findings) {
    for (sequence, copies) in &survey.copies {
        let Some(first) = copies.first() else { continue };
        if let Some(other) = copies.iter().find(|copy| copy.digest != first.digest) {
            let ledger = |copy: &Copy| roots.get(copy.root).map_or(String::new(), |root| root.display().to_string());
            let detail = match (ledger(first), ledger(other)) {
                (a, b) if a == b => format!("{a} holds two different segments in one place of {host}'s chain"),
                (a, b) => format!("{a} and {b} hold different segments in one place of {host}'s chain"),
            };
            findings.add(What::TwoHistories, host, *sequence, other.path(), detail);
        }
    }
}

/// Whether the manifest is what its name says and continues the one before.
fn link(
    host: &HostId,
    copy: &Copy,
    (number, before): (u64, Option<Digest>),
    known: &HashMap<Digest, u64>,
    chain: &Chain<'_>,
    findings: &mut Findings,
) -> bool {
    let manifest = &copy.manifest;
    let sequence = manifest::sequence_of(&copy.name).unwrap_or(0);
    if manifest.sequence != sequence
        || copy.name != format!("{}{}", manifest.segment, manifest::SUFFIX)
        || manifest.host != *host
    {
        let is = format!("segment {} of {}", manifest.segment, manifest.host);
        findings.add(
            What::Reordered,
            host,
            sequence,
            copy.path(),
            format!("the file {} holds the manifest of {is}", copy.name),
        );
        return false;
    }
    match before {
        // What is missing or unreadable has been told.
        None => true,
        Some(digest) if digest == manifest.previous => true,
        Some(_) => {
            let (what, detail) = match known.get(&manifest.previous) {
                Some(other) => {
                    (What::Reordered, format!("segment {sequence} continues segment {other}, not the one before it"))
                }
                None if manifest.previous == Digest::ZERO => {
                    (What::Rewritten, format!("segment {sequence} begins a chain of its own"))
                }
                None => (
                    What::Rewritten,
                    format!("segment {sequence} was chained to another manifest than the one before it"),
                ),
            };
            // A moved manifest has been told already, at its own place.
            let moved = chain.get(&number).is_some_and(|copy| copy.manifest.sequence != number);
            if !moved {
                let place = chain.get(&number).map_or_else(|| copy.path(), |copy| copy.path());
                findings.add_run(what, host, (number.max(1), sequence), place, detail);
            }
            false
        }
    }
}

/// Every manifest of version 2 is signed. Those before are proven by the first signed one that continues them.
fn signatures(host: &HostId, survey: &Survey, chain: &Chain<'_>, broken: &[u64], findings: &mut Findings) {
    let mut continued = false;
    let mut bad = Vec::new();
    for (sequence, copy) in chain.iter().rev() {
        // A good signature in any copy of the same bytes counts.
        let copies = survey.copies.get(sequence).into_iter().flatten().filter(|other| other.digest == copy.digest);
        let best = copies.map(|other| &other.signature).find(|signature| matches!(signature, Signature::Good(_)));
        let signature = best.unwrap_or(&copy.signature);
        let proven = *signature == Signature::Missing && copy.manifest.version < 2 && continued;
        if !proven && !matches!(signature, Signature::Good(_)) {
            bad.push((signature.clone(), *sequence, copy.path()));
        }
        continued = (continued || matches!(signature, Signature::Good(_))) && !broken.contains(sequence);
    }
    for (signature, sequence, place) in bad.into_iter().rev() {
        survey::complain(&signature, "the manifest", host, (sequence, place), findings);
    }
}

/// What logs and other copies know of the newest segments.
pub(crate) fn tails(roots: &[PathBuf], host: &HostId, survey: &Survey, chain: &Chain<'_>, findings: &mut Findings) {
    let last = survey.last();
    for log in &survey.logs {
        let place = log.folder.display();
        match log.head {
            Some(head) if head.sequence > last => {
                let detail = format!("the log knows segment {}, and the newest one here is {last}", head.sequence);
                findings.add_run(What::TailMissing, host, (last + 1, head.sequence), place, detail);
            }
            Some(head) if chain.get(&head.sequence).is_some_and(|copy| copy.digest != head.sha256) => {
                let detail = format!("the log knows another segment {} than the one here", head.sequence);
                findings.add(What::Rewritten, host, head.sequence, place, detail);
            }
            _ => {
                let covered = chain.values().map(|copy| copy.manifest.wal.last).max().unwrap_or(0);
                if log.lowest > covered + 1 {
                    let detail =
                        format!("the log begins at generation {}, the segments hold those up to {covered}", log.lowest);
                    findings.add(What::TailMissing, host, last + 1, place, detail);
                }
            }
        }
        behind(roots, host, survey, log.root, findings);
    }
}

/// The ledger that is written knows everything that its copies know.
fn behind(roots: &[PathBuf], host: &HostId, survey: &Survey, root: usize, findings: &mut Findings) {
    let place = roots.get(root).map_or(String::new(), |root| root.display().to_string());
    let own = |copies: &Vec<Copy>| copies.iter().any(|copy| copy.root == root);
    let newest = survey.copies.iter().rev().find(|(_, copies)| own(copies)).map_or(0, |(sequence, _)| *sequence);
    for (sequence, _) in survey.copies.iter().filter(|(_, copies)| !own(copies)) {
        let what = if *sequence > newest { What::TailMissing } else { What::SegmentMissing };
        findings.add(
            what,
            host,
            *sequence,
            &place,
            "another copy has segments that the ledger which hostd writes has no more",
        );
    }
}
