//! The policy alone: a table of stories, then random ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use vestigo_model::{DomainUuid, StopReason, Timestamp};

use super::super::policy::{Decision, FileId, Held, PinId, Policy, Reason};

const SETTLE: Duration = Duration::from_secs(2);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn vm(n: u128) -> DomainUuid {
    DomainUuid(uuid::Uuid::from_u128(n))
}

fn file(inode: u64) -> FileId {
    FileId { device: 1, inode }
}

fn held(domain: u128, target: &str, layers: &[u64]) -> Held {
    let layers = layers.iter().map(|n| file(*n)).collect();
    Held { domain: vm(domain), target: target.into(), interval: at(0), layers }
}

fn running(disks: &[(u64, Held)]) -> Policy {
    let mut policy = Policy::new(SETTLE);
    for (id, held) in disks {
        policy.insert(PinId(*id), held.clone());
    }
    for (_, held) in disks {
        let current = disks.iter().filter(|(_, h)| h.domain == held.domain).map(|(id, _)| PinId(*id)).collect();
        policy.started(held.domain, at(0), &current);
    }
    policy.resync(&disks.iter().map(|(_, h)| h.domain).collect());
    policy
}

fn handed(decisions: &[Decision]) -> Vec<(Vec<u64>, Reason)> {
    let of = |d: &Decision| match d {
        Decision::HandOver { pins, reason, .. } => Some((pins.iter().map(|p| p.0).collect(), *reason)),
        Decision::Release { .. } => None,
    };
    decisions.iter().filter_map(of).collect()
}

#[test]
fn two_disks_of_one_vm_are_one_item() {
    let mut p = running(&[(1, held(1, "vda", &[10, 99])), (2, held(1, "vdb", &[20]))]);
    p.stopped(vm(1), StopReason::Destroyed);
    p.set_names(file(10), 0, at(100));
    assert!(p.due(at(100)).is_empty(), "the other disk may follow");
    p.set_names(file(20), 0, at(101));
    assert!(p.due(at(101)).is_empty());
    assert!(p.due(at(102)).is_empty(), "two seconds from the last");
    assert_eq!(handed(&p.due(at(103))), [(vec![1, 2], Reason::Terminated)]);
    let Decision::HandOver { deleted, .. } = &p.due(at(104))[0] else { panic!() };
    assert_eq!(*deleted, at(101), "the same facts give the same decision, with the time of the last deletion");
}

#[test]
fn a_steady_trickle_does_not_wait_for_ever() {
    let mut disks: Vec<_> = (0..20).map(|n| (n, held(1, &format!("vd{n}"), &[n + 1]))).collect();
    disks.sort_by_key(|(id, _)| *id);
    let mut p = running(&disks);
    p.stopped(vm(1), StopReason::Destroyed);
    let first = (0..20_u32).find(|n| {
        let now = at(i64::from(*n));
        p.set_names(file(u64::from(*n) + 1), 0, now);
        !p.due(now).is_empty()
    });
    assert_eq!(first, Some(10), "five settle times");
}

#[test]
fn a_stop_a_start_a_backing_file_decide_nothing() {
    let mut p = running(&[(1, held(1, "vda", &[10, 99]))]);
    p.set_names(file(10), 1, at(1));
    p.stopped(vm(1), StopReason::Shutdown);
    p.set_names(file(99), 0, at(1));
    assert!(p.due(at(1000)).is_empty());
    p.started(vm(1), at(1000), &BTreeSet::from([PinId(1)]));
    assert!(p.due(at(2000)).is_empty());
}

#[test]
fn an_unlinked_disk_waits_for_the_end_of_its_vm() {
    let mut p = running(&[(1, held(1, "vda", &[10]))]);
    p.set_names(file(10), 0, at(1));
    assert!(p.due(at(1000)).is_empty());
    p.stopped(vm(1), StopReason::Shutdown);
    assert!(p.due(at(1000)).is_empty());
    assert_eq!(handed(&p.due(at(1002))), [(vec![1], Reason::Terminated)]);
}

#[test]
fn nothing_is_decided_before_it_is_known_what_runs() {
    let mut p = Policy::new(SETTLE);
    p.insert(PinId(1), held(1, "vda", &[10]));
    p.set_names(file(10), 0, at(1));
    assert!(p.due(at(1000)).is_empty());
    p.resync(&BTreeSet::from([vm(1)]));
    assert!(p.due(at(2000)).is_empty() && p.due(at(3000)).is_empty(), "it runs on it");
    p.resync(&BTreeSet::new());
    assert!(p.due(at(3000)).is_empty());
    assert_eq!(handed(&p.due(at(3002))).len(), 1);
}

#[test]
fn a_rebuild_hands_the_old_disk_over_while_the_vm_runs_on_the_new_one() {
    let mut p = running(&[(1, held(1, "vda", &[10]))]);
    p.insert(PinId(2), held(1, "vda", &[11]));
    p.started(vm(1), at(50), &BTreeSet::from([PinId(2)]));
    p.set_names(file(10), 0, at(51));
    p.due(at(51));
    assert_eq!(handed(&p.due(at(53))), [(vec![1], Reason::Replaced)]);
    p.started(vm(1), at(50), &BTreeSet::new());
    assert_eq!(handed(&p.due(at(53))), [(vec![1], Reason::Detached)]);
}

#[test]
fn a_snapshot_moves_the_old_image_below_the_new_one() {
    let mut p = running(&[(1, held(1, "vda", &[10]))]);
    p.insert(PinId(2), held(1, "vda", &[11, 10]));
    p.started(vm(1), at(50), &BTreeSet::from([PinId(2)]));
    assert_eq!(p.absorbed(vm(1)), [PinId(1)]);
    p.set_names(file(10), 0, at(51));
    assert!(p.due(at(51)).is_empty() && p.due(at(1000)).is_empty(), "the running VM reads it");
}

