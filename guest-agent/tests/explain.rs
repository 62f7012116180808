//! `guest-agent explain` against what a real daemon does with the same options. Needs root and `nft`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{collections::BTreeMap, path::Path};

use common::{World, agent, text};
use serde_json::Value;

fn explain(world: &World, options: &[&str]) -> Value {
    let mut command = agent();
    command.args(["explain", "--json", "--config"]).arg(world.path("agent.toml"));
    command.arg("--socket").arg(world.path("run/agent.sock")).args(options);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The mounts (with whether they are writable) and the environment of a real payload.
fn real(world: &World, options: &[&str]) -> (BTreeMap<String, bool>, BTreeMap<String, String>) {
    let output = world.exec_with("alice", options, &["sh", "-c", "env; echo ---; cat /proc/self/mountinfo"]).output();
    let output = text(&output.unwrap());
    let (env, mounts) = output.split_once("---\n").unwrap_or_else(|| panic!("{output}"));
    let env = env.lines().map(|line| line.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned()));
    let mounts = mounts.lines().map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let read_only = |options: &str| options.split(',').any(|option| option == "ro");
        (fields[4].to_owned(), !read_only(fields[5]) && !read_only(fields.last().unwrap()))
    });
    (mounts.collect(), env.collect())
}

fn compare(world: &World, options: &[&str]) -> Value {
    let host = world.path("host.sock");
    assert!(host.exists());
    let said = explain(world, options);
    let (mounts, mut env) = real(world, options);
    let places: BTreeMap<_, _> = said["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| (place["at"].as_str().unwrap(), place["writable"].as_bool().unwrap()))
        .collect();
    for (at, writable) in &mounts {
        // The nearest that is named says it; a device is written to whatever its folder is.
        let (name, said) =
            places.iter().filter(|(place, _)| Path::new(at).starts_with(place)).max_by_key(|(p, _)| p.len()).unwrap();
        let own = at == "/" || *name != "/";
        assert!(own, "{at} is mounted and not named");
        assert!(writable == said || at.starts_with("/dev/"), "{at}: writable {writable}, {name} says {said}");
    }
    for place in places.keys().filter(|place| **place != "/etc" && !Path::new(place).is_symlink()) {
        let covered = mounts
            .keys()
            .any(|at| Path::new(place) == Path::new(at) || (at != "/" && Path::new(place).starts_with(at)));
        assert!(covered, "{place} is named and not mounted: {mounts:#?}");
    }
    env.remove("VESTIGO_PAYLOAD_UID");
    env.remove("PWD");
    let mut variables: BTreeMap<String, String> = serde_json::from_value(said["environment"].clone()).unwrap();
    variables.remove("VESTIGO_PAYLOAD_UID");
    assert_eq!(variables, env);
    said
}

#[test]
fn what_is_explained_is_what_a_payload_gets() {
    let world = World::start("pids = 512\nexpose = [\"/srv\"]");
    let host = world.host();
    world.wait_connected();
    let file = world.path("data");
    std::fs::write(&file, "x").unwrap();
    let bind = format!("{}:/data/file", file.display());
    let cases: [&[&str]; 3] = [
        &[],
        &["--tmpfs", "/scratch", "--ro-bind", &bind, "--hostname", "other", "--env", "MARK=1", "--chdir", "/tmp"],
        &["--nested", "--pids", "100"],
    ];
    for (number, options) in cases.into_iter().enumerate() {
        let said = compare(&world, options);
        let recorded = serde_json::to_value(&host.starts()[number].isolation).unwrap();
        assert_eq!(said["isolation"], recorded, "{options:?}");
        assert_eq!(said["usual"], number == 0);
        assert!(said["sources"]["daemon"].as_str().unwrap().contains("hostd answers"), "{said:#}");
        let calls = said["system-calls"].to_string();
        assert_eq!(calls.contains("pivot_root"), number != 2, "mounts are the nested payload's own");
    }
}

#[test]
fn what_exec_would_refuse_is_refused_and_no_daemon_is_needed() {
    let run = |options: &[&str]| {
        let output = agent().args(["explain", "--socket", "/nonexistent"]).args(options).output().unwrap();
        (output.status.code(), text(&output))
    };
    let (code, said) = run(&[]);
    assert!(code == Some(0) && said.contains("no agent answers at /nonexistent"), "{said}");
    assert!(said.contains("R-ISO-9    enforced") && said.contains("Landlock (ABI"), "{said}");
    for (options, why) in [
        (&["--tmpfs", "/proc"][..], "sandbox's own"),
        (&["--ro-bind", "/nonexistent"], "No such file"),
        (&["--env", "PATH=."], "absolute"),
        (&["--pids", "0"], "at least 1"),
        (&["--config", "/nonexistent"], "cannot read"),
    ] {
        let (code, said) = run(options);
        assert!(code == Some(201) && said.contains(why), "{options:?}: {code:?} {said}");
    }
}
