//! The `hostd` binary: arguments, logging, exit code.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use hostd::{
    cli::{Cli, Command},
    daemon,
};

fn main() -> ExitCode {
    let Command::Daemon { config, check_config } = Cli::parse().command;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("VESTIGO_LOG").unwrap_or_else(|_| "info".into()))
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .init();
    let result = if check_config { daemon::check(&config).map(drop) } else { daemon::run(&config) };
    match result {
        Ok(()) => {
            if check_config {
                println!("{} is in order", config.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let code = if error.is_configuration() { 2 } else { 1 };
            eprintln!("hostd: {:#}", anyhow::Error::from(error));
            ExitCode::from(code)
        }
    }
}
