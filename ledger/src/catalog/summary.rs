//! What a manifest says that decides whether its segment matters to a question.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use vestigo_model::{Digest, HostId, TimeRange};

use crate::manifest::{Kind, Manifest, Validity};

/// A list of addresses, sorted, 16 bytes each, IPv4 as `::ffff:a.b.c.d`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Addresses(pub(crate) Vec<u8>);

impl Addresses {
    pub(crate) fn new(addresses: &[IpAddr]) -> Self {
        let mut all: Vec<[u8; 16]> = addresses.iter().map(|ip| bytes(*ip)).collect();
        all.sort_unstable();
        all.dedup();
        Self(all.concat())
    }

    fn all(&self) -> &[[u8; 16]] {
        self.0.as_chunks().0
    }

    /// Whether any of the wanted is in the list.
    pub(crate) fn any_of(&self, wanted: &BTreeSet<[u8; 16]>) -> bool {
        if wanted.len() < self.all().len() {
            wanted.iter().any(|one| self.all().binary_search(one).is_ok())
        } else {
            self.all().iter().any(|one| wanted.contains(one))
        }
    }
}

/// An address as the list has it.
pub(crate) fn bytes(ip: IpAddr) -> [u8; 16] {
    let v6: Ipv6Addr = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    v6.octets()
}

/// A segment, without what only its files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Which of the stores.
    pub(crate) store: usize,
    /// Its folder there.
    pub(crate) folder: String,
    /// Its name: first part of the names of its files.
    pub(crate) segment: String,
    /// What its manifest file hashes to.
    pub(crate) digest: Digest,
    pub(crate) host: HostId,
    pub(crate) sequence: u64,
    pub(crate) flows: Option<TimeRange>,
    pub(crate) facts: Option<Validity>,
    pub(crate) coverage: Option<TimeRange>,
    pub(crate) recorded: Option<TimeRange>,
    /// Last generation of the log that it holds.
    pub(crate) wal_last: u64,
    /// Rows of each kind, in the order of [`Kind::ALL`].
    pub(crate) rows: [u64; Kind::ALL.len()],
    /// `None`: any may be in it.
    pub(crate) addresses: Option<Addresses>,
    /// `None`: look inside.
    pub(crate) blind: Option<Vec<TimeRange>>,
    pub(crate) points: Option<u64>,
    /// Manifests of the segments that it stands for.
    pub(crate) replaces: Vec<Digest>,
    /// Its files were removed: at the end of their time, or because the object store has them. What remains is the proof.
    pub(crate) expired: bool,
}

impl Summary {
    pub(crate) fn new(store: usize, folder: &str, manifest: &Manifest, digest: Digest, expired: bool) -> Self {
        let rows = |kind: Kind| manifest.files.iter().filter(|file| file.kind == kind).map(|file| file.rows).sum();
        Self {
            store,
            folder: folder.to_owned(),
            segment: manifest.segment.clone(),
            digest,
            host: manifest.host.clone(),
            sequence: manifest.sequence,
            flows: manifest.flows,
            facts: manifest.facts,
            coverage: manifest.coverage,
            recorded: manifest.recorded,
            wal_last: manifest.wal.last,
            rows: Kind::ALL.map(rows),
            addresses: manifest.addresses.as_deref().map(Addresses::new),
            blind: manifest.blind.clone(),
            points: manifest.points,
            replaces: manifest.replaces.iter().map(|replaced| replaced.sha256).collect(),
            expired,
        }
    }

    /// Whether a record of the segment can have one of the addresses on the VM's side.
    pub(crate) fn may_have(&self, wanted: &BTreeSet<[u8; 16]>) -> bool {
        self.addresses.as_ref().is_none_or(|list| list.any_of(wanted))
    }

    /// Rows of a kind.
    pub(crate) fn rows(&self, kind: Kind) -> u64 {
        Kind::ALL.iter().position(|one| *one == kind).and_then(|at| self.rows.get(at).copied()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_knows_what_is_in_it(all: Vec<u32>, one: u32) {
            let ip = |number: u32| IpAddr::from(number.to_be_bytes());
            let list = Addresses::new(&all.iter().map(|number| ip(*number)).collect::<Vec<_>>());
            for number in &all {
                prop_assert!(list.any_of(&BTreeSet::from([bytes(ip(*number))])));
            }
            let wanted: BTreeSet<_> = (0..40).map(|add| bytes(ip(one.wrapping_add(add)))).collect();
            let expected = all.iter().any(|number| wanted.contains(&bytes(ip(*number))));
            prop_assert_eq!(list.any_of(&wanted), expected);
        }
    }

    #[test]
    fn mapped_addresses_are_plain_ones() {
        let list = Addresses::new(&["::ffff:10.0.0.5".parse().unwrap()]);
        assert!(list.any_of(&BTreeSet::from([bytes("10.0.0.5".parse().unwrap())])));
    }
}
