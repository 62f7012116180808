//! What a question opens, and that it answers the same whatever it left closed: many hosts and days, with and without a catalog, through a
//! store that counts, with segments replaced, hosts of one name, and files that are gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod fixture;

use std::{
    collections::BTreeSet,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use fixture::*;
use tempfile::TempDir;
use vestigo_ledger::{
    FlowFilter, FolderStore, Kind, Ledger, Listed, Manifest, OpenOptions, Store, StoreError, TableHints, Writer,
    WriterOptions,
    questions::{
        ips::IpsQuestion,
        payload::PayloadQuestion,
        pilots::PilotsQuestion,
        timeline::{Happening, Subject, TimelineQuestion},
        who::WhoQuestion,
    },
};
use vestigo_model::{
    CoverageState, Digest, Event, EventKind, Exit, Fact, Flow, Instance, InstanceEnd, Label, StopReason, TimeRange,
    Timestamp, Vo,
};

const HOSTS: u8 = 6;
const DAYS: u64 = 4;

/// A store that reads nothing but what it is asked for, and remembers which files.
#[derive(Debug)]
struct Counting {
    inner: FolderStore,
    opened: Mutex<BTreeSet<String>>,
    whole: Mutex<usize>,
    flat: bool,
    /// Whether all stamps are said to be old.
    settled: bool,
}

impl Counting {
    fn new(root: &Path, flat: bool) -> Arc<Self> {
        Self::with(root, flat, false)
    }

    #[cfg(feature = "catalog")]
    fn settled(root: &Path, flat: bool) -> Arc<Self> {
        Self::with(root, flat, true)
    }

    fn with(root: &Path, flat: bool, settled: bool) -> Arc<Self> {
        let inner = FolderStore::new(root);
        Arc::new(Self { inner, opened: Mutex::default(), whole: Mutex::default(), flat, settled })
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.opened.lock().unwrap()).into_iter().collect()
    }

    fn manifests(&self) -> usize {
        std::mem::take(&mut *self.whole.lock().unwrap())
    }
}

impl Store for Counting {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let mut listed = self.inner.list(folder)?;
        if self.settled {
            listed.iter_mut().flat_map(|one| &mut one.stamp).for_each(|stamp| stamp.changed = None);
        }
        Ok(listed)
    }
    fn walk(&self, folder: &str) -> Result<Option<Vec<Listed>>, StoreError> {
        if !self.flat {
            return Ok(None);
        }
        let mut files = Vec::new();
        for host in self.list(folder)? {
            for file in self.list(&format!("{folder}/{}", host.name))? {
                files.push(Listed { name: format!("{}/{}", host.name, file.name), ..file });
            }
        }
        Ok(Some(files))
    }
    fn read(&self, path: &str) -> Result<bytes::Bytes, StoreError> {
        *self.whole.lock().unwrap() += 1;
        self.inner.read(path)
    }
    fn read_range(&self, path: &str, range: Range<u64>) -> Result<bytes::Bytes, StoreError> {
        self.opened.lock().unwrap().insert(path.to_owned());
        self.inner.read_range(path, range)
    }
    fn size(&self, path: &str) -> Result<u64, StoreError> {
        self.inner.size(path)
    }
    fn concurrency(&self) -> usize {
        4
    }
}

fn day(number: u64) -> Duration {
    Duration::from_secs(86_400 * number)
}

fn shifted(mut flow: Flow, by: Duration) -> Flow {
    (flow.first, flow.last) = (flow.first + by, flow.last + by);
    flow
}

