//! `apptainer exec …` and `singularity exec …`, as pilots write it.

use std::path::{Path, PathBuf};

use super::{
    Answer, Call, Seen, Surroundings, identity,
    options::{self, Fate, GLOBAL, Known, Special},
};
use crate::{environment::RESERVED, protocol::Refusal};

/// Program of an image for `run`, and for `test`.
const RUNSCRIPT: &str = ".singularity.d/runscript";
const TEST: &str = ".singularity.d/test";
/// Folders that the sandbox has of its own, where temporary files lie.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
const PREFIXES: [&str; 2] = ["APPTAINER", "SINGULARITY"];

/// What the verb wants of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Exec,
    Run,
    Test,
}

/// Maps a call, given without the program's name.
///
/// # Errors
/// A sentence for the caller.
pub fn map(words: &[String], here: &dyn Surroundings) -> Result<Answer, Refusal> {
    let mut words = words.iter();
    let mut silent = false;
    let verb = loop {
        let word = words.next().ok_or_else(|| Refusal::caller(USAGE))?;
        match word.as_str() {
            "version" | "--version" => return Ok(Answer::Say(version())),
            "help" | "--help" | "-h" => return Ok(Answer::Say(USAGE.to_owned())),
            word if GLOBAL.iter().any(|(long, short)| [*long, *short].contains(&word)) => {
                silent |= ["-q", "--quiet", "-s", "--silent"].contains(&word);
            }
            "exec" => break Verb::Exec,
            "run" => break Verb::Run,
            "test" => break Verb::Test,
            other => {
                return Err(Refusal::caller(format!(
                    "`{other}` cannot be had from the agent in apptainer's place; use `exec`, `run` or `test` with an unpacked image"
                )));
            }
        }
    };
    let mut asked = Asked::default();
    asked.of_variables(here)?;
    let image = asked.of_words(&mut words, here)?.to_owned();
    let rest: Vec<String> = words.cloned().collect();
    let mut call = Call::default();
    identity(here, &mut call)?;
    asked.openings(&image, here, &mut call)?;
    call.arguments.push("--".to_owned());
    call.arguments.extend(command(verb, &image, rest, here)?);
    if silent {
        call.notes.clear();
    }
    Ok(Answer::Exec(call))
}

const USAGE: &str = "usage: apptainer [-q|-s|-d|-v] exec|run|test [options] FOLDER [command …]; this is guest-agent in apptainer's place: \
                     FOLDER is an unpacked image, for example below /cvmfs/unpacked.cern.ch";

fn version() -> String {
    format!("guest-agent {} (apptainer shim)", env!("CARGO_PKG_VERSION"))
}

fn command(verb: Verb, image: &Path, rest: Vec<String>, here: &dyn Surroundings) -> Result<Vec<String>, Refusal> {
    let there = |name: &str| matches!(here.see(&image.join(name)), Seen::File { .. });
    let inside = |name: &str| format!("/{name}");
    match verb {
        Verb::Exec if rest.is_empty() => Err(Refusal::caller("no command is given; write it after the image")),
        Verb::Exec => Ok(rest),
        Verb::Run if there(RUNSCRIPT) => Ok([inside(RUNSCRIPT)].into_iter().chain(rest).collect()),
        Verb::Run => Err(Refusal::caller(format!(
            "{} has no /{RUNSCRIPT} to run; use `exec` and name the command",
            image.display()
        ))),
        Verb::Test if there(TEST) => Ok([inside(TEST)].into_iter().chain(rest).collect()),
        // As apptainer: an image without a test passes it if it can be started at all.
        Verb::Test => Ok(["/bin/sh", "-c", "true"].map(ToOwned::to_owned).into()),
    }
}

/// A folder or file to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bind {
    source: PathBuf,
    target: PathBuf,
    /// `None`: as it may be.
    writable: Option<bool>,
}

