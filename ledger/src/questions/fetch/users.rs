//! Which payloads are a user's: by the filters of their files first, without the rest of them.

use std::collections::BTreeSet;

use vestigo_model::{DomainUuid, HostId, Payload, PayloadUid, TimeRange};

use crate::{
    error::LedgerError,
    people::Asked,
    questions::{
        View,
        pilots::{self, PilotsAnswer, PilotsQuestion},
        reach::Reach,
    },
    reader::{Facts, Kinds, Ledger, Scope, Wish},
};

/// What was found of a user.
pub(super) struct OfUser {
    pub(super) facts: Facts,
    /// What could not be looked into.
    pub(super) note: Option<String>,
}

impl Scope<'_> {
    /// The user's payloads with their VMs, and whatever else was claimed under the same runs.
    pub(super) fn of_user(&self, ledger: &Ledger, asked: &Asked, range: TimeRange) -> Result<OfUser, LedgerError> {
        let found = match asked.column_values() {
            Some(values) => {
                let values: Vec<String> = values.into_iter().map(String::from).collect();
                self.payloads_by(&["user", "user_subject"], &values)?
            }
            None => self.opened_payloads(ledger, range)?,
        };
        let closed = found.iter().filter(|payload| payload.claim.withheld.is_some()).count();
        let is_meant = |payload: &&Payload| payload.claim.holder.is_payload() && asked.is(&payload.claim.user);
        let mine: Vec<&Payload> = found.iter().filter(is_meant).collect();
        let mut facts = self.runs(&mine, range)?;
        ledger.reveal(&mut facts)?;
        let note = ledger.keys().left_open(asked, closed);
        Ok(OfUser { facts, note })
    }

    /// All payloads of the range, with their names: what is left when no column can decide.
    fn opened_payloads(&self, ledger: &Ledger, range: TimeRange) -> Result<Vec<Payload>, LedgerError> {
        let mut facts = self.facts(&Wish { kinds: Kinds::PAYLOADS, ..Wish::all(range) })?;
        ledger.reveal(&mut facts)?;
        Ok(facts.payloads.into_iter().chain(facts.conflicting).collect())
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
        let asked = self.keys().asked(question.issuer.as_ref(), &question.subject, range);
        let OfUser { facts, note } = scope.of_user(self, &asked, range)?;
        let hosts = facts.payloads.iter().map(|payload| payload.host.clone()).collect();
        let (facts, reach) = scope.with_coverage(facts, range, &hosts)?;
        let view = View { facts, reach, extent, asked: Some(asked), ..View::default() };
        let answer = pilots::answer(question, range, &view);
        Ok(PilotsAnswer { notes: note.into_iter().collect(), ..answer })
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
