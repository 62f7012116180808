//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use vestigo_model::{Label, PayloadId, PilotId, Trust, Vo};

use crate::{cgroup::Millicores, protocol::SOCKET};

/// Isolates every user payload in a VM and tells the hypervisor who it is.
#[derive(Debug, Parser)]
#[command(name = "guest-agent", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// `exec` alone.
#[derive(Debug, Parser)]
pub struct ExecCall {
    /// The same options.
    #[command(flatten)]
    pub exec: Exec,
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
    ///
    /// Exit codes: 0, 201 wrong call, 202 no agent answers.
    Status(StatusArgs),
    /// Tasks that users sign: write a statement, print its digests, check one
    ///
    /// Exit codes: 0 done or good, 1 not done or not good, 2 wrong call.
    Task(crate::identity::cli::Task),
    /// Show what `exec` with these options would enforce, without starting anything
    Explain(Box<Explain>),
    /// Try to break out of real payloads, harmlessly, and report rule by rule
    ///
    /// Exit codes: 0 nothing is broken, 1 something is, 201 to 203 as `exec`.
    Selftest(crate::selftest::cli::Selftest),
    /// What `selftest` runs in its payloads
    #[command(name = crate::selftest::VERB, hide = true)]
    SelftestProbe(crate::selftest::cli::SelftestProbe),
    /// Write the manual pages into a folder
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
    /// Check the configuration and the trust files that it names, and exit (0 good, 2 bad)
    #[arg(long)]
    pub check_config: bool,
}

/// What stands behind the user's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrustArg {
    /// The user's own signature over this task
    SignedByUser,
    /// A verified token of the user
    AssertedByToken,
    /// The pilot says so
    AssertedByVo,
}

impl From<TrustArg> for Trust {
    fn from(arg: TrustArg) -> Self {
        match arg {
            TrustArg::SignedByUser => Self::SignedByUser,
            TrustArg::AssertedByToken => Self::AssertedByToken,
            TrustArg::AssertedByVo => Self::AssertedByVo,
        }
    }
}

/// Whose payload it is.
#[derive(Debug, Args)]
pub struct Identity {
    /// The VO's name for the work unit
    #[arg(long, value_name = "ID")]
    pub payload_id: PayloadId,
    /// The user's name, as the issuer knows it; may be left out beside a signed task or a verified token
    #[arg(long, value_name = "SUBJECT", requires = "user_issuer")]
    pub user_subject: Option<Label>,
    /// Who vouches for the user
    #[arg(long, value_name = "ISSUER", requires = "user_subject")]
    pub user_issuer: Option<Label>,
    /// The virtual organisation
    #[arg(long)]
    pub vo: Vo,
    /// The pilot job [default: $VESTIGO_PILOT_ID, else uid:<caller's uid>]
    #[arg(long, value_name = "ID")]
    pub pilot_id: Option<PilotId>,
    /// What must stand behind the user's name; else the strongest evidence that is given counts
    #[arg(long, value_enum)]
    pub trust: Option<TrustArg>,
    /// The user's signed statement of this task
    #[arg(long, value_name = "FILE")]
    pub task: Option<PathBuf>,
    /// Its signature [default: the statement's name with .sig]
    #[arg(long, value_name = "FILE", requires = "task")]
    pub task_signature: Option<PathBuf>,
    /// A bearer token for the payload, which finds it by BEARER_TOKEN_FILE
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// What is opened in the sandbox, or added to it.
#[derive(Debug, Clone, Default, Args)]
pub struct Openings {
    /// A folder of the caller's to be the payload's home instead of an empty one; it is not removed
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Another operating system's root folder instead of the VM's programs, read-only
    #[arg(long, value_name = "DIR")]
    pub rootfs: Option<PathBuf>,
    /// A folder or file of the caller's that the payload may write to (repeatable)
    #[arg(long, value_name = "SRC[:DST]")]
    pub bind: Vec<String>,
    /// A folder or file, read-only (repeatable)
    #[arg(long, value_name = "SRC[:DST]")]
    pub ro_bind: Vec<String>,
    /// An empty folder in memory (repeatable)
    #[arg(long, value_name = "DST")]
    pub tmpfs: Vec<PathBuf>,
    /// User namespaces and mounts in them, for payloads that run a container tool; no network namespaces
    #[arg(long)]
    pub nested: bool,
    /// Where it starts [default: its home]
    #[arg(long, visible_alias = "pwd", value_name = "DIR")]
    pub chdir: Option<PathBuf>,
    /// Host name inside [default: payload]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Most memory, in bytes or with K, M, G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Most processes and threads
    #[arg(long, value_name = "N", value_parser = whole)]
    pub pids: Option<u32>,
    /// Most processors, as 1.5
    #[arg(long, value_name = "N")]
    pub cpus: Option<Millicores>,
}

fn whole(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is no whole number; write one as 100"))
}

/// A size as people write it.
///
/// # Errors
/// A sentence for whoever wrote it.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write bytes, or a number with K, M or G");
    let (digits, factor) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, 1u64 << (10 * (1 + "KMG".find(text.chars().last().unwrap_or('K')).unwrap_or(0)))),
        None => (text, 1),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(bad)
}

/// The network of a `--plain` payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// An empty one
    None,
    /// The VM's, with everything on it; what the payload sends is nobody's in particular
    Host,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Whose
    #[command(flatten)]
    pub identity: Identity,
    /// In what
    #[command(flatten)]
    pub openings: Openings,
    /// A variable for the payload (repeatable); it inherits none
    #[arg(long, visible_alias = "setenv", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Write what happens to this descriptor, one JSON object per line
    #[arg(long, value_name = "N", value_parser = whole)]
    pub json_status_fd: Option<u32>,
    /// Without the daemon and without root: a sandbox in user namespaces of the caller's, no ports of its own and no record at the hypervisor
    #[arg(long)]
    pub plain: bool,
    /// The network of a --plain payload
    #[arg(long, value_enum, default_value_t = Net::None, requires = "plain")]
    pub net: Net,
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// In what
    #[command(flatten)]
    pub openings: Openings,
    /// A variable for the payload (repeatable)
    #[arg(long, visible_alias = "setenv", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// The agent's configuration [default: /etc/vestigo/agent.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!((size("512"), size("2K"), size("3M"), size("1G")), (Ok(512), Ok(2048), Ok(3 << 20), Ok(1 << 30)));
        assert!(size("").is_err() && size("G").is_err() && size("1T").is_err() && size("99999999999G").is_err());
    }
}
