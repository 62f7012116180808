//! What was learnt on one tap, in bounded space. Pure: time is the frames'.

use std::{collections::HashMap, net::IpAddr};

use vestigo_model::{Basis, Expected, Learnt, Mac, SciTag, Timestamp, Tuple};

use super::{
    address::{self, Dhcp},
    firefly,
};
use crate::{
    decode::{self, Heading, Packet},
    meter::{Control, Frame},
};

/// Most addresses kept that DHCP servers gave, and that the VM announced.
const MAX_LEARNT: (usize, usize) = (8, 32);
/// Most flows that fireflies have named.
const MAX_NAMED: usize = 1024;
/// Most frames looked at within one second of the frames' time: far more than honest ones.
const BUDGET: u32 = 200;

/// What became of the frames, since the tap was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WitnessCounts {
    /// Frames that the budget of their second had no room for.
    pub unread: u64,
    /// Frames that did not say what frames of their kind say.
    pub unreadable: u64,
    /// Addresses and named flows that were forgotten for newer ones.
    pub forgotten: u64,
    /// Fireflies read.
    pub fireflies: u64,
}

/// What a firefly said of a flow.
#[derive(Debug, Clone, Copy)]
struct Named {
    tag: SciTag,
    used: Timestamp,
    /// Whether anybody has asked for it.
    asked: bool,
}

/// What was learnt on one tap.
#[derive(Debug, Default)]
pub struct Memory {
    learnt: Vec<Learnt>,
    /// When the announcement of each address was last seen, in the same order.
    heard: HashMap<IpAddr, Timestamp>,
    /// The last requests of the VM to DHCP servers of IPv4 and IPv6.
    asked: [Option<u32>; 2],
    named: HashMap<Tuple, Named>,
    second: i64,
    looked: u32,
    counts: WitnessCounts,
}

impl Memory {
    /// What is known from an earlier life of hostd, or from before the tap was opened anew.
    #[must_use]
    pub fn restored(learnt: Vec<Learnt>) -> Self {
        Self { learnt, ..Self::default() }
    }

    /// Looks at a frame on the tap of the VM with this hardware address.
    pub fn look(&mut self, frame: &Frame<'_>, control: &Control, mac: Mac) {
        if !self.concerns(frame, control) {
            return;
        }
        if !self.has_budget(frame.time) {
            self.counts.unread += 1;
        } else if self.read(frame, control, mac).is_none() {
            self.counts.unreadable += 1;
        }
    }

    /// Whether the frame says something of this VM: what others say of themselves is no business of this tap, but for the answer to a request
    /// of the VM. Nobody else's frames take room from the VM's own.
    fn concerns(&self, frame: &Frame<'_>, control: &Control) -> bool {
        let answered = |packet: &Packet| {
            let [v4_asked, v6_asked] = self.asked;
            let asked = if packet.v6 { v6_asked } else { v4_asked };
            asked.is_some() && address::transaction(packet.payload_of(frame.bytes), packet.v6) == asked
        };
        match control {
            _ if frame.heading == Heading::FromVm => true,
            Control::Dhcp(packet) => answered(packet),
            Control::Arp | Control::Neighbour(_) | Control::Firefly(_) => false,
        }
    }

    /// A guest decides how many there are, and pays for it alone.
    fn has_budget(&mut self, time: Timestamp) -> bool {
        let second = time.as_nanos() / 1_000_000_000;
        if self.second != second {
            (self.second, self.looked) = (second, 0);
        }
        self.looked = self.looked.saturating_add(1);
        self.looked <= BUDGET
    }

    /// `None` if the frame says nothing that its kind says.
    fn read(&mut self, frame: &Frame<'_>, control: &Control, mac: Mac) -> Option<()> {
        let time = frame.time;
        let from_vm = frame.heading == Heading::FromVm;
        match control {
            Control::Arp => {
                let arp = decode::arp(frame.bytes, frame.vlan)?;
                if let Some(ip) = address::arp_sender(arp, mac) {
                    self.announced(ip, time);
                }
            }
            Control::Neighbour(packet) => {
                let (kind, _) = packet.icmp?;
                if let Some(ip) = address::neighbour_sender(kind, packet.src_ip(), packet.payload_of(frame.bytes)) {
                    self.announced(ip, time);
                }
            }
            Control::Dhcp(packet) => {
                let payload = packet.payload_of(frame.bytes);
                let message = if packet.v6 { address::dhcp6(payload) } else { address::dhcp(payload, mac) };
                self.dhcp(message, packet.v6, from_vm, time);
            }
            Control::Firefly(packet) => {
                let firefly = firefly::read(packet.payload_of(frame.bytes))?;
                self.counts.fireflies += 1;
                self.name(firefly.flow, firefly.tag, time);
            }
        }
        Some(())
    }

