//! The parameters below `/proc/sys/net` that payload networks need.

use std::fs;

use tracing::warn;
use vestigo_model::PortBlock;

use super::{NetworkError, io, ipv6::Setting};
use crate::config::Config;

/// How the VM was before the first agent of this boot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// It did not forward IPv4.
    pub(super) no_forwarding: bool,
    /// Nor IPv6.
    pub(super) no_forwarding6: bool,
}

/// Looks, and keeps it for later agents of this boot.
pub(super) fn note(config: &Config) -> Result<Before, NetworkError> {
    let was_off = |key: &str, marker: &str| -> Result<bool, NetworkError> {
        let marker = config.state_dir.join(marker);
        if read(key).trim() == "0" {
            fs::write(&marker, "").map_err(io("note that forwarding was off"))?;
        }
        Ok(marker.exists())
    };
    Ok(Before {
        no_forwarding: was_off("net/ipv4/ip_forward", "forwarding-was-off")?,
        no_forwarding6: was_off("net/ipv6/conf/all/forwarding", "forwarding6-was-off")?,
    })
}

/// Lets the VM forward, and keeps its own connections out of the payloads' ports.
pub(super) fn set(config: &Config, own: PortBlock) -> Result<(), NetworkError> {
    write("net/ipv4/ip_local_port_range", &format!("{} {}", own.first, own.last))?;
    write("net/ipv4/ip_forward", "1")?;
    if read("net/ipv4/conf/all/rp_filter").trim() == "2" {
        warn!(
            "net.ipv4.conf.all.rp_filter is 2 (loose) and weakens the payload interfaces' own; the packet filter still drops foreign sources"
        );
    }
    if config.ipv6 != Setting::Off && kernel_has_ipv6() {
        forward6()?;
    }
    remember_less(config);
    Ok(())
}

/// A VM that forwards stops listening to its router, and forgets it, unless told otherwise (`accept_ra` 2) before.
fn forward6() -> Result<(), NetworkError> {
    const ALL: &str = "net/ipv6/conf/all/forwarding";
    if read(ALL).trim() != "0" {
        return Ok(());
    }
    let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf").map_err(io("list /proc/sys/net/ipv6/conf"))?;
    for name in interfaces.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let key = format!("net/ipv6/conf/{name}/accept_ra");
        if name != "all" && read(&key).trim() == "1" {
            write(&key, "2")?;
        }
    }
    write(ALL, "1")
}

/// Connection tracking remembers for two minutes what is closed; the busy payload of a slot must not fill the table with that.
/// Room for all payloads at their bound, where the kernel lets us: these two belong to the whole machine, not to a network namespace.
fn remember_less(config: &Config) {
    const CLOSED: &str = "net/netfilter/nf_conntrack_tcp_timeout_time_wait";
    const ROOM: &str = "net/netfilter/nf_conntrack_max";
    let number = |key: &str| read(key).trim().parse::<u64>().ok();
    if number(CLOSED).is_some_and(|seconds| seconds > 30) {
        let _ = write(CLOSED, "30");
    }
    let slots = config.blocks().map_or(0, |blocks| u64::from(blocks.count()));
    let wanted = slots * u64::from(config.connections) * 3 / 2 + 65_536;
    if number(ROOM).is_some_and(|room| room < wanted) && write(ROOM, &wanted.to_string()).is_err() {
        warn!(wanted, "net.netfilter.nf_conntrack_max is smaller than all payloads together may need");
    }
}

/// Makes an interface answer for addresses that are behind it, and at once.
pub(super) fn answer_for_others(interface: &str) -> Result<(), NetworkError> {
    write(&format!("net/ipv6/conf/{interface}/proxy_ndp"), "1")?;
    write(&format!("net/ipv6/neigh/{interface}/proxy_delay"), "0")
}

pub(super) fn kernel_has_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
}

fn read(key: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{key}")).unwrap_or_default()
}

pub(super) fn write(key: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(io("set a network parameter in /proc/sys"))
}
