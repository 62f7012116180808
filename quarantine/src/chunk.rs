//! What a disk is cut into: chunks, their ids and kinds, and the domains inside which equal chunks are stored once.

use std::fmt;

use vestigo_model::Vo;

/// Largest chunk that any format here may name: what a reader must be ready to hold.
pub const MAX_CHUNK: u32 = 16 << 20;

/// BLAKE3 of a chunk's plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The id of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

/// What a chunk is. AFF4's distinctions: an investigator must know a zero that was written from one that never was,
/// and either from one that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes in a pack.
    Data,
    /// Never written: the file system says so.
    Hole,
    /// Allocated, all zero.
    Zero,
    /// Not one byte of it could be read; presented as zeros.
    Unreadable,
}

impl Kind {
    /// The byte that stands for it in an index and in the root.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Hole => 2,
            Self::Zero => 3,
            Self::Unreadable => 4,
        }
    }

    /// The kind that a byte stands for. 5 is kept for *not captured*.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Hole),
            3 => Some(Self::Zero),
            4 => Some(Self::Unreadable),
            _ => None,
        }
    }
}

/// Inside a domain equal chunks are stored once; across domains never, so that no VO can learn what another stores.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(String);

impl Domain {
    /// Base images: the site's.
    #[must_use]
    pub fn site() -> Self {
        Self("site".to_owned())
    }

    /// What the VO's machines wrote. A VO that would pass for the unmapped is escaped; a VO's name is a path component.
    #[must_use]
    pub fn of_vo(vo: Option<&Vo>) -> Self {
        Self(match vo.map(Vo::as_str) {
            None => "vo/unmapped".to_owned(),
            Some("unmapped") => "vo/%75nmapped".to_owned(),
            Some(name) => format!("vo/{name}"),
        })
    }

    /// As it stands in a manifest: only the two shapes above.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name_ok = |name: &str| {
            !name.is_empty()
                && name.len() <= 80
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-%".contains(&b))
        };
        let fine = text == "site" || text.strip_prefix("vo/").is_some_and(name_ok);
        fine.then(|| Self(text.to_owned()))
    }

    /// The part of a key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether every byte is zero. Compares blocks with `memcmp`, which stops at the first difference and is vectorised.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZERO: [u8; 4096] = [0; 4096];
    bytes.chunks(ZERO.len()).all(|block| ZERO.get(..block.len()).is_some_and(|zero| block == zero))
}

/// How many chunks a file of this size has.
#[must_use]
pub fn count_for(size: u64, chunk_size: u32) -> u64 {
    size.div_ceil(u64::from(chunk_size.max(1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_vo_cannot_leave_its_folder_nor_pass_for_another() {
        let of = |name: &str| Domain::of_vo(Some(&Vo::new(name).unwrap())).to_string();
        assert_eq!(of("atlas"), "vo/atlas");
        assert_ne!(of("unmapped"), Domain::of_vo(None).to_string());
        for name in ["atlas", "unmapped", "x."] {
            assert_eq!(Domain::parse(&of(name)).unwrap().as_str(), of(name));
        }
        for bad in ["vo/", "vo/../x", "vo/.", "other", "vo/a/b", ""] {
            assert!(Domain::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn zero_means_every_byte() {
        assert!(is_zero(&[0; 10_000]));
        let mut bytes = vec![0; 10_000];
        bytes[9_999] = 1;
        assert!(!is_zero(&bytes));
        assert!(is_zero(&[]));
    }

    #[test]
    fn kinds_round_trip() {
        for kind in [Kind::Data, Kind::Hole, Kind::Zero, Kind::Unreadable] {
            assert_eq!(Kind::from_code(kind.code()), Some(kind));
        }
        assert_eq!(Kind::from_code(0), None);
    }
}
