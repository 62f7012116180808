#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;
use vestigo_model::Label;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtHXgpUl4kt0QmP0mbsOPAQ3Cyf8IcgWcTfCbGtLGzE";

fn why(text: &str) -> String {
    AllowedSigners::parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn every_mistake_names_its_line_and_the_remedy() {
    let cases = [
        (format!("# fine\n\nalice@x cert-authority {KEY}"), "line 3: cert-authority is not supported"),
        (KEY.into(), "line 1: no public key"),
        ("alice".into(), "line 1: only one word"),
        (format!("alice valid-after=\"20260101\" {KEY}"), "with a Z at its end"),
        (format!("alice valid-after=\"20269901Z\" {KEY}"), "is not a time"),
        (format!("alice colour=\"red\" {KEY}"), "option \"colour\" is unknown"),
        (format!("alice namespaces=git {KEY}"), "is not written as"),
        (format!("alice namespaces=\"a\",namespaces=\"b\" {KEY}"), "twice"),
        (format!("alice valid-after=\"20270101Z\",valid-before=\"20260101Z\" {KEY}"), "not after valid-after"),
        (format!("\"\" {KEY}"), "no principal"),
        (format!("\"alice {KEY}"), "not closed"),
        (format!("alice\u{7} {KEY}"), "control character"),
        // The name of the key's kind, inside its Base64, is quoted by the parser (found by fuzzing).
        (
            "ann ssh-ed25519 AAAAC3NzaC1lZDI1EAAT5ANAIEwoom5ZkG+E4NoEXfU20Kcie+YiJ9P3pqTs/OUBmKTt".into(),
            "line 1: no public key",
        ),
    ];
    for (text, expected) in cases {
        let said = why(&text);
        assert!(said.contains(expected), "{text}: {said}");
        assert!(!said.contains(char::is_control), "{said:?}");
    }
    assert_eq!(AllowedSigners::parse(&vec![b'#'; MAX_FILE + 1]), Err(SignersError::Size));
    assert_eq!(AllowedSigners::parse(b"\xff"), Err(SignersError::Text));
}

#[test]
fn principals_are_unambiguous() {
    let user = |subject: &str, issuer: &str| {
        principal(&User { issuer: Label::new(issuer).unwrap(), subject: Label::new(subject).unwrap() })
    };
    assert_eq!(user("alice", "https://iam.example/"), "alice@https://iam.example/");
    assert_eq!(user("*,!a@b", "x"), "%2A%2C%21a%40b@x");
    assert_ne!(user("a@b", "c"), user("a", "b@c"));
    assert_eq!(user("/DC=ch/CN=Änne X", "ca"), "/DC=ch/CN=%C3%84nne%20X@ca");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "[ -~\t\n]{0,200}") {
        let _ = AllowedSigners::parse(&bytes);
        let _ = AllowedSigners::parse(text.as_bytes());
        let _ = AllowedSigners::parse(format!("a {text} {KEY}").as_bytes());
        let _ = AllowedSigners::default().revoke(text.as_bytes());
    }

    #[test]
    fn lines_round_trip(
        principals in "[!-~&&[^\"#]][ -~&&[^\"]]{0,30}",
        namespaces in prop::option::of("[ -~&&[^\"\\\\]]{1,20}"),
        after in prop::option::of(0..2_000_000_000i64),
    ) {
        let at = |s: i64| Timestamp::from_nanos(s * 1_000_000_000);
        let key = PublicKey::from_openssh(KEY).unwrap().key_data().clone();
        let (valid_after, valid_before) = (after.map(at), after.map(|s| at(s + 1)));
        let signer = Signer { principals, namespaces, valid_after, valid_before, key };
        let file = AllowedSigners::parse(signer.to_string().as_bytes()).unwrap();
        prop_assert_eq!(file.signers(), vec![&signer]);
    }
}
