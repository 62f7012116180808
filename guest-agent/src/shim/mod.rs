//! The agent under other names. Pilots call `apptainer exec …` and `glexec …` today; where these names are links to the agent,
//! the same calls start the same payloads in the agent's sandbox. Each option is mapped, or met already, or refused by name: none is
//! ignored in silence.
//!
//! Mapping is pure: from the words of the call and what the caller's [`Surroundings`] say to the options of `guest-agent exec`.

pub mod apptainer;
pub mod glexec;
mod options;

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use clap::Parser as _;

use crate::{
    cli::{Cli, Command},
    client,
    protocol::{Refusal, code},
};

/// Longest file of variables.
const MAX_FILE: u64 = 128 * 1024;

/// Under which name the agent was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    /// `apptainer` or `singularity`.
    Apptainer,
    /// `glexec`.
    Glexec,
}

impl Shim {
    /// By the last part of the program's name.
    #[must_use]
    pub fn named(program: &OsStr) -> Option<Self> {
        match Path::new(program).file_name()?.to_str()? {
            "apptainer" | "singularity" => Some(Self::Apptainer),
            "glexec" => Some(Self::Glexec),
            _ => None,
        }
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that the caller can see.
    Nothing,
    /// A folder.
    Folder {
        /// The caller's own.
        mine: bool,
    },
    /// Anything else.
    File {
        /// The caller's own.
        mine: bool,
    },
}

/// What a call depends on besides its words.
pub trait Surroundings {
    /// The environment, as far as it is UTF-8.
    fn variables(&self) -> &BTreeMap<String, String>;
    /// The folder it was made in.
    fn folder(&self) -> &Path;
    /// What is there.
    fn see(&self, path: &Path) -> Seen;
    /// The text of a file.
    ///
    /// # Errors
    /// As the file system says; too long.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// A variable.
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables().get(name).map(String::as_str)
    }

    /// Made absolute.
    fn absolute(&self, path: &str) -> PathBuf {
        // Without the dots and doubled slashes that may be in it, but links stay.
        self.folder().join(path).components().collect()
    }
}

/// What a call comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A text for standard output.
    Say(String),
    /// A payload.
    Exec(Call),
}

/// A payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Call {
    /// The words after `guest-agent exec`.
    pub arguments: Vec<String>,
    /// What is different here and cannot change what the payload may do; said on standard error unless the call asks for silence.
    pub notes: Vec<String>,
}

impl Call {
    fn option(&mut self, name: &str, value: impl AsRef<str>) {
        self.arguments.push(format!("--{name}={}", value.as_ref()));
    }
}

/// Runs a call made under another name. The result is the process's exit code.
#[must_use]
pub fn run(shim: Shim, arguments: Vec<OsString>) -> u8 {
    match answer(shim, arguments) {
        Ok(Answer::Say(text)) => {
            println!("{text}");
            0
        }
        Ok(Answer::Exec(call)) => {
            for note in &call.notes {
                eprintln!("guest-agent: {note}");
            }
            exec(shim, call.arguments)
        }
        Err(refusal) => {
            let number = env::var("VESTIGO_STATUS_FD").ok().and_then(|number| number.parse().ok());
            if let Some(number) = number {
                client::document_refusal(number, &refusal);
            }
            refused(shim, &refusal)
        }
    }
}

fn answer(shim: Shim, arguments: Vec<OsString>) -> Result<Answer, Refusal> {
    let here = Process::look()?;
    let text = |word: OsString| {
        word.into_string()
            .map_err(|bad| Refusal::caller(format!("{} is not UTF-8; a record could not hold it", bad.display())))
    };
    let words = arguments.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    match shim {
        Shim::Apptainer => apptainer::map(&words, &here),
        Shim::Glexec => glexec::map(&words, &here),
    }
}

fn exec(shim: Shim, arguments: Vec<String>) -> u8 {
    let words = ["guest-agent", "exec"].into_iter().map(ToOwned::to_owned).chain(arguments);
    match Cli::try_parse_from(words) {
        Ok(Cli { command: Command::Exec(options) }) => match client::run(*options) {
            Ok(status) => ended(shim, status),
            Err(mut refusal) => {
                if let Some(name) = variable_behind(&refusal.reason) {
                    refusal.reason = format!("{name} of the pilot's environment: {}", refusal.reason);
                }
                refused(shim, &refusal)
            }
        },
        // Only a value can be wrong: the identity's, for example.
        Ok(_) => code::CALLER,
        Err(error) => {
            if let Some(name) = variable_behind(&error.to_string()) {
                eprintln!("guest-agent: {name} of the pilot's environment cannot be used:");
            }
            let _ = error.print();
            code::CALLER
        }
    }
}

