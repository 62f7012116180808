//! What can be wrong with a ledger, each by its name.

use std::fmt;

use serde::Serialize;
use vestigo_model::HostId;

/// The names. They are stable: scripts look for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A data file is not the one that was sealed.
    FileChanged,
    /// A data file is not there, and nothing accounts for that.
    FileMissing,
    /// A manifest is not there although a later one is.
    SegmentMissing,
    /// A manifest lies where another one belongs.
    Reordered,
    /// A manifest is not the one that the next one, a log or a compaction names.
    Rewritten,
    /// No signature.
    SignatureMissing,
    /// A signature that does not fit what it lies beside.
    SignatureForged,
    /// A good signature by a key that nobody vouches for.
    SignerUnknown,
    /// The records are not those whose digest the manifest holds.
    RowsDiffer,
    /// A manifest, or a tombstone, that cannot be read.
    ManifestUnreadable,
    /// The newest segments are gone: a log or another copy knows more.
    TailMissing,
    /// Two different segments claim one place in the chain.
    TwoHistories,
    /// Files that no manifest lists.
    Rubble,
}

impl What {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::FileChanged,
        Self::FileMissing,
        Self::SegmentMissing,
        Self::Reordered,
        Self::Rewritten,
        Self::SignatureMissing,
        Self::SignatureForged,
        Self::SignerUnknown,
        Self::RowsDiffer,
        Self::ManifestUnreadable,
        Self::TailMissing,
        Self::TwoHistories,
        Self::Rubble,
    ];

    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FileChanged => "file-changed",
            Self::FileMissing => "file-missing",
            Self::SegmentMissing => "segment-missing",
            Self::Reordered => "reordered",
            Self::Rewritten => "rewritten",
            Self::SignatureMissing => "signature-missing",
            Self::SignatureForged => "signature-forged",
            Self::SignerUnknown => "signer-unknown",
            Self::RowsDiffer => "rows-differ",
            Self::ManifestUnreadable => "manifest-unreadable",
            Self::TailMissing => "tail-missing",
            Self::TwoHistories => "two-histories",
            Self::Rubble => "rubble",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::FileChanged => "restore the file from the object store or a backup; keep this one aside as evidence",
            Self::FileMissing => "restore the file from the object store or a backup",
            Self::SegmentMissing => {
                "restore the manifest, its signature and its files from the object store or a backup"
            }
            Self::Reordered => {
                "restore the manifests of this host from the object store or a backup; somebody moved them"
            }
            Self::Rewritten => {
                "do not rely on these records: compare with the object store and find out who could write here"
            }
            Self::SignatureMissing => {
                "restore the .sig file from the object store or a backup; if hostd never made one, look at `ledger_key` in hostd.toml"
            }
            Self::SignatureForged => {
                "do not rely on these records: whoever wrote them does not hold the host's key; restore from the object store"
            }
            Self::SignerUnknown => {
                "if the key is the host's (compare with `ssh-keygen -lf /var/lib/vestigo/keys/host_ed25519.pub` there), add its line to the file given with --signers; else do not rely on these records"
            }
            Self::RowsDiffer => {
                "do not rely on these records; restore the segments that were compacted from the object store"
            }
            Self::ManifestUnreadable => "restore the file from the object store or a backup",
            Self::TailMissing => "restore the newest segments from the object store, or look for who removed them",
            Self::TwoHistories => {
                "two hosts write under one name, or one copy was rewritten: give each host a name of its own in hostd.toml, and name the ledgers one by one to tell them apart"
            }
            Self::Rubble => {
                "hostd removes what a crash left when it starts; else find out who put it there, and remove it"
            }
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name.
    pub what: What,
    /// Whose chain.
    pub host: HostId,
    /// The first segment concerned.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// A file or folder.
    pub place: String,
    /// In words.
    pub detail: String,
    /// What to do.
    pub advice: &'static str,
}

/// Findings as they come in: what is the same of many segments in a row is one.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) all: Vec<Finding>,
}

impl Findings {
    pub(crate) fn add(
        &mut self,
        what: What,
        host: &HostId,
        sequence: u64,
        place: impl ToString,
        detail: impl ToString,
    ) {
        self.add_run(what, host, (sequence, sequence), place, detail);
    }

    pub(crate) fn add_run(
        &mut self,
        what: What,
        host: &HostId,
        (first, last): (u64, u64),
        place: impl ToString,
        detail: impl ToString,
    ) {
        let detail = detail.to_string();
        let joins = |f: &&mut Finding| {
            f.what == what && f.host == *host && f.detail == detail && f.last.checked_add(1) == Some(first)
        };
        if let Some(before) = self.all.iter_mut().rev().take(8).find(joins) {
            before.last = last;
            return;
        }
        let (place, advice) = (place.to_string(), what.advice());
        self.all.push(Finding { what, host: host.clone(), first, last, place, detail, advice });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_same_of_many_segments_in_a_row_is_one_finding() {
        let host = HostId::new("hv1").unwrap();
        let mut findings = Findings::default();
        for sequence in [1, 2, 3, 5] {
            findings.add(What::SignatureMissing, &host, sequence, "x", "no signature");
        }
        findings.add(What::SignatureMissing, &host, 6, "x", "another reason");
        let runs: Vec<_> = findings.all.iter().map(|f| (f.first, f.last)).collect();
        assert_eq!(runs, [(1, 3), (5, 5), (6, 6)]);
    }

    #[test]
    fn names_in_json_are_the_names_on_the_screen() {
        for what in What::ALL {
            assert_eq!(serde_json::to_string(&what).unwrap(), format!("\"{what}\""));
        }
    }
}
