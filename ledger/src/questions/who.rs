//! *Who used this address at this time?* All candidates, none merged, none guessed.
//!
//! The address (and port) asked for is the VM's side of a flow: its own address, or the one the world saw behind the
//! hypervisor's NAT. The candidate is always the VM behind the tap, whoever the packet's source claims to be; a VM that
//! was given the address but of which no flow matches is named apart. A translation that no flow record tells leads to the flows that fit it,
//! or to the VMs that were given the address behind it. Only when there is no candidate at all is the address
//! looked for as a *peer* of VMs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use vestigo_model::{
    Basis, Direction, DomainUuid, Event, EventKind, Expected, Flow, HostId, Instance, InstanceId, Learnt, Payload,
    PayloadUid, Quality, Tap, TimeRange, Timestamp,
};

use super::{
    TOLERANCE, View,
    coverage::{self, WindowCoverage},
    elsewhere::{AlsoSeen, Elsewhere},
    flooded::{self, Flooded},
    icmp, lease,
    nat::{self, Hidden, TranslationSeen},
    parts::{Endpoint, FlowSeen, GuestClaims, HostFacts, Link, MatchedOn, Totals, conflict_note, vo_contradiction},
    reasons::Reasons,
    scitags::{self, SciTagClaim},
    sums::{FoldedSum, Sums},
};
use crate::segment::scan::same;

/// Flow records (and conflicting claims) shown per candidate; totals and notes count them all.
const SHOWN: usize = 100;

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoQuestion {
    /// The time, with its tolerance on both sides.
    pub range: TimeRange,
    /// The address.
    pub ip: IpAddr,
    /// The port; without it, all candidates of the address.
    pub port: Option<u16>,
    /// The other side, if known.
    pub peer: Option<(IpAddr, Option<u16>)>,
    /// IANA protocol number.
    pub proto: Option<u8>,
    /// The VM's cloud id, where the address is used by several tenants.
    pub instance: Option<InstanceId>,
}

/// One that may have done it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Known by the host.
    pub host_facts: HostFacts,
    /// Seen by the host: the flow records that match, the earliest first and folded ones last, at most a hundred. None means that
    /// the VM was only *given* the address.
    pub flows: Vec<FlowSeen>,
    /// Sums over all of them but those that are folded or inside tunnels.
    pub totals: Totals,
    /// Folded conversations among which the one asked for may be.
    #[serde(default)]
    pub folded: Option<FoldedSum>,
    /// Records of packets inside tunnels, which the tunnel's own flow counts already.
    #[serde(default)]
    pub inside_tunnels: u64,
    /// The same conversations at the taps of other VMs, at most a hundred.
    #[serde(default)]
    pub also_seen: Vec<AlsoSeen>,
    /// Other VMs that were given the address of a peer, where their taps show nothing of it. At most a hundred.
    #[serde(default)]
    pub peers_given: Vec<HostFacts>,
    /// Said by the VM's own traffic about its VO.
    #[serde(default)]
    pub scitags: Vec<SciTagClaim>,
    /// Said by the guest about the payload behind the flows; `None` when only the VM is certain.
    pub guest_claims: Option<GuestClaims>,
    /// Said by the guest later under the same run id, and different: the first claim holds. At most a hundred.
    #[serde(default)]
    pub later_claims: Vec<GuestClaims>,
    /// How good the link between the flows and the payload is.
    pub attribution: Link,
    /// Payloads that ran in the VM then, listed when none can be tied to the flows: claims, not an attribution. At most a
    /// hundred.
    pub ran_then: Vec<GuestClaims>,
    /// How many there are.
    #[serde(default)]
    pub ran_then_total: usize,
    /// Payloads announced later, which ran then by the guest's clock only, within the VM's own run. At most a hundred.
    #[serde(default)]
    pub said_later: Vec<GuestClaims>,
    /// How many there are.
    #[serde(default)]
    pub said_later_total: usize,
    /// What the host recorded of the VM in the window as `spoofing` or `contradiction`, by time; at most a hundred.
    #[serde(default)]
    pub events: Vec<EventSeen>,
    /// How many there are.
    #[serde(default)]
    pub events_total: usize,
    /// Contradictions and cautions.
    pub notes: Vec<String>,
}

/// An event of a VM, as an answer shows it. Members of `detail` may hold words of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSeen {
    /// Host's clock.
    pub time: Timestamp,
    /// What.
    pub what: EventKind,
    /// Particulars.
    pub detail: BTreeMap<String, String>,
}

