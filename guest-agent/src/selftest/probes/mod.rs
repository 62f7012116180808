//! The probes: each tries one thing that must not succeed, harmlessly, and says what came of it.

mod files;
mod ipc;
mod kernel;
mod limits;
mod network;
mod processes;
mod rights;
mod surroundings;

pub(crate) use files::LEFT;
pub use network::marks;
pub use processes::survivor;
pub(crate) use surroundings::namespaces_of;

use super::{Finding, Orders, Outcome, Verdict};

/// Where a probe runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// In the payload that tries everything.
    Attack,
    /// In a payload of its own with small limits.
    Limited,
    /// In a payload that comes after the first.
    After,
    /// In the VM, by the client.
    Client,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Short name.
    pub name: &'static str,
    /// Rules of the WLCG recommendations that it bears on.
    pub rules: &'static [&'static str],
    /// What it tries, in one sentence.
    pub what: &'static str,
    /// Where.
    pub stage: Stage,
    run: fn(&Orders) -> Verdict,
}

impl Probe {
    /// Tries it, in this process: what succeeds changes the process.
    #[must_use]
    pub fn run(&self, orders: &Orders) -> Finding {
        self.finding((self.run)(orders))
    }

    /// What it came to, for the report.
    #[must_use]
    pub fn finding(&self, verdict: Verdict) -> Finding {
        let Verdict { outcome, detail } = verdict;
        Finding {
            probe: self.name.to_owned(),
            rules: self.rules.iter().map(|rule| (*rule).to_owned()).collect(),
            outcome,
            detail,
        }
    }

    /// A finding that says why there is none.
    #[must_use]
    pub fn silent(&self, outcome: Outcome, detail: impl Into<String>) -> Finding {
        self.finding(Verdict { outcome, detail: detail.into() })
    }
}

/// All of them, in the order in which they run.
pub fn all() -> impl Iterator<Item = &'static Probe> {
    // The home folder first: later probes write there.
    let groups = [
        surroundings::PROBES,
        files::PROBES,
        processes::PROBES,
        ipc::PROBES,
        kernel::PROBES,
        rights::PROBES,
        network::PROBES,
        limits::PROBES,
    ];
    groups.into_iter().flatten()
}

/// The one of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Probe> {
    all().find(|probe| probe.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_rules_are_rules() {
        let names: BTreeSet<_> = all().map(|probe| probe.name).collect();
        assert_eq!(names.len(), all().count());
        for probe in all() {
            assert!(!probe.rules.is_empty(), "{}", probe.name);
            let numbered =
                |rule: &&str| rule.strip_prefix("R-ISO-").and_then(|n| n.parse().ok()).is_some_and(|n: u8| n < 38);
            assert!(probe.rules.iter().all(numbered), "{}: {:?}", probe.name, probe.rules);
        }
    }
}
