//! JSON Web Tokens (RFC 7519, compact form), read but not believed: see [`super::keys`] for that.

use base64ct::{Base64UrlUnpadded, Encoding};
use serde::Deserialize;
use vestigo_model::{Label, Timestamp};

/// Largest token: ten times what issuers of the grid give out.
pub const MAX_TOKEN: usize = 16 << 10;
/// Most scopes, audiences or groups.
pub const MAX_WORDS: usize = 512;

/// Why the bytes are not a usable token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Nothing there.
    #[error("the token is empty; write it into the file before the start")]
    Empty,
    /// Too big.
    #[error("the token is larger than {} KiB", MAX_TOKEN >> 10)]
    Size,
    /// A PEM file.
    #[error(
        "this is a PEM file (an X.509 proxy or certificate), not a bearer token; a proxy can be used to obtain more work and is not handed to payloads"
    )]
    Pem,
    /// Blanks or other bytes inside.
    #[error("the token holds a byte that no bearer token has; give a file with the token alone")]
    Bytes,
    /// No JWT.
    #[error(
        "the token is opaque (no JWT), so nobody can tell whether it can be used to obtain more work; give the payload a JWT of narrow scope"
    )]
    Opaque,
    /// A JWT in form but not in content.
    #[error("the token cannot be read: {0}; get a new one from its issuer")]
    Format(String),
}

/// The protected header, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// Signature algorithm.
    pub alg: String,
    /// Which of the issuer's keys.
    #[serde(default)]
    pub kid: Option<String>,
    /// Extensions that must be understood: none is.
    #[serde(default)]
    pub crit: Option<serde_json::Value>,
}

/// Seconds since the epoch, with or without a fraction (RFC 7519, NumericDate).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "serde_json::Number")]
pub struct NumericDate(pub Timestamp);

impl TryFrom<serde_json::Number> for NumericDate {
    type Error = &'static str;
    fn try_from(number: serde_json::Number) -> Result<Self, Self::Error> {
        // A fraction of a second decides nothing; what no i64 holds is no date.
        let whole = || number.to_string().split('.').next().and_then(|t| t.parse::<i64>().ok());
        let seconds = number.as_i64().or_else(whole).ok_or("a time is not a number of seconds")?;
        Ok(Self(Timestamp::from_nanos(seconds.checked_mul(1_000_000_000).ok_or("a time is out of range")?)))
    }
}

/// One text or several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Words {
    /// Scopes are one text, divided by blanks.
    One(String),
    /// Some issuers write a list.
    Many(Vec<String>),
}

impl Words {
    /// The texts as they stand.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }

    /// Every word, divided by blanks and commas: an issuer that divides otherwise than RFC 6749 must not hide a scope.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let between = |c: char| c.is_whitespace() || c.is_control() || c == ',';
        self.texts().iter().flat_map(move |text| text.split(between)).filter(|word| !word.is_empty())
    }
}

/// The claims that matter. A member given twice is refused (readers differ on which of the two counts); unknown ones are
/// the issuer's business.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: Label,
    /// About whom.
    pub sub: Label,
    /// Its number.
    #[serde(default)]
    pub jti: Option<String>,
    /// End.
    pub exp: NumericDate,
    /// Start.
    #[serde(default)]
    pub nbf: Option<NumericDate>,
    /// For whom: one text is one name here, never divided.
    #[serde(default)]
    pub aud: Option<Words>,
    /// What it allows.
    #[serde(default)]
    pub scope: Option<Words>,
    /// The same under a name that some issuers use.
    #[serde(default)]
    pub scp: Option<Words>,
    /// The same under another.
    #[serde(default)]
    pub scopes: Option<Words>,
    /// Version of the WLCG profile.
    #[serde(default, rename = "wlcg.ver")]
    pub wlcg_version: Option<String>,
    /// Groups in the VO, the most important first.
    #[serde(default, rename = "wlcg.groups")]
    pub groups: Vec<String>,
}

impl Claims {
    /// All scopes, wherever they stand.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        [&self.scope, &self.scp, &self.scopes].into_iter().flatten().flat_map(Words::words)
    }
}

/// A token, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// How it is signed.
    pub header: Header,
    /// What it says.
    pub claims: Claims,
    /// The bytes under the signature.
    pub signed: String,
    /// The bytes of the claims, as they stand in the token.
    pub body: String,
    /// The signature.
    pub signature: Vec<u8>,
}

/// The token without the line end that its file has.
///
/// # Errors
/// When it cannot be a bearer token at all.
pub fn trim(bytes: &[u8]) -> Result<&str, JwtError> {
    let bytes = bytes.trim_ascii();
    if bytes.is_empty() {
        return Err(JwtError::Empty);
    }
    if bytes.starts_with(b"-----BEGIN") {
        return Err(JwtError::Pem);
    }
    if bytes.len() > MAX_TOKEN {
        return Err(JwtError::Size);
    }
    match str::from_utf8(bytes) {
        Ok(text) if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(text),
        _ => Err(JwtError::Bytes),
    }
}

/// Reads a token.
///
/// # Errors
/// When it is none, or says the same thing twice.
pub fn parse(bytes: &[u8]) -> Result<Jwt, JwtError> {
    let text = trim(bytes)?;
    let mut parts = text.split('.');
    let (Some(head), Some(body), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(JwtError::Opaque);
    };
    // Three parts of which the first is no JSON object are somebody's own invention, not a damaged JWT.
    let head = decode(head).ok().filter(|h| h.starts_with(b"{")).ok_or(JwtError::Opaque)?;
    let header: Header = json(&head, "header")?;
    let claims: Claims = json(&decode(body)?, "claims")?;
    bounded(&claims)?;
    let signed = text.rsplit_once('.').map_or("", |(signed, _)| signed).to_owned();
    Ok(Jwt { header, claims, signed, body: body.to_owned(), signature: decode(signature)? })
}

fn bounded(claims: &Claims) -> Result<(), JwtError> {
    let audiences = claims.aud.iter().flat_map(Words::texts).count();
    if [claims.scopes().count(), audiences, claims.groups.len()].iter().any(|n| *n > MAX_WORDS) {
        return Err(JwtError::Format(format!("more than {MAX_WORDS} scopes, audiences or groups")));
    }
    Ok(())
}

fn decode(part: &str) -> Result<Vec<u8>, JwtError> {
    Base64UrlUnpadded::decode_vec(part).map_err(|_| JwtError::Format("a part is not base64url".into()))
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, JwtError> {
    serde_json::from_slice(bytes)
        .map_err(|error| JwtError::Format(format!("{what}: {}", super::printable(&error.to_string()))))
}
