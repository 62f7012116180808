//! The built binary and a vault in a folder, from hand-over to file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{fs, path::PathBuf, time::Duration};

use support::{Layer, Site, binary, handover, sparse};
use vestigo_model::{ItemId, Outcome, PinnedDisk, PinnedLayer};

const MIB: u64 = 1 << 20;

fn own(file: &std::path::Path) -> [Layer<'_>; 1] {
    [Layer { file, shared: false }]
}

fn code(out: &std::process::Output) -> i32 {
    out.status.code().unwrap()
}

fn said(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn packs(site: &Site, domain: &str) -> Vec<PathBuf> {
    let dir = site.vault_path().join("packs").join(domain);
    let mut packs: Vec<_> = fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    packs.sort();
    packs
}

#[test]
fn a_disk_with_its_backing_file_is_captured_listed_shown_verified_and_got() {
    let site = Site::folder();
    let (base, first, second) = (site.path("base.img"), site.path("a.qcow2"), site.path("b.qcow2"));
    sparse(&base, 40 * MIB, 1, &[(0, 3 << 20), (20 * MIB + 17, 5_000_000)]);
    sparse(&first, 12 * MIB + 777, 2, &[(100, 2_000_000), (12 * MIB, 777)]);
    sparse(&second, 8 * MIB, 3, &[(MIB, 1_000_000)]);
    let chain = |file| [Layer { file, shared: false }, Layer { file: base.as_path(), shared: true }];
    let one = site.hand_over(Some("atlas"), "vm-1", &chain(first.as_path()));
    let daemon = site.daemon();
    let manifest_sha256 = site.wait_captured(&one);
    let base_packs = packs(&site, "site");
    let two = site.hand_over(None, "vm-2", &chain(second.as_path()));
    site.wait_captured(&two);
    assert_eq!(packs(&site, "site"), base_packs, "the base is stored once");
    assert!(fs::read_dir(site.path("pins")).unwrap().next().is_none(), "the pins are gone");
    assert_eq!(daemon.terminate(), 0);

    let all = site.lines(&["list", "--json"]);
    assert_eq!(all.len(), 2);
    assert_eq!((all[0]["vo"].as_str(), all[1]["vo"].as_str()), (Some("atlas"), None));
    assert_eq!(all[0]["manifest_sha256"], manifest_sha256.to_string());
    assert_eq!(all[0]["claimed_users"][0], "alice");
    let count = |arguments: &[&str]| site.lines(&[&["list", "--json"], arguments].concat()).len();
    assert_eq!(count(&["--vo", "atlas"]), 1);
    assert_eq!(count(&["--vo", "unmapped"]), 1);
    assert_eq!(count(&["--instance", "vm-2"]), 1);
    assert_eq!(count(&["--user", "alice"]), 2);
    assert_eq!(count(&["--user", "mallory"]), 0);
    assert_eq!(count(&["--from", "2026-11-01T11:00:00Z", "--to", "2026-11-01T11:30:00Z"]), 2);
    assert_eq!(count(&["--to", "2026-11-01T09:00:00Z"]), 0);
    assert_eq!(count(&["--from", "2026-11-02T00:00:00Z"]), 0);

    for (item, layer, file) in [(&one, 0, &first), (&one, 1, &base), (&two, 0, &second), (&two, 1, &base)] {
        site.comes_back(item, layer, file);
    }
    for item in [&one, &two] {
        let out = site.run(&["verify", &item.to_string(), "--case", "C-1", "--reason", "abuse report"]);
        assert_eq!(code(&out), 0, "{}", said(&out));
    }
    let shown = &site.lines(&["show", &one.to_string(), "--json"])[0];
    assert_eq!(shown["manifest"]["instance"]["id"], "vm-1");
    let custody: Vec<&str> =
        shown["custody"].as_array().unwrap().iter().map(|e| e["entry"]["what"].as_str().unwrap()).collect();
    assert_eq!(custody, ["captured", "exported", "exported", "verified", "shown"]);
    assert_eq!(shown["custody"][3]["entry"]["case"], "C-1");
    let text = String::from_utf8(site.run(&["show", &one.to_string()]).stdout).unwrap();
    assert!(text.contains("alice") && text.contains("guest claims") && text.contains("vm-1"), "{text}");

    let out = site.path("whole");
    let got = site.run(&["get", &two.to_string(), "--all", "--out", out.to_str().unwrap()]);
    assert_eq!(code(&got), 0, "{}", said(&got));
    assert_eq!(fs::read(out.join("vda.1.raw")).unwrap(), fs::read(&base).unwrap());
    assert_eq!(fs::read(out.join("domain.xml")).unwrap(), support::XML.as_bytes());
    use std::os::unix::fs::MetadataExt;
    let sparse_bytes = fs::metadata(out.join("vda.1.raw")).unwrap().blocks() * 512;
    assert!(sparse_bytes < 12 * MIB, "holes stay holes: {sparse_bytes}");
    // Again: what is there and the same may stay, what is missing is fetched, what is another is not overwritten.
    let again = || site.run(&["get", &two.to_string(), "--all", "--out", out.to_str().unwrap()]);
    assert_eq!(code(&again()), 0);
    fs::write(out.join("vda.0.qcow2"), "mine").unwrap();
    fs::remove_file(out.join("vda.1.raw")).unwrap();
    let refused = again();
    assert!(code(&refused) == 1 && said(&refused).contains("not overwritten"), "{}", said(&refused));
    assert_eq!(fs::read(out.join("vda.0.qcow2")).unwrap(), b"mine");
    assert_eq!(
        fs::read(out.join("vda.1.raw")).unwrap(),
        fs::read(&base).unwrap(),
        "the other file was got all the same"
    );
}

#[test]
fn each_kind_of_damage_is_named_and_nothing_false_is_given_out() {
    let site = Site::folder();
    let disk = site.path("disk.raw");
    sparse(&disk, 16 * MIB, 5, &[(0, 13 << 20)]);
    let item = site.hand_over(Some("cms"), "vm-9", &own(&disk));
    let _daemon = site.daemon();
    site.wait_captured(&item);
    let item = item.to_string();
    let verify = |expected: &str| {
        let out = site.run(&["verify", &item, "--json"]);
        assert_eq!(code(&out), 5, "{expected}: {}", said(&out));
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let kinds: Vec<&str> =
            report["report"]["findings"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap()).collect();
        assert!(kinds.contains(&expected), "{expected} not in {kinds:?}");
    };
    let refuses_with = |expected: i32| {
        let out = site.path("never");
        let got = site.run(&["get", &item, "--out", out.to_str().unwrap()]);
        assert_eq!(code(&got), expected, "{}", said(&got));
        assert!(!out.exists());
        let debris =
            fs::read_dir(site.dir.path()).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().ends_with(".part"));
        assert!(!debris, "nothing half-written stays");
    };
    let refuses = || refuses_with(1);
    let all = packs(&site, "vo/cms");
    assert!(all.len() >= 3);
    let whole = fs::read(&all[1]).unwrap();

    let mut flipped = whole.clone();
    flipped[1_000_000] ^= 4;
    fs::write(&all[1], &flipped).unwrap();
    verify("altered-chunk");
    refuses();
    let mut flipped = whole.clone();
    flipped[140] ^= 1;
    fs::write(&all[1], &flipped).unwrap();
    verify("altered-chunk");
    fs::write(&all[1], &whole[..whole.len() / 2]).unwrap();
    verify("truncated-pack");
    refuses();
    fs::remove_file(&all[1]).unwrap();
    verify("missing-pack");
    refuses();
    let mut flipped = whole.clone();
    let last = flipped.len() - 100;
    flipped[last] ^= 1;
    fs::write(&all[1], &flipped).unwrap();
    verify("damaged-pack");
    fs::write(&all[1], &whole).unwrap();
    assert_eq!(code(&site.run(&["verify", &item])), 0);

    let dir = fs::read_dir(site.vault_path().join("items/")).unwrap().next().unwrap().unwrap().path();
    let dir = walk_to_item(&dir, &item);
    let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap();
    fs::write(dir.join("manifest.json"), manifest.replace("\"vm-9\"", "\"vm-8\"")).unwrap();
    verify("manifest-altered");
    refuses_with(5);
    let shown = site.run(&["show", &item]);
    assert!(shown.status.success() && shown.stdout.starts_with(b"WARNING: this is not what was captured"), "{shown:?}");
    let all_the_same = site.path("all-the-same");
    let got = site.run(&["get", &item, "--accept-unrecorded", "--out", all_the_same.to_str().unwrap()]);
    assert_eq!(code(&got), 0, "{}", said(&got));
    fs::write(dir.join("manifest.json"), &manifest[..100]).unwrap();
    verify("manifest-damaged");
    refuses_with(5);
    fs::write(dir.join("manifest.json"), &manifest).unwrap();
    fs::remove_file(dir.join("domain.xml")).unwrap();
    verify("domain-xml");
    let index =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|x| x == "index"));
    let index = index.unwrap();
    let mut bytes = fs::read(&index).unwrap();
    bytes[200] ^= 1;
    fs::write(&index, bytes).unwrap();
    verify("index");
    refuses();
}