fn writer(root: &Path, name: &str) -> Writer {
    let options = WriterOptions { host: host(name), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    Writer::open(root, options).unwrap().0
}

/// The VM of a host: address 10.0.N.5, all days.
fn vm(number: u8) -> Instance {
    instance(&format!("hv{number}"), number, Some("atlas"), &format!("10.0.{number}.5"))
}

/// One segment a host and day: a payload of its own user each day, two flows, coverage of the whole day but an hour on hv2's second.
fn fill(root: &Path, number: u8) {
    let mut writer = writer(root, &format!("hv{number}"));
    let vm = vm(number);
    for today in 0..DAYS {
        let by = day(today);
        let run = u8::try_from(u64::from(number) * 10 + today).unwrap();
        let user = if number == 3 && today == 1 { "mallory".to_owned() } else { format!("user{run}") };
        let mut one = payload(&vm, run, &user, "atlas", (41000, 41999), "14:01:00");
        (one.received, one.claimed) = (one.received + by, one.claimed + by);
        let mut ended = finished(one.clone(), "15:00:00", Exit::Code(0));
        ended.end = ended.end.map(|mut end| {
            (end.received, end.claimed) = (end.received + by, end.claimed + by);
            end
        });
        let mut facts =
            vec![record(at("14:01:00") + by, Fact::Payload(one)), record(at("15:00:00") + by, Fact::Payload(ended))];
        if today == 0 {
            facts.insert(0, record(at("14:00:00"), Fact::Instance(vm.clone())));
        }
        let until = if (number, today) == (2, 1) { "22:00:00" } else { "23:59:59.9999" };
        let mut seen = coverage(&vm, "00:00:00", until, CoverageState::Ok);
        (seen.from, seen.to) = (seen.from + by, seen.to + by);
        facts.push(record(at("23:59:59") + by, Fact::Coverage(seen)));
        let flows = [flow(&vm, 41022, "14:03:22", Some(run)), flow(&vm, 50000, "16:00:00", None)];
        writer.append(&facts, &flows.map(|flow| shifted(flow, by))).unwrap();
        writer.seal(at("23:59:59") + by).unwrap().expect("a segment");
    }
}

/// Members that the writer gives a manifest at sealing, where it does not yet, from what is known of the test's records.
fn describe(path: &Path) {
    let mut manifest: Manifest = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let number: u8 = manifest.host.as_str()[2..].parse().unwrap();
    let second = manifest.flows.unwrap().from.date() == "2026-11-23";
    manifest.addresses = Some(vec![ip(&format!("10.0.{number}.5"))]);
    manifest.points = Some(1);
    let hole = TimeRange { from: at("22:00:00") + day(1), to: at("23:59:59.9999") + day(1) };
    manifest.blind = Some(if number == 2 && second { vec![hole] } else { Vec::new() });
    if number == 2 && second {
        manifest.coverage = manifest.coverage.map(|range| TimeRange { to: hole.to, ..range });
    }
    fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

fn files(root: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path(), suffix));
        } else if entry.path().to_string_lossy().ends_with(suffix) {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Segments, without logs.
fn copy_tree(from: &Path, to: &Path) {
    for path in files(from, "") {
        let name = path.strip_prefix(from).unwrap();
        if !name.starts_with("wal") && !name.ends_with("writer.lock") {
            let target = to.join(name);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(path, target).unwrap();
        }
    }
}

/// All hosts in one tree, without logs.
fn site() -> TempDir {
    let site = tempfile::tempdir().unwrap();
    for number in 1..=HOSTS {
        let own = tempfile::tempdir().unwrap();
        fill(own.path(), number);
        copy_tree(own.path(), site.path());
    }
    files(site.path(), ".manifest.json").iter().for_each(|path| describe(path));
    site
}

fn ask(clock: &str, by: Duration, address: &str) -> WhoQuestion {
    let range = TimeRange::around(at(clock) + by, Duration::from_secs(2));
    WhoQuestion { range, ip: ip(address), port: None, peer: None, proto: None, instance: None }
}

fn open(store: Arc<dyn Store>, catalog: Option<PathBuf>) -> Ledger {
    Ledger::open(vec![store], OpenOptions { catalog }).unwrap()
}

fn everything() -> TimeRange {
    TimeRange { from: at("00:00:00") - day(1), to: at("00:00:00") + day(DAYS + 1) }
}

#[test]
fn who_opens_the_files_of_the_host_that_had_the_address() {
    let site = site();
    let plain = Ledger::open_folders(&[site.path().to_owned()]).unwrap();
    for flat in [false, true] {
        let store = Counting::new(site.path(), flat);
        let ledger = open(store.clone(), None);
        let question = ask("14:03:22", day(1), "10.0.4.5");
        let answer = ledger.who(&question).unwrap();
        assert_eq!(answer, plain.who(&question).unwrap());
        assert_eq!(answer.candidates.len(), 1);
        assert_eq!(answer.candidates[0].guest_claims.as_ref().unwrap().payload, uid(41));
        let opened = store.take();
        assert!(opened.iter().all(|path| path.contains("host=hv4")), "{opened:?}");
        assert_eq!(opened.iter().filter(|path| path.ends_with("-flows.parquet")).count(), 1, "{opened:?}");
        let coverage = &answer.coverage;
        assert!(coverage.complete, "{coverage:?}");
        assert_eq!((coverage.whole_hosts, coverage.points, coverage.complete_points), (5, 6, 6));
        assert_eq!(coverage.hosts.len(), usize::from(HOSTS));
    }
}

#[test]
fn a_host_that_did_not_see_all_is_looked_into() {
    let site = site();
    let store = Counting::new(site.path(), false);
    let ledger = open(store.clone(), None);
    let answer = ledger.who(&ask("22:30:00", day(1), "10.0.4.5")).unwrap();
    assert!(!answer.coverage.complete);
    assert_eq!((answer.coverage.points, answer.coverage.complete_points), (6, 5));
    let blind: Vec<_> = answer.coverage.details.iter().filter(|point| !point.complete).collect();
    assert_eq!(blind.len(), 1);
    assert_eq!((blind[0].host.as_str(), blind[0].gaps.len()), ("hv2", 1));
    assert!(store.take().iter().all(|path| path.contains("host=hv4") || path.contains("host=hv2")));
}

#[test]
fn an_address_that_no_vm_had_is_found_as_a_peer_everywhere() {
    let site = site();
    let answer =
        Ledger::open_folders(&[site.path().to_owned()]).unwrap().who(&ask("14:03:22", day(2), "192.0.2.9")).unwrap();
    assert_eq!(answer.candidates, []);
    assert_eq!(answer.seen_as_peer.len(), usize::from(HOSTS));
    assert!(answer.seen_as_peer.iter().all(|one| one.host_facts.start.is_some()));
}

#[test]
fn a_vm_that_ended_days_later_is_told_to_have_ended() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), "hv1");
    let vm = vm(1);
    writer.append(&[record(at("14:00:00"), Fact::Instance(vm.clone()))], &[flow(&vm, 1, "14:03:22", None)]).unwrap();
    let end = InstanceEnd { time: at("12:00:00") + day(9), why: StopReason::Destroyed };
    for today in 0..20 {
        // A day on which the host was down, and one on which it wrote about another VM only.
        if today == 5 {
            continue;
        }
        let mut facts = Vec::new();
        if today == 9 {
            facts.push(record(end.time, Fact::Instance(Instance { end: Some(end), ..vm.clone() })));
        }
        let other = instance("hv1", 2, None, "10.0.9.9");
        writer.append(&facts, &[shifted(flow(&other, 2, "14:10:00", None), day(today))]).unwrap();
        writer.seal(at("15:00:00") + day(today)).unwrap().expect("a segment");
    }
    drop(writer);
    // What a log still holds is not what tells it.
    fs::remove_dir_all(root.path().join("wal")).unwrap();
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    let answer = ledger.who(&ask("14:03:22", Duration::ZERO, "10.0.1.5")).unwrap();
    assert_eq!(answer.candidates[0].host_facts.end, Some(end));
}

