//! Why the flows of a candidate are attributed as they are: each reason once, with how many flows it speaks of.

use vestigo_model::{Attribution, Quality};

use super::parts::Link;

/// Distinct reasons shown.
const SHOWN: usize = 5;

/// The reasons of many flows, in bounded space: what a guest does decides how many there are.
#[derive(Debug)]
pub(crate) struct Reasons {
    quality: Quality,
    reasons: Vec<(String, u64)>,
    /// Flows with still other reasons.
    others: u64,
}

impl Reasons {
    /// None yet.
    pub(crate) const fn new(quality: Quality) -> Self {
        Self { quality, reasons: Vec::new(), others: 0 }
    }

    /// A candidate is as good as the weakest of its flows.
    pub(crate) fn take(&mut self, attribution: &Attribution) {
        if rank(attribution.quality) < rank(self.quality) {
            self.quality = attribution.quality;
        }
        if attribution.reason.is_empty() {
            return;
        }
        if let Some((_, count)) = self.reasons.iter_mut().find(|(reason, _)| *reason == attribution.reason) {
            *count += 1;
        } else if self.reasons.len() < SHOWN {
            self.reasons.push((attribution.reason.clone(), 1));
        } else {
            self.others += 1;
        }
    }

    /// What the answer says.
    pub(crate) fn link(&self) -> Link {
        let reason = match self.reasons.as_slice() {
            [(one, _)] => one.clone(),
            many => {
                let counted = many.iter().map(|(reason, count)| format!("{reason} ({})", flows(*count)));
                let others = (self.others > 0).then(|| format!("still other reasons ({})", flows(self.others)));
                counted.chain(others).collect::<Vec<_>>().join("; ")
            }
        };
        Link { quality: self.quality, reason }
    }
}

fn flows(count: u64) -> String {
    if count == 1 { "1 flow".to_owned() } else { format!("{count} flows") }
}

const fn rank(quality: Quality) -> u8 {
    match quality {
        Quality::Lease => 3,
        Quality::Observed => 2,
        Quality::ClaimedLate => 1,
        Quality::Instance => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_bounded() {
        let mut reasons = Reasons::new(Quality::Lease);
        let mut take = |quality, reason: &str| {
            reasons.take(&Attribution { quality, payload: None, reason: reason.to_owned() });
            reasons.link()
        };
        assert_eq!(take(Quality::Lease, "").reason, "");
        assert_eq!(take(Quality::Lease, "agent late").reason, "agent late");
        assert_eq!(take(Quality::Observed, "late").reason, "agent late (1 flow); late (1 flow)", "a part is no copy");
        let mut last = take(Quality::ClaimedLate, "late");
        for number in 0..10_000 {
            last = take(Quality::Lease, &format!("story {number}"));
        }
        assert_eq!(last.quality, Quality::ClaimedLate);
        assert!(last.reason.starts_with("agent late (1 flow); late (2 flows); story 0 (1 flow); "), "{}", last.reason);
        assert!(last.reason.ends_with("story 2 (1 flow); still other reasons (9997 flows)"), "{}", last.reason);
    }
}
