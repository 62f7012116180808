//! What a store really does. Several S3 servers accept lock and conditional calls and ignore them, so each promise is
//! tried before it is relied on, and nothing is claimed that the trial did not show.

use serde::{Deserialize, Serialize};

use super::{Key, VaultError};

/// What a trial showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "finding", content = "why")]
pub enum Finding {
    /// The store does it.
    Works,
    /// The store does not offer it, and says so.
    NotOffered,
    /// The store accepts the call and does not do it.
    Ignored(String),
    /// The trial could not be made.
    Unknown(String),
}

impl Finding {
    /// The word for a table.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Works => "works".to_owned(),
            Self::NotOffered => "not offered".to_owned(),
            Self::Ignored(why) => format!("ACCEPTED BUT IGNORED: {why}"),
            Self::Unknown(why) => format!("unknown: {why}"),
        }
    }
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `folder` or `s3`.
    pub store: String,
    /// A second put of the same key is refused.
    pub create_only: bool,
    /// A put whose checksum does not match is refused.
    pub checksum: Finding,
    /// A version under retention cannot be deleted.
    pub object_lock: Finding,
    /// Particulars.
    pub detail: String,
}

/// The mode in which the site wants its objects locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Not at all.
    #[default]
    Off,
    /// Whoever has a special permission can still delete.
    Governance,
    /// Nobody can.
    Compliance,
}

impl LockMode {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        }
    }
}

/// Whether a store with these capabilities may be used as configured; the error is a sentence with the remedy.
pub fn judge(url: &str, caps: &Capabilities, wanted: LockMode) -> Result<(), String> {
    if !caps.create_only {
        return Err(format!(
            "{url} lets an existing object be overwritten (it ignores If-None-Match), so evidence would not be safe there; \
             use a store with conditional writes"
        ));
    }
    if wanted != LockMode::Off && caps.object_lock != Finding::Works {
        return Err(format!(
            "object_lock = \"{}\" is configured, but {url} does not hold to it (probe: {}); create the bucket with Object \
             Lock, or set object_lock = \"off\" in [retention] and do without the promise",
            wanted.as_str(),
            caps.object_lock.describe()
        ));
    }
    Ok(())
}

/// A fresh key for a trial.
pub(super) fn key() -> Result<Key, VaultError> {
    Key::new(format!("probe/{}", uuid::Uuid::now_v7()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn caps(create_only: bool, object_lock: Finding) -> Capabilities {
        Capabilities { store: "s3".into(), create_only, checksum: Finding::Works, object_lock, detail: String::new() }
    }

    #[test]
    fn a_lock_that_is_ignored_is_never_claimed() {
        let lying = caps(true, Finding::Ignored("the version was deleted".into()));
        let sentence = judge("s3://b", &lying, LockMode::Compliance).unwrap_err();
        assert!(sentence.contains("object_lock = \"off\"") && sentence.contains("IGNORED"), "{sentence}");
        assert!(judge("s3://b", &lying, LockMode::Off).is_ok());
        assert!(judge("s3://b", &caps(true, Finding::Works), LockMode::Compliance).is_ok());
        assert!(judge("s3://b", &caps(false, Finding::Works), LockMode::Off).unwrap_err().contains("If-None-Match"));
    }
}
