//! The command line.

pub mod flows;
mod values;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use vestigo_model::{InstanceId, Label, PayloadUid, PilotId, TimeRange, Timestamp, Vo};

pub use self::values::network;
pub use self::values::protocol_word;
use self::values::{Peer, duration, peer, protocol};
use crate::exit::Usage;

const EXIT_CODES: &str = "\
Exit codes:
  0  found
  1  failure: the ledger cannot be read, or the question not recorded
  2  usage: the question makes no sense
  3  nothing found; the answer says what the ledger could see
  4  with --require-coverage: part of the window was not seen, whatever was found
  5  a chain, digest or signature does not hold

Environment:
  VESTIGO_CASE, VESTIGO_REASON  used when --case and --reason are not given
  VESTIGO_LEDGER  ledgers, separated by ':', used when --ledger is not given
  VESTIGO_KEYS    files and folders of keys for names, separated by ':', used when --keys is not given
  VESTIGO_CONFIG  configuration file, instead of /etc/vestigo/vestigo.toml
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN  for s3:// without a file of credentials
  TMPDIR  where sql and flows put what does not fit into memory
  NO_COLOR        no colours";

/// Who did what, when and where.
#[derive(Debug, Parser)]
#[command(name = "vestigo", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// The question.
    #[command(subcommand)]
    pub command: Command,
}

/// The questions.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Who used an address at a time: VO, instance, pilot, payload, user
    #[command(after_help = EXIT_CODES)]
    Who(Who),
    /// Which addresses a VO, or one of its pilots, used
    #[command(after_help = EXIT_CODES)]
    Ips(Ips),
    /// Which pilots ran payloads of a user
    #[command(after_help = EXIT_CODES)]
    Pilots(Pilots),
    /// Every flow that matches, or their sums
    #[command(after_help = EXIT_CODES)]
    Flows(Box<flows::Flows>),
    /// The whole story of a payload: start, isolation, lease, flows, events, end
    #[command(after_help = EXIT_CODES)]
    Payload(PayloadStory),
    /// What happened in a VM, or by a user, in order
    #[command(after_help = EXIT_CODES)]
    Timeline(Timeline),
    /// Any SELECT over the views flows, instances, payloads, coverage, events, people
    #[command(after_help = EXIT_CODES)]
    Sql(Sql),
    /// Who asked what, for which case and why
    #[command(after_help = EXIT_CODES)]
    Access(AccessLog),
    /// Check, compact, thin out and hold a ledger
    Ledger(crate::commands::ledger::LedgerArguments),
    /// Keys for the names in a ledger: make, list, show, destroy
    Keys(crate::commands::keys::Keys),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man {
        /// Which
        folder: PathBuf,
    },
}

