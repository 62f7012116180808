//! `allowed_signers`: whose key may sign for whom. The format is OpenSSH's (ssh-keygen(1), ALLOWED SIGNERS), so that
//! `ssh-keygen -Y verify` reads the same file.
//!
//! A line that cannot be read refuses the whole file, with its number: half a trust file is worse than the one before.
//! A key of a kind that is not accepted here only makes its own line useless; [`AllowedSigners::unusable`] lists these.

use std::fmt;

use ssh_key::{Algorithm, EcdsaCurve, PublicKey, public::KeyData};
use vestigo_model::{Timestamp, User};

use super::pattern;

/// Largest file: some ten thousand keys.
pub const MAX_FILE: usize = 8 << 20;
const MAX_LINE: usize = 16 << 10;
/// RSA below this is refused; above the second the library refuses.
pub const RSA_BITS: (usize, usize) = (2048, 4096);

/// Why a trust file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignersError {
    /// Too big.
    #[error("the file is larger than {} MiB; keep one line per key, or split it by VO", MAX_FILE >> 20)]
    Size,
    /// Not text.
    #[error("the file is not UTF-8 text")]
    Text,
    /// A line.
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong and what to do.
        why: String,
    },
}

/// One line: a key, for whom and when it may sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Comma-separated patterns of principals.
    pub principals: String,
    /// Comma-separated patterns of SSHSIG namespaces; every namespace when absent.
    pub namespaces: Option<String>,
    /// First instant.
    pub valid_after: Option<Timestamp>,
    /// Last instant.
    pub valid_before: Option<Timestamp>,
    /// The key.
    pub key: KeyData,
}

impl fmt::Display for Signer {
    /// As a line of the file, times to the second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options = Vec::new();
        if let Some(namespaces) = &self.namespaces {
            options.push(format!("namespaces=\"{namespaces}\""));
        }
        for (name, time) in [("valid-after", self.valid_after), ("valid-before", self.valid_before)] {
            let digits = |t: Timestamp| t.to_string().chars().take(19).filter(char::is_ascii_digit).collect::<String>();
            options.extend(time.map(|t| format!("{name}=\"{}Z\"", digits(t))));
        }
        let key = PublicKey::from(self.key.clone()).to_openssh().map_err(|_| fmt::Error)?;
        match options.as_slice() {
            [] => write!(f, "\"{}\" {key}", self.principals),
            some => write!(f, "\"{}\" {} {key}", self.principals, some.join(",")),
        }
    }
}

/// Why a key was not accepted for a principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// The key is on the list of revoked ones.
    #[error("the key {0} is revoked; sign with another one that the VO knows")]
    Revoked(String),
    /// Nowhere in the file for this principal.
    #[error(
        "the key {fingerprint} is not listed for {principal}; ask the VO to add a line for it to the agent's allowed_signers"
    )]
    Unknown {
        /// `SHA256:…`.
        fingerprint: String,
        /// Whose.
        principal: String,
    },
    /// Listed, but not for this namespace.
    #[error("the key {fingerprint} is listed in line {line} for other namespaces than {namespace}")]
    Namespace {
        /// `SHA256:…`.
        fingerprint: String,
        /// Of the trust file.
        line: usize,
        /// The one that was used.
        namespace: String,
    },
    /// Listed, but not now.
    #[error("the key {fingerprint} is listed in line {line} for another time than now (valid-after, valid-before)")]
    Time {
        /// `SHA256:…`.
        fingerprint: String,
        /// Of the trust file.
        line: usize,
    },
}

/// The file, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedSigners {
    lines: Vec<(usize, Signer)>,
    unusable: Vec<(usize, String)>,
    revoked: Vec<KeyData>,
}

impl AllowedSigners {
    /// Reads the bytes of an `allowed_signers` file.
    ///
    /// # Errors
    /// When it is too big or a line cannot be read.
    pub fn parse(bytes: &[u8]) -> Result<Self, SignersError> {
        let mut file = Self::default();
        for (number, line) in lines(bytes)? {
            let at = |why: String| SignersError::Line { line: number, why };
            let signer = parse_line(line).map_err(at)?;
            match acceptable(&signer.key) {
                Ok(()) => file.lines.push((number, signer)),
                Err(why) => file.unusable.push((number, why)),
            }
        }
        Ok(file)
    }

