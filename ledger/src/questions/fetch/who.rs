//! What `who` reads: first where the address can stand on a VM's side at all, then where those it talked to can.

use std::{collections::BTreeSet, net::IpAddr};

use vestigo_model::{DomainUuid, Flow, HostId, Instance};

use super::{Needs, hull};
use crate::{
    error::LedgerError,
    questions::{
        View, flooded, name_in,
        nat::{self, Hidden},
        who::{self, WhoAnswer, WhoQuestion, given_to},
    },
    reader::{FlowQuery, Ledger, Scope},
    segment::scan::same,
};

impl Ledger {
    /// Who used an address at a time.
    ///
    /// # Errors
    /// A segment that cannot be read.
    pub fn who(&self, question: &WhoQuestion) -> Result<WhoAnswer, LedgerError> {
        self.asked(|| self.ask_who(question))
    }

    fn ask_who(&self, question: &WhoQuestion) -> Result<WhoAnswer, LedgerError> {
        let scope = self.scope(question.range)?;
        let view = self.view(question, &scope, false)?;
        let mut answer = who::answer(question, &view);
        if answer.candidates.is_empty() {
            // Only then is the address looked for as a peer: of any VM, on any host.
            answer = who::answer(question, &self.view(question, &scope, true)?);
        }
        self.finish(&scope, &mut answer)?;
        Ok(answer)
    }

    fn view(&self, question: &WhoQuestion, scope: &Scope<'_>, everywhere: bool) -> Result<View, LedgerError> {
        let range = question.range;
        let own = BTreeSet::from([question.ip.to_canonical()]);
        let translations = nat::merged(scope.holding(&own).translations(range)?);
        let mut asked = nat::behind(question, &translations);
        asked.extend(own);
        let near = scope.holding(&asked);
        let of = |ips: &BTreeSet<IpAddr>| FlowQuery { ips: ips.clone(), ..FlowQuery::all(range) };
        let mut flows = near.flows(&of(&asked))?;
        nat::join(question, &mut flows, &translations);
        // The other ends of what was found may be VMs of other hosts, which know it by any of its names.
        let names = who::other_names(question, &flows);
        let mut all = ends(question, &flows, &asked, &translations);
        all.extend(names.iter().chain(&asked));
        let far = if everywhere { scope.only(|_| true) } else { scope.holding(&all) };
        let known: BTreeSet<_> = near.segments.iter().map(|segment| segment.digest).collect();
        let rest = far.only(|segment| !known.contains(&segment.digest)).sealed_only();
        flows.extend(rest.flows(&of(&asked))?);
        nat::join(question, &mut flows, &translations);
        flows.sort_by_key(|flow| (flow.first, flow.last));
        let mut beside = if names.is_empty() { Vec::new() } else { far.flows(&of(&names))? };
        beside.retain(|flow| name_in(flow, &asked).is_none());
        let any = BTreeSet::from(flooded::ANY);
        let mut floods = scope.holding(&any).floods(&of(&any))?;
        floods.retain(flooded::is_of_any_address);
        let all_flows = || flows.iter().chain(&beside).chain(&floods);
        let mut hosts: BTreeSet<HostId> = all_flows().map(|flow| flow.host.clone()).collect();
        if !everywhere {
            hosts.extend(far.hosts());
        }
        let held = hull(range, flows.iter().chain(&beside));
        let mut needs = Needs { held, window: range, hosts, domains: Some(BTreeSet::new()), events: true };
        let (facts, _) = scope.gather(&Needs { events: false, hosts: needs.hosts.clone(), ..Needs::at(&needs) })?;
        let mut domains: BTreeSet<DomainUuid> = all_flows().map(|flow| flow.domain).collect();
        let hidden = Hidden::asked(question, &translations);
        let matters =
            |instance: &&Instance| is_given(instance, question) || hidden.iter().any(|one| one.is_given_to(instance));
        domains.extend(facts.instances.iter().filter(matters).map(|instance| instance.domain));
        needs.domains = Some(domains);
        let (facts, reach) = scope.gather(&needs)?;
        drop(hidden);
        Ok(View { flows, beside, floods, facts, reach, extent: self.extent()?, translations })
    }
}

impl Needs {
    fn at(other: &Self) -> Self {
        Self {
            held: other.held,
            window: other.window,
            hosts: BTreeSet::new(),
            domains: Some(BTreeSet::new()),
            events: false,
        }
    }
}

fn is_given(instance: &Instance, question: &WhoQuestion) -> bool {
    instance.taps.iter().any(|tap| given_to(tap, question.range).any(|ip| same(ip, question.ip)))
}

/// Whom the VMs found talked to.
fn ends(
    question: &WhoQuestion,
    flows: &[Flow],
    asked: &BTreeSet<IpAddr>,
    translations: &[vestigo_model::Translation],
) -> BTreeSet<IpAddr> {
    let is_own = |flow: &&Flow| {
        let own = [Some(flow.local().0), flow.post_nat.map(|nat| nat.ip)];
        own.into_iter().flatten().any(|ip| asked.contains(&ip.to_canonical()))
    };
    let peers = flows.iter().filter(is_own).map(|flow| flow.peer().0.to_canonical());
    let hidden = Hidden::asked(question, translations);
    let faces = hidden.iter().flat_map(|one| [one.face.peer.0, one.face.public_peer.0].map(|ip| ip.to_canonical()));
    peers.chain(faces).collect()
}
