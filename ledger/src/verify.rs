//! `vestigo ledger verify`: is everything there, in order, unchanged, and by whom it says?
//!
//! | looked at | finds |
//! |---|---|
//! | [`chain`]: manifests by number, each with the digest of the one before | missing, moved, rewritten, doubled ones |
//! | [`survey`]: a signature beside each, by a key that somebody vouches for | missing and forged ones, unknown keys |
//! | the log's headers and other copies, which know the newest segment | a tail that was cut off or rewritten |
//! | [`files`]: length and SHA-256 of each file | changed and missing ones, and what no manifest lists |
//! | [`rows`]: number and digest of the records; of a compacted file for each segment that went into it | records that are not those sealed |
//!
//! A file that is not there is accounted for by a signed tombstone, or by the segment that it was compacted into.

mod chain;
mod files;
mod finding;
mod rows;
mod survey;

use std::path::PathBuf;

use serde::Serialize;
use vestigo_model::{Digest, HostId};

pub use self::finding::{Finding, What};
pub(crate) use self::rows::group;
use self::{files::Files, finding::Findings};
use crate::{error::LedgerError, log, sign::signers::Signers};

/// How thoroughly.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Whose key may sign for whom. Without any, every signature is by an unknown key.
    pub signers: Signers,
    /// Only chain, signatures and lengths: no data file is read.
    pub quick: bool,
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// One for each host.
    pub hosts: Vec<HostReport>,
    /// What is wrong. Nothing: the ledger is whole.
    pub findings: Vec<Finding>,
}

/// What was looked at of one host.
#[derive(Debug, Clone, Serialize)]
pub struct HostReport {
    /// Whose chain.
    pub host: HostId,
    /// Segments, by their manifests.
    pub segments: u64,
    /// Of these: whose rows a compacted segment holds now.
    pub replaced: u64,
    /// The newest one.
    pub last: u64,
    /// SHA-256 of its manifest: write it down elsewhere, and the chain up to it can never be rewritten unnoticed.
    pub head: Option<Digest>,
    /// Files that are there and whole.
    pub files: u64,
    /// Files that a tombstone accounts for.
    pub removed: u64,
    /// Bytes in the files that are there.
    pub bytes: u64,
    /// Records in them.
    pub rows: u64,
}

/// Verifies ledgers together: copies of one host's segments in several of them are compared with each other.
/// `done` is told the bytes of each file as it has been looked at.
///
/// # Errors
/// [`LedgerError::NotALedger`], or a folder or file that may not be read. What is *wrong* is no error but a finding.
pub fn verify(roots: &[PathBuf], options: &VerifyOptions, done: &mut dyn FnMut(u64)) -> Result<Report, LedgerError> {
    for root in roots {
        let looks_like_one = log::folder(root).is_dir() || !crate::manifest::folders(root, None)?.is_empty();
        if !looks_like_one {
            return Err(LedgerError::NotALedger { root: root.clone() });
        }
    }
    let mut report = Report::default();
    let mut findings = Findings::default();
    for host in survey::hosts(roots)? {
        let survey = survey::look(roots, &host, &options.signers, &mut findings)?;
        let chain = chain::check(roots, &host, &survey, &mut findings);
        chain::tails(roots, &host, &survey, &chain, &mut findings);
        let mut of_host = HostReport {
            host: host.clone(),
            segments: 0,
            replaced: 0,
            last: survey.last(),
            head: chain.values().next_back().map(|copy| copy.digest),
            files: 0,
            removed: 0,
            bytes: 0,
            rows: 0,
        };
        let files = Files { host: &host, survey: &survey, chain: &chain, deep: !options.quick };
        files.check(&mut of_host, &mut findings, done)?;
        report.hosts.push(of_host);
    }
    report.findings = findings.all;
    Ok(report)
}

#[cfg(test)]
mod tests;
