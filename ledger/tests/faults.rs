//! Faults: the program is killed, the log is cut, the disk is full, the clock is set back. Nothing that was acknowledged is lost, nothing
//! torn is listed, and it goes on by itself.
//!
//! The processes that are killed, or live in a mount namespace of their own, are this test program again: an ignored test each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout, missing_docs)]

mod fixture;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use fixture::*;
use vestigo_ledger::{
    FlowFilter, Ledger, Recovered, Signer, Signers, Writer, WriterOptions,
    questions::who::WhoQuestion,
    verify::{VerifyOptions, verify},
};
use vestigo_model::{Event, EventKind, Fact, FactRecord, Flow, Instance, TimeRange, Timestamp};

/// Where a child process finds its ledger.
const ROOT: &str = "VESTIGO_TEST_ROOT";
/// Flows that come with each fact.
const FLOWS: u64 = 3;
const KILLS: u64 = 200;
/// Kills of one ledger: then a new one is begun, so that looking at all of it stays quick.
const KILLS_OF_ONE: u64 = 10;

fn signer() -> Signer {
    Signer::from_seed(&[7; 32])
}

fn open(root: &Path) -> (Writer, Recovered) {
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 64 << 20 };
    let (mut writer, recovered) = Writer::open(root, options).unwrap();
    writer.sign_with(Arc::new(signer()));
    (writer, recovered)
}

fn vm() -> Instance {
    instance("hv1", 1, Some("atlas"), "10.0.0.5")
}

fn time_of(number: u64) -> Timestamp {
    at("14:00:00") + Duration::from_millis(number * 10)
}

/// The fact with this number, and its flows.
fn numbered(number: u64, time: Timestamp) -> (FactRecord, Vec<Flow>) {
    let detail = [("number".to_owned(), number.to_string())].into();
    let event = Event { host: host("hv1"), domain: None, time, what: EventKind::HostStarted, detail };
    let one = |at: u64| {
        let mut flow = flow(&vm(), 41000, "14:00:00", None);
        (flow.first, flow.last) = (time, time + Duration::from_millis(1));
        flow.orig_bytes = number * FLOWS + at;
        flow
    };
    (record(time, Fact::Event(event)), (0..FLOWS).map(one).collect())
}

fn append(writer: &mut Writer, number: u64) -> Result<(), vestigo_ledger::LedgerError> {
    let (fact, flows) = numbered(number, time_of(number));
    writer.append(&[fact], &flows)
}

fn ledger(root: &Path) -> Ledger {
    Ledger::open_folders(&[root.to_owned()]).unwrap()
}

fn ever() -> TimeRange {
    TimeRange { from: Timestamp::from_nanos(0), to: Timestamp::from_nanos(i64::MAX) }
}

/// How often the ledger has each fact, and each flow.
fn found(root: &Path) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
    let ledger = ledger(root);
    let (mut facts, mut flows) = (BTreeMap::new(), BTreeMap::new());
    for event in ledger.facts(ever()).unwrap().events {
        *facts.entry(event.detail["number"].parse().unwrap()).or_default() += 1;
    }
    for flow in ledger.flows(&FlowFilter { range: ever(), ip: None, vo: None }).unwrap() {
        *flows.entry(flow.orig_bytes).or_default() += 1;
    }
    (facts, flows)
}

/// The first `count` facts are there once each, with all their flows, and nothing else is.
fn assert_exactly(root: &Path, count: u64, when: &str) {
    let once = |count: u64| (0..count).map(|number| (number, 1)).collect::<BTreeMap<u64, u64>>();
    let (facts, flows) = found(root);
    assert!(facts == once(count), "{when}: {count} facts were written, these are there: {facts:?}");
    assert!(flows == once(count * FLOWS), "{when}: {count} × {FLOWS} flows were written, these are there: {flows:?}");
}

