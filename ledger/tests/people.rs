//! What is stored of persons, and who can read it: through the writer, the files and the questions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod fixture;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use fixture::{at, finished, flow, host, instance, ip, payload, record};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use vestigo_ledger::{
    Ledger, Writer, WriterOptions,
    people::{Keyring, Owner, PublicSet, Sealer, SecretSet},
    questions::{pilots::PilotsQuestion, who::WhoQuestion},
};
use vestigo_model::{Event, EventKind, Exit, Fact, FactRecord, Label, Payload, TimeRange, Vo};

const ISSUER: &str = "https://iss.example";

fn keys(owner: Owner) -> SecretSet {
    SecretSet::generate(owner, "2026-11".parse().unwrap())
}

fn of_vo(name: &str) -> Owner {
    Owner::Vo(Vo::new(name).unwrap())
}

fn ring(sets: &[&SecretSet]) -> Keyring {
    let mut ring = Keyring::default();
    sets.iter().for_each(|set| ring.add((*set).clone()));
    ring
}

fn writer(root: &Path, sets: Vec<PublicSet>) -> Writer {
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root, options).unwrap();
    writer.seal_names_with(Arc::new(Sealer::new(sets, None)));
    writer
}

fn ledger(root: &Path, keys: Keyring) -> Ledger {
    Ledger::open_folders(&[root.to_owned()]).unwrap().with_keys(keys)
}

fn refusal(subject: &str) -> Event {
    let detail = [
        ("run", "c0000000-0000-4000-8000-000000000001"),
        ("user-issuer", ISSUER),
        ("user-subject", subject),
        ("caller", "uid 4711 gid 4711 pid 77"),
        ("reason", "mallory was not allowed"),
        ("code", "203"),
    ];
    let detail = detail.map(|(name, text)| (name.to_owned(), text.to_owned())).into_iter().collect();
    let what = EventKind::PayloadRefused;
    Event { host: host("hv1"), domain: Some(fixture::domain(1)), time: at("14:02:00"), what, detail }
}

