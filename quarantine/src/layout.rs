//! Where things are in a vault. `docs/formats/vault.md` is the same for people.

use uuid::Uuid;
use vestigo_model::ItemId;

use crate::{
    chunk::Domain,
    vault::{Key, VaultError},
};

/// Name of the object that tells which vault this is.
pub const IDENTITY: &str = "vestigo-vault.json";

/// The object that tells which vault this is.
pub fn identity() -> Result<Key, VaultError> {
    Key::new(IDENTITY)
}

/// The folder of an item.
#[must_use]
pub fn item_dir(item: &ItemId) -> String {
    format!("items/{}/{item}", item.day())
}

/// An item's manifest: the item exists when this does.
pub fn manifest(item: &ItemId) -> Result<Key, VaultError> {
    Key::new(format!("{}/manifest.json", item_dir(item)))
}

/// The domain XML of an item.
pub fn domain_xml(item: &ItemId) -> Result<Key, VaultError> {
    Key::new(format!("{}/domain.xml", item_dir(item)))
}

/// A layer's index. Part of its digest is in the name: after a crash the same layer may be indexed anew with chunks in other
/// packs, and neither try may stand in the other's way.
pub fn index(item: &ItemId, disk: usize, layer: usize, blake3: &[u8; 32]) -> Result<Key, VaultError> {
    let tag: String = hex::encode(blake3).chars().take(16).collect();
    Key::new(format!("{}/disk{disk}-layer{layer}-{tag}.index", item_dir(item)))
}

/// The folder of a domain's packs.
#[must_use]
pub fn packs(domain: &Domain) -> String {
    format!("packs/{domain}/")
}

/// A pack.
pub fn pack(domain: &Domain, id: &Uuid) -> Result<Key, VaultError> {
    Key::new(format!("{}{}.pack", packs(domain), id.hyphenated()))
}

/// The id in a pack's key.
#[must_use]
pub fn pack_id(key: &Key) -> Option<Uuid> {
    Uuid::try_parse(key.as_str().rsplit_once('/')?.1.strip_suffix(".pack")?).ok()
}

/// An entry of the custody log.
pub fn custody(number: u64) -> Result<Key, VaultError> {
    Key::new(format!("custody/{number:012}.json"))
}

/// The copy of a custody entry beside its item.
pub fn item_custody(item: &ItemId, number: u64) -> Result<Key, VaultError> {
    Key::new(format!("{}/custody/{number:012}.json", item_dir(item)))
}