/// Every question's answer, as text.
fn answers(ledger: &Ledger) -> Vec<String> {
    let range = TimeRange { from: at("00:00:00") + day(1), to: at("23:00:00") + day(1) };
    let vo = Vo::new("atlas").unwrap();
    let label = |text: &str| Label::new(text).unwrap();
    let pilots = PilotsQuestion { subject: label("mallory"), issuer: None, range: None };
    let timeline =
        TimelineQuestion { subject: Subject::User { subject: label("mallory"), issuer: None }, range: everything() };
    let filter = |address: &str| FlowFilter { range: everything(), ip: Some(ip(address)), vo: None };
    vec![
        format!("{:?}", ledger.who(&ask("14:03:22", day(1), "10.0.4.5")).unwrap()),
        format!("{:?}", ledger.who(&ask("14:03:22", day(1), "192.0.2.9")).unwrap()),
        format!("{:?}", ledger.ips(&IpsQuestion { vo, range, pilot: None }).unwrap()),
        format!("{:?}", ledger.pilots(&pilots).unwrap()),
        format!("{:?}", ledger.payload(&PayloadQuestion { uid: uid(31), flows: 10 }).unwrap()),
        format!("{:?}", ledger.timeline(&timeline).unwrap()),
        format!("{:?}", ledger.flows(&filter("10.0.3.5")).unwrap()),
        format!("{:?}", ledger.flows(&filter("203.0.113.99")).unwrap()),
    ]
}

