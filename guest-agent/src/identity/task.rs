//! A task that its user signed: a small JSON statement and a detached SSH signature over its exact bytes.
//!
//! The statement binds a user to one program and one set of arguments, for some sites and for a limited time and number of
//! runs. Whoever carries it (a pilot, a broker) can start that and nothing else in the user's name. How often it was
//! started is counted by hostd, which sees every VM of the host; all else is checked here.

use std::{collections::BTreeSet, ffi::OsString, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, Label, PayloadId, PilotId, Timestamp, User, Vo};

use super::{
    pattern,
    signers::{self, AllowedSigners, NotAllowed},
    sshsig::{self, SignatureError},
};

/// Largest statement.
pub const MAX_STATEMENT: usize = 64 << 10;
/// Longest life of a statement: a forgotten one must not stay a key for years.
pub const MAX_LIFE: Duration = Duration::from_secs(31 * 24 * 3600);
/// Most runs of one statement.
pub const MAX_RUNS: u32 = 10_000;
/// Most entries of each list.
pub const MAX_ENTRIES: usize = 256;
/// The version of the format.
pub const VERSION: u32 = 1;

/// The user, as the statement names him. Its own type because the record's ignores unknown members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signatory {
    /// Who knows the user by that name.
    pub issuer: Label,
    /// The name there.
    pub subject: Label,
}

/// A file that the task reads. Recorded, not checked: only the payload knows when and where it reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// What the user calls it.
    pub name: Label,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// Random text that makes each statement another: 32 to 128 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(String);

impl Nonce {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Nonce {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let good = matches!(text.len(), 32..=128) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text)) } else { Err("the nonce is not 32 to 128 lower-case hexadecimal digits") }
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.0
    }
}

/// What the user signs. Every member is needed unless said otherwise, an unknown one is refused: it might be a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Version of this format: 1.
    pub vestigo_task: u32,
    /// The user's or VO's name for the task.
    pub task: PayloadId,
    /// For which VO.
    pub vo: Vo,
    /// In whose name.
    pub user: Signatory,
    /// SHA-256 of the program file: of the script itself if it is one.
    pub executable: Digest,
    /// See [`arguments`].
    pub arguments: Digest,
    /// Files that the task reads; may be absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// Names of sites (or of a VO's pool of VMs) where it may run.
    pub audience: Vec<Label>,
    /// First instant.
    pub not_before: Timestamp,
    /// Last instant of a start; at most 31 days after `not_before`.
    pub expires: Timestamp,
    /// Makes it unique.
    pub nonce: Nonce,
    /// How often it may be started.
    pub runs: u32,
    /// Patterns (`*`, `?`) of the pilots that may start it; any when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pilots: Vec<Label>,
}

/// What the caller wants to start, and where.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The VO that the pilot names.
    pub vo: &'a Vo,
    /// The user that the pilot names, if it does: then it must be the statement's.
    pub user: Option<&'a User>,
    /// The pilot.
    pub pilot: &'a PilotId,
    /// The names of this agent (`audience` in its configuration).
    pub audience: &'a [Label],
    /// The command, the program's name first.
    pub command: &'a [OsString],
}

