//! What is in force for a plain payload, rule by rule, with the reason for everything that is less than the daemon gives.

use std::collections::BTreeMap;

use vestigo_model::{Enforcement, Label, RuleState};

use RuleState::{Degraded, Enforced, Off};

use crate::sandbox::landlock::Applied;

/// What differs from one payload to another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// A folder of the caller's is writable for it.
    pub work: bool,
    /// Folders or files of the VM are shown to it.
    pub shown: bool,
    /// It runs in another system's tree.
    pub foreign: bool,
    /// It may make user namespaces.
    pub nested: bool,
    /// It shares the VM's network.
    pub host_network: bool,
    /// The caller has more groups than one; they cannot be given up without rights.
    pub groups: bool,
    /// Its processes are counted.
    pub pids: bool,
    /// What Landlock adds.
    pub landlock: Option<Applied>,
}

type Rule = (u8, RuleState, String);

fn rule(number: u8, state: RuleState, how: impl Into<String>) -> Rule {
    (number, state, how.into())
}

/// The manifest.
pub(super) fn manifest(facts: &Facts) -> BTreeMap<String, Enforcement> {
    let rules = identities(facts).into_iter().chain(files(facts)).chain(surroundings(facts));
    rules.filter_map(entry).collect()
}

fn identities(facts: &Facts) -> Vec<Rule> {
    let groups = if facts.groups { "; keeps the caller's other groups, which only root can take away" } else { "" };
    let uid =
        "the caller's own uid in the VM: only namespaces stand between this payload, the pilot and other payloads";
    let services = if facts.host_network { "; what the VM serves on its network is reachable" } else { "" };
    vec![
        rule(3, Degraded, format!("files of the pilot are not in the mount root; {uid}{groups}")),
        rule(5, Degraded, format!("own PID namespace, no capabilities; {uid}")),
        rule(6, Degraded, format!("own PID namespace, init is not dumpable{services}; {uid}")),
        rule(9, Enforced, "own PID namespace, killed with its first process or its client"),
        rule(11, Off, "tokens are not looked at"),
        rule(27, Off, "no uid of its own: it has the caller's, shown as 1000 inside"),
        rule(29, Degraded, format!("the pilot's files, processes and environment are out of reach; {uid}")),
    ]
}

fn files(facts: &Facts) -> Vec<Rule> {
    let mut rules = if facts.work {
        let shared = "a folder of the caller's is writable: shared with the caller and with whom it gives it to";
        vec![
            rule(2, Degraded, shared),
            rule(17, Degraded, shared),
            rule(18, Off, "what the caller left in its writable folder is there"),
            rule(19, Degraded, shared),
            rule(33, Degraded, "fresh root, /tmp and /dev/shm; the caller's writable folder is the caller's care"),
        ]
    } else {
        vec![
            rule(2, Degraded, "private /work, /tmp, /var/tmp, /dev/shm in own mount root, but the caller's uid"),
            rule(17, Enforced, "/work is a folder of this payload alone"),
            rule(18, Enforced, "/work is made empty for this payload and removed after it"),
            rule(19, Enforced, "no folder is writable and shared"),
            rule(
                33,
                Degraded,
                "private folders, removed after the PID namespace is dead; by the next client if this one is killed",
            ),
        ]
    };
    let tree = if facts.foreign { "another system's tree" } else { "/usr" };
    rules.push(if facts.shown {
        rule(8, Degraded, format!("empty root with {tree} and what the caller shows"))
    } else {
        rule(8, Enforced, format!("empty root with {tree}, a made-up /etc, minimal /dev, fresh /proc, private folders"))
    });
    rules.push(rule(16, Degraded, "shared folders are read-only; network file systems follow their own rules"));
    rules.push(rule(20, Enforced, "environment is an allow-list with a fixed PATH"));
    rules
}

fn surroundings(facts: &Facts) -> Vec<Rule> {
    let scoped = facts.landlock.as_ref().is_some_and(|applied| applied.scoped);
    let count = if facts.pids { "processes are limited" } else { "processes are not limited" };
    let sockets = match (facts.host_network, scoped) {
        (false, _) => rule(10, Enforced, "own IPC namespace, /dev/shm and abstract sockets (own net namespace)"),
        (true, true) => rule(10, Enforced, "own IPC namespace and /dev/shm; abstract sockets by Landlock scope"),
        (true, false) => {
            rule(10, Off, "own IPC namespace, but the VM's abstract sockets: this kernel's Landlock has no scope")
        }
    };
    let network = if facts.host_network {
        rule(37, Off, "the VM's network (--net host): no ports of its own, its traffic is attributed to the VM only")
    } else {
        rule(37, Degraded, "an empty network (--net none): it sends nothing; no lease, no record at the hypervisor")
    };
    let namespaces = if facts.host_network {
        "user, mount, PID, IPC, UTS and cgroup namespaces of the caller's; the VM's network"
    } else {
        "user, mount, PID, IPC, net, UTS and cgroup namespaces of the caller's"
    };
    vec![
        rule(1, Degraded, format!("{namespaces}; {count}, memory and processors are not")),
        sockets,
        rule(23, filter_state(facts), filter(facts)),
        rule(26, Enforced, "own folders and IPC namespace"),
        rule(34, Off, format!("{count}; no limits on memory, processors and disk without root's cgroups")),
        network,
    ]
}

fn filter_state(facts: &Facts) -> RuleState {
    let missing = facts.landlock.as_ref().is_none_or(|applied| !applied.missing.is_empty());
    if facts.nested || missing { Degraded } else { Enforced }
}

fn filter(facts: &Facts) -> String {
    let landlock = match &facts.landlock {
        Some(applied) if applied.missing.is_empty() => format!("Landlock ABI {}", applied.abi),
        Some(applied) => format!("Landlock ABI {}, without {}", applied.abi, applied.missing.join("; ")),
        None => "no Landlock".to_owned(),
    };
    let nested = if facts.nested { "; may make user namespaces (--nested)" } else { "" };
    format!("no_new_privs, nosuid mounts, system call filter, {landlock}{nested}")
}

/// `None` only for a text that is no label, which the test rules out.
fn entry((number, state, how): Rule) -> Option<(String, Enforcement)> {
    Some((format!("R-ISO-{number}"), Enforcement { state, how: Label::new(how).ok()? }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn every_text_fits_and_nothing_that_only_root_can_do_is_called_enforced() {
        let missing = Applied { abi: 1, fs: false, scoped: false, missing: vec!["x".repeat(40); 3] };
        for bits in 0..128u32 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let facts = Facts {
                work: bit(0),
                shown: bit(1),
                foreign: bit(2),
                nested: bit(3),
                host_network: bit(4),
                groups: bit(5),
                pids: bit(6),
                landlock: bit(3).then(|| missing.clone()),
            };
            let manifest = manifest(&facts);
            assert_eq!(manifest.len(), 21, "{facts:?}");
            assert_eq!(manifest["R-ISO-27"].state, Off);
            let network = if facts.host_network { Off } else { Degraded };
            assert_eq!(manifest["R-ISO-37"].state, network);
            assert_eq!(manifest["R-ISO-18"].state, if facts.work { Off } else { Enforced });
            let sockets = if facts.host_network { Off } else { Enforced };
            assert_eq!(manifest["R-ISO-10"].state, sockets);
        }
    }
}
