//! The `hostd` binary: arguments, logging, exit code.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};
use hostd::{
    cli::{Cli, Command},
    daemon::{self, DaemonError},
    offline::{self, MeterArgs, Outcome},
    watch,
};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("VESTIGO_LOG").unwrap_or_else(|_| "info".into()))
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .init();
    let result = match command {
        Command::Daemon { config, check_config: true } => {
            daemon::check(&config).map(|_| println!("{} is in order", config.display()))
        }
        Command::Daemon { config, .. } => daemon::run(&config),
        Command::Meter(args) => return meter(&args),
        Command::Watch(arguments) => watch::run(&arguments),
        Command::Man { folder } => clap_mangen::generate_to(Cli::command(), folder).map_err(DaemonError::System),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is_configuration() { 2 } else { 1 };
            eprintln!("hostd: {:#}", anyhow::Error::from(error));
            ExitCode::from(code)
        }
    }
}

fn meter(args: &MeterArgs) -> ExitCode {
    match offline::run(args, std::io::stdout().lock(), std::io::stderr()) {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Broken) => ExitCode::from(3),
        Err(error) => {
            eprintln!("hostd: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