/// hv1: alice and bob in a VM of atlas, carol in an unmapped one, a refused start of mallory's. Then alice's payload ends, in a
/// segment of its own, and bob's goes on.
fn write(root: &Path, sets: Vec<PublicSet>) -> Writer {
    let mut writer = writer(root, sets);
    let (atlas, stray) = (instance("hv1", 1, Some("atlas"), "10.0.0.5"), instance("hv1", 3, None, "10.0.0.7"));
    let alice = payload(&atlas, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    let linked = |clock, fact, seq| FactRecord { link: Some(fixture::link(1, seq)), ..record(at(clock), fact) };
    let facts = [
        record(at("14:00:00"), Fact::Instance(atlas.clone())),
        record(at("14:00:01"), Fact::Instance(stray.clone())),
        linked("14:01:00", Fact::Payload(alice.clone()), 1),
        linked("14:01:01", Fact::Payload(payload(&atlas, 2, "bob", "atlas", (42000, 42999), "14:01:01")), 2),
        record(at("14:01:02"), Fact::Payload(payload(&stray, 3, "carol", "lhcb", (43000, 43999), "14:01:02"))),
        record(at("14:02:00"), Fact::Event(refusal("mallory"))),
    ];
    let flows = [flow(&atlas, 41022, "14:03:22", Some(1)), flow(&stray, 43001, "14:03:22", Some(3))];
    writer.append(&facts, &flows).unwrap();
    writer.seal(at("14:05:00")).unwrap().expect("a segment");
    let ended = record(at("14:06:00"), Fact::Payload(finished(alice, "14:06:00", Exit::Code(0))));
    writer.append(&[ended], &[flow(&atlas, 42022, "14:05:22", Some(2))]).unwrap();
    writer.seal(at("14:10:00")).unwrap().expect("a segment");
    writer
}

fn everything() -> TimeRange {
    TimeRange { from: at("00:00:00"), to: at("23:59:59") }
}

fn payloads(ledger: &Ledger) -> Vec<Payload> {
    let facts = ledger.facts(everything()).unwrap();
    assert_eq!(facts.conflicting, []);
    facts.payloads
}

fn subjects(ledger: &Ledger) -> Vec<String> {
    payloads(ledger).iter().map(|payload| payload.claim.user.subject.to_string()).collect()
}

fn pilots(ledger: &Ledger, subject: &str, issuer: Option<&str>) -> (Vec<String>, Vec<String>) {
    let label = |text: &str| Label::new(text).unwrap();
    let question = PilotsQuestion { subject: label(subject), issuer: issuer.map(label), range: None };
    let answer = ledger.pilots(&question).unwrap();
    let users = answer.rows.iter().flat_map(|row| &row.payloads).map(|claims| claims.user.subject.to_string());
    (users.collect(), answer.notes)
}

fn who(ledger: &Ledger, address: &str, port: u16) -> String {
    let range = TimeRange::around(at("14:03:22"), Duration::from_secs(2));
    let question = WhoQuestion { range, ip: ip(address), port: Some(port), peer: None, proto: None, instance: None };
    let answer = ledger.who(&question).unwrap();
    answer.candidates[0].guest_claims.as_ref().unwrap().user.subject.to_string()
}

#[test]
fn who_has_the_key_sees_names_and_nobody_else() {
    let root = tempfile::tempdir().unwrap();
    let (atlas, site) = (keys(of_vo("atlas")), keys(Owner::Site));
    let _writer = write(root.path(), vec![atlas.shared.clone(), site.shared.clone()]);
    let all = ledger(root.path(), ring(&[&atlas, &site]));
    assert_eq!(subjects(&all), ["alice", "bob", "carol"]);
    let stored = payloads(&all);
    assert_eq!(stored[0].claim.command, ["./analysis", "--run", "7 \u{1b}[31m"]);
    assert!(stored[0].end.is_some() && stored.iter().all(|payload| payload.claim.withheld.is_none()));
    let refused = |ledger: &Ledger| ledger.facts(everything()).unwrap().events[0].clone();
    assert_eq!(refused(&all), refusal("mallory"));
    assert_eq!(who(&all, "10.0.0.5", 41022), "alice");
    // The VO reads its own users; of the others it sees that there is somebody.
    let vo = ledger(root.path(), ring(&[&atlas]));
    let seen = subjects(&vo);
    assert_eq!(seen[..2], ["alice", "bob"]);
    assert!(seen[2].starts_with("p1.@site.2026-11."), "{seen:?}");
    assert_eq!(who(&vo, "10.0.0.5", 41022), "alice");
    assert!(who(&vo, "10.0.0.7", 43001).starts_with("p1.@site.2026-11."));
    assert_eq!(refused(&vo).detail["user-issuer"], ISSUER, "the refused start was in a VM of atlas");
    // And without any key everything but the names is there.
    let none = ledger(root.path(), Keyring::default());
    assert!(subjects(&none).iter().all(|subject| subject.starts_with("p1.")));
    assert!(who(&none, "10.0.0.5", 41022).starts_with("p1.atlas.2026-11."));
    assert!(refused(&none).detail["user-subject"].starts_with("p1.atlas.2026-11."));
}

#[test]
fn a_user_is_found_by_name_with_the_search_key_and_by_pseudonym_without() {
    let root = tempfile::tempdir().unwrap();
    let (atlas, site) = (keys(of_vo("atlas")), keys(Owner::Site));
    let _writer = write(root.path(), vec![atlas.shared.clone(), site.shared.clone()]);
    let mut search = Keyring::default();
    [&atlas, &site].into_iter().for_each(|set| search.add_search(set.shared.clone()));
    let searcher = ledger(root.path(), search);
    let (found, notes) = pilots(&searcher, "alice", Some(ISSUER));
    assert!(found.len() == 1 && found[0].starts_with("p1.atlas.2026-11.") && notes.is_empty(), "{found:?} {notes:?}");
    assert_eq!(pilots(&searcher, "alice", Some("https://other.example")).0, [""; 0]);
    // Without the issuer there is nothing to compute: that is said, and is no "nothing found".
    let (nobody, notes) = pilots(&searcher, "alice", None);
    assert!(nobody.is_empty() && notes[0].contains("3 payloads"), "{notes:?}");
    let none = ledger(root.path(), Keyring::default());
    assert_eq!(pilots(&none, &found[0], None), (found.clone(), vec![]));
    let (nobody, notes) = pilots(&none, "alice", Some(ISSUER));
    assert!(nobody.is_empty() && notes[0].contains("no search key"), "{notes:?}");
    let all = ledger(root.path(), ring(&[&atlas, &site]));
    for (subject, issuer) in [("alice", None), ("alice", Some(ISSUER)), (found[0].as_str(), None)] {
        assert_eq!(pilots(&all, subject, issuer), (vec!["alice".to_owned()], vec![]), "{subject}");
    }
}

#[test]
fn what_ends_in_the_log_is_the_payload_that_a_segment_began() {
    let root = tempfile::tempdir().unwrap();
    let site = keys(Owner::Site);
    let mut writer = write(root.path(), vec![site.shared.clone()]);
    let atlas = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let bob = finished(payload(&atlas, 2, "bob", "atlas", (42000, 42999), "14:01:01"), "14:11:00", Exit::Code(1));
    writer.append(&[record(at("14:11:00"), Fact::Payload(bob.clone()))], &[]).unwrap();
    // With and without a key: one payload, with its end, and no contradiction.
    for keyring in [Keyring::default(), ring(&[&site])] {
        assert_eq!(payloads(&ledger(root.path(), keyring))[1], bob);
    }
    // What a guest says under the same run id and is something else stays a contradiction, also when only marks are left of it.
    let mut lie = payload(&atlas, 2, "bob", "atlas", (42000, 42999), "14:01:01");
    lie.claim.command = vec!["./other".to_owned()];
    writer.append(&[record(at("14:12:00"), Fact::Payload(lie))], &[]).unwrap();
    writer.seal(at("14:15:00")).unwrap().expect("a segment");
    let facts = ledger(root.path(), Keyring::default()).facts(everything()).unwrap();
    assert_eq!(facts.conflicting.len(), 1, "{:?}", facts.conflicting);
    assert_eq!(facts.payloads[1].end, bob.end);
}

#[test]
fn destroyed_keys_erase_the_persons_and_leave_the_flows() {
    let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let site = keys(Owner::Site);
    let path = vestigo_ledger::people::write_secret(folder.path(), &site).unwrap();
    let public = folder.path().join("people.json");
    vestigo_ledger::people::write_public(&public, std::slice::from_ref(&site.shared)).unwrap();
    let _writer = write(root.path(), vec![site.shared]);
    let now = || ledger(root.path(), Keyring::open(&[folder.path().to_owned()]).unwrap());
    assert_eq!(who(&now(), "10.0.0.5", 41022), "alice");
    vestigo_ledger::people::destroy_secret(&path).unwrap();
    assert!(who(&now(), "10.0.0.5", 41022).starts_with("p1.@site."));
    assert_eq!(pilots(&now(), "alice", Some(ISSUER)).0.len(), 1, "the search key is still there");
    vestigo_ledger::people::write_public(&public, &[]).unwrap();
    let (nobody, notes) = pilots(&now(), "alice", Some(ISSUER));
    assert!(nobody.is_empty() && notes.len() == 1);
    assert!(who(&now(), "10.0.0.5", 41022).starts_with("p1.@site."), "the flow and its payload are there");
}

/// Every value of every column as text, the sealed ones as bytes.
fn values(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for column in batch.columns() {
        if let Some(binary) = column.as_binary_opt::<i32>() {
            binary.iter().flatten().for_each(|value| bytes.extend_from_slice(value));
        } else if let Some(fixed) = column.as_fixed_size_binary_opt() {
            fixed.iter().flatten().for_each(|value| bytes.extend_from_slice(value));
        } else if !matches!(column.data_type(), DataType::Timestamp(..)) {
            let texts = cast(column, &DataType::Utf8).unwrap();
            texts.as_string::<i32>().iter().flatten().for_each(|value| bytes.extend_from_slice(value.as_bytes()));
        }
        bytes.push(0);
    }
    bytes
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[test]
fn no_stored_byte_names_anybody() {
    let root = tempfile::tempdir().unwrap();
    let site = keys(Owner::Site);
    let writer = write(root.path(), vec![site.shared]);
    drop(writer);
    fs::remove_dir_all(root.path().join("wal")).unwrap();
    let mut found = Vec::new();
    files(root.path(), &mut found);
    let parquet: Vec<&PathBuf> =
        found.iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).collect();
    assert_eq!(parquet.len(), 12, "two segments with six tables each");
    let digests: Vec<String> = (1..=2).map(|seq| fixture::link(1, seq).digest.to_string()).collect();
    let personal = ["alice", "bob", "carol", "mallory", "iss.example", "./analysis", "4711"];
    let personal: Vec<&str> = personal.into_iter().chain(digests.iter().map(String::as_str)).collect();
    let (mut rows, mut sealed) = (0, 0);
    for path in &found {
        // As it lies there: names of files, footers, statistics, dictionaries that were not compressed.
        let mut bytes = fs::read(path).unwrap();
        if parquet.contains(&path) {
            for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap() {
                let batch = batch.unwrap();
                rows += batch.num_rows();
                sealed += batch.column_by_name("sealed").map_or(0, |column| column.len());
                bytes.extend(values(&batch));
            }
        }
        for name in &personal {
            let there = bytes.windows(name.len()).any(|window| window == name.as_bytes());
            assert!(!there, "{name} in {}", path.display());
        }
    }
    // Alice's start, bob's, carol's, the refusal; and alice's end in its own segment. Copies have none.
    assert_eq!(sealed, 5);
    assert!(rows > sealed);
}

#[test]
fn the_log_is_for_the_writer_alone() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("wal")).unwrap();
    let _writer = writer(root.path(), vec![keys(Owner::Site).shared]);
    assert_eq!(fs::metadata(root.path().join("wal")).unwrap().permissions().mode() & 0o777, 0o700);
}

