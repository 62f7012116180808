//! Asks engines that are none of ours: DuckDB, pyarrow, chDB and Spark, each in a Python process of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vestigo_model::{DomainUuid, HostId, TimeRange, Timestamp};

use super::{
    ask::read,
    truth::{AddressOf, PilotRun, Someone, Sum, WhoPoint},
};
use crate::paths;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// `docs/queries/*.sql` over `views.duckdb.sql`.
    DuckDb,
    /// `docs/queries/questions.py`.
    Arrow,
    /// `docs/queries/*.sql` over `views.clickhouse.sql`.
    ChDb,
    /// `docs/queries/*.sql` over `views.spark.sql`, on a master and two workers.
    Spark,
}

impl Engine {
    const fn script(self) -> &'static str {
        match self {
            Self::DuckDb => "duckdb_engine.py",
            Self::Arrow => "arrow_engine.py",
            Self::ChDb => "chdb_engine.py",
            Self::Spark => "spark_engine.py",
        }
    }

    /// Python with the script; Spark's cluster is in namespaces that nobody else is in and that end with it.
    fn command(self) -> Command {
        let python = paths::venv("python");
        let script = repository().join("tests/engines").join(self.script());
        let mut command = match self {
            Self::Spark => {
                let mut command = Command::new("unshare");
                command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(python);
                command
            }
            _ => Command::new(python),
        };
        // No byte code is left in the tree.
        command.arg("-B").arg(script);
        command
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// A question, and where its answer belongs.
#[derive(Debug, Clone)]
pub struct Question {
    query: &'static str,
    parameters: Value,
}

fn text(time: Timestamp) -> String {
    time.to_string().trim_end_matches('Z').replace('T', " ")
}

impl Question {
    /// `who.sql`
    #[must_use]
    pub fn who(point: &WhoPoint, range: TimeRange) -> Self {
        let parameters =
            json!({ "ip": point.ip, "port": point.port, "since": text(range.from), "until": text(range.to) });
        Self { query: "who", parameters }
    }

    /// `flows-of-address.sql`
    #[must_use]
    pub fn flows_of(ip: std::net::IpAddr) -> Self {
        Self { query: "flows-of-address", parameters: json!({ "ip": ip }) }
    }

    /// `pilots-of-user.sql`; the user by pseudonyms.
    #[must_use]
    pub fn pilots(users: &[String], range: TimeRange) -> Self {
        let parameters = json!({ "users": users, "since": text(range.from), "until": text(range.to) });
        Self { query: "pilots-of-user", parameters }
    }

    /// `addresses-of-vo.sql`
    #[must_use]
    pub fn ips(vo: &str, range: TimeRange) -> Self {
        let parameters = json!({ "vo": vo, "since": text(range.from), "until": text(range.to) });
        Self { query: "addresses-of-vo", parameters }
    }

    /// `coverage-gaps.sql`
    #[must_use]
    pub fn gaps(range: TimeRange) -> Self {
        Self { query: "coverage-gaps", parameters: json!({ "since": text(range.from), "until": text(range.to) }) }
    }
}

/// Rows as an engine gives them: one object each.
pub type Rows = Vec<Value>;

/// Asks all questions of one process.
///
/// # Errors
/// The engine's own word.
pub fn ask(engine: Engine, ledger: &Path, questions: &[Question]) -> Result<Vec<Rows>> {
    let list: Vec<Value> = questions.iter().map(|q| json!({ "query": q.query, "parameters": q.parameters })).collect();
    let queries = repository().join("docs/queries");
    let task = json!({ "ledger": ledger, "queries": queries, "questions": list });
    let mut command = engine.command();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {engine:?}; run tests/prerequisites"))?;
    child.stdin.take().context("the engine's standard input")?.write_all(task.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{engine:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Rows> =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{engine:?} gave no JSON"))?;
    ensure!(answers.len() == questions.len(), "{engine:?} gave {} answers", answers.len());
    Ok(answers)
}

/// The candidates of `who.sql`.
///
/// # Errors
/// A row is not what it should be.
pub fn candidates(rows: &Rows) -> Result<BTreeSet<Someone>> {
    let of_row = |row: &Value| {
        let host: HostId = read(row, "host")?;
        Ok(Someone { host, domain: read(row, "domain")?, vo: read(row, "vo")?, payload: read(row, "payload")? })
    };
    rows.iter().map(of_row).collect()
}

/// The sums of `flows-of-address.sql`.
///
/// # Errors
/// A row is not what it should be.
pub fn sums(rows: &Rows) -> Result<BTreeMap<(HostId, DomainUuid), Sum>> {
    rows.iter().map(|row| Ok(((read(row, "host")?, read(row, "domain")?), sum(row)?))).collect()
}

/// The addresses of `addresses-of-vo.sql`.
///
/// # Errors
/// A row is not what it should be.
pub fn addresses(rows: &Rows) -> Result<BTreeMap<AddressOf, Sum>> {
    rows.iter().map(|row| Ok(((read(row, "ip")?, read(row, "host")?, read(row, "domain")?), sum(row)?))).collect()
}

/// The runs of `pilots-of-user.sql`.
///
/// # Errors
/// A row is not what it should be.
pub fn runs(rows: &Rows) -> Result<BTreeSet<PilotRun>> {
    let of_row =
        |row: &Value| Ok((read(row, "pilot")?, read(row, "host")?, read(row, "domain")?, read(row, "payload")?));
    rows.iter().map(of_row).collect()
}

/// The stretches of `coverage-gaps.sql`, cut to the range, in microseconds.
///
/// # Errors
/// A row is not what it should be.
pub fn outages(rows: &Rows, range: TimeRange) -> Result<BTreeSet<(HostId, i64, i64)>> {
    let micros = |time: Timestamp| time.as_nanos().div_euclid(1000);
    let of_row = |row: &Value| {
        let (since, until): (i64, i64) = (read(row, "since")?, read(row, "until")?);
        Ok((read(row, "host")?, since.max(micros(range.from)), until.min(micros(range.to))))
    };
    rows.iter().map(of_row).collect()
}

fn sum(row: &Value) -> Result<Sum> {
    Ok(Sum { flows: read(row, "flows")?, bytes: read(row, "bytes")? })
}
