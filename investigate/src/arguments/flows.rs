//! `vestigo flows`.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use serde::{Serialize, Serializer};
use vestigo_model::{HostId, InstanceId, PayloadUid, Timestamp, Vo};

use super::{
    Common,
    values::{Network, Peer, network, peer, protocol},
};

/// `vestigo flows`.
#[derive(Debug, Args)]
pub struct Flows {
    /// Which.
    #[command(flatten)]
    pub filter: Filter,
    /// Show so many, the earliest; 0 shows all
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Sums instead of flows, for each value of these: vo, instance, host, payload, vm (its address), peer, service (protocol and
    /// port of whoever was called), proto, direction, quality, day, hour; several with commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "BY")]
    pub sum: Vec<By>,
    /// Common options.
    #[command(flatten)]
    pub common: Common,
}

/// Which flows: all that is given must fit.
#[derive(Debug, Args, Serialize)]
pub struct Filter {
    /// An address, on either side or as the translated one
    #[arg(long)]
    pub ip: Option<IpAddr>,
    /// A network, on either side or that of the translated address, like 192.0.2.0/24
    #[arg(long, value_name = "ADDRESS/BITS", value_parser = network)]
    #[serde(serialize_with = "shown")]
    pub net: Option<Network>,
    /// A port, on either side or as the translated one
    #[arg(long)]
    pub port: Option<u16>,
    /// The other side, seen from the VM: ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = peer)]
    pub peer: Option<Peer>,
    /// tcp, udp, icmp, icmp6 or a number
    #[arg(long, value_parser = protocol)]
    pub proto: Option<u8>,
    /// The VO that owns the VM
    #[arg(long)]
    pub vo: Option<Vo>,
    /// The VM's cloud id
    #[arg(long)]
    pub instance: Option<InstanceId>,
    /// The hypervisor
    #[arg(long)]
    pub host: Option<HostId>,
    /// The payload's run id
    #[arg(long, value_name = "UID")]
    pub payload: Option<PayloadUid>,
    /// Flows that had not ended then, in RFC 3339 with its zone
    #[arg(long)]
    pub from: Option<Timestamp>,
    /// Flows that had begun then
    #[arg(long)]
    pub to: Option<Timestamp>,
    /// So many bytes at least, both ways together
    #[arg(long, value_name = "BYTES")]
    pub min_bytes: Option<u64>,
    /// How the other side took it
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// An SQL expression over the columns of the view flows, like 'orig_bytes > 10 * resp_bytes'
    #[arg(long = "where", value_name = "EXPRESSION")]
    pub condition: Option<String>,
}

fn shown<S: Serializer>(network: &Option<Network>, serializer: S) -> Result<S::Ok, S::Error> {
    network.map(|network| network.to_string()).serialize(serializer)
}

/// How the other side took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Packets came back
    Answered,
    /// None did
    Unanswered,
    /// By a reset or an ICMP error
    Refused,
    /// The VM used an address that it had not been given
    Spoofed,
}

/// What sums are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// VO of the VM's tenant.
    Vo,
    /// Cloud id of the VM.
    Instance,
    /// Hypervisor.
    Host,
    /// Run id.
    Payload,
    /// The VM's own address.
    Vm,
    /// The other side's address.
    Peer,
    /// Protocol, and port of whoever was called.
    Service,
    /// Protocol.
    Proto,
    /// Who called whom.
    Direction,
    /// How certain the payload is.
    Quality,
    /// UTC day of the first packet.
    Day,
    /// UTC hour of the first packet.
    Hour,
}
