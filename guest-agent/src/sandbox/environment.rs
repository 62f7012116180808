//! What a payload is called with: its command and its variables.

use vestigo_model::PayloadUid;

use super::{HOME, executable::SEARCH};
use crate::protocol::Refusal;

/// Variables that the sandbox sets itself.
pub const RESERVED: [&str; 4] = ["PATH", "VESTIGO_PAYLOAD_UID", "USER", "LOGNAME"];

/// What can be judged before anything is made.
///
/// # Errors
/// A sentence for the caller.
pub fn check(command: &[String], env: &[(String, String)]) -> Result<(), Refusal> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Refusal::caller("no command is given; write it after --"));
    }
    let nul = |text: &String| text.contains('\0');
    if command.iter().any(nul) || env.iter().any(|(k, v)| nul(k) || nul(v)) {
        return Err(Refusal::caller("a NUL byte stands in the command or the environment; remove it"));
    }
    for (key, _) in env {
        if key.is_empty() || key.contains('=') {
            return Err(Refusal::caller(format!("{key:?} is not a variable's name; write --env KEY=VALUE")));
        }
        if RESERVED.contains(&key.as_str()) {
            return Err(Refusal::caller(format!("the variable {key} is set by the sandbox; leave it out of --env")));
        }
    }
    Ok(())
}

/// A payload's whole environment: nothing is inherited.
#[must_use]
pub fn environment(uid: PayloadUid, env: &[(String, String)]) -> Vec<(String, String)> {
    let own = [
        ("PATH", SEARCH.to_owned()),
        ("HOME", HOME.to_owned()),
        ("USER", "payload".to_owned()),
        ("LOGNAME", "payload".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TERM", "dumb".to_owned()),
        ("VESTIGO_PAYLOAD_UID", uid.to_string()),
    ];
    let given = |key: &str| env.iter().any(|(k, _)| k == key);
    let own = own.into_iter().filter(|(key, _)| !given(key)).map(|(key, value)| (key.to_owned(), value));
    own.chain(env.iter().cloned()).collect()
}
