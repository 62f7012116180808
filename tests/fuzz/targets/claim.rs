//! A payload's claim as a guest words it: what passes the check is within its bounds and survives being written and read.
#![no_main]

use vestigo_model::{
    PayloadClaim,
    link::{MAX_FRAME, decode},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if data.len() >= MAX_FRAME {
        return;
    }
    let Ok(claim) = decode::<PayloadClaim>(data) else { return };
    if claim.check().is_err() {
        return;
    }
    let written = serde_json::to_vec(&claim).expect("a claim can be written");
    // Escapes can make a text longer, at most six bytes for one.
    assert!(written.len() <= 6 * MAX_FRAME, "what is kept of a claim is bounded");
    assert_eq!(decode::<PayloadClaim>(&written).expect("what was written can be read"), claim);
});