/// What the options ask for.
#[derive(Debug, Default)]
struct Asked {
    binds: Vec<Bind>,
    home: Option<(PathBuf, PathBuf)>,
    workdir: Option<PathBuf>,
    scratch: Vec<PathBuf>,
    env: Vec<(String, String)>,
    passed: Vec<(&'static str, String)>,
    notes: Vec<String>,
}

impl Asked {
    /// The options; leaves what comes after the image.
    fn of_words<'a>(
        &mut self,
        words: &mut (impl Iterator<Item = &'a String> + Clone),
        here: &dyn Surroundings,
    ) -> Result<PathBuf, Refusal> {
        loop {
            let word = words.next().ok_or_else(|| Refusal::caller("no image is given; name an unpacked one"))?;
            if word == "--" {
                continue;
            }
            if let Some(option) = word.strip_prefix("--") {
                let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
                let known = options::long(name).ok_or_else(|| unknown(&format!("--{name}")))?;
                self.long(known, value, words, here)?;
            } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                self.letters(letters, words, here)?;
            } else {
                return image(word, here);
            }
        }
    }

    fn long<'a>(
        &mut self,
        known: &'static Known,
        value: Option<&str>,
        words: &mut impl Iterator<Item = &'a String>,
        here: &dyn Surroundings,
    ) -> Result<(), Refusal> {
        let name = known.name;
        match (known.value, value) {
            (true, Some(value)) => self.take(known, value, here),
            (true, None) => {
                let value = words.next().ok_or_else(|| Refusal::caller(format!("--{name} needs a value")))?;
                self.take(known, value, here)
            }
            (false, None | Some("true" | "1")) => self.take(known, "", here),
            (false, Some("false" | "0")) if known.fate != Fate::Met => Ok(()),
            (false, Some(value)) => {
                Err(Refusal::caller(format!("--{name}={value}: this cannot be turned off; leave it out")))
            }
        }
    }

    /// One or more letters after one dash; the last may have a value, also without a space.
    fn letters<'a>(
        &mut self,
        letters: &str,
        words: &mut impl Iterator<Item = &'a String>,
        here: &dyn Surroundings,
    ) -> Result<(), Refusal> {
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            let known = options::short(letter).ok_or_else(|| unknown(&format!("-{letter}")))?;
            if !known.value {
                self.take(known, "", here)?;
                continue;
            }
            let value = rest.as_str();
            return if value.is_empty() {
                self.long(known, None, words, here)
            } else {
                self.take(known, value.strip_prefix('=').unwrap_or(value), here)
            };
        }
        Ok(())
    }

    fn take(&mut self, known: &'static Known, value: &str, here: &dyn Surroundings) -> Result<(), Refusal> {
        match known.fate {
            Fate::Met => Ok(()),
            Fate::To(option) => {
                self.passed.retain(|(other, _)| *other != option);
                self.passed.push((option, value.to_owned()));
                Ok(())
            }
            Fate::Refused(why) => Err(Refusal::caller(format!("--{}: {why}", known.name))),
            Fate::Special(special) => self.special(special, value, here),
        }
    }

    fn special(&mut self, special: Special, value: &str, here: &dyn Surroundings) -> Result<(), Refusal> {
        match special {
            Special::Bind => self.binds.extend(binds(value, here)?),
            Special::Home => {
                let (source, target) = value.split_once(':').unwrap_or((value, value));
                self.home = Some((here.absolute(source), here.absolute(target)));
            }
            Special::Workdir => self.workdir = Some(here.absolute(value)),
            Special::Scratch => {
                for place in value.split(',') {
                    if !place.starts_with('/') {
                        return Err(Refusal::caller(format!("--scratch {place}: give an absolute path inside")));
                    }
                    self.scratch.push(here.absolute(place));
                }
            }
            Special::Env => self.variables(value)?,
            Special::EnvFile => self.file(value, here)?,
            Special::NoMount => no_mount(value)?,
            Special::Memory => self.passed.push(("memory", value.trim_end_matches(['b', 'B']).to_uppercase())),
        }
        Ok(())
    }

    /// `A=1,B=2`; a value alone may hold commas.
    fn variables(&mut self, text: &str) -> Result<(), Refusal> {
        let pairs: Vec<&str> = if text.matches('=').count() == 1 { vec![text] } else { text.split(',').collect() };
        for pair in pairs {
            let (key, value) = pair.split_once('=').filter(|_| !text.contains('"')).ok_or_else(|| {
                Refusal::caller(format!("--env {text}: write one KEY=VALUE in each --env, without quotation marks"))
            })?;
            self.variable(key, value);
        }
        Ok(())
    }

    /// The last word counts. What the sandbox sets itself is left out, and that is said.
    fn variable(&mut self, key: &str, value: &str) {
        if RESERVED.contains(&key) {
            self.notes.push(format!("the variable {key} is set by the sandbox; the payload may change it itself"));
            return;
        }
        self.env.retain(|(other, _)| other != key);
        self.env.push((key.to_owned(), value.to_owned()));
    }

    fn file(&mut self, name: &str, here: &dyn Surroundings) -> Result<(), Refusal> {
        let text = here.read(&here.absolute(name)).map_err(|e| Refusal::caller(format!("--env-file {name}: {e}")))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let plain = |text: &str| !text.contains(['$', '`', '\\', '"', '\'']);
            match line.split_once('=').filter(|(key, value)| !key.contains(' ') && plain(value)) {
                Some((key, value)) => self.variable(key, value),
                None => {
                    return Err(Refusal::caller(format!(
                        "--env-file {name}: line {} is not a plain KEY=VALUE; no shell reads it here",
                        number + 1
                    )));
                }
            }
        }
        Ok(())
    }

    /// What the environment says, before the words, which count more.
    fn of_variables(&mut self, here: &dyn Surroundings) -> Result<(), Refusal> {
        // Of two that say the same, the newer name counts, so it comes last.
        for prefix in PREFIXES.iter().rev() {
            for (name, value) in here.variables() {
                if let Some(key) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("ENV_")) {
                    self.variable(key, value);
                } else if let Some(option) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')) {
                    self.option_of_variable(name, option, value, here)?;
                }
            }
        }
        Ok(())
    }

    fn option_of_variable(
        &mut self,
        name: &str,
        option: &str,
        value: &str,
        here: &dyn Surroundings,
    ) -> Result<(), Refusal> {
        let option = option.to_lowercase().replace('_', "-");
        let option = if option == "bindpath" { "bind" } else { &option };
        // Apptainer reads no others of these either, or they are about what it stores and says.
        let Some(known) = options::long(option).filter(|_| !value.is_empty()) else { return Ok(()) };
        let off = matches!(value, "0" | "false" | "no" | "off");
        if !known.value && off {
            return Ok(());
        }
        self.take(known, value, here).map_err(|refusal| Refusal::caller(format!("{name} is set: {}", refusal.reason)))
    }

    /// All that the sandbox is to open.
    fn openings(mut self, image: &Path, here: &dyn Surroundings, call: &mut Call) -> Result<(), Refusal> {
        call.option("rootfs", text(image)?);
        self.workdir(here);
        let mut home = None;
        if let Some((source, target)) = self.home.take() {
            if source != target || !own(&target) {
                self.binds.push(Bind { source, target: target.clone(), writable: Some(true) });
            }
            home = Some(target);
        }
        let mut shown: Vec<Bind> = Vec::new();
        for bind in self.binds {
            // The last one is what apptainer would leave on top.
            shown.retain(|other| other.target != bind.target);
            shown.push(bind);
        }
        for bind in &shown {
            let pair = format!("{}:{}", text(&bind.source)?, text(&bind.target)?);
            call.option(if bind.rights(here)? { "bind" } else { "ro-bind" }, pair);
        }
        for place in self.scratch.iter().filter(|place| !own(place)) {
            call.option("tmpfs", text(place)?);
        }
        // As apptainer: where the caller stands, if that is there inside, else at home.
        let stays = shown.iter().any(|bind| bind.source == bind.target && here.folder().starts_with(&bind.target));
        if !self.passed.iter().any(|(option, _)| *option == "chdir") {
            let start = if stays { Some(here.folder().to_owned()) } else { home.clone() };
            if let Some(start) = start {
                self.passed.push(("chdir", text(&start)?.to_owned()));
            }
        }
        for (option, value) in &self.passed {
            call.option(option, value);
        }
        if let Some(home) = &home {
            self.env.retain(|(key, _)| key != "HOME");
            self.env.push(("HOME".to_owned(), text(home)?.to_owned()));
        }
        for (key, value) in &self.env {
            call.option("env", format!("{key}={value}"));
        }
        call.notes.append(&mut self.notes);
        Ok(())
    }

    /// Its folders for temporary files, if the caller has made them; private ones lie on the VM's disk anyway.
    fn workdir(&mut self, here: &dyn Surroundings) {
        let Some(workdir) = &self.workdir else { return };
        for (name, target) in ["tmp", "var_tmp"].into_iter().zip(TEMPORARY) {
            let (source, target) = (workdir.join(name), PathBuf::from(target));
            let wanted = !self.scratch.contains(&target) && !self.binds.iter().any(|bind| bind.target == target);
            if wanted && here.see(&source) == (Seen::Folder { mine: true }) {
                self.binds.push(Bind { source, target, writable: Some(true) });
            }
        }
    }
}