impl EventSeen {
    pub(crate) fn new(event: &Event) -> Self {
        Self { time: event.time, what: event.what, detail: event.detail.clone() }
    }
}

/// A VM that talked to the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSighting {
    /// The VM.
    pub host_facts: HostFacts,
    /// Earliest packet.
    pub first: Timestamp,
    /// Latest packet.
    pub last: Timestamp,
    /// Flow records.
    pub flows: u64,
    /// The VM's side of the earliest.
    pub vm: Endpoint,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAnswer {
    /// All candidates.
    pub candidates: Vec<Candidate>,
    /// VMs that were given the address at that time but have no matching flow, when there are candidates that have one.
    pub also_given: Vec<HostFacts>,
    /// VMs that flooded from more addresses than the host keeps apart: the one asked for may be among them.
    #[serde(default)]
    pub flooded: Vec<Flooded>,
    /// Without any candidate: VMs whose *peer* had the address.
    pub seen_as_peer: Vec<PeerSighting>,
    /// Translations that the host told apart from flow records, and whose public side was asked for. At most a hundred.
    #[serde(default)]
    pub translations: Vec<TranslationSeen>,
    /// How many there are.
    #[serde(default)]
    pub translations_total: usize,
    /// Clock tolerance of joins, in milliseconds.
    pub tolerance_ms: u64,
    /// What could be seen.
    pub coverage: WindowCoverage,
}

type Key = (HostId, DomainUuid, Option<Timestamp>, Option<PayloadUid>);

struct Group<'a> {
    host_facts: HostFacts,
    payload: Option<&'a Payload>,
    conflicting: &'a [Payload],
    reasons: Reasons,
    flows: Vec<(&'a Flow, MatchedOn)>,
}

/// Answers the question from what the ledger gave.
#[must_use]
pub fn answer(question: &WhoQuestion, view: &View) -> WhoAnswer {
    let hidden = Hidden::asked(question, &view.translations);
    let groups = groups(question, view, &hidden);
    let given = given(question, view, &groups);
    let elsewhere = Elsewhere::new(view);
    let shared = nat::shared(groups.values().flat_map(|group| &group.flows), &hidden);
    let of_group = |group: &Group<'_>| {
        let mut candidate = candidate(question, group, view, &elsewhere);
        candidate.notes.extend(nat::notes(&group.flows, &shared, &hidden));
        candidate
    };
    let mut candidates: Vec<Candidate> = groups.values().map(of_group).collect();
    candidates.extend(behind(question, view, &hidden, &groups));
    // One of which only folded conversations match may have had nothing to do with it.
    candidates.sort_by_key(|candidate| candidate.flows.iter().all(|flow| flow.matched_on == MatchedOn::Folded));
    let mut also_given: Vec<HostFacts> = Vec::new();
    if candidates.is_empty() {
        candidates = given.into_iter().map(|instance| given_only(instance, question, view)).collect();
    } else {
        also_given = given.into_iter().map(HostFacts::of_instance).collect();
    }
    let seen_as_peer = if candidates.is_empty() { peers(question, view) } else { Vec::new() };
    let named = candidates.iter().map(|c| &c.host_facts).chain(&also_given);
    let shown: BTreeSet<_> = named.map(|facts| (facts.host.clone(), facts.domain)).collect();
    let coverage = coverage::summarise(question.range, &view.facts, view.extent, &shown, &view.reach);
    WhoAnswer {
        candidates,
        also_given,
        flooded: flooded::of(view, question.range, |flow| of_instance(question, flow)),
        seen_as_peer,
        translations: hidden.iter().take(SHOWN).map(Hidden::seen).collect(),
        translations_total: hidden.len(),
        tolerance_ms: u64::try_from(TOLERANCE.as_millis()).unwrap_or(u64::MAX),
        coverage,
    }
}

