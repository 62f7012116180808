//! What a VM's own traffic says of its VO (scitags.org): a second witness, and a guest's claim like the others.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Flow, SciTag, SciTagSource, Vo, scitags};

use super::parts::{Endpoint, MatchedOn};

/// Different marks shown per candidate.
const SHOWN: usize = 20;
/// An ordinary system puts a random number into each flow's label; so many conversations with the same mark are no chance.
const NO_CHANCE: usize = 2;

/// What some of a candidate's conversations say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SciTagClaim {
    /// Experiment number.
    pub experiment: u16,
    /// The registry's name of it, if it has one.
    pub name: Option<String>,
    /// Activity number.
    pub activity: u8,
    /// Where it was said.
    pub by: SciTagSource,
    /// How many conversations say so.
    pub conversations: usize,
}

/// Protocol, the VM's side, the other side.
type Conversation = (u8, Endpoint, Endpoint);

/// The marks of a candidate's flows, those of most conversations first; at most twenty.
pub(crate) fn claims(flows: &[(&Flow, MatchedOn)]) -> Vec<SciTagClaim> {
    let mut marks: HashMap<SciTag, HashSet<Conversation>> = HashMap::new();
    for (flow, _) in flows {
        if let Some(tag) = flow.notes.scitag {
            let conversation = (flow.proto, Endpoint::new(flow.local()), Endpoint::new(flow.peer()));
            marks.entry(tag).or_default().insert(conversation);
        }
    }
    let claim = |(tag, of): (SciTag, HashSet<Conversation>)| SciTagClaim {
        experiment: tag.experiment,
        name: scitags::experiment_name(tag.experiment).map(str::to_owned),
        activity: tag.activity,
        by: tag.by,
        conversations: of.len(),
    };
    let mut claims: Vec<SciTagClaim> = marks.into_iter().map(claim).collect();
    claims.sort_by_key(|claim| (Reverse(claim.conversations), claim.experiment, claim.activity, claim.by.as_str()));
    claims.truncate(SHOWN);
    claims
}

/// Where the marks disagree with the tenant's VO: stated, never resolved.
pub(crate) fn contradictions(claims: &[SciTagClaim], tenant: Option<&Vo>) -> Vec<String> {
    let Some(tenant) = tenant else { return Vec::new() };
    let mut experiments: BTreeMap<&str, (SciTagSource, usize)> = BTreeMap::new();
    for claim in claims {
        if let Some(name) = claim.name.as_deref().filter(|name| !is_named_after(tenant.as_str(), name)) {
            let known = experiments.entry(name).or_insert((claim.by, 0));
            known.1 += claim.conversations;
            if claim.by == SciTagSource::Firefly {
                known.0 = claim.by;
            }
        }
    }
    let words = |(name, (by, conversations)): (&str, (SciTagSource, usize))| {
        let says = format!(
            "the VM's traffic says it is experiment {name}'s (SciTag, {by}), but the VM belongs to a tenant of VO {tenant}"
        );
        if by == SciTagSource::FlowLabel && conversations < NO_CHANCE {
            format!("{says}; one flow label may be so by chance")
        } else {
            format!("contradiction: {says}")
        }
    };
    experiments.into_iter().map(words).collect()
}

/// A VO is seldom called exactly like its experiment: `belle` and `belleii`, `skatelescope.eu` and `ska`.
fn is_named_after(vo: &str, experiment: &str) -> bool {
    let vo: String = vo.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    vo.contains(experiment) || (vo.len() > 2 && experiment.starts_with(&vo))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn said(experiment: u16, by: SciTagSource, conversations: usize) -> SciTagClaim {
        let name = scitags::experiment_name(experiment).map(str::to_owned);
        SciTagClaim { experiment, name, activity: 1, by, conversations }
    }

    #[test]
    fn disagreement_is_a_contradiction_unless_it_may_be_chance() {
        let vo = |name: &str| Vo::new(name).unwrap();
        let cms = [said(3, SciTagSource::Firefly, 1)];
        assert_eq!(contradictions(&cms, Some(&vo("cms"))), [""; 0]);
        let words = contradictions(&cms, Some(&vo("atlas")));
        assert!(words.len() == 1 && words[0].starts_with("contradiction: ") && words[0].contains("cms"), "{words:?}");
        let label = |n| contradictions(&[said(3, SciTagSource::FlowLabel, n)], Some(&vo("atlas")));
        assert!(label(1)[0].ends_with("by chance") && label(2)[0].starts_with("contradiction: "));
        assert_eq!(contradictions(&cms, None), [""; 0], "nothing to disagree with");
        assert_eq!(contradictions(&[said(1, SciTagSource::Firefly, 9)], Some(&vo("atlas"))), [""; 0], "the default");
        for (name, number) in [("belle", 6), ("skatelescope.eu", 7), ("xenon.biggrid.nl", 14)] {
            assert_eq!(contradictions(&[said(number, SciTagSource::Firefly, 1)], Some(&vo(name))), [""; 0]);
        }
    }
}