impl Bind {
    /// What is not the caller's is shown read-only, where apptainer would let the payload try and fail.
    fn rights(&self, here: &dyn Surroundings) -> Result<bool, Refusal> {
        let source = self.source.display();
        if self.source == Path::new("/") || TEMPORARY.iter().any(|own| self.source == Path::new(own)) {
            return Err(Refusal::policy(format!(
                "--bind {source}: files of the pilot and of other payloads lie there; give the folder that is needed"
            )));
        }
        let mine = match here.see(&self.source) {
            Seen::Nothing => return Err(Refusal::caller(format!("--bind {source}: there is no such folder or file"))),
            Seen::Folder { mine } | Seen::File { mine } => mine,
        };
        match self.writable {
            Some(true) if !mine => Err(Refusal::policy(format!(
                "{source} is to be writable and is not the caller's; give one of your own, or show it read-only (SRC:DST:ro)"
            ))),
            Some(writable) => Ok(writable),
            None => Ok(mine),
        }
    }
}

/// `SRC[:DST[:OPTIONS]],…`
fn binds(text: &str, here: &dyn Surroundings) -> Result<Vec<Bind>, Refusal> {
    let bad = |what: &str| Refusal::caller(format!("--bind {what}: write it as SRC[:DST[:ro|rw]]"));
    let bind = |item: &str| {
        let mut parts = item.split(':');
        let source = parts.next().filter(|source| !source.is_empty()).ok_or_else(|| bad(item))?;
        let target = parts.next().unwrap_or(source);
        let writable = match parts.next() {
            None => None,
            Some("ro") => Some(false),
            Some("rw") => Some(true),
            Some(_) => return Err(bad(item)),
        };
        if parts.next().is_some() {
            return Err(bad(item));
        }
        Ok(Bind { source: here.absolute(source), target: here.absolute(target), writable })
    };
    text.split(',').filter(|item| !item.is_empty()).map(bind).collect()
}

