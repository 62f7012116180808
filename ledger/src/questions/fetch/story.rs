//! What the stories of a run, a VM and a user read.

use std::{collections::BTreeSet, ops::ControlFlow};

use vestigo_model::{DomainUuid, Flow, HostId, Payload, TimeRange};

use super::{Needs, users::Asked};
use crate::{
    error::LedgerError,
    questions::{
        TOLERANCE, View,
        payload::{PayloadAnswer, PayloadQuestion, Story, Teller},
        timeline::{Historian, Subject, TimelineAnswer, TimelineQuestion},
    },
    reader::{EVER, FlowQuery, Kinds, Ledger, Scope, Wish},
};

impl Ledger {
    /// The whole story of a run.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn payload(&self, question: &PayloadQuestion) -> Result<PayloadAnswer, LedgerError> {
        self.asked(|| self.ask_payload(question))
    }

    fn ask_payload(&self, question: &PayloadQuestion) -> Result<PayloadAnswer, LedgerError> {
        let all = self.scope(EVER)?;
        let found = all.payloads_by(&["payload"], &[question.uid.to_string()])?;
        let mine: Vec<&Payload> = found.iter().filter(|payload| payload.claim.uid == question.uid).collect();
        let facts = all.runs(&mine, EVER)?;
        let mut stories = Vec::new();
        for payload in &facts.payloads {
            stories.extend(self.story(question, payload)?);
        }
        Ok(PayloadAnswer { stories })
    }

    fn story(&self, question: &PayloadQuestion, payload: &Payload) -> Result<Option<Story>, LedgerError> {
        let extent = self.extent()?;
        let until = match payload.end {
            Some(end) => end.received.max(end.claimed) + end.rest(),
            None => extent.map_or(payload.received, |extent| extent.to.max(payload.received)),
        };
        let from = payload.received.min(payload.claimed);
        let window = TimeRange { from, to: until.max(from) };
        let held = TimeRange { from: window.from - TOLERANCE, to: window.to + TOLERANCE };
        let (host, domain) = (&payload.host, payload.domain);
        let scope = self.scope(window)?.only(|segment| segment.host == *host);
        let (hosts, domains) = (BTreeSet::from([host.clone()]), Some(BTreeSet::from([domain])));
        let (facts, reach) = scope.gather(&Needs { held, window, hosts, domains, events: true })?;
        let view = View { facts, reach, extent, ..View::default() };
        let mut teller = Teller::new(question, window, &view);
        scope.each_of_vm(host, domain, held, |flow| teller.take(flow))?;
        Ok(teller.finish(host, domain))
    }

    /// What a VM or a user did, in order.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn timeline(&self, question: &TimelineQuestion) -> Result<TimelineAnswer, LedgerError> {
        self.asked(|| self.ask_timeline(question))
    }

    fn ask_timeline(&self, question: &TimelineQuestion) -> Result<TimelineAnswer, LedgerError> {
        let range = question.range;
        let scope = self.scope(range)?;
        let vms: BTreeSet<(HostId, DomainUuid)> = match &question.subject {
            Subject::Instance(id) => {
                let vms = scope.facts(&Wish { kinds: Kinds::INSTANCES, ..Wish::all(range) })?.instances;
                vms.into_iter().filter(|one| one.id == *id).map(|one| (one.host, one.domain)).collect()
            }
            Subject::User { subject, issuer } => {
                let asked = Asked { subject, issuer: issuer.as_ref() };
                let payloads = scope.of_user(&asked, range)?.payloads;
                payloads.into_iter().map(|one| (one.host, one.domain)).collect()
            }
        };
        let hosts: BTreeSet<HostId> = vms.iter().map(|(host, _)| host.clone()).collect();
        let domains = Some(vms.iter().map(|(_, domain)| *domain).collect());
        let (facts, reach) = scope.gather(&Needs { held: range, window: range, hosts, domains, events: true })?;
        let view = View { facts, reach, extent: self.extent()?, ..View::default() };
        let mut historian = Historian::new(question, &view);
        for (host, domain) in &vms {
            scope.each_of_vm(host, *domain, range, |flow| historian.take(flow))?;
        }
        Ok(historian.finish())
    }
}

impl Scope<'_> {
    fn each_of_vm(
        &self,
        host: &HostId,
        domain: DomainUuid,
        range: TimeRange,
        mut take: impl FnMut(&Flow),
    ) -> Result<(), LedgerError> {
        let query = FlowQuery { host: Some(host.clone()), domain: Some(domain), ..FlowQuery::all(range) };
        self.each_flow(&query, &mut |flow| {
            take(&flow);
            ControlFlow::Continue(())
        })
    }
}
