//! The bearer token that a payload is given: what it may not be (R-ISO-11), what it says, and how it is handed over.
//!
//! Whoever can use the payload's token with the VO's framework can obtain new payloads and run them outside all that this
//! agent does. So a token that allows that is refused whether or not its signature can be checked: the pilot could as well
//! have been careless with a good one.

use std::{
    fs::File,
    io::{self, Seek, Write},
    os::fd::OwnedFd,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::{Mode, fchmod},
    },
};
use serde::{Deserialize, Serialize};
use vestigo_model::{Digest, Label, Timestamp};

use super::{
    jwt::{self, Claims, Jwt, JwtError, Words},
    keys::{TokenKeys, Verified},
};

/// Longest life of an access token in the WLCG profile 1.3.
pub const PROFILE_LIFE: Duration = Duration::from_secs(6 * 3600);
/// How far the issuer's clock may be ahead of ours.
const SKEW: Duration = Duration::from_secs(60);

/// What a site lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenPolicy {
    /// Longest time that a token may still be good for. Nobody revokes access tokens.
    pub max_left: Duration,
    /// Whether a token that is no JWT may be handed over although nothing can be known about it.
    pub opaque: bool,
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self { max_left: Duration::from_secs(24 * 3600), opaque: false }
    }
}

/// Why a token is not handed to a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Unreadable.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// Not signed at all.
    #[error("the token is not signed (alg none), so it is no token; get one from its issuer")]
    Unsigned,
    /// It can obtain work.
    #[error(
        "the token carries {0}, by which new payloads can be obtained; give the payload a token without it (R-ISO-11)"
    )]
    Compute(String),
    /// The pilot's.
    #[error("this is the pilot's own token ({0}); get another of narrow scope for the payload (R-ISO-11)")]
    PilotsOwn(&'static str),
    /// Over.
    #[error("the token expired at {0}; get a new one")]
    Expired(Timestamp),
    /// Not begun.
    #[error("the token is not valid before {0}; wait, or check the clock of this VM")]
    Early(Timestamp),
    /// Good for too long.
    #[error("the token is good until {until}, longer than the {hours} hours that are allowed here; get a shorter one")]
    Long {
        /// Its end.
        until: Timestamp,
        /// The limit.
        hours: u64,
    },
}

/// What is needed to know a pilot's token again, without the token: this goes from the pilot's process to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMark {
    /// `iss` and `jti`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<(String, String)>,
    /// SHA-256 of the whole.
    pub sha256: Digest,
    /// SHA-256 of the claims as they stand in it: the same under another signature is the same token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Digest>,
    /// `iss` and `sub`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<(String, String)>,
}

impl TokenMark {
    /// Of a token's bytes; `None` when they cannot be a token at all (an empty file, a proxy).
    #[must_use]
    pub fn of(token: &[u8]) -> Option<Self> {
        let text = jwt::trim(token).ok()?;
        let sha256 = Digest::of(text.as_bytes());
        Some(match jwt::parse(token) {
            Ok(jwt) => {
                let Claims { iss, sub, jti, .. } = &jwt.claims;
                let issuer = iss.as_str().to_owned();
                Self {
                    number: jti.clone().map(|jti| (issuer.clone(), jti)),
                    sha256,
                    body: Some(Digest::of(jwt.body.as_bytes())),
                    subject: Some((issuer, sub.as_str().to_owned())),
                }
            }
            Err(_) => Self { number: None, sha256, body: None, subject: None },
        })
    }
}

/// What is known about a payload's token: for the record and the isolation manifest. Never the token itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFacts {
    /// SHA-256 of the token.
    pub sha256: Digest,
    /// What it says; `None` if opaque.
    pub claims: Option<TokenClaims>,
    /// Whether its issuer signed it.
    pub verified: Verified,
}

/// What a token says of itself: a claim unless verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenClaims {
    /// Who issued it.
    pub issuer: Label,
    /// About whom.
    pub subject: Label,
    /// Its number.
    pub jti: Option<String>,
    /// End.
    pub expires: Timestamp,
    /// Scopes, in its order.
    pub scopes: Vec<String>,
    /// For whom.
    pub audience: Vec<String>,
    /// VO groups.
    pub groups: Vec<String>,
    /// Version of the WLCG profile.
    pub profile: Option<String>,
    /// It is good for longer than the profile allows (6 h): nobody can take it back meanwhile.
    pub long_lived: bool,
    /// The pilot's own token has the same issuer and subject: the payload acts under the pilot's name elsewhere.
    pub pilots_subject: bool,
}

