//! `guest-agent`: see the library.

use std::{ffi::OsStr, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use guest_agent::{
    cli::{Cli, Command, Daemon, ExecCall},
    client,
    config::{self, Config},
    daemon::{self, evidence::TrustFiles},
    explain, identity,
    protocol::code,
    sandbox, selftest,
    shim::{self, Shim},
};
use tracing::error;

fn main() -> ExitCode {
    let verb = std::env::args_os().nth(1);
    let called = std::env::args_os().next();
    if let Some(shim) = called.as_deref().and_then(Shim::named) {
        return shim::run(shim, std::env::args_os().skip(1).collect()).into();
    }
    if verb.as_deref() == Some(OsStr::new("shim")) {
        return named(std::env::args_os().skip(2).collect());
    }
    // The agent's own re-execution, for which the command line parser would only cost time.
    if verb.as_deref() == Some(OsStr::new(sandbox::forker::VERB)) {
        return sandbox::forker::run().into();
    }
    // To learn all verbs would take a third of a millisecond of every start; whatever is not a plain good call is left to those
    // who know them.
    if verb.as_deref() == Some(OsStr::new("exec"))
        && let Ok(call) = ExecCall::try_parse_from(std::env::args_os().skip(1))
    {
        return client::exec(call.exec).into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // A payload may well end with 2; a wrong call of `exec` must be told apart from that. Its kin follow it.
            let kin = ["exec", "explain", "selftest", "status"].map(OsStr::new);
            let wrong = if verb.is_some_and(|verb| kin.contains(&verb.as_os_str())) { code::CALLER } else { 2 };
            return if error.use_stderr() { wrong } else { 0 }.into();
        }
    };
    match cli.command {
        Command::Daemon(options) => run_daemon(&options),
        Command::Exec(options) => client::exec(*options).into(),
        Command::Task(options) => match identity::cli::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("guest-agent: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Explain(options) => explain::run(&options).into(),
        Command::Selftest(options) => selftest::client::run(&options).into(),
        Command::SelftestProbe(options) => selftest::inside::run(options.role, options.name.as_deref()).into(),
        Command::Man { folder } => match clap_mangen::generate_to(Cli::command(), folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("guest-agent: cannot write the manual pages: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Status(options) => match client::status(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(refusal) => {
                eprintln!("guest-agent: {refusal}");
                refusal.code.into()
            }
        },
    }
}

/// `guest-agent shim NAME …`, as if it were called by that name.
fn named(mut words: Vec<std::ffi::OsString>) -> ExitCode {
    const USAGE: &str = "guest-agent shim apptainer|singularity|glexec …";
    let rest = words.split_off(1.min(words.len()));
    let Some(name) = words.first() else {
        eprintln!("guest-agent: name what to stand in for: {USAGE}");
        return code::CALLER.into();
    };
    if name == "--help" || name == "-h" {
        println!("Takes a call of another program, as if the agent had its name; see docs/shims.md\n\nUsage: {USAGE}");
        return ExitCode::SUCCESS;
    }
    match Shim::named(name) {
        Some(shim) => shim::run(shim, rest).into(),
        None => {
            eprintln!("guest-agent: there is no shim {:?}; write {USAGE}", name.display().to_string());
            code::CALLER.into()
        }
    }
}

fn run_daemon(options: &Daemon) -> ExitCode {
    let config = match read_config(options.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("guest-agent: {error:#}");
            return 2.into();
        }
    };
    log();
    if options.check_config {
        return check(&config);
    }
    match daemon::run(config).context("guest-agent daemon") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the configuration names is checked too, as far as a start would depend on it.
fn check(config: &Config) -> ExitCode {
    match TrustFiles::read(config) {
        Ok(_) => {
            println!("configuration is good");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("guest-agent: {error}");
            2.into()
        }
    }
}

/// A missing file is an error only if somebody named it.
fn read_config(path: Option<&Path>) -> anyhow::Result<Config> {
    match path {
        Some(path) => Ok(Config::read(path)?),
        None if Path::new(config::PATH).exists() => Ok(Config::read(Path::new(config::PATH))?),
        None => Ok(Config::default()),
    }
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VESTIGO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
}
