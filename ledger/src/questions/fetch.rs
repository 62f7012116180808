//! What each question reads, and in which order: the answers themselves are pure functions beside this.

mod last;
mod story;
mod users;
mod who;

use std::collections::BTreeSet;

use vestigo_model::{DomainUuid, Flow, HostId, LEASE_REST, TimeRange};

use super::{TOLERANCE, View, ips, nat, reach::Reach};
use crate::{
    error::LedgerError,
    reader::{Facts, FlowQuery, Kinds, Ledger, Scope, Wish},
};

/// A flow in a window may have begun before it, and its payload may have ended before the flow (late packets, while the lease
/// rested): its VM and its payload must be found all the same.
fn hull<'a>(range: TimeRange, flows: impl Iterator<Item = &'a Flow>) -> TimeRange {
    flows.fold(range, |hull, flow| TimeRange {
        from: hull.from.min(flow.first - LEASE_REST - TOLERANCE),
        to: hull.to.max(flow.last + TOLERANCE),
    })
}

/// What is to be known of which VMs.
struct Needs {
    /// VMs and payloads of this time.
    held: TimeRange,
    /// Statements and events of this time.
    window: TimeRange,
    /// Hosts whose VMs matter.
    hosts: BTreeSet<HostId>,
    /// VMs whose payloads matter; `None`: of all these hosts.
    domains: Option<BTreeSet<DomainUuid>>,
    events: bool,
}

impl Scope<'_> {
    /// The facts that an answer rests on, and what is known of the coverage of its window: hosts that do not matter to the answer
    /// are looked into only where their manifests do not say that all is well.
    fn gather(&self, needs: &Needs) -> Result<(Facts, Reach), LedgerError> {
        let reach = Reach::of(self, needs.window, &needs.hosts);
        let both = || Some(needs.hosts.union(&reach.look).cloned().collect());
        let of = |kinds, range, hosts, domains| {
            if hosts == Some(BTreeSet::new()) {
                return Ok(Facts::default());
            }
            self.facts(&Wish { range, kinds, hosts, domains, payloads: None })
        };
        let ran = of(Kinds::INSTANCES, needs.held, both(), None)?;
        let claims = of(Kinds::PAYLOADS, needs.held, Some(needs.hosts.clone()), needs.domains.clone())?;
        let said = of(Kinds::COVERAGE, needs.window, Some(reach.look.clone()), None)?;
        let happened = match needs.events {
            true => of(Kinds::EVENTS, needs.window, Some(needs.hosts.clone()), needs.domains.clone())?,
            false => Facts::default(),
        };
        // Damage of a log is counted by each of the four: it is one.
        let unreadable = [&ran, &claims, &said, &happened].iter().map(|facts| facts.unreadable).max().unwrap_or(0);
        let facts = Facts {
            instances: ran.instances,
            payloads: claims.payloads,
            conflicting: claims.conflicting,
            coverage: said.coverage,
            events: happened.events,
            unreadable,
        };
        Ok((facts, reach))
    }
}

impl Ledger {
    /// What could be seen in a window, for answers that are not made here.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn coverage(&self, window: TimeRange) -> Result<super::coverage::WindowCoverage, LedgerError> {
        self.asked(|| {
            let scope = self.scope(window)?;
            let needs = Needs { held: window, window, hosts: BTreeSet::new(), domains: None, events: false };
            let (facts, reach) = scope.gather(&needs)?;
            let shown = BTreeSet::new();
            Ok(super::coverage::summarise(window, &facts, self.extent()?, &shown, &reach))
        })
    }

    /// Which addresses a VO (or one of its pilots) used.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn ips(&self, question: &ips::IpsQuestion) -> Result<ips::IpsAnswer, LedgerError> {
        self.asked(|| self.ask_ips(question))
    }

    fn ask_ips(&self, question: &ips::IpsQuestion) -> Result<ips::IpsAnswer, LedgerError> {
        let scope = self.scope(question.range)?;
        let translations = nat::merged(scope.translations(question.range)?);
        // Flows go by one by one, so that how far they reach out of the range is not known before: records end after minutes.
        let held = TimeRange {
            from: question.range.from - ACTIVE - LEASE_REST - TOLERANCE,
            to: question.range.to + ACTIVE + TOLERANCE,
        };
        let needs = Needs { held, window: question.range, hosts: scope.hosts(), domains: None, events: false };
        let (facts, reach) = scope.gather(&needs)?;
        let view = View { facts, reach, translations, extent: self.extent()?, ..View::default() };
        let mut collector = ips::Collector::new(question, &view);
        let query = FlowQuery { vo: Some(question.vo.clone()), ..FlowQuery::all(question.range) };
        scope.each_flow(&query, &mut |flow| {
            collector.take(&flow);
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(collector.finish())
    }
}

/// Longer than any one record of a flow is (hostd cuts them at its active timeout, minutes).
const ACTIVE: std::time::Duration = std::time::Duration::from_secs(3600);