    /// Adds a list of revoked keys: public keys as in `id_ed25519.pub`, one a line (what `ssh-keygen -Y verify -r` reads,
    /// except OpenSSH's binary KRL).
    ///
    /// # Errors
    /// As [`Self::parse`]; the list is then unchanged.
    pub fn revoke(&mut self, bytes: &[u8]) -> Result<(), SignersError> {
        let mut keys = Vec::new();
        for (line, text) in lines(bytes)? {
            let why = || "not a public key; write one per line, as in id_ed25519.pub (binary KRLs are not read)".into();
            let key = PublicKey::from_openssh(text).map_err(|_| SignersError::Line { line, why: why() })?;
            keys.push(key.key_data().clone());
        }
        self.revoked.append(&mut keys);
        Ok(())
    }

    /// The usable lines.
    #[must_use]
    pub fn signers(&self) -> Vec<&Signer> {
        self.lines.iter().map(|(_, signer)| signer).collect()
    }

    /// Lines whose key can never be accepted, and why: for a warning when the file is loaded.
    #[must_use]
    pub fn unusable(&self) -> &[(usize, String)] {
        &self.unusable
    }

    /// Whether the key may sign in the namespace for the principal now; the line that says so.
    ///
    /// # Errors
    /// When none does, with the nearest reason.
    pub fn allow(&self, principal: &str, key: &KeyData, namespace: &str, now: Timestamp) -> Result<usize, NotAllowed> {
        let fingerprint = || fingerprint(key);
        if self.revoked.contains(key) {
            return Err(NotAllowed::Revoked(fingerprint()));
        }
        let mut nearest = NotAllowed::Unknown { fingerprint: fingerprint(), principal: principal.into() };
        let own = |signer: &Signer| signer.key == *key && pattern::in_list(principal, &signer.principals);
        for (line, signer) in self.lines.iter().filter(|(_, s)| own(s)) {
            if signer.namespaces.as_deref().is_some_and(|list| !pattern::in_list(namespace, list)) {
                let (fingerprint, namespace) = (fingerprint(), namespace.into());
                nearest = NotAllowed::Namespace { fingerprint, line: *line, namespace };
            } else if signer.valid_after.is_some_and(|t| now < t) || signer.valid_before.is_some_and(|t| now > t) {
                nearest = NotAllowed::Time { fingerprint: fingerprint(), line: *line };
            } else {
                return Ok(*line);
            }
        }
        Err(nearest)
    }
}

/// `SHA256:…` as OpenSSH prints it.
#[must_use]
pub fn fingerprint(key: &KeyData) -> String {
    key.fingerprint(ssh_key::HashAlg::Sha256).to_string()
}

/// The name by which a user stands in `allowed_signers`: `subject@issuer`, each byte other than letters, digits and
/// `. _ - : / + = ~` as `%XX`, so that no name can hold a comma, a blank, a wildcard or a second `@`.
#[must_use]
pub fn principal(user: &User) -> String {
    let mut text = String::new();
    for (part, end) in [(&user.subject, "@"), (&user.issuer, "")] {
        for byte in part.as_str().bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => text.push(char::from(byte)),
                b'.' | b'_' | b'-' | b':' | b'/' | b'+' | b'=' | b'~' => text.push(char::from(byte)),
                other => text.push_str(&format!("%{other:02X}")),
            }
        }
        text.push_str(end);
    }
    text
}

/// Whether signatures by such a key are accepted at all.
///
/// # Errors
/// A sentence.
pub fn acceptable(key: &KeyData) -> Result<(), String> {
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => Ok(()),
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 | EcdsaCurve::NistP384 } => Ok(()),
        Algorithm::Rsa { .. } => match rsa_bits(key) {
            bits if bits < RSA_BITS.0 => {
                Err(format!("RSA of {bits} bits is too short; use ed25519 (ssh-keygen -t ed25519)"))
            }
            bits if bits > RSA_BITS.1 => Err(format!("RSA of {bits} bits is more than {} and not read", RSA_BITS.1)),
            _ => Ok(()),
        },
        other => Err(format!(
            "keys of type {} are not accepted; use ed25519, its security-key form, ecdsa P-256 or P-384, or RSA from 2048 bits",
            super::printable(other.as_str())
        )),
    }
}

fn rsa_bits(key: &KeyData) -> usize {
    let bytes = key.rsa().and_then(|rsa| rsa.n.as_positive_bytes()).unwrap_or_default();
    let unused = bytes.first().map_or(0, |first| first.leading_zeros());
    (bytes.len() * 8).saturating_sub(unused as usize)
}