/// Why a signed task is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// Too big.
    #[error("the task statement is larger than {} KiB", MAX_STATEMENT >> 10)]
    Size,
    /// Of a later format.
    #[error(
        "the task statement is of version {0}, this agent knows {VERSION}; write it with this release of guest-agent"
    )]
    Version(u64),
    /// Not a statement.
    #[error("the task statement cannot be read: {0}; write it with: guest-agent task statement")]
    Format(String),
    /// A value that no statement may have.
    #[error("the task statement is not usable: {0}")]
    Limits(String),
    /// The signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The signer.
    #[error(transparent)]
    Signer(#[from] NotAllowed),
    /// Another VO.
    #[error("the task was signed for VO {signed}, asked for {asked}")]
    Vo {
        /// In the statement.
        signed: Vo,
        /// By the caller.
        asked: Vo,
    },
    /// Another user.
    #[error("the task was signed by {signed}, asked for {asked}; name the user who signed it, or none")]
    User {
        /// In the statement.
        signed: Box<User>,
        /// By the caller.
        asked: Box<User>,
    },
    /// Another pilot.
    #[error("the task may not be started by pilot {0}; the user signed it for other pilots")]
    Pilot(PilotId),
    /// The agent has no name.
    #[error("this agent has no name that a task could be signed for; set audience = [\"SITE\"] in its configuration")]
    NoAudience,
    /// Another site.
    #[error("the task was signed for {signed}, this is {here}; sign it for this site as well")]
    Audience {
        /// In the statement.
        signed: String,
        /// The names of this agent.
        here: String,
    },
    /// Too soon.
    #[error("the task may not start before {0}; wait, or check the clock of this VM")]
    Early(Timestamp),
    /// Too late.
    #[error("the task's signature ended at {0}; ask the user to sign it again")]
    Expired(Timestamp),
    /// Other arguments.
    #[error(
        "the arguments are not the signed ones (digest {found}, signed {signed}); start exactly the signed command"
    )]
    Arguments {
        /// Of the command.
        found: Digest,
        /// In the statement.
        signed: Digest,
    },
    /// Another program.
    #[error("the program is not the signed one (SHA-256 {found}, signed {signed}); start exactly the signed file")]
    Executable {
        /// Of the opened file.
        found: Digest,
        /// In the statement.
        signed: Digest,
    },
}

/// A statement whose signature, signer, time and place were good. Only [`verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTask {
    statement: Statement,
    user: User,
    digest: Digest,
    fingerprint: String,
    principal: String,
    line: usize,
}

impl SignedTask {
    /// What was signed.
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Who signed it.
    #[must_use]
    pub fn user(&self) -> &User {
        &self.user
    }

    /// SHA-256 of the statement's bytes: what identifies it in records.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// `SHA256:…` of the key.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The user's name in `allowed_signers`.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// The line of `allowed_signers` that vouched.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// Whether the opened file is the signed program. To be asked with the digest of what will be executed.
    ///
    /// # Errors
    /// When it is another.
    pub fn permits(&self, executable: &Digest) -> Result<(), TaskError> {
        let signed = self.statement.executable;
        if signed == *executable { Ok(()) } else { Err(TaskError::Executable { found: *executable, signed }) }
    }
}

/// The digest of a command's arguments: SHA-256 over the last path component of the program's name and each argument after
/// it, each followed by one NUL byte (which no argument can hold). `printf '%s\0' run.sh -n 5 | sha256sum` prints it.
///
/// The folder of the program does not count, as it differs between sites; its name does, as some programs act by it.
#[must_use]
pub fn arguments(command: &[OsString]) -> Digest {
    let mut hash = Sha256::new();
    for (place, argument) in command.iter().enumerate() {
        let name = Path::new(argument).file_name().filter(|_| place == 0);
        hash.update(name.unwrap_or(argument).as_bytes());
        hash.update([0]);
    }
    Digest(hash.finalize().into())
}

/// Reads a statement and checks all that does not depend on where and when.
///
/// # Errors
/// When it is not one.
pub fn parse(bytes: &[u8]) -> Result<Statement, TaskError> {
    if bytes.len() > MAX_STATEMENT {
        return Err(TaskError::Size);
    }
    let statement: Statement = serde_json::from_slice(bytes).map_err(|error| other_version(bytes, &error))?;
    check(&statement).map_err(TaskError::Limits)?;
    Ok(statement)
}