/// Chain, signatures, digests and rows; how many segments there are.
fn assert_whole(root: &Path, when: &str) -> u64 {
    let line = signer().allowed_line(&host("hv1"));
    let signers = Signers::parse(Path::new("signers"), line.as_bytes()).unwrap();
    let report = verify(&[root.to_owned()], &VerifyOptions { signers, quick: false }, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{when}: {:?}", report.findings);
    report.hosts.iter().map(|host| host.segments).sum()
}

/// This program again, as the ignored test of this name.
fn again(name: &str) -> Vec<String> {
    let program = env::current_exe().unwrap().to_str().unwrap().to_owned();
    [&program, "--exact", name, "--ignored", "--nocapture", "--test-threads=1"].map(str::to_owned).to_vec()
}

#[test]
#[ignore = "a child process of the test that kills it"]
fn child_that_is_killed() {
    let Some(root) = env::var_os(ROOT).map(PathBuf::from) else { return };
    let mut out = std::io::stdout();
    writeln!(out, "\nready").unwrap();
    let (mut writer, _) = open(&root);
    let first = found(&root).0.len() as u64;
    for number in first.. {
        append(&mut writer, number).unwrap();
        writeln!(out, "acknowledged {number}").unwrap();
        if number % 4 == 3 {
            writer.seal(time_of(number)).unwrap().unwrap();
        }
    }
}

/// Starts the child, kills it so many acknowledged facts and a pause later, and says which facts it had acknowledged.
fn kill_after(root: &Path, facts: u64, pause: Duration) -> Vec<u64> {
    let again = again("child_that_is_killed");
    let mut child: Child = Command::new(&again[0])
        .args(&again[1..])
        .env(ROOT, root)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line != "ready\n" {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child did not begin");
    }
    let mut said = String::new();
    for _ in 0..facts {
        assert!(out.read_line(&mut said).unwrap() > 0, "the child ended by itself");
    }
    thread::sleep(pause);
    assert_eq!(child.try_wait().unwrap(), None, "the child ended before it was killed");
    child.kill().unwrap();
    child.wait().unwrap();
    out.read_to_string(&mut said).unwrap();
    let whole = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole.map(|line| line.strip_prefix("acknowledged ").expect("an acknowledgement").parse().unwrap()).collect()
}

#[test]
fn two_hundred_kills_lose_nothing_that_was_acknowledged() {
    let begun = Instant::now();
    // Pauses by a fixed seed (Knuth's MMIX generator).
    let mut random = 20_261_128_u64;
    let (mut all, mut segments, mut unacknowledged, mut torn) = (0, 0, 0, 0);
    for _ in 0..KILLS / KILLS_OF_ONE {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("ledger");
        let mut known = 0;
        for kill in 0..KILLS_OF_ONE {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pause = Duration::from_micros((random >> 33) % 30_000);
            let acknowledged = kill_after(&root, random >> 61, pause);
            let when = format!("kill {kill} behind {known}");
            let expected: Vec<u64> = (known..).take(acknowledged.len()).collect();
            assert_eq!(acknowledged, expected, "{when}: the child begins behind what it finds");
            all += acknowledged.len() as u64;
            let safe = known + acknowledged.len() as u64;
            // Also beside what the kill left, before anybody has tidied up.
            if root.join("wal").is_dir() {
                let before = found(&root).0.len() as u64;
                assert!(before >= safe, "{when}: {safe} were acknowledged, {before} are there before the restart");
            }
            torn += open(&root).1.torn_bytes;
            // The one that was being written may be there, or not.
            known = found(&root).0.len() as u64;
            assert!((safe..=safe + 1).contains(&known), "{when}: {safe} were acknowledged, {known} are there");
            unacknowledged += known - safe;
            assert_exactly(&root, known, &when);
            let sealed = assert_whole(&root, &when);
            segments += if kill + 1 == KILLS_OF_ONE { sealed } else { 0 };
        }
    }
    let took = begun.elapsed();
    eprintln!(
        "{KILLS} kills in {took:.1?}: {all} facts acknowledged, {segments} segments, {unacknowledged} whole but not \
         acknowledged, {torn} bytes torn"
    );
    assert!(all >= KILLS && segments > KILLS / KILLS_OF_ONE, "the children wrote too little to be worth killing");
}

#[test]
fn a_log_cut_at_any_byte_opens_and_has_all_before_its_last_whole_record() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let log = root.join("wal/0000000001.wal");
    let length = || fs::metadata(&log).unwrap().len();
    let (mut writer, _) = open(root);
    // Ends of the records: (bytes, facts, flows).
    let mut ends = vec![(0, 0, 0), (length(), 0, 0)];
    for number in 0..4_usize {
        let (fact, flows) = numbered(number as u64, time_of(number as u64));
        writer.append(&[fact], &[]).unwrap();
        ends.push((length(), number + 1, number * flows.len()));
        writer.append(&[], &flows).unwrap();
        ends.push((length(), number + 1, (number + 1) * flows.len()));
    }
    drop(writer);
    let whole = fs::read(&log).unwrap();
    for cut in 0..=whole.len() {
        fs::write(&log, &whole[..cut]).unwrap();
        let (_, facts, flows) = *ends.iter().rfind(|end| end.0 <= cut as u64).unwrap();
        let there = || {
            let (facts, flows) = found(root);
            (facts.len(), flows.len())
        };
        assert_eq!(there(), (facts, flows), "cut at {cut}");
        let (mut writer, _) = open(root);
        assert_eq!(there(), (facts, flows), "opened after a cut at {cut}");
        if cut % 61 == 0 {
            append(&mut writer, 9).unwrap();
            assert_eq!(there(), (facts + 1, flows + 3), "appended after a cut at {cut}");
        }
        drop(writer);
        let _ = fs::remove_file(root.join("wal/0000000002.wal"));
    }
}

