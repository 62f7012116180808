//! One conversation, seen at two taps: a VM that talks to another VM of the ledger. The flow asked for is shown once, as its own tap
//! saw it; here is found where else it was seen. Nothing that the other tap counted goes into a sum.
//!
//! Two tenants may use the same addresses and even the same ports at the same moment, so the tuple alone proves nothing. What does is
//! the place: two ports of one bridge and VLAN, or addresses that exist once in the world. Otherwise it *may be* the same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use vestigo_model::{DomainUuid, Flow, HostId, Instance, Label, Tap, TapName, TimeRange, Timestamp};

use super::{
    TOLERANCE, View,
    parts::{Endpoint, HostFacts, MatchedOn, Totals},
    who::{given_to, interval},
};
use crate::segment::scan::same;

/// Conversations (and VMs) shown per candidate.
const SHOWN: usize = 100;

/// How sure it is that two taps saw one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sameness {
    /// The place proves it, and times or counters agree.
    Same,
    /// Names and times agree, and nothing proves more.
    MayBe,
}

/// Where else a candidate's conversation was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlsoSeen {
    /// How sure that is.
    pub sameness: Sameness,
    /// What it rests on.
    pub why: String,
    /// The VM at the other end.
    pub host_facts: HostFacts,
    /// Its tap.
    pub tap: TapName,
    /// IANA protocol number.
    pub proto: u8,
    /// The candidate's side, as the other tap saw it: after any translation.
    pub candidate: Endpoint,
    /// The other VM's own side.
    pub vm: Endpoint,
    /// First packet there, in the records that the question fetched.
    pub first: Timestamp,
    /// Last packet there.
    pub last: Timestamp,
    /// What the candidate's tap counted of it.
    pub here: Totals,
    /// What the other tap counted: out and in seen from the candidate, too.
    pub there: Totals,
}

/// Records by what their tap calls the peer.
pub(crate) struct Elsewhere<'a> {
    view: &'a View,
    by_peer: HashMap<(u8, Endpoint), Vec<&'a Flow>>,
}

/// One conversation at one tap. Parts of it in several records are one.
type Conversation<'a> = (&'a HostId, DomainUuid, &'a TapName, u8, [Option<u16>; 2], Endpoint, Endpoint);

fn conversation(flow: &Flow) -> Conversation<'_> {
    let (vm, peer) = (Endpoint::new(flow.local()), Endpoint::new(flow.peer()));
    (&flow.host, flow.domain, &flow.tap, flow.proto, [flow.vlan, flow.notes.inner_vlan], vm, peer)
}

/// The names by which the world may know the VM's side.
fn names(flow: &Flow) -> impl Iterator<Item = Endpoint> {
    let own = Endpoint::new(flow.local());
    let nat = flow.post_nat.map(|nat| Endpoint::new((nat.ip, nat.port))).filter(|nat| *nat != own);
    std::iter::once(own).chain(nat)
}

fn hull(flows: &[&Flow]) -> Option<TimeRange> {
    let from = flows.iter().map(|flow| flow.first).min()?;
    TimeRange::new(from, flows.iter().map(|flow| flow.last).max()?)
}

fn totals(flows: &[&Flow]) -> Totals {
    let mut totals = Totals::default();
    flows.iter().for_each(|flow| totals.add(flow));
    totals
}

impl<'a> Elsewhere<'a> {
    /// Everything that the question fetched. What was folded names no peer.
    pub(crate) fn new(view: &'a View) -> Self {
        let mut by_peer: HashMap<_, Vec<&Flow>> = HashMap::new();
        for flow in view.flows.iter().chain(&view.beside).filter(|flow| flow.notes.folded.is_none()) {
            by_peer.entry((flow.proto, Endpoint::new(flow.peer()))).or_default().push(flow);
        }
        Self { view, by_peer }
    }

