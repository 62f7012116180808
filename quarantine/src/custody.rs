//! Custody: who did what to which item, when and why. One log per vault, each entry naming the SHA-256 of the one before;
//! the entry's number is its key and keys are written once, so two writers cannot fork the chain: the second one's put is
//! refused and it continues behind the first.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    thread,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, ItemId, Timestamp};

use crate::{
    canonical, layout,
    vault::{Key, Put, Vault, VaultError},
};

/// The form's name.
pub const FORMAT: &str = "vestigo-custody/1";

/// Why the log could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// An entry could not be written as JSON.
    #[error("a custody entry cannot be written: {0}")]
    Encode(serde_json::Error),
    /// An entry is not what it should be.
    #[error("custody entry {0} is damaged: {1}")]
    Damaged(u64, String),
    /// Others were faster, again and again.
    #[error("could not append to the custody log: other writers took every number tried")]
    Contended,
}

/// Who acted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Numeric user.
    pub uid: u32,
    /// Its name on the machine.
    pub user: String,
    /// Who called `sudo`, if it was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// The machine.
    pub machine: String,
}

impl Actor {
    /// This process.
    #[must_use]
    pub fn current() -> Self {
        let uid = nix::unistd::getuid();
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            uid: uid.as_raw(),
            user: name.unwrap_or_else(|| uid.to_string()),
            sudo_user: std::env::var("SUDO_USER").ok(),
            machine: machine.trim().to_owned(),
        }
    }
}

/// What happened. More words come; a reader shows one that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The store was tried out.
    Probed,
    /// An item was sealed.
    Captured,
    /// An item was looked at.
    Shown,
    /// An item was verified; the detail has the result.
    Verified,
    /// Bytes of an item left the vault; the detail says which.
    Exported,
    /// Something later versions do.
    #[serde(untagged)]
    Other(String),
}

/// What a writer gives; the log adds number, chain and time.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What.
    pub what: What,
    /// Which item, if one.
    pub item: Option<ItemId>,
    /// Who.
    pub who: Actor,
    /// Case the access belongs to.
    pub case: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Particulars.
    pub detail: BTreeMap<String, String>,
}

/// One entry, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// [`FORMAT`].
    pub format: String,
    /// Its place; the first is 1.
    pub number: u64,
    /// Makes the entry unlike any other, so that a writer can tell its own from an equal one of somebody else.
    pub id: uuid::Uuid,
    /// SHA-256 of the entry before, as stored; zeros for the first.
    pub previous: Digest,
    /// Writer's clock.
    pub time: Timestamp,
    /// What.
    pub what: What,
    /// Which item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemId>,
    /// Who.
    pub who: Actor,
    /// Program and version.
    pub tool: String,
    /// Case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Particulars.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
}

/// An entry and the digest the next one must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The entry.
    pub entry: Entry,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// The number of the last entry; 0 for an empty log. Numbers have no gaps, so a doubling and halving search with a few
/// dozen questions finds it, however long the log.
pub fn head(vault: &dyn Vault) -> Result<u64, CustodyError> {
    let there = |number: u64| -> Result<bool, CustodyError> { Ok(vault.exists(&layout::custody(number)?)?) };
    let mut low = 0;
    let mut step = 1;
    while there(low + step)? {
        low += step;
        step *= 2;
    }
    // There: low (or the empty log). Not there: low + step.
    let mut high = low + step;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if there(middle)? { low = middle } else { high = middle }
    }
    Ok(low)
}

/// The lowest number above `last` that a listing shows.
fn next_after(vault: &dyn Vault, last: u64) -> Result<Option<u64>, CustodyError> {
    let mut found = None;
    let after = if last == 0 { None } else { Some(layout::custody(last)?) };
    vault.list("custody/", after.as_ref().map(Key::as_str), &mut |listed| {
        let number = number_of(&listed.key).filter(|number| *number > last);
        found = found.into_iter().chain(number).min();
        Ok(())
    })?;
    Ok(found)
}

/// Reads one entry and checks that it is the one its key says.
pub fn read(vault: &dyn Vault, number: u64) -> Result<Recorded, CustodyError> {
    let bytes = vault.get(&layout::custody(number)?)?;
    let entry = parse(number, &bytes)?;
    Ok(Recorded { entry, digest: Digest::of(&bytes) })
}

fn parse(number: u64, bytes: &[u8]) -> Result<Entry, CustodyError> {
    let entry: Entry = serde_json::from_slice(bytes).map_err(|e| CustodyError::Damaged(number, e.to_string()))?;
    if entry.number == number {
        Ok(entry)
    } else {
        Err(CustodyError::Damaged(number, "it bears another number".into()))
    }
}

