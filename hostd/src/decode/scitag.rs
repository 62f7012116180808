//! The packet marking of scitags.org: what an IPv6 flow label says of the experiment and the activity.
//!
//! 20 bits: two of entropy, nine of the experiment with its lowest bit first, one of entropy, six of the activity, two of entropy.

/// Experiment and activity of a flow label. `None` for experiment 0, which is nobody's.
///
/// Nothing in a label says that it is such a mark; an ordinary stack puts a random number there.
#[must_use]
pub fn experiment_and_activity(label: u32) -> Option<(u16, u8)> {
    let reversed = (label >> 9) & 0x1ff;
    let experiment = reversed.reverse_bits() >> 23;
    let activity = (label >> 2) & 0x3f;
    let (experiment, activity) = (u16::try_from(experiment).ok()?, u8::try_from(activity).ok()?);
    (experiment != 0).then_some((experiment, activity))
}

/// The flow label that says so, with all entropy bits 0.
#[must_use]
pub fn flow_label(experiment: u16, activity: u8) -> u32 {
    let reversed = (u32::from(experiment) & 0x1ff).reverse_bits() >> 23;
    reversed << 9 | (u32::from(activity) & 0x3f) << 2
}
