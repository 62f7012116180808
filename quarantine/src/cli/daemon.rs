//! `quarantine daemon`

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use quarantine::{
    acquire::Control,
    config::Config,
    daemon::{Daemon, feed_watchdog},
};
use tokio::signal::unix::{SignalKind, signal};
use vestigo_model::SystemClock;

use super::print;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = super::CONFIG)]
    config: PathBuf,
    /// Read the configuration, say whether it is right, and end
    #[arg(long)]
    check_config: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    config.s3().map(drop)?;
    if arguments.check_config {
        return print(&format!("{}: the configuration is right", arguments.config.display()));
    }
    let control = Arc::new(Control::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let fed = control.clone();
        tokio::task::spawn_blocking(move || feed_watchdog(&fed));
        let (stop, clock) = (control.clone(), Arc::new(SystemClock));
        let mut work = tokio::task::spawn_blocking(move || -> Result<()> {
            let Some(mut daemon) = Daemon::start(&config, clock, control)? else { return Ok(()) };
            Ok(daemon.run()?)
        });
        let ended = tokio::select! {
            ended = &mut work => ended,
            _ = terminate.recv() => { stop.stop(); work.await }
            _ = interrupt.recv() => { stop.stop(); work.await }
        };
        stop.stop();
        ended.context("the daemon crashed")?
    })
}
