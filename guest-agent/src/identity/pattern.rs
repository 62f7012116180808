//! The patterns of OpenSSH's `allowed_signers` (see PATTERNS in ssh_config(5)): `*` any run of characters, `?` any one.

/// Whether the text matches the pattern. Linear memory, at most length × length steps: the file is trusted, the names that
/// are matched against it are not.
#[must_use]
pub fn matches(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let (mut t, mut p) = (0, 0);
    // Where the last star was, and how much of the text it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(wanted) if *wanted == b'?' || text.get(t) == Some(wanted) => {
                t += 1;
                p += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

/// Whether the text matches a comma-separated list: at least one pattern, and none that begins with `!`.
#[must_use]
pub fn in_list(text: &str, list: &str) -> bool {
    let mut found = false;
    for pattern in list.split(',') {
        match pattern.strip_prefix('!') {
            Some(not) if matches(text, not) => return false,
            Some(_) => {}
            None => found |= matches(text, pattern),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_marks_and_negation() {
        assert!(matches("alice@x", "alice@x") && matches("alice@x", "*@x") && matches("alice@x", "al?ce@*"));
        assert!(!matches("alice@x", "alice") && !matches("alice", "alice@x") && !matches("", "?"));
        assert!(matches("", "*") && matches("aXbXc", "a*b*c") && !matches("aXbX", "a*b*c"));
        assert!(in_list("alice@x", "bob@x,*@x") && !in_list("alice@x", "*@x,!alice@x"));
        assert!(!in_list("alice@x", "!bob@x"), "a negation alone admits nobody");
    }

    #[test]
    fn many_stars_do_not_take_forever() {
        let started = std::time::Instant::now();
        assert!(!matches(&"a".repeat(2000), &format!("{}b", "a*".repeat(500))));
        assert!(started.elapsed().as_secs() < 5);
    }

    proptest! {
        #[test]
        fn a_text_matches_itself_and_a_star(text in "[^*?]{0,40}") {
            let longer = text.clone() + "*";
            prop_assert!(matches(&text, &text) && matches(&text, "*") && matches(&text, &longer));
        }
    }
}
