//! Translations that the host told apart from flow records: one that no record took up, came late, or fits more than one. They are joined with
//! flows when a question is asked. The tuple at the tap is all that ties the two together, so whatever fits is named.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use vestigo_model::{DomainUuid, End, Face, Flow, HostId, Instance, Label, PostNat, TimeRange, Timestamp, Translation};

use super::{
    parts::{Endpoint, MatchedOn},
    who::{WhoQuestion, given_to},
};
use crate::segment::scan::same;

/// A translation as an answer shows it: seen from the end whose public side was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranslationSeen {
    /// The hypervisor.
    pub host: HostId,
    /// `host`, or the network namespace that translated.
    pub namespace: Label,
    /// Conntrack zone.
    pub zone: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// The end behind the NAT, as a tap sees it.
    pub vm: Endpoint,
    /// Whom it talks to, as a tap sees it.
    pub peer: Endpoint,
    /// What the other side saw.
    pub public: Endpoint,
    /// Who the other side was.
    pub public_peer: Endpoint,
    /// It did not exist before; `None` when nobody watched then.
    pub not_before: Option<Timestamp>,
    /// It existed until then at least.
    pub until: Timestamp,
    /// Whether it had ended then.
    pub ended: bool,
    /// Why it was told: `no-flow`, `late`, `several`, `both-ends`.
    pub why: Label,
}

/// A translation and the end of it that a question is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hidden<'a> {
    pub(crate) translation: &'a Translation,
    pub(crate) face: Face,
}

impl<'a> Hidden<'a> {
    /// Every end that the world knows otherwise than a tap does.
    pub(crate) fn all(translations: &'a [Translation]) -> impl Iterator<Item = Self> {
        let of = |translation: &'a Translation| translation.faces().map(|face| Self { translation, face });
        translations
            .iter()
            .flat_map(of)
            .filter(|hidden| hidden.face.is_hidden() || hidden.face.peer != hidden.face.public_peer)
    }

    /// Those whose public side the question names.
    pub(crate) fn asked(question: &WhoQuestion, translations: &'a [Translation]) -> Vec<Self> {
        let is = |(ip, port): End, asked_ip, asked_port: Option<u16>| {
            same(ip, asked_ip) && asked_port.is_none_or(|asked| asked == port)
        };
        let named = |hidden: &Self| {
            let face = hidden.face;
            hidden.held_in(question.range)
                && question.proto.is_none_or(|proto| proto == hidden.translation.proto)
                && is(face.public, question.ip, question.port)
                && question.peer.is_none_or(|(ip, port)| is(face.public_peer, ip, port) || is(face.peer, ip, port))
        };
        Self::all(translations).filter(named).collect()
    }

    fn held_in(&self, range: TimeRange) -> bool {
        self.translation.not_before.is_none_or(|begin| begin <= range.to) && range.from <= self.translation.until
    }

    /// Whether the flow can be this end's.
    pub(crate) fn fits(&self, flow: &Flow) -> bool {
        let equal = |a: End, b: End| same(a.0, b.0) && a.1 == b.1;
        flow.host == self.translation.host
            && flow.proto == self.translation.proto
            && equal(flow.local(), self.face.local)
            && equal(flow.peer(), self.face.peer)
            && TimeRange::new(flow.first, flow.last).is_some_and(|range| self.held_in(range))
    }

    /// Whether the VM was given the address of this end while it was translated.
    pub(crate) fn is_given_to(&self, instance: &Instance) -> bool {
        let life = TimeRange { from: instance.start, to: instance.end.map_or(self.translation.until, |end| end.time) };
        let translated =
            TimeRange { from: self.translation.not_before.unwrap_or(life.from), to: self.translation.until };
        instance.host == self.translation.host
            && instance.start <= self.translation.until
            && self.held_in(life)
            && instance.taps.iter().flat_map(|tap| given_to(tap, translated)).any(|ip| same(ip, self.face.local.0))
    }

    pub(crate) const fn public(&self) -> PostNat {
        PostNat { ip: self.face.public.0, port: self.face.public.1 }
    }

    pub(crate) fn seen(&self) -> TranslationSeen {
        let (told, face) = (self.translation, self.face);
        TranslationSeen {
            host: told.host.clone(),
            namespace: told.namespace.clone(),
            zone: told.zone,
            proto: told.proto,
            vm: Endpoint::new(face.local),
            peer: Endpoint::new(face.peer),
            public: Endpoint::new(face.public),
            public_peer: Endpoint::new(face.public_peer),
            not_before: told.not_before,
            until: told.until,
            ended: told.ended,
            why: told.why.clone(),
        }
    }
}

/// Hidden ends by what a tap calls them: a day of a VO has as many flows as it likes, and so many translations.
pub(crate) struct Index<'a> {
    all: Vec<Hidden<'a>>,
    by: HashMap<(u8, Endpoint, Endpoint), Vec<usize>>,
}

