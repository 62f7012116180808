//! `docs/conformance.md` is for auditors: no rule of the agent's may be missing in it, no row may be empty, and every test that
//! it names must exist.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Names of all functions in the workspace's Rust sources.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            functions(&path, names);
        } else if name.ends_with(".rs") {
            for line in fs::read_to_string(&path).unwrap().lines() {
                if let Some(rest) = line.trim_start().split("fn ").nth(1) {
                    names.insert(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
                }
            }
        }
    }
}

#[test]
fn every_rule_of_the_agents_has_a_row_with_means_and_existing_tests() {
    let text = fs::read_to_string(root().join("docs/conformance.md")).unwrap();
    let mut known = BTreeSet::new();
    functions(&root(), &mut known);
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| R-")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rule, how, tests] = cells[..] else { panic!("not three cells: {line}") };
        assert!(how.len() > 10, "{rule} says nothing");
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{rule} names no test");
        for test in tests {
            let name = test.rsplit("::").next().unwrap();
            assert!(known.contains(name), "{rule} names the test {test}, which does not exist");
        }
        assert!(rows.insert(rule.to_owned(), how.to_owned()).is_none(), "{rule} has two rows");
    }
    let isolation = (1..=37).map(|n| format!("R-ISO-{n}"));
    let tracing = [6, 7, 8, 9, 14, 17, 21, 22, 23, 24, 25, 26, 27, 28, 29, 36].map(|n| format!("R-TRC-{n}"));
    let suspension = [7, 10].map(|n| format!("R-SUS-{n}"));
    let missing: Vec<String> =
        isolation.chain(tracing).chain(suspension).filter(|rule| !rows.contains_key(rule)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}
