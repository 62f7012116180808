//! The built `vestigo` over a real ledger: answers, exit codes, bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

#[path = "../../ledger/tests/fixture/mod.rs"]
mod fixture;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use fixture::*;
use serde_json::Value;
use tempfile::TempDir;
use vestigo_ledger::{Writer, WriterOptions};
use vestigo_model::{
    CoverageState, Direction, Fact, Flow, Folded, Instance, Label, SciTag, SciTagSource, Tunnel, Tuple,
};

fn ledger() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let facts = [
        record(at("14:00:00"), Fact::Instance(vm.clone())),
        record(at("14:01:00"), Fact::Payload(payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00"))),
        record(at("14:05:00"), Fact::Coverage(coverage(&vm, "14:00:00", "14:05:00", CoverageState::Ok))),
    ];
    writer.append(&facts, &[flow(&vm, 41022, "14:03:22", Some(1))]).unwrap();
    writer.seal(at("14:05:00")).unwrap();
    writer.append(&[], &[flow(&vm, 41023, "14:06:00", Some(1))]).unwrap();
    root
}

/// What few flows have: two VMs that talk to each other, a flood, a tunnel, an ICMP error and its flow, a SciTag.
fn rare() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let network = |mut vm: Instance| {
        vm.taps[0].network = Some(Label::new("br0").unwrap());
        vm
    };
    let atlas = network(instance("hv1", 1, Some("atlas"), "10.0.0.5"));
    let cms = network(instance("hv1", 2, Some("cms"), "10.0.0.6"));
    let facts = [
        record(at("14:00:00"), Fact::Instance(atlas.clone())),
        record(at("14:00:00"), Fact::Instance(cms.clone())),
        record(at("14:01:00"), Fact::Payload(payload(&atlas, 1, "alice", "atlas", (41000, 41999), "14:01:00"))),
    ];
    let mut call = flow(&atlas, 41022, "14:03:22", Some(1));
    (call.resp_ip, call.resp_port, call.vlan) = (ip("10.0.0.6"), 80, Some(7));
    call.notes.inner_vlan = Some(8);
    call.notes.scitag = Some(SciTag { experiment: 3, activity: 9, by: SciTagSource::Firefly });
    let mut there = Flow { tap: cms.taps[0].name.clone(), domain: cms.domain, ..call.clone() };
    (there.instance, there.vo, there.direction) = (cms.id.clone(), cms.vo.clone(), Direction::Incoming);
    there.orig_packets -= 1;
    let mut flood = flow(&atlas, 2048, "14:03:22", None);
    (flood.resp_ip, flood.resp_port) = (ip("0.0.0.0"), 0);
    flood.notes.folded = Some(Folded { flows: 900, last_port: 3071 });
    let mut inner = flow(&atlas, 50_000, "14:03:22", None);
    inner.notes.tunnel = Some(Tunnel::Vxlan(42));
    let mut refused = flow(&atlas, 50_001, "14:03:22", None);
    (refused.proto, refused.notes.icmp_error) = (17, Some(0x0303));
    let mut error = flow(&atlas, 50_001, "14:03:22", None);
    (error.orig_ip, error.resp_ip, error.direction) = (error.resp_ip, error.orig_ip, Direction::Incoming);
    (error.proto, error.orig_port, error.resp_port) = (1, 443, 0x0303);
    let (src_ip, dst_ip) = (ip("10.0.0.5"), ip("192.0.2.9"));
    error.notes.speaks_of = Some(Tuple { src_ip, src_port: 50_001, dst_ip, dst_port: 443, proto: 17 });
    let mut everywhere = flow(&cms, 0, "14:03:22", None);
    (everywhere.orig_ip, everywhere.resp_ip, everywhere.resp_port, everywhere.proto) =
        (ip("0.0.0.0"), ip("0.0.0.0"), 0, 255);
    everywhere.notes.folded = Some(Folded { flows: 70_000, last_port: 0 });
    writer.append(&facts, &[call, there, flood, inner, refused, error, everywhere]).unwrap();
    writer.seal(at("14:05:00")).unwrap();
    root
}

fn vestigo(root: &Path, arguments: &str) -> Output {
    command(root).args(arguments.split_whitespace()).output().unwrap()
}

