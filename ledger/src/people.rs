//! Persons in stored records: pseudonyms, and the sealed names behind them.
//!
//! ```text
//!               search key ─► p1.atlas.2026-11.k3v…  (in the claim, in events: anybody may read it)
//!  user ─────┬──────────────►
//!  command … └─ public key ─► sealed box             (table `people`)   ─ secret key ─► user, command …
//! ```
//! A key set belongs to an [`Owner`] (a VO, or the site) and a [`Period`] (a UTC month). hostd has the search key and the public
//! key: a [`Sealer`]. An investigator has what policy grants, in a [`Keyring`]: nothing (pseudonyms stand in answers), the search key (a
//! known user can be looked for), the secret key (names can be read). Destroying a period's keys erases its persons and leaves
//! the flows. See docs/privacy.md.

mod files;
mod keyring;
mod keys;
mod period;
pub(crate) mod row;
mod sealer;
pub(crate) mod withhold;

#[cfg(test)]
mod tests;

pub use files::{
    KeyError, PUBLIC_NAME, destroy_secret, read_public, read_secret, secret_path, write_public, write_secret,
};
pub use keyring::{Asked, Keyring, Wanted};
pub use keys::{PublicSet, SearchKey, SecretSet, key_id};
pub use period::{Owner, ParseKeyNameError, Period};
pub use row::{PersonRow, stored_rows};
pub use sealer::Sealer;
pub use withhold::Person;
