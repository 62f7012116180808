//! Capture files that tests and benches make: the same bytes every time.

mod frames;
mod mix;
mod pcap;
mod zoo;

pub use self::{
    frames::{Ends, Frame, Inner, icmp, icmp6, ipv4, ipv6, sctp, tcp, udp},
    mix::{Mix, write_mix},
    pcap::{PcapWriter, write_pcapng},
    zoo::Zoo,
};
