//! Whose payload it is: from what the pilot says, a signed task, a token.

use std::{ffi::OsString, fs, io::Read, path::Path};

use tracing::warn;
use vestigo_model::{Label, PilotId, TaskMark, Timestamp, TokenMark, Trust, User};

use crate::{
    config::Config,
    identity::{
        keys::{TokenKeys, Verified},
        signers::{self, AllowedSigners},
        task::{self, Asked, SignedTask},
        token::{self, TokenFacts, TokenPolicy},
        trust::{self, Evidence, TrustError},
    },
    protocol::{ExecRequest, Refusal},
};

/// The trust files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {why}")]
pub struct TrustFileError {
    /// Which key of the configuration names it.
    pub key: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// Whom the VO and the site believe.
#[derive(Debug, Default)]
pub struct TrustFiles {
    signers: AllowedSigners,
    keys: TokenKeys,
}

impl TrustFiles {
    /// Reads what the configuration names. All or nothing.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(config: &Config) -> Result<Self, TrustFileError> {
        let mut files = Self::default();
        if let Some(path) = &config.allowed_signers {
            let wrong =
                |why: String| TrustFileError { key: "allowed_signers", why: format!("{}: {why}", path.display()) };
            files.signers = AllowedSigners::parse(&read(path).map_err(wrong)?).map_err(|e| wrong(e.to_string()))?;
            for (line, why) in files.signers.unusable() {
                warn!(file = %path.display(), line, why, "a signer's key is not accepted");
            }
        }
        if let Some(path) = &config.revoked_keys {
            let wrong = |why: String| TrustFileError { key: "revoked_keys", why: format!("{}: {why}", path.display()) };
            files.signers.revoke(&read(path).map_err(wrong)?).map_err(|e| wrong(e.to_string()))?;
        }
        if let Some(folder) = &config.token_keys {
            files.keys =
                TokenKeys::read(folder).map_err(|e| TrustFileError { key: "token_keys", why: e.to_string() })?;
        }
        Ok(files)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let most = u64::try_from(signers::MAX_FILE).unwrap_or(u64::MAX).saturating_add(1);
    fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// What the evidence came to.
#[derive(Debug)]
pub(super) struct Identified {
    pub user: User,
    pub trust: Trust,
    pub task: Option<SignedTask>,
    pub token: Option<TokenFacts>,
}

/// Judges the evidence.
pub(super) fn identify(
    files: &TrustFiles,
    config: &Config,
    request: &ExecRequest,
    pilot: &PilotId,
    now: Timestamp,
) -> Result<Identified, Refusal> {
    let token = match &request.token {
        Some(secret) => {
            let policy = TokenPolicy { max_left: config.token_life(), opaque: config.opaque_tokens };
            let bytes = secret.0.as_bytes();
            let facts = token::check_payload_token(bytes, &request.pilot_tokens, &files.keys, policy, now);
            Some(facts.map_err(|e| Refusal::policy(e.to_string()))?)
        }
        None => None,
    };
    let task = request.task.as_ref().map(|signed| {
        let command: Vec<OsString> = request.command.iter().map(OsString::from).collect();
        let asked = Asked {
            vo: &request.vo,
            user: request.user.as_ref(),
            pilot,
            audience: &config.audience,
            command: &command,
        };
        let (statement, signature) = (signed.statement.as_bytes(), signed.signature.as_bytes());
        task::verify(statement, signature, &files.signers, now, &asked).map_err(|e| Refusal::policy(e.to_string()))
    });
    let task = task.transpose()?;
    let evidence =
        Evidence { named: request.user.as_ref(), task: task.as_ref(), token: token.as_ref(), wanted: request.trust };
    let decision = trust::decide(&evidence, &files.keys).map_err(|error| match error {
        TrustError::Nobody => Refusal::caller(error.to_string()),
        _ => Refusal::policy(error.to_string()),
    })?;
    Ok(Identified { user: decision.user, trust: decision.trust, task, token })
}

impl Identified {
    /// The task, for the record.
    pub(super) fn task_mark(&self) -> Option<TaskMark> {
        let task = self.task.as_ref()?;
        let statement = task.statement();
        Some(TaskMark {
            id: Label::cut(statement.task.as_str()),
            nonce: Label::cut(statement.nonce.as_str()),
            runs: statement.runs,
            not_before: statement.not_before,
            expires: statement.expires,
            statement: task.digest(),
            key: Label::cut(task.fingerprint()),
        })
    }

    /// The token, for the record.
    pub(super) fn token_mark(&self) -> Option<TokenMark> {
        let facts = self.token.as_ref()?;
        let claims = facts.claims.as_ref()?;
        Some(TokenMark {
            issuer: claims.issuer.clone(),
            subject: claims.subject.clone(),
            id: claims.jti.as_deref().map(Label::cut),
            expires: claims.expires,
            verified: facts.verified == Verified::Yes,
        })
    }
}
