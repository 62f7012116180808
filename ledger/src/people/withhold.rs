//! What of a record names or describes a person, taken out and put back. Pure.

use serde::{Deserialize, Serialize};
use vestigo_model::{
    Access, Event, Fact, FactRecord, Holder, Label, PSEUDONYM, PayloadClaim, PayloadUid, TaskMark, Timestamp,
    TokenMark, User,
};

/// Members of an event's detail that name somebody, or describe what they did in words.
const USER: (&str, &str) = ("user-issuer", "user-subject");
const TOLD: (&str, &str) = ("caller", "reason");
/// Member of an event's detail that holds the mark.
const WITHHELD: &str = "withheld";

/// What is sealed: as JSON, members that are not there left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// Who.
    pub user: User,
    /// What they ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Their signed task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskMark>,
    /// Their token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenMark>,
    /// Who asked for it in the VM, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Of a refused start: who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Of a refused start: why, in the agent's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The person in a fact, if there is one. What a VM says of its own traffic names nobody.
pub(super) fn person_of(fact: &Fact) -> Option<Person> {
    match fact {
        Fact::Payload(payload) if payload.claim.holder.is_payload() => Some(of_claim(&payload.claim)),
        Fact::Event(event) => of_event(event),
        _ => None,
    }
}

fn of_claim(claim: &PayloadClaim) -> Person {
    Person {
        user: claim.user.clone(),
        command: claim.command.clone(),
        task: claim.task.clone(),
        token: claim.token.clone(),
        access: claim.access.clone(),
        caller: None,
        reason: None,
    }
}

fn of_event(event: &Event) -> Option<Person> {
    let label = |name: &str| event.detail.get(name).map(|text| Label::cut(text));
    let text = |name: &str| event.detail.get(name).cloned();
    let (issuer, subject) = (label(USER.0), label(USER.1)?);
    let user = User { issuer: issuer.unwrap_or_else(|| Label::cut("-")), subject };
    let (caller, reason) = (text(TOLD.0), text(TOLD.1));
    Some(Person { user, command: Vec::new(), task: None, token: None, access: None, caller, reason })
}

/// Puts the pseudonym in place of the person, and the mark beside it.
pub(super) fn hide(fact: &mut Fact, pseudonym: Label, mark: Label) {
    match fact {
        Fact::Payload(payload) => {
            let claim = &mut payload.claim;
            claim.user = User { issuer: Label::cut(PSEUDONYM), subject: pseudonym };
            claim.withheld = Some(mark);
            claim.command = Vec::new();
            (claim.task, claim.token, claim.access) = (None, None, None);
        }
        Fact::Event(event) => {
            event.detail.remove(TOLD.0);
            event.detail.remove(TOLD.1);
            event.detail.insert(USER.0.to_owned(), PSEUDONYM.to_owned());
            event.detail.insert(USER.1.to_owned(), pseudonym.into());
            event.detail.insert(WITHHELD.to_owned(), mark.into());
        }
        Fact::Instance(_) | Fact::Coverage(_) => {}
    }
}

/// Puts the person back where [`hide`] took it from.
pub(super) fn show_claim(claim: &mut PayloadClaim, person: Person) {
    let Person { user, command, task, token, access, .. } = person;
    (claim.user, claim.command) = (user, command);
    (claim.task, claim.token, claim.access) = (task, token, access);
    claim.withheld = None;
}

/// As [`show_claim`], for an event.
pub(super) fn show_event(event: &mut Event, person: Person) {
    event.detail.remove(WITHHELD);
    event.detail.insert(USER.0.to_owned(), person.user.issuer.into());
    event.detail.insert(USER.1.to_owned(), person.user.subject.into());
    let told = [(TOLD.0, person.caller), (TOLD.1, person.reason)];
    event.detail.extend(told.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))));
}

/// Whether there may be anything in a record to take out.
pub(super) const fn may_name(record: &FactRecord) -> bool {
    record.link.is_some() || matches!(record.fact, Fact::Payload(_) | Fact::Event(_))
}

/// The mark in a fact.
pub(super) fn mark_in(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::Payload(payload) => payload.claim.withheld.as_ref().map(Label::as_str),
        Fact::Event(event) => mark_of(event),
        Fact::Instance(_) | Fact::Coverage(_) => None,
    }
}

/// The mark in an event.
pub(super) fn mark_of(event: &Event) -> Option<&str> {
    event.detail.get(WITHHELD).map(String::as_str)
}

/// The run that a fact is about.
pub(super) fn run_of(fact: &Fact) -> Option<PayloadUid> {
    match fact {
        Fact::Payload(payload) => Some(payload.claim.uid),
        Fact::Event(event) => run_of_event(event),
        _ => None,
    }
}

/// The run that an event is about.
pub(super) fn run_of_event(event: &Event) -> Option<PayloadUid> {
    event.detail.get("run").and_then(|run| run.parse().ok())
}

/// The instant, on the host's clock, that decides which month's keys a record gets: the same for each copy of it.
pub(super) const fn stamped(record: &FactRecord) -> Timestamp {
    match &record.fact {
        Fact::Payload(payload) => payload.received,
        Fact::Event(event) => event.time,
        Fact::Instance(_) | Fact::Coverage(_) => record.recorded,
    }
}

/// Whether two claims under the same key and the same stamps say the same. One of them, or both, may be withheld; under
/// different keys (a VO that was mapped late, a key that was made anew) neither pseudonyms nor marks can be compared, and then the
/// host's stamp, which no two claims share, decides.
pub(crate) fn same_claim(a: &PayloadClaim, b: &PayloadClaim) -> bool {
    let comparable = match (&a.withheld, &b.withheld) {
        (None, None) => true,
        (Some(a), Some(b)) => key_of_mark(a.as_str()) == key_of_mark(b.as_str()),
        _ => false,
    };
    if comparable { a == b } else { bare(a) == bare(b) }
}

fn bare(claim: &PayloadClaim) -> PayloadClaim {
    let nobody = User { issuer: Label::cut(PSEUDONYM), subject: Label::cut("-") };
    let (task, token, access) = (None, None, None);
    PayloadClaim { user: nobody, command: Vec::new(), task, token, access, withheld: None, ..claim.clone() }
}

/// The id of the key in a mark.
pub(super) fn key_of_mark(mark: &str) -> Option<&str> {
    mark.split_once('.').map(|(key, _)| key)
}

/// What the column `user` of payloads says: a pseudonym, or the name where nobody seals.
pub(crate) fn user_column(claim: &PayloadClaim) -> Option<&str> {
    (claim.holder == Holder::Payload).then_some(claim.user.subject.as_str())
}
