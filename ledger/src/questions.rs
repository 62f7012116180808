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

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

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

/// So many addresses are looked for one by one; more of them by reading all flows once.
const NAMES: usize = 16;

/// The first of the addresses that the flow has, if any.
fn name_in(flow: &Flow, names: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let own = [Some(flow.orig_ip), Some(flow.resp_ip), flow.post_nat.map(|nat| nat.ip)];
    own.into_iter().flatten().map(|ip| ip.to_canonical()).filter(|ip| names.contains(ip)).min()
}

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

    /// The flows that have any of the addresses, each once, by first packet. How many addresses there are a guest decides, who can send from
    /// what it likes through a translation: none is left out for that.
    fn flows_of(&self, range: TimeRange, names: &BTreeSet<IpAddr>) -> Result<Vec<Flow>, LedgerError> {
        let filter = |ip| FlowFilter { range, ip, vo: None };
        let mut flows = Vec::new();
        if names.len() > NAMES {
            flows = self.flows(&filter(None))?;
            flows.retain(|flow| name_in(flow, names).is_some());
        } else {
            for name in names {
                let found = self.flows(&filter(Some(*name)))?;
                flows.extend(found.into_iter().filter(|flow| name_in(flow, names) == Some(*name)));
            }
        }
        flows.sort_by_key(|flow| (flow.first, flow.last));
        Ok(flows)
    }

    /// Who used an address at a time.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn who(&self, question: &who::WhoQuestion) -> Result<who::WhoAnswer, LedgerError> {
        let translations = nat::merged(self.translations(question.range)?);
        let mut asked = nat::behind(question, &translations);
        asked.insert(question.ip.to_canonical());
        let mut flows = self.flows_of(question.range, &asked)?;
        nat::join(question, &mut flows, &translations);
        let mut beside = self.flows_of(question.range, &who::other_names(question, &flows))?;
        beside.retain(|flow| name_in(flow, &asked).is_none());
        let mut floods = self.flows_of(question.range, &BTreeSet::from(flooded::ANY))?;
        floods.retain(flooded::is_of_any_address);
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
        let asked = self.keys().asked(question.issuer.as_ref(), &question.subject, range);
        let mut facts = self.stored_facts(range)?;
        if !asked.needs_names() {
            // Opening a name costs more than comparing a pseudonym: only those found are opened.
            facts.payloads.retain(|payload| asked.is(&payload.claim.user));
        }
        self.reveal(&mut facts)?;
        let closed = facts.payloads.iter().filter(|payload| payload.claim.withheld.is_some()).count();
        let view = View { facts, extent, ..View::default() };
        let answer = pilots::answer(&asked, range, &view);
        let notes = if asked.needs_names() { pilots::closed_note(closed) } else { self.keys().unsearchable(&asked) };
        Ok(pilots::PilotsAnswer { notes: notes.into_iter().collect(), ..answer })
    }
}
