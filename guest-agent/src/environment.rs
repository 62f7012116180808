//! The payload's environment: an allow-list of the sandbox's own, and what the pilot names. Search paths are looked at: nothing
//! that others can write to may be on them (R-ISO-20).

use std::path::Path;

use crate::{
    protocol::Refusal,
    sandbox::{HOME, executable::SEARCH},
};

/// Variables that the sandbox sets itself.
pub const RESERVED: [&str; 4] = ["VESTIGO_PAYLOAD_UID", "USER", "LOGNAME", "BEARER_TOKEN_FILE"];
/// Variables by which programs find more programs and libraries, folders separated by colons; and the home, where they look too.
const PATHS: [&str; 13] = [
    "HOME",
    "PATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LD_AUDIT",
    "PYTHONPATH",
    "PERL5LIB",
    "PERLLIB",
    "RUBYLIB",
    "CLASSPATH",
    "LUA_PATH",
    "NODE_PATH",
    "GCONV_PATH",
];
/// All that a pilot may set for a task that its user signed, besides HOME: what no program takes for a program.
const HARMLESS: [&str; 6] = ["LANG", "LANGUAGE", "TZ", "TERM", "NO_COLOR", "OMP_NUM_THREADS"];

/// Judges what the pilot names. `signed`: the user signed the task, and the pilot must not make another of it.
///
/// # Errors
/// A sentence for the pilot.
pub fn check(given: &[(String, String)], signed: bool) -> Result<(), Refusal> {
    for (key, value) in given {
        if !is_name(key) || value.contains('\0') {
            return Err(Refusal::caller(format!("{key:?} is not a variable's name or value; write --env KEY=VALUE")));
        }
        if RESERVED.contains(&key.as_str()) {
            return Err(Refusal::caller(format!("the variable {key} is set by the sandbox; leave it out of --env")));
        }
        let harmless = key == "HOME" || HARMLESS.contains(&key.as_str()) || key.starts_with("LC_");
        if signed && !harmless {
            return Err(Refusal::policy(format!(
                "{key} can make another program of a task than its user signed; leave it out of --env (allowed are HOME, LC_* and {})",
                HARMLESS.join(", ")
            )));
        }
        if PATHS.contains(&key.as_str()) {
            check_path(key, value)?;
        }
    }
    Ok(())
}

/// Shells take other things, such as functions, for variables too.
fn is_name(key: &str) -> bool {
    key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && key.starts_with(|c: char| !c.is_ascii_digit())
}

/// Inside, only private folders can be written to; a relative one would mean whatever the working directory is then.
fn check_path(key: &str, value: &str) -> Result<(), Refusal> {
    let separators = if key == "LUA_PATH" { [';', ';'] } else { [':', ':'] };
    let bad = value.split(separators).find(|folder| !Path::new(folder).is_absolute());
    match bad {
        Some(folder) => Err(Refusal::caller(format!(
            "{key} names {folder:?}, which is no absolute path; every folder on a search path needs one (R-ISO-20)"
        ))),
        None => Ok(()),
    }
}

/// All of it, in the end.
#[must_use]
pub fn whole(given: &[(String, String)], payload: &str) -> Vec<(String, String)> {
    let own = [
        ("PATH", SEARCH),
        ("HOME", HOME),
        ("USER", "payload"),
        ("LOGNAME", "payload"),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("VESTIGO_PAYLOAD_UID", payload),
    ];
    let given_here = |key: &str| given.iter().any(|(k, _)| k == key);
    let own =
        own.into_iter().filter(|(key, _)| !given_here(key)).map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(given.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(key: &str, value: &str, signed: bool) -> Option<u8> {
        check(&[(key.to_owned(), value.to_owned())], signed).err().map(|refusal| refusal.code)
    }

    #[test]
    fn search_paths_are_absolute_and_a_signed_task_stays_what_it_is() {
        assert_eq!(said("PATH", "/work/bin:/usr/bin", false), None);
        assert_eq!((said("HOME", "/srv", true), said("HOME", "srv", false)), (None, Some(201)));
        for bad in ["", ".", "bin:/usr/bin", "/usr/bin:", "/usr/bin::/bin"] {
            assert_eq!(said("PYTHONPATH", bad, false), Some(201), "{bad:?}");
        }
        assert_eq!(
            (said("USER", "x", false), said("A=B", "", false), said("", "x", false)),
            (Some(201), Some(201), Some(201))
        );
        assert_eq!(
            (said("LD_PRELOAD", "/work/x.so", false), said("LD_PRELOAD", "/work/x.so", true)),
            (None, Some(203))
        );
        assert_eq!((said("BASH_ENV", "/work/rc", true), said("MARK", "1", true)), (Some(203), Some(203)));
        assert_eq!(
            (said("PATH", "/usr/bin", true), said("LC_ALL", "C", true), said("HOME", "/work", true)),
            (Some(203), None, None)
        );
        assert_eq!((said("BASH_FUNC_ls%%", "() { :; }", false), said("1X", "", false)), (Some(201), Some(201)));
    }

    #[test]
    fn what_the_pilot_names_takes_the_place_of_the_sandboxs_own() {
        let given = vec![("PATH".to_owned(), "/opt/bin".to_owned()), ("MARK".to_owned(), "1".to_owned())];
        let whole = whole(&given, "uid");
        let keys: Vec<_> = whole.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["HOME", "USER", "LOGNAME", "LANG", "TERM", "VESTIGO_PAYLOAD_UID", "PATH", "MARK"]);
    }
}
