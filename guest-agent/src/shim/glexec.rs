//! `glexec COMMAND …`, with its exit codes.
//!
//! gLExec took the user from a proxy certificate. The agent reads no X.509: who the user is, the pilot says (`VESTIGO_*`), and a
//! certificate without these is refused. The proxy is passed on as a file, as gLExec did.

use std::path::{Path, PathBuf};

use super::{Answer, Call, Seen, Surroundings, identity};
use crate::{
    environment::RESERVED,
    protocol::{Refusal, code},
};

/// The payload itself ended with one of gLExec's own codes.
const OVERLAP: u8 = 204;
/// Where the payload finds its proxy, if the pilot names no place.
const PROXY: &str = "/tmp/x509up_u1000";
/// The only way of working that has a meaning here.
const MODES: [&str; 2] = ["", "lcmaps_get_account"];

/// Maps a call, given without the program's name.
///
/// # Errors
/// A sentence for the caller.
pub fn map(words: &[String], here: &dyn Surroundings) -> Result<Answer, Refusal> {
    let command = match words {
        [] => return Err(Refusal::caller("no command is given; write it after glexec")),
        [word, ..] if ["-v", "-V", "--version"].contains(&word.as_str()) => {
            return Ok(Answer::Say(format!("guest-agent {} (glexec shim)", env!("CARGO_PKG_VERSION"))));
        }
        [word, command @ ..] if word == "--" => command,
        [word, ..] if word.starts_with('-') => {
            return Err(Refusal::caller(format!(
                "{word} is no option that the agent knows in glexec's place; leave it out"
            )));
        }
        command => command,
    };
    if let Some(mode) = here.variable("GLEXEC_MODE").filter(|mode| !MODES.contains(mode)) {
        return Err(Refusal::caller(format!("GLEXEC_MODE={mode} cannot be had from the agent; unset it")));
    }
    let mut call = Call::default();
    identity(here, &mut call).map_err(|refusal| match here.variable("GLEXEC_CLIENT_CERT") {
        Some(_) => Refusal::caller(format!("{}; the certificate GLEXEC_CLIENT_CERT is not read", refusal.reason)),
        None => refusal,
    })?;
    let mut env = environment(here);
    work(here, &mut call, &mut env)?;
    proxy(here, &mut call, &mut env)?;
    for (key, value) in env {
        call.option("env", format!("{key}={value}"));
    }
    call.arguments.push("--".to_owned());
    call.arguments.extend(command.iter().cloned());
    Ok(Answer::Exec(call))
}

/// As gLExec: only its own variables get through; `GLEXEC_ENV` is how a wrapper carries others.
fn environment(here: &dyn Surroundings) -> Vec<(String, String)> {
    let named = ["GLEXEC_CLIENT_CERT", "GLEXEC_SOURCE_PROXY", "GLEXEC_TARGET_PROXY", "GLEXEC_MODE"];
    let ours = |name: &str| name.starts_with("GLEXEC_") && !named.contains(&name) && !RESERVED.contains(&name);
    let variables = here.variables().iter().filter(|(name, _)| ours(name));
    variables.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// gLExec left the payload where the pilot stood. Here that is shown only if the pilot says so: its own files may lie there.
fn work(here: &dyn Surroundings, call: &mut Call, env: &mut Vec<(String, String)>) -> Result<(), Refusal> {
    let Some(work) = here.variable("VESTIGO_WORK").filter(|work| !work.is_empty()) else { return Ok(()) };
    let folder = here.absolute(work);
    if here.see(&folder) != (Seen::Folder { mine: true }) {
        return Err(Refusal::caller(format!(
            "VESTIGO_WORK={work} is no folder of the caller's; make one for each payload"
        )));
    }
    let place = text(&folder)?;
    call.option("bind", format!("{place}:{place}"));
    let start = if here.folder().starts_with(&folder) { here.folder() } else { &folder };
    call.option("chdir", text(start)?);
    env.push(("HOME".to_owned(), place.to_owned()));
    Ok(())
}

fn proxy(here: &dyn Surroundings, call: &mut Call, env: &mut Vec<(String, String)>) -> Result<(), Refusal> {
    let Some(source) = here.variable("GLEXEC_SOURCE_PROXY").filter(|proxy| !proxy.is_empty()) else { return Ok(()) };
    let path = here.absolute(source);
    if here.see(&path) != (Seen::File { mine: true }) {
        return Err(Refusal::caller(format!("GLEXEC_SOURCE_PROXY={source} is no file of the caller's")));
    }
    let target = here.variable("GLEXEC_TARGET_PROXY").filter(|target| !target.is_empty()).unwrap_or(PROXY);
    let target = PathBuf::from(target);
    if !target.is_absolute() {
        return Err(Refusal::caller(format!("GLEXEC_TARGET_PROXY={}: give an absolute path", target.display())));
    }
    call.option("ro-bind", format!("{}:{}", text(&path)?, text(&target)?));
    env.push(("X509_USER_PROXY".to_owned(), text(&target)?.to_owned()));
    Ok(())
}

fn text(path: &Path) -> Result<&str, Refusal> {
    let text = path.to_str().filter(|text| !text.contains(':'));
    text.ok_or_else(|| Refusal::caller(format!("{}: a path with : in it cannot be given", path.display())))
}

/// gLExec's code for the end of a payload.
#[must_use]
pub const fn ended(status: u8) -> u8 {
    match status {
        code::CALLER..=OVERLAP => OVERLAP,
        other => other,
    }
}

/// gLExec's code for a payload that did not run.
#[must_use]
pub const fn refused(refusal: u8) -> u8 {
    match refusal {
        code::AGENT => code::SYSTEM,
        code::NOT_FOUND => code::CALLER,
        other => other,
    }
}
