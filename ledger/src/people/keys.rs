//! Keys, and what they do. A period's set has two: the *search key* turns a known name into its pseudonym, the key *pair* seals what
//! names and describes a person (public half) and opens it (secret half).

use std::fmt;

use crypto_box::{
    PublicKey, SecretKey,
    aead::{OsRng, rand_core::RngCore as _},
};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use vestigo_model::{Digest, Label, User};

use super::{Owner, Period};

/// What pseudonyms begin with: the version of how they are made.
const VERSION: &str = "p1";

/// Turns names into pseudonyms, HMAC-SHA-256. Whoever has it can test whether somebody is behind a pseudonym.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchKey(pub(super) [u8; 32]);

impl fmt::Debug for SearchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SearchKey")
    }
}

/// Half of a digest in base 32: 26 letters and digits.
fn short(mac: [u8; 32]) -> String {
    let (half, _) = mac.split_at(16);
    BASE32_NOPAD.encode(half).to_ascii_lowercase()
}

impl SearchKey {
    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        // HMAC takes keys of any length, so there is no error to meet.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return [0; 32] };
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }

    /// `p1.<owner>.<month>.<26 base-32 characters of HMAC(issuer ‖ 0 ‖ subject)>`.
    #[must_use]
    pub fn pseudonym(&self, owner: &Owner, period: Period, user: &User) -> Label {
        let mac = self.mac(&[user.issuer.as_str().as_bytes(), &[0], user.subject.as_str().as_bytes()]);
        Label::cut(&format!("{VERSION}.{owner}.{period}.{}", short(mac)))
    }

    /// What stays of sealed text, so that two different ones stay different. No issuer is empty, so no pseudonym is one of these.
    pub(super) fn mark(&self, sealed: &[u8]) -> Label {
        Label::cut(&short(self.mac(&[b"\0sealed\0", sealed])))
    }

    /// What stays of a digest over a guest's record, which has names in it: with the digest itself names could be tried.
    pub(super) fn link(&self, digest: Digest) -> Digest {
        Digest(self.mac(&[b"\0link\0", &digest.0]))
    }
}

/// The owner and the month in a pseudonym; `None` when the text is none.
pub(super) fn place_of(pseudonym: &str) -> Option<(Owner, Period)> {
    // From the back: VOs have dots in their names.
    let (rest, digest) = pseudonym.strip_prefix(VERSION)?.strip_prefix('.')?.rsplit_once('.')?;
    let (owner, period) = rest.rsplit_once('.')?;
    (digest.len() == 26).then_some((owner.parse().ok()?, period.parse().ok()?))
}

/// Names a public key: the first 16 hexadecimal digits of its SHA-256.
#[must_use]
pub fn key_id(public: &[u8; 32]) -> String {
    let mut id = HEXLOWER.encode(&Sha256::digest(public));
    id.truncate(16);
    id
}

/// A period's keys without the secret one: what hypervisors have. It writes pseudonyms and seals, it opens nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicSet {
    /// Whose.
    pub owner: Owner,
    /// When.
    pub period: Period,
    /// Makes pseudonyms.
    pub search: SearchKey,
    /// Seals.
    pub public: [u8; 32],
}

impl PublicSet {
    /// The pair's name.
    #[must_use]
    pub fn id(&self) -> String {
        key_id(&self.public)
    }

    /// The pseudonym of this user in this period.
    #[must_use]
    pub fn pseudonym(&self, user: &User) -> Label {
        self.search.pseudonym(&self.owner, self.period, user)
    }

    /// libsodium's `crypto_box_seal`: only the secret key opens it.
    pub(super) fn seal(&self, text: &[u8]) -> Option<Vec<u8>> {
        PublicKey::from_bytes(self.public).seal(&mut OsRng, text).ok()
    }
}

/// A period's keys with the secret one: with it names can be read.
#[derive(Clone)]
pub struct SecretSet {
    /// What hypervisors have of it.
    pub shared: PublicSet,
    pub(super) secret: SecretKey,
}

impl fmt::Debug for SecretSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretSet").field(&self.shared).finish()
    }
}

impl SecretSet {
    /// New keys from the kernel's random numbers.
    #[must_use]
    pub fn generate(owner: Owner, period: Period) -> Self {
        let mut search = [0; 32];
        OsRng.fill_bytes(&mut search);
        Self::new(owner, period, search, SecretKey::generate(&mut OsRng))
    }

    pub(super) fn new(owner: Owner, period: Period, search: [u8; 32], secret: SecretKey) -> Self {
        let public = secret.public_key().to_bytes();
        Self { shared: PublicSet { owner, period, search: SearchKey(search), public }, secret }
    }

    /// The text in a sealed box; `None` when this key does not open it.
    pub(super) fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        self.secret.unseal(sealed).ok()
    }
}
