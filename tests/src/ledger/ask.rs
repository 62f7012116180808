//! Asks the built `vestigo` program, and puts its answers into the form in which engines and the generator give theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vestigo_model::{HostId, Label, TimeRange, Timestamp};

use super::truth::{AddressOf, PilotRun, Someone, Sum};

/// Exit code for an answer without anything in it.
const NOTHING: i32 = 3;

/// The program and where it looks.
#[derive(Debug, Clone)]
pub struct Vestigo {
    /// The program.
    pub program: PathBuf,
    /// What every question takes: `--ledger …`.
    pub common: Vec<String>,
    /// Its environment beside the caller's.
    pub env: Vec<(String, String)>,
}

impl Vestigo {
    /// The program of this build, over the ledger in the folder. What it keeps beside the answers (catalog, log of
    /// questions) goes into the folder above.
    ///
    /// # Errors
    /// It is not built, or there is no folder above.
    pub fn over(ledger: &Path) -> Result<Self> {
        let beside = ledger.parent().context("a ledger in a folder of its own")?;
        let config = beside.join("vestigo.toml");
        let log = beside.join("access.jsonl");
        fs::write(&config, format!("[access]\nlog = \"{}\"\n", log.display()))?;
        let env = [
            ("VESTIGO_CASE", "BENCH-1".to_owned()),
            ("VESTIGO_REASON", "a question with a known answer".to_owned()),
            ("VESTIGO_CONFIG", config.display().to_string()),
            ("XDG_CACHE_HOME", beside.join("cache").display().to_string()),
        ];
        Ok(Self {
            program: crate::bins::path("vestigo")?,
            common: vec!["--ledger".to_owned(), ledger.display().to_string()],
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        })
    }

    /// The command of a question, answered in JSON.
    #[must_use]
    pub fn command(&self, question: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(question).args(&self.common).arg("--json").stdin(Stdio::null());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Asks.
    ///
    /// # Errors
    /// It fails, or says something that is no answer.
    pub fn ask(&self, question: &[&str]) -> Result<Value> {
        let output = self.command(question).output().context("cannot start vestigo")?;
        let good = output.status.success() || output.status.code() == Some(NOTHING);
        ensure!(good, "vestigo {} failed: {}", question.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// *Who used this address and port?*
    ///
    /// # Errors
    /// As [`Vestigo::ask`].
    pub fn who(&self, time: Timestamp, ip: IpAddr, port: u16) -> Result<BTreeSet<Someone>> {
        let (time, ip, port) = (time.to_string(), ip.to_string(), port.to_string());
        let said = self.ask(&["who", "--time", &time, "--ip", &ip, "--port", &port])?;
        let seen = items(&said, "/answer/candidates").filter(|c| items(c, "/flows").next().is_some());
        seen.map(|candidate| {
            let facts = candidate.get("host_facts").context("a candidate without host facts")?;
            Ok(Someone {
                host: read(facts, "host")?,
                domain: read(facts, "domain")?,
                vo: facts.get("vo").filter(|vo| !vo.is_null()).map(|_| read(facts, "vo")).transpose()?,
                payload: candidate
                    .pointer("/guest_claims/payload")
                    .map(|uid| uid.as_str().context("a payload's uid").and_then(|uid| Ok(uid.parse()?)))
                    .transpose()?,
            })
        })
        .collect()
    }

    /// *Which addresses did this VO use?* Those that its VMs sent from.
    ///
    /// # Errors
    /// As [`Vestigo::ask`].
    pub fn ips(&self, vo: &str, range: TimeRange) -> Result<BTreeMap<AddressOf, Sum>> {
        let (from, to) = (range.from.to_string(), range.to.to_string());
        let said = self.ask(&["ips", "--vo", vo, "--from", &from, "--to", &to])?;
        let own = items(&said, "/answer/rows").filter(|row| row.get("kind").is_some_and(|kind| kind == "own"));
        let used = own.filter(|row| row.get("flows").is_some_and(|flows| flows != 0));
        used.map(|row| {
            let sum = Sum { flows: number(row, "flows")?, bytes: number(row, "bytes")? };
            Ok(((read(row, "ip")?, read(row, "host")?, read(row, "domain")?), sum))
        })
        .collect()
    }

    /// *Which pilots ran payloads of this user?*
    ///
    /// # Errors
    /// As [`Vestigo::ask`].
    pub fn pilots(&self, issuer: &Label, user: &Label, range: TimeRange) -> Result<BTreeSet<PilotRun>> {
        let (from, to) = (range.from.to_string(), range.to.to_string());
        let user = ["--issuer", issuer.as_str(), "--user", user.as_str()];
        let said = self.ask(&[&["pilots", "--from", &from, "--to", &to], &user[..]].concat())?;
        let mut found = BTreeSet::new();
        for row in items(&said, "/answer/rows") {
            for run in items(row, "/payloads") {
                found.insert((read(row, "pilot")?, read(row, "host")?, read(row, "domain")?, read(run, "payload")?));
            }
        }
        Ok(found)
    }

    /// When which host saw nothing, as the coverage of an answer says it. Of a window of days it only says that something was missing.
    ///
    /// # Errors
    /// As [`Vestigo::ask`].
    pub fn outages(&self, range: TimeRange) -> Result<BTreeSet<(HostId, Timestamp, Timestamp)>> {
        let (from, to) = (range.from.to_string(), range.to.to_string());
        let said = self.ask(&["pilots", "--user", "nobody", "--issuer", "nobody", "--from", &from, "--to", &to])?;
        let mut found = BTreeSet::new();
        for point in items(&said, "/answer/coverage/details") {
            for part in items(point, "/statements").filter(|part| part.get("where").is_some_and(|w| w == "hostd-down"))
            {
                found.insert((read(point, "host")?, read(part, "from")?, read(part, "to")?));
            }
        }
        Ok(found)
    }
}

/// The members of a list; none when there is no list.
pub fn items<'a>(value: &'a Value, place: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(place).and_then(Value::as_array).into_iter().flatten()
}

/// A text of an answer, as what it is.
///
/// # Errors
/// It is not there or something else.
pub fn read<T: serde::de::DeserializeOwned>(value: &Value, name: &str) -> Result<T> {
    let found = value.get(name).with_context(|| format!("no {name} in {value}"))?;
    serde_json::from_value(found.clone()).with_context(|| format!("{name} in {value}"))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value.get(name).and_then(Value::as_u64).with_context(|| format!("no number {name} in {value}"))
}
