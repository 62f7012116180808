#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use vestigo_model::{Fact, InstanceId, Receipt, TimeRange, Timestamp, Vo};

use super::{
    plan::{Limits, Plan, RetentionError, apply, finish, plan},
    pressure::relieve,
    tombstone::{self, SITE_PRINCIPAL, TombstoneError, Undertaker, Why},
};
use crate::{
    Kind, Ledger, SegmentInfo, Signer, Signers, Writer, WriterOptions,
    durable::IoError,
    holds::{self, Hold},
    segment::scan::FlowFilter,
    sign::TOMBSTONE_NAMESPACE,
    verify::{Report, VerifyOptions, What, verify},
};

use crate::fixture::*;

fn key() -> Signer {
    Signer::from_seed(&[1; 32])
}

fn days(count: i64) -> Timestamp {
    Timestamp::from_nanos(at("04:00:00").as_nanos() + count * 86_400_000_000_000)
}

/// Three segments of one day: of a VM of atlas, of one of cms, of both.
fn ledger() -> (tempfile::TempDir, Vec<SegmentInfo>) {
    let root = tempfile::tempdir().unwrap();
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root.path(), options).unwrap();
    writer.sign_with(Arc::new(key()));
    let atlas = instance("hv1", 1, Some("atlas"), "10.0.0.5");
    let cms = instance("hv1", 2, Some("cms"), "10.0.0.6");
    let mut seal = |vm: &vestigo_model::Instance, clock: &str, end: Option<&str>| {
        let vm = end.map_or_else(|| vm.clone(), |end| ended(vm.clone(), end));
        writer.append(&[record(at(clock), Fact::Instance(vm.clone()))], &[flow(&vm, 41000, clock, None)]).unwrap();
        writer.seal(at(clock)).unwrap().unwrap()
    };
    let sealed =
        vec![seal(&atlas, "01:00:00", Some("00:30:00")), seal(&cms, "02:00:00", None), seal(&cms, "03:00:00", None)];
    (root, sealed)
}

fn undertaker(signer: &Signer, now: Timestamp) -> Undertaker<'_> {
    Undertaker { signer, principal: None, now }
}

fn report(root: &Path) -> Report {
    let line = key().allowed_line(&host("hv1"));
    let signers = Signers::parse(Path::new("signers"), line.as_bytes()).unwrap();
    verify(&[root.to_owned()], &VerifyOptions { signers, quick: false }, &mut |_| {}).unwrap()
}

fn findings(root: &Path) -> Vec<(What, u64, u64)> {
    report(root).findings.into_iter().map(|f| (f.what, f.first, f.last)).collect()
}

fn due(root: &Path, keep: u32, now: Timestamp) -> Plan {
    plan(root, Some(&host("hv1")), Limits::default(), keep, now).unwrap()
}

fn data_files(info: &SegmentInfo) -> Vec<PathBuf> {
    let paths = info.manifest.files.iter().map(|file| info.folder.join(&file.name));
    paths.filter(|path| path.exists()).collect()
}

fn hold(case: &str) -> Hold {
    Hold {
        format: holds::FORMAT.into(),
        version: 1,
        case: case.into(),
        reason: "attack on 192.0.2.7".into(),
        by: "ada".into(),
        placed: days(1),
        from: at("00:00:00"),
        to: at("23:59:59"),
        host: None,
        instance: None,
        vo: None,
        released: None,
    }
}

#[test]
fn what_is_older_than_the_maximum_goes_with_a_proof_that_verify_and_ssh_keygen_accept() {
    let (root, sealed) = ledger();
    assert!(due(root.path(), 365, days(364)).due.is_empty());
    let plan = due(root.path(), 365, days(365));
    assert_eq!(plan.due.len(), 3);
    assert!(plan.due.iter().all(|due| due.goes() && due.bytes > 0));
    assert_eq!(data_files(&sealed[0]).len(), 5, "a plan removes nothing");
    let signer = key();
    let (segments, bytes) = apply(&plan, &undertaker(&signer, days(365))).unwrap();
    assert_eq!((segments, bytes), (3, plan.due.iter().map(|due| due.bytes).sum()));
    assert!(sealed.iter().all(|info| data_files(info).is_empty()));
    assert_eq!(findings(root.path()), []);
    assert_eq!(report(root.path()).hosts[0].removed, 15);
    assert!(due(root.path(), 365, days(400)).due.is_empty(), "nothing is left to remove");
    // Readers go on, and say that there is nothing any more.
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    let range = TimeRange { from: at("00:00:00"), to: at("23:59:59") };
    assert!(ledger.flows(&FlowFilter { range, ip: None, vo: None }).unwrap().is_empty());
    assert!(ledger.facts(range).unwrap().coverage.is_empty());
    let stone = sealed[0].folder.join(format!("{}.tombstone.json", sealed[0].manifest.segment));
    fs::write(root.path().join("signers"), key().allowed_line(&host("hv1"))).unwrap();
    let verified = std::process::Command::new("ssh-keygen")
        .args(["-Y", "verify", "-f", "signers", "-I", "hv1", "-n", TOMBSTONE_NAMESPACE, "-s"])
        .arg(format!("{}.sig", stone.display()))
        .current_dir(root.path())
        .stdin(fs::File::open(&stone).unwrap())
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    let text: serde_json::Value = serde_json::from_slice(&fs::read(&stone).unwrap()).unwrap();
    assert_eq!((&text["why"], &text["kept-days"]), (&"expired".into(), &365.into()));
}

