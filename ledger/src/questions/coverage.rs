//! What could, and what could not, be seen in a window: the part of an answer that keeps it honest.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vestigo_model::{Coverage, CoverageState, DomainUuid, HostId, Instance, InstanceId, TapName, TimeRange, Timestamp};

use super::reach::{HostBlind, Reach};
use crate::reader::Facts;

/// A hole shorter than this (1 ms) between two statements is where one ends and the next begins.
const SEAM: i64 = 1_000_000;

/// A statement about a part of the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// From, cut to the window.
    pub from: Timestamp,
    /// To, cut to the window.
    pub to: Timestamp,
    /// What.
    #[serde(flatten)]
    pub state: CoverageState,
}

/// What is known about one tap of one VM in the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The hypervisor.
    pub host: HostId,
    /// The VM.
    pub instance: InstanceId,
    /// Its domain.
    pub domain: DomainUuid,
    /// The tap; `None` for a VM without any.
    pub tap: Option<TapName>,
    /// Whether every packet of the window was seen there.
    pub complete: bool,
    /// What was stated, neighbours with the same words joined.
    pub statements: Vec<Statement>,
    /// Parts of the window that no statement speaks of.
    pub gaps: Vec<TimeRange>,
}

/// What is known of a host's own address translation in the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatPoint {
    /// The hypervisor.
    pub host: HostId,
    /// Whether all of it was followed: otherwise a public address may not lead to its VM.
    pub complete: bool,
    /// What was stated, neighbours with the same words joined.
    pub statements: Vec<Statement>,
    /// Parts of the window that no statement speaks of.
    pub gaps: Vec<TimeRange>,
}

/// The coverage of a window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowCoverage {
    /// The window.
    pub window: TimeRange,
    /// Whether every tap of every VM that ran in the window was seen completely (and there was at least one). Says nothing of `nat`.
    pub complete: bool,
    /// Taps of VMs that ran in the window.
    pub points: usize,
    /// Those of them that were seen completely.
    pub complete_points: usize,
    /// The hypervisors that anything is known of in the window.
    pub hosts: Vec<HostId>,
    /// The taps that the answer rests on, and those that were not seen completely.
    pub details: Vec<Point>,
    /// The hosts' own address translation: what answers about public addresses rest on.
    #[serde(default)]
    pub nat: Vec<NatPoint>,
    /// What the ledger speaks of altogether.
    pub ledger: Option<TimeRange>,
    /// Records that this version cannot read.
    pub unreadable: u64,
    /// Hosts whose manifests say that all of the window was seen: their statements were not read. Their taps are in `points`, as many as
    /// there were at one time.
    #[serde(default)]
    pub whole_hosts: usize,
    /// Of a long window: hosts of which something was not seen, by their manifests. Their taps are not in `points`.
    #[serde(default)]
    pub blind: Vec<HostBlind>,
    /// Hosts of whose records of about this time some were removed from the ledgers asked (their retention was over, or a full disk left
    /// them to the object store): nothing of these is in the answer.
    #[serde(default)]
    pub expired: Vec<HostId>,
    /// Names that two histories share: two hosts with one name, or a restored one that went on. What is said of one may be the other's.
    #[serde(default)]
    pub doubled: Vec<HostId>,
    /// Some hostd's newest records (minutes, as a rule) may not be read by whoever asks, and are not in the answer.
    #[serde(default)]
    pub newest_missing: bool,
}

/// Sums up the window. `shown` are the VMs that the answer names: their taps are listed even when all is well.
#[must_use]
pub fn summarise(
    window: TimeRange,
    facts: &Facts,
    extent: Option<TimeRange>,
    shown: &BTreeSet<(HostId, DomainUuid)>,
    reach: &Reach,
) -> WindowCoverage {
    let mut points: Vec<Point> = Vec::new();
    let by_manifest = |host: &HostId| reach.whole.contains_key(host) || reach.blind.iter().any(|one| one.host == *host);
    let looked_into = facts.instances.iter().filter(|instance| !by_manifest(&instance.host));
    for instance in looked_into.filter(|i| window.touches(i.start, i.end.map(|end| end.time))) {
        points.extend(points_of(window, instance, &facts.coverage));
    }
    let complete_points = points.iter().filter(|point| point.complete).count();
    let hosts: BTreeSet<HostId> = points
        .iter()
        .map(|point| point.host.clone())
        .chain(facts.coverage.iter().filter(|c| touches(c, window)).map(|c| c.host.clone()))
        .collect();
    let seen_by_manifest: u64 = reach.whole.values().sum();
    let seen_by_manifest = usize::try_from(seen_by_manifest).unwrap_or(usize::MAX);
    let complete_points = complete_points.saturating_add(seen_by_manifest);
    let total = points.len().saturating_add(seen_by_manifest);
    let hosts_down = host_wide_losses(window, &facts.coverage);
    points.retain(|point| !point.complete || shown.contains(&(point.host.clone(), point.domain)));
    let all_there = reach.blind.is_empty() && reach.expired.is_empty() && reach.doubled.is_empty();
    let named = hosts.iter().chain(reach.whole.keys()).chain(reach.blind.iter().map(|one| &one.host));
    let named: BTreeSet<HostId> = named.chain(&reach.expired).cloned().collect();
    let nat =
        hosts.iter().filter(|host| !by_manifest(host)).map(|host| nat_point(window, host, &facts.coverage)).collect();
    WindowCoverage {
        window,
        complete: total > 0 && complete_points == total && !hosts_down && facts.unreadable == 0 && all_there,
        points: total,
        complete_points,
        hosts: named.into_iter().collect(),
        details: points,
        nat,
        ledger: extent,
        unreadable: facts.unreadable,
        whole_hosts: reach.whole.len(),
        blind: reach.blind.clone(),
        expired: reach.expired.iter().cloned().collect(),
        doubled: reach.doubled.iter().cloned().collect(),
        newest_missing: reach.closed,
    }
}

