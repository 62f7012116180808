#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const REST: Duration = Duration::from_secs(300);

#[test]
fn default_range_gives_44_blocks_that_do_not_touch() {
    let blocks = Blocks::new(20480, 65535, 1024).unwrap();
    assert_eq!(blocks.count(), 44);
    assert_eq!(blocks.ports(Slot(0)), PortBlock { first: 20480, last: 21503 });
    assert_eq!(blocks.ports(Slot(43)).last, 65535);
    assert!(Blocks::new(10, 9, 1).is_none() && Blocks::new(10, 20, 0).is_none() && Blocks::new(10, 20, 12).is_none());
}

#[test]
fn exhaustion_says_when_to_come_back() {
    let mut leases = Leases::new(Blocks::new(1, 2, 1).unwrap(), REST);
    let now = Duration::from_secs(10);
    let a = leases.allocate(now).unwrap();
    leases.allocate(now).unwrap();
    assert_eq!(leases.allocate(now), Err(Exhausted { all: 2, held: 2, next: None }));
    leases.release(a, now, true);
    let error = leases.allocate(now + Duration::from_secs(100)).unwrap_err();
    assert!(error.to_string().contains("free in 201 s"), "{error}");
    assert_eq!(leases.allocate(now + REST), Ok(a));
}

#[test]
fn what_a_dead_agent_held_rests() {
    let blocks = Blocks::new(1, 1, 1).unwrap();
    let mut before = Leases::new(blocks, REST);
    before.allocate(Duration::ZERO).unwrap();
    let json = serde_json::to_string(&before.snapshot()).unwrap();
    let mut after = Leases::new(blocks, REST);
    after.restore(&serde_json::from_str(&json).unwrap(), Duration::from_secs(5));
    assert!(after.allocate(Duration::from_secs(304)).is_err());
    assert!(after.allocate(Duration::from_secs(305)).is_ok());
}

proptest! {
    /// Whatever order of starts and ends: nobody shares a block, and no used block comes back before it has rested.
    #[test]
    fn never_shared_and_never_early(steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u64..200, 0usize..8), 1..300)) {
        let mut leases = Leases::new(Blocks::new(1, 80, 10).unwrap(), REST);
        let mut held: BTreeMap<Slot, ()> = BTreeMap::new();
        let mut used_at: BTreeMap<Slot, Duration> = BTreeMap::new();
        let mut now = Duration::ZERO;
        for (start, used, wait, pick) in steps {
            now += Duration::from_secs(wait);
            if start {
                match leases.allocate(now) {
                    Ok(slot) => {
                        prop_assert!(held.insert(slot, ()).is_none());
                        prop_assert!(used_at.get(&slot).is_none_or(|at| *at + REST <= now));
                    }
                    Err(error) => prop_assert_eq!(error.held, held.len()),
                }
            } else if let Some(slot) = held.keys().copied().nth(pick) {
                held.remove(&slot);
                leases.release(slot, now, used);
                if used { used_at.insert(slot, now); }
            }
            prop_assert_eq!(leases.counts(now).0, held.len());
        }
    }
}
