//! Options of `selftest` and of what it runs inside.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use clap::Args;
use vestigo_model::Vo;

use super::inside::Role;
use crate::protocol::SOCKET;

/// Options of `selftest`.
#[derive(Debug, Args)]
pub struct Selftest {
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Only these probes, one or more of those that --list names (repeatable)
    #[arg(long, value_name = "PROBE", num_args = 1..)]
    pub only: Vec<String>,
    /// List the probes, with what each tries, and exit
    #[arg(long)]
    pub list: bool,
    /// A host outside of the VM that gets three UDP packets to port 9 [default: the VM's gateway]
    #[arg(long, value_name = "ADDRESS")]
    pub peer: Option<Ipv4Addr>,
    /// A host outside of the VM that gets two UDP packets to port 9 over IPv6 [default: the VM's gateway, if its address is more than link-local]
    #[arg(long, value_name = "ADDRESS")]
    pub peer6: Option<Ipv6Addr>,
    /// A folder that the agent shows to all payloads (its `expose`), so that it is no surprise (repeatable)
    #[arg(long, value_name = "DIR")]
    pub expose: Vec<PathBuf>,
    /// The virtual organisation in the record
    #[arg(long, default_value = "vestigo-selftest")]
    pub vo: Vo,
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
}

/// Options of what runs inside.
#[derive(Debug, Args)]
pub struct SelftestProbe {
    /// What to be
    #[arg(value_enum)]
    pub role: Role,
    /// The probe, or a word for the list of processes
    pub name: Option<String>,
}