#[test]
fn a_disk_used_by_another_running_vm_waits() {
    let mut p = running(&[(1, held(1, "vda", &[10])), (2, held(2, "vdb", &[10]))]);
    p.set_names(file(10), 0, at(1));
    p.stopped(vm(1), StopReason::Destroyed);
    assert!(p.due(at(1)).is_empty() && p.due(at(1000)).is_empty());
}

#[test]
fn what_migrated_away_is_let_go() {
    let mut p = running(&[(1, held(1, "vda", &[10]))]);
    p.stopped(vm(1), StopReason::Migrated);
    p.set_names(file(10), 0, at(1));
    p.due(at(1));
    assert!(matches!(p.due(at(3))[..], [Decision::Release { .. }]));
    p.started(vm(1), at(9), &BTreeSet::from([PinId(1)]));
    p.stopped(vm(1), StopReason::Shutdown);
    p.due(at(10));
    assert_eq!(handed(&p.due(at(12))).len(), 1, "it came back and ended here");
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Start(usize),
    Stop(usize),
    Delete(usize, usize),
    Rebuild(usize),
    Resync,
    Pass(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let v = || 0_usize..3;
    prop_oneof![
        v().prop_map(Step::Start),
        v().prop_map(Step::Stop),
        (v(), 0_usize..2).prop_map(|(v, d)| Step::Delete(v, d)),
        v().prop_map(Step::Rebuild),
        Just(Step::Resync),
        (0_u8..8).prop_map(Step::Pass),
    ]
}

/// What is true, beside what the policy was told.
#[derive(Default)]
struct Truth {
    runs: BTreeSet<usize>,
    /// Of each VM: the pins of its two disks.
    disks: BTreeMap<usize, [u64; 2]>,
    made: u64,
    deleted: BTreeSet<u64>,
    handed: BTreeSet<u64>,
    now: i64,
}

impl Truth {
    /// New disks for the VM, pinned.
    fn make(&mut self, p: &mut Policy, v: usize) {
        let pins = [self.made, self.made + 1];
        self.made += 2;
        for (n, id) in pins.iter().enumerate() {
            p.insert(PinId(*id), held(v as u128, &format!("vd{n}"), &[*id]));
            p.set_names(file(*id), 1, at(self.now));
        }
        self.disks.insert(v, pins);
    }

    fn start(&mut self, p: &mut Policy, v: usize) {
        let lost = self.disks.get(&v).is_none_or(|pins| pins.iter().any(|id| self.deleted.contains(id)));
        if self.runs.contains(&v) {
            return;
        }
        if lost {
            self.make(p, v);
        }
        self.runs.insert(v);
        p.started(vm(v as u128), at(self.now), &self.disks[&v].iter().map(|id| PinId(*id)).collect());
    }

    fn delete(&mut self, p: &mut Policy, id: u64) {
        if self.deleted.insert(id) {
            p.set_names(file(id), 0, at(self.now));
        }
    }

    fn act(&mut self, p: &mut Policy, step: Step) {
        match step {
            Step::Start(v) => self.start(p, v),
            Step::Stop(v) => {
                if self.runs.remove(&v) {
                    p.stopped(vm(v as u128), StopReason::Destroyed);
                }
            }
            Step::Delete(v, d) => {
                if let Some(pins) = self.disks.get(&v).copied() {
                    self.delete(p, pins[d]);
                }
            }
            Step::Rebuild(v) => {
                let old = self.disks.get(&v).copied();
                self.act(p, Step::Stop(v));
                old.into_iter().flatten().for_each(|id| self.delete(p, id));
                self.make(p, v);
                self.start(p, v);
            }
            Step::Resync => {
                p.resync(&self.runs.iter().map(|v| vm(*v as u128)).collect());
            }
            Step::Pass(seconds) => self.now += i64::from(seconds),
        }
        self.check(p);
    }

    fn check(&mut self, p: &mut Policy) {
        for decision in p.due(at(self.now)) {
            let Decision::HandOver { pins, .. } = decision else { panic!("nothing migrated") };
            assert!(!pins.is_empty());
            for PinId(id) in pins {
                assert!(self.deleted.contains(&id), "handed over though it has a name");
                let used = self.runs.iter().any(|v| self.disks[v].contains(&id));
                assert!(!used, "handed over though a running VM uses it");
                assert!(self.handed.insert(id), "two items of one disk");
                p.remove(PinId(id));
            }
        }
    }
}

proptest! {
    #[test]
    fn no_disk_is_lost_none_is_taken_twice(steps in prop::collection::vec(step(), 1..80)) {
        let mut p = Policy::new(SETTLE);
        let mut truth = Truth::default();
        for step in steps {
            truth.act(&mut p, step);
        }
        truth.act(&mut p, Step::Resync);
        for v in 0..3 {
            truth.act(&mut p, Step::Stop(v));
        }
        for id in 0..truth.made {
            truth.delete(&mut p, id);
        }
        for _ in 0..4 {
            truth.act(&mut p, Step::Pass(7));
        }
        prop_assert_eq!(truth.handed, (0..truth.made).collect::<BTreeSet<_>>());
    }

    #[test]
    fn without_a_deletion_nothing_is_ever_taken(steps in prop::collection::vec(step(), 1..80)) {
        let mut p = Policy::new(SETTLE);
        let mut truth = Truth::default();
        for step in steps {
            if !matches!(step, Step::Delete(..) | Step::Rebuild(_)) {
                truth.act(&mut p, step);
            }
        }
        prop_assert!(truth.handed.is_empty());
    }
}
