//! Every flow of a VM in the ledger, held against what the peers heard.
//!
//! A peer knows who sent a message by the token in it, whatever address and port it came from; hostd knows address and port, and
//! never looks into a message. Where both speak of the same flow they must name the same sender.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use anyhow::{Context, Result, bail};
use vestigo_ledger::{FlowFilter, Ledger};
use vestigo_model::{
    Attribution, Direction, DomainUuid, Flow, Holder, LEASE_REST, Lease, Payload, PayloadUid, Quality, TimeRange,
};

use crate::net::Seen;

/// IANA's numbers.
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// Who sends messages with a token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// The payload of this name, of this user.
    Payload(String, String),
    /// The VM itself.
    Own(&'static str),
}

/// Protocol, the VM's address, its port (or the echo identifier), the peer's port (0 for a ping).
type Key = (u8, IpAddr, u16, u16);

/// What the peers heard.
#[derive(Debug, Default)]
pub struct Audit {
    truth: HashMap<Key, Sender>,
}

/// How the ledger's flows compare with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records of flows that a peer heard, under the name of who sent them; by protocol.
    pub right: BTreeMap<u8, usize>,
    /// Records under another name, or under none.
    pub wrong: Vec<String>,
    /// Records of a payload, or of a part of the VM, that no peer has spoken of yet: a peer answers before it writes down whom.
    pub unheard: Vec<String>,
    /// What a peer heard and no record tells of.
    pub missing: Vec<String>,
    /// Records that no peer heard and that name nobody: by reason.
    pub others: BTreeMap<String, Vec<String>>,
}

impl Verdict {
    fn other(&mut self, reason: &str, flow: &Flow) {
        self.others.entry(reason.to_owned()).or_default().push(shown(flow));
    }
}

impl Audit {
    /// Adds what a listener for `proto` on `port` heard ([`proto::ICMP`] and 0 for pings of both families).
    pub fn heard(
        &mut self,
        proto: u8,
        port: u16,
        seen: &[Seen],
        sender: impl Fn(&str) -> Option<Sender>,
    ) -> Result<()> {
        for one in seen {
            let address: IpAddr = one.address.parse()?;
            let proto = match (proto, address.is_ipv6()) {
                (proto::ICMP | proto::ICMPV6, v6) => {
                    if v6 {
                        proto::ICMPV6
                    } else {
                        proto::ICMP
                    }
                }
                (other, _) => other,
            };
            let sender =
                sender(&one.line).with_context(|| format!("a peer heard {one:?}, which nobody should send"))?;
            if let Some(other) = self.truth.insert((proto, address, one.port, port), sender.clone())
                && other != sender
            {
                bail!("two senders used one port: {other:?} and {sender:?} in {one:?}");
            }
        }
        Ok(())
    }

    /// How many different flows were heard from the sender.
    #[must_use]
    pub fn flows_of(&self, sender: &Sender) -> usize {
        self.truth.values().filter(|one| *one == sender).count()
    }

    /// Compares with all flows of the VM in the range.
    pub fn compare(&self, ledger: &Ledger, domain: DomainUuid, range: TimeRange) -> Result<Verdict> {
        // Late packets name runs that ended before the range.
        let facts = ledger.facts(TimeRange { from: range.from - LEASE_REST, to: range.to })?;
        let payloads: HashMap<PayloadUid, &Payload> =
            facts.payloads.iter().filter(|one| one.domain == domain).map(|one| (one.claim.uid, one)).collect();
        let mut verdict = Verdict::default();
        let mut unheard = self.truth.clone();
        for flow in ledger.flows(&FlowFilter { range, ip: None, vo: None })?.iter().filter(|flow| flow.domain == domain)
        {
            let named = flow.attribution.payload.map(|uid| payloads.get(&uid).copied());
            let key = key(flow);
            // The peer's last word on a connection that both had closed: nothing left the VM, and nobody is named.
            if flow.attribution.payload.is_none() && flow.sent_by_vm() == 0 {
                verdict.other(&flow.attribution.reason, flow);
                continue;
            }
            unheard.remove(&key);
            match (self.truth.get(&key), named) {
                (_, Some(None)) => verdict.wrong.push(format!("names a run that nobody announced: {}", shown(flow))),
                (Some(truth), named) => {
                    let said = named.flatten().map(sender);
                    if said.as_ref() == Some(truth) && flow.attribution.quality == Quality::Lease {
                        *verdict.right.entry(flow.proto).or_default() += 1;
                    } else {
                        verdict.wrong.push(format!("{truth:?} sent it, the ledger says {said:?}: {}", shown(flow)));
                    }
                }
                (None, Some(Some(payload))) if asks_for_neighbour(flow, payload) => verdict.other("neighbour", flow),
                (None, Some(Some(payload))) => {
                    verdict.unheard.push(format!("no peer heard {:?}: {}", sender(payload), shown(flow)));
                }
                (None, None) => verdict.other(&flow.attribution.reason, flow),
            }
        }
        verdict.missing = unheard.iter().map(|(key, sender)| format!("{key:?} of {sender:?}")).collect();
        verdict.missing.sort();
        Ok(verdict)
    }
}

/// A ping's other side has no port, whatever the record keeps there.
fn key(flow: &Flow) -> Key {
    let ((address, port), (_, other)) = (flow.local(), flow.peer());
    let ping = matches!(flow.proto, proto::ICMP | proto::ICMPV6);
    (flow.proto, address, port, if ping { 0 } else { other })
}

/// The peer's kernel asks whether a payload's own address is still there.
fn asks_for_neighbour(flow: &Flow, payload: &Payload) -> bool {
    const SOLICITATION: u16 = 135 << 8;
    let address = flow.local().0;
    let own = |lease: &Lease| matches!(lease, Lease::Address(own) if IpAddr::V6(*own) == address);
    (flow.proto, flow.direction, flow.resp_port) == (proto::ICMPV6, Direction::Incoming, SOLICITATION)
        && payload.claim.leases.iter().any(own)
}

fn sender(payload: &Payload) -> Sender {
    let claim = &payload.claim;
    match claim.holder {
        Holder::Payload => Sender::Payload(claim.payload.to_string(), claim.user.subject.to_string()),
        own => Sender::Own(own.as_str()),
    }
}

fn shown(flow: &Flow) -> String {
    let Attribution { quality, reason, .. } = &flow.attribution;
    format!(
        "{} {} {} {}:{} to {}:{}, {} and {} packets, {} ({quality} {reason})",
        flow.first,
        flow.direction,
        flow.proto,
        flow.orig_ip,
        flow.orig_port,
        flow.resp_ip,
        flow.resp_port,
        flow.orig_packets,
        flow.resp_packets,
        flow.end_reason,
    )
}
