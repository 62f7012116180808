//! `vestigo`: the investigator's questions.

mod access;
mod arguments;
mod commands;
mod engine;
mod exit;
mod places;
mod render;
mod settings;

use std::io::{self, IsTerminal, Write};

use clap::Parser;

use crate::{
    arguments::{Cli, Command},
    commands::{Body, Output},
    exit::Exit,
};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let style = render::Style::new(io::stdout().is_terminal(), std::env::var_os("NO_COLOR").is_some());
    let result = match &cli.command {
        Command::Ledger(arguments) => commands::ledger::run(arguments, style),
        Command::Keys(arguments) => commands::keys::run(arguments),
        Command::Man { folder } => commands::man(folder),
        Command::Access(arguments) => commands::access::run(arguments),
        question => commands::ask(question, style),
    };
    let exit = result.map_or_else(|error| complain(&error), print);
    exit.into()
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(output: Output) -> Exit {
    match write(output.body) {
        Ok(()) => output.exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Found,
        Err(error) => complain(&anyhow::Error::new(error).context("Cannot write the answer")),
    }
}

fn write(body: Body) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match body {
        Body::Text(text) => stdout.write_all(text.as_bytes())?,
        Body::File(mut file) => _ = io::copy(&mut file, &mut stdout)?,
    }
    stdout.flush()
}

fn complain(error: &anyhow::Error) -> Exit {
    // Nothing can be done when not even this can be written.
    let _ = writeln!(io::stderr(), "error: {}", render::safe(&format!("{error:#}")));
    Exit::of(error)
}