fn walk_to_item(year: &std::path::Path, item: &str) -> PathBuf {
    let only = |dir: PathBuf| fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    only(only(year.to_owned())).join(item)
}

#[test]
fn kill_minus_nine_at_many_moments_loses_and_doubles_nothing() {
    let site = Site::folder();
    let disk = site.path("disk.raw");
    sparse(&disk, 96 * MIB, 7, &[(0, 30 << 20), (40 * MIB, 34 << 20)]);
    let items: Vec<ItemId> = (0..2).map(|n| site.hand_over(Some("atlas"), &format!("vm-{n}"), &own(&disk))).collect();
    let mut kills = 0;
    let mut wait = 40;
    while items.iter().any(|item| site.waits(item)) {
        let daemon = site.daemon();
        std::thread::sleep(Duration::from_millis(wait));
        daemon.kill();
        kills += 1;
        // Grows, so that the work ends in the end even on a slow machine.
        wait += 23;
        assert!(kills < 80, "{}", site.log());
    }
    // Whatever the last kill left undone.
    let daemon = site.daemon();
    for item in &items {
        site.wait_captured(item);
    }
    site.wait("the journals to be cleared", || fs::read_dir(site.path("state/items")).unwrap().next().is_none());
    daemon.kill();
    assert!(kills >= 5, "the work was too fast to be killed often enough: {kills}");
    assert_eq!(site.lines(&["list", "--json"]).len(), 2);
    for item in &items {
        assert_eq!(code(&site.run(&["verify", &item.to_string()])), 0);
        site.comes_back(item, 0, &disk);
        let shown = &site.lines(&["show", &item.to_string(), "--json"])[0];
        let captures = shown["custody"].as_array().unwrap().iter().filter(|e| e["entry"]["what"] == "captured").count();
        assert_eq!(captures, 1);
    }
    let stored: u64 = packs(&site, "vo/atlas").iter().map(|p| fs::metadata(p).unwrap().len()).sum();
    // 64 MiB of noise cannot shrink; packs that were durable are used again, never stored twice.
    assert!(stored < 66 * MIB, "{stored} bytes in packs after {kills} kills");
    eprintln!("{kills} kills, {stored} bytes in packs");
}

