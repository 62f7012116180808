#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use vestigo_model::Fact;

use super::*;
use crate::{SegmentInfo, Signer, Writer, WriterOptions};

use crate::fixture::*;

fn key() -> Signer {
    Signer::from_seed(&[1; 32])
}

fn options() -> VerifyOptions {
    let line = key().allowed_line(&host("hv1"));
    VerifyOptions { signers: Signers::parse(Path::new("signers"), line.as_bytes()).unwrap(), quick: false }
}

fn writer(root: &Path, signer: Option<Signer>) -> Writer {
    let options =
        WriterOptions { host: host("hv1"), max_segment_age: Duration::from_secs(300), max_wal_bytes: 1 << 26 };
    let (mut writer, _) = Writer::open(root, options).unwrap();
    if let Some(signer) = signer {
        writer.sign_with(Arc::new(signer));
    }
    writer
}

/// So many segments of a few records each; different `tenant`s write different ones.
fn seal(writer: &mut Writer, from: u8, count: u8, tenant: &str) -> Vec<SegmentInfo> {
    let vm = instance("hv1", 1, Some(tenant), "10.0.0.5");
    (from..from + count)
        .map(|n| {
            let clock = format!("{n:02}:00:00");
            let fact = record(at(&clock), Fact::Instance(vm.clone()));
            let flows = [flow(&vm, 40000 + u16::from(n), &clock, Some(1)), flow(&vm, 41000, &clock, None)];
            writer.append(&[fact], &flows).unwrap();
            writer.seal(at(&clock)).unwrap().unwrap()
        })
        .collect()
}

/// A ledger of five signed segments.
fn ledger() -> (tempfile::TempDir, Vec<SegmentInfo>) {
    let root = tempfile::tempdir().unwrap();
    let sealed = seal(&mut writer(root.path(), Some(key())), 1, 5, "atlas");
    (root, sealed)
}

fn manifest(info: &SegmentInfo) -> PathBuf {
    info.folder.join(format!("{}.manifest.json", info.manifest.segment))
}

fn signature(info: &SegmentInfo) -> PathBuf {
    info.folder.join(format!("{}.manifest.json.sig", info.manifest.segment))
}

fn data(info: &SegmentInfo, kind: Kind) -> PathBuf {
    info.folder.join(&info.manifest.files.iter().find(|file| file.kind == kind).unwrap().name)
}

fn findings(root: &Path) -> Vec<(What, u64, u64)> {
    found(&[root])
}

fn found(roots: &[&Path]) -> Vec<(What, u64, u64)> {
    let roots: Vec<PathBuf> = roots.iter().map(|root| root.to_path_buf()).collect();
    let report = verify(&roots, &options(), &mut |_| {}).unwrap();
    report.findings.iter().for_each(|f| assert!(!f.advice.is_empty() && !f.place.is_empty() && !f.detail.is_empty()));
    report.findings.into_iter().map(|f| (f.what, f.first, f.last)).collect()
}

use crate::manifest::Kind;

