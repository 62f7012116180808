use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::meter::{Idle, MeterOptions};

/// Meter capture files
#[derive(Debug, Clone, Args)]
pub struct MeterArgs {
    /// pcap or pcapng files, read one after the other as if they were one; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// One JSON object a line for each flow, in place of the table
    #[arg(long)]
    pub json: bool,
    /// A record of every flow that goes on, each so many seconds; without it there is one record for a flow
    #[arg(long, value_name = "SECONDS")]
    pub active: Option<u64>,
    /// Seconds of silence that end a TCP flow
    #[arg(long, value_name = "SECONDS", default_value_t = MeterOptions::default().idle.tcp.as_secs())]
    pub idle_tcp: u64,
    /// Seconds of silence that end a UDP flow
    #[arg(long, value_name = "SECONDS", default_value_t = MeterOptions::default().idle.udp.as_secs())]
    pub idle_udp: u64,
    /// Seconds of silence that end any other flow
    #[arg(long, value_name = "SECONDS", default_value_t = MeterOptions::default().idle.other.as_secs())]
    pub idle_other: u64,
    /// Most flows held at once (some 140 bytes each); beyond, new ones are counted together
    #[arg(long, value_name = "N", default_value_t = 4_000_000)]
    pub max_flows: usize,
    /// Meter also what VXLAN and Geneve carry
    #[arg(long)]
    pub tunnels: bool,
    /// Take IPv6 flow labels for SciTags, whoever sends them
    #[arg(long)]
    pub scitags: bool,
}

impl MeterArgs {
    pub(super) fn options(&self) -> MeterOptions {
        let active = self.active.map_or(Duration::MAX, Duration::from_secs);
        let idle = Idle {
            tcp: Duration::from_secs(self.idle_tcp),
            udp: Duration::from_secs(self.idle_udp),
            other: Duration::from_secs(self.idle_other),
        };
        MeterOptions {
            first: active,
            active,
            idle,
            max_flows: self.max_flows,
            tunnels: self.tunnels,
            scitags: self.scitags,
            ..MeterOptions::default()
        }
    }
}
