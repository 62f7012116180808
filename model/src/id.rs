//! Identifiers. Each is its own type, so that a payload's id can never stand where a pilot's is wanted.
//!
//! Text identifiers come from cloud managers, VOs and guests; they are bounded and free of control characters, so that
//! they can be printed, put into a path after escaping and stored without further thought. Every flow record carries several:
//! copies share their text.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// The text is longer than the kind allows.
    #[error("{kind} is {got} bytes long, at most {max} are allowed")]
    TooLong {
        /// What the text was meant to be.
        kind: &'static str,
        /// Length in bytes.
        got: usize,
        /// Longest length in bytes.
        max: usize,
    },
    /// The text holds a character that the kind does not allow.
    #[error("{kind} holds the character {found:?}, which is not allowed there")]
    Character {
        /// What the text was meant to be.
        kind: &'static str,
        /// The first offender.
        found: char,
    },
    /// Not a UUID or MAC address.
    #[error("{text:?} is not {kind}")]
    Malformed {
        /// What the text was meant to be.
        kind: &'static str,
        /// The text, cut to 64 characters.
        text: String,
    },
}

fn check(kind: &'static str, text: &str, max: usize, allowed: fn(char) -> bool) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty(kind));
    }
    // `.` and `..` are no names, and files that begin so are hidden.
    if text.starts_with('.') && !allowed(' ') {
        return Err(IdError::Character { kind, found: '.' });
    }
    if text.len() > max {
        return Err(IdError::TooLong { kind, got: text.len(), max });
    }
    match text.chars().find(|c| !allowed(*c)) {
        Some(found) => Err(IdError::Character { kind, found }),
        None => Ok(()),
    }
}

/// Letters, digits and `. _ -`, no dot in front: safe as one path component and in a Hive-style partition folder.
fn name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Anything that prints: no control characters, no line or paragraph separators, no bidirectional overrides.
fn printable(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes the text.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check($kind, &text, $max, $allowed)?;
                Ok(Self(text.into()))
            }

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }
    };
}

text_id!(
    /// The hypervisor: its short name as the site's configuration gives it. One path component.
    HostId, "host id", 64, name_char
);
text_id!(
    /// The cloud's own name for a VM: Nova's UUID, OpenNebula's number, else the libvirt name.
    InstanceId, "instance id", 128, printable
);
text_id!(
    /// A virtual organisation, lower case by custom: `atlas`, `cms`. One path component.
    Vo, "VO", 64, name_char
);
text_id!(
    /// The host-side interface of a VM, as the kernel names it (`IFNAMSIZ` less one).
    TapName, "tap name", 15, printable
);
text_id!(
    /// The pilot job, in the VO's own words.
    PilotId, "pilot id", 255, printable
);
text_id!(
    /// The payload, in the VO's own words (a task or job number). Not unique across VOs.
    PayloadId, "payload id", 255, printable
);
text_id!(
    /// Short printable text from outside: names, subjects, issuers, reasons.
    Label, "text", 255, printable
);

impl Label {
    /// As much of the text as a label holds: what does not print is left out, what is too long is cut. An empty one is `-`.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        const MAX: usize = 255;
        let mut held: String = text.chars().filter(|c| printable(*c)).collect();
        let end = (0..=MAX.min(held.len())).rev().find(|end| held.is_char_boundary(*end)).unwrap_or(0);
        held.truncate(end);
        Self(if held.is_empty() { "-".into() } else { held.into() })
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0.hyphenated().to_string())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::Malformed {
                    kind: concat!("a ", $kind, " (a UUID)"),
                    text: text.chars().take(64).collect(),
                })
            }
        }
    };
}

uuid_id!(
    /// libvirt's UUID of a domain: the key under which the host knows a VM.
    DomainUuid, "domain UUID"
);
uuid_id!(
    /// One run of one payload. Made by the agent; the host keys it together with the domain, so a guest that reuses
    /// another's value gains nothing.
    PayloadUid, "payload uid"
);
uuid_id!(
    /// One boot of a guest kernel, as `/proc/sys/kernel/random/boot_id` says. Starts a new record chain on the link.
    BootId, "boot id"
);
uuid_id!(
    /// One item of evidence. Version 7, so that ids sort by the time the VM ended.
    ItemId, "item id"
);

impl ItemId {
    /// The day part of the item's place in a vault, `YYYY/MM/DD` in UTC, from the time inside the id.
    #[must_use]
    pub fn day(&self) -> String {
        let seconds = self.0.get_timestamp().map_or(0, |t| t.to_unix().0);
        let at = crate::Timestamp::from_nanos(i64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000));
        at.to_string().get(..10).unwrap_or("1970-01-01").replace('-', "/")
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let malformed = || IdError::Malformed { kind: "a MAC address", text: text.chars().take(64).collect() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(malformed)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() { Err(malformed()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_could_fool_a_terminal_or_a_path() {
        assert!(Vo::new("atlas").is_ok());
        assert!(Vo::new("../etc").is_err());
        assert!(Vo::new("..").is_err() && HostId::new(".hidden").is_err() && Label::new("...").is_ok());
        assert!(Label::new("a\u{1b}[31m").is_err());
        assert!(Label::new("user\u{202e}resu").is_err());
        assert!(Label::new("").is_err());
        assert!(Label::new("x".repeat(256)).is_err());
    }

    #[test]
    fn item_day_comes_from_the_id() {
        let id: ItemId = "0193a1b2-0000-7000-8000-000000000000".parse().unwrap();
        assert_eq!(id.day(), "2024-12-07".replace('-', "/"));
    }

    #[test]
    fn any_text_can_be_cut_to_a_label() {
        for text in ["", "plain", "a\u{202e}b\n", &"é".repeat(400), &"x".repeat(255)] {
            let label = Label::cut(text);
            assert_eq!(Label::new(label.as_str()), Ok(label), "{text:?}");
        }
        assert_eq!(Label::cut("a\u{202e}b\n").as_str(), "ab");
        assert_eq!(Label::cut(&"é".repeat(400)).as_str().len(), 254);
    }

    proptest! {
        #[test]
        fn mac_round_trips(bytes: [u8; 6]) {
            let mac = Mac(bytes);
            prop_assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        }

        #[test]
        fn text_ids_round_trip_through_json(text in "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,63}") {
            let vo = Vo::new(text).unwrap();
            let json = serde_json::to_string(&vo).unwrap();
            prop_assert_eq!(serde_json::from_str::<Vo>(&json).unwrap(), vo);
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".*") {
            let _ = text.parse::<Mac>();
            let _ = text.parse::<DomainUuid>();
            let _ = Label::new(text);
        }
    }
}