/// Whether the flow matches, and by which of the VM's tuples.
fn matched(question: &WhoQuestion, flow: &Flow, hidden: &[Hidden<'_>]) -> Option<MatchedOn> {
    if !about(question, flow) {
        return None;
    }
    if let Some(folded) = flow.notes.folded {
        // The peer was not kept: it may be the one asked for.
        let (ip, first) = flow.local();
        let held = question.port.is_none_or(|asked| (first..=folded.last_port).contains(&asked));
        return (same(ip, question.ip) && held).then_some(MatchedOn::Folded);
    }
    let (peer_ip, peer_port) = flow.peer();
    let peer = question.peer.is_none_or(|(ip, port)| same(ip, peer_ip) && port.is_none_or(|asked| asked == peer_port));
    // The peer may be asked for by the name that the world has for it.
    let peer = peer || hidden.iter().any(|hidden| hidden.fits(flow));
    let is = |(ip, port): (IpAddr, u16)| same(ip, question.ip) && question.port.is_none_or(|asked| asked == port);
    // What stands in the place of the responder's port of an ICMP flow is a type and a code.
    let no_port =
        flow.direction == Direction::Incoming && matches!(flow.proto, icmp::V4 | icmp::V6) && question.port.is_some();
    match flow.post_nat {
        _ if !peer || no_port => None,
        _ if is(flow.local()) => Some(MatchedOn::Address),
        Some(nat) if is((nat.ip, nat.port)) => Some(MatchedOn::PostNat),
        _ => None,
    }
}

/// What else, than the address asked for, the VMs found are called on one side or the other of the hypervisor's NAT.
pub(super) fn other_names(question: &WhoQuestion, flows: &[Flow]) -> BTreeSet<IpAddr> {
    let found = flows.iter().filter(|flow| flow.post_nat.is_some() && matched(question, flow, &[]).is_some());
    let names = found.flat_map(|flow| [Some(flow.local().0), flow.post_nat.map(|nat| nat.ip)]).flatten();
    names.map(|ip| ip.to_canonical()).filter(|ip| !same(*ip, question.ip)).collect()
}

/// What the question says beside the addresses.
fn about(question: &WhoQuestion, flow: &Flow) -> bool {
    question.range.touches(flow.first, Some(flow.last))
        && question.proto.is_none_or(|proto| proto == flow.proto)
        && of_instance(question, flow)
}

fn of_instance(question: &WhoQuestion, flow: &Flow) -> bool {
    question.instance.as_ref().is_none_or(|instance| *instance == flow.instance)
}

fn groups<'a>(question: &WhoQuestion, view: &'a View, hidden: &[Hidden<'_>]) -> BTreeMap<Key, Group<'a>> {
    let mut groups: BTreeMap<Key, Group<'a>> = BTreeMap::new();
    for flow in &view.flows {
        let Some(matched_on) = matched(question, flow, hidden) else { continue };
        let instance = interval(&view.facts.instances, flow);
        let attribution = lease::standing(flow, &view.facts, TOLERANCE);
        let key = (flow.host.clone(), flow.domain, instance.map(|i| i.start), attribution.payload);
        let group = groups.entry(key).or_insert_with(|| Group {
            host_facts: facts_of(instance, flow),
            payload: attribution.payload.and_then(|uid| lease::find(&view.facts.payloads, flow, uid)),
            conflicting: attribution
                .payload
                .or(flow.attribution.payload)
                .map_or_else(Default::default, |uid| view.facts.conflicting_with(&flow.host, flow.domain, uid)),
            reasons: Reasons::new(attribution.quality),
            flows: Vec::new(),
        });
        group.reasons.take(&attribution);
        group.flows.push((flow, matched_on));
    }
    groups
}

/// The interval of the VM's life that the flow belongs to: the last one begun before the flow ended.
pub(crate) fn interval<'a>(instances: &'a [Instance], flow: &Flow) -> Option<&'a Instance> {
    let range = TimeRange { from: flow.first - TOLERANCE, to: flow.last + TOLERANCE };
    instances
        .iter()
        .filter(|i| i.domain == flow.domain && i.host == flow.host)
        .filter(|i| range.touches(i.start, i.end.map(|end| end.time)))
        .max_by_key(|i| i.start)
}

fn candidate(question: &WhoQuestion, group: &Group<'_>, view: &View, elsewhere: &Elsewhere<'_>) -> Candidate {
    let host_facts = group.host_facts.clone();
    let attribution = group.reasons.link();
    let sums = Sums::of(&group.flows);
    let scitags = scitags::claims(&group.flows);
    let mut notes = notes(group, attribution.quality);
    notes.extend(scitags::contradictions(&scitags, host_facts.vo.as_ref()));
    notes.extend(sums.notes(question));
    let asked = hull(&group.flows).filter(|_| group.payload.is_none());
    let ran = asked.map(|range| ran_then(&host_facts, range, view)).unwrap_or_default();
    let also_seen = elsewhere.also_seen(&group.flows);
    let events = suspicious(&host_facts, question.range, view);
    let is_folded = |on: &MatchedOn| *on == MatchedOn::Folded;
    let (folded, plain): (Vec<_>, Vec<_>) = group.flows.iter().partition(|(_, on)| is_folded(on));
    Candidate {
        flows: plain.iter().chain(&folded).take(SHOWN).map(|(flow, on)| FlowSeen::new(flow, *on)).collect(),
        totals: sums.totals,
        folded: (sums.folded.totals.flows > 0).then_some(sums.folded),
        inside_tunnels: sums.inside_tunnels,
        peers_given: elsewhere.peers_given(&group.flows, &also_seen),
        also_seen,
        scitags,
        guest_claims: group.payload.map(GuestClaims::new),
        later_claims: group.conflicting.iter().take(SHOWN).map(GuestClaims::new).collect(),
        attribution,
        ran_then_total: ran.then.len(),
        said_later_total: ran.later.len(),
        ran_then: shown(&ran.then),
        said_later: shown(&ran.later),
        events_total: events.len(),
        events: events.into_iter().take(SHOWN).map(EventSeen::new).collect(),
        notes,
        host_facts,
    }
}

