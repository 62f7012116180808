#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;
use vestigo_model::*;

use super::{file::parse, *};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn claim(subject: &str) -> PayloadClaim {
    PayloadClaim {
        uid: PayloadUid(Uuid::from_u128(7)),
        holder: Holder::Payload,
        pilot: PilotId::new("p").unwrap(),
        payload: PayloadId::new("t").unwrap(),
        user: User { issuer: Label::new("https://iam.example").unwrap(), subject: Label::new(subject).unwrap() },
        vo: Vo::new("atlas").unwrap(),
        trust: Trust::AssertedByVo,
        task: None,
        token: None,
        access: None,
        executable: None,
        interpreter: None,
        command: vec![],
        leases: vec![],
        isolation: BTreeMap::new(),
        withheld: None,
    }
}

const GOOD: &str = r#"
[[ban]]
id = "one"
user = { issuer = "https://iam.example", subject = "mallory" }
reason = "attacks"

[[ban]]
id = "two"
vo = "atlas"
vm = "00000000-0000-0000-0000-000000000002"
reason = "the whole VO, in one VM"
until = "1970-01-01T00:10:00Z"

[[ban]]
id = "three"
everything = true
vm = "i-3"
reason = "a stolen VM"
"#;

#[test]
fn a_ban_holds_where_and_as_long_as_it_says() {
    let bans = parse(GOOD).unwrap();
    let instance = |name: &str| InstanceId::new(name).unwrap();
    let ids = |vm: u128, name: &str, now| -> Vec<String> {
        let of_vm = bans.of_vm(DomainUuid(Uuid::from_u128(vm)), &instance(name), at(now));
        of_vm.iter().map(|ban| ban.id.to_string()).collect()
    };
    assert_eq!(ids(1, "i-1", 0), ["one"]);
    assert_eq!(ids(2, "i-2", 0), ["one", "two"]);
    assert_eq!(ids(2, "i-2", 600), ["one"], "over");
    assert_eq!(ids(3, "i-3", 0), ["one", "three"]);
    let hit = |vm: u128, subject: &str, now| {
        bans.hit(DomainUuid(Uuid::from_u128(vm)), &instance("x"), &claim(subject), at(now))
            .map(|ban| ban.id.to_string())
    };
    assert_eq!(hit(1, "mallory", 0).as_deref(), Some("one"));
    assert_eq!(hit(1, "alice", 0), None);
    assert_eq!(hit(2, "alice", 0).as_deref(), Some("two"));
    assert_eq!(hit(2, "alice", 600), None);
}

#[test]
fn the_vms_own_traffic_is_never_banned() {
    let bans = parse("[[ban]]\nid = \"all\"\neverything = true\nreason = \"r\"\n").unwrap();
    let own = PayloadClaim { holder: Holder::System, ..claim("x") };
    let hit = |claim: &PayloadClaim| {
        bans.hit(DomainUuid(Uuid::nil()), &InstanceId::new("i").unwrap(), claim, at(0)).is_some()
    };
    assert!(hit(&claim("x")) && !hit(&own));
}

#[test]
fn every_scope_can_be_written() {
    let digest = Digest::of(b"x");
    let scopes = [
        "user = { issuer = \"i\", subject = \"s\" }".to_owned(),
        "issuer = \"i\"".to_owned(),
        "vo = \"cms\"".to_owned(),
        "pilot = \"p\"".to_owned(),
        "payload = \"t\"".to_owned(),
        "run = \"00000000-0000-0000-0000-000000000002\"".to_owned(),
        format!("executable = \"{digest}\""),
        "key = \"SHA256:abc\"".to_owned(),
        "everything = true".to_owned(),
    ];
    let all: Vec<_> = scopes
        .iter()
        .enumerate()
        .map(|(n, scope)| format!("[[ban]]\nid = \"{n}\"\nreason = \"r\"\n{scope}\n"))
        .collect();
    assert_eq!(parse(&all.concat()).unwrap().len(), scopes.len());
    assert!(parse("").unwrap().is_empty());
}

#[test]
fn mistakes_have_their_line() {
    let good = "[[ban]]\nid = \"a\"\nvo = \"cms\"\nreason = \"r\"\n";
    let cases = [
        ("reson = \"r\"\n", 5, "unknown field `reson`"),
        ("[[ban]]\nid = \"b\"\nreason = \"r\"\n", 5, "exactly one of"),
        ("[[ban]]\nid = \"b\"\nreason = \"r\"\nvo = \"cms\"\npilot = \"p\"\n", 5, "exactly one of"),
        ("[[ban]]\nid = \"b\"\nreason = \"r\"\neverything = false\n", 5, "leave it out"),
        ("[[ban]]\nid = \"b\"\nreason = \"r\"\nkey = \"abc\"\n", 5, "fingerprint"),
        ("[[ban]]\nid = \"b\"\nreason = \"r\"\nvo = \"c m s\"\n", 8, "' '"),
        ("[[ban]]\nid = \"b\"\nreason = \"r\"\nuser = { subject = \"s\" }\n", 8, "missing field `issuer`"),
        ("[[ban]]\nid = \"b\"\nreason = \"r\"\nvo = \"cms\"\nuntil = \"tomorrow\"\n", 9, "RFC 3339"),
        ("[[ban]]\nid = \"a\"\nreason = \"r\"\nvo = \"lhcb\"\n", 8, "two bans have the id"),
    ];
    for (more, line, words) in cases {
        let mistake = parse(&format!("{good}{more}")).unwrap_err();
        assert!(mistake.message.contains(words), "{mistake}");
        assert_eq!(mistake.line, line, "{mistake}");
    }
}

fn ban(id: &str, reason: &str) -> Ban {
    let text = |text: &str| Label::new(text).unwrap();
    Ban { id: text(id), scope: Scope::Issuer(text("i")), reason: text(reason), until: None }
}

#[test]
fn a_change_names_what_is_new_altered_and_gone() {
    let (a, b, altered, c) = (ban("a", "r"), ban("b", "r"), ban("b", "s"), ban("c", "r"));
    let got = change(&[a.clone(), b], &[altered, c.clone()]);
    let names = |labels: &[Label]| labels.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((names(&got.added), names(&got.lifted)), (vec!["b".into(), "c".into()], vec!["a".to_owned()]));
    assert_eq!(change(&[a.clone(), c.clone()], &[c, a]), Change::default());
}

#[test]
fn bans_of_any_length_go_into_frames_that_fit() {
    assert_eq!(frames(&[]), [HostFrame::Bans { bans: vec![], more: false }]);
    let long = "\\".repeat(255);
    let bans: Vec<Ban> = (0..MAX_BANS).map(|n| ban(&format!("{n}"), &long)).collect();
    let frames = frames(&bans);
    assert!(frames.len() > 1);
    let mut whole = Vec::new();
    for (n, frame) in frames.iter().enumerate() {
        assert!(link::encode(frame).is_some(), "it fits");
        let HostFrame::Bans { bans, more } = frame else { panic!("{frame:?}") };
        assert_eq!(*more, n + 1 < frames.len());
        whole.extend(bans.clone());
    }
    assert_eq!(whole, bans);
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\[\\[ban\\]\\]|id|vo|until|=|\"a\"|\n|true|\\PC){0,40}") {
        let _ = parse(&text);
    }
}
