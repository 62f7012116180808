//! `bans.toml`: the bans of a host as an administrator writes them.
//!
//! ```toml
//! [[ban]]
//! id = "ticket-4711"
//! user = { issuer = "https://iam.example", subject = "7b2c" }   # or issuer, vo, pilot, payload, run, executable, key, everything
//! vm = "i-0042"                       # only in this VM: domain's UUID or cloud id; everywhere without it
//! reason = "attacked 192.0.2.7; write to security@example.org"
//! until = "2026-12-01T00:00:00Z"      # until it is lifted without it
//! ```

use serde::Deserialize;
use toml::Spanned;
use vestigo_model::{
    Ban, Digest, InstanceId, Label, PayloadId, PayloadUid, PilotId, Scope, Timestamp, User, Vo,
    settings::{self, Mistake},
};

use super::{BanSet, HostBan};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    ban: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: Label,
    reason: Label,
    until: Option<Timestamp>,
    vm: Option<InstanceId>,
    user: Option<Person>,
    issuer: Option<Label>,
    vo: Option<Vo>,
    pilot: Option<PilotId>,
    payload: Option<PayloadId>,
    run: Option<PayloadUid>,
    executable: Option<Digest>,
    key: Option<Label>,
    everything: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    issuer: Label,
    subject: Label,
}

/// Reads the text of a `bans.toml`; nothing of it holds if anything is wrong.
///
/// # Errors
/// The first [`Mistake`], with its line.
pub fn parse(text: &str) -> Result<BanSet, Mistake> {
    let file: File = settings::parse(text)?;
    let mut bans = Vec::new();
    for entry in file.ban {
        let start = entry.span().start;
        let at = |message| Mistake { line: line_at(text, start), message };
        bans.push(entry.into_inner().ban().map_err(at)?);
    }
    BanSet::new(bans).map_err(|error| Mistake { line: last_line(text), message: error.to_string() })
}

fn line_at(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or_default().matches('\n').count() + 1
}

fn last_line(text: &str) -> usize {
    text.lines().count().max(1)
}

impl Entry {
    fn ban(self) -> Result<HostBan, String> {
        let id = self.id;
        if self.everything == Some(false) {
            return Err(format!("ban {id} has everything = false; leave it out, or remove the ban"));
        }
        if self.key.as_ref().is_some_and(|key| !key.as_str().starts_with("SHA256:")) {
            return Err(format!("ban {id} has a key that is no fingerprint (SHA256:…, as ssh-keygen -l prints it)"));
        }
        let user = self.user.map(|person| Scope::User(User { issuer: person.issuer, subject: person.subject }));
        let mut scopes = [
            user,
            self.issuer.map(Scope::Issuer),
            self.vo.map(Scope::Vo),
            self.pilot.map(Scope::Pilot),
            self.payload.map(Scope::Payload),
            self.run.map(Scope::Run),
            self.executable.map(Scope::Executable),
            self.key.map(Scope::Key),
            self.everything.map(|_| Scope::Everything),
        ]
        .into_iter()
        .flatten();
        let (Some(scope), None) = (scopes.next(), scopes.next()) else {
            return Err(format!(
                "ban {id} needs exactly one of user, issuer, vo, pilot, payload, run, executable, key, everything"
            ));
        };
        Ok(HostBan { ban: Ban { id, scope, reason: self.reason, until: self.until }, vm: self.vm })
    }
}
