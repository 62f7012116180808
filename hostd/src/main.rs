//! The `hostd` binary: arguments, logging, exit code.

use std::{
    io::{ErrorKind, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser as _};
use hostd::{
    cli::{Cli, Command},
    daemon::{self, DaemonError},
    offline::{self, MeterArgs, Outcome},
    status, top, watch,
};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("VESTIGO_LOG").unwrap_or_else(|_| "info".into()))
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .init();
    let code = match command {
        Command::Daemon { config, check_config: true } => {
            ended(daemon::check(&config).map(|_| println!("{} is in order", config.display())))
        }
        Command::Daemon { config, .. } => ended(daemon::run(&config)),
        Command::Top { socket, json: true, .. } => shown(top::json(&socket)),
        Command::Top { socket, sort, once: true, .. } => shown(top::once(&socket, sort)),
        Command::Top { socket, sort, interval, .. } => shown(top::live(&socket, sort, Duration::from_secs(interval))),
        Command::Meter(args) => return meter(&args),
        Command::Watch(arguments) => ended(watch::run(&arguments)),
        Command::Metrics { socket } => shown(metrics(&socket)),
        Command::Man { folder } => ended(clap_mangen::generate_to(Cli::command(), folder).map_err(DaemonError::System)),
    };
    ExitCode::from(code)
}

fn metrics(socket: &Path) -> anyhow::Result<()> {
    let text = status::open_metrics(&status::fetch(socket)?)?;
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn ended(result: Result<(), DaemonError>) -> u8 {
    let code = match &result {
        Err(error) if error.is_configuration() => 2,
        _ => 1,
    };
    result.map_or_else(|error| failed(error.into(), code), |()| 0)
}

fn shown<E: Into<anyhow::Error>>(result: Result<(), E>) -> u8 {
    result.map_or_else(|error| failed(error.into(), 1), |()| 0)
}

fn failed(error: anyhow::Error, code: u8) -> u8 {
    // Whoever reads our output has seen enough: `hostd metrics | head`.
    if error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|io| io.kind() == ErrorKind::BrokenPipe)
    {
        return 0;
    }
    eprintln!("hostd: {error:#}");
    code
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
