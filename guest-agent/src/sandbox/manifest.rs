//! What was in force for a payload, rule by rule of the WLCG recommendations, in words for an auditor. What is not in force is
//! `off`, never left out.

use std::collections::BTreeMap;

use vestigo_model::{Enforcement, Label, RuleState};

use RuleState::{Degraded, Enforced, Off};

use super::landlock::Applied;
use crate::{cgroup::Limits, shape::Shape};

/// What differs from one payload to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// What was opened.
    pub shape: Shape,
    /// The agent's configuration shows more folders than the system's.
    pub exposed: bool,
    /// In force.
    pub limits: Limits,
    /// What Landlock adds; `None` where it was not asked for.
    pub landlock: Option<Applied>,
    /// Whether the token was readable; `None` without one.
    pub token: Option<bool>,
    /// It has an IPv6 address of its own.
    pub ipv6: bool,
}

type Line = (u8, RuleState, String);

/// The manifest.
#[must_use]
pub fn manifest(facts: &Facts) -> BTreeMap<String, Enforcement> {
    let lines = [files(facts), processes(facts), rights(facts), fixed()];
    lines.into_iter().flatten().map(entry).collect()
}

fn entry((rule, state, how): Line) -> (String, Enforcement) {
    (format!("R-ISO-{rule}"), Enforcement { state, how: Label::cut(&how) })
}

/// `1 folder`, `2 folders`.
#[must_use]
pub(crate) fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Files: 2, 3, 8, 16 to 21, 26, 33.
fn files(facts: &Facts) -> Vec<Line> {
    let shape = &facts.shape;
    let shown = shape.binds.len() + usize::from(facts.exposed);
    let written = shape.binds.iter().filter(|bind| bind.writable).count() + usize::from(shape.work);
    let root = match (shape.rootfs, shown) {
        (false, 0) => {
            (Enforced, "empty root with the VM's system folders, made-up /etc, minimal /dev, fresh /proc".into())
        }
        (true, 0) => (Enforced, "root of another system, read-only, with minimal /dev and fresh /proc".into()),
        (_, more) => (
            Degraded,
            format!("allow-list root; {} shown by the pilot or the configuration", counted(more, "more folder")),
        ),
    };
    let locks = match &facts.landlock {
        Some(applied) if applied.fs => format!("; Landlock ABI {}", applied.abi),
        _ => String::new(),
    };
    let own = (Enforced, format!("own uid, mount root, /work, /tmp, /var/tmp, /dev/shm{locks}"));
    let locked = facts.landlock.as_ref().is_some_and(|applied| applied.fs);
    let shared = |fine: &str| match written {
        // The read-only mark of a mount does not pass to what is mounted below it afterwards.
        _ if facts.exposed && !locked => (
            Degraded,
            "what is mounted later below a folder of `expose` is as writable as its own rights say: no Landlock rules"
                .to_owned(),
        ),
        0 => (Enforced, fine.to_owned()),
        n => (
            Enforced,
            format!(
                "{} of the caller's to write to; no payload of another user has any meanwhile",
                counted(n, "folder")
            ),
        ),
    };
    let clean = if shape.work {
        (Off, "home is a folder of the caller's with what the caller put there".to_owned())
    } else {
        (Enforced, "/work is made empty for this payload and removed after it".to_owned())
    };
    let residue = match written {
        0 => (Enforced, "fresh root and private folders, removed after all its processes are dead".to_owned()),
        n => (
            Degraded,
            format!(
                "as far as the sandbox goes; what stays in {} of the caller's is the caller's care",
                counted(n, "folder")
            ),
        ),
    };
    let secrets = match shown + written {
        0 => {
            (Enforced, "nothing of the VM is shown but system folders; no user's files, no secrets of /etc".to_owned())
        }
        n => (
            Degraded,
            format!("{} of the caller's or the configuration shown as it is in the VM", counted(n, "folder")),
        ),
    };
    let line = |rule: u8, (state, how): (RuleState, String)| (rule, state, how);
    vec![
        line(2, own.clone()),
        line(3, (Enforced, "files of the pilot are not in the mount root; own uid".into())),
        line(4, secrets.clone()),
        line(8, root),
        line(16, (Degraded, "shared folders are read-only; network file systems follow their own rules".into())),
        line(17, shared("/work is a folder of this payload alone")),
        line(18, clean),
        line(19, shared("no folder is writable and shared")),
        line(
            20,
            (
                Enforced,
                "environment is an allow-list; search paths are absolute and hold no shared writable folder".into(),
            ),
        ),
        line(21, secrets),
        line(26, own),
        line(33, residue),
    ]
}

/// Processes and what they use: 1, 5, 6, 7, 9, 10, 34.
fn processes(facts: &Facts) -> Vec<Line> {
    let missing: Vec<&str> = [(facts.limits.memory.is_none(), "memory"), (facts.limits.pids.is_none(), "processes")]
        .into_iter()
        .filter_map(|(missing, what)| missing.then_some(what))
        .collect();
    let limits = if missing.is_empty() {
        (
            Enforced,
            "nothing writable is shared; cgroup limits on memory and processes, connections bounded; no disk quota"
                .to_owned(),
        )
    } else {
        (Degraded, format!("nothing writable is shared; no limit on {} (no cgroup controller)", missing.join(", ")))
    };
    let scoped = facts.landlock.as_ref().is_some_and(|applied| applied.scoped);
    let ipc = if scoped { "; signals and abstract sockets scoped by Landlock" } else { "" };
    vec![
        (1, Enforced, "user, mount, PID, IPC, net, UTS and cgroup namespaces per payload".into()),
        (5, Enforced, "own PID namespace and uid; no capabilities; system call filter".into()),
        (6, Enforced, "own PID namespace and uid; init is not dumpable; the VM's own ports are unreachable".into()),
        (7, Enforced, "no process outside of the payload can be seen, signalled or traced".into()),
        (9, Enforced, "own PID namespace, killed with its first process, its pilot or the agent".into()),
        (10, Enforced, format!("own IPC namespace, /dev/shm, /dev/mqueue, abstract sockets (own net namespace){ipc}")),
        (34, limits.0, limits.1),
    ]
}

