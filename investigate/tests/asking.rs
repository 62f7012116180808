//! The built `vestigo` as an investigator uses it: contradictions, hints that lose nothing, damage, the record of questions, and
//! every example of docs/investigating.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

#[allow(dead_code)]
#[path = "../../ledger/examples/sample_ledger.rs"]
mod sample;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use sample::fixture::*;
use serde_json::Value;
use tempfile::TempDir;
use vestigo_ledger::{Signer, Writer, WriterOptions};
use vestigo_model::{Exit, Fact};

const RUN: &str = "a0000000-0000-4000-8000-000000000001";

fn writer(root: &Path, name: &str) -> Writer {
    let options = WriterOptions { host: host(name), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    Writer::open(root, options).unwrap().0
}

/// A program with a case, a reason, and a record of questions of the test's own, beside the ledger.
fn command(program: &str, root: &Path) -> Command {
    let beside = |name: &str| root.parent().unwrap().join(name);
    fs::write(beside("vestigo.toml"), format!("[access]\nlog = \"{}\"\n", beside("log.jsonl").display())).unwrap();
    let mut command = Command::new(program);
    command.env("VESTIGO_LEDGER", root).env("VESTIGO_CONFIG", beside("vestigo.toml"));
    command.env("XDG_CACHE_HOME", beside("cache")).env_remove("VESTIGO_KEYS");
    command.env("VESTIGO_CASE", "CERT-2026-17").env("VESTIGO_REASON", "a test");
    command
}

fn vestigo(root: &Path, arguments: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_vestigo"), root).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn done(root: &Path, arguments: &[&str], code: i32) -> String {
    let output = vestigo(root, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    said(&output)
}

/// Rows of a query, without the line of names.
fn rows(root: &Path, query: &str) -> Vec<String> {
    done(root, &["sql", query, "--format", "csv"], 0).lines().skip(1).map(str::to_owned).collect()
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("ledger");
    fs::create_dir(&root).unwrap();
    (folder, root)
}

/// Two hosts with several segments each, and newest records that no segment holds yet. Signed by keys beside the ledger.
fn ledger() -> (TempDir, PathBuf) {
    let (folder, root) = folder();
    for name in ["hv1", "hv2"] {
        let host_root = root.clone();
        let mut writer = writer(&host_root, name);
        let (signer, _) = Signer::open_or_create(&folder.path().join(name).join("key"), &host(name)).unwrap();
        writer.sign_with(Arc::new(signer));
        for (number, clock) in [(1, "14:00:00"), (2, "15:00:00"), (3, "16:00:00"), (4, "17:00:00")] {
            let vo = if number % 2 == 0 { "cms" } else { "atlas" };
            let vm = instance(name, number, Some(vo), &format!("10.0.0.{}", number + 4));
            let claim = payload(&vm, number, &format!("user-{number}"), vo, (41000, 41999), clock);
            let facts = [record(at(clock), Fact::Instance(vm.clone())), record(at(clock), Fact::Payload(claim))];
            let flows: Vec<_> = (0..5).map(|port| flow(&vm, 41000 + port, clock, Some(number))).collect();
            writer.append(&facts, &flows).unwrap();
            if number < 4 {
                writer.seal(at(clock)).unwrap();
            }
        }
        drop(writer);
        if name == "hv1" {
            // One log belongs to one host: the second host's segments join the first one's.
            fs::remove_dir_all(root.join("wal")).unwrap();
        }
    }
    (folder, root)
}

#[test]
fn of_two_stories_about_one_run_the_first_holds_and_both_are_kept() {
    let (_folder, root) = folder();
    let mut writer = writer(&root, "hv1");
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let first = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    let second = payload(&vm, 1, "mallory", "atlas", (41000, 41999), "14:02:00");
    writer.append(&[record(at("14:00:00"), Fact::Instance(vm.clone()))], &[]).unwrap();
    writer
        .append(&[record(at("14:01:00"), Fact::Payload(first.clone()))], &[flow(&vm, 41022, "14:03:22", Some(1))])
        .unwrap();
    writer.append(&[record(at("14:02:00"), Fact::Payload(second.clone()))], &[]).unwrap();
    writer.seal(at("14:02:30")).unwrap();
    // The later story's end is no end of the first.
    let ended = finished(second, "14:10:00", Exit::Code(1));
    writer.append(&[record(at("14:10:00"), Fact::Payload(ended))], &[]).unwrap();
    let ended = finished(first, "14:20:00", Exit::Code(0));
    writer.append(&[record(at("14:20:00"), Fact::Payload(ended))], &[]).unwrap();

    assert_eq!(rows(&root, "SELECT \"user\", exit_status FROM payloads"), ["alice,0"]);
    let told = rows(&root, "SELECT DISTINCT \"user\" FROM payload_records ORDER BY 1");
    assert_eq!(told, ["alice", "mallory"]);
    assert_eq!(rows(&root, &format!("SELECT \"user\" FROM payloads WHERE payload = '{RUN}'")), ["alice"]);
    assert!(done(&root, &["sql", "SELECT 1 FROM payloads WHERE \"user\" = 'mallory'"], 3).lines().count() <= 1);
    let story = done(&root, &["payload", RUN], 0);
    assert!(story.contains("CONTRADICTED") && story.contains("mallory"), "{story}");
}

#[test]
fn what_a_condition_hints_at_loses_no_row() {
    let (_folder, root) = ledger();
    for condition in [
        "orig_ip = '10.0.0.5'",
        "orig_ip = '10.0.0.5' OR resp_ip = '10.0.0.6'",
        "orig_ip = '10.0.0.5' OR orig_port = 41001",
        "'10.0.0.6' = orig_ip AND host = 'hv2'",
        "orig_ip IN ('10.0.0.5', '10.0.0.8')",
        "orig_ip NOT IN ('10.0.0.5')",
        "NOT orig_ip = '10.0.0.5'",
        "orig_ip <> '10.0.0.5' AND host IN ('hv1')",
        "host = 'hv1' OR orig_ip = '10.0.0.7'",
        "payload = 'a0000000-0000-4000-8000-000000000004'",
        "payload IS NOT NULL AND vo = 'cms'",
        "upper(host) = 'HV1'",
        "host LIKE 'hv%' AND orig_port > 41002",
        "first >= '2026-11-22T15:00:00Z'",
        "last < TIMESTAMP '2026-11-22T16:30:00Z'",
        "first > '2026-11-22T14:30:00Z' AND '2026-11-22T16:30:00Z' > last",
        "CAST(first AS DATE) = '2026-11-22'",
        "CAST(first AS DATE) = TIMESTAMP '2026-11-22T00:00:00Z'",
        "CAST(first AS DATE) <= TIMESTAMP '2026-11-22T00:00:00Z'",
        "date_trunc('hour', first) = TIMESTAMP '2026-11-22T15:00:00Z'",
        "in_net(orig_ip, '10.0.0.4/31')",
    ] {
        // A CASE is no filter: nothing is left out on its account.
        let all = rows(&root, &format!("SELECT sum(CASE WHEN {condition} THEN 1 ELSE 0 END) FROM flows"));
        assert_ne!(all, ["0"], "{condition} finds nothing and proves nothing");
        assert_eq!(rows(&root, &format!("SELECT count(*) FROM flows WHERE {condition}")), all, "{condition}");
        let output = done(&root, &["flows", "--limit", "0", "--json", "--where", condition], 0);
        let answer: Value = serde_json::from_str(&output).unwrap();
        let found = answer["answer"]["rows"].as_array().unwrap().len().to_string();
        assert_eq!([found], all[..], "flows --where {condition}");
    }
}

#[test]
fn verify_names_what_was_done_to_a_ledger() {
    let (folder, root) = ledger();
    let signers = ["hv1", "hv2"].map(|name| folder.path().join(name).join("allowed_signers").display().to_string());
    let verify =
        |code| done(&root, &["ledger", "verify", "--signers", &signers[0], "--signers", &signers[1], "--json"], code);
    let found = |text: &str| -> Vec<String> {
        let report: Value = serde_json::from_str(text).unwrap();
        let all = report["answer"]["findings"].as_array().unwrap();
        all.iter().map(|one| one["what"].as_str().unwrap().to_owned()).collect()
    };
    // The first host's log was taken away, and with it what only its log knew; its segments are whole.
    assert!(found(&verify(0)).is_empty());
    let day = root.join("date=2026-11-22/host=hv2");
    let named = |part: &str, end: &str| -> PathBuf {
        let all = fs::read_dir(&day).unwrap().map(|entry| entry.unwrap().path());
        let is = |path: &PathBuf| path.to_str().is_some_and(|name| name.contains(part) && name.ends_with(end));
        all.filter(is).min().unwrap()
    };
    let flows = named("/00000002-", "-flows.parquet");
    let good = fs::read(&flows).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&flows, &bad).unwrap();
    assert_eq!(found(&verify(5)), ["file-changed"]);
    fs::write(&flows, good).unwrap();
    assert!(found(&verify(0)).is_empty());
    fs::remove_file(named("/00000002-", ".manifest.json")).unwrap();
    assert!(found(&verify(5)).contains(&"segment-missing".to_owned()));
}

#[test]
fn lines_cut_off_the_record_of_questions_show_beside_an_older_digest() {
    let (folder, root) = ledger();
    for _ in 0..3 {
        done(&root, &["flows", "--limit", "1"], 0);
    }
    let shown = done(&root, &["access", "--verify"], 0);
    let head = shown.split_whitespace().last().unwrap().to_owned();
    done(&root, &["access", "--head", &head], 0);
    let log = folder.path().join("log.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    let kept: Vec<&str> = text.lines().take(2).collect();
    fs::write(&log, kept.join("\n") + "\n").unwrap();
    done(&root, &["access", "--verify"], 0);
    assert!(done(&root, &["access", "--head", &head], 5).contains("cut off"));
    let none = done(&root, &["access", "--log", "/nonexistent"], 1);
    assert_eq!(none.matches("os error 2").count(), 1, "{none}");
}

#[test]
fn a_hold_is_placed_in_a_ledger_or_not_at_all() {
    let (folder, root) = folder();
    let typo = folder.path().join("legder");
    let range = ["--from", "2026-11-22T00:00:00Z", "--to", "2026-11-23T00:00:00Z"];
    let place = typo.display().to_string();
    let hold = ["ledger", "hold", "--case", "C-1", "--reason", "r", "--ledger", &place];
    assert!(done(&root, &[&hold[..], &range].concat(), 1).contains("There is no ledger at"));
    assert!(!typo.exists());
    done(&root, &["ledger", "holds", "--ledger", &place], 1);
}

#[test]
fn rows_keep_the_order_of_their_columns_and_bad_values_are_bad_questions() {
    let (_folder, root) = ledger();
    let sums = done(&root, &["flows", "--sum", "vo,host"], 0);
    let names: Vec<&str> = sums.lines().next().unwrap().split_whitespace().take(3).collect();
    assert_eq!(names, ["VO", "HOST", "FLOWS"], "{sums}");
    let line = done(&root, &["sql", "SELECT vo, host, first FROM flows LIMIT 1", "--json"], 0);
    assert!(line.starts_with("{\"vo\":") && line.contains(",\"host\":") && line.find("host") < line.find("first"));
    for query in
        ["SELECT * FROM flows WHERE first > 'nonsense'", "SELECT 1/0", "SELECT in_net(orig_ip, 'x') FROM flows"]
    {
        done(&root, &["sql", query], 2);
    }
    let plan = done(&root, &["sql", "EXPLAIN SELECT vo FROM flows WHERE vo = 'atlas'"], 0);
    assert!(!plan.contains("\\u{a}") && plan.lines().count() > 4, "{plan}");
}

#[test]
fn the_community_id_is_that_of_the_other_answers() {
    let (_folder, root) = ledger();
    let who = ["who", "--time", "2026-11-22T15:00:00Z", "--ip", "10.0.0.6", "--port", "41003", "--json"];
    let answer: Value = serde_json::from_str(&done(&root, &who, 0)).unwrap();
    let known = answer["answer"]["candidates"][0]["flows"][0]["community_id"].as_str().unwrap().to_owned();
    let id = "community_id(orig_ip, orig_port, resp_ip, resp_port, proto)";
    let found =
        rows(&root, &format!("SELECT DISTINCT {id} FROM flows WHERE orig_ip = '10.0.0.6' AND orig_port = 41003"));
    assert_eq!(found, [known]);
    let of = "community_id('128.232.110.120', 34855, '66.35.250.204', 80, 6)";
    assert_eq!(rows(&root, &format!("SELECT {of}")), ["1:LQU9qZlK+B5F3KDmev6m5PMibrg="]);
    let none = "community_id('x', 1, '66.35.250.204', 80, 6) IS NULL, community_id('10.0.0.1', NULL, '10.0.0.2', 1, 6) IS NULL";
    assert_eq!(rows(&root, &format!("SELECT {none}")), ["true,true"]);
}

#[test]
fn every_example_of_the_documentation_runs() {
    let (_folder, root) = folder();
    sample::write(&root);
    let text = include_str!("../../docs/investigating.md");
    let blocks: Vec<&str> = text.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect();
    assert!(blocks.len() >= 10, "the examples were not found");
    let folder = Path::new(env!("CARGO_BIN_EXE_vestigo")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    for block in blocks {
        let code =
            block.lines().find_map(|line| line.strip_prefix("# exits with ")).map_or(0, |code| code.parse().unwrap());
        let output = command("bash", &root).env("PATH", &path).args(["-e", "-c", block]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{block}\n{}", said(&output));
    }
}