/// Parts of the VM that apptainer would mount by itself.
fn no_mount(text: &str) -> Result<(), Refusal> {
    let never = ["home", "cwd", "hostfs", "bind-paths", "sys"];
    match text.split(',').find(|part| !never.contains(part)) {
        None => Ok(()),
        Some(part) => {
            Err(Refusal::caller(format!("--no-mount {part}: the sandbox always has a fresh one; leave it out")))
        }
    }
}

fn own(place: &Path) -> bool {
    TEMPORARY.iter().any(|own| place == Path::new(own))
}

fn image(word: &str, here: &dyn Surroundings) -> Result<PathBuf, Refusal> {
    const REMEDY: &str = "name a folder with an unpacked image (`apptainer build --sandbox DIR IMAGE` makes one, /cvmfs/unpacked.cern.ch has many)";
    if word.contains("://") {
        return Err(Refusal::caller(format!("{word}: no image is fetched here; {REMEDY}")));
    }
    let path = here.absolute(word);
    match here.see(&path) {
        Seen::Folder { .. } => Ok(path),
        Seen::File { .. } => {
            Err(Refusal::caller(format!("{word} is a file, and image files are not opened here; {REMEDY}")))
        }
        Seen::Nothing => Err(Refusal::caller(format!("there is no image {word}; {REMEDY}"))),
    }
}

fn unknown(option: &str) -> Refusal {
    Refusal::caller(format!("{option} is no option that the agent knows in apptainer's place; leave it out"))
}

fn text(path: &Path) -> Result<&str, Refusal> {
    let text = path.to_str().filter(|text| !text.contains([':', ',']));
    text.ok_or_else(|| Refusal::caller(format!("{}: a path with : or , in it cannot be given", path.display())))
}
