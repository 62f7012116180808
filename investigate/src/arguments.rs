//! The command line.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use vestigo_model::{InstanceId, Label, PilotId, TimeRange, Timestamp, Vo};

use crate::exit::Usage;

/// Where hostd writes unless told otherwise.
const DEFAULT_LEDGER: &str = "/var/lib/vestigo/ledger";

const EXIT_CODES: &str = "\
Exit codes:
  0  found
  1  failure: the ledger cannot be read
  2  usage: the question makes no sense
  3  nothing found; the answer says what the ledger could see
  4  with --require-coverage: part of the window was not seen, whatever was found

Environment:
  VESTIGO_KEYS    files and folders of keys for names, separated by ':', used when --keys is not given
  VESTIGO_LEDGER  ledger folders, separated by ':', used when --ledger is not given
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

/// What every question takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Ledger folder; repeat it to ask several hosts at once [default: VESTIGO_LEDGER, else /var/lib/vestigo/ledger]
    #[arg(long, value_name = "DIR")]
    pub ledger: Vec<PathBuf>,
    /// Key, or folder of keys, that turns pseudonyms into names; repeat it for several [default: VESTIGO_KEYS, else
    /// /etc/vestigo/keys and /var/lib/vestigo/keys/people where they can be read]
    #[arg(long, value_name = "PATH")]
    pub keys: Vec<PathBuf>,
    /// One JSON object instead of text (documented in docs/formats/ledger.md)
    #[arg(long)]
    pub json: bool,
    /// Exit with 4 unless everything in the window was seen
    #[arg(long)]
    pub require_coverage: bool,
}

impl Common {
    /// The ledgers to ask.
    pub fn ledgers(&self) -> Vec<PathBuf> {
        if !self.ledger.is_empty() {
            return self.ledger.clone();
        }
        match std::env::var_os("VESTIGO_LEDGER").filter(|list| !list.is_empty()) {
            Some(list) => std::env::split_paths(&list).collect(),
            None => vec![PathBuf::from(DEFAULT_LEDGER)],
        }
    }
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

/// The other side of a flow.
pub type Peer = (IpAddr, Option<u16>);

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

/// The stretch between two times.
pub fn range(from: Timestamp, to: Timestamp) -> Result<TimeRange, Usage> {
    TimeRange::new(from, to).ok_or_else(|| Usage(format!("--from {from} is after --to {to}; exchange them")))
}

fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a length of time; write it like 2s, 500ms, 5m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

fn peer(text: &str) -> Result<Peer, String> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok((ip, None));
    }
    let both: SocketAddr = text.parse().map_err(|_| {
        format!("{text:?} is not an address with or without a port; write it like 192.0.2.9, 192.0.2.9:443 or [2001:db8::9]:443")
    })?;
    Ok((both.ip(), Some(both.port())))
}

fn protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        "icmp6" | "icmpv6" | "ipv6-icmp" => Ok(58),
        number => number
            .parse()
            .map_err(|_| format!("{text:?} is no protocol; write tcp, udp, icmp, icmp6 or a number up to 255")),
    }
}

/// The word for a protocol number.
pub fn protocol_word(proto: u8) -> String {
    match proto {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        other => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn peers_windows_and_protocols_are_read() {
        assert_eq!(peer("192.0.2.9").unwrap().1, None);
        assert_eq!(peer("192.0.2.9:443").unwrap().1, Some(443));
        assert_eq!(peer("2001:db8::9").unwrap().1, None);
        assert_eq!(peer("[2001:db8::9]:443").unwrap().1, Some(443));
        assert!(peer("192.0.2.9:99999").unwrap_err().contains("192.0.2.9:443"));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert!(duration("2").is_err() && duration("two").is_err() && duration("99999999999999999999s").is_err());
        assert_eq!((protocol("TCP").unwrap(), protocol("47").unwrap()), (6, 47));
        assert!(protocol("256").is_err());
    }
}