    /// A server's answer counts only where the VM has asked: nobody else's machine gives this VM an address unasked.
    fn dhcp(&mut self, message: Option<Dhcp>, v6: bool, from_vm: bool, time: Timestamp) {
        let [v4_asked, v6_asked] = &mut self.asked;
        let asked = if v6 { v6_asked } else { v4_asked };
        match message {
            Some(Dhcp::Request { transaction }) if from_vm => *asked = Some(transaction),
            Some(Dhcp::Release(ip)) if from_vm => self.learnt.retain(|one| (one.ip, one.by) != (ip, Basis::Dhcp)),
            Some(Dhcp::Reply { transaction, given }) if !from_vm && *asked == Some(transaction) => {
                for (ip, lasting) in given {
                    self.given(ip, lasting.map(|lasting| time + lasting), time);
                }
            }
            _ => {}
        }
    }

    fn given(&mut self, ip: IpAddr, until: Option<Timestamp>, time: Timestamp) {
        if let Some(known) = self.learnt.iter_mut().find(|one| one.ip == ip && one.by == Basis::Dhcp) {
            known.until = until;
            return;
        }
        let oldest = |one: &Learnt| (one.until.unwrap_or(time), one.since);
        self.make_room(Basis::Dhcp, MAX_LEARNT.0, oldest);
        self.learnt.push(Learnt { ip, by: Basis::Dhcp, since: time, until });
    }

    fn announced(&mut self, ip: IpAddr, time: Timestamp) {
        if is_link_local(ip) {
            return;
        }
        let known = self.learnt.iter().any(|one| one.ip == ip && one.by == Basis::Announced);
        if !known {
            let heard = std::mem::take(&mut self.heard);
            self.make_room(Basis::Announced, MAX_LEARNT.1, |one| {
                (heard.get(&one.ip).copied().unwrap_or(one.since), one.since)
            });
            self.heard = heard;
            self.learnt.push(Learnt { ip, by: Basis::Announced, since: time, until: None });
            self.heard.retain(|ip, _| self.learnt.iter().any(|one| one.ip == *ip));
        }
        self.heard.insert(ip, time);
    }

    /// Forgets the one with the lowest rank, if there are too many of the kind.
    fn make_room<R: Ord>(&mut self, by: Basis, most: usize, rank: impl Fn(&Learnt) -> R) {
        let of_kind = self.learnt.iter().enumerate().filter(|(_, one)| one.by == by);
        if of_kind.clone().count() < most {
            return;
        }
        if let Some((index, _)) = of_kind.min_by_key(|(_, one)| rank(one)) {
            self.learnt.remove(index);
            self.counts.forgotten += 1;
        }
    }

    fn name(&mut self, flow: Tuple, tag: SciTag, time: Timestamp) {
        if self.named.len() >= MAX_NAMED && !self.named.contains_key(&flow) {
            let oldest = self.named.iter().min_by_key(|(_, named)| named.used).map(|(flow, _)| *flow);
            oldest.map(|oldest| self.named.remove(&oldest));
            self.counts.forgotten += 1;
        }
        // One tells the same again and again while its flow goes on.
        let asked = self.named.get(&flow).is_some_and(|known| known.tag == tag && known.asked);
        self.named.insert(flow, Named { tag, used: time, asked });
    }

    /// What a firefly said of the flow between these ends, and whether that is news; keeps it for longer.
    pub fn named(&mut self, flow: Tuple, time: Timestamp) -> Option<(SciTag, bool)> {
        let back = Tuple {
            src_ip: flow.dst_ip,
            src_port: flow.dst_port,
            dst_ip: flow.src_ip,
            dst_port: flow.src_port,
            ..flow
        };
        let key = [flow, back].into_iter().find(|key| self.named.contains_key(key))?;
        let named = self.named.get_mut(&key)?;
        named.used = named.used.max(time);
        Some((named.tag, !std::mem::replace(&mut named.asked, true)))
    }

    /// Whether the VM may send from the address, and by whose word.
    #[must_use]
    pub fn expected(&self, cloud: &[IpAddr], ip: IpAddr, time: Timestamp) -> (Expected, Option<Basis>) {
        vestigo_model::expected(cloud, &self.learnt, ip, time)
    }

    /// The addresses learnt.
    #[must_use]
    pub fn learnt(&self) -> &[Learnt] {
        &self.learnt
    }

    /// What became of the frames.
    #[must_use]
    pub const fn counts(&self) -> WitnessCounts {
        self.counts
    }
}

/// Every interface has one of its own.
const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
