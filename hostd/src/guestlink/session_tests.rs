#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use uuid::Uuid;
use vestigo_model::{Exit, Label, PayloadUid};

use super::*;

fn at(n: i64) -> Timestamp {
    Timestamp::from_nanos(n)
}

fn domain() -> DomainUuid {
    DomainUuid(Uuid::from_u128(1))
}

fn boot(n: u128) -> BootId {
    BootId(Uuid::from_u128(n))
}

fn line(frame: &GuestFrame) -> Result<Vec<u8>, FrameError> {
    let mut bytes = link::encode(frame).unwrap();
    bytes.pop();
    Ok(bytes)
}

fn hello(n: u128) -> Result<Vec<u8>, FrameError> {
    let agent = Label::new("0.1").unwrap();
    line(&GuestFrame::Hello(Hello { protocol: PROTOCOL, boot: boot(n), agent, last: 0, time: at(0) }))
}

/// A guest's chain of records as lines.
fn chain(count: u64) -> Vec<Result<Vec<u8>, FrameError>> {
    let mut prev = Digest::ZERO;
    (1..=count)
        .map(|seq| {
            let claim =
                Claim::PayloadEnd { uid: PayloadUid(Uuid::from_u128(seq.into())), exit: Exit::Code(0), silent: false };
            let bytes = line(&GuestFrame::Record(Record { seq, prev, time: at(0), claim })).unwrap();
            prev = Digest::of(&bytes);
            Ok(bytes)
        })
        .collect()
}

fn commits(steps: &[Step]) -> Vec<u64> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Commit { position, .. } => Some(position.seq),
            _ => None,
        })
        .collect()
}

fn faults(steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Fault(_))).count()
}

#[test]
fn a_chain_is_committed_then_acknowledged_in_order() {
    let mut session = Session::new(domain(), []);
    let steps = session.line(&hello(7), at(1));
    assert!(matches!(steps.last(), Some(Step::Send(HostFrame::Welcome { acked: 0, .. }))));
    for (n, record) in chain(3).iter().enumerate() {
        let steps = session.line(record, at(1));
        assert_eq!(commits(&steps), [n as u64 + 1]);
        assert_eq!(steps.last(), Some(&Step::Send(HostFrame::Ack { seq: n as u64 + 1 })));
    }
}

#[test]
fn after_a_restart_the_chain_goes_on_where_it_was_durable() {
    let records = chain(3);
    let position =
        LinkPosition { domain: domain(), boot: boot(7), seq: 2, digest: Digest::of(records[1].as_ref().unwrap()) };
    let mut session = Session::new(domain(), [position]);
    let steps = session.line(&hello(7), at(1));
    assert!(matches!(steps.last(), Some(Step::Send(HostFrame::Welcome { acked: 2, .. }))));
    // The guest had not seen the acknowledgement of 2 and sends it again: not counted twice.
    assert!(commits(&session.line(&records[1], at(1))).is_empty());
    assert_eq!(commits(&session.line(&records[2], at(1))), [3]);
    // Another boot starts at one.
    session.line(&hello(8), at(2));
    assert_eq!(commits(&session.line(&records[0], at(2))), [1]);
}

#[test]
fn boots_are_bounded_and_the_present_one_is_kept() {
    let mut session = Session::new(domain(), []);
    for n in 0..100 {
        session.line(&hello(n), at(1));
    }
    assert_eq!(session.heads.len(), MAX_BOOTS);
    assert_eq!(commits(&session.line(&chain(1)[0], at(1))), [1]);
}

#[test]
fn gaps_forks_and_silence_before_hello_are_faults() {
    let records = chain(3);
    let mut session = Session::new(domain(), []);
    assert_eq!(faults(&session.line(&records[0], at(1))), 1, "before hello");
    session.line(&hello(7), at(1));
    assert_eq!(faults(&session.line(&records[1], at(1))), 1, "gap");
    session.line(&records[0], at(1));
    let forged = line(&GuestFrame::Record(Record { seq: 2, prev: Digest::ZERO, time: at(0), claim: Claim::Unknown }));
    assert_eq!(faults(&session.line(&forged, at(1))), 1, "wrong link");
    let other = line(&GuestFrame::Record(Record { seq: 1, prev: Digest::ZERO, time: at(9), claim: Claim::Unknown }));
    assert_eq!(faults(&session.line(&other, at(1))), 1, "the same number with other content");
    assert_eq!(faults(&session.line(&Err(FrameError::TooLong), at(1))), 1);
    assert_eq!(faults(&session.line(&Ok(b"{\"type\":\"rec".to_vec()), at(1))), 1);
    assert!(session.line(&Ok(b"{\"type\":\"newer\"}".to_vec()), at(1)).is_empty());
}

proptest! {
    /// Records dropped, repeated and swapped on the way: each is committed at most once, in order, and a guest that
    /// resends what is not acknowledged gets everything through.
    #[test]
    fn each_record_once_and_in_order(order in prop::collection::vec(0usize..6, 0..60)) {
        let records = chain(6);
        let mut session = Session::new(domain(), []);
        session.line(&hello(7), at(1));
        let mut seen = Vec::new();
        for n in order.into_iter().chain(0..6) {
            seen.extend(commits(&session.line(&records[n], at(1))));
        }
        prop_assert_eq!(seen, (1..=6).collect::<Vec<u64>>());
    }

    #[test]
    fn no_line_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut session = Session::new(domain(), []);
        session.line(&Ok(bytes), at(1));
    }
}