#[test]
fn nothing_goes_before_the_minimum() {
    let (root, _) = ledger();
    let asked = plan(root.path(), None, Limits::default(), 179, days(1000));
    assert!(matches!(asked, Err(RetentionError::TooShort { asked: 179, minimum: 180 })));
    assert!(due(root.path(), 180, days(179)).due.is_empty());
    assert_eq!(due(root.path(), 180, days(180)).due.len(), 3);
}

#[test]
fn held_records_outlive_the_maximum_until_the_hold_is_lifted() {
    let (root, sealed) = ledger();
    let held = |change: &dyn Fn(&mut Hold)| {
        let mut hold = hold("INC/2026 7");
        change(&mut hold);
        holds::place(root.path(), &hold).unwrap();
        let plan = due(root.path(), 365, days(500));
        let kept =
            plan.due.iter().filter(|due| !due.goes()).map(|due| due.sealed.manifest.sequence).collect::<Vec<_>>();
        holds::release(root.path(), "INC/2026 7", "ada", days(2)).unwrap();
        kept
    };
    assert_eq!(held(&|_| {}), [1, 2, 3]);
    assert_eq!(held(&|hold| hold.instance = Some(InstanceId::new("vm-2").unwrap())), [2, 3]);
    assert_eq!(held(&|hold| hold.instance = Some(InstanceId::new(domain(2).to_string()).unwrap())), [2, 3]);
    assert_eq!(held(&|hold| hold.vo = Some(Vo::new("lhcb").unwrap())), [0; 0]);
    assert_eq!(held(&|hold| hold.host = Some(host("hv2"))), [0; 0]);
    assert_eq!(held(&|hold| hold.to = at("00:10:00")), [0; 0]);
    assert_eq!(held(&|hold| hold.from = at("02:30:00")), [3]);
    let placed = holds::place(root.path(), &hold("../../x")).unwrap();
    assert!(placed.starts_with(root.path().join("holds")) && placed.parent() == Some(&root.path().join("holds")));
    let again = holds::place(root.path(), &hold("../../x")).unwrap_err().to_string();
    assert!(again.contains("release it first"), "{again}");
    let signer = key();
    let plan = due(root.path(), 365, days(500));
    assert_eq!(apply(&plan, &undertaker(&signer, days(500))).unwrap(), (0, 0));
    assert_eq!(data_files(&sealed[2]).len(), 5);
    holds::release(root.path(), "../../x", "ada", days(500)).unwrap();
    assert!(holds::release(root.path(), "../../x", "ada", days(500)).is_err(), "there is none any more");
    assert!(holds::all(root.path()).unwrap().is_empty());
    assert_eq!(fs::read_dir(root.path().join("holds/released")).unwrap().count(), 2, "one per case and instant");
    assert_eq!(apply(&due(root.path(), 365, days(500)), &undertaker(&signer, days(500))).unwrap().0, 3);
}

#[test]
fn a_hold_that_cannot_be_read_and_a_segment_that_cannot_be_looked_into_stop_the_removal() {
    let (root, sealed) = ledger();
    holds::place(root.path(), &Hold { vo: Some(Vo::new("lhcb").unwrap()), ..hold("a") }).unwrap();
    let instances = sealed[1].manifest.files.iter().find(|file| file.kind == Kind::Instances).unwrap();
    fs::write(sealed[1].folder.join(&instances.name), b"short").unwrap();
    let plan = due(root.path(), 365, days(500));
    let stays: Vec<_> = plan.due.iter().filter(|due| !due.goes()).map(|due| due.sealed.manifest.sequence).collect();
    assert_eq!(stays, [2]);
    fs::write(root.path().join("holds/b.json"), b"{}").unwrap();
    let said = super::plan::plan(root.path(), None, Limits::default(), 365, days(500)).unwrap_err().to_string();
    assert!(said.contains("b.json is no hold; nothing is removed"), "{said}");
}

