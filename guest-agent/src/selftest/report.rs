//! What the selftest says: by probe, by rule of the WLCG recommendations, for people and for programs.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use vestigo_model::{Enforcement, RuleState};

use super::{Finding, Outcome};

/// Version of the JSON form.
pub const VERSION: u32 = 1;

/// How many of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Attempts that failed, as they must.
    pub held: usize,
    /// Attempts that succeeded.
    pub broken: usize,
    /// Probes with nothing to try.
    pub not_tested: usize,
}

/// The payload that tried everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// As the record names it.
    pub payload: String,
    /// Its manifest.
    pub isolation: BTreeMap<String, Enforcement>,
}

/// All probes of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Broken if one is, not tested if all are, else held.
    pub outcome: Outcome,
    /// Those that held.
    pub held: Vec<String>,
    /// Those that are broken.
    pub broken: Vec<String>,
    /// Those that had nothing to try.
    #[serde(rename = "not-tested")]
    pub not_tested: Vec<String>,
}

/// The report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// The agent's.
    pub agent: String,
    /// The kernel's.
    pub kernel: String,
    /// The payload that tried everything, as the record names it.
    pub payload: Option<String>,
    /// What the agent itself says of that payload's sandbox, in the record: only what is not fully enforced.
    #[serde(rename = "not-enforced")]
    pub not_enforced: BTreeMap<String, Enforcement>,
    /// How many of each.
    pub counts: Counts,
    /// By rule, in the order of their numbers.
    #[serde(serialize_with = "by_name")]
    pub rules: BTreeMap<RuleId, Rule>,
    /// By probe.
    pub probes: Vec<Finding>,
}

/// A rule, ordered by number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(u32, String);

impl RuleId {
    fn new(text: &str) -> Self {
        let number = text.rsplit('-').next().and_then(|number| number.parse().ok());
        Self(number.unwrap_or(u32::MAX), text.to_owned())
    }
}

fn by_name<S: serde::Serializer>(rules: &BTreeMap<RuleId, Rule>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(rules.iter().map(|(id, rule)| (&id.1, rule)))
}

/// As in records.
#[must_use]
pub const fn state_name(state: RuleState) -> &'static str {
    match state {
        RuleState::Enforced => "enforced",
        RuleState::Degraded => "degraded",
        RuleState::Off => "off",
    }
}

impl Report {
    /// Sums up.
    #[must_use]
    pub fn new(kernel: String, subject: Option<Subject>, probes: Vec<Finding>) -> Self {
        let mut counts = Counts::default();
        let mut rules: BTreeMap<RuleId, Rule> = BTreeMap::new();
        for finding in &probes {
            match finding.outcome {
                Outcome::Held => counts.held += 1,
                Outcome::Broken => counts.broken += 1,
                Outcome::NotTested => counts.not_tested += 1,
            }
            for id in &finding.rules {
                rules.entry(RuleId::new(id)).or_insert_with(Rule::empty).add(finding);
            }
        }
        let (payload, isolation) = subject.map(|s| (s.payload, s.isolation)).unzip();
        let weak = |(_, enforcement): &(String, Enforcement)| enforcement.state != RuleState::Enforced;
        let not_enforced = isolation.unwrap_or_default().into_iter().filter(weak).collect();
        Self {
            version: VERSION,
            agent: env!("CARGO_PKG_VERSION").into(),
            kernel,
            payload,
            not_enforced,
            counts,
            rules,
            probes,
        }
    }

    /// Whether nothing is broken.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.counts.broken == 0
    }
}

impl Rule {
    fn empty() -> Self {
        Self { outcome: Outcome::NotTested, held: Vec::new(), broken: Vec::new(), not_tested: Vec::new() }
    }

    fn add(&mut self, finding: &Finding) {
        let list = match finding.outcome {
            Outcome::Held => &mut self.held,
            Outcome::Broken => &mut self.broken,
            Outcome::NotTested => &mut self.not_tested,
        };
        list.push(finding.probe.clone());
        self.outcome = match (self.broken.is_empty(), self.held.is_empty()) {
            (false, _) => Outcome::Broken,
            (true, false) => Outcome::Held,
            (true, true) => Outcome::NotTested,
        };
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (RuleId(_, id), rule) in &self.rules {
            write!(f, "{id:<10} {:<10}", rule.outcome.as_str())?;
            let lists = [("broken: ", &rule.broken), ("", &rule.held), ("not tested: ", &rule.not_tested)];
            let said: Vec<_> = lists.iter().filter(|(_, list)| !list.is_empty()).collect();
            for (number, (word, list)) in said.iter().enumerate() {
                write!(f, "{} {word}{}", if number == 0 { "" } else { ";" }, list.join(", "))?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for finding in &self.probes {
            writeln!(f, "{:<20} {:<10}  {}", finding.probe, finding.outcome.as_str(), finding.detail)?;
        }
        if !self.not_enforced.is_empty() {
            writeln!(f, "\nThe agent's own record of this sandbox, as far as it is less than enforced:")?;
        }
        let mut weak: Vec<_> =
            self.not_enforced.iter().map(|(id, enforcement)| (RuleId::new(id), enforcement)).collect();
        weak.sort_by(|a, b| a.0.cmp(&b.0));
        for (RuleId(_, id), Enforcement { state, how }) in weak {
            writeln!(f, "{id:<10} {:<10}  {how}", state_name(*state))?;
        }
        let Counts { held, broken, not_tested } = self.counts;
        writeln!(
            f,
            "\n{held} held, {broken} broken, {not_tested} not tested; agent {}, Linux {}",
            self.agent, self.kernel
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(probe: &str, outcome: Outcome) -> Finding {
        Finding {
            probe: probe.into(),
            rules: vec!["R-ISO-10".into(), "R-ISO-9".into()],
            outcome,
            detail: "seen".into(),
        }
    }

    #[test]
    fn one_broken_probe_breaks_its_rules_and_nothing_hides_what_was_not_tested() {
        let weak = [finding("a", Outcome::Held), finding("b", Outcome::Broken), finding("c", Outcome::NotTested)];
        let report = Report::new("6.1".into(), None, weak.into());
        assert!(!report.holds());
        assert_eq!(report.counts, Counts { held: 1, broken: 1, not_tested: 1 });
        let text = report.to_string();
        assert!(text.starts_with("R-ISO-9    BROKEN     broken: b; a; not tested: c\nR-ISO-10"), "{text}");
        let json = serde_json::to_value(&report).unwrap_or_default();
        assert_eq!(json["rules"]["R-ISO-9"]["outcome"], "broken");
        assert_eq!((&json["version"], &json["probes"][2]["outcome"]), (&1.into(), &"not-tested".into()));
        let untested = Report::new(String::new(), None, vec![finding("c", Outcome::NotTested)]);
        assert!(untested.rules.values().all(|rule| rule.outcome == Outcome::NotTested));
    }
}
