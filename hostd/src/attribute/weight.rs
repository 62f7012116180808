//! About how many bytes of memory a payload takes: a guest decides how much it says of each. Pure.

use vestigo_model::{Payload, PayloadClaim};

/// What a string, or an entry of a map, takes beside its text.
const ENTRY: usize = 64;
/// Identifiers, the task and the token: labels of at most 255 bytes each.
const LABELS: usize = 2048;

/// Of a payload.
pub fn weight(payload: &Payload) -> usize {
    size_of::<Payload>() + of_claim(&payload.claim)
}

/// Of what it says beyond its own size.
pub fn of_claim(claim: &PayloadClaim) -> usize {
    let command: usize = claim.command.iter().map(|argument| argument.len() + ENTRY).sum();
    let files = [&claim.executable, &claim.interpreter].into_iter().flatten();
    let paths: usize = files.map(|file| file.path.len()).sum();
    let rules: usize =
        claim.isolation.iter().map(|(rule, held)| rule.len() + held.how.as_str().len() + 2 * ENTRY).sum();
    LABELS + command + paths + rules + size_of_val(claim.leases.as_slice())
}