/// For which case and why somebody asks: recorded before there is an answer.
#[derive(Debug, Default, Args)]
pub struct Access {
    /// The case that the question belongs to [default: VESTIGO_CASE]
    #[arg(long, value_name = "CASE")]
    pub case: Option<String>,
    /// Why it is asked [default: VESTIGO_REASON]
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Configuration file [default: VESTIGO_CONFIG, else /etc/vestigo/vestigo.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Where to look.
#[derive(Debug, Args)]
pub struct Source {
    /// Ledger: a folder, file:///folder or s3://bucket/prefix; repeat it to ask several at once [default: VESTIGO_LEDGER, else
    /// `ledgers` in the configuration, else /var/lib/vestigo/ledger]
    #[arg(long, value_name = "LEDGER")]
    pub ledger: Vec<String>,
    /// Key, or folder of keys, that turns pseudonyms into names; repeat it for several [default: `keys` in the configuration,
    /// else /etc/vestigo/keys and /var/lib/vestigo/keys/people where they can be read]
    #[arg(long, value_name = "PATH")]
    pub keys: Vec<PathBuf>,
}

/// What every question takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Case and reason.
    #[command(flatten)]
    pub access: Access,
    /// Ledgers and keys.
    #[command(flatten)]
    pub source: Source,
    /// One JSON object instead of text (documented in docs/formats/ledger.md)
    #[arg(long)]
    pub json: bool,
    /// Exit with 4 unless everything in the window was seen
    #[arg(long)]
    pub require_coverage: bool,
}

/// `vestigo who`.
#[derive(Debug, Args)]
pub struct Who {
    /// When, in RFC 3339 with its zone, like 2026-11-22T14:03:22Z
    #[arg(long)]
    pub time: Timestamp,
    /// Tolerance before and after the time, like 2s, 500ms, 5m, 1h
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub window: Duration,
    /// The address, as the victim or the VM itself saw it
    #[arg(long)]
    pub ip: IpAddr,
    /// Its port; without it all candidates of the address are listed
    #[arg(long)]
    pub port: Option<u16>,
    /// The other side: ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = peer)]
    pub peer: Option<Peer>,
    /// tcp, udp, icmp, icmp6 or a number
    #[arg(long, value_parser = protocol)]
    pub proto: Option<u8>,
    /// The VM's cloud id, where several tenants use the address
    #[arg(long)]
    pub instance: Option<InstanceId>,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `vestigo ips`.
#[derive(Debug, Args)]
pub struct Ips {
    /// The VO that owns the VMs
    #[arg(long)]
    pub vo: Vo,
    /// Start, in RFC 3339 with its zone, like 2026-11-22T14:00:00Z
    #[arg(long)]
    pub from: Timestamp,
    /// End, in RFC 3339 with its zone
    #[arg(long)]
    pub to: Timestamp,
    /// Only this pilot
    #[arg(long)]
    pub pilot: Option<PilotId>,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `vestigo pilots`.
#[derive(Debug, Args)]
pub struct Pilots {
    /// The user's subject
    #[arg(long, value_name = "SUBJECT")]
    pub user: Label,
    /// Who vouches for the user; without it every issuer that uses the name
    #[arg(long)]
    pub issuer: Option<Label>,
    /// Start, in RFC 3339 with its zone [default: the ledger's first record]
    #[arg(long)]
    pub from: Option<Timestamp>,
    /// End, in RFC 3339 with its zone [default: the ledger's last record]
    #[arg(long)]
    pub to: Option<Timestamp>,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `vestigo payload`.
#[derive(Debug, Args)]
pub struct PayloadStory {
    /// The payload's run id, as the other answers show it
    #[arg(value_name = "UID")]
    pub uid: PayloadUid,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// `vestigo timeline`.
#[derive(Debug, Args)]
#[group(id = "subject", required = true, multiple = false, args = ["instance", "user"])]
pub struct Timeline {
    /// The VM's cloud id
    #[arg(long)]
    pub instance: Option<InstanceId>,
    /// The user's subject, or a pseudonym
    #[arg(long, value_name = "SUBJECT")]
    pub user: Option<Label>,
    /// Who vouches for the user; without it every issuer that uses the name
    #[arg(long, requires = "user")]
    pub issuer: Option<Label>,
    /// Start, in RFC 3339 with its zone
    #[arg(long)]
    pub from: Timestamp,
    /// End, in RFC 3339 with its zone
    #[arg(long)]
    pub to: Timestamp,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for the eye.
    Table,
    /// One JSON object per row.
    Jsonl,
    /// Comma-separated values with a line of names.
    Csv,
}

/// `vestigo sql`.
#[derive(Debug, Args)]
pub struct Sql {
    /// One SELECT; `vestigo sql 'SHOW TABLES'` and `'DESCRIBE flows'` show what there is
    #[arg(value_name = "SELECT")]
    pub query: String,
    /// How to print the rows
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// The same as --format jsonl
    #[arg(long)]
    pub json: bool,
    /// Case and reason.
    #[command(flatten)]
    pub access: Access,
    /// Ledgers and keys.
    #[command(flatten)]
    pub source: Source,
}

/// `vestigo access`.
#[derive(Debug, Args)]
pub struct AccessLog {
    /// Follow the chain and exit with 5 if it does not hold
    #[arg(long)]
    pub verify: bool,
    /// A digest of the last line that was noted before: exit with 5 if no line has it any more
    #[arg(long, value_name = "SHA256")]
    pub head: Option<String>,
    /// Only questions of this case
    #[arg(long)]
    pub case: Option<String>,
    /// Only questions since then
    #[arg(long)]
    pub from: Option<Timestamp>,
    /// Only questions until then
    #[arg(long)]
    pub to: Option<Timestamp>,
    /// Show so many questions, the last ones
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    /// JSON Lines: the questions, then what the check found
    #[arg(long)]
    pub json: bool,
    /// The record [default: `log` in [access] of the configuration]
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Configuration file [default: VESTIGO_CONFIG, else /etc/vestigo/vestigo.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The stretch between two times.
pub fn range(from: Timestamp, to: Timestamp) -> Result<TimeRange, Usage> {
    TimeRange::new(from, to).ok_or_else(|| Usage(format!("--from {from} is after --to {to}; exchange them")))
}

/// The stretch between two times of which either may be open; `None` when both are.
pub fn open_range(from: Option<Timestamp>, to: Option<Timestamp>) -> Result<Option<TimeRange>, Usage> {
    let (first, last) = (Timestamp::from_nanos(i64::MIN), Timestamp::from_nanos(i64::MAX));
    match (from, to) {
        (None, None) => Ok(None),
        (from, to) => range(from.unwrap_or(first), to.unwrap_or(last)).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
