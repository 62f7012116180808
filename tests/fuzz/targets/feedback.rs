//! Shows that the fuzzer is led by coverage: twelve bytes that nobody guesses, compared one after the other. `tests/fuzz/run` expects this
//! target to be found out within seconds, and believes no other target before.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut matched = 0;
    for (byte, wanted) in data.iter().zip(b"vestigo-2026") {
        if byte != wanted {
            return;
        }
        matched += 1;
    }
    assert!(matched < 12, "found, as it should be");
});
