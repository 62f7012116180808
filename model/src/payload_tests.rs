#![allow(clippy::unwrap_used)]
use uuid::Uuid;

use super::*;
use crate::MAX_TASK_LIFE;

fn text(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn claim() -> PayloadClaim {
    PayloadClaim {
        uid: PayloadUid(Uuid::from_u128(1)),
        holder: Holder::Payload,
        pilot: PilotId::new("p").unwrap(),
        payload: PayloadId::new("t").unwrap(),
        user: User { issuer: text("i"), subject: text("s") },
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

fn ports(first: u16, last: u16) -> Lease {
    Lease::Ports(PortBlock { first, last })
}

fn signed(change: impl FnOnce(&mut TaskMark)) -> Result<(), &'static str> {
    let begin = Timestamp::from_nanos(1_000_000_000);
    let mut task = TaskMark {
        id: text("t"),
        nonce: text(&"0a".repeat(16)),
        runs: 10_000,
        not_before: begin,
        expires: begin + MAX_TASK_LIFE,
        statement: Digest::of(b"s"),
        key: text(&format!("SHA256:{}", "aB3+/".repeat(9).get(..43).unwrap())),
    };
    change(&mut task);
    PayloadClaim { trust: Trust::SignedByUser, task: Some(task), ..claim() }.check()
}

#[test]
fn only_what_a_user_can_have_signed_is_taken() {
    assert_eq!(signed(|_| {}), Ok(()));
    let end = Timestamp::from_nanos(i64::MAX);
    for (change, word) in [
        (&(|t: &mut TaskMark| t.expires = end) as &dyn Fn(&mut TaskMark), "31 days"),
        (&|t| t.expires = t.not_before, "31 days"),
        (&|t| t.expires = t.expires + Duration::from_nanos(1), "31 days"),
        (&|t| t.not_before = Timestamp::from_nanos(i64::MIN), "31 days"),
        (&|t| t.runs = 0, "10000 runs"),
        (&|t| t.runs = 10_001, "10000 runs"),
        (&|t| t.nonce = text("n"), "nonce"),
        (&|t| t.nonce = text(&"A".repeat(32)), "nonce"),
        (&|t| t.nonce = text(&"a".repeat(129)), "nonce"),
        (&|t| t.key = text(&"a".repeat(43)), "fingerprint"),
        (&|t| t.key = text("SHA256:abc"), "fingerprint"),
        (&|t| t.key = text(&format!("SHA256:{}", "=".repeat(43))), "fingerprint"),
    ] {
        assert!(signed(change).unwrap_err().contains(word), "{word}");
    }
}

#[test]
fn no_payload_claims_all_ports() {
    let of = |holder, leases| PayloadClaim { holder, leases, ..claim() }.check();
    assert_eq!(of(Holder::Payload, vec![ports(20_480, 21_503)]), Ok(()));
    assert_eq!(of(Holder::Payload, vec![ports(1, 16_384)]), Ok(()));
    assert!(of(Holder::Payload, vec![ports(1, 16_385)]).unwrap_err().contains("16384"));
    assert!(of(Holder::Payload, vec![ports(1, 10_000), ports(20_000, 30_000)]).unwrap_err().contains("16384"));
    assert!(of(Holder::Payload, vec![ports(0, 10)]).unwrap_err().contains("port 0"));
    assert!(of(Holder::System, vec![ports(0, 10)]).unwrap_err().contains("port 0"));
    assert!(of(Holder::Payload, vec![ports(9, 8)]).unwrap_err().contains("ends before"));
    assert_eq!(of(Holder::System, vec![ports(1, 1023), ports(1024, 20_479)]), Ok(()), "as the agent's settings allow");
}

#[test]
fn the_vms_own_part_is_no_work() {
    let own = || PayloadClaim { holder: Holder::System, ..claim() };
    assert_eq!(own().check(), Ok(()));
    let file = Some(Executable { path: "/bin/sh".to_owned(), sha256: Digest::of(b"sh") });
    let held = Enforcement { state: RuleState::Enforced, how: text("so") };
    for claim in [
        PayloadClaim { command: vec!["a".to_owned()], ..own() },
        PayloadClaim { executable: file.clone(), ..own() },
        PayloadClaim { interpreter: file, ..own() },
        PayloadClaim { trust: Trust::SignedByUser, ..own() },
        PayloadClaim { isolation: BTreeMap::from([("R".to_owned(), held)]), ..own() },
    ] {
        assert!(claim.check().unwrap_err().contains("own traffic"), "{claim:?}");
        assert!(PayloadClaim { holder: Holder::Payload, trust: Trust::AssertedByVo, ..claim }.check().is_ok());
    }
}

#[test]
fn a_manifest_is_bounded_in_all() {
    let rules = |count: usize| {
        let held = Enforcement { state: RuleState::Enforced, how: text(&"x".repeat(200)) };
        let isolation = (0..count).map(|n| (format!("R-ISO-{n:04}"), held.clone())).collect();
        PayloadClaim { isolation, ..claim() }.check()
    };
    assert_eq!(rules(78), Ok(()));
    assert!(rules(79).unwrap_err().contains("16 KiB"));
}
