//! Which vault this is. An empty folder where a vault was (its file system is not mounted, somebody moved it) looks like a
//! new vault; the id object tells them apart, because this host remembers the id that it found there first.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vestigo_model::Timestamp;

use super::{Vault, VaultError};
use crate::{canonical, files, layout};

/// The form's name.
pub const FORMAT: &str = "vestigo-vault/1";
const LIMIT: u64 = 1 << 20;

/// The id object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// [`FORMAT`].
    pub format: String,
    /// The vault's id.
    pub id: Uuid,
    /// When it was begun, its first daemon's clock.
    pub created: Timestamp,
    /// Program and version that began it.
    pub tool: String,
}

/// The vault's id; `None` for a place that no daemon ever used.
pub fn find(vault: &dyn Vault) -> Result<Option<Identity>, VaultError> {
    let key = layout::identity()?;
    let bytes = match vault.get(&key) {
        Err(VaultError::NotFound(_)) => return Ok(None),
        bytes => bytes?,
    };
    let identity = serde_json::from_slice::<Identity>(&bytes).ok().filter(|identity| identity.format == FORMAT);
    let damaged = || format!("vault {}: its id object {key} is damaged; restore it from a copy", vault.url());
    identity.map(Some).ok_or_else(|| VaultError::Unavailable(damaged()))
}

/// The ids that this host found, by URL, in its state folder.
#[derive(Debug, Clone)]
pub struct Remembered {
    path: PathBuf,
}

impl Remembered {
    /// In this state folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("vaults.json") }
    }

    fn all(&self) -> Result<BTreeMap<String, Uuid>, VaultError> {
        match files::read_limited(&self.path, LIMIT) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| self.failed(&io::Error::other(error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &io::Error) -> VaultError {
        let path = self.path.display();
        VaultError::Unavailable(format!("cannot tell which vault was used before: {path}: {error}; mend or remove it"))
    }

    /// The id of the vault at `url`, if it was used before.
    pub fn find(&self, url: &str) -> Result<Option<Uuid>, VaultError> {
        Ok(self.all()?.get(url).copied())
    }

    /// Makes sure that the vault is the one that was used before. One that this host never used is remembered, and is given
    /// an id if it has none.
    pub fn recognise(&self, vault: &dyn Vault, now: Timestamp) -> Result<Uuid, VaultError> {
        let url = vault.url();
        if let Some(id) = self.find(&url)? {
            return check(vault, id, &self.path).map(|()| id);
        }
        let id = match find(vault)? {
            Some(found) => found.id,
            None => begin(vault, now)?,
        };
        let mut all = self.all()?;
        all.insert(url, id);
        let bytes = serde_json::to_vec(&all).map_err(io::Error::other);
        let made = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let saved = made.and(bytes).and_then(|bytes| files::replace(&self.path, &bytes));
        saved.map_err(|error| self.failed(&error)).map(|()| id)
    }

    /// Makes sure, while working, that the vault still is the one with this id.
    pub fn check(&self, vault: &dyn Vault, id: Uuid) -> Result<(), VaultError> {
        check(vault, id, &self.path)
    }
}

fn begin(vault: &dyn Vault, now: Timestamp) -> Result<Uuid, VaultError> {
    let ours = Identity { format: FORMAT.to_owned(), id: Uuid::now_v7(), created: now, tool: crate::TOOL.to_owned() };
    let bytes = canonical::to_vec(&ours).map_err(|e| VaultError::Unavailable(e.to_string()))?;
    vault.put_new(&layout::identity()?, bytes.into())?;
    // Another host may have been faster.
    find(vault)?.map(|found| found.id).ok_or_else(|| lost(vault, Path::new("the state folder's vaults.json")))
}

fn lost(vault: &dyn Vault, state: &Path) -> VaultError {
    VaultError::Unavailable(format!(
        "the vault at {} has no id object ({}) but was used before; is it mounted? If it was begun anew on purpose, stop the \
         daemon and remove {}",
        vault.url(),
        layout::IDENTITY,
        state.display()
    ))
}

fn check(vault: &dyn Vault, id: Uuid, state: &Path) -> Result<(), VaultError> {
    match find(vault)? {
        Some(found) if found.id == id => Ok(()),
        Some(found) => Err(VaultError::Unavailable(format!(
            "the vault at {} is another one ({}) than was used before ({id}); is the right file system mounted? If it was \
             exchanged on purpose, stop the daemon and remove {}",
            vault.url(),
            found.id,
            state.display()
        ))),
        None => Err(lost(vault, state)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::vault::{FolderVault, Open};

    #[test]
    fn an_empty_or_another_vault_is_not_taken_for_the_one_used_before() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v");
        let vault = FolderVault::open(&root, Open::Create).unwrap();
        let remembered = Remembered::new(&dir.path().join("state"));
        let now = Timestamp::from_nanos(1);
        assert_eq!(find(&vault).unwrap(), None);
        let id = remembered.recognise(&vault, now).unwrap();
        assert_eq!(remembered.recognise(&vault, now).unwrap(), id);
        let elsewhere = Remembered::new(&dir.path().join("other-host"));
        assert_eq!(elsewhere.recognise(&vault, now).unwrap(), id, "a second host finds the same vault");

        std::fs::rename(root.join(layout::IDENTITY), dir.path().join("kept")).unwrap();
        assert!(remembered.recognise(&vault, now).unwrap_err().to_string().contains("is it mounted?"));
        begin(&vault, now).unwrap();
        assert!(remembered.check(&vault, id).unwrap_err().to_string().contains("is another one"));
        std::fs::write(root.join(layout::IDENTITY), "{").unwrap();
        assert!(remembered.check(&vault, id).unwrap_err().to_string().contains("damaged"));
        std::fs::rename(dir.path().join("kept"), root.join(layout::IDENTITY)).unwrap();
        assert!(remembered.check(&vault, id).is_ok());
    }
}
