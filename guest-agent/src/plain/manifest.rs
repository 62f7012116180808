//! What is in force for a plain payload: the manifest of the daemon's payloads, and in it every rule that is weaker without root,
//! with the reason.

use std::collections::BTreeMap;

use vestigo_model::{Enforcement, Label, RuleState};

use RuleState::{Degraded, Enforced, Off};

use crate::{
    sandbox::{landlock::Applied, manifest},
    shape::Shape,
};

/// What differs from one payload to another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// What was opened.
    pub shape: Shape,
    /// It shares the VM's network.
    pub host_network: bool,
    /// The caller has more groups than one; they cannot be given up without rights.
    pub groups: bool,
    /// What Landlock adds.
    pub landlock: Option<Applied>,
}

type Rule = (u8, RuleState, String);

fn rule(number: u8, state: RuleState, how: impl Into<String>) -> Rule {
    (number, state, how.into())
}

/// The manifest.
pub(super) fn manifest(facts: &Facts) -> BTreeMap<String, Enforcement> {
    let usual = manifest::Facts {
        shape: facts.shape.clone(),
        limits: facts.shape.limits,
        landlock: facts.landlock.clone(),
        ..manifest::Facts::default()
    };
    let mut manifest = manifest::manifest(&usual);
    for (number, state, how) in identities(facts).into_iter().chain(surroundings(facts)).chain(files(facts)) {
        manifest.insert(format!("R-ISO-{number}"), Enforcement { state, how: Label::cut(&how) });
    }
    manifest
}

/// The payload has the caller's uid.
fn identities(facts: &Facts) -> Vec<Rule> {
    let uid = "the caller's uid: only namespaces stand between";
    let groups = if facts.groups { "; keeps the caller's further groups" } else { "" };
    let services = if facts.host_network { "; what the VM serves is reachable" } else { "" };
    vec![
        rule(2, Degraded, format!("own mount root, /work, /tmp, /var/tmp, /dev/shm; {uid}{groups}")),
        rule(3, Degraded, format!("files of the pilot are not in the mount root; {uid}{groups}")),
        rule(5, Degraded, format!("own PID namespace, no capabilities, system call filter; {uid}")),
        rule(6, Degraded, format!("own PID namespace, init is not dumpable{services}; {uid}")),
        rule(14, Off, "no uid of its own: it has the caller's, shown as 1000 inside"),
        rule(26, Degraded, format!("own folders and IPC namespace; {uid}")),
        rule(27, Off, "no uid of its own: it has the caller's, shown as 1000 inside"),
        rule(29, Degraded, format!("files, processes and environment of the pilot are out of reach; {uid}")),
        rule(30, Degraded, format!("apart in files, processes and IPC; {uid}")),
        rule(32, Off, "the caller's uid cannot be given up without root"),
    ]
}

fn files(facts: &Facts) -> Vec<Rule> {
    if facts.shape.work || facts.shape.binds.iter().any(|bind| bind.writable) {
        let shared = "folders of the caller's are written to; nobody watches who else has them";
        return vec![rule(17, Degraded, shared), rule(19, Degraded, shared)];
    }
    vec![rule(33, Degraded, "private folders, removed by the client; if that is killed, by the next one")]
}

fn surroundings(facts: &Facts) -> Vec<Rule> {
    let count = if facts.shape.limits.pids.is_some() { "processes are limited" } else { "processes are not limited" };
    let network = if facts.host_network { "the VM's network" } else { "net" };
    let mut rules = vec![
        rule(1, Degraded, format!("user, mount, PID, IPC, UTS and cgroup namespaces of the caller's, {network}")),
        rule(9, Enforced, "own PID namespace, killed with its first process or its client"),
        rule(22, Degraded, "no agent of the VM's: the pilot starts it itself"),
        rule(34, Off, format!("{count}; no limits on memory, processors and disk without root's cgroups")),
    ];
    if facts.host_network {
        let scoped = facts.landlock.as_ref().is_some_and(|applied| applied.scoped);
        rules.push(if scoped {
            rule(10, Enforced, "own IPC namespace, /dev/shm, /dev/mqueue; abstract sockets scoped by Landlock")
        } else {
            rule(10, Off, "own IPC namespace, but the VM's abstract sockets: this kernel's Landlock has no scope")
        });
        rules.push(rule(37, Off, "the VM's network (--net host): its traffic is attributed to the VM only"));
    } else {
        rules.push(rule(
            37,
            Degraded,
            "an empty network (--net none): no lease and no record, but nothing leaves either",
        ));
    }
    rules
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;
    use crate::shape::Bind;

    #[test]
    fn every_rule_is_there_and_nothing_that_only_root_can_do_is_called_enforced() {
        let missing = Applied { abi: 1, fs: false, scoped: false, missing: vec!["x".repeat(40); 3] };
        for bits in 0..16u32 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let binds = bit(0).then(|| Bind { target: "/data".into(), writable: true });
            let shape = Shape { binds: binds.into_iter().collect(), nested: bit(1), ..Shape::default() };
            let (host_network, groups) = (bit(2), bit(3));
            let landlock = bit(1).then(|| missing.clone());
            let manifest = manifest(&Facts { shape, host_network, groups, landlock });
            assert_eq!(manifest.len(), 37);
            assert!(manifest.values().all(|line| !line.how.as_str().ends_with('…')), "{manifest:?}");
            for needs_root in [1, 2, 3, 5, 6, 14, 22, 26, 27, 29, 30, 32, 33, 34, 37] {
                assert_ne!(manifest[&format!("R-ISO-{needs_root}")].state, Enforced, "{needs_root}");
            }
            assert_eq!(manifest["R-ISO-37"].state, if host_network { Off } else { Degraded });
            assert_eq!(manifest["R-ISO-19"].state, if bit(0) { Degraded } else { Enforced });
            assert_eq!(manifest["R-ISO-10"].state, if host_network { Off } else { Enforced });
        }
    }
}
