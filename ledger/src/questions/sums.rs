//! What a candidate's flow records count: each packet once, and what is not told apart in a sum of its own.

use serde::{Deserialize, Serialize};
use vestigo_model::Flow;

use super::{
    parts::{MatchedOn, Totals},
    who::WhoQuestion,
};

/// Conversations that were folded because their VM had more of them at once than the host keeps apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldedSum {
    /// How many, at most.
    pub conversations: u64,
    /// What the records that stand for them count; their peers were not kept.
    #[serde(flatten)]
    pub totals: Totals,
}

/// What a candidate's records count, each packet once.
#[derive(Default)]
pub(crate) struct Sums {
    pub(crate) totals: Totals,
    pub(crate) folded: FoldedSum,
    pub(crate) inside_tunnels: u64,
}

impl Sums {
    pub(crate) fn of(flows: &[(&Flow, MatchedOn)]) -> Self {
        let mut sums = Self::default();
        for (flow, _) in flows {
            match (flow.notes.tunnel, flow.notes.folded) {
                (Some(_), _) => sums.inside_tunnels += 1,
                (None, Some(folded)) => {
                    sums.folded.conversations = sums.folded.conversations.saturating_add(folded.flows);
                    sums.folded.totals.add(flow);
                }
                (None, None) => sums.totals.add(flow),
            }
        }
        sums
    }

    pub(crate) fn notes(&self, question: &WhoQuestion) -> Vec<String> {
        let mut notes = Vec::new();
        let FoldedSum { conversations, totals } = self.folded;
        if totals.flows > 0 {
            let one = match (question.peer, question.port) {
                (Some((ip, _)), _) => format!("; one with {ip} may or may not be among them"),
                (None, Some(port)) => format!("; one from port {port} may or may not be among them"),
                (None, None) => String::new(),
            };
            notes.push(format!(
                "the VM had more conversations at once than the host keeps apart (a scan, a flood): up to {conversations} were folded \
                 into {}, counted in full, but whom they were with was not kept{one}",
                records(totals.flows)
            ));
        }
        if self.inside_tunnels > 0 {
            notes.push(format!(
                "{} of packets inside a tunnel: shown, but in no sum, for the tunnel's own flow has them",
                records(self.inside_tunnels)
            ));
        }
        notes
    }
}

fn records(count: u64) -> String {
    if count == 1 { "1 record".to_owned() } else { format!("{count} records") }
}