#[test]
fn a_crash_at_any_step_of_expiry_leaves_a_ledger_that_verifies_and_is_finished_later() {
    for (number, crash_at) in ["tombstone-signature", "tombstone", "remove", "remove", "remove"].into_iter().enumerate()
    {
        let (root, sealed) = ledger();
        let signer = key();
        let mut left = if crash_at == "remove" { number - 1 } else { 1 };
        let plan = due(root.path(), 365, days(400));
        let why = Why::Expired { kept_days: 365, until: plan.due[0].until };
        let failed = undertaker(&signer, days(400)).bury_by_steps(&plan.due[0].sealed, &Kind::ALL, why, &mut |step| {
            left -= usize::from(step == crash_at);
            match step == crash_at && left == 0 {
                true => Err(IoError::at("write", Path::new("x"))(std::io::Error::other("crash")).into()),
                false => Ok(()),
            }
        });
        assert!(matches!(failed, Err(TombstoneError::Io(_))), "{crash_at}");
        assert_eq!(findings(root.path()), [], "after a crash at {crash_at} {number}");
        let freed = finish(root.path(), None, &|_| true).unwrap();
        let decided = crash_at == "remove";
        assert_eq!((freed > 0, data_files(&sealed[0]).is_empty()), (decided, decided), "{crash_at} {number}");
        apply(&due(root.path(), 365, days(401)), &undertaker(&signer, days(401))).unwrap();
        assert!(data_files(&sealed[0]).is_empty(), "{crash_at} {number}");
        assert_eq!(findings(root.path()), [], "finished after {crash_at} {number}");
    }
}

#[test]
fn a_tombstone_counts_only_if_the_host_or_the_site_signed_it_for_this_manifest() {
    let forged = |change: &dyn Fn(&Path)| {
        let (root, sealed) = ledger();
        let signer = key();
        apply(&due(root.path(), 365, days(400)), &undertaker(&signer, days(400))).unwrap();
        change(&sealed[1].folder.join(format!("{}.tombstone.json", sealed[1].manifest.segment)));
        findings(root.path())
    };
    let sig = |path: &Path| PathBuf::from(format!("{}.sig", path.display()));
    let missing = |found: &[(What, u64, u64)]| found.iter().filter(|f| f.0 == What::FileMissing && f.1 == 2).count();
    let found = forged(&|path| fs::remove_file(sig(path)).unwrap());
    assert!(found.contains(&(What::SignatureMissing, 2, 2)) && missing(&found) == 5, "{found:?}");
    let found = forged(&|path| {
        let text = fs::read_to_string(path).unwrap();
        fs::write(path, text.replace("365", "366")).unwrap();
    });
    assert!(found.contains(&(What::SignatureForged, 2, 2)) && missing(&found) == 5, "{found:?}");
    let found = forged(&|path| {
        let bytes = fs::read(path).unwrap();
        fs::write(sig(path), Signer::from_seed(&[9; 32]).sign_as(TOMBSTONE_NAMESPACE, &bytes).unwrap()).unwrap();
    });
    assert!(found.contains(&(What::SignerUnknown, 2, 2)) && missing(&found) == 5, "{found:?}");
    let found = forged(&|path| fs::write(path, b"[]").unwrap());
    assert!(found.contains(&(What::ManifestUnreadable, 2, 2)) && missing(&found) == 5, "{found:?}");
    // A signature over a segment does not bury one: another namespace.
    let found = forged(&|path| fs::write(sig(path), key().sign(&fs::read(path).unwrap()).unwrap()).unwrap());
    assert!(found.contains(&(What::SignatureForged, 2, 2)) && missing(&found) == 5, "{found:?}");
}

#[test]
fn a_sites_own_key_may_bury_and_another_hosts_may_not() {
    for (principal, accepted) in [(SITE_PRINCIPAL, true), ("hv2", false)] {
        let (root, _) = ledger();
        let other = Signer::from_seed(&[5; 32]);
        let buried = Undertaker { signer: &other, principal: Some(principal), now: days(400) };
        apply(&due(root.path(), 365, days(400)), &buried).unwrap();
        let line = format!("{principal} {}\n{}", other.public(), key().allowed_line(&host("hv1")));
        let signers = Signers::parse(Path::new("signers"), line.as_bytes()).unwrap();
        let options = VerifyOptions { signers, quick: false };
        let report = verify(&[root.path().to_owned()], &options, &mut |_| {}).unwrap();
        assert_eq!(report.findings.is_empty(), accepted, "{principal}: {:?}", report.findings);
    }
}

