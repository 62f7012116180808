#![allow(clippy::unwrap_used)]
use std::{io::Read, os::fd::AsRawFd};

use base64ct::{Base64UrlUnpadded, Encoding};
use proptest::prelude::*;

use super::*;
use crate::identity::keys::IssuerKeys;

const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_nanos(NOW * 1_000_000_000)
}

/// A token in form; its signature is by nobody.
fn token(claims: &str) -> Vec<u8> {
    let part = |text: &str| Base64UrlUnpadded::encode_string(text.as_bytes());
    let end = NOW + 3600;
    let body = format!(r#"{{"iss":"https://iam.example/","sub":"alice","exp":{end},{claims}}}"#);
    format!("{}.{}.c2ln", part(r#"{"alg":"RS256"}"#), part(&body)).into_bytes()
}

fn check(token: &[u8], pilot: &[TokenMark]) -> Result<TokenFacts, TokenError> {
    check_payload_token(token, pilot, &TokenKeys::default(), TokenPolicy::default(), now())
}

#[test]
fn a_token_that_obtains_work_is_refused_wherever_the_scope_hides() {
    for claims in [
        r#""scope":"compute.create""#,
        r#""scope":"storage.read:/ compute.read openid""#,
        r#""scope":"openid\tcompute.cancel""#,
        r#""scope":"openid\u00a0compute.modify""#,
        r#""scope":"openid,compute.modify""#,
        r#""scope":"comput\u0065.create""#,
        r#""scope":"COMPUTE.CREATE""#,
        r#""scope":"compute.not-invented-yet:/x""#,
        r#""scope":"\u200bcompute.create""#,
        r#""scope":["openid","compute.create"]"#,
        r#""scope":["openid compute.create"]"#,
        r#""scope":"openid","scp":["compute.create"]"#,
        r#""scopes":"compute.create""#,
        r#""scope":"condor:/ADVERTISE_STARTD""#,
    ] {
        let refused = check(&token(claims), &[]).unwrap_err();
        assert!(matches!(refused, TokenError::Compute(_)), "{claims}: {refused}");
        assert!(refused.to_string().contains("R-ISO-11"), "{refused}");
    }
    for twice in [r#""scope":"openid","scope":"compute.create""#, r#""scope":"compute.create","scope":"openid""#] {
        let refused = check(&token(twice), &[]).unwrap_err().to_string();
        assert!(refused.contains("duplicate field `scope`"), "{refused}");
    }
    let odd = check(&token(r#""scope":{"compute.create":true}"#), &[]);
    assert!(matches!(odd, Err(TokenError::Jwt(JwtError::Format(_)))), "{odd:?}");
    for fine in [r#""scope":"storage.read:/compute.create openid""#, r#""scope":"condor:/READ""#, r#""jti":"1""#] {
        assert!(check(&token(fine), &[]).is_ok(), "{fine}");
    }
}

#[test]
fn the_pilots_own_token_is_known_again() {
    let pilots = token(r#""jti":"17","scope":"compute.create""#);
    let mark = [TokenMark::of(&pilots).unwrap()];
    let refused = |token: &[u8]| check(token, &mark).unwrap_err();
    assert_eq!(refused(&pilots), TokenError::PilotsOwn("the same bytes"));
    assert_eq!(refused(&[b" ", pilots.as_slice(), b"\n"].concat()), TokenError::PilotsOwn("the same bytes"));
    let text = String::from_utf8(pilots.clone()).unwrap();
    let resigned = text.replace(".c2ln", ".AAAA");
    assert_eq!(refused(resigned.as_bytes()), TokenError::PilotsOwn("the same claims"));
    assert_eq!(refused(&token(r#""jti":"17""#)), TokenError::PilotsOwn("the same jti"));
    let other = check(&token(r#""jti":"18""#), &mark).unwrap().claims.unwrap();
    assert!(other.pilots_subject, "another token of the same subject is recorded as such");
    assert_eq!(serde_json::from_str::<TokenMark>(&serde_json::to_string(&mark[0]).unwrap()).unwrap(), mark[0]);
}

#[test]
fn what_is_no_good_token_is_refused_with_the_remedy() {
    let said = |bytes: &[u8]| check(bytes, &[]).unwrap_err().to_string();
    assert!(said(b"-----BEGIN CERTIFICATE-----\nMII").contains("X.509 proxy"));
    assert!(said(b"\n  \n").contains("empty") && said(b"opaque-token").contains("opaque"));
    assert!(said(b"a b").contains("a byte that no bearer token has") && said(&[b'a'; 16_385]).contains("larger"));
    let unsigned = token(r#""jti":"1""#);
    let unsigned = String::from_utf8(unsigned).unwrap();
    assert!(said(unsigned.strip_suffix("c2ln").unwrap().as_bytes()).contains("not signed"));
    let opaque = TokenPolicy { opaque: true, ..TokenPolicy::default() };
    let mark = [TokenMark::of(b"opaque-token").unwrap()];
    let let_pass = |pilot| check_payload_token(b"opaque-token", pilot, &TokenKeys::default(), opaque, now());
    assert_eq!(let_pass(&[]).unwrap().claims, None);
    assert_eq!(let_pass(&mark), Err(TokenError::PilotsOwn("the same bytes")));
}

#[test]
fn times_are_judged() {
    let at = |seconds: i64| {
        let later = Timestamp::from_nanos((NOW + seconds) * 1_000_000_000);
        check_payload_token(&token(r#""nbf":1800000000.5"#), &[], &TokenKeys::default(), TokenPolicy::default(), later)
    };
    assert!(matches!(at(3600), Err(TokenError::Expired(_))) && matches!(at(-61), Err(TokenError::Early(_))));
    assert!(!at(-60).unwrap().claims.unwrap().long_lived);
    let long = |hours: i64| {
        let earlier = now() - Duration::from_secs(u64::try_from(hours * 3600).unwrap());
        check_payload_token(&token(r#""jti":"1""#), &[], &TokenKeys::default(), TokenPolicy::default(), earlier)
    };
    assert!(long(6).unwrap().claims.unwrap().long_lived);
    assert!(long(24).unwrap_err().to_string().contains("longer than the 24 hours"));
}

#[test]
fn the_sealed_token_is_read_again_and_again_and_never_changed() {
    let fd = sealed(b"abc.def.ghi\n").unwrap();
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for _ in 0..2 {
        assert_eq!(std::fs::read(&path).unwrap(), b"abc.def.ghi");
    }
    let mut file = File::from(fd);
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abc.def.ghi");
    assert!(file.write_all(b"x").is_err() && file.set_len(1).is_err() && file.set_len(100).is_err());
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions()) & 0o777, 0o444);
}

#[test]
fn key_files_with_more_or_less_than_public_keys_are_refused() {
    let said = |text: &str| IssuerKeys::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(said(r#"{"issuer":"i","keys":[]}"#).contains("no key of i is usable"));
    assert!(said(r#"{"issuer":"i","keys":[{"kty":"oct","kid":"s","k":"AAAA"}]}"#).contains("secret part"));
    assert!(said(r#"{"issuer":"i","keys":[{"kty":"RSA","d":"AAAA"}]}"#).contains("private"));
    assert!(said(r#"{"keys":[]}"#).contains("missing field `issuer`"));
    let short = format!(r#"{{"issuer":"i","keys":[{{"kty":"RSA","n":"{}","e":"AQAB"}}]}}"#, "__".repeat(64));
    assert!(said(&short).contains("2048"));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), claims in "[ -~]{0,80}") {
        let _ = check(&bytes, &[]);
        let _ = check(&token(&claims), &[]);
        let _ = TokenMark::of(&bytes);
        let _ = IssuerKeys::parse(&bytes);
        let _ = IssuerKeys::parse(format!(r#"{{"issuer":"i","keys":[{{{claims}}}]}}"#).as_bytes());
    }
}
