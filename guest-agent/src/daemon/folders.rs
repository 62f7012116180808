//! Folders of callers that payloads may write to. Payloads of two users never have one at the same time (R-ISO-17).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vestigo_model::{PayloadUid, User};

use crate::protocol::Refusal;

type Held = BTreeMap<PayloadUid, (User, Vec<PathBuf>)>;

/// Who has which.
#[derive(Debug, Clone, Default)]
pub(super) struct Folders(Arc<Mutex<Held>>);

/// One payload's, until dropped.
#[derive(Debug)]
pub(super) struct Hold {
    folders: Folders,
    payload: PayloadUid,
}

impl Folders {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes them for a payload.
    pub(super) fn hold(&self, payload: PayloadUid, user: &User, paths: &[PathBuf]) -> Result<Hold, Refusal> {
        let mut held = self.held();
        for (other, (owner, theirs)) in held.iter().filter(|(_, (owner, _))| owner != user) {
            if let Some((mine, _)) = paths
                .iter()
                .flat_map(|mine| theirs.iter().map(move |theirs| (mine, theirs)))
                .find(|(a, b)| overlap(a, b))
            {
                return Err(Refusal::policy(format!(
                    "{} is in use by payload {other} of {owner}; give each payload a folder of its own (R-ISO-17)",
                    mine.display()
                )));
            }
        }
        held.insert(payload, (user.clone(), paths.to_vec()));
        Ok(Hold { folders: self.clone(), payload })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.folders.held().remove(&self.payload);
    }
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use vestigo_model::Label;

    use super::*;

    #[test]
    fn two_users_never_write_to_one_folder() {
        let folders = Folders::default();
        let user = |name: &str| User { issuer: Label::new("i").unwrap(), subject: Label::new(name).unwrap() };
        let uid = |n: u128| PayloadUid(uuid::Uuid::from_u128(n));
        let hold = folders.hold(uid(1), &user("a"), &["/d/one".into()]).unwrap();
        assert!(folders.hold(uid(2), &user("b"), &["/d/one/below".into()]).is_err());
        assert!(folders.hold(uid(2), &user("b"), &["/d".into()]).is_err());
        let same = folders.hold(uid(3), &user("a"), &["/d/one".into()]);
        assert!(same.is_ok() && folders.hold(uid(4), &user("b"), &["/d/one-more".into()]).is_ok());
        drop((hold, same));
        assert!(folders.hold(uid(5), &user("b"), &["/d/one".into()]).is_ok());
    }
}
