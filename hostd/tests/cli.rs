//! The built binary's answers to bad input: one sentence each, and a stable exit code.

#![allow(clippy::unwrap_used)] // a failed step fails the test

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Writes a configuration and runs `hostd daemon` on it.
fn hostd(folder: &Path, hostd_toml: &str, vos_toml: Option<&str>, arguments: &[&str]) -> (i32, String) {
    let config = folder.join("hostd.toml");
    fs::write(&config, hostd_toml).unwrap();
    if let Some(text) = vos_toml {
        fs::write(folder.join("vos.toml"), text).unwrap();
    }
    let done = Command::new(env!("CARGO_BIN_EXE_hostd"))
        .args(["daemon", "--config"])
        .arg(&config)
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let said = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
    (done.status.code().unwrap(), said)
}

/// A whole configuration below the folder, with `more` at its end.
fn whole(folder: &Path, more: &str) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "host = \"hv1\"\nledger = {:?}\nspool = {:?}\nchannels = {:?}\nvos = {:?}\nstatus.socket = {:?}\n{more}\n[pins]\nfolders = [{:?}]\n[people]\nown = {:?}\n[ledger_key]\nfile = {:?}\n",
        at("ledger"),
        at("spool"),
        at("channels"),
        at("vos.toml"),
        // Not the machine's own: a hostd may run here.
        at("status.sock"),
        at("pins"),
        at("keys"),
        at("host_ed25519"),
    )
}

#[test]
fn a_good_configuration_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = hostd(folder.path(), &whole(folder.path(), ""), Some(""), &["--check-config"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("in order"), "{said}");
    assert!(!folder.path().join("ledger").exists(), "checking makes nothing");
}

#[test]
fn mistakes_in_files_end_with_2_and_name_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let cases = [
        (whole(path, "[meter]\nactve = 5"), Some(""), vec!["hostd.toml, line 8", "unknown field `actve`"]),
        (whole(path, "[record]\ncoverage = \"often\""), Some(""), vec!["line 8", "invalid type"]),
        (whole(path, "status.group = \"nosuch-group\""), Some(""), vec!["no group \"nosuch-group\"", "groupadd"]),
        ("host = \"hv1".to_owned(), Some(""), vec!["hostd.toml, line 1"]),
        (whole(path, ""), Some("[[vo]]\nname = \"atlas\"\nproject = [\"x\"]\n"), vec!["vos.toml", "project"]),
    ];
    for (config, vos, needles) in cases {
        let (code, said) = hostd(path, &config, vos, &["--check-config"]);
        assert_eq!(code, 2, "{said}");
        assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
        for needle in needles {
            assert!(said.contains(needle), "{needle:?} in {said}");
        }
    }
}

#[test]
fn bans_are_checked_and_never_left_out_silently() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let file = path.join("bans.toml");
    let config = whole(path, &format!("bans = {:?}", file.display().to_string()));
    let (code, said) = hostd(path, &config, Some(""), &["--check-config"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("bans.toml") && said.contains("an empty file bans nobody"), "{said}");
    fs::write(&file, "[[ban]]\nid = \"a\"\nvo = \"atlas\"\nreason = \"r\"\nwhy = \"r\"\n").unwrap();
    let (code, said) = hostd(path, &config, Some(""), &["--check-config"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("bans.toml, line 5: unknown field `why`"), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    fs::write(&file, "[[ban]]\nid = \"a\"\nvo = \"atlas\"\nreason = \"r\"\n").unwrap();
    assert_eq!(hostd(path, &config, Some(""), &["--check-config"]).0, 0);
    let relative = whole(path, "bans = \"bans.toml\"");
    assert!(hostd(path, &relative, Some(""), &["--check-config"]).1.contains("bans is bans.toml, a relative path"));
}

#[test]
fn missing_files_are_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = hostd(folder.path(), &whole(folder.path(), ""), None, &[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("vos.toml") && said.contains("unmapped"), "{said}");
    let done =
        Command::new(env!("CARGO_BIN_EXE_hostd")).args(["daemon", "--config", "/nowhere/hostd.toml"]).output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(said.contains("/nowhere/hostd.toml") && said.contains("--config"), "{said}");
}

#[test]
fn a_libvirt_that_does_not_answer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let more = "[libvirt]\nuri = \"qemu+unix:///system?socket=/nowhere/libvirt-sock\"";
    let (code, said) = hostd(folder.path(), &whole(folder.path(), more), Some(""), &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("/nowhere/libvirt-sock") && said.contains("libvirt.uri"), "{said}");
}

/// Kills a daemon that a failed test left.
struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With libvirt's own test driver, which needs no libvirtd: bans are read again, or stay as they were.
#[test]
fn a_hangup_reads_the_bans_again_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let at = |name: &str| path.join(name);
    let (bans, log) = (at("bans.toml"), at("log"));
    let more =
        format!("bans = {:?}\n[libvirt]\nuri = \"test:///default\"\nplug_channel = false", bans.display().to_string());
    fs::write(at("hostd.toml"), whole(path, &more)).unwrap();
    fs::write(at("vos.toml"), "").unwrap();
    fs::write(&bans, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostd"));
    command.args(["daemon", "--config"]).arg(at("hostd.toml")).env("NO_COLOR", "1").env("VESTIGO_LOG", "info");
    let daemon = Daemon(command.stderr(File::create(&log).unwrap()).spawn().unwrap());
    let said = |words: &str| {
        let began = Instant::now();
        while !fs::read_to_string(&log).unwrap().contains(words) {
            assert!(began.elapsed() < Duration::from_secs(30), "{words}: {}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    said("hostd runs");
    let good = "[[ban]]\nid = \"a\"\nvo = \"atlas\"\nreason = \"r\"\n";
    fs::write(&bans, good).unwrap();
    daemon.signal(Signal::SIGHUP);
    said("were read again");
    said("bans=1");
    fs::write(&bans, format!("{good}colour = 1\n")).unwrap();
    daemon.signal(Signal::SIGHUP);
    said("nothing was reloaded; hostd goes on as before");
    said("line 5: unknown field `colour`");
    daemon.signal(Signal::SIGTERM);
    said("hostd has stopped");
}
