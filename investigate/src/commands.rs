//! The commands: each asks the ledger and renders the answer.

pub mod ips;
pub mod ledger;
pub mod keys;
pub mod pilots;
pub mod who;

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use serde::Serialize;
use vestigo_ledger::questions::coverage::WindowCoverage;

use crate::{arguments::Cli, exit::Exit, render};

/// Version of the JSON objects.
const JSON_VERSION: u32 = 1;

/// What a command leaves to print.
pub struct Output {
    /// The text.
    pub text: String,
    /// How to end.
    pub exit: Exit,
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
    Ok(Output { text: String::new(), exit: Exit::Found })
}

fn json<Q: Serialize, A: Serialize>(kind: &str, question: &Q, answer: &A) -> Result<String> {
    let envelope = Envelope { version: JSON_VERSION, kind, question, answer };
    let text = serde_json::to_string_pretty(&envelope)?;
    Ok(render::safe_json(&text) + "\n")
}

fn exit(found: bool, coverage: Option<&WindowCoverage>, required: bool) -> Exit {
    if required && !coverage.is_some_and(|coverage| coverage.complete) {
        return Exit::Incomplete;
    }
    if found { Exit::Found } else { Exit::Nothing }
}