#[test]
fn a_whole_ledger_has_no_finding_and_stock_ssh_keygen_accepts_each_manifest() {
    let (root, sealed) = ledger();
    let report = verify(&[root.path().to_owned()], &options(), &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
    let hv1 = &report.hosts[0];
    assert_eq!((hv1.segments, hv1.last, hv1.head), (5, 5, Some(sealed[4].digest)));
    assert!(hv1.files >= 25 && hv1.rows >= 15);
    fs::write(root.path().join("signers"), key().allowed_line(&host("hv1"))).unwrap();
    for info in &sealed {
        let verified = Command::new("ssh-keygen")
            .args(["-Y", "verify", "-f", "signers", "-I", "hv1", "-n", "vestigo-segment", "-s"])
            .arg(signature(info))
            .current_dir(root.path())
            .stdin(Stdio::from(fs::File::open(manifest(info)).unwrap()))
            .output()
            .unwrap();
        assert!(verified.status.success(), "{verified:?}");
    }
}

#[test]
fn one_flipped_bit_anywhere_in_a_data_file_is_found() {
    let (root, sealed) = ledger();
    for kind in [Kind::Flows, Kind::Instances] {
        let path = data(&sealed[2], kind);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(997) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            assert_eq!(findings(root.path()), [(What::FileChanged, 3, 3)], "{kind} at {at}");
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(findings(root.path()), [(What::FileChanged, 3, 3)], "{kind} cut");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(findings(root.path()), []);
}

#[test]
fn a_missing_file_and_a_file_that_nobody_lists_are_found() {
    let (root, sealed) = ledger();
    fs::remove_file(data(&sealed[1], Kind::Payloads)).unwrap();
    fs::write(sealed[0].folder.join("00000002-extra.parquet"), b"x").unwrap();
    assert_eq!(findings(root.path()), [(What::FileMissing, 2, 2), (What::Rubble, 2, 2)]);
}

/// Removes a segment with everything that belongs to it.
fn remove(info: &SegmentInfo) {
    for file in &info.manifest.files {
        fs::remove_file(info.folder.join(&file.name)).unwrap();
    }
    fs::remove_file(manifest(info)).unwrap();
    fs::remove_file(signature(info)).unwrap();
}

#[test]
fn removed_segments_are_found() {
    let (root, sealed) = ledger();
    remove(&sealed[0]);
    remove(&sealed[2]);
    remove(&sealed[3]);
    assert_eq!(findings(root.path()), [(What::SegmentMissing, 1, 1), (What::SegmentMissing, 3, 4)]);
}

#[test]
fn a_removed_tail_is_found_by_the_log_that_knew_it() {
    let (root, sealed) = ledger();
    remove(&sealed[4]);
    remove(&sealed[3]);
    assert_eq!(findings(root.path()), [(What::TailMissing, 4, 5)]);
    sealed[..3].iter().for_each(remove);
    assert_eq!(findings(root.path()), [(What::TailMissing, 1, 5)], "a ledger of which only the log is left");
}

#[test]
fn a_removed_tail_is_found_by_a_copy_when_the_log_is_gone_too() {
    let (root, sealed) = ledger();
    let copy = tempfile::tempdir().unwrap();
    copy_tree(root.path(), copy.path());
    fs::remove_dir_all(copy.path().join("wal")).unwrap();
    assert_eq!(found(&[root.path(), copy.path()]), []);
    remove(&sealed[4]);
    // A log that began before the removed segment was sealed.
    let log = fs::read_dir(root.path().join("wal")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(log).unwrap();
    drop(writer(root.path(), Some(key())));
    assert_eq!(findings(root.path()), [], "nothing here knows of it any more");
    assert_eq!(found(&[root.path(), copy.path()]), [(What::TailMissing, 5, 5)]);
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn exchanged_segments_are_found() {
    let (root, sealed) = ledger();
    let swap = |a: PathBuf, b: PathBuf| {
        let (first, second) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
        fs::write(a, second).unwrap();
        fs::write(b, first).unwrap();
    };
    swap(manifest(&sealed[1]), manifest(&sealed[3]));
    swap(signature(&sealed[1]), signature(&sealed[3]));
    let found = findings(root.path());
    assert!(found.contains(&(What::Reordered, 2, 2)) && found.contains(&(What::Reordered, 4, 4)), "{found:?}");
}

/// Changes a word in a manifest, its length kept.
fn edit(info: &SegmentInfo) {
    let text = fs::read_to_string(manifest(info)).unwrap();
    let edited = text.replacen("\"torn_bytes\": 0", "\"torn_bytes\": 7", 1);
    assert_ne!(text, edited);
    fs::write(manifest(info), edited).unwrap();
}

#[test]
fn an_edited_manifest_breaks_the_chain_and_its_signature() {
    let (root, sealed) = ledger();
    edit(&sealed[2]);
    assert_eq!(findings(root.path()), [(What::Rewritten, 3, 4), (What::SignatureForged, 3, 3)]);
}

#[test]
fn an_edited_last_manifest_is_found_by_signature_and_log() {
    let (root, sealed) = ledger();
    edit(&sealed[4]);
    assert_eq!(findings(root.path()), [(What::SignatureForged, 5, 5), (What::Rewritten, 5, 5)]);
}

/// What somebody with the right to write, but without the key, does: other records, a chain that fits.
fn rewrite_tail(root: &Path, sealed: &[SegmentInfo], signer: Option<Signer>) {
    remove(&sealed[4]);
    remove(&sealed[3]);
    fs::remove_dir_all(root.join("wal")).unwrap();
    seal(&mut writer(root, signer), 4, 2, "cms");
}

#[test]
fn a_rewritten_tail_is_found_whether_unsigned_or_signed_by_another_key() {
    let (root, sealed) = ledger();
    rewrite_tail(root.path(), &sealed, None);
    assert_eq!(findings(root.path()), [(What::SignatureMissing, 4, 5)]);
    let (root, sealed) = ledger();
    rewrite_tail(root.path(), &sealed, Some(Signer::from_seed(&[9; 32])));
    assert_eq!(findings(root.path()), [(What::SignerUnknown, 4, 5)]);
}

#[test]
fn a_tail_rewritten_with_the_hosts_own_key_is_found_by_a_copy() {
    let (root, sealed) = ledger();
    let copy = tempfile::tempdir().unwrap();
    copy_tree(root.path(), copy.path());
    rewrite_tail(root.path(), &sealed, Some(key()));
    assert_eq!(findings(root.path()), []);
    assert!(found(&[root.path(), copy.path()]).contains(&(What::TwoHistories, 4, 5)));
}

#[test]
fn forged_and_missing_signatures_and_ones_for_another_manifest_are_found() {
    let (root, sealed) = ledger();
    fs::copy(signature(&sealed[0]), signature(&sealed[1])).unwrap();
    fs::remove_file(signature(&sealed[3])).unwrap();
    fs::write(signature(&sealed[4]), "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n").unwrap();
    let forged = What::SignatureForged;
    assert_eq!(findings(root.path()), [(forged, 2, 2), (What::SignatureMissing, 4, 4), (forged, 5, 5)]);
}

#[test]
fn without_a_trust_file_every_signer_is_unknown() {
    let (root, _) = ledger();
    let report = verify(&[root.path().to_owned()], &VerifyOptions::default(), &mut |_| {}).unwrap();
    let found: Vec<_> = report.findings.iter().map(|f| (f.what, f.first, f.last)).collect();
    assert_eq!(found, [(What::SignerUnknown, 1, 5)]);
    assert!(report.findings[0].detail.contains(&key().fingerprint()));
}

#[test]
fn two_hosts_with_one_name_are_found() {
    let (one, _) = ledger();
    let other = tempfile::tempdir().unwrap();
    seal(&mut writer(other.path(), Some(key())), 1, 2, "cms");
    let found = found(&[one.path(), other.path()]);
    assert!(found.contains(&(What::TwoHistories, 1, 2)), "{found:?}");
}

#[test]
fn what_is_no_manifest_is_found() {
    let (root, sealed) = ledger();
    for bad in [&b"{}"[..], b"", b"\xff\xfe", b"[1"] {
        fs::write(manifest(&sealed[1]), bad).unwrap();
        let found = findings(root.path());
        assert!(found.contains(&(What::ManifestUnreadable, 2, 2)), "{bad:?}: {found:?}");
        assert!(!found.iter().any(|(what, ..)| *what == What::SegmentMissing), "{bad:?}: {found:?}");
    }
}

#[test]
fn a_manifest_that_leads_out_of_its_folder_is_found_and_not_followed() {
    let (root, sealed) = ledger();
    let text = fs::read_to_string(manifest(&sealed[4])).unwrap();
    let name = &sealed[4].manifest.files[0].name;
    fs::write(manifest(&sealed[4]), text.replace(name.as_str(), "../../../../etc/passwd")).unwrap();
    assert!(findings(root.path()).contains(&(What::ManifestUnreadable, 5, 5)));
}

/// Records exchanged and everything else made to fit, by someone who has the key: only the digest of the rows, which was
/// sealed in the manifest, does not.
#[test]
fn rows_that_are_not_those_sealed_are_found() {
    let (root, sealed) = ledger();
    let (old, other) = (&sealed[4], &sealed[3]);
    fs::copy(data(other, Kind::Flows), data(old, Kind::Flows)).unwrap();
    let mut manifest = old.manifest.clone();
    let bytes = fs::read(data(old, Kind::Flows)).unwrap();
    let entry = manifest.files.iter_mut().find(|file| file.kind == Kind::Flows).unwrap();
    entry.bytes = u64::try_from(bytes.len()).unwrap();
    entry.sha256 = Digest::of(&bytes);
    crate::manifest::write(&old.folder, manifest, Some(&key())).unwrap();
    let found = findings(root.path());
    assert!(found.contains(&(What::RowsDiffer, 5, 5)), "{found:?}");
}

#[test]
fn segments_of_before_signatures_are_proven_by_the_first_signed_one_behind_them() {
    let root = tempfile::tempdir().unwrap();
    let old = seal(&mut writer(root.path(), None), 1, 1, "atlas").remove(0);
    // As version 1 wrote it.
    let mut manifest = old.manifest.clone();
    manifest.version = 1;
    manifest.files.iter_mut().for_each(|file| file.rows_sha256 = None);
    crate::manifest::write(&old.folder, manifest, None).unwrap();
    fs::remove_dir_all(root.path().join("wal")).unwrap();
    assert_eq!(findings(root.path()), [(What::SignatureMissing, 1, 1)], "nothing signed stands behind it");
    let mut next = writer(root.path(), Some(key()));
    seal(&mut next, 2, 1, "atlas");
    assert_eq!(findings(root.path()), []);
    fs::remove_file(signature(&seal(&mut next, 3, 1, "atlas")[0])).unwrap();
    assert_eq!(findings(root.path()), [(What::SignatureMissing, 3, 3)]);
}

#[test]
fn quick_looks_at_lengths_only() {
    let (root, sealed) = ledger();
    let path = data(&sealed[2], Kind::Flows);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let quick = VerifyOptions { quick: true, ..options() };
    assert_eq!(verify(&[root.path().to_owned()], &quick, &mut |_| {}).unwrap().findings, []);
    assert_eq!(findings(root.path()), [(What::FileChanged, 3, 3)]);
    assert!(matches!(verify(&[root.path().join("nowhere")], &quick, &mut |_| {}), Err(LedgerError::NotALedger { .. })));
}