#[cfg(feature = "catalog")]
mod with_a_catalog {
    use super::*;

    #[test]
    fn answers_are_the_same_cold_warm_stale_and_damaged() {
        let site = site();
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("below/catalog.sqlite");
        let expected = answers(&Ledger::open_folders(&[site.path().to_owned()]).unwrap());
        let with = || answers(&open(FolderStore::shared(site.path()), Some(catalog.clone())));
        assert_eq!(with(), expected, "cold");
        assert_eq!(with(), expected, "warm");
        fs::write(&catalog, b"this is no database").unwrap();
        assert_eq!(with(), expected, "damaged");
        fs::remove_file(&catalog).unwrap();
        assert_eq!(with(), expected, "removed");
        // A host's segments vanish, and a new host comes.
        for date in fs::read_dir(site.path()).unwrap().flatten() {
            fs::remove_dir_all(date.path().join("host=hv4")).unwrap();
        }
        let expected = answers(&Ledger::open_folders(&[site.path().to_owned()]).unwrap());
        assert_eq!(with(), expected, "changed");
    }

    #[test]
    fn what_did_not_change_is_not_read_again() {
        let site = site();
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("catalog.sqlite");
        for flat in [true, false] {
            let store = Counting::settled(site.path(), flat);
            let ledger = || open(store.clone(), Some(catalog.clone()));
            let first = answers(&ledger());
            assert_eq!(answers(&ledger()), first);
            store.manifests();
            store.take();
            let question = ask("14:03:22", day(1), "10.0.4.5");
            assert_eq!(ledger().who(&question).unwrap().candidates.len(), 1);
            assert!(store.manifests() <= 5, "hv4's, of four days; the last, for the VM's end, is listed and opened");
            let filter = |address: &str| FlowFilter { range: everything(), ip: Some(ip(address)), vo: None };
            store.take();
            ledger().flows(&filter("203.0.113.99")).unwrap();
            assert_eq!(
                (store.take(), store.manifests()),
                (Vec::<String>::new(), 0),
                "the filters rule all of them out"
            );
            ledger().flows(&filter("10.0.3.5")).unwrap();
            let opened = store.take();
            assert!(!opened.is_empty() && opened.iter().all(|path| path.contains("host=hv3")), "{opened:?}");
            // Without an issuer every name would have to be looked at.
            let issuer = Some(Label::new("https://iss.example").unwrap());
            let mallory = PilotsQuestion { subject: Label::new("mallory").unwrap(), issuer, range: None };
            assert_eq!(ledger().pilots(&mallory).unwrap().rows.len(), 1);
            let payloads: Vec<_> =
                store.take().into_iter().filter(|path| path.ends_with("-payloads.parquet")).collect();
            assert!(payloads.len() <= 2 && payloads.iter().all(|path| path.contains("host=hv3")), "{payloads:?}");
        }
    }

    #[test]
    fn a_manifest_rewritten_behind_the_catalog_is_found_out() {
        let site = site();
        let folder = tempfile::tempdir().unwrap();
        let catalog = Some(folder.path().join("catalog.sqlite"));
        for settled in [false, true] {
            let store = if settled { Counting::settled(site.path(), false) } else { Counting::new(site.path(), false) };
            let ask_it = || open(store.clone(), catalog.clone()).who(&ask("14:03:22", day(1), "10.0.4.5")).unwrap();
            assert_eq!(ask_it().candidates.len(), 1);
            let manifests = files(site.path(), ".manifest.json");
            let one = manifests.iter().find(|path| path.to_string_lossy().contains("2026-11-23/host=hv4")).unwrap();
            let mut manifest: Manifest = serde_json::from_slice(&fs::read(one).unwrap()).unwrap();
            manifest.sealed = manifest.sealed + Duration::from_secs(1);
            // In place: the folder's names, and so its stamp, stay.
            fs::write(one, serde_json::to_vec(&manifest).unwrap()).unwrap();
            assert_eq!(ask_it().candidates.len(), 1);
        }
    }

    #[test]
    fn several_ask_at_once_with_one_catalog() {
        let site = site();
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("catalog.sqlite");
        let expected = answers(&Ledger::open_folders(&[site.path().to_owned()]).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let ledger = open(FolderStore::shared(site.path()), Some(catalog.clone()));
                    assert_eq!(answers(&ledger), expected);
                });
            }
        });
    }
}

