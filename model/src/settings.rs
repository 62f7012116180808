//! Settings: how every part of Vestigo reads a TOML text, and says on which line it is wrong.

use serde::de::DeserializeOwned;

/// What is wrong with a text, and where. Shown as `line 3: unknown field …`, on one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct Mistake {
    /// First line is 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Reads a TOML text. Refusing unknown keys is the type's business (`deny_unknown_fields`).
///
/// # Errors
/// The first [`Mistake`].
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
        Mistake { line: before.matches('\n').count() + 1, message }
    })
}

/// The line on which a key stands, for a value that is well-formed and yet wrong; 1 if the key is not there.
#[must_use]
pub fn line_of(text: &str, key: &str) -> usize {
    let stands =
        |line: &str| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    text.lines().position(stands).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        #[allow(dead_code)] // read by serde only
        number: u8,
    }

    #[test]
    fn a_mistake_has_its_line_and_is_one_line() {
        let shown = |text| parse::<Settings>(text).unwrap_err().to_string();
        assert!(shown("number = 1\n\nnumer = 2\n").starts_with("line 3: unknown field `numer`"));
        assert!(shown("# all well so far\nnumber = 300").starts_with("line 2: invalid value"));
        assert!(!shown("number = [\n").contains('\n'));
        assert_eq!(line_of("a = 1\n  key= 2", "key"), 2);
        assert_eq!(line_of("keys = 1", "key"), 1);
    }
}
