//! What a VM's own traffic says of its VO (scitags.org): a second witness, and a guest's claim like the others.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
};

use serde::{Deserialize, Serialize};
use vestigo_model::{Flow, SciTag, SciTagSource, Vo, scitags};

use super::parts::{Endpoint, MatchedOn};

/// Different marks shown per candidate.
const SHOWN: usize = 20;

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

/// Where the marks disagree with the tenant's VO: stated, never resolved. hostd keeps a mark by flow label only where so many of the VM's
/// flows bear it that it is no chance.
pub(crate) fn contradictions(claims: &[SciTagClaim], tenant: Option<&Vo>) -> Vec<String> {
    let Some(tenant) = tenant else { return Vec::new() };
    let names: BTreeSet<&str> = claims.iter().filter_map(|claim| claim.name.as_deref()).collect();
    let others = names.into_iter().filter(|name| !is_named_after(tenant.as_str(), name));
    let words = |name| {
        format!(
            "contradiction: the VM's traffic says it is experiment {name}'s (SciTag), but the VM belongs to a tenant of VO {tenant}"
        )
    };
    others.map(words).collect()
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

    fn said(experiment: u16) -> [SciTagClaim; 1] {
        let name = scitags::experiment_name(experiment).map(str::to_owned);
        [SciTagClaim { experiment, name, activity: 1, by: SciTagSource::Firefly, conversations: 1 }]
    }

    #[test]
    fn disagreement_is_a_contradiction_and_another_way_to_write_a_name_is_none() {
        let vo = |name: &str| Vo::new(name).unwrap();
        assert_eq!(contradictions(&said(3), Some(&vo("cms"))), [""; 0]);
        let words = contradictions(&said(3), Some(&vo("atlas")));
        assert!(words.len() == 1 && words[0].starts_with("contradiction: ") && words[0].contains("cms"), "{words:?}");
        assert_eq!(contradictions(&said(3), None), [""; 0], "nothing to disagree with");
        assert_eq!(contradictions(&said(1), Some(&vo("atlas"))), [""; 0], "the default");
        for (name, number) in [("belle", 6), ("skatelescope.eu", 7), ("xenon.biggrid.nl", 14)] {
            assert_eq!(contradictions(&said(number), Some(&vo(name))), [""; 0]);
        }
    }
}
