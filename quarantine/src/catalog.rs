//! Finding items, from the bucket alone: every manifest describes itself.

use std::{sync::Mutex, thread};

use vestigo_model::{ItemId, Timestamp, Vo};

use crate::{
    layout,
    manifest::{self, Manifest, ManifestError, Stored},
    vault::{Vault, VaultError},
};

/// Manifests fetched at once.
const PARALLEL: usize = 8;

/// Why an item was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// None.
    #[error("the vault {vault} holds no item {wanted:?}; `quarantine list` shows what there is")]
    None {
        /// What was asked for.
        wanted: String,
        /// Where.
        vault: String,
    },
    /// Several.
    #[error("{wanted:?} may be {count} items ({examples} …); give more of the id")]
    Several {
        /// What was asked for.
        wanted: String,
        /// How many.
        count: usize,
        /// Some of them.
        examples: String,
    },
}

/// Which items are wanted. Everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The VO (host's knowledge); `unmapped` for those without.
    pub vo: Option<String>,
    /// Instance id, libvirt name or domain UUID.
    pub instance: Option<String>,
    /// Subject of a user who (as the guest claims) worked in it.
    pub user: Option<String>,
    /// The machine still lived then.
    pub from: Option<Timestamp>,
    /// The machine lived already then.
    pub to: Option<Timestamp>,
}

impl Filter {
    /// Whether the item is wanted.
    #[must_use]
    pub fn wants(&self, manifest: &Manifest) -> bool {
        let instance = &manifest.instance;
        let vo = manifest.vo.as_ref().map_or("unmapped", Vo::as_str);
        let end = instance.end.map_or(manifest.deleted, |end| end.time);
        let user = |wanted: &String| {
            let users = manifest.guest_claims.payloads.iter().map(|p| &p.user);
            users.into_iter().any(|user| user.subject.as_str() == wanted || user.to_string() == *wanted)
        };
        let named = |wanted: &String| {
            [instance.id.as_str(), instance.name.as_str(), &instance.domain.to_string()].contains(&wanted.as_str())
        };
        self.vo.as_ref().is_none_or(|wanted| wanted == vo)
            && self.instance.as_ref().is_none_or(named)
            && self.user.as_ref().is_none_or(user)
            && self.from.is_none_or(|from| end >= from)
            && self.to.is_none_or(|to| instance.start <= to)
    }
}

/// The ids of all items, in order of time. Never only those of some days: the day in an id is by another clock than the
/// times in the manifest.
pub fn ids(vault: &dyn Vault) -> Result<Vec<ItemId>, VaultError> {
    let mut found = Vec::new();
    vault.list("items/", None, &mut |listed| {
        let id = listed.key.as_str().strip_suffix("/manifest.json").and_then(|dir| dir.rsplit_once('/'));
        found.extend(id.and_then(|(_, id)| id.parse::<ItemId>().ok()));
        Ok(())
    })?;
    found.sort();
    Ok(found)
}

/// A listing: the items, and those whose manifest is damaged, each with the reason.
pub struct Listing {
    /// Items, oldest first.
    pub items: Vec<Stored>,
    /// Damaged.
    pub damaged: Vec<(ItemId, String)>,
}

/// Every item that the filter wants.
pub fn list(vault: &dyn Vault, filter: &Filter) -> Result<Listing, VaultError> {
    let ids = ids(vault)?;
    let queue = Mutex::new(ids.into_iter());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let Some(id) = queue.lock().ok().and_then(|mut ids| ids.next()) else { return };
                    let loaded = manifest::load(vault, &id);
                    if let Ok(mut results) = results.lock() {
                        results.push((id, loaded));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(id, _)| *id);
    let mut listing = Listing { items: Vec::new(), damaged: Vec::new() };
    for (id, loaded) in results {
        match loaded {
            Ok(stored) if filter.wants(&stored.manifest) => listing.items.push(stored),
            Ok(_) => {}
            Err(ManifestError::Vault(error @ (VaultError::Unavailable(_) | VaultError::Refused(_)))) => {
                return Err(error);
            }
            Err(error) => listing.damaged.push((id, error.to_string())),
        }
    }
    Ok(listing)
}

/// The item whose id begins like this.
pub fn resolve(vault: &dyn Vault, wanted: &str) -> Result<ItemId, FindError> {
    let none = || FindError::None { wanted: wanted.to_owned(), vault: vault.url() };
    if let Ok(id) = wanted.parse::<ItemId>() {
        let there = layout::manifest(&id).and_then(|key| vault.exists(&key))?;
        return if there { Ok(id) } else { Err(none()) };
    }
    let lower = wanted.to_ascii_lowercase();
    let found: Vec<ItemId> = ids(vault)?.into_iter().filter(|id| id.to_string().starts_with(&lower)).collect();
    match found.as_slice() {
        _ if lower.is_empty() => Err(none()),
        [] => Err(none()),
        [one] => Ok(*one),
        several => Err(FindError::Several {
            wanted: wanted.to_owned(),
            count: several.len(),
            examples: several.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}
