//! The packet filter in the VM, through the `nft` program.
//!
//! A payload is one transaction of two elements, keyed by interface *and* inner address: `inner` lets its packets in at all,
//! `blocks` names the ports that they leave from. Whatever no element matched is dropped, before connection tracking
//! could take it for somebody else's.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use super::{PREFIX, Plan};
use crate::config::{Network, Ports};

/// How many ports below the lease range the VM's own connections get.
pub const OWN_PORTS: u16 = 10_240;

/// The rules were not accepted.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is missing.
    #[error("the program nft cannot be run ({0}); install the package nftables in the VM image")]
    Run(io::Error),
    /// It said no.
    #[error(
        "nft refused the rules ({0}); check that the kernel has nf_tables, nft_chain_nat, nft_nat, nft_ct and nft_masq"
    )]
    Refused(String),
}

/// What the table depends on.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Source ports that belong to payloads.
    pub ports: Ports,
    /// Addresses of payloads.
    pub inner: Network,
    /// The VM did not forward before the agent came: it forwards for payloads only.
    pub only_payloads: bool,
}

/// Sets up the table, empty of payloads; an older one goes in the same transaction.
///
/// # Errors
/// [`NftError`].
pub fn install(rules: &Rules) -> Result<(), NftError> {
    run(&table(rules))
}

/// Lets a payload out.
///
/// # Errors
/// [`NftError`].
pub fn add(plan: &Plan, outside: Ipv4Addr) -> Result<(), NftError> {
    let Plan { interface, inner, ports, .. } = plan;
    run(&format!(
        "add element ip vestigo inner {{ \"{interface}\" . {inner} }}\n\
         add element ip vestigo blocks {{ \"{interface}\" . {inner} : {outside} . {ports} }}\n"
    ))
}

/// Lets it out no more.
///
/// # Errors
/// [`NftError`].
pub fn remove(plan: &Plan) -> Result<(), NftError> {
    let Plan { interface, inner, .. } = plan;
    run(&format!(
        "delete element ip vestigo inner {{ \"{interface}\" . {inner} }}\n\
         delete element ip vestigo blocks {{ \"{interface}\" . {inner} }}\n"
    ))
}

fn run(text: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(NftError::Run)?;
    }
    let output = child.wait_with_output().map_err(NftError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NftError::Refused(said.lines().next().unwrap_or("no reason given").chars().take(200).collect()))
}

fn table(rules: &Rules) -> String {
    let Rules { ports: Ports { first, last }, inner: Network { base, prefix }, only_payloads } = rules;
    let (own_first, own_last) = (first.saturating_sub(OWN_PORTS).max(1024), first - 1);
    let others = if *only_payloads {
        format!("iifname != \"{PREFIX}*\" oifname != \"{PREFIX}*\" counter drop")
    } else {
        String::new()
    };
    format!(
        r#"table ip vestigo {{}}
delete table ip vestigo
table ip vestigo {{
	set inner {{ type ifname . ipv4_addr; }}
	map blocks {{ type ifname . ipv4_addr : interval ipv4_addr . inet_service; }}
	chain origin {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{PREFIX}*" iifname . ip saddr != @inner counter drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "{PREFIX}*" counter drop
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{PREFIX}*" oifname "{PREFIX}*" counter drop
		iifname "{PREFIX}*" ip daddr 169.254.0.0/16 counter drop
		iifname "{PREFIX}*" meta l4proto != {{ tcp, udp, icmp }} counter drop
		iifname "{PREFIX}*" ct state invalid,untracked counter drop
		iifname "{PREFIX}*" ct state new icmp type != echo-request counter drop
		oifname "{PREFIX}*" ct state new,invalid,untracked counter drop
		{others}
	}}
	chain srcnat {{
		type nat hook postrouting priority srcnat; policy accept;
		iifname "{PREFIX}*" meta l4proto {{ tcp, udp, icmp }} snat ip to iifname . ip saddr map @blocks
		oifname != "lo" meta l4proto {{ tcp, udp }} th sport {first}-{last} masquerade to :{own_first}-{own_last}
		oifname != "lo" icmp type echo-request masquerade to :{own_first}-{own_last}
	}}
	chain leave {{
		type filter hook postrouting priority srcnat + 10; policy accept;
		oifname != "{PREFIX}*" ip saddr {base}/{prefix} counter drop
	}}
}}
"#
    )
}
