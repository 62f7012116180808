//! What stands behind the user's name, from the evidence at hand. One kind per payload, never a mixture.

use vestigo_model::{Trust, User};

use super::{
    keys::{TokenKeys, Verified},
    task::SignedTask,
    token::TokenFacts,
};

/// What is at hand. Every part was checked by itself before.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The user that the pilot names.
    pub named: Option<&'a User>,
    /// A verified task.
    pub task: Option<&'a SignedTask>,
    /// The payload's token.
    pub token: Option<&'a TokenFacts>,
    /// The kind of trust that the pilot asks for; the strongest there is when absent.
    pub wanted: Option<Trust>,
}

/// Whose payload it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The kind of evidence.
    pub trust: Trust,
    /// The user: under the issuer's own name (`iss`) where a key file lists the other as `known_as`.
    pub user: User,
    /// One sentence for the record.
    pub why: String,
}

/// Why the evidence does not make one user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Nobody is named.
    #[error("nobody says whose payload this is; name the user (--user-issuer, --user-subject) or give a signed task")]
    Nobody,
    /// Two users.
    #[error("the {first} is of {one}, the {second} of {other}; both must be of the same user")]
    Differ {
        /// One piece of evidence.
        first: &'static str,
        /// Its user.
        one: Box<User>,
        /// The other.
        second: &'static str,
        /// Its user.
        other: Box<User>,
    },
    /// A trust level was asked for whose evidence is missing.
    #[error("trust {wanted} was asked for, but {why}", wanted = .wanted.as_str())]
    Missing {
        /// The level.
        wanted: Trust,
        /// What is missing and what to do.
        why: String,
    },
    /// Less was asked for than is there.
    #[error("a signed task was given and trust {asked} asked for; leave one of the two out", asked = .0.as_str())]
    Weaker(Trust),
}

/// Decides.
///
/// - A signed task makes it `signed-by-user`. A token beside it must be of the same user.
/// - Else a verified token of the very user that is named (or of anybody, when nobody is) makes it `asserted-by-token`.
/// - Else it is `asserted-by-vo`. A token of another subject beside it (a VO's robot, for storage) proves nothing about
///   the user, and changes nothing, unless `asserted-by-token` was asked for: then it is refused.
///
/// # Errors
/// When the evidence contradicts itself, or is not what was asked for.
pub fn decide(evidence: &Evidence<'_>, keys: &TokenKeys) -> Result<Decision, TrustError> {
    let canonical = |user: &User| User { issuer: keys.canonical(&user.issuer).clone(), subject: user.subject.clone() };
    let named = evidence.named.map(canonical);
    let token = evidence.token.and_then(|facts| {
        let claims = facts.claims.as_ref()?;
        Some((User { issuer: claims.issuer.clone(), subject: claims.subject.clone() }, &facts.verified))
    });
    match evidence.task {
        Some(task) => by_task(task, canonical(task.user()), named, token.map(|(user, _)| user), evidence.wanted),
        None if evidence.wanted == Some(Trust::SignedByUser) => {
            let why = "no signed task was given; give the statement and its signature".into();
            Err(TrustError::Missing { wanted: Trust::SignedByUser, why })
        }
        None => without_task(named, token, evidence.wanted),
    }
}

fn by_task(
    task: &SignedTask,
    user: User,
    named: Option<User>,
    token: Option<User>,
    wanted: Option<Trust>,
) -> Result<Decision, TrustError> {
    if let Some(asked) = wanted.filter(|wanted| *wanted != Trust::SignedByUser) {
        return Err(TrustError::Weaker(asked));
    }
    for (second, other) in [("name that the pilot gives", named), ("token", token)] {
        if let Some(other) = other.filter(|other| *other != user) {
            return Err(differ("signed task", &user, second, other));
        }
    }
    let why = format!("task {} signed with {}", task.digest(), task.fingerprint());
    Ok(Decision { trust: Trust::SignedByUser, user, why })
}

fn without_task(
    named: Option<User>,
    token: Option<(User, &Verified)>,
    wanted: Option<Trust>,
) -> Result<Decision, TrustError> {
    let strict = wanted == Some(Trust::AssertedByToken);
    let missing = |why: String| TrustError::Missing { wanted: Trust::AssertedByToken, why };
    let by_vo = |user, why: String| Ok(Decision { trust: Trust::AssertedByVo, user, why });
    match (named, token) {
        (Some(user), _) if wanted == Some(Trust::AssertedByVo) => by_vo(user, "the pilot says so".into()),
        (None, Some(_)) if wanted == Some(Trust::AssertedByVo) => Err(TrustError::Nobody),
        (None, Some((user, Verified::Yes))) => Ok(by_token(user)),
        (Some(named), Some((user, Verified::Yes))) if named == user => Ok(by_token(user)),
        (Some(named), Some((user, Verified::Yes))) if strict => {
            Err(differ("name that the pilot gives", &named, "token", user))
        }
        (Some(named), Some((_, Verified::Yes))) => by_vo(named, "the pilot says so; its token is of another".into()),
        (_, Some((_, Verified::No(why)))) if strict => Err(missing(why.clone())),
        (Some(named), Some((_, Verified::No(why)))) => by_vo(named, format!("the pilot says so; {why}")),
        (_, None) if strict => Err(missing("the payload has no token that names a user; give it one".into())),
        (Some(named), None) => by_vo(named, "the pilot says so".into()),
        (None, _) => Err(TrustError::Nobody),
    }
}

fn by_token(user: User) -> Decision {
    Decision { trust: Trust::AssertedByToken, user, why: "a token that its issuer signed".into() }
}

fn differ(first: &'static str, one: &User, second: &'static str, other: User) -> TrustError {
    TrustError::Differ { first, one: Box::new(one.clone()), second, other: Box::new(other) }
}