impl<'a> Index<'a> {
    /// Of those whose public side another than the tap sees.
    pub(crate) fn new(translations: &'a [Translation]) -> Self {
        let all: Vec<_> = Hidden::all(translations).filter(|hidden| hidden.face.is_hidden()).collect();
        let mut by: HashMap<_, Vec<usize>> = HashMap::new();
        for (number, Hidden { translation, face }) in all.iter().enumerate() {
            let key = (translation.proto, Endpoint::new(face.local), Endpoint::new(face.peer));
            by.entry(key).or_default().push(number);
        }
        Self { all, by }
    }

    /// Those that the flow can be, by number.
    pub(crate) fn fitting(&self, flow: &Flow) -> impl Iterator<Item = (usize, &Hidden<'a>)> {
        let key = (flow.proto, Endpoint::new(flow.local()), Endpoint::new(flow.peer()));
        let numbers = self.by.get(&key).into_iter().flatten();
        let hidden = numbers.filter_map(|number| Some((*number, self.all.get(*number)?)));
        hidden.filter(|(_, hidden)| hidden.fits(flow))
    }

    /// All, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Hidden<'a>)> {
        self.all.iter().enumerate()
    }
}

/// The addresses behind the one asked for.
pub(crate) fn behind(question: &WhoQuestion, translations: &[Translation]) -> BTreeSet<IpAddr> {
    let hidden = Hidden::asked(question, translations);
    hidden.iter().map(|hidden| hidden.face.local.0.to_canonical()).filter(|ip| !same(*ip, question.ip)).collect()
}

/// Gives records without a translation the one that was asked for and fits them.
pub(crate) fn join(question: &WhoQuestion, flows: &mut [Flow], translations: &[Translation]) {
    let mut hidden = Hidden::asked(question, translations);
    hidden.retain(|hidden| hidden.face.is_hidden());
    for flow in flows.iter_mut().filter(|flow| flow.post_nat.is_none()) {
        flow.post_nat = hidden.iter().find(|hidden| hidden.fits(flow)).map(Hidden::public);
    }
}

/// A conversation as the world saw it: host, protocol, the VM's side, the other.
pub(crate) type Outside = (HostId, u8, End, End);

fn outside(flow: &Flow, on: MatchedOn, hidden: &[Hidden<'_>]) -> Option<Outside> {
    let canonical = |(ip, port): End| (ip.to_canonical(), port);
    let public = flow.post_nat.filter(|_| on == MatchedOn::PostNat)?;
    let peer = hidden.iter().find(|hidden| hidden.fits(flow)).map_or(flow.peer(), |hidden| hidden.face.public_peer);
    Some((flow.host.clone(), flow.proto, canonical((public.ip, public.port)), canonical(peer)))
}

/// Conversations of the world's that fit flows of several VMs: only one VM can have had each at a time.
pub(crate) fn shared<'a>(
    flows: impl Iterator<Item = &'a (&'a Flow, MatchedOn)>,
    hidden: &[Hidden<'_>],
) -> BTreeSet<Outside> {
    let mut of: BTreeMap<Outside, BTreeSet<DomainUuid>> = BTreeMap::new();
    for (flow, on) in flows {
        if let Some(outside) = outside(flow, *on, hidden) {
            of.entry(outside).or_default().insert(flow.domain);
        }
    }
    of.into_iter().filter(|(_, domains)| domains.len() > 1).map(|(outside, _)| outside).collect()
}

/// What a candidate's flows owe to translations, and what is not certain about it.
pub(crate) fn notes(flows: &[(&Flow, MatchedOn)], shared: &BTreeSet<Outside>, hidden: &[Hidden<'_>]) -> Vec<String> {
    let mut notes = Vec::new();
    let is_shared =
        |(flow, on): &(&Flow, MatchedOn)| outside(flow, *on, hidden).is_some_and(|outside| shared.contains(&outside));
    if flows.iter().any(is_shared) {
        notes.push(
            "flows of several VMs fit one conversation that the world saw: only one of them had it, and which cannot be told (the same \
             private address and ports in networks that the host keeps apart)"
                .to_owned(),
        );
    }
    let told = flows.iter().filter(|(flow, _)| hidden.iter().any(|hidden| hidden.fits(flow))).count();
    if told > 0 {
        notes.push(format!(
            "flow records that the host's account of its translations fits, kept apart from the records: {told}"
        ));
    }
    notes
}

/// One of each, with the last that was told of it.
pub(crate) fn merged(mut told: Vec<Translation>) -> Vec<Translation> {
    let key =
        |t: &Translation| (t.host.clone(), t.namespace.clone(), t.zone, t.proto, t.original, t.reply, t.not_before);
    told.sort_by(|a, b| key(a).cmp(&key(b)).then(a.until.cmp(&b.until)));
    let mut merged: Vec<Translation> = Vec::new();
    for one in told {
        match merged.last_mut().filter(|last| key(last) == key(&one)) {
            Some(last) => *last = one,
            None => merged.push(one),
        }
    }
    merged
}