#[test]
#[ignore = "a child process of the test of a full disk"]
fn child_on_a_small_disk() {
    let Some(disk) = env::var_os(ROOT).map(PathBuf::from) else { return };
    let (root, filler) = (disk.join("ledger"), disk.join("filler"));
    let (mut writer, _) = open(&root);
    fs::write(&filler, vec![1; 3 << 20]).unwrap();
    let mut known = 0;
    let error = loop {
        match append(&mut writer, known) {
            Ok(()) => known += 1,
            Err(error) => break error,
        }
        assert!(known < 100_000, "the disk is never full");
    };
    assert!(format!("{error:?}").contains("StorageFull"), "{error:?}");
    let full = known;
    assert_exactly(&root, known, "when the disk became full");
    let now = time_of(known);
    let error = writer.seal(now).unwrap_err();
    assert!(format!("{error:?}").contains("StorageFull"), "{error:?}");
    // Once the tail is cut there may be room for some.
    for _ in 0..20 {
        known += u64::from(append(&mut writer, known).is_ok());
    }
    writer.seal(now).unwrap_err();
    assert_exactly(&root, known, "after failed seals");
    fs::remove_file(&filler).unwrap();
    for _ in 0..20 {
        append(&mut writer, known).unwrap();
        known += 1;
    }
    writer.seal_if_due(now + Duration::from_secs(60)).unwrap().expect("the seal is tried again by itself");
    writer.seal(now + Duration::from_secs(61)).unwrap();
    append(&mut writer, known).unwrap();
    known += 1;
    assert_exactly(&root, known, "when there was room again");
    drop(writer);
    let (writer, recovered) = open(&root);
    drop(writer);
    assert_eq!(recovered.torn_bytes, 0);
    assert_exactly(&root, known, "after a restart");
    let segments = assert_whole(&root, "after a restart");
    eprintln!("full after {full} facts; {known} in the end, {segments} segments");
}

#[test]
fn a_full_disk_is_reported_and_left_behind_without_loss() {
    let disk = tempfile::tempdir().unwrap();
    let mount = |then: &[String]| {
        let script = "mount -t tmpfs -o size=5m,mode=0700 tmpfs \"$0\" && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(disk.path()).args(then).env(ROOT, disk.path());
        command
    };
    if !mount(&["true".to_owned()]).output().is_ok_and(|output| output.status.success()) {
        assert!(env::var("CI").as_deref() != Ok("true"), "this test needs root rights, and CI must have them");
        eprintln!("SKIPPED: this test needs root rights, to mount a small disk in a namespace of its own");
        return;
    }
    let output = mount(&again("child_on_a_small_disk")).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    eprintln!("{err}");
}

/// One fact and its flows at each time, sealed every so many; then everything is looked for, all at once and one by one.
fn lives_through(times: &[&str], seal_every: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (mut writer, _) = open(root);
    let started = record(times[0].parse().unwrap(), Fact::Instance(vm()));
    writer.append(&[started], &[]).unwrap();
    for (number, time) in times.iter().enumerate() {
        let time: Timestamp = time.parse().unwrap();
        let (fact, flows) = numbered(number as u64, time);
        writer.append(&[fact], &flows).unwrap();
        writer.seal_if_due(time).unwrap();
        if (number + 1) % seal_every == 0 {
            writer.seal(time).unwrap();
        }
    }
    drop(writer);
    drop(open(root));
    assert_exactly(root, times.len() as u64, "after a restart");
    assert_whole(root, "after a restart");
    for time in times {
        assert!(flows_at(root, time.parse().unwrap()) >= FLOWS, "who was it at {time}?");
    }
    folder
}

/// How many flows `who` finds at this moment; `flows` finds as many.
fn flows_at(root: &Path, time: Timestamp) -> u64 {
    let (ledger, range) = (ledger(root), TimeRange::around(time, Duration::from_millis(1)));
    let question =
        WhoQuestion { range, ip: ip("10.0.0.5"), port: Some(41000), peer: None, proto: None, instance: None };
    let answer = ledger.who(&question).unwrap();
    let found = answer.candidates.iter().map(|candidate| candidate.totals.flows).sum();
    let flows = ledger.flows(&FlowFilter { range, ip: Some(question.ip), vo: None }).unwrap();
    assert_eq!(flows.len() as u64, found, "at {time}");
    found
}