    /// Where else these flows of one candidate were seen: what is certain first, at most a hundred.
    pub(crate) fn also_seen(&self, flows: &[(&'a Flow, MatchedOn)]) -> Vec<AlsoSeen> {
        let mut conversations: BTreeMap<Conversation<'_>, Vec<&Flow>> = BTreeMap::new();
        for (flow, on) in flows {
            if *on != MatchedOn::Folded {
                conversations.entry(conversation(flow)).or_default().push(flow);
            }
        }
        let mut found: Vec<AlsoSeen> = conversations.values().flat_map(|ours| self.of_one(ours)).collect();
        found.sort_by_key(|seen| (seen.sameness, seen.first));
        found.truncate(SHOWN);
        found
    }

    fn of_one(&self, ours: &[&'a Flow]) -> Vec<AlsoSeen> {
        let mut others: BTreeMap<Conversation<'_>, Vec<&Flow>> = BTreeMap::new();
        let known: BTreeSet<Endpoint> = ours.iter().flat_map(|flow| names(flow)).collect();
        let (Some(one), Some(span)) = (ours.first(), hull(ours)) else { return Vec::new() };
        let span = TimeRange { from: span.from - TOLERANCE, to: span.to + TOLERANCE };
        for name in known {
            let theirs = self.by_peer.get(&(one.proto, name)).into_iter().flatten();
            for flow in theirs.filter(|flow| is_other_side(one, flow) && span.touches(flow.first, Some(flow.last))) {
                others.entry(conversation(flow)).or_default().push(flow);
            }
        }
        others.values().filter_map(|theirs| self.judge(ours, theirs)).collect()
    }

    fn judge(&self, ours: &[&Flow], theirs: &[&Flow]) -> Option<AlsoSeen> {
        let (our, their) = (ours.first()?, theirs.first()?);
        let [our_vm, their_vm] = [our, their].map(|flow| interval(&self.view.facts.instances, flow));
        // A bridge hands a frame for nobody it knows to every port: being sent to is no part in a conversation.
        if theirs.iter().all(|flow| flow.sent_by_vm() == 0) && !was_given(their_vm, their.local().0) {
            return None;
        }
        let (here, there) = (totals(ours), totals(theirs).turned());
        let place = Place::of((our, our_vm), (their, their_vm));
        let (sameness, why) = verdict(&place, here, there, edges_agree(ours, theirs))?;
        let span = hull(theirs)?;
        Some(AlsoSeen {
            sameness,
            why,
            host_facts: their_vm.map_or_else(|| HostFacts::of_flow(their), HostFacts::of_instance),
            tap: their.tap.clone(),
            proto: their.proto,
            candidate: Endpoint::new(their.peer()),
            vm: Endpoint::new(their.local()),
            first: span.from,
            last: span.to,
            here,
            there,
        })
    }

    /// VMs that were given a peer's address and of whose taps nothing was seen; at most a hundred.
    pub(crate) fn peers_given(&self, flows: &[(&'a Flow, MatchedOn)], seen: &[AlsoSeen]) -> Vec<HostFacts> {
        let mut given: BTreeMap<(&HostId, DomainUuid, Timestamp), &Instance> = BTreeMap::new();
        let mut peers: BTreeMap<IpAddr, &Flow> = BTreeMap::new();
        for (flow, _) in flows.iter().filter(|(_, on)| *on != MatchedOn::Folded) {
            peers.entry(flow.peer().0.to_canonical()).or_insert(flow);
        }
        for instance in &self.view.facts.instances {
            let shown =
                |seen: &AlsoSeen| (&seen.host_facts.host, seen.host_facts.domain) == (&instance.host, instance.domain);
            if seen.iter().any(shown) {
                continue;
            }
            for (tap, ip) in instance.taps.iter().flat_map(|tap| given_ever(tap).map(move |ip| (tap, ip))) {
                if let Some(flow) = peers.get(&ip.to_canonical())
                    && self.may_reach(flow, instance, tap, ip)
                {
                    given.insert((&instance.host, instance.domain, instance.start), instance);
                }
            }
        }
        given.into_values().take(SHOWN).map(HostFacts::of_instance).collect()
    }

    /// Whether the VM ran then, is another one, and is not known to be in a network of its own where addresses mean something else.
    fn may_reach(&self, flow: &Flow, other: &Instance, tap: &Tap, ip: IpAddr) -> bool {
        let ran = TimeRange { from: flow.first - TOLERANCE, to: flow.last + TOLERANCE };
        let asked = interval(&self.view.facts.instances, flow);
        let ours = asked.and_then(|vm| network(vm, &flow.tap)).filter(|_| flow.host == other.host);
        let apart = ours.zip(tap.network.as_ref()).is_some_and(|(a, b)| a != b);
        (&flow.host, flow.domain) != (&other.host, other.domain)
            && ran.touches(other.start, other.end.map(|end| end.time))
            && given_to(tap, ran).any(|given| same(given, ip))
            && (!apart || is_public(ip))
    }
}

/// Whether the record can be the same packets, seen from their other end.
fn is_other_side(ours: &Flow, theirs: &Flow) -> bool {
    let tap = |flow: &Flow| (flow.host.clone(), flow.domain, flow.tap.clone());
    let peer = Endpoint::new(ours.peer());
    names(theirs).any(|name| name == peer)
        && (ours.vlan, ours.notes.inner_vlan) == (theirs.vlan, theirs.notes.inner_vlan)
        && ours.notes.tunnel == theirs.notes.tunnel
        && tap(ours) != tap(theirs)
}

fn edges_agree(ours: &[&Flow], theirs: &[&Flow]) -> bool {
    hull(ours).zip(hull(theirs)).is_some_and(|(a, b)| {
        let near = |a: Timestamp, b: Timestamp| a.since(b).max(b.since(a)) <= TOLERANCE;
        near(a.from, b.from) && near(a.to, b.to)
    })
}

/// Whenever that was.
fn given_ever(tap: &Tap) -> impl Iterator<Item = IpAddr> {
    given_to(tap, TimeRange { from: Timestamp::from_nanos(i64::MIN), to: Timestamp::from_nanos(i64::MAX) })
}

fn was_given(instance: Option<&Instance>, ip: IpAddr) -> bool {
    let mut expected = instance.into_iter().flat_map(|vm| &vm.taps).flat_map(|tap| &tap.expected);
    expected.any(|given| same(*given, ip))
}

fn network<'a>(instance: &'a Instance, tap: &TapName) -> Option<&'a Label> {
    instance.taps.iter().find(|one| one.name == *tap)?.network.as_ref()
}

/// What is known of where two taps are.
enum Place {
    /// Ports of one network of one host.
    OneNetwork(Label),
    /// Ports of two networks of one host, between which somebody may translate or route.
    TwoNetworks(Label, Label),
    /// Wherever they are: both ends have addresses that exist once, and the cloud gave them to these two.
    Public,
    /// Nothing.
    Unknown,
}

impl Place {
    fn of((ours, our_vm): (&Flow, Option<&Instance>), (theirs, their_vm): (&Flow, Option<&Instance>)) -> Self {
        let [our_network, their_network] =
            [(ours, our_vm), (theirs, their_vm)].map(|(flow, vm)| vm.and_then(|vm| network(vm, &flow.tap)));
        let one_host = ours.host == theirs.host;
        let translated = |flow: &Flow, ip: IpAddr| flow.post_nat.is_some_and(|nat| same(nat.ip, ip));
        let public = |flow, vm, ip| is_public(ip) && (was_given(vm, ip) || translated(flow, ip));
        match (our_network, their_network) {
            (Some(ours), Some(theirs)) if one_host && ours == theirs => Self::OneNetwork(ours.clone()),
            _ if public(ours, our_vm, theirs.peer().0) && public(theirs, their_vm, ours.peer().0) => Self::Public,
            (Some(ours), Some(theirs)) if one_host => Self::TwoNetworks(ours.clone(), theirs.clone()),
            _ => Self::Unknown,
        }
    }
}

/// An address that exists once: none of the ranges that sites and hosts use for themselves (RFC 6890, RFC 4193).
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let own = ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared;
            !own && a != 0 && a < 224
        }
        IpAddr::V6(ip) => ip.segments().first().is_some_and(|first| first & 0xe000 == 0x2000),
    }
}

