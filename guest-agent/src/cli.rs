//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use vestigo_model::{Label, PayloadId, PilotId, Vo};

use crate::protocol::SOCKET;

/// Isolates every user payload in a VM and tells the hypervisor who it is.
#[derive(Debug, Parser)]
#[command(name = "guest-agent", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this VM (as root, from init)
    Daemon(Daemon),
    /// Run a user's payload in a sandbox of its own and exit with its status
    ///
    /// Exit codes: the payload's own, 128+N when signal N killed it; 125 the sandbox could not be built, 126 the command
    /// cannot be executed, 127 not found; 201 wrong call, 202 the agent or the hypervisor cannot do it now, 203 refused.
    Exec(Box<Exec>),
    /// Show the link to the hypervisor and the running payloads
    Status(StatusArgs),
    /// Tasks that users sign: write a statement, print its digests, check one
    Task(crate::identity::cli::Task),
    /// Try to break out of real payloads, harmlessly, and report rule by rule
    ///
    /// Exit codes: 0 nothing is broken, 1 something is, 201 to 203 as `exec`.
    Selftest(crate::selftest::cli::Selftest),
    /// What `selftest` runs in its payloads
    #[command(name = crate::selftest::VERB, hide = true)]
    SelftestProbe(crate::selftest::cli::SelftestProbe),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man {
        /// Which
        folder: PathBuf,
    },
}

/// Options of `daemon`.
#[derive(Debug, Args)]
pub struct Daemon {
    /// Configuration [default: /etc/vestigo/agent.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and exit (0 good, 2 bad)
    #[arg(long)]
    pub check_config: bool,
}

/// What stands behind the user's name.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TrustArg {
    /// The pilot says so
    AssertedByVo,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// The VO's name for the work unit
    #[arg(long, value_name = "ID")]
    pub payload_id: PayloadId,
    /// The user's name, as the issuer knows it
    #[arg(long, value_name = "SUBJECT")]
    pub user_subject: Label,
    /// Who vouches for the user
    #[arg(long, value_name = "ISSUER")]
    pub user_issuer: Label,
    /// The virtual organisation
    #[arg(long)]
    pub vo: Vo,
    /// The pilot job [default: $VESTIGO_PILOT_ID, else uid:<caller's uid>]
    #[arg(long, value_name = "ID")]
    pub pilot_id: Option<PilotId>,
    /// What stands behind the user's name
    #[arg(long, value_enum, default_value_t = TrustArg::AssertedByVo)]
    pub trust: TrustArg,
    /// A folder of the caller's to be the payload's home instead of an empty one; it is not removed
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// A variable for the payload (repeatable); it inherits none
    #[arg(long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Write what happens to this descriptor, one JSON object per line
    #[arg(long, value_name = "N")]
    pub json_status_fd: Option<u32>,
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
}
