//! The arguments of `vestigo ledger …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vestigo_model::{HostId, InstanceId, Label, Timestamp, Vo};

/// The key that hostd makes at its first start.
pub const HOST_KEY: &str = "/var/lib/vestigo/keys/host_ed25519";
/// Where the site keeps its trust file …
const SITE_SIGNERS: &str = "/etc/vestigo/allowed_signers";
/// … and where hostd writes the line of its own key.
const HOST_SIGNERS: &str = "/var/lib/vestigo/keys/allowed_signers";
const DEFAULT_LEDGER: &str = "/var/lib/vestigo/ledger";

const VERIFY_HELP: &str = "\
Findings (each with its place and what to do):
  file-changed         a data file is not the one that was sealed
  file-missing         a data file is gone, without a signed tombstone or a compaction
  segment-missing      a manifest is gone although a later one is there
  reordered            a manifest lies where another one belongs
  rewritten            a manifest is not the one that its successor, a log or a compaction names
  signature-missing    a manifest or tombstone is not signed
  signature-forged     a signature does not fit what it lies beside
  signer-unknown       signed by a key that the trust file does not vouch for
  rows-differ          the records are not those that were sealed
  manifest-unreadable  a manifest or tombstone cannot be read
  tail-missing         the newest segments are gone: a log or another copy knows more
  two-histories        two different segments claim one place in the chain
  rubble               files that no manifest lists

Exit codes:
  0  whole
  1  failure: something may not be read
  2  usage
  5  findings

Without openable trust file every signer is unknown. With stock tools:
  ssh-keygen -Y verify -f allowed_signers -I HOST -n vestigo-segment -s X.manifest.json.sig < X.manifest.json";

/// `vestigo ledger`.
#[derive(Debug, Args)]
pub struct LedgerArguments {
    /// What to do.
    #[command(subcommand)]
    pub command: LedgerCommand,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Look whether everything is there, in order, unchanged, and signed by whom it should be
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),
    /// What is there, and how far back
    Status(Where),
    /// Put the segments of each day that is over into one (hostd does this by itself; stop it first)
    Compact(Compact),
    /// Remove records that are too old, with a signed proof (hostd does this by itself at the maximum)
    Expire(Expire),
    /// Keep records of a case beyond the maximum
    Hold(HoldArguments),
    /// Lift the hold of a case
    Release(Release),
    /// The holds in force
    Holds(Where),
}

/// Which ledgers, and how to answer.
#[derive(Debug, Args)]
pub struct Where {
    /// Ledger folder; repeat it for several [default: VESTIGO_LEDGER, else /var/lib/vestigo/ledger]
    #[arg(long, value_name = "DIR")]
    pub ledger: Vec<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

impl Where {
    /// The ledgers.
    pub fn ledgers(&self) -> Vec<PathBuf> {
        let environment = || std::env::var_os("VESTIGO_LEDGER").filter(|list| !list.is_empty());
        match (self.ledger.as_slice(), environment()) {
            ([], Some(list)) => std::env::split_paths(&list).collect(),
            ([], None) => vec![PathBuf::from(DEFAULT_LEDGER)],
            (given, _) => given.to_vec(),
        }
    }
}

/// `vestigo ledger verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Which.
    #[command(flatten)]
    pub place: Where,
    /// Whose key may sign for which host, in OpenSSH's format; repeat it for several [default: those there are of
    /// /etc/vestigo/allowed_signers and /var/lib/vestigo/keys/allowed_signers]
    #[arg(long, value_name = "FILE")]
    pub signers: Vec<PathBuf>,
    /// Only the chain, the signatures and the lengths: no data file is read
    #[arg(long)]
    pub quick: bool,
}

impl Verify {
    /// The trust files.
    pub fn signers(&self) -> Vec<PathBuf> {
        if !self.signers.is_empty() {
            return self.signers.clone();
        }
        [SITE_SIGNERS, HOST_SIGNERS].map(PathBuf::from).into_iter().filter(|path| path.is_file()).collect()
    }
}

/// `vestigo ledger compact`.
#[derive(Debug, Args)]
pub struct Compact {
    /// Which.
    #[command(flatten)]
    pub place: Where,
    /// The host's key
    #[arg(long, value_name = "FILE", default_value = HOST_KEY)]
    pub key: PathBuf,
}

/// `vestigo ledger expire`.
#[derive(Debug, Args)]
pub struct Expire {
    /// Which.
    #[command(flatten)]
    pub place: Where,
    /// Only show what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Only records of this hypervisor
    #[arg(long)]
    pub host: Option<HostId>,
    /// Days for which records are kept
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    pub keep: u32,
    /// The site's minimum: fewer days are refused
    #[arg(long, value_name = "DAYS", default_value_t = 180)]
    pub minimum: u32,
    /// The key that signs the proof of removal
    #[arg(long, value_name = "FILE", default_value = HOST_KEY)]
    pub key: PathBuf,
    /// The key is the site's own, which the trust file lists as `vestigo-retention`, and not a host's
    #[arg(long)]
    pub site_key: bool,
}

/// `vestigo ledger hold`.
#[derive(Debug, Args)]
pub struct HoldArguments {
    /// Which.
    #[command(flatten)]
    pub place: Where,
    /// The case
    #[arg(long)]
    pub case: Label,
    /// Why
    #[arg(long)]
    pub reason: Label,
    /// From when, in RFC 3339 with its zone
    #[arg(long)]
    pub from: Timestamp,
    /// To when
    #[arg(long)]
    pub to: Timestamp,
    /// Only records of this hypervisor
    #[arg(long)]
    pub host: Option<HostId>,
    /// Only segments that know this VM (its cloud id or libvirt UUID)
    #[arg(long)]
    pub instance: Option<InstanceId>,
    /// Only segments that know a VM of this VO
    #[arg(long)]
    pub vo: Option<Vo>,
}

/// `vestigo ledger release`.
#[derive(Debug, Args)]
pub struct Release {
    /// Which.
    #[command(flatten)]
    pub place: Where,
    /// The case
    #[arg(long)]
    pub case: Label,
}