#[test]
fn segments_that_another_replaces_count_once() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), "hv1");
    let vm = vm(1);
    let instance = record(at("14:00:00"), Fact::Instance(vm.clone()));
    writer.append(std::slice::from_ref(&instance), &[flow(&vm, 1, "14:03:22", None)]).unwrap();
    writer.seal(at("14:05:00")).unwrap().unwrap();
    // A second segment with the first one's rows and more, as a compaction would write it.
    writer.append(&[], &[flow(&vm, 1, "14:03:22", None), flow(&vm, 2, "14:03:22", None)]).unwrap();
    writer.seal(at("14:06:00")).unwrap().unwrap();
    let count = || {
        let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
        ledger.flows(&FlowFilter { range: everything(), ip: None, vo: None }).unwrap().len()
    };
    assert_eq!(count(), 3);
    let manifests = files(root.path(), ".manifest.json");
    let mut second: Manifest = serde_json::from_slice(&fs::read(&manifests[1]).unwrap()).unwrap();
    let first = vestigo_ledger::Replaced { sequence: 1, sha256: Digest::of(&fs::read(&manifests[0]).unwrap()) };
    second.replaces = vec![first];
    fs::write(&manifests[1], serde_json::to_vec(&second).unwrap()).unwrap();
    assert_eq!(count(), 2);
    // Its files are removed afterwards.
    fs::remove_file(files(root.path(), "-flows.parquet")[0].clone()).unwrap();
    assert_eq!(count(), 2);
}

#[test]
fn two_hosts_with_one_name_are_both_heard_and_the_answer_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let roots: Vec<PathBuf> = ["a", "b"].iter().map(|name| folder.path().join(name)).collect();
    let mut writers = Vec::new();
    for (number, root) in (1u8..).zip(&roots) {
        let mut writer = writer(root, "hv1");
        let vm = instance("hv1", number, Some("atlas"), "10.0.0.5");
        let vm_record = record(at("14:00:00"), Fact::Instance(vm.clone()));
        writer.append(&[vm_record], &[flow(&vm, 41000 + u16::from(number), "14:03:22", None)]).unwrap();
        if number == 1 {
            writer.seal(at("14:05:00")).unwrap().unwrap();
        }
        writers.push(writer);
    }
    // The second one's log has the generation's number that the first one's segment covers.
    let ledger = Ledger::open_folders(&roots).unwrap();
    let question = ask("14:03:22", Duration::ZERO, "10.0.0.5");
    let answer = ledger.who(&question).unwrap();
    let domains: Vec<_> = answer.candidates.iter().map(|one| one.host_facts.domain).collect();
    assert_eq!(domains, [domain(1), domain(2)]);
    assert!(answer.coverage.doubled.is_empty(), "no segment of the second one shows it yet");
    writers[1].seal(at("14:06:00")).unwrap().unwrap();
    let answer = Ledger::open_folders(&roots).unwrap().who(&question).unwrap();
    assert_eq!(answer.candidates.len(), 2);
    assert_eq!(answer.coverage.doubled, [host("hv1")]);
    assert!(!answer.coverage.complete);
}