/// With a case, a reason, and a record of questions of the test's own.
fn command(root: &Path) -> Command {
    let config = root.join("vestigo.toml");
    std::fs::write(&config, format!("[access]\nlog = \"{}\"\n", root.join("access/log.jsonl").display())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vestigo"));
    command.env("VESTIGO_LEDGER", root).env("VESTIGO_CONFIG", config).env("XDG_CACHE_HOME", root.join("cache"));
    command.env("VESTIGO_CASE", "C-1").env("VESTIGO_REASON", "a test").env_remove("NO_COLOR");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const FOUND: &str = "who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port 41022";

#[test]
fn who_shows_host_facts_and_guest_claims_apart() {
    let root = ledger();
    let output = vestigo(root.path(), FOUND);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let (head, rest) = shown.split_once("HOST FACTS").expect("a verdict first");
    assert!(head.contains("alice (claimed), VO atlas, instance vm-1 (by lease)"), "{shown}");
    let (facts, claims) = rest.split_once("GUEST CLAIMS").expect("two parts");
    assert!(facts.contains("atlas") && facts.contains("vm-1"), "{shown}");
    assert!(!facts.contains("alice"), "{shown}");
    for words in
        ["alice", "pilot-atlas-1", "job-1", "asserted-by-vo", "ports 41000-41999", "ATTRIBUTION lease", "COVERAGE"]
    {
        assert!(claims.contains(words), "{words} in {shown}");
    }
    assert!(!shown.contains('\u{1b}'), "escaped: {shown}");
    assert!(shown.contains("complete"), "{shown}");
}

#[test]
fn a_claim_made_afterwards_is_not_printed_like_a_certainty_and_a_run_id_used_again_is_told() {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut late = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:04:00");
    late.claimed = at("14:01:00");
    let again = payload(&vm, 1, "bob", "atlas", (42000, 42999), "14:05:00");
    let facts = [
        record(at("14:00:00"), Fact::Instance(vm.clone())),
        record(at("14:04:00"), Fact::Payload(late)),
        record(at("14:05:00"), Fact::Payload(again)),
    ];
    writer.append(&facts, &[flow(&vm, 41022, "14:03:22", None)]).unwrap();
    let shown = text(&vestigo(root.path(), FOUND).stdout);
    for words in [
        "ATTRIBUTION claimed-late: not certain: the guest announced lease ports 41000-41999 at 2026-11-22T14:04:00Z, after",
        "perhaps, and said only after the flow had begun",
        "NOTE the guest later claimed something else under this run id (once); the first claim holds",
    ] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    assert!(shown.contains("alice") && !shown.contains("bob"), "{shown}");
    let output = vestigo(root.path(), &format!("{FOUND} --json"));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let candidate = &value["answer"]["candidates"][0];
    assert_eq!(candidate["attribution"]["quality"], "claimed-late");
    assert_eq!(candidate["later_claims"][0]["user"]["subject"], "bob");
}

#[test]
fn json_is_versioned_and_holds_the_same() {
    let root = ledger();
    let output = vestigo(root.path(), &format!("{FOUND} --json"));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["version"], &value["kind"]), (&1.into(), &"who".into()));
    let candidate = &value["answer"]["candidates"][0];
    assert_eq!(candidate["host_facts"]["vo"], "atlas");
    assert_eq!(candidate["guest_claims"]["user"]["subject"], "alice");
    assert_eq!(candidate["attribution"]["quality"], "lease");
    assert_eq!(candidate["guest_claims"]["command"][2], "7 \u{1b}[31m");
    assert!(!text(&output.stdout).contains('\u{1b}'));
    assert_eq!(value["answer"]["coverage"]["complete"], true);
}