/// A later version has members that we do not know: its number says more than their names.
fn other_version(bytes: &[u8], error: &serde_json::Error) -> TaskError {
    #[derive(Deserialize)]
    struct OnlyVersion {
        vestigo_task: u64,
    }
    match serde_json::from_slice::<OnlyVersion>(bytes) {
        Ok(only) if only.vestigo_task != u64::from(VERSION) => TaskError::Version(only.vestigo_task),
        _ => TaskError::Format(super::printable(&error.to_string())),
    }
}

fn check(statement: &Statement) -> Result<(), String> {
    let Statement { vestigo_task, inputs, audience, not_before, expires, runs, pilots, .. } = statement;
    if *vestigo_task != VERSION {
        return Err(format!("its version is {vestigo_task}, this agent knows {VERSION}"));
    }
    if audience.is_empty() {
        return Err("audience is empty; name the sites where it may run".into());
    }
    if [inputs.len(), audience.len(), pilots.len()].iter().any(|n| *n > MAX_ENTRIES) {
        return Err(format!("a list has more than {MAX_ENTRIES} entries"));
    }
    if inputs.iter().map(|i| &i.name).collect::<BTreeSet<_>>().len() != inputs.len() {
        return Err("two inputs have the same name".into());
    }
    if !(1..=MAX_RUNS).contains(runs) {
        return Err(format!("runs is {runs}; 1 to {MAX_RUNS} are allowed"));
    }
    if expires <= not_before {
        return Err("expires is not after not_before".into());
    }
    if expires.since(*not_before) > MAX_LIFE {
        return Err("it lives longer than 31 days; sign for a shorter time".into());
    }
    Ok(())
}

/// Decides whether the user signed this task for here and now. The program itself is checked later, by
/// [`SignedTask::permits`], when the file that will run is open and hashed; and hostd refuses one run too many.
///
/// # Errors
/// The first thing that differs.
pub fn verify(
    statement: &[u8],
    signature: &[u8],
    signers: &AllowedSigners,
    now: Timestamp,
    asked: &Asked<'_>,
) -> Result<SignedTask, TaskError> {
    let read = parse(statement)?;
    let key = sshsig::verify(statement, signature)?;
    let user = User { issuer: read.user.issuer.clone(), subject: read.user.subject.clone() };
    let principal = signers::principal(&user);
    let line = signers.allow(&principal, &key, sshsig::NAMESPACE, now)?;
    fits(&read, &user, now, asked)?;
    let fingerprint = signers::fingerprint(&key);
    Ok(SignedTask { statement: read, user, digest: Digest::of(statement), fingerprint, principal, line })
}

fn fits(signed: &Statement, user: &User, now: Timestamp, asked: &Asked<'_>) -> Result<(), TaskError> {
    if signed.vo != *asked.vo {
        return Err(TaskError::Vo { signed: signed.vo.clone(), asked: asked.vo.clone() });
    }
    if let Some(other) = asked.user.filter(|named| *named != user) {
        return Err(TaskError::User { signed: Box::new(user.clone()), asked: Box::new(other.clone()) });
    }
    if now < signed.not_before {
        return Err(TaskError::Early(signed.not_before));
    }
    if now >= signed.expires {
        return Err(TaskError::Expired(signed.expires));
    }
    if asked.audience.is_empty() {
        return Err(TaskError::NoAudience);
    }
    if !signed.audience.iter().any(|name| asked.audience.contains(name)) {
        let (signed, here) = (listed(&signed.audience), listed(asked.audience));
        return Err(TaskError::Audience { signed, here });
    }
    let allowed = |pattern: &Label| pattern::matches(asked.pilot.as_str(), pattern.as_str());
    if !signed.pilots.is_empty() && !signed.pilots.iter().any(allowed) {
        return Err(TaskError::Pilot(asked.pilot.clone()));
    }
    let found = arguments(asked.command);
    if found != signed.arguments {
        return Err(TaskError::Arguments { found, signed: signed.arguments });
    }
    Ok(())
}

fn listed(names: &[Label]) -> String {
    names.iter().take(8).map(Label::as_str).collect::<Vec<_>>().join(", ")
}
