//! Arguments.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{
    config::{DEFAULT_PATH, DEFAULT_STATUS},
    offline::MeterArgs,
    top::Sort,
    watch::WatchArgs,
};

/// Sees every VM's flows at the tap, knows instance and VO, and keeps a hold on every disk.
///
/// Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 a capture file that breaks off.
#[derive(Debug, Parser)]
#[command(name = "hostd", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Sub-commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run in the foreground until SIGTERM or SIGINT.
    Daemon {
        /// Configuration file (TOML).
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Only read the configuration, the table of VOs and the bans, and say what is wrong with them.
        #[arg(long)]
        check_config: bool,
    },
    /// Show the VMs of this hypervisor as they are now: rates, flows, losses, attribution. `q` quits, `s` sorts.
    Top {
        /// Socket on which hostd answers (`status.socket` in its configuration).
        #[arg(long, default_value = DEFAULT_STATUS)]
        socket: PathBuf,
        /// Order of the VMs.
        #[arg(long, value_enum, default_value_t)]
        sort: Sort,
        /// Seconds between two looks.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// Show the table once, as plain text.
        #[arg(long)]
        once: bool,
        /// Print the document itself (docs/formats/status.md).
        #[arg(long, conflicts_with = "once")]
        json: bool,
    },
    /// Print every counter as OpenMetrics text.
    Metrics {
        /// Socket on which hostd answers (`status.socket` in its configuration).
        #[arg(long, default_value = DEFAULT_STATUS)]
        socket: PathBuf,
    },
    /// Meter capture files, with the code that meters the VMs
    ///
    /// Records go to standard output, a summary to standard error. Exit code 3: a file breaks off; what came before was metered.
    Meter(MeterArgs),
    /// Meter interfaces as the daemon does those of VMs, and print their flows; ends with ^C
    ///
    /// Needs CAP_NET_RAW. Nothing is recorded. What was offered, metered and lost is said at the end, on standard error.
    Watch(WatchArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man {
        /// Which
        folder: PathBuf,
    },
}