fn refused(shim: Shim, refusal: &Refusal) -> u8 {
    eprintln!("guest-agent: {refusal}");
    match shim {
        Shim::Apptainer => refusal.code,
        Shim::Glexec => glexec::refused(refusal.code),
    }
}

const fn ended(shim: Shim, status: u8) -> u8 {
    match shim {
        Shim::Apptainer => status,
        Shim::Glexec => glexec::ended(status),
    }
}

/// When a variable must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    /// Neither a signed task nor a token says it.
    WithoutEvidence,
    Never,
}

/// What the pilot says in its environment, and the option that it becomes.
const VARIABLES: [(&str, &str, Need); 10] = [
    ("VESTIGO_PAYLOAD_ID", "payload-id", Need::Always),
    ("VESTIGO_VO", "vo", Need::Always),
    ("VESTIGO_USER_SUBJECT", "user-subject", Need::WithoutEvidence),
    ("VESTIGO_USER_ISSUER", "user-issuer", Need::WithoutEvidence),
    ("VESTIGO_PILOT_ID", "pilot-id", Need::Never),
    ("VESTIGO_TASK", "task", Need::Never),
    ("VESTIGO_TASK_SIGNATURE", "task-signature", Need::Never),
    ("VESTIGO_TOKEN_FILE", "token-file", Need::Never),
    ("VESTIGO_SOCKET", "socket", Need::Never),
    ("VESTIGO_STATUS_FD", "json-status-fd", Need::Never),
];

/// The variable that a sentence is about which names the option: the pilot never wrote that option.
fn variable_behind(sentence: &str) -> Option<&'static str> {
    let named = |option: &str| {
        sentence.split_whitespace().any(|word| {
            word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-').trim_start_matches("--") == option
                && word.contains("--")
        })
    };
    let net = std::iter::once(("VESTIGO_NET", "net"));
    let mut all = VARIABLES.iter().map(|(name, option, _)| (*name, *option)).chain(net);
    all.find(|(_, option)| named(option)).map(|(name, _)| name)
}

/// Whose payload it is: the pilot says so in variables, because neither call has words for it.
fn identity(here: &dyn Surroundings, call: &mut Call) -> Result<(), Refusal> {
    let evidence = here.variable("VESTIGO_TASK").is_some() || here.variable("VESTIGO_TOKEN_FILE").is_some();
    let needed = |need: Need| match need {
        Need::Always => true,
        Need::WithoutEvidence => !evidence,
        Need::Never => false,
    };
    let given = |name: &str| here.variable(name).filter(|value| !value.is_empty());
    let missing: Vec<&str> = VARIABLES
        .iter()
        .filter(|(name, _, need)| needed(*need) && given(name).is_none())
        .map(|(name, ..)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(Refusal::caller(format!(
            "whose payload this is, is not known: set {} in the pilot's environment before this call",
            missing.join(", ")
        )));
    }
    for (name, option, _) in VARIABLES {
        if let Some(value) = given(name) {
            call.option(option, value);
        }
    }
    match here.variable("VESTIGO_PLAIN") {
        None | Some("" | "0") => Ok(()),
        Some("1") => {
            call.arguments.push("--plain".to_owned());
            if let Some(net) = given("VESTIGO_NET") {
                call.option("net", net);
            }
            Ok(())
        }
        Some(other) => Err(Refusal::caller(format!("VESTIGO_PLAIN is {other:?}; set it to 1, or unset it"))),
    }
}

/// The real thing.
#[derive(Debug)]
struct Process {
    variables: BTreeMap<String, String>,
    folder: PathBuf,
    uid: u32,
}

impl Process {
    fn look() -> Result<Self, Refusal> {
        let variables =
            env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        let folder = env::current_dir().map_err(|e| {
            Refusal::caller(format!("the current folder cannot be named: {e}; change to one that is there"))
        })?;
        Ok(Self { variables: variables.collect(), folder, uid: nix::unistd::geteuid().as_raw() })
    }
}

impl Surroundings for Process {
    fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn see(&self, path: &Path) -> Seen {
        let Ok(about) = fs::metadata(path) else { return Seen::Nothing };
        // Root's are not for payloads to write to.
        let mine = about.uid() == self.uid && self.uid != 0;
        if about.is_dir() { Seen::Folder { mine } } else { Seen::File { mine } }
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        use io::Read as _;
        let mut text = String::new();
        fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(io::Error::other("longer than 128 KiB"));
        }
        Ok(text)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