/// Where the host saw two witnesses disagree about the VM, or the VM use addresses that were not its own.
fn suspicious<'a>(facts: &HostFacts, range: TimeRange, view: &'a View) -> Vec<&'a Event> {
    let of_vm = |event: &&Event| event.host == facts.host && event.domain == Some(facts.domain);
    let kinds = [EventKind::Spoofing, EventKind::Contradiction];
    let then = |event: &&Event| range.touches(event.time, Some(event.time));
    view.facts.events.iter().filter(of_vm).filter(then).filter(|event| kinds.contains(&event.what)).collect()
}

pub(super) fn facts_of(instance: Option<&Instance>, flow: &Flow) -> HostFacts {
    instance.map_or_else(|| HostFacts::of_flow(flow), HostFacts::of_instance)
}

fn hull(flows: &[(&Flow, MatchedOn)]) -> Option<TimeRange> {
    let from = flows.iter().map(|(flow, _)| flow.first).min()?;
    let to = flows.iter().map(|(flow, _)| flow.last).max()?;
    TimeRange::new(from, to)
}

/// Payloads that ran then, by what their guest says.
#[derive(Default)]
struct Ran<'a> {
    /// Announced before it was over.
    then: Vec<&'a Payload>,
    /// Announced afterwards.
    later: Vec<&'a Payload>,
}

fn ran_then<'a>(facts: &HostFacts, range: TimeRange, view: &'a View) -> Ran<'a> {
    let payloads = view.facts.payloads.iter().filter(|p| p.domain == facts.domain && p.host == facts.host);
    let ran = payloads
        .filter(|p| p.claim.holder.is_payload())
        .filter(|p| range.touches(lease::began(p, &view.facts), p.end.map(|end| end.received)));
    let (then, later) = ran.partition(|p| p.received <= range.to);
    Ran { then, later }
}

fn shown(payloads: &[&Payload]) -> Vec<GuestClaims> {
    payloads.iter().take(SHOWN).map(|payload| GuestClaims::new(payload)).collect()
}

fn notes(group: &Group<'_>, quality: Quality) -> Vec<String> {
    let mut notes = Vec::new();
    let facts = &group.host_facts;
    if facts.start.is_none() {
        notes.push("no record of the VM itself was found; what is known of it comes from the flow".to_owned());
    }
    if let Some(payload) = group.payload {
        notes.extend(vo_contradiction(facts.vo.as_ref(), &payload.claim));
    } else if facts.vo.is_none() {
        notes.push("the VM's tenant is mapped to no VO".to_owned());
    }
    notes.extend(conflict_note(group.conflicting));
    if group.payload.is_none() && quality != Quality::Instance {
        notes.push("the payload's record was not found in the ledgers asked".to_owned());
    }
    if let Some((flow, _)) = group.flows.iter().find(|(flow, _)| flow.src_expected == Expected::No) {
        let (ip, time) = (flow.local().0, flow.last);
        let (_, basis) = vestigo_model::expected(&facts.expected_addresses, &facts.learnt_addresses, ip, time);
        let not_given = match basis {
            Some(Basis::Dhcp) => "that no DHCP server had given it, nor had it announced it (spoofed)",
            _ => "that the cloud had not given it (spoofed, or the metadata was behind)",
        };
        notes.push(format!("the VM used an address {not_given}"));
    }
    notes
}

/// The addresses that the cloud, or a DHCP server, gave the tap then.
pub(super) fn given_to(tap: &Tap, range: TimeRange) -> impl Iterator<Item = IpAddr> {
    let then = move |learnt: &&Learnt| learnt.by == Basis::Dhcp && range.touches(learnt.since, learnt.until);
    tap.expected.iter().copied().chain(tap.learnt.iter().filter(then).map(|learnt| learnt.ip))
}

