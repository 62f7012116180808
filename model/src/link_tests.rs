#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{Holder, Lease, PayloadId, PilotId, PortBlock, Trust, User, Vo};

fn claim(subject: String, first: u16, command: Vec<String>) -> PayloadClaim {
    PayloadClaim {
        uid: PayloadUid(Uuid::from_u128(7)),
        holder: Holder::Payload,
        pilot: PilotId::new("pilot-1").unwrap(),
        payload: PayloadId::new("task/1").unwrap(),
        user: User { issuer: Label::new("https://iam.example").unwrap(), subject: Label::new(subject).unwrap() },
        vo: Vo::new("atlas").unwrap(),
        trust: Trust::AssertedByVo,
        task: None,
        token: None,
        access: None,
        executable: None,
        interpreter: None,
        command,
        leases: vec![Lease::Ports(PortBlock { first, last: first.saturating_add(1023) })],
        isolation: BTreeMap::new(),
        withheld: None,
    }
}

proptest! {
    #[test]
    fn records_round_trip(seq: u64, nanos: i64, first: u16, subject in "\\PC{1,40}", command in prop::collection::vec(".{0,20}", 0..4)) {
        prop_assume!(Label::new(subject.clone()).is_ok());
        let frame = GuestFrame::Record(Record {
            seq,
            prev: Digest::of(&seq.to_be_bytes()),
            time: Timestamp::from_nanos(nanos),
            claim: Claim::PayloadStart(claim(subject, first, command)),
        });
        let line = encode(&frame).unwrap();
        let lines = LineReader::new().push(&line);
        prop_assert_eq!(lines.len(), 1);
        let read: GuestFrame = decode(lines[0].as_ref().unwrap()).unwrap();
        prop_assert_eq!(read, frame);
    }

    #[test]
    fn any_bytes_in_any_pieces_are_bounded_and_never_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let mut reader = LineReader::new();
        for piece in &pieces {
            for line in reader.push(piece).into_iter().flatten() {
                let _ = decode::<GuestFrame>(&line);
                let _ = decode::<HostFrame>(&line);
            }
            prop_assert!(reader.buffer.len() < MAX_FRAME);
        }
    }

    #[test]
    fn pieces_do_not_matter(text in "[ab\n]{0,200}", cut in 0usize..200) {
        let bytes = text.as_bytes();
        let cut = cut.min(bytes.len());
        let whole = LineReader::new().push(bytes);
        let mut reader = LineReader::new();
        let mut parts = reader.push(&bytes[..cut]);
        parts.extend(reader.push(&bytes[cut..]));
        prop_assert_eq!(whole, parts);
    }
}

#[test]
fn an_endless_line_is_reported_once_and_the_next_line_is_read() {
    let mut reader = LineReader::new();
    let mut errors = 0;
    for _ in 0..100 {
        errors += reader.push(&[b'x'; 4096]).iter().filter(|r| r.is_err()).count();
    }
    assert_eq!(errors, 1);
    assert_eq!(reader.push(b"more\n{}\n"), vec![Ok(b"{}".to_vec())]);
}

#[test]
fn unknown_types_and_members_are_not_errors() {
    assert_eq!(decode::<GuestFrame>(br#"{"type":"shiny"}"#).unwrap(), GuestFrame::Unknown);
    let ack: HostFrame = decode(br#"{"type":"ack","seq":3,"colour":"red"}"#).unwrap();
    assert_eq!(ack, HostFrame::Ack { seq: 3 });
    let claim: Claim = serde_json::from_str(r#"{"event":"later","x":1}"#).unwrap();
    assert_eq!(claim, Claim::Unknown);
}

#[test]
fn a_frame_that_does_not_fit_is_not_written() {
    let huge = vec!["y".repeat(MAX_FRAME)];
    assert!(encode(&claim("u".into(), 1, huge)).is_none());
}