/// The lines that say something, numbered from 1.
fn lines(bytes: &[u8]) -> Result<impl Iterator<Item = (usize, &str)>, SignersError> {
    if bytes.len() > MAX_FILE {
        return Err(SignersError::Size);
    }
    let text = str::from_utf8(bytes).map_err(|_| SignersError::Text)?;
    let numbered = text.split('\n').enumerate();
    Ok(numbered
        .map(|(number, line)| (number + 1, line.trim_matches([' ', '\t', '\r'])))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#')))
}

fn parse_line(line: &str) -> Result<Signer, String> {
    if line.len() > MAX_LINE {
        return Err(format!("longer than {} KiB", MAX_LINE >> 10));
    }
    if line.contains(|c: char| c.is_control() && c != '\t') {
        return Err("it holds a control character".into());
    }
    let (principals, rest) = split_principals(line)?;
    // As ssh-keygen: options only where no key can be read.
    let (options, key) = match PublicKey::from_openssh(rest) {
        Ok(key) => ("", key),
        Err(_) => {
            let (options, rest) = split_options(rest);
            // The parser's words quote what stands inside the key, where anything may stand.
            let no_key = |e: ssh_key::Error| {
                let why = super::printable(&e.to_string());
                format!("no public key (as in id_ed25519.pub) after the principals and options: {why}")
            };
            (options, PublicKey::from_openssh(rest).map_err(no_key)?)
        }
    };
    let principals = principals.into();
    let key = key.key_data().clone();
    let mut signer = Signer { principals, namespaces: None, valid_after: None, valid_before: None, key };
    read_options(&mut signer, options)?;
    Ok(signer)
}

/// The first word, in quotes or not, and what follows.
fn split_principals(line: &str) -> Result<(&str, &str), String> {
    let (word, rest) = match line.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or("a quote is not closed")?,
        None => line.split_once([' ', '\t']).ok_or("only one word; write: subject@issuer [options] key")?,
    };
    match word {
        "" => Err("no principal; write: subject@issuer namespaces=\"task@vestigo\" ssh-ed25519 AAAA…".into()),
        _ if word.contains('"') => Err("a quote inside the principals".into()),
        _ => Ok((word, rest.trim_start_matches([' ', '\t']))),
    }
}

/// Options reach to the first blank outside quotes.
fn split_options(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let end = text.find(|c| {
        quoted ^= c == '"';
        !quoted && matches!(c, ' ' | '\t')
    });
    let (options, rest) = text.split_at(end.unwrap_or(text.len()));
    (options, rest.trim_matches([' ', '\t']))
}

fn read_options(signer: &mut Signer, options: &str) -> Result<(), String> {
    let mut rest = options;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').unwrap_or((rest, ""));
        let name = name.to_ascii_lowercase();
        if name == "cert-authority" || name.starts_with("cert-authority,") {
            return Err("cert-authority is not supported; list each user's own key".into());
        }
        let value = after.strip_prefix('"').and_then(|v| v.split_once('"'));
        let (value, after) = value.ok_or_else(|| format!("option {name:?} is not written as {name}=\"…\""))?;
        set_option(signer, &name, value)?;
        rest = match after.strip_prefix(',') {
            Some("") => return Err("a comma after the last option".into()),
            Some(more) => more,
            None if after.is_empty() => after,
            None => return Err("options are separated by one comma and no blank".into()),
        };
    }
    match (signer.valid_after, signer.valid_before) {
        (Some(after), Some(before)) if after >= before => Err("valid-before is not after valid-after".into()),
        _ => Ok(()),
    }
}

fn set_option(signer: &mut Signer, name: &str, value: &str) -> Result<(), String> {
    let twice = match name {
        "namespaces" if value.contains('\\') => return Err("a backslash in namespaces".into()),
        "namespaces" => signer.namespaces.replace(value.into()).is_some(),
        "valid-after" => signer.valid_after.replace(time(value)?).is_some(),
        "valid-before" => signer.valid_before.replace(time(value)?).is_some(),
        _ => return Err(format!("option {name:?} is unknown; known are namespaces, valid-after and valid-before")),
    };
    if twice { Err(format!("option {name} twice")) } else { Ok(()) }
}

/// `YYYYMMDDZ`, `YYYYMMDDHHMMZ` or `YYYYMMDDHHMMSSZ`. Without the Z, OpenSSH means local time, which is another instant on
/// another machine: refused.
fn time(text: &str) -> Result<Timestamp, String> {
    let bad =
        || format!("{text:?} is not a time; write it in UTC with a Z at its end, like 20270131Z or 20270131235959Z");
    let digits = text.strip_suffix(['Z', 'z']).ok_or_else(bad)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || !matches!(digits.len(), 8 | 12 | 14) {
        return Err(bad());
    }
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or("00");
    let [year, month, day] = [part(0, 4), part(4, 6), part(6, 8)];
    let [hour, minute, second] = [part(8, 10), part(10, 12), part(12, 14)];
    format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().map_err(|_| bad())
}

#[cfg(test)]
#[path = "signers_tests.rs"]
mod tests;
