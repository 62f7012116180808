//! Who stands behind a payload.
//!
//! Three kinds of evidence, recorded as such and never mixed ([`trust`]): the user's own SSH signature over this one
//! [`task`], a [`token`] of the user that an issuer signed, or the pilot's word alone. And the one thing that no payload's
//! token may be: a key to more work (R-ISO-11). All pure, over bytes and a clock, except [`discovery`]'s edge,
//! [`token::sealed`] and the commands for users in [`cli`].

pub mod cli;
pub mod discovery;
pub mod jwt;
pub mod keys;
mod pattern;
pub mod signers;
pub mod sshsig;
pub mod task;
pub mod token;
pub mod trust;

/// What a library says about hostile bytes may repeat them: no control characters, at most 200 characters.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
