//! Random stories on a real file system, with crashes of hostd anywhere: no disk is lost, none is taken twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use proptest::prelude::*;

use super::{
    super::Outcome,
    world::{World, vm},
};

#[derive(Debug, Clone, Copy)]
enum Step {
    Start(u128),
    Stop(u128),
    Delete(u128, usize),
    Crash,
    Quarantine,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let v = || 1_u128..4;
    prop_oneof![
        3 => v().prop_map(Step::Start),
        2 => v().prop_map(Step::Stop),
        3 => (v(), 0_usize..2).prop_map(|(v, d)| Step::Delete(v, d)),
        1 => Just(Step::Crash),
        1 => Just(Step::Quarantine),
        2 => (0_u64..6).prop_map(Step::Pass),
    ]
}

struct Story {
    world: World,
    runs: BTreeSet<u128>,
    disks: BTreeMap<u128, [PathBuf; 2]>,
    made: BTreeSet<String>,
    taken: Vec<String>,
    number: u32,
}

impl Story {
    fn new() -> Self {
        let (runs, disks, made, taken) = Default::default();
        Self { world: World::new(), runs, disks, made, taken, number: 0 }
    }

    fn make(&mut self, v: u128) {
        let mut new = || {
            self.number += 1;
            let name = format!("disk{}", self.number);
            self.made.insert(format!("marker of {name}"));
            self.world.disk(&name)
        };
        let disks = [new(), new()];
        self.disks.insert(v, disks);
    }

    fn look(&mut self, v: u128) {
        let [a, b] = self.disks[&v].clone();
        let outcomes = self.world.start(v, &[("vda", &[&a]), ("vdb", &[&b])]);
        assert!(outcomes.is_empty(), "{outcomes:?}");
    }

    fn act(&mut self, step: Step) {
        let outcomes = match step {
            Step::Start(v) if !self.runs.contains(&v) => {
                if self.disks.get(&v).is_none_or(|d| d.iter().any(|p| !p.exists())) {
                    self.make(v);
                }
                self.runs.insert(v);
                self.look(v);
                Vec::new()
            }
            Step::Stop(v) if self.runs.remove(&v) => self.world.stop(v),
            Step::Delete(v, d) => {
                if let Some(disks) = self.disks.get(&v) {
                    let _ = fs::remove_file(&disks[d]);
                }
                Vec::new()
            }
            Step::Crash => {
                let mut outcomes = self.world.restart();
                self.runs.clone().into_iter().for_each(|v| self.look(v));
                let running: Vec<_> = self.runs.iter().map(|v| vm(*v)).collect();
                outcomes.extend(self.world.keeper.resync(&running, self.world.now));
                outcomes
            }
            Step::Quarantine => {
                self.taken.extend(self.world.quarantine());
                Vec::new()
            }
            Step::Pass(seconds) => self.world.pass(seconds),
            Step::Start(_) | Step::Stop(_) => Vec::new(),
        };
        for outcome in outcomes {
            match outcome {
                Outcome::HandedOver { .. } => {}
                Outcome::Captured { item, .. } => self.world.keeper.acknowledge(item),
                other => panic!("{other:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_disk_ends_in_exactly_one_item(steps in prop::collection::vec(step(), 1..40)) {
        let mut story = Story::new();
        steps.into_iter().for_each(|step| story.act(step));
        for v in 1..4 {
            story.act(Step::Stop(v));
        }
        // The cloud manager deletes all that is left, also what it replaced.
        for n in 1..=story.number {
            let _ = fs::remove_file(story.world.path(&format!("disk{n}")));
        }
        for _ in 0..3 {
            story.act(Step::Pass(12));
        }
        story.act(Step::Quarantine);
        story.act(Step::Pass(40));
        let taken: BTreeSet<String> = story.taken.iter().cloned().collect();
        prop_assert_eq!(taken.len(), story.taken.len(), "one disk twice");
        prop_assert_eq!(&taken, &story.made);
        prop_assert!(story.world.pinned().is_empty());
    }
}