/// `None` when what is known speaks against it.
fn verdict(place: &Place, here: Totals, there: Totals, edges_agree: bool) -> Option<(Sameness, String)> {
    let agree = here.agrees(there);
    let (proves, place) = match place {
        Place::OneNetwork(network) => (true, format!("both taps are on network {network} of the host")),
        Place::Public => (true, "both addresses are public, and these VMs were given them".to_owned()),
        Place::TwoNetworks(..) if !agree => return None,
        Place::TwoNetworks(a, b) => (false, format!("the taps are on different networks, {a} and {b}")),
        Place::Unknown => (false, "nothing shows that both taps are on one network".to_owned()),
    };
    let sameness = if proves && (agree || edges_agree) { Sameness::Same } else { Sameness::MayBe };
    let counters = if agree { "packets and bytes agree both ways".to_owned() } else { differences(here, there) };
    let times = if edges_agree { "" } else { "; begin or end lie more than 2 s apart" };
    Some((sameness, format!("{place}; {counters}{times}")))
}

fn differences(here: Totals, there: Totals) -> String {
    let ways = [
        ("out", (here.packets_out, here.bytes_out), (there.packets_out, there.bytes_out)),
        ("in", (here.packets_in, here.bytes_in), (there.packets_in, there.bytes_in)),
    ];
    let ways = ways.iter().filter(|(_, here, there)| here != there).map(|(way, here, there)| {
        format!("{way} {} packets, {} bytes here but {} packets, {} bytes there", here.0, here.1, there.0, there.1)
    });
    let ways: Vec<String> = ways.collect();
    format!("{} (lost in between, or the two taps' records are cut at different moments)", ways.join("; "))
}
