//! The investigator's questions. One module each: a question, an answer, and a pure function between them over the flows
//! and facts that touch the window. Every answer keeps host facts and guest claims in separate objects and carries the
//! coverage of its window.

pub mod coverage;
pub mod ips;
pub mod lease;
pub mod parts;
pub mod pilots;
mod reasons;
pub mod who;

use std::time::Duration;

use vestigo_model::{Flow, LEASE_REST, TimeRange};

use crate::{
    error::LedgerError,
    reader::{Facts, Ledger},
    segment::scan::FlowFilter,
};

/// How far host's and guest's clocks, and a record's and its packet's time, may lie apart before a join is refused.
pub const TOLERANCE: Duration = Duration::from_secs(2);

/// What a question is answered from.
#[derive(Debug, Default, Clone)]
pub struct View {
    /// Flows that may matter, by first packet.
    pub flows: Vec<Flow>,
    /// Facts that touch the window or one of the flows.
    pub facts: Facts,
    /// What the ledger speaks of altogether.
    pub extent: Option<TimeRange>,
}

impl Ledger {
    fn view(&self, filter: &FlowFilter) -> Result<View, LedgerError> {
        let flows = self.flows(filter)?;
        // A flow in the window may have begun before it, and its payload may have ended before the flow (late packets, while
        // the lease rested): its VM and its payload must be found all the same.
        let hull = flows.iter().fold(filter.range, |hull, flow| TimeRange {
            from: hull.from.min(flow.first - LEASE_REST - TOLERANCE),
            to: hull.to.max(flow.last + TOLERANCE),
        });
        let facts = self.facts(hull)?;
        Ok(View { flows, facts, extent: self.extent() })
    }

    /// Who used an address at a time.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn who(&self, question: &who::WhoQuestion) -> Result<who::WhoAnswer, LedgerError> {
        let filter = FlowFilter { range: question.range, ip: Some(question.ip), vo: None };
        Ok(who::answer(question, &self.view(&filter)?))
    }

    /// Which addresses a VO (or one of its pilots) used.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn ips(&self, question: &ips::IpsQuestion) -> Result<ips::IpsAnswer, LedgerError> {
        let filter = FlowFilter { range: question.range, ip: None, vo: Some(question.vo.clone()) };
        Ok(ips::answer(question, &self.view(&filter)?))
    }

    /// Which pilots ran payloads of a user.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn pilots(&self, question: &pilots::PilotsQuestion) -> Result<pilots::PilotsAnswer, LedgerError> {
        let extent = self.extent();
        let Some(range) = question.range.or(extent) else {
            return Ok(pilots::PilotsAnswer::default());
        };
        let view = View { flows: Vec::new(), facts: self.facts(range)?, extent };
        Ok(pilots::answer(question, range, &view))
    }
}