#[test]
fn pins_that_are_no_files_are_missed_not_followed() {
    let site = Site::folder();
    let item = ItemId(uuid::Uuid::now_v7());
    let pin = site.path("pins/link");
    std::os::unix::fs::symlink("/etc/shadow", &pin).unwrap();
    let layer = |pin| PinnedLayer { original: "/x".into(), pin, format: "raw".into(), shared: false };
    let disks =
        vec![PinnedDisk { target: "vda".into(), layers: vec![layer(pin.clone()), layer(site.path("pins/none"))] }];
    site.spool(&handover(item, None, "vm", disks));
    let _daemon = site.daemon();
    site.wait("an answer", || site.result(&item).is_some());
    match site.result(&item).unwrap().outcome {
        Outcome::Missed { reason } => {
            assert!(reason.contains("not a regular file") && reason.contains("gone"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    site.wait("the hand-over to go", || !site.waits(&item));
    assert!(pin.is_symlink(), "what was refused is left where it is");
    assert!(site.lines(&["list", "--json"]).is_empty());
}

#[test]
fn one_lost_layer_does_not_lose_the_others_and_is_remarked() {
    let site = Site::folder();
    let (disk, base) = (site.path("d"), site.path("b"));
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    sparse(&base, MIB, 2, &[(0, 5000)]);
    let item = site.hand_over(None, "vm", &[Layer { file: &disk, shared: false }, Layer { file: &base, shared: true }]);
    fs::remove_file(site.path("pins").join(format!("{item}-1"))).unwrap();
    let _daemon = site.daemon();
    site.wait_captured(&item);
    let remarks = site.lines(&["list", "--json"])[0]["remarks"].to_string();
    assert!(remarks.contains("layer 1: missing"), "{remarks}");
    site.comes_back(&item, 0, &disk);
    let got = site.run(&["get", &item.to_string(), "--layer", "1", "--out", "/nowhere"]);
    assert_eq!(code(&got), 3, "{}", said(&got));
}

#[test]
fn a_spool_file_that_is_none_is_named_and_left_alone() {
    let site = Site::folder();
    fs::write(site.path("spool/0193a1b2-0000-7000-8000-000000000000.json"), "{\"version\":1").unwrap();
    let disk = site.path("d");
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    let item = site.hand_over(None, "vm", &own(&disk));
    let _daemon = site.daemon();
    site.wait_captured(&item);
    assert!(site.path("spool/0193a1b2-0000-7000-8000-000000000000.json").exists());
    assert!(site.log().contains("is not used, and is left where it is"), "{}", site.log());
    let rows = site.lines(&["list", "--pending", "--json"]);
    assert_eq!(rows[0]["state"], "unusable");
}

#[test]
fn two_daemons_on_one_spool() {
    let site = Site::folder();
    let _first = site.daemon();
    site.wait("the first to start", || site.log().contains("ready"));
    let second = binary().args(["daemon", "--config"]).arg(site.config()).output().unwrap();
    assert_eq!(code(&second), 1);
    assert!(said(&second).contains("another quarantine daemon"), "{}", said(&second));
}

#[test]
fn wrong_input_gets_one_sentence_and_its_exit_code() {
    let site = Site::folder();
    let daemon = site.daemon();
    site.wait("the daemon", || site.log().contains("ready"));
    daemon.kill();
    let fails = |arguments: &[&str], expected: i32, words: &[&str]| {
        let out = site.run(arguments);
        let said = said(&out);
        assert_eq!(code(&out), expected, "{arguments:?}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {said}");
    };
    fails(&["show", "0193a1b2"], 3, &["holds no item", "quarantine list"]);
    fails(&["verify", "0193a1b2-0000-7000-8000-000000000000"], 3, &["holds no item"]);
    fails(&["list", "--from", "yesterday"], 2, &["RFC 3339"]);
    fails(&["list", "--vault", "ftp://x"], 2, &["file:///", "s3://"]);
    fails(&["list", "--vault", "file:///no/such/folder"], 1, &["no vault folder"]);
    fails(&["verify", "x", "--sample", "200"], 2, &["between 0 and 100"]);
    fails(&["daemon", "--bogus"], 2, &[]);
    site.write_config("speed = 3", "");
    let out = binary().args(["daemon", "--check-config", "--config"]).arg(site.config()).output().unwrap();
    assert_eq!(code(&out), 2);
    assert!(said(&out).contains("quarantine.toml:7:") && said(&out).contains("speed"), "{}", said(&out));
    site.write_config("", "");
    let out = binary().args(["daemon", "--check-config", "--config"]).arg(site.config()).output().unwrap();
    assert_eq!(code(&out), 0, "{}", said(&out));
}

#[test]
fn a_pack_that_vanished_from_the_vault_is_stored_again() {
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, 8 * MIB, 4, &[(0, 8 << 20)]);
    let first = site.hand_over(Some("atlas"), "vm-1", &own(&disk));
    let _daemon = site.daemon();
    site.wait_captured(&first);
    fs::remove_file(&packs(&site, "vo/atlas")[0]).unwrap();
    drop(_daemon);
    let _daemon = site.daemon();
    let second = site.hand_over(Some("atlas"), "vm-2", &own(&disk));
    site.wait_captured(&second);
    assert_eq!(code(&site.run(&["verify", &second.to_string()])), 0);
    assert_eq!(code(&site.run(&["verify", &first.to_string()])), 5);
}

/// A file system of 6 MiB under the vault, in a mount namespace of the daemon's own.
#[test]
fn a_full_disk_is_said_and_the_work_taken_up_again() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED a_full_disk_is_said_and_the_work_taken_up_again: needs root to mount a small file system");
        return;
    }
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, 16 * MIB, 8, &[(0, 12 << 20)]);
    let item = site.hand_over(None, "vm", &own(&disk));
    fs::create_dir(site.vault_path()).unwrap();
    let script = "mount -t tmpfs -o size=6m none \"$1\" && shift && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(site.vault_path()).arg(env!("CARGO_BIN_EXE_quarantine"));
    let log = fs::File::create(site.path("log")).unwrap();
    let child = command.args(["daemon", "--config"]).arg(site.config()).stderr(log).spawn().unwrap();
    let daemon = support::Daemon(child);
    site.wait("the sentence", || site.log().contains("make room there"));
    assert!(site.log().contains("No space left"), "{}", site.log());
    assert!(site.waits(&item) && site.result(&item).is_none());
    daemon.kill();
    // Without that small file system it is another vault, and on purpose.
    fs::remove_file(site.path("state/vaults.json")).unwrap();
    let _daemon = site.daemon();
    site.wait_captured(&item);
    site.comes_back(&item, 0, &disk);
}