/// Identities, credentials, privileges, network: 11, 23, 29, 31, 35 to 37.
fn rights(facts: &Facts) -> Vec<Line> {
    let token = match facts.token {
        None => (Enforced, "no credential is given to the payload".to_owned()),
        Some(true) => (Enforced, "its token carries no compute.* scope and is not the pilot's".to_owned()),
        Some(false) => (Degraded, "its token is opaque: nothing can be known of its scopes".to_owned()),
    };
    let nested = facts.shape.nested;
    let privileges = if nested {
        (
            Degraded,
            "no_new_privs, nosuid mounts; user namespaces and mounts in them were allowed, network namespaces not"
                .to_owned(),
        )
    } else {
        (
            Enforced,
            "no_new_privs, nosuid mounts, no capabilities, no namespaces of its own, system call filter".to_owned(),
        )
    };
    let nesting = if nested {
        "user and mount namespaces, whole /proc"
    } else {
        "needs no privilege of a container tool; off unless asked for"
    };
    let network =
        if facts.ipv6 { "own source ports by SNAT, own IPv6 address" } else { "own source ports by SNAT; no IPv6" };
    vec![
        (11, token.0, token.1.clone()),
        (23, privileges.0, privileges.1),
        (29, Enforced, "the pilot's files, processes, sockets, tokens and the agent's channel are out of reach".into()),
        (31, token.0, token.1),
        (35, Enforced, "no set-uid program; CVMFS by `expose`; the payload may have another system's root".into()),
        (36, Enforced, nesting.into()),
        (37, Enforced, format!("own net namespace; {network}, keyed by interface and address")),
    ]
}

/// What is the same for all: 12 to 15 speak of pilots that cannot make containers.
fn fixed() -> Vec<Line> {
    let containers = "does not apply: every payload has containers of its own";
    vec![
        (12, Enforced, containers.into()),
        (13, Enforced, containers.into()),
        (14, Enforced, "own uid for every payload that runs".into()),
        (15, Enforced, containers.into()),
        (22, Enforced, "one agent for all VOs of the VM, started by its init".into()),
        (24, Enforced, "no set-uid wrapper: the caller needs no privilege".into()),
        (25, Enforced, "nothing is offered that unprivileged namespaces do not have, the network apart".into()),
        (27, Enforced, "own uid per payload, mapped to one uid inside, recorded with its user".into()),
        (28, Enforced, "the pilot needs no privilege; it may call the agent and no more".into()),
        (30, Enforced, "every payload is apart from every other in files, processes, IPC and network".into()),
        (32, Enforced, "the caller's uid is given up for the payload's own before its program is opened".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Bind;

    fn usual() -> Facts {
        let limits = Limits { memory: Some(1 << 30), pids: Some(100), cpu: None };
        Facts { limits, ..Facts::default() }
    }

    #[test]
    fn every_rule_has_a_line_and_no_text_is_cut() {
        let manifest = manifest(&usual());
        let all: Vec<String> = (1..=37).map(|rule| format!("R-ISO-{rule}")).collect();
        assert!(all.iter().all(|rule| manifest.contains_key(rule)) && manifest.len() == 37);
        let bad: Vec<_> =
            manifest.iter().filter(|(_, e)| e.state != Enforced || e.how.as_str().ends_with('…')).collect();
        assert_eq!(bad.len(), 1, "only network file systems are beyond the agent: {bad:?}");
    }

    #[test]
    fn what_is_opened_weakens_its_rules_and_no_others() {
        let weak = |facts: &Facts| -> Vec<String> {
            let (fine, manifest) = (manifest(&usual()), manifest(facts));
            let mut rules: Vec<String> = manifest
                .iter()
                .filter(|(rule, e)| fine.get(*rule).map(|f| f.state) != Some(e.state))
                .map(|(r, _)| r.clone())
                .collect();
            rules.sort();
            rules
        };
        let shape = |shape: Shape| Facts { shape, ..usual() };
        assert_eq!(
            weak(&shape(Shape { work: true, ..Shape::default() })),
            ["R-ISO-18", "R-ISO-21", "R-ISO-33", "R-ISO-4"]
        );
        let bind = Bind { target: "/d".into(), writable: false };
        assert_eq!(weak(&shape(Shape { binds: vec![bind], ..Shape::default() })), ["R-ISO-21", "R-ISO-4", "R-ISO-8"]);
        let exposed = Facts { exposed: true, ..usual() };
        assert_eq!(weak(&exposed), ["R-ISO-17", "R-ISO-19", "R-ISO-21", "R-ISO-4", "R-ISO-8"]);
        let locks = Applied { abi: 7, fs: true, scoped: true, missing: Vec::new() };
        assert_eq!(weak(&Facts { landlock: Some(locks), ..exposed }), ["R-ISO-21", "R-ISO-4", "R-ISO-8"]);
        assert_eq!(weak(&shape(Shape { nested: true, ..Shape::default() })), ["R-ISO-23"]);
        assert_eq!(weak(&Facts { limits: Limits::default(), ..usual() }), ["R-ISO-34"]);
        assert_eq!(weak(&Facts { token: Some(false), ..usual() }), ["R-ISO-11", "R-ISO-31"]);
    }
}
