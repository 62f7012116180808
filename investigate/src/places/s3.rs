//! A ledger in a bucket, through the vault's client.

use std::{fmt, ops::Range};

use bytes::Bytes;
use quarantine::vault::{Key, S3Vault, Vault as _, VaultError};
use vestigo_ledger::{
    Listed, Stamp, Store, StoreError,
    store::{MAX_NAMES, MAX_RANGE, MAX_WHOLE},
};

/// Requests under way at once: each waits for the network.
const REQUESTS: usize = 16;

/// The bucket and prefix.
pub(super) struct BucketStore {
    vault: S3Vault,
    name: String,
}

impl fmt::Debug for BucketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketStore({})", self.name)
    }
}

impl BucketStore {
    pub(super) fn new(vault: S3Vault) -> Self {
        Self { name: vault.url(), vault }
    }

    fn error(&self, action: &'static str, path: &str, error: VaultError) -> StoreError {
        let (store, path) = (self.name.clone(), path.to_owned());
        match error {
            VaultError::NotFound(_) => StoreError::Missing { store, path },
            VaultError::TooShort { .. } => StoreError::Short { store, path },
            error => StoreError::Unreachable { action, store, path, source: Box::new(error) },
        }
    }

    fn key(&self, action: &'static str, path: &str) -> Result<Key, StoreError> {
        Key::new(path).map_err(|error| self.error(action, path, error))
    }

    fn too_large(&self, path: &str) -> StoreError {
        StoreError::TooLarge { store: self.name.clone(), path: path.to_owned() }
    }
}

impl Store for BucketStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let children = self.vault.children(folder, MAX_NAMES).map_err(|error| self.error("list", folder, error))?;
        let listed = children.into_iter().map(|child| Listed {
            name: child.name,
            is_folder: child.is_folder,
            bytes: child.size,
            // Of a folder the server tells nothing: it is listed again each time.
            stamp: child.etag.map(|text| Stamp { text, changed: None }),
        });
        let mut listed: Vec<Listed> = listed.collect();
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn walk(&self, folder: &str) -> Result<Option<Vec<Listed>>, StoreError> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut listed = Vec::new();
        let mut take = |object: quarantine::vault::Listed| {
            let name = object.key.as_str().strip_prefix(&prefix).unwrap_or_default().to_owned();
            if listed.len() >= MAX_NAMES {
                return Err(VaultError::Refused(format!("more than {MAX_NAMES} objects")));
            }
            listed.push(Listed { name, is_folder: false, bytes: object.size, stamp: None });
            Ok(())
        };
        self.vault.list(&prefix, None, &mut take).map_err(|error| self.error("list", folder, error))?;
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(listed))
    }

    fn read(&self, path: &str) -> Result<Bytes, StoreError> {
        let size = self.size(path)?;
        if size > MAX_WHOLE { Err(self.too_large(path)) } else { self.read_range(path, 0..size) }
    }

    fn read_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let length = range.end.saturating_sub(range.start);
        if length > MAX_RANGE {
            return Err(self.too_large(path));
        }
        let key = self.key("read", path)?;
        self.vault.get_range(&key, range.start, length).map_err(|error| self.error("read", path, error))
    }

    fn size(&self, path: &str) -> Result<u64, StoreError> {
        let size = self.vault.size(&self.key("find", path)?).map_err(|error| self.error("find", path, error))?;
        size.ok_or_else(|| StoreError::Missing { store: self.name.clone(), path: path.to_owned() })
    }

    fn concurrency(&self) -> usize {
        REQUESTS
    }
}
