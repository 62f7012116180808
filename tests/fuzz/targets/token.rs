//! A bearer token that a payload is to be given, and the file with an issuer's keys. The bytes up to the first NUL are the key file, if
//! there is one; the rest is the token.
#![no_main]

use std::time::Duration;

use guest_agent::identity::{
    jwt,
    keys::{IssuerKeys, TokenKeys, Verified},
    token::{TokenMark, TokenPolicy, check_payload_token},
};
use vestigo_model::Timestamp;

/// An issuer whose key the fuzzer has seen only the public half of.
const KEYS: &[u8] = include_bytes!("../corpus/token.keys");
const TOKEN: &[u8] = include_bytes!("../corpus/token.jwt");

fn sentence(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 2048, "a sentence of {} bytes", text.len());
    assert!(!text.contains(char::is_control), "control characters in {text:?}");
}

fn keys(data: &[u8]) {
    match IssuerKeys::parse(data) {
        Ok(keys) => {
            let mut all = TokenKeys::default();
            all.add(keys.clone()).ok();
            assert!(all.add(keys).is_err(), "an issuer is believed once");
        }
        Err(error) => sentence(&error),
    }
}

fn token(data: &[u8]) {
    let now = Timestamp::from_nanos(1_790_000_000_000_000_000);
    let mut believed = TokenKeys::default();
    believed.add(IssuerKeys::parse(KEYS).expect("the key file is good")).expect("the first issuer");
    let policy = TokenPolicy { opaque: data.len() % 2 == 0, max_left: Duration::from_secs(24 * 3600) };
    if let Err(error) = jwt::parse(data) {
        sentence(&error);
    }
    let facts = match check_payload_token(data, &[], &believed, policy, now) {
        Ok(facts) => facts,
        Err(error) => return sentence(&error),
    };
    let mark = TokenMark::of(data).expect("a token that passes has a mark");
    assert!(check_payload_token(data, &[mark], &believed, policy, now).is_err(), "the pilot's own is refused");
    let Some(claims) = facts.claims else { return };
    assert!(claims.expires > now && claims.expires.since(now) <= policy.max_left);
    assert!(claims.scopes.iter().all(|scope| !scope.to_ascii_lowercase().starts_with("compute.")), "{:?}", claims.scopes);
    if facts.verified == Verified::Yes {
        let signed = |bytes: &[u8]| jwt::parse(bytes).expect("it was read before").signed;
        assert_eq!(signed(data), signed(TOKEN), "the issuer signed one token only");
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.iter().position(|byte| *byte == 0) {
        Some(end) => {
            keys(&data[..end]);
            token(&data[end + 1..]);
        }
        None => token(data),
    }
});
