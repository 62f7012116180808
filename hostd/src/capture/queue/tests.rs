#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::{sync::Arc, thread};

use proptest::prelude::*;
use vestigo_model::{Direction, EndReason, FlowNotes, Initiator, Mac, TapName, Timestamp};

use super::*;

fn observed(n: u128) -> Arc<Observed> {
    let name = TapName::new(format!("vnet{n}")).unwrap();
    Arc::new(Observed {
        host: HostId::new("hv1").unwrap(),
        domain: vm(n),
        instance: InstanceId::new(format!("i-{n}")).unwrap(),
        vo: None,
        tap: Tap { name, mac: Mac([0; 6]), expected: vec![], not_capturable: None, network: None },
    })
}

fn vm(n: u128) -> DomainUuid {
    DomainUuid(uuid::Uuid::from_u128(n))
}

fn records(count: usize) -> Vec<Metered> {
    let time = Timestamp::from_nanos(1);
    let record = |port: usize| Metered {
        direction: Direction::Outgoing,
        orig: ("10.0.0.5".parse().unwrap(), u16::try_from(port % 65_536).unwrap()),
        resp: ("192.0.2.1".parse().unwrap(), 443),
        proto: 6,
        vlan: None,
        began: time,
        first: time,
        last: time,
        from_orig: (1, 40, 2),
        from_resp: (0, 0, 0),
        end_reason: EndReason::Idle,
        initiator: Initiator::Seen,
        notes: FlowNotes::default(),
    };
    (0..count).map(record).collect()
}

fn of(turn: &Turn, n: u128) -> usize {
    turn.records.iter().filter(|tapped| tapped.observed.domain == vm(n)).count()
}

#[test]
fn a_tap_with_much_to_say_does_not_delay_one_with_little() {
    let queues = TapQueues::default();
    let (loud, quiet) = (queues.open(observed(1)), queues.open(observed(2)));
    assert_eq!(loud.send(records(ROOM)), 0);
    assert_eq!(loud.send(records(5)), 5, "its own queue is full, and that is counted");
    assert_eq!(quiet.send(records(3)), 0, "the other's is not");
    let turn = queues.turn(1000);
    assert_eq!((of(&turn, 1), of(&turn, 2), turn.more), (SHARE, 3, true));
    assert_eq!(loud.room(), SHARE);
}

#[test]
fn where_room_ends_the_next_turn_begins() {
    let queues = TapQueues::default();
    let taps: Vec<_> = (0..4).map(|n| queues.open(observed(n))).collect();
    taps.iter().for_each(|tap| assert_eq!(tap.send(records(ROOM)), 0));
    let mut taken = [0; 4];
    for _ in 0..40 {
        let turn = queues.turn(SHARE + 6);
        assert!(turn.records.len() <= SHARE + 6 && turn.more);
        (0..4).for_each(|n| taken[n] += of(&turn, n as u128));
    }
    let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
    assert!(most - least <= 2 * SHARE, "{taken:?}");
    assert!(queues.turn(0).more);
}

#[test]
fn a_capture_that_ends_waits_for_room_and_its_end_comes_last() {
    let queues = Arc::new(TapQueues::default());
    let tap = queues.open(observed(1));
    let _other = queues.open(observed(2));
    let sender = thread::spawn(move || tap.send_all(records(3 * ROOM)));
    let mut taken = 0;
    while queues.has(vm(1)) {
        let turn = queues.turn_of(vm(1), 1000);
        taken += of(&turn, 1);
        assert!(turn.ended.is_empty() || taken == 3 * ROOM);
    }
    assert_eq!(sender.join().unwrap(), 0);
    assert!(queues.has(vm(2)));
}

#[test]
fn who_is_abandoned_counts_what_is_left() {
    let queues = Arc::new(TapQueues::default());
    let tap = queues.open(observed(1));
    let sender = thread::spawn(move || tap.send_all(records(3 * ROOM)));
    let mut taken = 0;
    while taken < ROOM {
        taken += of(&queues.turn(10), 1);
    }
    queues.abandon(vm(1));
    let left = usize::try_from(sender.join().unwrap()).unwrap();
    assert!(left > 0 && left <= 3 * ROOM - taken, "{left}");
}

#[tokio::test]
async fn records_and_ends_ring_the_bell() {
    let queues = TapQueues::default();
    let tap = queues.open(observed(1));
    tap.send(records(1));
    queues.woken().await;
    assert_eq!(queues.turn(9).records.len(), 1);
    drop(tap);
    queues.woken().await;
    assert_eq!(queues.turn(9).ended.len(), 1);
}

proptest! {
    /// Whatever the room of each turn is: every record comes once, in its tap's order.
    #[test]
    fn nothing_is_lost_or_doubled(counts in proptest::collection::vec(0_usize..300, 1..6), room in 1_usize..200) {
        let queues = TapQueues::default();
        let taps: Vec<_> = (0..counts.len()).map(|n| queues.open(observed(n as u128))).collect();
        for (tap, count) in taps.iter().zip(&counts) {
            prop_assert_eq!(tap.send(records(*count)), 0);
        }
        drop(taps);
        let (mut seen, mut ended) = (vec![Vec::new(); counts.len()], 0);
        while ended < counts.len() {
            let turn = queues.turn(room);
            for tapped in turn.records {
                let n = usize::try_from(tapped.observed.domain.0.as_u128()).unwrap();
                seen[n].push(usize::from(tapped.record.orig.1));
            }
            ended += turn.ended.len();
        }
        for (ports, count) in seen.iter().zip(&counts) {
            prop_assert_eq!(ports.clone(), (0..*count).collect::<Vec<_>>());
        }
    }
}
