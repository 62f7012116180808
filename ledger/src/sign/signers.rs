//! Whose key may sign for which host: OpenSSH's `allowed_signers` (ssh-keygen(1), ALLOWED SIGNERS), so that
//! `ssh-keygen -Y verify` reads the same file.
//!
//! A line that cannot be read refuses the whole file, with its number: half a trust file is worse than none.

use std::path::{Path, PathBuf};

use ssh_key::{HashAlg, PublicKey, SshSig, public::KeyData};
use vestigo_model::Timestamp;

use crate::durable::IoError;

/// Largest trust file: some ten thousand keys.
const MAX_FILE: usize = 8 << 20;

/// Why a trust file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignersError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// It is too large or no text.
    #[error("{} is no file of allowed signers: larger than 8 MiB, or no UTF-8 text", path.display())]
    Text {
        /// Which.
        path: PathBuf,
    },
    /// A line.
    #[error("{}, line {line}: {why}", path.display())]
    Line {
        /// Which.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what to do.
        why: &'static str,
    },
}

/// Why a signature does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is no signature over these bytes in this namespace: someone changed one of the two.
    Forged(String),
    /// It is good, but nobody vouches for the key (`SHA256:…`).
    Unknown(String),
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    principals: String,
    namespaces: Option<String>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
    key: KeyData,
}

/// The file, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signers {
    lines: Vec<Line>,
}

impl Signers {
    /// Reads a trust file.
    ///
    /// # Errors
    /// [`SignersError`].
    pub fn read(path: &Path) -> Result<Self, SignersError> {
        let bytes = std::fs::read(path).map_err(IoError::at("read", path))?;
        Self::parse(path, &bytes)
    }

    /// Reads the bytes of one; `path` is what errors call it.
    ///
    /// # Errors
    /// [`SignersError`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, SignersError> {
        let text = str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_FILE);
        let text = text.ok_or_else(|| SignersError::Text { path: path.to_owned() })?;
        let mut lines = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = |why| SignersError::Line { path: path.to_owned(), line: number + 1, why };
            lines.push(parse_line(line).map_err(at)?);
        }
        Ok(Self { lines })
    }

    /// Adds the lines of another file.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.lines.extend(other.lines);
        self
    }

    /// Checks a signature: over these bytes, in this namespace, by a key that may sign for the principal at that time.
    /// The key's fingerprint.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(
        &self,
        principal: &str,
        namespace: &str,
        message: &[u8],
        signature: &[u8],
        when: Timestamp,
    ) -> Result<String, Refused> {
        let signature = SshSig::from_pem(signature).map_err(|_| Refused::Forged("it is no SSH signature".into()))?;
        if signature.namespace() != namespace {
            return Err(Refused::Forged("it was made for another purpose (namespace)".into()));
        }
        if signature.version() != SshSig::VERSION || !signature.reserved().is_empty() {
            return Err(Refused::Forged("it is of an unknown version".into()));
        }
        let key = PublicKey::from(signature.public_key().clone());
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        key.verify(namespace, message, &signature)
            .map_err(|_| Refused::Forged(format!("key {fingerprint} did not sign these bytes")))?;
        let vouched = self.lines.iter().any(|line| line.allows(principal, namespace, key.key_data(), when));
        if vouched { Ok(fingerprint) } else { Err(Refused::Unknown(fingerprint)) }
    }
}

impl Line {
    fn allows(&self, principal: &str, namespace: &str, key: &KeyData, when: Timestamp) -> bool {
        self.key == *key
            && in_list(principal, &self.principals)
            && self.namespaces.as_deref().is_none_or(|list| in_list(namespace, list))
            && self.after.is_none_or(|after| after <= when)
            && self.before.is_none_or(|before| when <= before)
    }
}

fn parse_line(line: &str) -> Result<Line, &'static str> {
    let (principals, rest) = match line.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or("a quote is not closed")?,
        None => line.split_once([' ', '\t']).ok_or("only one word; write: HOST [options] ssh-ed25519 AAAA…")?,
    };
    let rest = rest.trim();
    // As ssh-keygen: options only where no key can be read.
    let (options, key) = match PublicKey::from_openssh(rest) {
        Ok(key) => ("", key),
        Err(_) => {
            let (options, rest) = split_options(rest);
            let key = PublicKey::from_openssh(rest);
            (options, key.map_err(|_| "no public key (as in id_ed25519.pub) behind the host and the options")?)
        }
    };
    let mut parsed = Line {
        principals: principals.to_owned(),
        namespaces: None,
        after: None,
        before: None,
        key: key.key_data().clone(),
    };
    for option in split_list(options) {
        parsed.set(option)?;
    }
    Ok(parsed)
}

impl Line {
    fn set(&mut self, option: &str) -> Result<(), &'static str> {
        let (name, value) =
            option.split_once('=').ok_or("an option that is not known here (cert-authority is none)")?;
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let time = || time(value).ok_or("a time that is not written like 20261122 or 20261122140000Z");
        match name.to_ascii_lowercase().as_str() {
            "namespaces" => self.namespaces = Some(value.to_owned()),
            "valid-after" => self.after = Some(time()?),
            "valid-before" => self.before = Some(time()?),
            _ => return Err("an option that is not known here; there are namespaces, valid-after and valid-before"),
        }
        Ok(())
    }
}

