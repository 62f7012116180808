//! The packet filter in the VM: one table, set up by the `nft` program when the agent starts. What changes with a payload are elements
//! of its sets ([`super::elements`]), keyed by interface *and* inner address.
//!
//! Whatever no element matched is dropped before connection tracking could take it for somebody else's. What the VM itself
//! sends leaves from blocks of its own, by the uid of its socket.

use std::{
    io::{self, Write},
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use vestigo_model::PortBlock;

use super::PREFIX;
use crate::config::{Network, Ports};

/// The rules were not accepted.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is missing.
    #[error("the program nft cannot be run ({0}); install the package nftables in the VM image")]
    Run(io::Error),
    /// It said no.
    #[error(
        "nft refused the rules ({0}); check that the kernel has nf_tables, nft_chain_nat, nft_nat, nft_ct, nft_fib, nft_connlimit and nft_limit"
    )]
    Refused(String),
}

/// What the table depends on.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Source ports that belong to payloads.
    pub ports: Ports,
    /// Source ports of root and system users, and of the kernel.
    pub system: PortBlock,
    /// Source ports of all other users of the VM.
    pub pilot: PortBlock,
    /// Addresses of payloads.
    pub inner: Network,
    /// What payloads take for their name server.
    pub dns: Ipv4Addr,
    /// Most connections of a payload at once.
    pub connections: u32,
    /// The VM did not forward IPv4 before the agent came: it forwards for payloads only.
    pub only_payloads: bool,
    /// Nor IPv6.
    pub only_payloads6: bool,
}

/// Sets up the table, empty of payloads; an older one goes in the same transaction.
///
/// # Errors
/// [`NftError`].
pub fn install(rules: &Rules) -> Result<(), NftError> {
    run(&table(rules))
}

/// Sends the name requests of payloads to this server, or to none.
///
/// # Errors
/// [`NftError`].
pub fn resolver(dns: Ipv4Addr, server: Option<Ipv4Addr>) -> Result<(), NftError> {
    let rule = server.map_or_else(String::new, |server| {
        format!(
            "add rule inet vestigo resolver iifname \"{PREFIX}*\" ip daddr {dns} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {server}\n"
        )
    });
    run(&format!("flush chain inet vestigo resolver\n{rule}"))
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
    [
        "table inet vestigo {}\ndelete table inet vestigo\ntable inet vestigo {\n",
        &sets(rules),
        &guards(rules),
        &forward(rules),
        &nat(rules),
        "}\n",
    ]
    .concat()
}

/// `inner` and `inner6` count every packet that a payload sends. `marks` is how the connections of a payload are found when it has
/// gone ([`super::conntrack`]). `bound` fills itself: the kernel
/// drops an element that counts nothing, so it cannot be there from the start. It does not see closed connections, which the kernel
/// remembers for a while; `pace` bounds how many of those there can be.
fn sets(rules: &Rules) -> String {
    let connections = rules.connections;
    let pace = (connections / 8).max(1);
    format!(
        r#"	set inner {{ type ifname . ipv4_addr; counter; }}
	set inner6 {{ type ifname . ipv6_addr; counter; }}
	set taken6 {{ type ipv6_addr; }}
	map blocks {{ type ifname . ipv4_addr : interval ipv4_addr . inet_service; }}
	map marks {{ type ifname : mark; }}
	set bound {{ type ifname; flags dynamic; size 65536; }}
	set pace {{ type ifname; flags dynamic; size 65536; limit rate over {pace}/second burst {connections} packets; }}
"#
    )
}

