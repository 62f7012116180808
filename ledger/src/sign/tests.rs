#![allow(clippy::unwrap_used)]
use std::{
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use super::*;

fn host() -> HostId {
    HostId::new("hv1").unwrap()
}

/// What the stock tool says of a signature.
fn ssh_keygen(folder: &Path, identity: &str, namespace: &str, message: &[u8]) -> bool {
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-f", "keys/allowed_signers", "-I", identity, "-n", namespace, "-s", "x.sig"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message).unwrap();
    child.wait().unwrap().success()
}

#[test]
fn stock_ssh_keygen_accepts_what_the_hosts_own_key_signed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys/host_ed25519");
    let (signer, made) = Signer::open_or_create(&path, &host()).unwrap();
    assert!(made);
    fs::write(folder.path().join("x.sig"), signer.sign(b"manifest").unwrap()).unwrap();
    assert!(ssh_keygen(folder.path(), "hv1", SEGMENT_NAMESPACE, b"manifest"));
    assert!(!ssh_keygen(folder.path(), "hv1", SEGMENT_NAMESPACE, b"Manifest"));
    assert!(!ssh_keygen(folder.path(), "hv2", SEGMENT_NAMESPACE, b"manifest"));
    assert!(!ssh_keygen(folder.path(), "hv1", TOMBSTONE_NAMESPACE, b"manifest"));
    let listed = Command::new("ssh-keygen").arg("-lf").arg(&path).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&signer.fingerprint()), "the same fingerprint");
}

#[test]
fn a_key_is_made_once_and_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys/host_ed25519");
    let (first, _) = Signer::open_or_create(&path, &host()).unwrap();
    let (second, made) = Signer::open_or_create(&path, &host()).unwrap();
    assert!(!made && first.public() == second.public());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let mut names = durable::names(path.parent().unwrap()).unwrap();
    names.sort();
    assert_eq!(names, ["allowed_signers", "host_ed25519", "host_ed25519.pub"], "no temporary file is left");
    assert_ne!(random().unwrap(), random().unwrap());
}

#[test]
fn keys_of_ssh_keygen_are_taken_and_others_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, kind: &str, passphrase: &str| {
        let path = folder.path().join(name);
        let made = Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", passphrase, "-f"]).arg(&path).status();
        assert!(made.unwrap().success());
        path
    };
    assert!(Signer::open(&make("good", "ed25519", "")).is_ok());
    let refused = |path: &Path| Signer::open(path).unwrap_err().to_string();
    assert!(refused(&make("locked", "ed25519", "secret")).contains("has a passphrase; remove it"));
    assert!(refused(&make("ecdsa", "ecdsa", "")).contains("another kind"));
    let text = folder.path().join("text");
    fs::write(&text, "hello").unwrap();
    assert!(refused(&text).contains("no OpenSSH private key"));
    fs::write(&text, vec![b'x'; 20 << 10]).unwrap();
    assert!(refused(&text).contains("too large"));
    assert!(refused(&folder.path().join("absent")).starts_with("Cannot open"));
}