fn nat_point(window: TimeRange, host: &HostId, coverage: &[Coverage]) -> NatPoint {
    let of_host = coverage.iter().filter(|c| c.host == *host && touches(c, window));
    let about: Vec<&Coverage> = of_host.filter(|c| c.state.is_of_nat()).collect();
    let gaps = gaps(window, about.iter().map(|c| (c.from, c.to)));
    let complete = gaps.is_empty() && about.iter().all(|c| c.state == CoverageState::NatOk);
    NatPoint { host: host.clone(), complete, statements: join(window, &about), gaps }
}

fn touches(coverage: &Coverage, window: TimeRange) -> bool {
    window.touches(coverage.from, Some(coverage.to))
}

/// While hostd is down a VM can come and go without a record: no point speaks of it, so the host must.
fn host_wide_losses(window: TimeRange, coverage: &[Coverage]) -> bool {
    coverage.iter().any(|c| c.domain.is_none() && touches(c, window) && matches!(c.state, CoverageState::Lost { .. }))
}

fn points_of(window: TimeRange, instance: &Instance, coverage: &[Coverage]) -> Vec<Point> {
    let end = instance.end.map_or(window.to, |end| end.time.min(window.to));
    let from = window.from.max(instance.start);
    let part = TimeRange { from: from.min(end), to: end };
    let taps: Vec<Option<&TapName>> = match instance.taps.as_slice() {
        [] => vec![None],
        taps => taps.iter().map(|tap| Some(&tap.name)).collect(),
    };
    taps.into_iter().map(|tap| point(part, instance, tap, coverage)).collect()
}

fn point(window: TimeRange, instance: &Instance, tap: Option<&TapName>, coverage: &[Coverage]) -> Point {
    let about: Vec<&Coverage> = coverage
        .iter()
        .filter(|c| c.host == instance.host && !c.state.is_of_nat() && touches(c, window))
        .filter(|c| c.domain.is_none_or(|domain| domain == instance.domain))
        .filter(|c| c.tap.as_ref().is_none_or(|name| Some(name) == tap))
        .collect();
    let gaps = gaps(window, about.iter().filter(|c| speaks_of_packets(&c.state)).map(|c| (c.from, c.to)));
    let seen = about.iter().all(|c| !is_blind(&c.state));
    Point {
        host: instance.host.clone(),
        instance: instance.id.clone(),
        domain: instance.domain,
        tap: tap.cloned(),
        complete: seen && gaps.is_empty() && tap.is_some(),
        statements: join(window, &about),
        gaps,
    }
}

/// An agent's silence hides payloads, not packets.
const fn speaks_of_packets(state: &CoverageState) -> bool {
    !matches!(state, CoverageState::AgentAbsent | CoverageState::AgentSilent)
}

const fn is_blind(state: &CoverageState) -> bool {
    matches!(state, CoverageState::Lost { .. } | CoverageState::NotCapturable { .. })
}

/// The parts of the window outside every stretch (which come in order of their start).
pub(super) fn gaps(window: TimeRange, stretches: impl Iterator<Item = (Timestamp, Timestamp)>) -> Vec<TimeRange> {
    let (mut gaps, mut seen) = (Vec::new(), None::<Timestamp>);
    for (from, to) in stretches {
        let known = seen.unwrap_or(window.from);
        if from.as_nanos().saturating_sub(known.as_nanos()) > SEAM {
            gaps.push(TimeRange { from: known, to: from });
        }
        seen = Some(known.max(to));
    }
    let known = seen.unwrap_or(window.from);
    if seen.is_none() || window.to.as_nanos().saturating_sub(known.as_nanos()) > SEAM {
        gaps.push(TimeRange { from: known, to: window.to });
    }
    gaps
}

fn join(window: TimeRange, about: &[&Coverage]) -> Vec<Statement> {
    let mut statements: Vec<Statement> = Vec::new();
    for coverage in about {
        let (from, to) = (coverage.from.max(window.from), coverage.to.min(window.to));
        match statements.iter_mut().rev().find(|s| s.state == coverage.state) {
            Some(known) if from.as_nanos().saturating_sub(known.to.as_nanos()) <= SEAM && !is_blind(&known.state) => {
                known.to = known.to.max(to);
            }
            _ => statements.push(Statement { from, to, state: coverage.state.clone() }),
        }
    }
    statements
}