/// Without a key for the names a segment is not written, and nothing is lost: the log has it until there is one.
#[test]
fn no_name_is_stored_for_want_of_a_key() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), Vec::new());
    let atlas = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let fact = Fact::Payload(payload(&atlas, 1, "alice", "atlas", (41000, 41999), "14:01:00"));
    writer.append(&[record(at("14:01:00"), fact)], &[]).unwrap();
    assert!(writer.seal(at("14:05:00")).is_err());
    assert_eq!(subjects(&ledger(root.path(), Keyring::default())), ["alice"]);
    writer.seal_names_with(Arc::new(Sealer::new(vec![keys(Owner::Site).shared], None)));
    writer.seal(at("14:10:00")).unwrap().expect("a segment");
    assert!(subjects(&ledger(root.path(), Keyring::default()))[0].starts_with("p1.@site."));
}

#[test]
fn segments_of_version_1_still_name_their_users() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/before-notes");
    let clear = subjects(&ledger(&root, Keyring::default()));
    assert!(!clear.is_empty() && clear.iter().all(|subject| !subject.starts_with("p1.")), "{clear:?}");
    let user = &payloads(&ledger(&root, Keyring::default()))[0].claim.user.clone();
    let (found, notes) = pilots(&ledger(&root, ring(&[&keys(Owner::Site)])), user.subject.as_str(), None);
    assert!(!found.is_empty() && notes.is_empty());
}

