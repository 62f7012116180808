//! What tests read out of answers.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{net::Seen, stack::Stack};

/// A moment in RFC 3339, from nanoseconds since 1970.
pub fn rfc3339(nanos: u64) -> Result<String> {
    Ok(vestigo_model::Timestamp::from_nanos(i64::try_from(nanos)?).to_string())
}

/// Now, in RFC 3339.
pub fn now() -> String {
    vestigo_model::Clock::now(&vestigo_model::SystemClock).to_string()
}

/// One candidate of a `who` answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Domain UUID (host fact).
    pub domain: String,
    /// VO of the tenant (host fact); empty when unmapped.
    pub vo: String,
    /// The VO's name for the payload (claim); empty when only the VM is certain.
    pub payload: String,
    /// The user (claim).
    pub user: String,
    /// `lease`, `observed`, `instance`.
    pub quality: String,
}

/// Asks who made a call that a peer saw; `more` are further arguments.
pub fn who(stack: &Stack<'_>, call: &Seen, more: &[&str]) -> Result<Vec<Who>> {
    let (time, port) = (rfc3339(call.time_ns)?, call.port.to_string());
    let mut question = vec!["who", "--time", &time, "--ip", &call.address, "--port", &port, "--json"];
    question.extend(more);
    let said = stack.vestigo(&question)?;
    match said.status {
        0 => candidates(&said.json()?),
        3 => Ok(Vec::new()),
        status => bail!("vestigo {question:?} ended with {status}: {}", said.stderr),
    }
}

/// The candidates of an answer, sorted.
pub fn candidates(answer: &Value) -> Result<Vec<Who>> {
    let list = answer.pointer("/answer/candidates").and_then(Value::as_array).context("no candidates in the answer")?;
    let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut all: Vec<Who> = list
        .iter()
        .map(|one| Who {
            domain: text(one, "/host_facts/domain"),
            vo: text(one, "/host_facts/vo"),
            payload: text(one, "/guest_claims/payload_id"),
            user: text(one, "/guest_claims/user/subject"),
            quality: text(one, "/attribution/quality"),
        })
        .collect();
    all.sort();
    Ok(all)
}