#[test]
fn a_clock_set_back_an_hour_loses_nothing() {
    let times = [
        "2026-11-22T14:00:00Z",
        "2026-11-22T14:30:00Z",
        "2026-11-22T13:30:01Z",
        "2026-11-22T13:30:02Z",
        "2026-11-22T14:30:03Z",
        "2026-11-22T13:29:00Z",
        "2026-11-22T13:40:00Z",
    ];
    for seal_every in 1..=times.len() {
        lives_through(&times, seal_every);
    }
}

#[test]
fn a_clock_set_back_across_midnight_loses_nothing() {
    let times = [
        "2026-11-22T23:50:00Z",
        "2026-11-23T00:10:00Z",
        "2026-11-22T23:10:01Z",
        "2026-11-22T23:59:59.999999999Z",
        "2026-11-23T00:00:00Z",
        "2026-11-23T00:30:00Z",
    ];
    for seal_every in 1..=times.len() {
        lives_through(&times, seal_every);
    }
}

#[test]
fn a_clock_that_leaps_days_forth_and_back_loses_nothing() {
    let times = [
        "2026-11-22T14:00:00Z",
        "2026-11-25T14:00:00Z",
        "2026-11-22T14:00:01Z",
        "2026-12-31T23:59:59Z",
        "2026-11-22T14:00:02Z",
    ];
    for seal_every in 1..=times.len() {
        lives_through(&times, seal_every);
    }
    // All in one segment: what spans more than two days has no day.
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(folder.path());
    for (number, time) in times.iter().enumerate() {
        let (fact, flows) = numbered(number as u64, time.parse().unwrap());
        writer.append(&[fact], &flows).unwrap();
    }
    let sealed = writer.seal(times[4].parse().unwrap()).unwrap().unwrap();
    assert!(sealed.folder.ends_with("date=__HIVE_DEFAULT_PARTITION__/host=hv1"), "{}", sealed.folder.display());
    assert_exactly(folder.path(), 5, "without a day");
    for time in times {
        assert!(flows_at(folder.path(), time.parse().unwrap()) >= FLOWS, "who was it at {time}?");
    }
}

#[test]
fn a_flow_during_which_the_clock_was_set_back_is_found_by_either_reading() {
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(folder.path());
    let mut flow = flow(&vm(), 41000, "15:00:00", None);
    flow.last = at("14:00:01");
    writer.append(&[record(at("14:00:01"), Fact::Instance(vm()))], &[flow]).unwrap();
    for state in ["in the log", "sealed"] {
        for reading in ["15:00:00", "14:00:01"] {
            assert_eq!(flows_at(folder.path(), at(reading)), 1, "{state}, at {reading}");
        }
        writer.seal(at("14:00:02")).unwrap();
    }
}

#[test]
#[ignore = "a figure: more than twenty seconds in a debug build"]
fn a_restart_with_a_million_flows_in_the_log() {
    const COUNT: u64 = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let (mut writer, _) = open(folder.path());
    let template = flow(&vm(), 41000, "14:00:00", None);
    for part in 0..100 {
        let flows: Vec<Flow> = (0..COUNT / 100)
            .map(|number| {
                let mut flow = template.clone();
                flow.orig_bytes = part * (COUNT / 100) + number;
                flow.first = at("14:00:00") + Duration::from_micros(flow.orig_bytes);
                flow.last = flow.first + Duration::from_secs(1);
                flow
            })
            .collect();
        writer.append(&[], &flows).unwrap();
    }
    writer.sync().unwrap();
    drop(writer);
    let begun = Instant::now();
    let (_writer, recovered) = open(folder.path());
    eprintln!("a restart with {COUNT} flows in the log takes {:.2?}", begun.elapsed());
    assert_eq!(
        recovered.last_recorded,
        Some(at("14:00:00") + Duration::from_micros(COUNT - 1) + Duration::from_secs(1))
    );
    let (mut count, mut sum) = (0, 0);
    let mut take = |flow: Flow| {
        (count, sum) = (count + 1, sum + flow.orig_bytes);
        ControlFlow::Continue(())
    };
    ledger(folder.path()).flows_matching(&FlowFilter { range: ever(), ip: None, vo: None }, &mut take).unwrap();
    assert_eq!((count, sum), (COUNT, COUNT * (COUNT - 1) / 2));
}