/// libsodium by way of PyNaCl, HMAC and SHA-256 by way of Python: none of them ours. `tests/prerequisites` installs it.
#[test]
fn a_stranger_opens_what_was_sealed() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = repository.join("target/venv/bin/python");
    let there = Command::new(&python).args(["-c", "import nacl"]).status().is_ok_and(|status| status.success());
    if !there {
        assert!(std::env::var("CI").is_err(), "this test needs PyNaCl, and CI must have everything");
        eprintln!("SKIPPED: this test needs PyNaCl in target/venv (tests/prerequisites)");
        return;
    }
    let (root, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (atlas, site) = (keys(of_vo("atlas")), keys(Owner::Site));
    let key = vestigo_ledger::people::write_secret(folder.path(), &atlas).unwrap();
    let _writer = write(root.path(), vec![atlas.shared, site.shared]);
    let (mut found, mut rows) = (Vec::new(), Vec::new());
    files(root.path(), &mut found);
    for path in found.iter().filter(|path| path.to_string_lossy().ends_with("-people.parquet")) {
        rows.extend(vestigo_ledger::people::stored_rows(path).unwrap().0);
    }
    let ours: Vec<_> = rows.iter().filter(|row| row.vo.is_some()).collect();
    assert_eq!((rows.len(), ours.len()), (5, 4));
    let lines: Vec<String> = ours.iter().map(|row| data_encoding::HEXLOWER.encode(&row.sealed) + "\n").collect();
    let mut child = Command::new(&python)
        .arg(repository.join("docs/queries/open_names.py"))
        .arg(&key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.concat().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let opened: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: BTreeSet<&str> = opened.iter().map(|person| person["user"]["subject"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["alice", "bob", "mallory"]));
    for (row, person) in ours.iter().zip(&opened) {
        assert_eq!(person["pseudonym"], row.pseudonym.as_str());
    }
    // The mark in the stored claim is the digest of what was sealed.
    let stored = payloads(&ledger(root.path(), Keyring::default()));
    let marks: BTreeSet<&str> = opened.iter().map(|person| person["withheld"].as_str().unwrap()).collect();
    assert!(marks.contains(stored[0].claim.withheld.as_ref().unwrap().as_str()));
}
