//! An explanation for people.

use std::fmt;

use super::{Calls, Explanation, Limit, Place, Sources};
use crate::selftest::report::state_name;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sources { agent, kernel, configuration, daemon } = &self.sources;
        writeln!(f, "Agent {agent}, Linux {kernel}\nConfiguration: {configuration}\nDaemon: {daemon}")?;
        let kind = if self.usual { "one that is kept ready" } else { "made to measure" };
        writeln!(f, "Sandbox: {kind}; host name {}; starts in {}", self.hostname, self.directory.display())?;
        writeln!(f, "\nIdentity\n  {}\n\nNamespaces", self.ids)?;
        for namespace in &self.namespaces {
            writeln!(f, "  {:<8} {}", namespace.kind, namespace.what)?;
        }
        writeln!(f, "\nMounts (nothing else is there)")?;
        for Place { at, what, writable } in &self.mounts {
            writeln!(f, "  {} {:<24} {what}", if *writable { "rw" } else { "ro" }, at.display().to_string())?;
        }
        writeln!(f, "\nEnvironment")?;
        for (key, value) in &self.environment {
            writeln!(f, "  {key}={value}")?;
        }
        writeln!(
            f,
            "\nRefused system calls (the rest is allowed; other architectures are killed, newer calls do not exist)"
        )?;
        for Calls { group, why, rules, calls } in &self.system_calls {
            writeln!(f, "  {group} ({}): {why}\n    {}", rules.join(", "), calls.join(", "))?;
        }
        self.locks(f)?;
        writeln!(f, "\nProcesses and limits")?;
        for Limit { part, value, place, possible } in &self.limits {
            let value = value.as_deref().unwrap_or(if *possible { "no limit" } else { "none" });
            writeln!(f, "  {part:<8} {value}; {place}")?;
        }
        writeln!(f, "\nNetwork")?;
        for line in &self.network {
            writeln!(f, "  {line}")?;
        }
        self.rules(f)
    }
}

impl Explanation {
    fn locks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nLandlock (ABI {})", self.landlock.abi)?;
        if self.landlock.fs {
            writeln!(f, "  writes only to the writable folders above, to devices and /proc")?;
        }
        if self.landlock.scoped {
            writeln!(f, "  signals and abstract sockets stay among the payload's processes")?;
        }
        self.landlock.missing.iter().try_for_each(|missing| writeln!(f, "  not in force: {missing}"))
    }

    fn rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nRules, as the record of the payload would have them (without a token)")?;
        let number = |id: &str| id.rsplit('-').next().and_then(|number| number.parse::<u32>().ok());
        let mut rules: Vec<_> = self.isolation.iter().collect();
        rules.sort_by_key(|(id, _)| number(id));
        for (id, rule) in rules {
            writeln!(f, "  {id:<10} {:<9} {}", state_name(rule.state), rule.how)?;
        }
        Ok(())
    }
}
