//! Shows that the fuzzer is led by coverage: bytes that nobody guesses, compared one after the other. `tests/fuzz/run` expects this
//! target to be found out within seconds, and believes no other target before.
#![no_main]

use std::hint::black_box;

/// A branch of its own for every byte: a loop would be one branch, whose count soon says no more.
macro_rules! nested {
    ($data:ident, $at:expr, ) => { panic!("found, as it should be") };
    ($data:ident, $at:expr, $byte:literal $($rest:literal)*) => {
        if $data.get(black_box($at)) == Some(&$byte) {
            black_box($at);
            nested!($data, $at + 1, $($rest)*);
        }
    };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    nested!(data, 0, b'v' b'e' b's' b't' b'i' b'g' b'o' b'!');
});