#[test]
fn what_few_flows_have_is_said_in_words() {
    let root = rare();
    let ask = |rest: &str| {
        let shown = text(&vestigo(root.path(), &format!("who --time 2026-11-22T14:03:22Z {rest}")).stdout);
        println!("{shown}");
        shown
    };
    let cases: [(&str, &[&str]); 6] = [
        (
            "--ip 198.51.100.200",
            &[
                "Nothing found",
                "Perhaps instance vm-2 on hv1 (VO cms): it sent with more addresses than the host keeps apart; up to 70000 conversations",
            ],
        ),
        (
            "--ip 10.0.0.5 --port 41022",
            &[
                "alice (claimed), VO atlas, instance vm-1 (by lease)",
                "at tap1, VLAN 8 in VLAN 7",
                "also seen    at tap2 of instance vm-2 on hv1 (VO cms)",
                "both taps are on network br0 of the host; out 10 packets, 1000 bytes here but 9 packets, 1000 bytes there (lost",
                "SciTag       experiment 3 (cms), activity 9, by firefly of 1 conversation",
                "NOTE contradiction: the VM's traffic says it is experiment cms's (SciTag), but the VM belongs to a tenant of VO atlas",
            ],
        ),
        (
            "--ip 10.0.0.5 --port 2500 --peer 192.0.2.77",
            &[
                "perhaps VO atlas, instance vm-1; nobody more precise is certain",
                "tcp 10.0.0.5 ports 2048-3071 → up to 900 conversations to peers that were not kept",
                "one with 192.0.2.77 may or may not be among them",
            ],
        ),
        ("--ip 10.0.0.5 --port 50000", &["inside a vxlan tunnel, network 42; in no sum"]),
        ("--ip 10.0.0.5 --port 50001", &["last ICMP error about it: refused: port unreachable"]),
        (
            "--ip 10.0.0.5 --proto icmp",
            &[
                "icmp 10.0.0.5 ← 192.0.2.9 refused: port unreachable",
                "the last of these errors speaks of udp 10.0.0.5:50001 → 192.0.2.9:443",
            ],
        ),
    ];
    for (question, words) in cases {
        let shown = ask(question);
        for words in words {
            assert!(shown.contains(words), "{question}: {words} in {shown}");
        }
    }
    let shown =
        text(&vestigo(root.path(), "ips --vo atlas --from 2026-11-22T14:00:00Z --to 2026-11-22T15:00:00Z").stdout);
    println!("{shown}");
    assert!(shown.contains("in-tunnel") && shown.contains("4 (900 folded)"), "{shown}");
    let output = vestigo(root.path(), "who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port 41022 --json");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let candidate = &value["answer"]["candidates"][0];
    assert_eq!(candidate["also_seen"][0]["sameness"], "same");
    assert_eq!(candidate["also_seen"][0]["host_facts"]["vo"], "cms");
    assert_eq!((&candidate["scitags"][0]["experiment"], &candidate["flows"][0]["inner_vlan"]), (&3.into(), &8.into()));
}

#[test]
fn ips_and_pilots_print_tables() {
    let root = ledger();
    let output = vestigo(root.path(), "ips --vo atlas --from 2026-11-22T14:00:00Z --to 2026-11-22T15:00:00Z");
    assert_eq!(output.status.code(), Some(0));
    let shown = text(&output.stdout);
    assert!(shown.contains("10.0.0.5") && shown.contains("20000"), "sealed and live together: {shown}");
    let output = vestigo(root.path(), "pilots --user alice");
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(shown.contains("pilot-atlas-1") && shown.contains("job-1"), "{shown}");
    for question in ["pilots --user alice --from 2026-11-22T14:02:00Z", "pilots --user alice --to 2026-11-22T14:02:00Z"]
    {
        assert_eq!(vestigo(root.path(), question).status.code(), Some(0), "{question}");
    }
}

#[test]
fn nothing_found_is_its_own_exit_code_and_says_what_could_be_seen() {
    let root = ledger();
    let questions = [
        "who --time 2026-11-22T14:03:22Z --ip 203.0.113.1",
        "who --time 2020-01-01T00:00:00Z --ip 10.0.0.5",
        "ips --vo cms --from 2026-11-22T14:00:00Z --to 2026-11-22T15:00:00Z",
        "pilots --user nobody",
    ];
    for question in questions {
        let output = vestigo(root.path(), question);
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{question}: {shown}");
        assert!(shown.contains("Nothing found"), "{shown}");
        assert!(shown.contains("holds records from 2026-11-22T14:00:00Z to 2026-11-22T14:06:01.5"), "{shown}");
    }
    let peer = vestigo(root.path(), "who --time 2026-11-22T14:03:22Z --ip 192.0.2.9 --port 443");
    assert_eq!(peer.status.code(), Some(3));
    assert!(text(&peer.stdout).contains("only seen as the other side of instance vm-1"));
}

