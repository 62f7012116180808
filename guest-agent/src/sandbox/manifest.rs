//! What was in force for a payload, rule by rule of the WLCG recommendations, in words for an auditor. What is not there is
//! `off`, never left out.

use std::collections::BTreeMap;

use vestigo_model::{Enforcement, Label, RuleState};

use RuleState::{Degraded, Enforced, Off};

/// What differs from one payload to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The home folder is a work directory of the caller, not a fresh one.
    pub own_work: bool,
    /// More folders are exposed than the system's.
    pub exposed: bool,
}

/// The manifest.
#[must_use]
pub fn manifest(facts: Facts) -> BTreeMap<String, Enforcement> {
    let work = if facts.own_work {
        [
            (2, Degraded, "own uid and mount root; the work directory is the caller's and shared with it"),
            (
                17,
                Degraded,
                "home is the caller's work directory; nothing stops the caller from giving it to two payloads",
            ),
            (18, Off, "home is the caller's work directory with what the caller put there"),
            (
                33,
                Degraded,
                "fresh root, /tmp and /dev/shm; what stays in the caller's work directory is the caller's care",
            ),
        ]
    } else {
        [
            (2, Enforced, "own uid and mount root; private /work, /tmp, /var/tmp, /dev/shm"),
            (17, Enforced, "/work is a folder of this payload alone"),
            (18, Enforced, "/work is made empty for this payload and removed after it"),
            (33, Enforced, "fresh root and private folders, removed after the whole PID namespace is dead"),
        ]
    };
    let mounts = if facts.exposed {
        (8, Degraded, "empty root with system folders and the agent's `expose` list, read-only")
    } else {
        (8, Enforced, "empty root with /usr, a made-up /etc, minimal /dev, fresh /proc, private folders")
    };
    let common = [
        (
            1,
            Enforced,
            "user, mount, PID, IPC, net, UTS and cgroup namespaces per payload; no limits on memory, pids or CPU yet",
        ),
        (3, Enforced, "files of the pilot are not in the mount root; own uid"),
        (5, Enforced, "own PID namespace and uid; no capabilities"),
        (6, Enforced, "own PID namespace and uid; init is not dumpable; the VM's own ports are unreachable"),
        mounts,
        (9, Enforced, "own PID namespace, killed with its first process, its pilot or the agent"),
        (10, Enforced, "own IPC namespace, /dev/shm and abstract sockets (own net namespace)"),
        (11, Off, "tokens are not looked at"),
        (16, Degraded, "shared folders are read-only; network file systems follow their own rules"),
        (19, Enforced, "no folder is writable and shared"),
        (20, Enforced, "environment is an allow-list with a fixed PATH; no folder is writable and shared"),
        (23, Degraded, "nosuid mounts and no_new_privs; no seccomp filter yet"),
        (26, Enforced, "own folders and IPC namespace"),
        (27, Enforced, "own uid per payload, mapped to one uid inside"),
        (29, Enforced, "the pilot's files, processes, sockets and the agent's channel are out of reach"),
        (34, Degraded, "nothing writable is shared; no limits on memory, pids, CPU or disk yet"),
        (37, Enforced, "own net namespace, own source ports by SNAT keyed by interface and address; no IPv6"),
    ];
    common.into_iter().chain(work).filter_map(entry).collect()
}

/// `None` only for a text that is no label, which the test rules out.
fn entry((rule, state, how): (u8, RuleState, &str)) -> Option<(String, Enforcement)> {
    Some((format!("R-ISO-{rule}"), Enforcement { state, how: Label::new(how).ok()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_fits_and_the_weak_case_says_so() {
        let strong = manifest(Facts { own_work: false, exposed: false });
        let weak = manifest(Facts { own_work: true, exposed: true });
        assert_eq!((strong.len(), weak.len()), (21, 21));
        for rule in ["R-ISO-2", "R-ISO-8", "R-ISO-17"] {
            assert_eq!(weak.get(rule).map(|e| e.state), Some(RuleState::Degraded), "{rule}");
        }
        assert_eq!(weak.get("R-ISO-18").map(|e| e.state), Some(RuleState::Off));
    }
}
