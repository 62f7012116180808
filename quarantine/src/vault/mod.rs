//! The vault: where evidence is kept. Write-once by construction: there is no call that rewrites or removes an object,
//! and no lock object, so a store that refuses deletion is a friend. Both back ends pass one conformance suite
//! (`tests/vault.rs`).

mod folder;
pub mod identity;
pub mod probe;
pub mod s3;
mod s3_errors;
mod s3_probe;

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use vestigo_model::Timestamp;

pub use folder::FolderVault;
pub use s3::{S3Settings, S3Vault};

/// Why the vault could not do it. The texts are whole sentences for a person: which vault, what, what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VaultError {
    /// The store does not answer, or is not fit to take more. Trying again later is right.
    #[error("{0}")]
    Unavailable(String),
    /// It will not get better by itself: credentials, a missing bucket, no permission.
    #[error("{0}")]
    Refused(String),
    /// There is no such object.
    #[error("the vault holds no object {0}")]
    NotFound(String),
    /// The object is shorter than the range asked for.
    #[error("object {key} ends before byte {wanted}")]
    TooShort {
        /// Which.
        key: String,
        /// One past the last byte wanted.
        wanted: u64,
    },
    /// The key is not one that a vault takes.
    #[error("{0:?} is not an object key")]
    Key(String),
}

/// What became of a [`Vault::put_new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is stored, durably.
    Created,
    /// The key was taken; nothing was changed.
    Exists,
}

/// An object's name: components of letters, digits and `. _ - % =`, none of them hidden, so that it is one and the same as
/// a path under a folder and as a key in a bucket, and cannot lead out of either.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// Checks and takes the text.
    pub fn new(text: impl Into<String>) -> Result<Self, VaultError> {
        let text = text.into();
        let good = |part: &str| {
            !part.is_empty()
                && part.len() <= 200
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-%=".contains(&b))
        };
        if text.len() <= 800 && text.split('/').all(good) { Ok(Self(text)) } else { Err(VaultError::Key(text)) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub key: Key,
    /// Its bytes.
    pub size: u64,
}

/// Takes the objects of a listing one by one; an error ends the listing.
pub type Visit<'a> = &'a mut dyn FnMut(Listed) -> Result<(), VaultError>;

/// A store of write-once objects. Blocking: it is called from pipeline threads, and may be from anywhere.
pub trait Vault: Send + Sync {
    /// The URL, without credentials.
    fn url(&self) -> String;

    /// Stores an object that must not exist yet. When this returns `Created` the object is durable.
    fn put_new(&self, key: &Key, bytes: Bytes) -> Result<Put, VaultError>;

    /// The whole object.
    fn get(&self, key: &Key) -> Result<Bytes, VaultError>;

    /// Exactly `len` bytes from `offset`.
    fn get_range(&self, key: &Key, offset: u64, len: u64) -> Result<Bytes, VaultError>;

    /// The object's size; `None` when there is none.
    fn size(&self, key: &Key) -> Result<Option<u64>, VaultError>;

    /// Every object whose key begins with `prefix` (and sorts behind `after`), in order within each folder. Whether `a.b`
    /// comes before or after what is in `a/` differs between servers; no layout of ours has both.
    fn list(&self, prefix: &str, after: Option<&str>, visit: Visit<'_>) -> Result<(), VaultError>;

    /// Sees to it that the object is kept until then, where the store can promise such a thing. Never shortens.
    fn keep_until(&self, key: &Key, until: Timestamp) -> Result<(), VaultError>;

    /// Tries out what the store does, as opposed to what it says.
    fn probe(&self) -> Result<probe::Capabilities, VaultError>;

    /// Whether there is such an object.
    fn exists(&self, key: &Key) -> Result<bool, VaultError> {
        Ok(self.size(key)?.is_some())
    }
}

/// Where a vault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Url {
    /// A folder.
    Folder(PathBuf),
    /// A bucket, and a prefix without slashes at its ends (may be empty).
    S3 {
        /// Bucket.
        bucket: String,
        /// Prefix.
        prefix: String,
    },
}

impl Url {
    /// Reads `file:///folder` or `s3://bucket/prefix`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad =
            |why: &str| format!("{text:?} is not a vault: {why}; write file:///srv/quarantine or s3://bucket/prefix");
        if let Some(path) = text.strip_prefix("file://") {
            let fine = path.starts_with('/') && !path.contains(['?', '#']);
            return if fine { Ok(Self::Folder(path.into())) } else { Err(bad("a folder is given by its whole path")) };
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err(bad("it begins with neither file:// nor s3://"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket_ok = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
        if !bucket_ok {
            return Err(bad("a bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens"));
        }
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && Key::new(prefix).is_err() {
            return Err(bad("its prefix is not made of letters, digits and . _ - % ="));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// Whether the vault may be made if it is not there: the daemon may, an investigator's typing error must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must exist.
    Existing,
    /// A folder is made.
    Create,
}

/// Opens the vault at `url`.
pub fn open(url: &Url, s3: &S3Settings, how: Open) -> Result<Arc<dyn Vault>, VaultError> {
    Ok(match url {
        Url::Folder(path) => Arc::new(FolderVault::open(path, how)?),
        Url::S3 { bucket, prefix } => {
            let vault = S3Vault::open(bucket, prefix, s3)?;
            // The daemon asks when it tries the store out, and waits for one that does not answer.
            if how == Open::Existing {
                vault.check_bucket()?;
            }
            Arc::new(vault)
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_cannot_leave_its_vault() {
        assert!(Key::new("packs/vo/atlas/0193.pack").is_ok());
        for bad in ["", "/etc/passwd", "a//b", "a/../b", "..", ".tmp/x", "a b", "a/\u{e9}", "a/"] {
            assert!(Key::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls() {
        assert_eq!(Url::parse("file:///srv/q").unwrap(), Url::Folder("/srv/q".into()));
        assert_eq!(Url::parse("s3://bucket/a/b/").unwrap().to_string(), "s3://bucket/a/b");
        for bad in ["/srv/q", "file://srv", "http://x", "s3://", "s3://B", "s3://bucket/../x", ""] {
            let message = Url::parse(bad).unwrap_err();
            assert!(message.contains("write file:///"), "{message}");
        }
    }
}