/// Between payload and VM: nothing but name requests, and only with the payload's own source.
/// `genuine`: any user may bind an address that the VM does not have (`IPV6_FREEBIND`), and a payload's is one,
/// or that of a payload's peer. What is asked before there is an address has none; link-local sources are no lease and stay on the link;
/// within the VM a proxy may show its clients' addresses, but a payload is none.
fn guards(rules: &Rules) -> String {
    let Rules { dns, connections, inner: Network { base, prefix }, .. } = rules;
    format!(
        r#"	chain origin {{
		type filter hook prerouting priority raw; policy accept;
		iifname != "{PREFIX}*" accept
		ip daddr 127.0.0.0/8 counter drop
		iifname . ip saddr @inner accept
		iifname . ip6 saddr @inner6 accept
		counter drop
	}}
	chain resolver {{
		type nat hook prerouting priority dstnat - 1; policy accept;
	}}
	chain newcomer {{
		add @bound {{ iifname ct count over {connections} }} counter drop
		iifname @pace counter drop
		ct mark set iifname map @marks
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname != "{PREFIX}*" accept
		ct status dnat ct original ip daddr {dns} meta l4proto {{ tcp, udp }} ct state established accept
		ct status dnat ct original ip daddr {dns} meta l4proto {{ tcp, udp }} ct state new goto newcomer
		counter drop
	}}
	chain genuine {{
		type filter hook output priority raw; policy accept;
		ip saddr 0.0.0.0 accept
		ip6 saddr {{ ::, fe80::/10 }} accept
		fib saddr type local accept
		oifname != "lo" counter drop
		ip saddr {base}/{prefix} counter drop
		ip6 saddr @taken6 counter drop
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
		oifname "{PREFIX}*" ct state new,invalid,untracked counter drop
	}}
"#
    )
}

/// Between payload and world. The metadata services of the clouds: 169.254.0.0/16 and fe80::/10 nearly everywhere, the others Alibaba's,
/// Azure's (which serves names as well), Amazon's and Google's.
fn forward(rules: &Rules) -> String {
    let Network { base, prefix } = rules.inner;
    let others = [("ipv4", rules.only_payloads), ("ipv6", rules.only_payloads6)];
    let others: String = others
        .into_iter()
        .filter(|(_, only)| *only)
        .map(|(family, _)| format!("\t\tmeta nfproto {family} counter drop\n"))
        .collect();
    format!(
        r#"	chain outward {{
		oifname "{PREFIX}*" counter drop
		ct state established,related accept
		ct state != new counter drop
		ip daddr {{ {base}/{prefix}, 169.254.0.0/16, 100.100.100.200 }} counter drop
		ip daddr 168.63.129.16 meta l4proto {{ tcp, udp }} th dport != 53 counter drop
		ip6 daddr {{ fe80::/10, fd00:ec2::254, fd20:ce::254 }} counter drop
		meta l4proto != {{ tcp, udp, icmp, icmpv6 }} counter drop
		icmp type != echo-request counter drop
		icmpv6 type != echo-request counter drop
		goto newcomer
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{PREFIX}*" goto outward
		oifname "{PREFIX}*" ct state established,related accept
		oifname "{PREFIX}*" counter drop
{others}	}}
"#
    )
}

/// Who leaves from which ports. Before any other table's translation: the first one that decides, decides for the connection.
/// Privileged ports, which only the system can have, stay: servers of NFS insist on them.
/// A TCP connection of the VM that does not begin with a SYN is older than these rules: translating it would end it.
fn nat(rules: &Rules) -> String {
    let Rules { ports: Ports { first, last }, system, pilot, inner: Network { base, prefix }, .. } = rules;
    format!(
        r#"	chain payload {{
		meta l4proto {{ tcp, udp, icmp }} snat ip to iifname . ip saddr map @blocks
		iifname . ip6 saddr @inner6 accept
		counter drop
	}}
	chain own {{
		tcp flags & (syn | ack) != syn accept
		udp sport 68 udp dport 67 accept
		udp sport 546 udp dport 547 accept
		meta skuid >= 1000 meta l4proto {{ tcp, udp }} snat to :{pilot}
		meta skuid >= 1000 icmp type echo-request snat to :{pilot}
		meta skuid >= 1000 icmpv6 type echo-request snat to :{pilot}
		meta l4proto {{ tcp, udp }} th sport 1-1023 accept
		meta l4proto {{ tcp, udp }} snat to :{system}
		icmp type echo-request snat to :{system}
		icmpv6 type echo-request snat to :{system}
	}}
	chain srcnat {{
		type nat hook postrouting priority srcnat - 1; policy accept;
		oifname {{ "lo", "{PREFIX}*" }} accept
		iifname "{PREFIX}*" goto payload
		fib saddr type local goto own
		meta l4proto {{ tcp, udp }} th sport {first}-{last} snat to :{system}
		icmp type echo-request snat to :{system}
	}}
	chain leave {{
		type filter hook postrouting priority srcnat + 10; policy accept;
		oifname "{PREFIX}*" accept
		ip saddr {base}/{prefix} counter drop
		iifname != "{PREFIX}*" ip6 saddr @taken6 counter drop
	}}
"#
    )
}
