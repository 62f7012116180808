//! Text in columns for people: folded to the width of their terminal, and left as it is for programs.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use crate::sys;

/// Below this many columns folding makes nothing easier to read.
const NARROWEST: usize = 60;

/// Writes to standard output. A closed pipe is the reader's wish.
pub fn print(text: &str) {
    let width = sys::terminal_width(io::stdout()).filter(|width| *width >= NARROWEST);
    let folded = width.map(|width| fold(text, width));
    let _ = io::stdout().write_all(folded.as_deref().unwrap_or(text).as_bytes());
}

fn fold(text: &str, width: usize) -> String {
    let mut folded = String::new();
    for line in text.lines() {
        fold_line(&mut folded, line, width);
        folded.push('\n');
    }
    folded
}

/// Goes on below the last column. A word that is longer than the column stays whole.
fn fold_line(folded: &mut String, line: &str, width: usize) {
    if line.chars().count() <= width {
        folded.push_str(line);
        return;
    }
    let column = last_column(line, width / 2);
    let (head, body) = line.split_at_checked(column).unwrap_or(("", line));
    let indent = head.chars().count();
    folded.push_str(head);
    let mut used = indent;
    for (number, word) in body.split(' ').enumerate() {
        let length = word.chars().count();
        if number > 0 && used + 1 + length > width {
            let _ = write!(folded, "\n{:indent$}", "");
            used = indent;
        } else if number > 0 {
            folded.push(' ');
            used += 1;
        }
        folded.push_str(word);
        used += length;
    }
}

/// Where the text after the last gap of two spaces or more begins, as a byte, before `most`; the line's own indent if there is none.
fn last_column(line: &str, most: usize) -> usize {
    let gaps = line.match_indices("  ").map(|(at, _)| at + 2).take_while(|at| *at <= most);
    let after = gaps.last().unwrap_or(0);
    // An odd number of spaces.
    let rest = line.get(after..).unwrap_or_default();
    after + (rest.len() - rest.trim_start_matches(' ').len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_go_on_below_their_last_column() {
        let text = "short\nR-ISO-9    held   one, two, three, four\n  file systems and more of them\nano-very-long-word-without-any-gap\n";
        let folded = fold(text, 24);
        let expected = "short\nR-ISO-9    held   one,\n           two, three,\n           four\n  file systems and more\n  of them\n\
                        ano-very-long-word-without-any-gap\n";
        // The second gap lies beyond the half of so narrow a line.
        assert_eq!(folded, expected);
    }

    proptest::proptest! {
        #[test]
        fn nothing_but_space_is_changed(text in "[ a-zä\n]{0,200}", width in 1usize..80) {
            let bare = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            proptest::prop_assert_eq!(bare(&fold(&text, width)), bare(&text));
        }
    }
}
