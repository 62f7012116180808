//! The record of questions: who asked what, for which case and why, when, and how much was found. Written before the
//! answer is shown; without a record there is no answer, unless the site says otherwise.

pub mod log;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use vestigo_model::{Clock as _, SystemClock, Timestamp};

use crate::{
    arguments::Access,
    exit::{Exit, Usage},
    settings::AccessSection,
};

/// Most bytes of a case, and of a reason.
const MAX_WORDS: usize = 1000;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was answered, by this machine's clock.
    pub time: Timestamp,
    /// This machine.
    pub host: String,
    /// Who asked.
    pub who: Who,
    /// For which case.
    pub case: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// The command line, without the program's name.
    pub command: Vec<String>,
    /// How many candidates, rows or records were found; absent when the question failed.
    pub found: Option<u64>,
    /// The exit code.
    pub exit: u8,
    /// SHA-256 of the line before, without its end; zeros in the first.
    pub previous: String,
}

/// Who asked, as far as this machine knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The user that the program ran as.
    pub uid: u32,
    /// Its name in `/etc/passwd`.
    pub user: Option<String>,
    /// The user that logged in, which `su` and `sudo` do not change; the kernel's word.
    pub login_uid: Option<u32>,
    /// Its name in `/etc/passwd`.
    pub login: Option<String>,
    /// What the environment says in `SUDO_USER`.
    pub sudo_user: Option<String>,
}

impl Who {
    fn now() -> Self {
        let uid = fs::metadata("/proc/self").map_or(u32::MAX, |of| of.uid());
        let said = fs::read_to_string("/proc/self/loginuid").ok();
        // All ones: nobody logged in, as in a service.
        let login_uid = said.and_then(|text| text.trim().parse().ok()).filter(|uid| *uid != u32::MAX);
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self {
            uid,
            user: name_of(&passwd, uid),
            login_uid,
            login: login_uid.and_then(|uid| name_of(&passwd, uid)),
            sudo_user: std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty()),
        }
    }
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let found = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
    found.split(':').next().map(str::to_owned)
}

/// A question about to be asked.
#[derive(Debug)]
pub struct Asked {
    required: bool,
    log: PathBuf,
    case: Option<String>,
    reason: Option<String>,
}

impl Asked {
    /// Takes case and reason from the options, else from the environment.
    ///
    /// # Errors
    /// One is missing although the site wants both, or is too long.
    pub fn new(given: &Access, settings: &AccessSection) -> Result<Self, Usage> {
        let word = |given: &Option<String>, option: &str, variable: &str| {
            let word = given.clone().or_else(|| std::env::var(variable).ok());
            match word.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()) {
                Some(word) if word.len() > MAX_WORDS => {
                    Err(Usage(format!("{option} is longer than {MAX_WORDS} bytes; write less")))
                }
                None if settings.required => Err(Usage(format!(
                    "Say for which case and why you ask: --case and --reason, or VESTIGO_CASE and VESTIGO_REASON ({option} is missing)"
                ))),
                word => Ok(word),
            }
        };
        let case = word(&given.case, "--case", "VESTIGO_CASE")?;
        let reason = word(&given.reason, "--reason", "VESTIGO_REASON")?;
        Ok(Self { required: settings.required, log: settings.log.clone(), case, reason })
    }

    /// Records the question, durably. A warning where the record is not required and cannot be made.
    ///
    /// # Errors
    /// It cannot be recorded: the answer must not be shown.
    pub fn record(&self, found: Option<u64>, exit: Exit) -> Result<Option<String>> {
        let lossy = |argument: std::ffi::OsString| argument.to_string_lossy().into_owned();
        let entry = Entry {
            time: SystemClock.now(),
            host: host(),
            who: Who::now(),
            case: self.case.clone(),
            reason: self.reason.clone(),
            command: std::env::args_os().skip(1).map(lossy).collect(),
            found,
            exit: exit as u8,
            previous: String::new(),
        };
        match log::append(&self.log, entry) {
            Ok(()) => Ok(None),
            Err(error) if self.required => Err(error.into()),
            Err(error) => Ok(Some(format!("{:#}", anyhow::Error::new(error)))),
        }
    }
}

fn host() -> String {
    let name = |path: &str| fs::read_to_string(Path::new(path)).ok();
    name("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_list_of_accounts() {
        let passwd = "root:x:0:0::/root:/bin/sh\neve:x:1000:0::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("eve"));
        assert_eq!(name_of(passwd, 100), None);
    }

    #[test]
    fn case_and_reason_are_bounded_and_not_blank() {
        let settings = AccessSection::default();
        let given = |case: &str| Access {
            case: Some(case.to_owned()),
            reason: Some("abuse report".to_owned()),
            ..Access::default()
        };
        assert!(Asked::new(&given("C-1"), &settings).is_ok());
        assert!(Asked::new(&given("  "), &settings).is_err());
        assert!(Asked::new(&given(&"x".repeat(1001)), &settings).is_err());
    }
}
