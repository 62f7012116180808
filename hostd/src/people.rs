//! The keys with which hostd takes names out of what it stores: the site's, or its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use vestigo_ledger::people::{KeyError, PublicSet, Sealer, read_public};
use vestigo_model::Timestamp;

use crate::config::People;

/// Where the site's keys are looked for when the configuration names no file.
pub const DEFAULT_KEYS: &str = "/etc/vestigo/people.json";

/// The site's keys. A file that the configuration names has to be there; without one the default is taken if it is there.
///
/// # Errors
/// [`KeyError`].
pub fn given(config: &People) -> Result<Vec<PublicSet>, KeyError> {
    match &config.keys {
        Some(path) => read_public(path),
        None => match read_public(Path::new(DEFAULT_KEYS)) {
            Err(KeyError::Io(error)) if error.is_not_found() => Ok(Vec::new()),
            read => read,
        },
    }
}

/// What takes the names out, and says how long its keys last.
#[must_use]
pub fn sealer(given: Vec<PublicSet>, own: PathBuf, now: Timestamp) -> Arc<Sealer> {
    let sealer = Arc::new(Sealer::new(given, Some(own)));
    tell(&sealer, now);
    sealer
}

/// Says until when there are keys, and warns where there are none.
pub fn tell(sealer: &Sealer, now: Timestamp) {
    match sealer.lasts_until(now) {
        Some(last) => tracing::info!(%last, "names in the ledger are sealed with the site's keys"),
        None => tracing::warn!(
            "there are no keys of the site for this month: names in the ledger are sealed with keys of this host's own and can be read \
             on this host only; make keys with `vestigo keys new --site` and name their people.json in [people]"
        ),
    }
}
