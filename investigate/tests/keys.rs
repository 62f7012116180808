//! The built `vestigo keys`, and what the keys it makes do for questions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

#[path = "../../ledger/tests/fixture/mod.rs"]
mod fixture;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use fixture::*;
use serde_json::Value;
use vestigo_ledger::{
    Writer, WriterOptions,
    people::{Sealer, read_public},
};
use vestigo_model::Fact;

fn vestigo(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("vestigo.toml"), folder.path().join("log.jsonl"));
    fs::write(&config, format!("[access]\nlog = \"{}\"\n", log.display())).unwrap();
    Command::new(env!("CARGO_BIN_EXE_vestigo"))
        .args(arguments)
        .env_remove("VESTIGO_KEYS")
        .env_remove("VESTIGO_LEDGER")
        .envs([("VESTIGO_CASE", "C-1"), ("VESTIGO_REASON", "a test")])
        .env("VESTIGO_CONFIG", &config)
        .env("XDG_CACHE_HOME", folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn done(arguments: &[&str], code: i32) -> String {
    let output = vestigo(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    said(&output)
}

fn make(out: &str, whose: &[&str]) -> String {
    done(&[&["keys", "new", "--from", "2026-11", "--months", "2", "--out", out][..], whose].concat(), 0)
}

/// A sealed segment with one payload of alice's, in a VM of atlas.
fn ledger(root: &Path, people: &Path) {
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root, options).unwrap();
    writer.seal_names_with(Arc::new(Sealer::new(read_public(people).unwrap(), None)));
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let facts = [
        record(at("14:00:00"), Fact::Instance(vm.clone())),
        record(at("14:01:00"), Fact::Payload(payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00"))),
    ];
    writer.append(&facts, &[flow(&vm, 41022, "14:03:22", Some(1))]).unwrap();
    writer.seal(at("14:05:00")).unwrap();
}

#[test]
fn keys_are_made_listed_used_and_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (keys, none, public, root) = (at("keys"), at("none"), at("keys/people.json"), at("ledger"));
    fs::create_dir(&none).unwrap();
    make(&keys, &["--site"]);
    make(&keys, &["--vo", "atlas"]);
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&at("keys/atlas.2026-11.key.json")), mode(&public), mode(&keys)), (0o600, 0o600, 0o700));
    let listed = done(&["keys", "list", "--keys", &keys, "--json"], 0);
    let lines: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|line| line["reads_names"] == true), "{listed}");
    let secret: Value = serde_json::from_slice(&fs::read(at("keys/atlas.2026-11.key.json")).unwrap()).unwrap();
    for output in [&listed, &done(&["keys", "list", "--keys", &keys], 0)] {
        assert!(
            !output.contains(secret["secret"].as_str().unwrap())
                && !output.contains(secret["search"].as_str().unwrap())
        );
    }
    // Never over others, and then none of them.
    let again = done(&["keys", "new", "--vo", "atlas", "--from", "2026-10", "--months", "2", "--out", &keys], 1);
    assert!(again.contains("is there already"), "{again}");
    assert!(!Path::new(&at("keys/atlas.2026-10.key.json")).exists());

    ledger(Path::new(&root), Path::new(&public));
    let who = |keys: &str| {
        let question = ["who", "--time", "2026-11-22T14:03:22Z", "--ip", "10.0.0.5", "--port", "41022"];
        done(&[&question[..], &["--ledger", &root, "--keys", keys]].concat(), 0)
    };
    assert!(who(&keys).contains("alice"));
    assert!(who(&none).contains("p1.atlas.2026-11.") && !who(&none).contains("alice"));
    assert!(
        who(&at("keys/@site.2026-11.key.json")).contains("p1.atlas.2026-11."),
        "the site's key opens no VO's names"
    );
    // With what hypervisors have, a known user is found, and not named.
    let issuer = "https://iss.example";
    let pilots = ["pilots", "--user", "alice", "--ledger", &root, "--keys", &public];
    let found = done(&[&pilots[..], &["--issuer", issuer, "--json"]].concat(), 0);
    assert!(found.contains("p1.atlas.2026-11."), "{found}");
    let blind = done(&pilots, 3);
    assert!(blind.contains("no key here opens"), "{blind}");
    let show = ["keys", "show", "--vo", "atlas", "--period", "2026-11", "--keys", &public, "--json"];
    let shown = done(&[&show[..], &["--user", "alice", "--issuer", issuer]].concat(), 0);
    let pseudonym = serde_json::from_str::<Value>(&shown).unwrap()["pseudonym"].as_str().unwrap().to_owned();
    assert!(found.contains(&pseudonym));
    done(&["pilots", "--user", &pseudonym, "--ledger", &root, "--keys", &none], 0);

    let destroy = ["keys", "destroy", "--vo", "atlas", "--period", "2026-11", "--keys", &keys, "--even-now"];
    assert!(done(&destroy, 0).contains("would destroy"));
    assert!(who(&keys).contains("alice"), "nothing was changed");
    let told = done(&[&destroy[..], &["--yes"]].concat(), 0);
    assert!(told.contains("destroyed the secret key") && told.contains("people.json on every hypervisor"), "{told}");
    assert!(who(&keys).contains("p1.atlas.2026-11.") && !who(&keys).contains("alice"));
    assert!(done(&[&pilots[..], &["--issuer", issuer]].concat(), 3).contains("Nothing found"));
    done(&[&destroy[..], &["--yes"]].concat(), 3);
}

#[test]
fn a_month_that_is_not_over_is_not_destroyed_by_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().display().to_string();
    done(&["keys", "new", "--site", "--from", "2999-01", "--months", "1", "--out", &keys], 0);
    let text = done(&["keys", "destroy", "--site", "--period", "2999-01", "--keys", &keys, "--yes"], 2);
    assert!(text.contains("is not over"), "{text}");
    done(&["keys", "list", "--keys", &keys], 0);
    done(&["keys", "new", "--from", "2026-11", "--out", &keys], 2);
    done(&["keys", "new", "--site", "--from", "2026-13", "--out", &keys], 2);
    assert!(done(&["keys", "list", "--keys", "/nonexistent"], 1).contains("Cannot read the keys"));
}
