//! The binary: arguments in, exit code out. Everything else is in the library and in `cli/`.

mod cli;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  failed: the sentence on stderr says what and what to do
  2  the command line or the configuration is wrong
  3  there is no such item, disk or layer
  5  something is not as it was stored: a finding of verify, or an altered or damaged manifest

Times are RFC 3339, like 2026-11-22T14:03:22Z. Item ids may be cut short as long as only one item begins so.
S3 credentials come from the file named in the configuration or from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, never
from the command line.";

/// Keeps the disk of every terminated VM as evidence, and gives it back.
#[derive(Parser)]
#[command(name = "quarantine", version, after_help = AFTER_HELP, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take disks over from hostd and bring them into the vault
    Daemon(cli::daemon::Arguments),
    /// List items, or what still waits to become one
    List(cli::list::Arguments),
    /// Show all that is known of an item, and its custody
    Show(cli::show::Arguments),
    /// Read an item from the store and hold every byte against its digests
    Verify(cli::verify::Arguments),
    /// Write an item's disk files, as they were, to a file or folder
    Get(cli::get::Arguments),
    /// Try out what the store really does: create-only, checksums, Object Lock
    Probe(cli::probe::Arguments),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man { folder: std::path::PathBuf },
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    cli::log();
    let done = match command {
        Command::Daemon(arguments) => cli::daemon::run(&arguments),
        Command::List(arguments) => cli::list::run(&arguments),
        Command::Show(arguments) => cli::show::run(&arguments),
        Command::Verify(arguments) => cli::verify::run(&arguments),
        Command::Get(arguments) => cli::get::run(&arguments),
        Command::Probe(arguments) => cli::probe::run(&arguments),
        Command::Man { folder } => clap_mangen::generate_to(Arguments::command(), folder).map_err(anyhow::Error::from),
    };
    cli::exit_code(done)
}