/// Appends an entry, and a copy of it beside the item so that an item's history needs no walk through the log.
pub fn append(vault: &dyn Vault, draft: &Draft, now: Timestamp) -> Result<Recorded, CustodyError> {
    for _ in 0..64 {
        let last = head(vault)?;
        if let Some(higher) = next_after(vault, last)? {
            if vault.exists(&layout::custody(last + 1)?)? {
                continue;
            }
            // Filling the gap would hide that somebody made it.
            let why = format!("it is missing although entry {higher} exists; nothing is appended to a broken log");
            return Err(CustodyError::Damaged(last + 1, why));
        }
        let previous = if last == 0 { Digest::ZERO } else { read(vault, last)?.digest };
        let entry = Entry {
            format: FORMAT.to_owned(),
            number: last + 1,
            id: uuid::Uuid::now_v7(),
            previous,
            time: now,
            what: draft.what.clone(),
            item: draft.item,
            who: draft.who.clone(),
            tool: crate::TOOL.to_owned(),
            case: draft.case.clone(),
            reason: draft.reason.clone(),
            detail: draft.detail.clone(),
        };
        let bytes = Bytes::from(canonical::to_vec(&entry).map_err(CustodyError::Encode)?);
        let key = layout::custody(entry.number)?;
        // A put whose answer was lost is sent again and then "exists": with our bytes, it is ours.
        if vault.put_new(&key, bytes.clone())? == Put::Exists && vault.get(&key)? != bytes {
            continue;
        }
        if let Some(item) = entry.item {
            vault.put_new(&layout::item_custody(&item, entry.number)?, bytes.clone())?;
        }
        return Ok(Recorded { entry, digest: Digest::of(&bytes) });
    }
    Err(CustodyError::Contended)
}

/// An item's entries, from the log; the copies beside the item only say which numbers to read.
pub fn of_item(vault: &dyn Vault, item: &ItemId) -> Result<Vec<Recorded>, CustodyError> {
    let mut numbers = Vec::new();
    vault.list(&format!("{}/custody/", layout::item_dir(item)), None, &mut |listed| {
        numbers.extend(number_of(&listed.key));
        Ok(())
    })?;
    numbers.into_iter().map(|number| read(vault, number)).collect()
}

fn number_of(key: &Key) -> Option<u64> {
    key.as_str().rsplit_once('/')?.1.strip_suffix(".json")?.parse().ok()
}

/// A place where the log is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Break {
    /// The entry.
    pub number: u64,
    /// How it shows.
    pub why: String,
}

/// The whole log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// How many entries there are.
    pub entries: u64,
    /// Where it is not as it was written, in order.
    pub breaks: Vec<Break>,
}

/// What an entry gives to the chain: the digest it names and its own; or how it is damaged.
type Link = Result<(Digest, Digest), String>;

fn link(vault: &dyn Vault, number: u64) -> Result<Link, CustodyError> {
    match read(vault, number) {
        Ok(Recorded { entry, digest }) => Ok(Ok((entry.previous, digest))),
        Err(CustodyError::Vault(VaultError::NotFound(_))) => Ok(Err("it is missing".to_owned())),
        Err(CustodyError::Damaged(_, why)) => Ok(Err(format!("it is damaged: {why}"))),
        Err(other) => Err(other),
    }
}

/// Why `later`, entry `number`, does not follow on `before`.
fn joined(number: u64, before: &Link, later: &Link) -> Option<Break> {
    let (Ok((_, expected)), Ok((previous, _))) = (before, later) else { return None };
    let why = || format!("it does not name entry {} as that is now: one of the two was rewritten", number - 1);
    (previous != expected).then(|| Break { number, why: why() })
}

const NOTHING_BEFORE: Link = Ok((Digest::ZERO, Digest::ZERO));

