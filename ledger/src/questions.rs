//! The investigator's questions. One module each: a question, an answer, and a pure function between them over the flows
//! and facts that touch the window. Every answer keeps host facts and guest claims in separate objects and carries the
//! coverage of its window.

pub mod coverage;
pub mod elsewhere;
pub mod flooded;
mod icmp;
pub mod ips;
pub mod lease;
pub mod nat;
pub mod parts;
pub mod pilots;
mod reasons;
pub mod scitags;
pub mod sums;
pub mod who;

use std::time::Duration;

use vestigo_model::{Flow, LEASE_REST, TimeRange, Translation};

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
    /// Flows with another name of a VM that the question found, behind or before the hypervisor's NAT.
    pub beside: Vec<Flow>,
    /// Records of VMs that flooded from more addresses than the host keeps apart: any address may be in them.
    pub floods: Vec<Flow>,
    /// Facts that touch the window or one of the flows.
    pub facts: Facts,
    /// What the ledger speaks of altogether.
    pub extent: Option<TimeRange>,
    /// Translations that the host told apart from flow records, and that may have held in the window.
    pub translations: Vec<Translation>,
}

/// Other names of the VMs found that are looked for. Behind one address stand no more VMs than a host runs.
const NAMES: usize = 64;

impl Ledger {
    fn view(
        &self,
        range: TimeRange,
        flows: Vec<Flow>,
        beside: Vec<Flow>,
        translations: Vec<Translation>,
    ) -> Result<View, LedgerError> {
        // A flow in the window may have begun before it, and its payload may have ended before the flow (late packets, while
        // the lease rested): its VM and its payload must be found all the same.
        let hull = flows.iter().chain(&beside).fold(range, |hull, flow| TimeRange {
            from: hull.from.min(flow.first - LEASE_REST - TOLERANCE),
            to: hull.to.max(flow.last + TOLERANCE),
        });
        let facts = self.facts(hull)?;
        Ok(View { flows, beside, floods: Vec::new(), facts, extent: self.extent(), translations })
    }

    /// Who used an address at a time.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn who(&self, question: &who::WhoQuestion) -> Result<who::WhoAnswer, LedgerError> {
        let filter = |ip| FlowFilter { range: question.range, ip: Some(ip), vo: None };
        let translations = nat::merged(self.translations(question.range)?);
        let behind = nat::behind(question, &translations);
        let asked: Vec<FlowFilter> = [question.ip].into_iter().chain(behind).take(NAMES).map(filter).collect();
        let mut flows: Vec<Flow> = Vec::new();
        for (number, one) in asked.iter().enumerate() {
            let known = |flow: &Flow| asked.iter().take(number).any(|earlier| earlier.matches(flow));
            flows.extend(self.flows(one)?.into_iter().filter(|flow| !known(flow)));
        }
        flows.sort_by_key(|flow| (flow.first, flow.last));
        nat::join(question, &mut flows, &translations);
        let mut beside: Vec<Flow> = Vec::new();
        for name in who::other_names(question, &flows).into_iter().take(NAMES) {
            let known = |flow: &Flow| asked.iter().any(|earlier| earlier.matches(flow));
            beside.extend(self.flows(&filter(name))?.into_iter().filter(|flow| !known(flow)));
        }
        let mut floods: Vec<Flow> = Vec::new();
        for any in flooded::ANY {
            floods.extend(self.flows(&filter(any))?.into_iter().filter(flooded::is_of_any_address));
        }
        let view = self.view(question.range, flows, beside, translations)?;
        Ok(who::answer(question, &View { floods, ..view }))
    }

    /// Which addresses a VO (or one of its pilots) used.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn ips(&self, question: &ips::IpsQuestion) -> Result<ips::IpsAnswer, LedgerError> {
        let filter = FlowFilter { range: question.range, ip: None, vo: Some(question.vo.clone()) };
        let translations = nat::merged(self.translations(question.range)?);
        Ok(ips::answer(question, &self.view(question.range, self.flows(&filter)?, Vec::new(), translations)?))
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
        let view = View { facts: self.facts(range)?, extent, ..View::default() };
        Ok(pilots::answer(question, range, &view))
    }
}
