//! The keys by which tokens are believed: one file per issuer, JSON, an issuer's own key set (RFC 7517) with its name put
//! in front. The agent never fetches them: a VM's boot image or configuration management does.
//!
//! What a key may verify is fixed by the key, never by the token: RSA with RS256, P-256 with ES256, Ed25519 with EdDSA.

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use base64ct::{Base64UrlUnpadded, Encoding};
use ed25519_dalek::VerifyingKey;
use p256::ecdsa::{self, signature::Verifier as _};
use rsa::{BigUint, RsaPublicKey, pkcs1v15};
use serde::Deserialize;
use vestigo_model::Label;

use super::jwt::Jwt;

/// Largest key file.
pub const MAX_FILE: usize = 1 << 20;
const MAX_KEYS: usize = 256;
const MAX_FILES: usize = 1024;

/// Why a key file or folder cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// Too big.
    #[error("the key file is larger than {} MiB or holds more than {MAX_KEYS} keys", MAX_FILE >> 20)]
    Size,
    /// Not the format.
    #[error(
        "the key file cannot be read: {0}; write {{\"issuer\": \"https://…\", \"keys\": [the issuer's JWKS keys]}}"
    )]
    Format(String),
    /// Somebody copied too much.
    #[error("key {0:?} holds a private or secret part; put only public keys here, and replace that key")]
    Private(String),
    /// No key that we can use.
    #[error("no key of {0} is usable; it needs RSA (2048 to 4096 bits), EC P-256 or Ed25519 signature keys")]
    NoneUsable(Label),
    /// Two files, one issuer.
    #[error("issuer {0} stands in two files; put its keys into one")]
    Twice(Label),
    /// A file or folder that cannot be opened.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    issuer: Label,
    #[serde(default)]
    known_as: Vec<Label>,
    keys: Vec<Jwk>,
}

/// Members that are not ours to know are ignored, as RFC 7517 (section 4) wants.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    d: Option<serde_json::Value>,
    #[serde(default)]
    k: Option<serde_json::Value>,
}

#[derive(Debug, Clone)]
enum Key {
    Rs256(Box<pkcs1v15::VerifyingKey<rsa::sha2::Sha256>>),
    Es256(Box<ecdsa::VerifyingKey>),
    Ed25519(Box<VerifyingKey>),
}

impl Key {
    /// `alg` of the tokens that it verifies; RFC 9864 gave EdDSA's Ed25519 a second name.
    fn algorithms(&self) -> &'static [&'static str] {
        match self {
            Self::Rs256(_) => &["RS256"],
            Self::Es256(_) => &["ES256"],
            Self::Ed25519(_) => &["EdDSA", "Ed25519"],
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rs256(key) => pkcs1v15::Signature::try_from(signature).is_ok_and(|s| key.verify(message, &s).is_ok()),
            Self::Es256(key) => ecdsa::Signature::from_slice(signature).is_ok_and(|s| key.verify(message, &s).is_ok()),
            Self::Ed25519(key) => {
                ed25519_dalek::Signature::from_slice(signature).is_ok_and(|s| key.verify_strict(message, &s).is_ok())
            }
        }
    }
}

/// The keys of one issuer.
#[derive(Debug, Clone)]
pub struct IssuerKeys {
    issuer: Label,
    known_as: Vec<Label>,
    keys: Vec<(Option<String>, Key)>,
}

impl IssuerKeys {
    /// Reads a key file. Keys for other purposes or of other kinds are left out.
    ///
    /// # Errors
    /// When it cannot be read, holds a private key, or no usable one.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeysError> {
        if bytes.len() > MAX_FILE {
            return Err(KeysError::Size);
        }
        let format = |error: serde_json::Error| KeysError::Format(super::printable(&error.to_string()));
        let file: File = serde_json::from_slice(bytes).map_err(format)?;
        if file.keys.len() > MAX_KEYS {
            return Err(KeysError::Size);
        }
        if let Some(secret) = file.keys.iter().find(|k| k.d.is_some() || k.k.is_some()) {
            return Err(KeysError::Private(super::printable(secret.kid.as_deref().unwrap_or("without kid"))));
        }
        let keys: Vec<_> = file.keys.iter().filter_map(|jwk| Some((jwk.kid.clone(), usable(jwk)?))).collect();
        if keys.is_empty() {
            return Err(KeysError::NoneUsable(file.issuer));
        }
        Ok(Self { issuer: file.issuer, known_as: file.known_as, keys })
    }

    /// Whether one of the keys signed the token; a sentence why not.
    fn check(&self, token: &Jwt) -> Result<(), String> {
        let (alg, kid) = (super::printable(&token.header.alg), token.header.kid.as_deref());
        if token.header.crit.is_some() {
            return Err("the token asks for extensions (crit) that this agent does not know".into());
        }
        let named = self.keys.iter().filter(|(own, _)| kid.is_none() || own.as_deref() == kid);
        let fitting: Vec<_> = named.filter(|(_, key)| key.algorithms().contains(&alg.as_str())).collect();
        let kid = super::printable(kid.unwrap_or("no kid"));
        match fitting.as_slice() {
            [] => Err(format!("no key of {} is for {alg} and {kid}; refresh the issuer's key file", self.issuer)),
            [(_, key)] if key.verifies(token.signed.as_bytes(), &token.signature) => Ok(()),
            [_] => Err(format!("the signature is not by the key of {} ({kid})", self.issuer)),
            _ => Err(format!("the token does not say which of several keys of {} signed it ({kid})", self.issuer)),
        }
    }
}

