//! Canonical JSON: members sorted by name, no white space, whole numbers only. What is digested is written like this, so
//! that two programs (or a person with python's `json.dumps(sort_keys=True, separators=(",", ":"))`) get the same bytes.

use serde::Serialize;
use serde_json::Value;

/// A value as canonical JSON. All characters outside ASCII are written as `\u` escapes: equally valid, and nothing that a
/// guest put into a name can drive the terminal it is shown on.
pub fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = String::new();
    write(&serde_json::to_value(value)?, &mut out)?;
    Ok(out.into_bytes())
}

/// The same as text.
pub fn to_text<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    let mut out = String::new();
    write(&serde_json::to_value(value)?, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut String) -> Result<(), serde_json::Error> {
    match value {
        Value::Object(map) => {
            // Sorted here, not by the map: a feature somewhere else in the tree may turn it into one kept in order of insertion.
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (number, (name, member)) in members.into_iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                write_text(name, out)?;
                out.push(':');
                write(member, out)?;
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for (number, element) in list.iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                write(element, out)?;
            }
            out.push(']');
        }
        Value::String(text) => write_text(text, out)?,
        other => out.push_str(&other.to_string()),
    }
    Ok(())
}

fn write_text(text: &str, out: &mut String) -> Result<(), serde_json::Error> {
    for c in serde_json::to_string(text)?.chars() {
        if (' '..='~').contains(&c) {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(())
}

/// Text from outside, for a terminal: everything that is not plainly printable is shown as an escape.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let tricky = c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
        if tricky { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn sorted_dense_and_ascii() {
        let value = json!({"b": [1, true, null], "a": {"z": "é\u{9b}31m\u{1F600}", "y": -2}});
        let text = to_text(&value).unwrap();
        assert_eq!(text, r#"{"a":{"y":-2,"z":"\u00e9\u009b31m\ud83d\ude00"},"b":[1,true,null]}"#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    proptest! {
        #[test]
        fn any_text_round_trips_in_ascii(text in ".*") {
            let json = to_text(&text).unwrap();
            prop_assert!(json.bytes().all(|b| (0x20..0x7f).contains(&b)));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn nothing_printed_is_a_control(text in any::<String>()) {
            let bad = printable(&text).chars().any(|c| c.is_control() || c == '\u{202e}');
            prop_assert!(!bad);
        }
    }
}
