//! What a manifest says about its segment, so that most questions need not look inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use vestigo_model::{Coverage, DomainUuid, Event, EventKind, Fact, Instance, TapName, TimeRange, Timestamp};

use super::content::Content;
use crate::{
    manifest::{MAX_ADDRESSES, MAX_BLIND},
    questions::coverage,
};

/// Every address that its records know of on the VMs' side, see [`crate::Manifest::addresses`].
pub(crate) fn addresses(content: &Content) -> Option<Vec<IpAddr>> {
    let mut all = BTreeSet::new();
    for row in &content.flows.rows {
        all.insert(row.own_ip().to_canonical());
        all.extend(row.post_nat.map(|nat| nat.ip.to_canonical()));
        if all.len() > MAX_ADDRESSES {
            return None;
        }
    }
    for row in &content.facts {
        match &row.record.fact {
            Fact::Instance(instance) => all.extend(given(instance)),
            Fact::Event(event) if event.what == EventKind::NatBinding => all.extend(ends(event)),
            _ => {}
        }
    }
    (all.len() <= MAX_ADDRESSES).then(|| all.into_iter().collect())
}

fn given(instance: &Instance) -> impl Iterator<Item = IpAddr> {
    let taps = instance.taps.iter();
    taps.flat_map(|tap| tap.expected.iter().copied().chain(tap.learnt.iter().map(|one| one.ip)))
        .map(|ip| ip.to_canonical())
}

/// Both ends of both tuples: the VM may be any of them.
fn ends(event: &Event) -> impl Iterator<Item = IpAddr> {
    let keys = ["orig-src", "orig-dst", "reply-src", "reply-dst"];
    let texts = keys.into_iter().filter_map(|key| event.detail.get(key));
    texts.filter_map(|text| text.parse::<SocketAddr>().ok()).map(|end| end.ip().to_canonical())
}

/// Each VM's run as it was recorded last.
fn instances(content: &Content) -> Vec<&Instance> {
    let mut last: BTreeMap<(DomainUuid, Timestamp), &Instance> = BTreeMap::new();
    for row in &content.facts {
        if let Fact::Instance(instance) = &row.record.fact {
            last.insert((instance.domain, instance.start), instance);
        }
    }
    last.into_values().collect()
}

/// Taps of the VMs that ran; a VM without one counts as one.
pub(crate) fn points(content: &Content) -> u64 {
    let taps: BTreeSet<(DomainUuid, Option<&TapName>)> = instances(content)
        .into_iter()
        .flat_map(|instance| {
            let without = instance.taps.is_empty().then_some((instance.domain, None));
            instance.taps.iter().map(|tap| (instance.domain, Some(&tap.name))).chain(without)
        })
        .collect();
    u64::try_from(taps.len()).unwrap_or(u64::MAX)
}

/// Within the time that its statements speak of, what they leave unseen or unsaid of what ran, see [`crate::Manifest::blind`].
pub(crate) fn blind(content: &Content, hull: Option<TimeRange>) -> Option<Vec<TimeRange>> {
    let Some(hull) = hull else { return Some(Vec::new()) };
    let mut statements: Vec<&Coverage> = content
        .facts
        .iter()
        .filter_map(|row| match &row.record.fact {
            Fact::Coverage(coverage) => Some(coverage),
            _ => None,
        })
        .collect();
    statements.sort_by_key(|statement| statement.from);
    let of_host = statements.iter().filter(|one| one.domain.is_none()).copied();
    let mut all: Vec<TimeRange> = of_host.clone().filter(|one| coverage::hides(&one.state)).map(stretch).collect();
    let mut by_vm: BTreeMap<DomainUuid, Vec<Coverage>> = BTreeMap::new();
    for one in &statements {
        if let Some(domain) = one.domain {
            by_vm.entry(domain).or_default().push((*one).clone());
        }
    }
    for instance in instances(content).into_iter().filter(|i| hull.touches(i.start, i.end.map(|end| end.time))) {
        let mut about = by_vm.get(&instance.domain).cloned().unwrap_or_default();
        about.extend(of_host.clone().cloned());
        about.sort_by_key(|statement| statement.from);
        all.extend(coverage::unseen(hull, instance, &about));
    }
    let joined = join(all);
    (joined.len() <= MAX_BLIND).then_some(joined)
}

const fn stretch(statement: &Coverage) -> TimeRange {
    TimeRange { from: statement.from, to: statement.to }
}

/// Stretches that touch become one, in order.
pub(crate) fn join(mut stretches: Vec<TimeRange>) -> Vec<TimeRange> {
    stretches.sort_by_key(|stretch| (stretch.from, stretch.to));
    let mut joined: Vec<TimeRange> = Vec::new();
    for next in stretches {
        match joined.last_mut() {
            Some(last) if next.from <= last.to => last.to = last.to.max(next.to),
            _ => joined.push(next),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    fn range((from, length): (i64, i64)) -> TimeRange {
        TimeRange { from: Timestamp::from_nanos(from), to: Timestamp::from_nanos(from + length) }
    }

    proptest! {
        #[test]
        fn joined_stretches_hold_the_same_instants_in_order(list in proptest::collection::vec((0..60_i64, 0..9_i64), 0..12)) {
            let stretches: Vec<_> = list.into_iter().map(range).collect();
            let joined = join(stretches.clone());
            let inside = |all: &[TimeRange], at: i64| all.iter().any(|s| s.from.as_nanos() <= at && at <= s.to.as_nanos());
            for at in 0..80 {
                prop_assert_eq!(inside(&stretches, at), inside(&joined, at));
            }
            prop_assert!(joined.windows(2).all(|pair| pair[0].to < pair[1].from));
        }
    }
}