#[test]
fn a_forged_tombstone_removes_nothing() {
    let (root, sealed) = ledger();
    let signer = key();
    apply(&due(root.path(), 365, days(400)), &undertaker(&signer, days(400))).unwrap();
    let (root, again) = { (root, ledger()) };
    let (other, _) = &again;
    // Another ledger's tombstone, and one that names a file elsewhere.
    let name = format!("{}.tombstone.json", sealed[0].manifest.segment);
    let there = other.path().join("date=2026-11-22/host=hv1").join(&name);
    let text = fs::read_to_string(sealed[0].folder.join(&name)).unwrap();
    fs::write(&there, text.replace("-flows.parquet", "-../../x")).unwrap();
    assert_eq!(finish(other.path(), None, &|_| false).unwrap(), 0, "nobody vouches for it");
    assert!(findings(other.path()).iter().any(|f| f.0 == What::SignatureMissing));
    drop(root);
}

fn ship(folder: &Path, info: &SegmentInfo) {
    let receipt = Receipt {
        host: host("hv1"),
        sequence: info.manifest.sequence,
        manifest_sha256: info.digest,
        vault: "s3://evidence/ledger".into(),
        shipped: days(1),
    };
    fs::create_dir_all(folder.join("hv1")).unwrap();
    let path = folder.join("hv1").join(format!("{}.json", info.manifest.sequence));
    fs::write(path, serde_json::to_vec(&receipt).unwrap()).unwrap();
}

fn kinds_there(info: &SegmentInfo) -> Vec<Kind> {
    let files = info.manifest.files.iter();
    files.filter(|file| info.folder.join(&file.name).exists()).map(|file| file.kind).collect()
}

#[test]
fn a_full_disk_takes_the_flows_of_shipped_segments_first_their_facts_last_and_what_was_not_shipped_never() {
    let (root, sealed) = ledger();
    let shipped = tempfile::tempdir().unwrap();
    let signer = key();
    let relieve =
        |needed| relieve(root.path(), &host("hv1"), shipped.path(), needed, &undertaker(&signer, days(2))).unwrap();
    assert_eq!(relieve(u64::MAX).bytes, 0, "nothing was shipped");
    ship(shipped.path(), &sealed[0]);
    ship(shipped.path(), &sealed[1]);
    // A receipt for another manifest is none.
    let mut other = sealed[2].clone();
    other.digest = sealed[0].digest;
    ship(shipped.path(), &other);
    assert_eq!(relieve(1).segments, 1, "no more than is needed");
    assert!(!kinds_there(&sealed[0]).contains(&Kind::Flows) && kinds_there(&sealed[0]).len() == 4);
    assert_eq!(kinds_there(&sealed[1]).len(), 5);
    relieve(u64::MAX);
    assert!(kinds_there(&sealed[0]).is_empty() && kinds_there(&sealed[1]).is_empty());
    assert_eq!(kinds_there(&sealed[2]).len(), 5);
    assert_eq!(findings(root.path()), []);
    // An answer without them would say that nothing had been.
    let range = TimeRange { from: at("00:00:00"), to: at("23:59:59") };
    let ledger = Ledger::open_folders(&[root.path().to_owned()]).unwrap();
    let said = ledger.flows(&FlowFilter { range, ip: None, vo: None }).unwrap_err().to_string();
    assert!(said.contains("s3://evidence/ledger") && said.contains("--ledger"), "{said}");
}

#[test]
fn what_is_held_stays_also_on_a_full_disk() {
    let (root, sealed) = ledger();
    let shipped = tempfile::tempdir().unwrap();
    sealed.iter().for_each(|info| ship(shipped.path(), info));
    holds::place(root.path(), &Hold { to: at("01:30:00"), ..hold("a") }).unwrap();
    let signer = key();
    relieve(root.path(), &host("hv1"), shipped.path(), u64::MAX, &undertaker(&signer, days(2))).unwrap();
    assert_eq!(sealed.iter().map(|info| kinds_there(info).len()).collect::<Vec<_>>(), [5, 0, 0]);
}

#[test]
fn tombstones_in_a_folder_are_bounded_and_broken_ones_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("00000001-x.tombstone.json"), vec![b'['; 2 << 20]).unwrap();
    fs::write(folder.path().join(".00000001-x.tombstone.json.tmp"), b"unfinished").unwrap();
    let names = crate::durable::names(folder.path()).unwrap();
    let (found, unreadable) = tombstone::in_folder(folder.path(), &names).unwrap();
    assert_eq!((found.len(), unreadable.len()), (0, 1));
}