/// `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, taken as UTC with a `Z` or without.
fn time(text: &str) -> Option<Timestamp> {
    let digits = text.trim_end_matches('Z');
    let padded = match digits.len() {
        8 => format!("{digits}000000"),
        12 => format!("{digits}00"),
        14 => digits.to_owned(),
        _ => return None,
    };
    let part = |from: usize, to: usize| padded.get(from..to);
    let (date, clock) = ((part(0, 4)?, part(4, 6)?, part(6, 8)?), (part(8, 10)?, part(10, 12)?, part(12, 14)?));
    format!("{}-{}-{}T{}:{}:{}Z", date.0, date.1, date.2, clock.0, clock.1, clock.2).parse().ok()
}

/// Options reach to the first blank outside quotes.
fn split_options(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let end = text.find(|c| {
        quoted ^= c == '"';
        !quoted && matches!(c, ' ' | '\t')
    });
    let (options, rest) = text.split_at(end.unwrap_or(text.len()));
    (options, rest.trim())
}

/// The parts between commas outside quotes.
fn split_list(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .filter(|part| !part.is_empty())
}

/// Whether the text matches one of the patterns, and none that begins with `!` (PATTERNS in ssh_config(5)).
fn in_list(text: &str, list: &str) -> bool {
    let (not, yes): (Vec<&str>, Vec<&str>) = list.split(',').partition(|pattern| pattern.starts_with('!'));
    yes.iter().any(|pattern| matches(text, pattern))
        && !not.iter().any(|pattern| matches(text, pattern.trim_start_matches('!')))
}

/// `*` stands for any run of characters, `?` for any one.
fn matches(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let (mut t, mut p) = (0, 0);
    // Where the last star was, and how much of the text it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p, t));
                p += 1;
            }
            (Some(wanted), _) if *wanted == b'?' || text.get(t) == Some(wanted) => {
                t += 1;
                p += 1;
            }
            (_, Some((at, taken))) => {
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sign::Signer;
    use vestigo_model::HostId;

    fn parse(text: &str) -> Result<Signers, String> {
        Signers::parse(Path::new("allowed_signers"), text.as_bytes()).map_err(|error| error.to_string())
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_counts_for_its_host_its_purpose_and_its_time_only() {
        let signer = Signer::from_seed(&[7; 32]);
        let key = signer.public();
        let signers = parse(&format!(
            "# site\n\n\"hv?,!hv9\" namespaces=\"vestigo-segment,x\",valid-after=\"20260101\",valid-before=20261231 {key} c\n"
        ))
        .unwrap();
        let signature = signer.sign(b"text").unwrap();
        let check = |who: &str, space: &str, bytes: &[u8], when: &str| {
            signers.check(who, space, bytes, signature.as_bytes(), at(when))
        };
        let unknown = Err(Refused::Unknown(signer.fingerprint()));
        assert_eq!(check("hv1", "vestigo-segment", b"text", "2026-06-01T00:00:00Z"), Ok(signer.fingerprint()));
        assert_eq!(check("hv9", "vestigo-segment", b"text", "2026-06-01T00:00:00Z"), unknown);
        assert_eq!(check("web", "vestigo-segment", b"text", "2026-06-01T00:00:00Z"), unknown);
        assert_eq!(check("hv1", "vestigo-segment", b"text", "2027-01-01T00:00:00Z"), unknown);
        assert_eq!(check("hv1", "vestigo-segment", b"text", "2025-12-31T23:59:59Z"), unknown);
        let forged = |result: Result<String, Refused>| matches!(result, Err(Refused::Forged(_)));
        assert!(forged(check("hv1", "vestigo-tombstone", b"text", "2026-06-01T00:00:00Z")));
        assert!(forged(check("hv1", "vestigo-segment", b"test", "2026-06-01T00:00:00Z")));
        assert!(forged(signers.check("hv1", "vestigo-segment", b"text", b"nonsense", at("2026-06-01T00:00:00Z"))));
    }

    #[test]
    fn a_key_for_another_purpose_does_not_sign_segments() {
        let signer = Signer::from_seed(&[7; 32]);
        let signers = parse(&format!("hv1 namespaces=\"git\" {}", signer.public())).unwrap();
        let signature = signer.sign(b"text").unwrap();
        let when = at("2026-06-01T00:00:00Z");
        let said = signers.check("hv1", "vestigo-segment", b"text", signature.as_bytes(), when);
        assert_eq!(said, Err(Refused::Unknown(signer.fingerprint())));
    }

    #[test]
    fn a_bad_line_refuses_the_file_with_its_number() {
        let good = Signer::from_seed(&[7; 32]).allowed_line(&HostId::new("hv1").unwrap());
        for (bad, says) in [
            ("hv1", "only one word"),
            ("hv1 ssh-ed25519 AAAA", "no public key"),
            ("\"hv1 ssh-ed25519 AAAA", "a quote"),
            ("hv1 cert-authority ssh-ed25519 AAAA", "no public key"),
        ] {
            let said = parse(&format!("{good}{bad}\n")).unwrap_err();
            assert!(said.starts_with("allowed_signers, line 2: ") && said.contains(says), "{said}");
        }
        let authority = good.replace("namespaces=\"vestigo-segment,vestigo-tombstone\"", "cert-authority");
        assert!(parse(&authority).unwrap_err().contains("not known here"));
        let when = good.replace("namespaces=", "valid-after=");
        assert!(parse(&when).unwrap_err().contains("a time"), "a time that is none");
    }

    #[test]
    fn patterns_are_those_of_openssh() {
        assert!(matches("hv1", "hv1") && matches("hv1", "hv*") && matches("hv1", "h?1") && matches("", "*"));
        assert!(!matches("hv1", "hv") && !matches("hv", "hv1") && !matches("", "?") && matches("aXbXc", "a*b*c"));
        assert!(in_list("hv1", "x,hv*") && !in_list("hv1", "hv*,!hv1") && !in_list("hv1", "!hv2"));
    }
}