/// VMs that were given the address at that time and are no candidate by a flow.
fn given<'a>(question: &WhoQuestion, view: &'a View, groups: &BTreeMap<Key, Group<'a>>) -> Vec<&'a Instance> {
    let instances = view.facts.instances.iter();
    instances
        .filter(|i| question.range.touches(i.start, i.end.map(|end| end.time)))
        .filter(|i| question.instance.as_ref().is_none_or(|instance| *instance == i.id))
        .filter(|i| i.taps.iter().any(|tap| given_to(tap, question.range).any(|ip| same(ip, question.ip))))
        .filter(|i| !groups.keys().any(|(host, domain, _, _)| *host == i.host && *domain == i.domain))
        .collect()
}

/// VMs behind a translation that no flow fits: those that were given the hidden address.
fn behind(
    question: &WhoQuestion,
    view: &View,
    hidden: &[Hidden<'_>],
    groups: &BTreeMap<Key, Group<'_>>,
) -> Vec<Candidate> {
    let mut found: BTreeMap<(&HostId, DomainUuid, Timestamp), Candidate> = BTreeMap::new();
    let fits = |hidden: &Hidden<'_>| view.flows.iter().any(|flow| about(question, flow) && hidden.fits(flow));
    for hidden in hidden.iter().filter(|hidden| !fits(hidden)) {
        let may = |i: &&Instance| {
            hidden.is_given_to(i)
                && question.instance.as_ref().is_none_or(|instance| *instance == i.id)
                && question.range.touches(i.start, i.end.map(|end| end.time))
                && !groups.keys().any(|(host, domain, _, _)| *host == i.host && *domain == i.domain)
        };
        for instance in view.facts.instances.iter().filter(may) {
            let key = (&instance.host, instance.domain, instance.start);
            found.entry(key).or_insert_with(|| behind_only(instance, hidden, question, view));
        }
    }
    found.into_values().collect()
}

fn behind_only(instance: &Instance, hidden: &Hidden<'_>, question: &WhoQuestion, view: &View) -> Candidate {
    let mut candidate = given_only(instance, question, view);
    candidate.attribution.reason = format!(
        "the host translated {} to {} then, and this VM was given {}; no flow record of the VM fits",
        Endpoint::new(hidden.face.local),
        Endpoint::new(hidden.face.public),
        hidden.face.local.0,
    );
    candidate
}

fn given_only(instance: &Instance, question: &WhoQuestion, view: &View) -> Candidate {
    let host_facts = HostFacts::of_instance(instance);
    let ran = ran_then(&host_facts, question.range, view);
    let events = suspicious(&host_facts, question.range, view);
    let unmapped = host_facts.vo.is_none().then(|| "the VM's tenant is mapped to no VO".to_owned());
    Candidate {
        flows: Vec::new(),
        totals: Totals::default(),
        folded: None,
        inside_tunnels: 0,
        also_seen: Vec::new(),
        peers_given: Vec::new(),
        scitags: Vec::new(),
        guest_claims: None,
        later_claims: Vec::new(),
        attribution: Link {
            quality: Quality::Instance,
            reason: "the VM was given this address then, but no flow that matches the question was seen".to_owned(),
        },
        ran_then_total: ran.then.len(),
        said_later_total: ran.later.len(),
        ran_then: shown(&ran.then),
        said_later: shown(&ran.later),
        events_total: events.len(),
        events: events.into_iter().take(SHOWN).map(EventSeen::new).collect(),
        notes: unmapped.into_iter().collect(),
        host_facts,
    }
}

fn peers(question: &WhoQuestion, view: &View) -> Vec<PeerSighting> {
    let mut sightings: BTreeMap<(HostId, DomainUuid, Option<Timestamp>), PeerSighting> = BTreeMap::new();
    for flow in &view.flows {
        let (ip, port) = flow.peer();
        let asked =
            flow.notes.folded.is_none() && same(ip, question.ip) && question.port.is_none_or(|asked| asked == port);
        if !asked || !about(question, flow) {
            continue;
        }
        let instance = interval(&view.facts.instances, flow);
        let key = (flow.host.clone(), flow.domain, instance.map(|i| i.start));
        let sighting = sightings.entry(key).or_insert_with(|| PeerSighting {
            host_facts: facts_of(instance, flow),
            first: flow.first,
            last: flow.last,
            flows: 0,
            vm: Endpoint::new(flow.local()),
        });
        sighting.last = sighting.last.max(flow.last);
        sighting.flows += 1;
    }
    sightings.into_values().collect()
}