#[test]
fn files_that_are_gone_are_named_and_taken_from_a_copy_that_has_them() {
    let site = site();
    let flows = files(site.path(), "-flows.parquet");
    let of_hv4 = flows.iter().find(|path| path.to_string_lossy().contains("2026-11-23/host=hv4")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_tree(site.path(), copy.path());
    fs::remove_file(of_hv4).unwrap();
    let question = ask("14:03:22", day(1), "10.0.4.5");
    for store in [FolderStore::shared(site.path()), Counting::new(site.path(), false)] {
        let error = open(store, None).who(&question).unwrap_err().to_string();
        assert!(error.contains("host=hv4") && error.contains("-flows.parquet"), "{error}");
    }
    let segment = of_hv4.to_string_lossy().replace("-flows.parquet", "");
    for tombstone in ["tombstone.json", "moved-20261201T000000Z.tombstone.json"] {
        let stone = format!("{segment}.{tombstone}");
        fs::write(&stone, b"{}").unwrap();
        // With a copy that still has them nothing is missing.
        let roots = [site.path().to_owned(), copy.path().to_owned()];
        let answer = Ledger::open_folders(&roots).unwrap().who(&question).unwrap();
        assert_eq!(answer.candidates.len(), 1);
        assert!(answer.coverage.complete && answer.coverage.expired.is_empty());
        fs::remove_file(stone).unwrap();
    }
}

#[test]
fn a_log_that_may_not_be_read_is_said_to_be_missing() {
    use std::os::unix::fs::PermissionsExt;
    let site = site();
    let wal = site.path().join("wal");
    // Root reads everything; a file in the folder's place is no folder for anybody.
    fs::create_dir(&wal).unwrap();
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o000)).unwrap();
    let ledger = Ledger::open_folders(&[site.path().to_owned()]).unwrap();
    let readable = fs::read_dir(&wal).is_ok();
    let answer = ledger.who(&ask("14:03:22", day(1), "10.0.4.5")).unwrap();
    assert_eq!(answer.coverage.newest_missing, !readable);
    assert_eq!(ledger.unreadable_logs().is_empty(), readable);
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn who_tells_what_the_host_found_odd_about_the_vm() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), "hv1");
    let vm = vm(1);
    let event = |what, number: u8, clock: &str| {
        let detail = [("flow-records".to_owned(), "7".to_owned())].into();
        let event = Event { host: host("hv1"), domain: Some(domain(number)), time: at(clock), what, detail };
        record(at(clock), Fact::Event(event))
    };
    let facts = [
        record(at("14:00:00"), Fact::Instance(vm.clone())),
        event(EventKind::Spoofing, 1, "14:03:22"),
        event(EventKind::Contradiction, 1, "14:03:23"),
        event(EventKind::AgentHello, 1, "14:03:23"),
        event(EventKind::Spoofing, 2, "14:03:22"),
        event(EventKind::Spoofing, 1, "14:09:00"),
    ];
    writer.append(&facts, &[flow(&vm, 41022, "14:03:22", None)]).unwrap();
    writer.seal(at("14:10:00")).unwrap().unwrap();
    let answer =
        Ledger::open_folders(&[root.path().to_owned()]).unwrap().who(&ask("14:03:22", Duration::ZERO, "10.0.1.5"));
    let candidate = answer.unwrap().candidates.remove(0);
    let kinds: Vec<_> = candidate.events.iter().map(|event| event.what).collect();
    assert_eq!(kinds, [EventKind::Spoofing, EventKind::Contradiction]);
    assert_eq!(candidate.events_total, 2);
}

#[test]
fn a_run_has_its_whole_story() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), "hv1");
    let vm = vm(1);
    let run = payload(&vm, 1, "alice", "atlas", (41000, 41999), "14:01:00");
    let other = payload(&vm, 2, "bob", "atlas", (42000, 42999), "14:01:00");
    let mut story = run.clone();
    story.claim.user.subject = Label::new("eve").unwrap();
    let odd = Event {
        host: host("hv1"),
        domain: Some(vm.domain),
        time: at("14:02:00"),
        what: EventKind::Contradiction,
        detail: Default::default(),
    };
    let facts = [
        record(at("14:00:00"), Fact::Instance(vm.clone())),
        record(at("14:01:00"), Fact::Payload(run.clone())),
        record(at("14:01:00"), Fact::Payload(other)),
        record(at("14:02:00"), Fact::Event(odd)),
        record(at("14:03:00"), Fact::Payload(story)),
        record(at("14:05:00"), Fact::Payload(finished(run, "14:05:00", Exit::Signal(9)))),
    ];
    // By the recorder, by the lease when asked, of another run, before and after.
    let flows = [
        flow(&vm, 41001, "14:02:00", Some(1)),
        flow(&vm, 41002, "14:03:00", None),
        flow(&vm, 42001, "14:03:00", Some(2)),
        flow(&vm, 41003, "13:59:00", None),
        flow(&vm, 41004, "14:30:00", None),
    ];
    writer.append(&facts, &flows).unwrap();
    writer.seal(at("14:40:00")).unwrap().unwrap();
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    let answer = ledger.payload(&PayloadQuestion { uid: uid(1), flows: 1 }).unwrap();
    assert_eq!(answer.stories.len(), 1);
    let story = &answer.stories[0];
    assert_eq!(story.guest_claims.user.subject.as_str(), "alice", "the first claim holds");
    assert_eq!(story.later_claims[0].user.subject.as_str(), "eve");
    assert_eq!(story.guest_claims.end.unwrap().exit, Exit::Signal(9));
    assert_eq!((story.flows_total, story.flows.len(), story.totals.flows), (2, 1, 2));
    assert_eq!(story.flows[0].vm.port, 41001, "the earliest");
    assert_eq!(story.events_total, 1);
    assert_eq!(story.host_facts.as_ref().unwrap().instance, vm.id);
    assert_eq!(ledger.payload(&PayloadQuestion { uid: uid(9), flows: 1 }).unwrap().stories, []);
}

