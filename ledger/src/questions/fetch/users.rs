//! Which payloads are a user's: by the filters of their files first, without the rest of them.

use std::collections::BTreeSet;

use vestigo_model::{DomainUuid, HostId, Label, Payload, PayloadUid, TimeRange};

use crate::{
    error::LedgerError,
    questions::{
        View,
        pilots::{self, PilotsAnswer, PilotsQuestion},
        reach::Reach,
    },
    reader::{Facts, Kinds, Ledger, Scope, Wish},
};

/// A user as asked for.
pub(super) struct Asked<'a> {
    pub(super) subject: &'a Label,
    pub(super) issuer: Option<&'a Label>,
}

impl Asked<'_> {
    fn is(&self, payload: &Payload) -> bool {
        let user = &payload.claim.user;
        payload.claim.holder.is_payload()
            && user.subject == *self.subject
            && self.issuer.is_none_or(|issuer| user.issuer == *issuer)
    }
}

impl Scope<'_> {
    /// The user's payloads with their VMs, and whatever else was claimed under the same runs.
    pub(super) fn of_user(&self, asked: &Asked<'_>, range: TimeRange) -> Result<Facts, LedgerError> {
        let found = self.payloads_by(&["user", "user_subject"], &[asked.subject.to_string()])?;
        let mine: Vec<&Payload> = found.iter().filter(|payload| asked.is(payload)).collect();
        self.runs(&mine, range)
    }

    /// These runs, whole: a run's first record, which holds, may name another user, and lie in another segment.
    pub(super) fn runs(&self, runs: &[&Payload], range: TimeRange) -> Result<Facts, LedgerError> {
        if runs.is_empty() {
            return Ok(Facts::default());
        }
        let hosts: BTreeSet<HostId> = runs.iter().map(|payload| payload.host.clone()).collect();
        let domains: BTreeSet<DomainUuid> = runs.iter().map(|payload| payload.domain).collect();
        let uids: BTreeSet<PayloadUid> = runs.iter().map(|payload| payload.claim.uid).collect();
        let texts: Vec<String> = uids.iter().map(ToString::to_string).collect();
        let near = self.only(|segment| hosts.contains(&segment.host)).ruled_by(&["payload"], &texts)?;
        let wish = |kinds, payloads| Wish {
            range,
            kinds,
            hosts: Some(hosts.clone()),
            domains: Some(domains.clone()),
            payloads,
        };
        let claims = near.facts(&wish(Kinds::PAYLOADS, Some(uids)))?;
        let vms = near.facts(&wish(Kinds::INSTANCES, None))?;
        Ok(Facts { instances: vms.instances, unreadable: claims.unreadable.max(vms.unreadable), ..claims })
    }
}

impl Ledger {
    /// Which pilots ran payloads of a user.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn pilots(&self, question: &PilotsQuestion) -> Result<PilotsAnswer, LedgerError> {
        self.asked(|| self.ask_pilots(question))
    }

    fn ask_pilots(&self, question: &PilotsQuestion) -> Result<PilotsAnswer, LedgerError> {
        let extent = self.extent()?;
        let Some(range) = question.range.or(extent) else {
            return Ok(PilotsAnswer::default());
        };
        let scope = self.scope(range)?;
        let asked = Asked { subject: &question.subject, issuer: question.issuer.as_ref() };
        let facts = scope.of_user(&asked, range)?;
        let hosts = facts.payloads.iter().map(|payload| payload.host.clone()).collect();
        let (facts, reach) = scope.with_coverage(facts, range, &hosts)?;
        Ok(pilots::answer(question, range, &View { facts, reach, extent, ..View::default() }))
    }
}

impl Scope<'_> {
    /// Adds what could be seen in the window, and the VMs of hosts that are looked into for that.
    pub(super) fn with_coverage(
        &self,
        mut facts: Facts,
        window: TimeRange,
        hosts: &BTreeSet<HostId>,
    ) -> Result<(Facts, Reach), LedgerError> {
        let reach = Reach::of(self, window, hosts);
        if !reach.look.is_empty() {
            let wish = |kinds| Wish { kinds, hosts: Some(reach.look.clone()), ..Wish::all(window) };
            let said = self.facts(&wish(Kinds::COVERAGE))?;
            let ran = self.facts(&wish(Kinds::INSTANCES))?;
            let key = |one: &vestigo_model::Instance| (one.host.clone(), one.domain, one.start);
            let known: BTreeSet<_> = ran.instances.iter().map(key).collect();
            facts.instances.retain(|one| !known.contains(&key(one)));
            facts.instances.extend(ran.instances);
            facts.coverage = said.coverage;
            facts.unreadable = facts.unreadable.max(said.unreadable).max(ran.unreadable);
        }
        Ok((facts, reach))
    }
}