/// Walks the whole chain, reading `threads` entries at once, and goes on behind a break.
pub fn walk(vault: &dyn Vault, threads: usize) -> Result<Chain, CustodyError> {
    let mut numbers = Vec::new();
    vault.list("custody/", None, &mut |listed| {
        numbers.extend(number_of(&listed.key).filter(|number| *number > 0));
        Ok(())
    })?;
    numbers.sort_unstable();
    numbers.dedup();
    let links = Mutex::new(BTreeMap::new());
    let queue = Mutex::new(numbers.iter().copied());
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(number) = queue.lock().ok().and_then(|mut numbers| numbers.next()) {
                    match link(vault, number) {
                        Ok(link) => drop(links.lock().map(|mut links| links.insert(number, link))),
                        Err(error) => return drop(failed.lock().map(|mut failed| failed.replace(error))),
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let links = links.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut breaks = Vec::new();
    let (mut last, mut before) = (0, &NOTHING_BEFORE);
    for (&number, later) in &links {
        if number == last + 1 {
            breaks.extend(joined(number, before, later));
        } else if !vault.exists(&layout::custody(last + 1)?)? {
            // Looked for by name: a listing made while others append may pass over one.
            let why = format!("it is missing although entry {number} exists");
            breaks.push(Break { number: last + 1, why });
        }
        breaks.extend(later.as_ref().err().map(|why| Break { number, why: why.clone() }));
        (last, before) = (number, later);
    }
    Ok(Chain { entries: crate::codec::as_u64(links.len()), breaks })
}

/// Holds one entry against the ones before and behind it.
pub fn neighbours(vault: &dyn Vault, number: u64) -> Result<Vec<Break>, CustodyError> {
    let own = link(vault, number)?;
    let before = if number == 1 { NOTHING_BEFORE } else { link(vault, number - 1)? };
    let mut breaks = Vec::new();
    for (number, link) in [(number - 1, &before), (number, &own)] {
        breaks.extend(link.as_ref().err().map(|why| Break { number, why: why.clone() }));
    }
    breaks.extend(joined(number, &before, &own));
    if vault.exists(&layout::custody(number + 1)?)? {
        breaks.extend(joined(number + 1, &own, &link(vault, number + 1)?));
    }
    Ok(breaks)
}

/// Walks the whole chain; the first break is the error. Returns how many entries there are.
pub fn check_chain(vault: &dyn Vault) -> Result<u64, CustodyError> {
    let Chain { entries, breaks } = walk(vault, 1)?;
    match breaks.into_iter().next() {
        Some(Break { number, why }) => Err(CustodyError::Damaged(number, why)),
        None => Ok(entries),
    }
}

/// The records of an item's capture. If the pointers beside the item are gone, the log itself is searched.
pub fn captures(vault: &dyn Vault, item: &ItemId) -> Result<Vec<Recorded>, CustodyError> {
    let capture = |r: &Recorded| r.entry.what == What::Captured && r.entry.item == Some(*item);
    let mut found = of_item(vault, item)?;
    found.retain(capture);
    if found.is_empty() {
        for number in 1..=head(vault)? {
            found.extend(Some(read(vault, number)?).filter(capture));
        }
    }
    Ok(found)
}

/// Why the manifest with this SHA-256 is not the one that custody says was sealed; `None` when it is.
pub fn objection(vault: &dyn Vault, item: &ItemId, manifest: Digest) -> Result<Option<String>, CustodyError> {
    let captures = match captures(vault, item) {
        Err(CustodyError::Damaged(number, why)) => {
            return Ok(Some(format!("custody entry {number} is damaged: {why}")));
        }
        Err(CustodyError::Vault(VaultError::NotFound(key))) => {
            return Ok(Some(format!("custody entry {key} is missing")));
        }
        captures => captures?,
    };
    if captures.is_empty() {
        return Ok(Some("custody has no record that this item was captured".to_owned()));
    }
    for Recorded { entry, .. } in captures {
        let (number, said) = (entry.number, entry.detail.get("manifest_sha256").map_or("nothing", String::as_str));
        if said != manifest.to_string() {
            return Ok(Some(format!("its manifest has SHA-256 {manifest}, custody entry {number} recorded {said}")));
        }
        if let Some(Break { number, why }) = neighbours(vault, number)?.into_iter().next() {
            return Ok(Some(format!("the custody log is broken at entry {number}: {why}")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::vault::{FolderVault, Open};

    fn draft() -> Draft {
        let who = Actor { uid: 0, user: "root".into(), sudo_user: None, machine: "h".into() };
        Draft { what: What::Probed, item: None, who, case: None, reason: None, detail: BTreeMap::new() }
    }

    #[test]
    fn many_writers_make_one_chain() {
        let dir = tempfile::tempdir().unwrap();
        let vault = FolderVault::open(dir.path(), Open::Create).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|n| drop(append(&vault, &draft(), Timestamp::from_nanos(n)).unwrap())));
            }
        });
        assert_eq!(check_chain(&vault).unwrap(), 20);
    }

    #[test]
    fn a_changed_entry_breaks_the_chain() {
        let dir = tempfile::tempdir().unwrap();
        let vault = FolderVault::open(dir.path(), Open::Create).unwrap();
        for n in 0..3 {
            append(&vault, &draft(), Timestamp::from_nanos(n)).unwrap();
        }
        let path = dir.path().join(layout::custody(2).unwrap().as_str());
        let changed = std::fs::read_to_string(&path).unwrap().replace("root", "toor");
        std::fs::write(&path, changed).unwrap();
        assert!(matches!(check_chain(&vault), Err(CustodyError::Damaged(3, _))));
    }

    #[test]
    fn nothing_is_appended_to_a_log_with_a_gap() {
        for gone in 1..=3 {
            let dir = tempfile::tempdir().unwrap();
            let vault = FolderVault::open(dir.path(), Open::Create).unwrap();
            for n in 0..4 {
                append(&vault, &draft(), Timestamp::from_nanos(n)).unwrap();
            }
            std::fs::remove_file(dir.path().join(layout::custody(gone).unwrap().as_str())).unwrap();
            let chain = walk(&vault, 3).unwrap();
            assert_eq!(chain.breaks.first().map(|b| b.number), Some(gone), "{chain:?}");
            // A gap that the search for the end steps over is found by `walk`; one that would be filled is refused.
            if head(&vault).unwrap() < 4 {
                let error = append(&vault, &draft(), Timestamp::from_nanos(9)).unwrap_err();
                assert!(error.to_string().contains("missing although"), "{error}");
                assert!(!vault.exists(&layout::custody(gone).unwrap()).unwrap());
            }
        }
    }

    #[test]
    fn words_of_later_versions_are_kept() {
        let what: What = serde_json::from_str("\"erased\"").unwrap();
        assert_eq!(what, What::Other("erased".into()));
        assert_eq!(serde_json::to_string(&What::Captured).unwrap(), "\"captured\"");
    }
}