#[test]
fn a_timeline_is_in_order_and_keeps_host_facts_and_claims_apart() {
    let site = site();
    let ledger = Ledger::open_folders(&[site.path().to_owned()]).unwrap();
    let ask = |subject| ledger.timeline(&TimelineQuestion { subject, range: everything() }).unwrap();
    let of_vm = ask(Subject::Instance(vm(3).id));
    assert!(of_vm.moments.is_sorted_by_key(|moment| moment.time));
    let count = |wanted: fn(&Happening) -> bool| of_vm.moments.iter().filter(|one| wanted(&one.happening)).count();
    assert_eq!(count(|one| matches!(one, Happening::InstanceStarted { .. })), 1);
    assert_eq!(count(|one| matches!(one, Happening::PayloadStarted { .. })), 4);
    assert_eq!(count(|one| matches!(one, Happening::PayloadEnded { .. })), 4);
    assert_eq!((of_vm.moments_total, of_vm.flows.len()), (9, 5), "a sum a run, and one of nobody's");
    assert_eq!(of_vm.flows.iter().map(|sum| sum.totals.flows).sum::<u64>(), 8);
    let mallory = Subject::User { subject: Label::new("mallory").unwrap(), issuer: None };
    let of_user = ask(mallory);
    let started =
        |one: &&vestigo_ledger::questions::timeline::Moment| matches!(one.happening, Happening::PayloadStarted { .. });
    assert_eq!(of_user.moments.iter().filter(started).count(), 1);
    assert_eq!(of_user.flows.len(), 1);
    assert_eq!(of_user.flows[0].payload, Some(uid(31)));
    assert!(of_user.coverage.blind.iter().all(|one| !one.stretches.is_empty()), "a long window is told by manifests");
    assert!(of_user.coverage.blind.iter().any(|one| one.host == host("hv2")));
}

#[test]
fn engines_are_given_the_files_that_matter() {
    let site = site();
    let ledger = Ledger::open_folders(&[site.path().to_owned()]).unwrap();
    let all = ledger.tables(Kind::Flows, None, &TableHints::default()).unwrap();
    assert_eq!(all.len(), usize::from(HOSTS) * usize::try_from(DAYS).unwrap());
    assert_eq!(all.iter().map(|file| file.rows).sum::<u64>(), 2 * u64::from(HOSTS) * DAYS);
    for file in &all {
        assert_eq!(file.store.size(&file.path).unwrap(), file.bytes);
    }
    let range = TimeRange { from: at("14:00:00") + day(1), to: at("15:00:00") + day(1) };
    let hints = TableHints { hosts: [host("hv2")].into(), ..TableHints::default() };
    let one = ledger.tables(Kind::Flows, Some(range), &hints).unwrap();
    assert_eq!(one.iter().map(|file| file.host.as_str()).collect::<Vec<_>>(), ["hv2"]);
    assert!(ledger.live_rows(None).unwrap().flows.is_empty());
}

#[test]
fn a_scan_can_be_ended_and_a_wide_one_is_no_list() {
    let site = site();
    let ledger = Ledger::open_folders(&[site.path().to_owned()]).unwrap();
    let mut seen = 0;
    let query = vestigo_ledger::FlowQuery::all(everything());
    ledger
        .flows_matching(query.clone(), &mut |_| {
            seen += 1;
            if seen == 3 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, 3);
    let mut domains: BTreeSet<Timestamp> = BTreeSet::new();
    let of_one = vestigo_ledger::FlowQuery { domain: Some(domain(2)), payload: Some(uid(21)), ..query };
    ledger
        .flows_matching(of_one, &mut |flow| {
            domains.insert(flow.first);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(domains.len(), 1);
}
