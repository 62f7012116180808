//! The spool that hostd and quarantine share. Who writes and removes what is said in `vestigo_model::Handover`.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use vestigo_model::{Handover, HandoverResult, ItemId};

use super::durable::{self, Survive};

/// Larger files in the spool are not ours.
const MAX_FILE: u64 = 64 << 20;

/// The spool folder.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    /// Answers already reported and not yet acknowledged, so that they are reported once.
    reported: BTreeSet<ItemId>,
    /// Files already complained about.
    complained: BTreeSet<PathBuf>,
}

impl Spool {
    /// Makes the folders where they are not there yet.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        // Quarantine runs as a user of its own; who may enter is the installer's choice, made on the spool folder itself.
        DirBuilder::new().recursive(true).mode(0o770).create(folder.join("done"))?;
        Ok(Self { folder: folder.to_owned(), reported: BTreeSet::new(), complained: BTreeSet::new() })
    }

    /// Where answers appear.
    pub(super) fn done(&self) -> PathBuf {
        self.folder.join("done")
    }

    fn answer(&self, item: ItemId) -> PathBuf {
        self.done().join(format!("{item}.json"))
    }

    fn request(&self, item: ItemId) -> PathBuf {
        self.folder.join(format!("{item}.json"))
    }

    /// Whether the item was handed over. The answer outlives the request until hostd acknowledges it, so this holds from
    /// the hand-over on, whatever quarantine has done meanwhile.
    pub(super) fn has(&self, item: ItemId) -> bool {
        // The request first: quarantine writes the answer before it removes the request.
        self.request(item).exists() || self.answer(item).exists()
    }

    /// Hands over, durably.
    pub(super) fn put(&self, handover: &Handover) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(handover)?;
        durable::write(&self.request(handover.item), &json, Survive::Machine)
    }

    /// Items that quarantine has not finished.
    pub(super) fn outstanding(&mut self) -> io::Result<Vec<Handover>> {
        let folder = self.folder.clone();
        self.read_all(&folder, |handover: &Handover| handover.item)
    }

    /// Answers not reported before.
    pub(super) fn answers(&mut self) -> io::Result<Vec<HandoverResult>> {
        let done = self.done();
        let mut answers = self.read_all(&done, |result: &HandoverResult| result.item)?;
        answers.retain(|result| self.reported.insert(result.item));
        Ok(answers)
    }

    /// The answer is recorded elsewhere.
    pub(super) fn acknowledge(&mut self, item: ItemId) -> io::Result<()> {
        durable::remove(&self.answer(item))?;
        durable::sync_folder(&self.done())?;
        self.reported.remove(&item);
        Ok(())
    }

    /// Reads every `<item>.json`; the name must be the item's. A file that is not readable stays where it is.
    fn read_all<T: DeserializeOwned>(&mut self, folder: &Path, item: impl Fn(&T) -> ItemId) -> io::Result<Vec<T>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let named = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<ItemId>().ok());
            let Some(named) = named.filter(|_| path.extension().is_some_and(|e| e == "json")) else { continue };
            match read::<T>(&path) {
                Ok(value) if item(&value) == named => all.push(value),
                Ok(_) => self.complain(path, "it speaks of another item than its name"),
                // Finished between the listing and the reading.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.complain(path, &error.to_string()),
            }
        }
        Ok(all)
    }

    fn complain(&mut self, path: PathBuf, why: &str) {
        if !self.complained.contains(&path) {
            tracing::warn!(file = %path.display(), why, "a file in the spool is not usable; it is left where it is");
            self.complained.insert(path);
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    if fs::symlink_metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other("it is too large"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