#[test]
fn incomplete_coverage_is_an_exit_code_on_request_only() {
    let root = ledger();
    let late = "who --time 2026-11-22T14:06:00Z --ip 10.0.0.5";
    assert_eq!(vestigo(root.path(), late).status.code(), Some(0));
    let output = vestigo(root.path(), &format!("{late} --require-coverage"));
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stdout).contains("nothing was said"));
    assert_eq!(vestigo(root.path(), &format!("{FOUND} --require-coverage")).status.code(), Some(0));
}

#[test]
fn bad_input_gets_one_clear_sentence() {
    let root = ledger();
    let ask = |rest: &str| vestigo(root.path(), rest);
    let cases = [
        ("who --time yesterday --ip 10.0.0.5", 2, "write it in RFC 3339 with its zone, like 2026-11-22T14:03:22Z"),
        ("who --time 2026-11-22T14:03:22 --ip 10.0.0.5", 2, "\"2026-11-22T14:03:22\" is not a time"),
        ("who --time 2026-11-22T14:03:22Z --ip 10.0.0", 2, "10.0.0"),
        ("who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port 70000", 2, "70000"),
        ("who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --window 2", 2, "write it like 2s"),
        ("who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --peer x:y", 2, "192.0.2.9:443"),
        ("who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --proto foo", 2, "tcp, udp, icmp"),
        ("ips --vo a/x --from 2026-11-22T14:00:00Z --to 2026-11-22T15:00:00Z", 2, "'/'"),
        ("ips --vo atlas --from 2026-11-22T15:00:00Z --to 2026-11-22T14:00:00Z", 2, "exchange them"),
        ("pilots --user alice --ledger /nonexistent/ledger", 1, "There is no ledger at /nonexistent/ledger"),
    ];
    for (question, code, words) in cases {
        let output = ask(question);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{question}: {complaint}");
        assert!(complaint.contains(words), "{question}: {complaint}");
        assert!(!complaint.contains("panicked") && output.stdout.is_empty(), "{complaint}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let root = ledger();
    let mut child = command(root.path())
        .args(FOUND.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn help_documents_the_exit_codes() {
    let root = ledger();
    for question in ["--help", "who --help", "ips --help", "pilots --help"] {
        let output = vestigo(root.path(), question);
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(shown.contains("3  nothing found") && shown.contains("VESTIGO_LEDGER"), "{shown}");
    }
}

/// One VM with a signed payload, one with a token, and the VM's own parts.
fn ledger_of_origins() -> TempDir {
    use vestigo_model::*;
    let label = |text: &str| Label::new(text).unwrap();
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let mut signed = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    signed.claim.trust = Trust::SignedByUser;
    signed.claim.task = Some(TaskMark {
        id: label("analysis-7"),
        nonce: label("n"),
        runs: 1,
        not_before: at("14:00:00"),
        expires: at("18:00:00"),
        statement: Digest::of(b"statement"),
        key: label("SHA256:abc"),
    });
    signed.claim.interpreter = Some(Executable { path: "/bin/sh".to_owned(), sha256: Digest::of(b"sh") });
    let caller = Caller { uid: 1000, gid: 1001, pid: 77 };
    let time = at("14:00:59");
    let access = Access { caller, connected: time, authenticated: time, authorized: time, runs_as: 200_000 };
    signed.claim.access = Some(access);
    let mut token = payload(&vm, 2, "bob", "atlas", (42000, 42999), "14:01:00");
    token.claim.trust = Trust::AssertedByVo;
    token.claim.token = Some(TokenMark {
        issuer: label("https://iss.example"),
        subject: label("bob"),
        id: Some(label("jti-9")),
        expires: at("18:00:00"),
        verified: false,
    });
    let mut own = payload(&vm, 3, "pilot", "none", (2048, 4095), "14:01:00");
    own.claim.holder = Holder::Pilot;
    let facts = [Fact::Instance(vm.clone()), Fact::Payload(signed), Fact::Payload(token), Fact::Payload(own)];
    let facts = facts.map(|fact| record(at("14:01:00"), fact));
    let flows = [(41022, 1), (42022, 2), (3000, 3)].map(|(port, of)| flow(&vm, port, "14:03:22", Some(of)));
    writer.append(&facts, &flows).unwrap();
    root
}

#[test]
fn who_says_on_whose_word_and_does_not_mix_the_kinds_of_trust() {
    let root = ledger_of_origins();
    let ask = |port: u16| {
        text(&vestigo(root.path(), &format!("who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port {port}")).stdout)
    };
    let signed = ask(41022);
    for words in [
        "signed-by-user",
        "analysis-7 by key SHA256:abc",
        "may run once",
        "verified by the VM's agent, not by the host",
        &format!("statement sha256 {}", vestigo_model::Digest::of(b"statement")),
        "/bin/sh",
        "uid 1000 gid 1001 pid 77",
        "uid 200000",
    ] {
        assert!(signed.contains(words), "{words} in {signed}");
    }
    assert!(!signed.contains("token"), "{signed}");
    let token = ask(42022);
    assert!(token.contains("asserted-by-vo") && token.contains("jti-9, signature not checked"), "{token}");
    assert!(!token.contains("signed task") && !token.contains("asserted-by-token"), "{token}");
    let json = vestigo(root.path(), "who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port 41022 --json");
    let value: Value = serde_json::from_slice(&json.stdout).unwrap();
    let claims = &value["answer"]["candidates"][0]["guest_claims"];
    assert_eq!((&claims["holder"], &claims["trust"]), (&"payload".into(), &"signed-by-user".into()));
    assert_eq!((&claims["task"]["key"], &claims["token"]), (&"SHA256:abc".into(), &Value::Null));
    assert_eq!((&claims["access"]["caller"]["pid"], &claims["interpreter"]["path"]), (&77.into(), &"/bin/sh".into()));
}

#[test]
fn the_vms_own_traffic_is_nobodys_payload() {
    let root = ledger_of_origins();
    let output = vestigo(root.path(), "who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port 3000");
    let shown = text(&output.stdout);
    assert!(
        shown.contains("Candidate 1 of 1: the guest says: pilot traffic of the VM, no user's payload, VO atlas"),
        "{shown}"
    );
    assert!(shown.contains("ATTRIBUTION lease") && !shown.contains("trust"), "{shown}");
    assert!(!shown.contains("contradiction"), "the VM's own traffic is of no VO: {shown}");
    assert_eq!(vestigo(root.path(), "pilots --user pilot").status.code(), Some(3), "it is no user either");
    let nobody = text(&vestigo(root.path(), "who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port 3000 --json").stdout);
    let value: Value = serde_json::from_str(&nobody).unwrap();
    assert_eq!(value["answer"]["candidates"][0]["guest_claims"]["holder"], "pilot");
}

#[test]
fn what_was_said_after_the_flow_is_no_word_of_the_host() {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    let vm = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let before = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    let mut later = payload(&vm, 2, "mallory", "atlas", (42000, 42999), "14:06:00");
    later.claimed = at("00:00:00");
    let facts = [Fact::Instance(vm.clone()), Fact::Payload(before), Fact::Payload(later)];
    let facts = facts.map(|fact| record(at("14:06:00"), fact));
    writer.append(&facts, &[flow(&vm, 60000, "14:03:22", None)]).unwrap();
    let output = vestigo(root.path(), "who --time 2026-11-22T14:03:22Z --ip 10.0.0.5 --port 60000");
    let shown = text(&output.stdout);
    assert!(shown.contains("ran in the VM then: alice"), "{shown}");
    let said = "announced at 2026-11-22T14:06:00Z, later; ran then by the guest's clock only: mallory";
    assert!(shown.contains(said) && !shown.contains("then: mallory"), "{shown}");
}

#[test]
fn a_question_without_a_reason_gets_no_answer_and_each_is_recorded() {
    let root = ledger();
    let ask =
        |case: &str| command(root.path()).args(FOUND.split_whitespace()).env("VESTIGO_CASE", case).output().unwrap();
    let refused = ask("");
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(2), String::new()));
    assert!(text(&refused.stderr).contains("--case and --reason"), "{}", text(&refused.stderr));
    assert_eq!(ask("C-7").status.code(), Some(0));
    let shown = text(&vestigo(root.path(), "access --verify --case C-7").stdout);
    assert!(shown.contains("C-7") && shown.contains("a test") && shown.contains("chain whole"), "{shown}");
    let log = root.path().join("access/log.jsonl");
    assert_eq!(ask("C-9").status.code(), Some(0));
    std::fs::write(&log, std::fs::read_to_string(&log).unwrap().replace("C-7", "C-8")).unwrap();
    assert_eq!(vestigo(root.path(), "access --verify").status.code(), Some(5));
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let refused = ask("C-7");
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), String::new()), "no record, no answer");
}

