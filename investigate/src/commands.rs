//! The commands: each asks the ledger and renders the answer.

pub mod access;
pub mod flows;
pub mod ips;
pub mod keys;
pub mod ledger;
pub mod payload;
pub mod pilots;
pub mod sql;
pub mod timeline;
pub mod who;

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use serde::Serialize;
use vestigo_ledger::{Ledger, people::Keyring, questions::coverage::WindowCoverage};

use crate::{
    access::Asked,
    arguments::{Access, Cli, Command, Source},
    exit::Exit,
    places,
    render::{self, Style},
    settings::Settings,
};

/// Version of the JSON objects.
const JSON_VERSION: u32 = 1;

/// What a command leaves to print.
pub struct Output {
    /// The answer.
    pub body: Body,
    /// How to end.
    pub exit: Exit,
    /// How many candidates, rows or records there are: for the record of questions.
    pub found: Option<u64>,
}

/// The answer, whole before any of it is shown.
pub enum Body {
    /// Text.
    Text(String),
    /// A file without a name, to be read from where it stands.
    File(File),
}

/// What a command has to work with.
pub struct Desk {
    /// The site's settings.
    pub settings: Settings,
    /// The ledgers to ask.
    pub ledgers: Vec<String>,
    /// What turns pseudonyms into names.
    pub keys: Keyring,
    /// How to paint.
    pub style: Style,
}

impl Desk {
    /// Opens the ledgers.
    ///
    /// # Errors
    /// One of them is not there or cannot be read.
    pub fn ledger(&self) -> Result<Ledger> {
        let ledger = places::open(&self.ledgers, &self.settings)?.with_keys(self.keys.clone());
        for closed in ledger.unreadable_logs() {
            let closed = closed.display();
            render::warn(&format!(
                "the newest minutes are missing: {closed} is for root alone, because names stand in it"
            ));
        }
        Ok(ledger)
    }
}

/// Answers a question and records it, in this order: what is returned may be shown.
///
/// # Errors
/// There is no answer, or it cannot be recorded.
pub fn ask(question: &Command, style: Style) -> Result<Output> {
    let Some((access, source)) = said(question) else { anyhow::bail!("This is no question") };
    let settings = Settings::load(access.config.as_deref())?;
    let asked = Asked::new(access, &settings.access)?;
    let ledgers = settings.ledgers(&source.ledger);
    let places = if source.keys.is_empty() { &settings.keys } else { &source.keys };
    let answered = keys::keyring(places)
        .and_then(|keys| answer(question, &Desk { settings: settings.clone(), ledgers, keys, style }));
    let (found, exit) = match &answered {
        Ok(output) => (output.found, output.exit),
        Err(error) => (None, Exit::of(error)),
    };
    if let Some(warning) = asked.record(found, exit)? {
        render::warn(&warning);
    }
    answered
}

fn said(question: &Command) -> Option<(&Access, &Source)> {
    let common = match question {
        Command::Who(arguments) => &arguments.common,
        Command::Ips(arguments) => &arguments.common,
        Command::Pilots(arguments) => &arguments.common,
        Command::Flows(arguments) => &arguments.common,
        Command::Payload(arguments) => &arguments.common,
        Command::Timeline(arguments) => &arguments.common,
        Command::Sql(arguments) => return Some((&arguments.access, &arguments.source)),
        Command::Access(_) | Command::Keys(_) | Command::Ledger(_) | Command::Man { .. } => return None,
    };
    Some((&common.access, &common.source))
}

fn answer(question: &Command, desk: &Desk) -> Result<Output> {
    match question {
        Command::Who(arguments) => who::run(arguments, desk),
        Command::Ips(arguments) => ips::run(arguments, desk),
        Command::Pilots(arguments) => pilots::run(arguments, desk),
        Command::Flows(arguments) => flows::run(arguments, desk),
        Command::Payload(arguments) => payload::run(arguments, desk),
        Command::Timeline(arguments) => timeline::run(arguments, desk),
        Command::Sql(arguments) => sql::run(arguments, desk),
        Command::Access(_) | Command::Keys(_) | Command::Ledger(_) | Command::Man { .. } => {
            anyhow::bail!("This is no question")
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a, Q, A> {
    version: u32,
    kind: &'a str,
    question: &'a Q,
    answer: &'a A,
}

/// Writes the manual pages.
pub fn man(folder: &Path) -> Result<Output> {
    clap_mangen::generate_to(Cli::command(), folder)
        .with_context(|| format!("Cannot write the manual pages into {}", folder.display()))?;
    Ok(Output { body: Body::Text(String::new()), exit: Exit::Found, found: None })
}

fn json<Q: Serialize, A: Serialize>(kind: &str, question: &Q, answer: &A) -> Result<String> {
    let envelope = Envelope { version: JSON_VERSION, kind, question, answer };
    let text = serde_json::to_string_pretty(&envelope)?;
    Ok(render::safe_json(&text) + "\n")
}

/// How many, for the record of questions.
fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}

fn exit(found: bool, coverage: Option<&WindowCoverage>, required: bool) -> Exit {
    if required && !coverage.is_some_and(|coverage| coverage.complete) {
        return Exit::Incomplete;
    }
    if found { Exit::Found } else { Exit::Nothing }
}
