//! *Which pilots ran payloads of this user?*

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vestigo_model::{DomainUuid, HostId, Instance, InstanceId, Label, Payload, PilotId, TimeRange, Vo};

use super::{
    View,
    coverage::{self, WindowCoverage},
    parts::{GuestClaims, conflict_note, vo_contradiction},
};

/// Conflicting claims shown per pilot; the notes count them all.
const SHOWN: usize = 100;

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PilotsQuestion {
    /// The user's name.
    pub subject: Label,
    /// Who vouches for it; without it, every issuer that uses the name.
    pub issuer: Option<Label>,
    /// When; without it, everything that the ledger holds.
    pub range: Option<TimeRange>,
}

/// One pilot in one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PilotsRow {
    /// The pilot job: a guest claim, as are the payloads.
    pub pilot: PilotId,
    /// The tenant's VO, a host fact; `None` is *unmapped*.
    pub vo: Option<Vo>,
    /// The cloud's id of the VM, a host fact; `None` when the ledger holds no record of the VM.
    pub instance: Option<InstanceId>,
    /// Its domain.
    pub domain: DomainUuid,
    /// The hypervisor.
    pub host: HostId,
    /// The user's payloads there, by start.
    pub payloads: Vec<GuestClaims>,
    /// Said by the guest later under the run id of one of them, and different: the first claim holds. At most a hundred.
    #[serde(default)]
    pub later_claims: Vec<GuestClaims>,
    /// Contradictions.
    pub notes: Vec<String>,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PilotsAnswer {
    /// By pilot.
    pub rows: Vec<PilotsRow>,
    /// What could be seen; `None` when the ledger is empty.
    pub coverage: Option<WindowCoverage>,
}

/// Answers the question from what the ledger gave.
#[must_use]
pub fn answer(question: &PilotsQuestion, range: TimeRange, view: &View) -> PilotsAnswer {
    let mut rows: BTreeMap<(PilotId, HostId, DomainUuid, Option<InstanceId>), PilotsRow> = BTreeMap::new();
    let mut payloads: Vec<&Payload> = view.facts.payloads.iter().filter(|p| is_meant(question, range, p)).collect();
    payloads.sort_by_key(|p| p.received);
    for payload in payloads {
        let instance = interval(&view.facts.instances, payload);
        let id = instance.map(|i| i.id.clone());
        let key = (payload.claim.pilot.clone(), payload.host.clone(), payload.domain, id.clone());
        let row = rows.entry(key).or_insert_with(|| PilotsRow {
            pilot: payload.claim.pilot.clone(),
            vo: instance.and_then(|i| i.vo.clone()),
            instance: id,
            domain: payload.domain,
            host: payload.host.clone(),
            payloads: Vec::new(),
            later_claims: Vec::new(),
            notes: Vec::new(),
        });
        let note = vo_contradiction(row.vo.as_ref(), &payload.claim);
        row.notes.extend(note.filter(|note| !row.notes.contains(note)));
        let uid = payload.claim.uid;
        let conflicting = view.facts.conflicting_with(&payload.host, payload.domain, uid);
        row.notes.extend(conflict_note(conflicting).map(|note| format!("run {uid}: {note}")));
        let room = SHOWN.saturating_sub(row.later_claims.len());
        row.later_claims.extend(conflicting.iter().take(room).map(GuestClaims::new));
        row.payloads.push(GuestClaims::new(payload));
    }
    let shown: BTreeSet<_> = rows.values().map(|row| (row.host.clone(), row.domain)).collect();
    let coverage = coverage::summarise(range, &view.facts, view.extent, &shown, &view.reach);
    PilotsAnswer { rows: rows.into_values().collect(), coverage: Some(coverage) }
}

fn is_meant(question: &PilotsQuestion, range: TimeRange, payload: &Payload) -> bool {
    let user = &payload.claim.user;
    // What a VM says of its own traffic names no person.
    payload.claim.holder.is_payload()
        && user.subject == question.subject
        && question.issuer.as_ref().is_none_or(|issuer| user.issuer == *issuer)
        && range.touches(payload.received.min(payload.claimed), payload.end.map(|end| end.received))
}

/// The interval of the VM's life in which the payload was announced.
fn interval<'a>(instances: &'a [Instance], payload: &Payload) -> Option<&'a Instance> {
    instances
        .iter()
        .filter(|i| i.domain == payload.domain && i.host == payload.host && i.start <= payload.received)
        .max_by_key(|i| i.start)
}
