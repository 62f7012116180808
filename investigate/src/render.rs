//! Text for a terminal. Whatever comes from a guest, a cloud or a ledger file is escaped: no byte of it can move the
//! cursor, change a colour or turn the direction of writing.

pub mod coverage;
pub mod parts;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use comfy_table::{Table, presets};

/// Whether to use colours.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Colours only on a terminal, and not where the user wants none.
    pub const fn new(terminal: bool, no_color: bool) -> Self {
        Self { colour: terminal && !no_color }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What the host saw.
    pub fn host(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// What a guest said.
    pub fn guest(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// What needs care.
    pub fn warning(self, text: &str) -> String {
        self.paint("1;31", text)
    }
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The text with everything that does not simply print written as `\u{…}`.
pub fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { safe.extend(c.escape_unicode()) } else { safe.push(c) }
    }
    safe
}

/// The same for JSON text, where such characters stand in strings only; the layout's newlines stay.
pub fn safe_json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && c != '\n' {
            // All of them lie below U+10000; writing to a String cannot fail.
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A sentence beside the answer.
pub fn warn(text: &str) {
    // Nothing can be done when not even this can be written.
    let _ = writeln!(io::stderr(), "warning: {}", safe(text));
}

/// Indented `name  value` lines.
#[derive(Debug, Default)]
pub struct Lines(String);

impl Lines {
    /// One line; the value is escaped.
    pub fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = safe(&value.to_string());
        self.0.push_str(&format!("    {name:<12} {value}\n"));
    }

    /// One line, if there is a value.
    pub fn maybe(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A table with these column names.
pub fn table(names: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(names);
    table
}

/// The table's text without the spaces that fill its lines.
pub fn table_text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_reaches_the_terminal_raw() {
        assert_eq!(safe("a\u{1b}[31m\u{202e}b"), "a\\u{1b}[31m\\u{202e}b");
        assert_eq!(safe_json("{\n\"\u{202e}\u{7f}\"}"), "{\n\"\\u202e\\u007f\"}");
        let parsed: Result<String, _> = serde_json::from_str(&safe_json("\"\u{202e}\""));
        assert_eq!(parsed.ok().as_deref(), Some("\u{202e}"));
    }

    #[test]
    fn no_colour_without_a_terminal() {
        assert_eq!(Style::new(false, false).host("x"), "x");
        assert_eq!(Style::new(true, true).host("x"), "x");
        assert_ne!(Style::new(true, false).host("x"), "x");
    }
}