/// A FIFO in the spool must not hold the daemon, nor make it deaf to SIGTERM.
#[test]
fn a_fifo_in_the_spool_holds_nobody() {
    let site = Site::folder();
    let fifo = site.path("spool/0193a1b2-0000-7000-8000-000000000000.json");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let disk = site.path("d");
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    let item = site.hand_over(None, "vm", &own(&disk));
    let daemon = site.daemon();
    site.wait_captured(&item);
    assert!(site.log().contains("not a regular file"), "{}", site.log());
    assert_eq!(daemon.terminate(), 0);
}

/// A hand-over may name anything: what is outside of the pin folders is neither read nor removed, and what is no file is
/// never removed.
#[test]
fn only_a_file_that_was_read_as_a_pin_is_removed() {
    let site = Site::folder();
    let layer = |pin: PathBuf| PinnedLayer { original: "/x".into(), pin, format: "raw".into(), shared: false };
    let spool = |pins: Vec<PathBuf>| {
        let item = ItemId(uuid::Uuid::now_v7());
        let disks = vec![PinnedDisk { target: "vda".into(), layers: pins.into_iter().map(layer).collect() }];
        site.spool(&handover(item, None, "vm", disks));
        item
    };
    let (fifo, good) = (site.path("pins/fifo"), site.path("pins/good"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    sparse(&good, MIB, 1, &[(0, 5000)]);
    let item = spool(vec![good.clone(), fifo.clone()]);
    let daemon = site.daemon();
    site.wait_captured(&item);
    assert!(!good.exists() && fifo.exists());
    drop(daemon);

    let precious = site.path("precious");
    fs::write(&precious, "precious").unwrap();
    site.write_top(&format!("pins = [{:?}]", site.path("pins")));
    let item = spool(vec![precious.clone()]);
    let _daemon = site.daemon();
    site.wait("the sentence", || site.log().contains("in none of the folders"));
    assert!(precious.exists() && site.waits(&item) && site.result(&item).is_none());
}

#[test]
fn an_unmounted_file_system_of_disks_is_waited_for() {
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    let item = site.hand_over(None, "vm", &own(&disk));
    fs::rename(site.path("pins"), site.path("away")).unwrap();
    let _daemon = site.daemon();
    site.wait("the sentence", || site.log().contains("is its file system mounted?"));
    assert!(site.waits(&item) && site.result(&item).is_none());
    fs::rename(site.path("away"), site.path("pins")).unwrap();
    site.wait_captured(&item);
    site.comes_back(&item, 0, &disk);
}

/// A pack that is there but cut short (a lying disk, a full one) must not carry new items: their pins would be removed.
#[test]
fn a_pack_that_was_cut_short_is_not_used_again() {
    for restart in [false, true] {
        let site = Site::folder();
        let disk = site.path("d");
        sparse(&disk, 8 * MIB, 4, &[(0, 8 << 20)]);
        let first = site.hand_over(Some("atlas"), "vm-1", &own(&disk));
        let mut daemon = site.daemon();
        site.wait_captured(&first);
        let pack = packs(&site, "vo/atlas")[0].clone();
        let size = fs::metadata(&pack).unwrap().len();
        fs::OpenOptions::new().write(true).open(&pack).unwrap().set_len(size / 2).unwrap();
        if restart {
            drop(daemon);
            daemon = site.daemon();
        }
        let second = site.hand_over(Some("atlas"), "vm-2", &own(&disk));
        site.wait_captured(&second);
        assert_eq!(code(&site.run(&["verify", &second.to_string()])), 0);
        site.comes_back(&second, 0, &disk);
        assert!(site.log().contains("this pack is damaged"), "{}", site.log());
        drop(daemon);
    }
}

#[test]
fn a_custody_log_that_was_tampered_with_is_found_out() {
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    let item = site.hand_over(None, "vm", &own(&disk));
    let daemon = site.daemon();
    site.wait_captured(&item);
    drop(daemon);
    let item = item.to_string();
    for _ in 0..4 {
        assert_eq!(code(&site.run(&["verify", &item])), 0);
    }
    assert_eq!(code(&site.run(&["verify", "--custody"])), 0);
    let entry = |number: u64| site.vault_path().join(format!("custody/{number:012}.json"));
    let found = |arguments: &[&str], expected: &str| {
        let out = site.run(arguments);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(code(&out) == 5 && text.contains(expected), "{arguments:?}: {text}{}", said(&out));
    };
    // 1 is the probe, 2 the capture, the others verifications.
    for number in [1, 2, 4] {
        let whole = fs::read_to_string(entry(number)).unwrap();
        fs::write(entry(number), whole.replace("\"uid\":", "\"uid\":4")).unwrap();
        found(&["verify", &item], "custody-chain");
        found(&["verify", &item, "--sample", "1"], "custody-chain");
        found(&["verify", "--custody"], "rewritten");
        fs::write(entry(number), whole).unwrap();
    }
    // Entries were added meanwhile only behind; an item's own entries in the middle may go, or the first of all.
    for number in [1, 3] {
        let whole = fs::read(entry(number)).unwrap();
        fs::remove_file(entry(number)).unwrap();
        found(&["verify", "--custody"], "missing although");
        let out = site.run(&["get", &item, "--out", site.path("x").to_str().unwrap()]);
        assert!(number != 1 || code(&out) == 5, "{}", said(&out));
        assert!(number != 1 || !entry(1).exists(), "the gap is not filled");
        fs::write(entry(number), whole).unwrap();
        let _ = fs::remove_file(site.path("x"));
    }
}

#[test]
fn a_disk_that_is_written_to_meanwhile_can_be_got_and_verified() {
    use std::os::unix::fs::FileExt;
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, 32 * MIB, 1, &[(0, 32 << 20)]);
    let item = site.hand_over(None, "vm", &own(&disk));
    let _daemon = site.daemon();
    let file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(60);
    for number in 0u64.. {
        file.write_all_at(&number.to_le_bytes(), MIB * 31).unwrap();
        if site.result(&item).is_some() || end < std::time::Instant::now() {
            break;
        }
    }
    site.wait_captured(&item);
    let out = site.path("out");
    let got = site.run(&["get", &item.to_string(), "--out", out.to_str().unwrap()]);
    assert_eq!(code(&got), 0, "{}", said(&got));
    assert!(said(&got).contains("changed while it was acquired"), "{}", said(&got));
    let verified = site.run(&["verify", &item.to_string()]);
    assert_eq!(code(&verified), 0, "{}", String::from_utf8_lossy(&verified.stdout));
}

#[test]
fn a_vault_that_is_not_mounted_is_not_begun_anew() {
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    let first = site.hand_over(None, "vm-1", &own(&disk));
    let daemon = site.daemon();
    site.wait_captured(&first);
    // Away while the daemon works, then already when it starts: an empty mount point, then not even that.
    fs::rename(site.vault_path(), site.path("away")).unwrap();
    fs::create_dir(site.vault_path()).unwrap();
    let second = site.hand_over(None, "vm-2", &own(&disk));
    site.wait("the sentence", || site.log().contains("is it mounted?"));
    drop(daemon);
    for made in [true, false] {
        if !made {
            fs::remove_dir(site.vault_path()).unwrap();
        }
        fs::write(site.path("log"), "").unwrap();
        let daemon = site.daemon();
        site.wait("the sentence", || site.log().contains("but was used before; is it"));
        assert_eq!(daemon.terminate(), 0);
        let found = fs::read_dir(site.vault_path()).map_or(0, Iterator::count);
        assert!(site.vault_path().exists() == made && found == 0, "nothing is written there");
    }
    assert!(site.waits(&second) && site.result(&second).is_none());
    fs::rename(site.path("away"), site.vault_path()).unwrap();
    let _daemon = site.daemon();
    site.wait_captured(&second);
    assert_eq!(site.lines(&["list", "--json"]).len(), 2);
}

#[test]
fn a_listing_says_what_it_cannot_list() {
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    let item = site.hand_over(None, "vm", &own(&disk));
    let daemon = site.daemon();
    site.wait_captured(&item);
    drop(daemon);
    let out = site.run(&["list", "--vault", &format!("file://{}", site.path("spool").display())]);
    assert!(code(&out) == 1 && said(&out).contains("is no vault"), "{}", said(&out));
    let out = site.run(&["list", "--from", "2026-11-02T00:00:00Z", "--to", "2026-11-01T00:00:00Z"]);
    assert!(code(&out) == 2 && said(&out).contains("is after --to"), "{}", said(&out));
    let dir = fs::read_dir(site.vault_path().join("items/")).unwrap().next().unwrap().unwrap().path();
    let manifest = walk_to_item(&dir, &item.to_string()).join("manifest.json");
    fs::write(manifest, "{").unwrap();
    let out = site.run(&["list"]);
    assert!(code(&out) == 5 && String::from_utf8_lossy(&out.stdout).contains("DAMAGED"), "{}", said(&out));
    let out = site.run(&["list", "--json"]);
    let line: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(code(&out) == 5 && line["item"] == item.to_string() && line["damaged"].is_string(), "{line}");
}

/// The id's day is by the clock of whoever made it.
#[test]
fn a_listing_does_not_trust_the_day_in_the_id() {
    let site = Site::folder();
    let disk = site.path("d");
    sparse(&disk, MIB, 1, &[(0, 5000)]);
    // 2001, while the machine lived in 2026.
    let item: ItemId = "00e3f8c6-6c00-7000-8000-000000000000".parse().unwrap();
    let pin = site.path("pins/old");
    fs::hard_link(&disk, &pin).unwrap();
    let layer = PinnedLayer { original: "/x".into(), pin, format: "raw".into(), shared: false };
    site.spool(&handover(item, None, "vm", vec![PinnedDisk { target: "vda".into(), layers: vec![layer] }]));
    let _daemon = site.daemon();
    site.wait_captured(&item);
    assert_eq!(site.lines(&["list", "--json", "--from", "2026-11-01T11:00:00Z"]).len(), 1);
}