#[test]
fn sql_and_flows_read_segments_and_the_live_log_and_nothing_else() {
    let root = ledger();
    let sql = |query: &str| command(root.path()).args(["sql", query, "--format", "csv"]).output().unwrap();
    let one = |query: &str| {
        let output = sql(query);
        assert_eq!(output.status.code(), Some(0), "{query}: {}", text(&output.stderr));
        text(&output.stdout).lines().nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(one("SELECT count(*), sum(resp_bytes) FROM flows"), "2,18000");
    assert_eq!(one("SELECT count(*) FROM flows WHERE first < '2026-11-22T14:05:00Z'"), "1");
    assert_eq!(one("SELECT count(*) FROM flows WHERE in_net(orig_ip, '10.0.0.0/8') AND orig_ip = '10.0.0.5'"), "2");
    assert_eq!(one("SELECT count(*) FROM payloads"), "1");
    assert_eq!(one("SELECT instance FROM instances"), "vm-1");
    for query in [
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "COPY flows TO '/tmp/x.csv'",
        "SELECT nothing FROM flows",
    ] {
        let output = sql(query);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()), "{query}");
    }
    for (filter, flows) in [
        ("--ip 192.0.2.9", 2),
        ("--ip 192.0.2.8", 0),
        ("--net 10.0.0.0/24 --port 41022", 1),
        ("--peer 192.0.2.9:443 --from 2026-11-22T14:05:00Z", 1),
        ("--to 2026-11-22T14:05:00Z --vo atlas --min-bytes 10000 --state answered", 1),
        ("--vo cms", 0),
        ("--where orig_port=41023", 1),
    ] {
        let output = vestigo(root.path(), &format!("flows --json {filter}"));
        let value: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{filter}: {}", text(&output.stderr)));
        assert_eq!(value["answer"]["rows"].as_array().unwrap().len(), flows, "{filter}: {value:#}");
        assert_eq!(output.status.code(), Some(if flows > 0 { 0 } else { 3 }), "{filter}");
    }
    let value: Value = serde_json::from_slice(&vestigo(root.path(), "flows --sum vo,peer --json").stdout).unwrap();
    let row = &value["answer"]["rows"][0];
    assert_eq!(
        (&row["vo"], &row["peer"], &row["flows"], &row["bytes_in"]),
        (&"atlas".into(), &"192.0.2.9".into(), &2.into(), &18000.into())
    );
}

#[test]
fn payload_and_timeline_tell_the_story() {
    let root = ledger();
    let output = vestigo(root.path(), "payload a0000000-0000-4000-8000-000000000001");
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}{}", text(&output.stderr));
    for words in ["alice", "job-1", "ports 41000-41999", "FLOWS 2 records", "COVERAGE"] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    let range = "--from 2026-11-22T14:00:00Z --to 2026-11-22T15:00:00Z";
    for subject in ["--instance vm-1", "--user alice"] {
        let output = vestigo(root.path(), &format!("timeline {subject} {range}"));
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shown}{}", text(&output.stderr));
        assert!(shown.contains("run began: ") && shown.contains("alice") && shown.contains("18000"), "{shown}");
    }
    assert_eq!(vestigo(root.path(), &format!("timeline --user bob {range}")).status.code(), Some(3));
}