/// Checks what R-ISO-11 wants of a payload's token, and its times. `pilot` are the marks of every token that the pilot
/// itself holds.
///
/// # Errors
/// When the payload may not have it.
pub fn check_payload_token(
    token: &[u8],
    pilot: &[TokenMark],
    keys: &TokenKeys,
    policy: TokenPolicy,
    now: Timestamp,
) -> Result<TokenFacts, TokenError> {
    let sha256 = Digest::of(jwt::trim(token)?.as_bytes());
    if pilot.iter().any(|mark| mark.sha256 == sha256) {
        return Err(TokenError::PilotsOwn("the same bytes"));
    }
    let jwt = match jwt::parse(token) {
        Err(JwtError::Opaque) if policy.opaque => {
            let verified = Verified::No("the token is opaque".into());
            return Ok(TokenFacts { sha256, claims: None, verified });
        }
        other => other?,
    };
    refuse_pilots(&jwt, pilot)?;
    if jwt.header.alg.eq_ignore_ascii_case("none") || jwt.signature.is_empty() {
        return Err(TokenError::Unsigned);
    }
    if let Some(scope) = jwt.claims.scopes().find(|scope| obtains_work(scope)) {
        return Err(TokenError::Compute(super::printable(scope)));
    }
    times(&jwt.claims, policy, now)?;
    Ok(TokenFacts { sha256, verified: keys.verify(&jwt), claims: Some(facts(jwt.claims, pilot, now)) })
}

fn refuse_pilots(jwt: &Jwt, pilot: &[TokenMark]) -> Result<(), TokenError> {
    let body = Digest::of(jwt.body.as_bytes());
    if pilot.iter().any(|mark| mark.body == Some(body)) {
        return Err(TokenError::PilotsOwn("the same claims"));
    }
    let Some(jti) = jwt.claims.jti.as_deref() else { return Ok(()) };
    let same = |(issuer, number): &(String, String)| issuer == jwt.claims.iss.as_str() && number == jti;
    if pilot.iter().filter_map(|mark| mark.number.as_ref()).any(same) {
        return Err(TokenError::PilotsOwn("the same jti"));
    }
    Ok(())
}

/// `compute.*` of the WLCG profile, known or not, and HTCondor's own scopes except the one that only looks.
fn obtains_work(scope: &str) -> bool {
    let scope = scope.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
    scope == "compute"
        || scope.starts_with("compute.")
        || scope.starts_with("compute:")
        || (scope.starts_with("condor:") && scope != "condor:/read")
}

fn times(claims: &Claims, policy: TokenPolicy, now: Timestamp) -> Result<(), TokenError> {
    let until = claims.exp.0;
    if until <= now {
        return Err(TokenError::Expired(until));
    }
    if let Some(from) = claims.nbf.filter(|from| from.0 > now + SKEW) {
        return Err(TokenError::Early(from.0));
    }
    if until.since(now) > policy.max_left {
        return Err(TokenError::Long { until, hours: policy.max_left.as_secs() / 3600 });
    }
    Ok(())
}

fn facts(claims: Claims, pilot: &[TokenMark], now: Timestamp) -> TokenClaims {
    let same = |(issuer, subject): &(String, String)| issuer == claims.iss.as_str() && subject == claims.sub.as_str();
    TokenClaims {
        pilots_subject: pilot.iter().filter_map(|mark| mark.subject.as_ref()).any(same),
        long_lived: claims.exp.0.since(now) > PROFILE_LIFE,
        scopes: claims.scopes().map(super::printable).collect(),
        audience: claims.aud.iter().flat_map(Words::texts).map(|name| super::printable(name)).collect(),
        groups: claims.groups.iter().map(|group| super::printable(group)).collect(),
        profile: claims.wlcg_version.as_deref().map(super::printable),
        expires: claims.exp.0,
        jti: claims.jti.as_deref().map(super::printable),
        issuer: claims.iss,
        subject: claims.sub,
    }
}

/// The token in memory that nobody can change, for the payload to inherit: in no file, no argument, no variable.
/// `/proc/self/fd/N` opens it at its start, as often as wanted.
///
/// # Errors
/// As memfd_create(2), or when the bytes are no token.
pub fn sealed(token: &[u8]) -> io::Result<OwnedFd> {
    let text = jwt::trim(token).map_err(io::Error::other)?;
    let fd = memfd_create(c"token", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    // The payload has another uid; it can read, and no seal keeps it from executing but this.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IRGRP | Mode::S_IROTH)?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
