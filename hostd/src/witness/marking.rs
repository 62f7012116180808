//! Whether a VM marks its packets by flow label at all. Pure.
//!
//! Nothing in a flow label says that it is a SciTag. An ordinary system puts a random number into it, the same for all packets of a
//! flow, and one random number in 37 names an experiment of the registry. What no chance brings about is that many flows of one VM
//! name the same one: only then are its labels taken for marks.

use std::collections::BTreeMap;

/// Flows that must have named the experiment.
const ENOUGH: u32 = 8;
/// One in so many of all flows with a label must name it: by chance it is one in 512.
const SHARE: u32 = 4;
/// Flows after which older ones count half.
const MEMORY: u32 = 4096;

/// The flow labels of one VM.
#[derive(Debug, Clone, Default)]
pub struct Marking {
    flows: u32,
    /// Experiment numbers have nine bits, so there are at most 512.
    by_experiment: BTreeMap<u16, u32>,
}

impl Marking {
    /// A flow has a label that would name this experiment.
    pub fn note(&mut self, experiment: u16) {
        if self.flows >= MEMORY {
            self.flows /= 2;
            self.by_experiment.values_mut().for_each(|count| *count /= 2);
            self.by_experiment.retain(|_, count| *count > 0);
        }
        self.flows += 1;
        *self.by_experiment.entry(experiment).or_default() += 1;
    }

    /// Whether the VM marks flows as this experiment's.
    #[must_use]
    pub fn means(&self, experiment: u16) -> bool {
        let count = self.by_experiment.get(&experiment).copied().unwrap_or(0);
        count >= ENOUGH && count >= self.flows / SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_labels_are_no_marks() {
        let mut marking = Marking::default();
        let mut label = 1u32;
        for _ in 0..100_000 {
            // A full-period generator over the nine bits' parent range (Numerical Recipes).
            label = label.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [high, low, ..] = label.to_be_bytes();
            marking.note(u16::from_be_bytes([high & 1, low]));
        }
        assert!((0..512).all(|experiment| !marking.means(experiment)));
    }

    #[test]
    fn a_vm_that_marks_is_believed_to_after_a_few_flows() {
        let mut marking = Marking::default();
        (0..ENOUGH - 1).for_each(|_| marking.note(2));
        assert!(!marking.means(2));
        marking.note(2);
        assert!(marking.means(2) && !marking.means(3));
        (0..100).for_each(|other| marking.note(other));
        assert!(!marking.means(2), "nine of a hundred");
    }
}