fn usable(jwk: &Jwk) -> Option<Key> {
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let bytes = |part: &Option<String>| Base64UrlUnpadded::decode_vec(part.as_deref()?).ok();
    let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
            let key = RsaPublicKey::new(BigUint::from_bytes_be(&n), BigUint::from_bytes_be(&e)).ok()?;
            let long = rsa::traits::PublicKeyParts::n(&key).bits() >= super::signers::RSA_BITS.0;
            Key::Rs256(Box::new(long.then(|| pkcs1v15::VerifyingKey::new(key))?))
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (<[u8; 32]>::try_from(bytes(&jwk.x)?).ok()?, <[u8; 32]>::try_from(bytes(&jwk.y)?).ok()?);
            let point = p256::EncodedPoint::from_affine_coordinates(&x.into(), &y.into(), false);
            Key::Es256(Box::new(ecdsa::VerifyingKey::from_encoded_point(&point).ok()?))
        }
        ("OKP", Some("Ed25519")) => {
            let key = VerifyingKey::from_bytes(&<[u8; 32]>::try_from(bytes(&jwk.x)?).ok()?).ok()?;
            Key::Ed25519(Box::new((!key.is_weak()).then_some(key)?))
        }
        _ => return None,
    };
    let meant = jwk.alg.as_deref().is_none_or(|alg| key.algorithms().contains(&alg));
    meant.then_some(key)
}

/// Whether a token's signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// By a key that the site or VO configured.
    Yes,
    /// Not, and why.
    No(String),
}

/// The keys of all issuers that are believed.
#[derive(Debug, Clone, Default)]
pub struct TokenKeys {
    issuers: BTreeMap<Label, IssuerKeys>,
}

impl TokenKeys {
    /// Adds an issuer.
    ///
    /// # Errors
    /// When it, or one of its other names, is there already.
    pub fn add(&mut self, keys: IssuerKeys) -> Result<(), KeysError> {
        let names = std::iter::once(&keys.issuer).chain(&keys.known_as);
        if let Some(name) =
            names.into_iter().find(|name| self.canonical(name) != *name || self.issuers.contains_key(*name))
        {
            return Err(KeysError::Twice(name.clone()));
        }
        self.issuers.insert(keys.issuer.clone(), keys);
        Ok(())
    }

    /// Reads every `*.json` in the folder. All or nothing: a bad file refuses the whole.
    ///
    /// # Errors
    /// When the folder or a file cannot be used; names the file.
    pub fn read(folder: &Path) -> Result<Self, KeysError> {
        let about = |path: &Path, why: &dyn std::fmt::Display| KeysError::File {
            path: path.display().to_string(),
            why: why.to_string(),
        };
        let entries = fs::read_dir(folder).map_err(|e| about(folder, &e))?;
        let mut paths =
            entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(|e| about(folder, &e))?;
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        if paths.len() > MAX_FILES {
            return Err(about(folder, &format!("more than {MAX_FILES} key files")));
        }
        paths.sort();
        let mut all = Self::default();
        for path in paths {
            let mut bytes = Vec::new();
            let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX).saturating_add(1);
            let file = fs::File::open(&path).map_err(|e| about(&path, &e))?;
            file.take(limit).read_to_end(&mut bytes).map_err(|e| about(&path, &e))?;
            IssuerKeys::parse(&bytes).and_then(|keys| all.add(keys)).map_err(|e| about(&path, &e))?;
        }
        Ok(all)
    }

    /// Whether the token was signed by its issuer, as far as we know the issuer. Time is not looked at.
    #[must_use]
    pub fn verify(&self, token: &Jwt) -> Verified {
        match self.issuers.get(&token.claims.iss) {
            None => Verified::No(format!("no keys of issuer {} are configured (token_keys)", token.claims.iss)),
            Some(keys) => keys.check(token).map_or_else(Verified::No, |()| Verified::Yes),
        }
    }

    /// The issuer's own name (`iss`) for a name that its file lists in `known_as`; any other name stays as it is.
    #[must_use]
    pub fn canonical<'a>(&'a self, name: &'a Label) -> &'a Label {
        self.issuers.values().find(|keys| keys.known_as.contains(name)).map_or(name, |keys| &keys.issuer)
    }
}
