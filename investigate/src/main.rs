//! `vestigo`: the investigator's questions.

mod arguments;
mod commands;
mod exit;
mod render;

use std::io::{self, IsTerminal, Write};

use clap::Parser;

use crate::{
    arguments::{Cli, Command},
    exit::Exit,
};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let style = render::Style::new(io::stdout().is_terminal(), std::env::var_os("NO_COLOR").is_some());
    let result = match &cli.command {
        Command::Who(arguments) => commands::who::run(arguments, style),
        Command::Ips(arguments) => commands::ips::run(arguments, style),
        Command::Pilots(arguments) => commands::pilots::run(arguments, style),
        Command::Ledger(arguments) => commands::ledger::run(arguments, style),
        Command::Keys(arguments) => commands::keys::run(arguments),
        Command::Man { folder } => commands::man(folder),
    };
    let exit = result.map_or_else(|error| complain(&error), |output| print(&output.text, output.exit));
    exit.into()
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str, exit: Exit) -> Exit {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Found,
        Err(error) => complain(&anyhow::Error::new(error).context("Cannot write the answer")),
    }
}

fn complain(error: &anyhow::Error) -> Exit {
    // Nothing can be done when not even this can be written.
    let _ = writeln!(io::stderr(), "error: {}", render::safe(&format!("{error:#}")));
    Exit::of(error)
}
