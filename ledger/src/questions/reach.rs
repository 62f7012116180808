//! What a host's manifests alone say of a window's coverage. A host of which they say that all of the window was seen and said is not
//! looked into; of a long window nothing is, and what was not seen is told by the manifests' own lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use vestigo_model::{HostId, TimeRange};

use super::coverage::gaps;
use crate::{catalog::Summary, reader::Scope};

/// Statements of a longer window are not read one by one: taps speak every minute.
const LONG: Duration = Duration::from_secs(26 * 3600);
/// Stretches listed per host; the rest is counted.
const LISTED: usize = 100;

/// A host of which not everything was seen in a long window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostBlind {
    /// The hypervisor.
    pub host: HostId,
    /// When something was unseen, or nothing was said: by its manifests. At most a hundred stretches.
    pub stretches: Vec<TimeRange>,
    /// How many stretches there are.
    pub stretches_total: usize,
}

/// What manifests say of the hosts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Hosts of which all was seen, and how many taps they had.
    pub(crate) whole: BTreeMap<HostId, u64>,
    /// Hosts of which something was not, by manifests alone.
    pub(crate) blind: Vec<HostBlind>,
    /// Hosts to be looked into.
    pub(crate) look: BTreeSet<HostId>,
    /// Hosts of whose records some were removed at the end of their time.
    pub(crate) expired: BTreeSet<HostId>,
    /// Names under which two hosts (or two histories of one) are recorded.
    pub(crate) doubled: BTreeSet<HostId>,
    /// Whether some logs may not be read.
    pub(crate) closed: bool,
}

impl Reach {
    /// What the segments of the scope say of the window. Hosts in `shown` are looked into unless the window is long.
    pub(crate) fn of(scope: &Scope<'_>, window: TimeRange, shown: &BTreeSet<HostId>) -> Self {
        let mut by_host: BTreeMap<&HostId, Vec<&Arc<Summary>>> = BTreeMap::new();
        for segment in &scope.segments {
            by_host.entry(&segment.host).or_default().push(segment);
        }
        let live = scope.live_hosts(window);
        let mut reach = Self { look: live, closed: scope.has_closed_logs(), ..Self::default() };
        let long = window.to.since(window.from) > LONG;
        if !long {
            reach.look.extend(shown.iter().cloned());
        }
        for (host, segments) in by_host {
            reach.host(host, &segments, window, long);
        }
        reach
    }

    fn host(&mut self, host: &HostId, segments: &[&Arc<Summary>], window: TimeRange, long: bool) {
        if segments.iter().zip(segments.iter().skip(1)).any(|(a, b)| a.sequence == b.sequence) {
            self.doubled.insert(host.clone());
            self.look.insert(host.clone());
        }
        let about: Vec<&Arc<Summary>> = segments.iter().copied().filter(|one| touches(one, window)).collect();
        if about.is_empty() {
            return;
        }
        if about.iter().any(|one| one.expired) {
            self.expired.insert(host.clone());
        }
        if self.look.contains(host) {
            return;
        }
        let mut points = 0;
        let mut blind = Vec::new();
        for one in &about {
            let (Some(own), Some(taps)) = (&one.blind, one.points) else {
                self.look.insert(host.clone());
                return;
            };
            points = taps.max(points);
            blind.extend(own.iter().filter(|stretch| stretch.overlaps(&window)).map(|stretch| cut(*stretch, window)));
        }
        let mut said: Vec<TimeRange> = about.iter().filter_map(|one| one.coverage).collect();
        said.sort_by_key(|range| range.from);
        blind.extend(gaps(window, said.iter().map(|range| (range.from, range.to))));
        match (blind.is_empty(), long) {
            (true, _) => _ = self.whole.insert(host.clone(), points),
            (false, false) => _ = self.look.insert(host.clone()),
            (false, true) => {
                let stretches = joined(blind);
                let stretches_total = stretches.len();
                let listed = stretches.into_iter().take(LISTED).collect();
                self.blind.push(HostBlind { host: host.clone(), stretches: listed, stretches_total });
            }
        }
    }
}

fn touches(one: &Summary, window: TimeRange) -> bool {
    one.coverage.is_some_and(|range| range.overlaps(&window))
        || one.facts.is_some_and(|facts| window.touches(facts.from, facts.to))
        || one.flows.is_some_and(|range| range.overlaps(&window))
}

fn cut(stretch: TimeRange, window: TimeRange) -> TimeRange {
    TimeRange { from: stretch.from.max(window.from), to: stretch.to.min(window.to) }
}

fn joined(mut stretches: Vec<TimeRange>) -> Vec<TimeRange> {
    stretches.sort_by_key(|range| range.from);
    let mut joined: Vec<TimeRange> = Vec::new();
    for one in stretches {
        match joined.last_mut().filter(|last| one.from <= last.to) {
            Some(last) => last.to = last.to.max(one.to),
            None => joined.push(one),
        }
    }
    joined
}
