//! The built binary and a vault in a real S3 server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use std::fs;

use support::{Layer, Site, binary, sparse, weed};

const MIB: u64 = 1 << 20;

fn site(weed: &weed::Weed, bucket: &str, extra: &str) -> Site {
    with_endpoint(&weed.endpoint(), bucket, extra)
}

fn with_endpoint(endpoint: &str, bucket: &str, extra: &str) -> Site {
    let dir = tempfile::tempdir().unwrap();
    Site::with(dir, format!("s3://{bucket}/q"), &format!("endpoint = \"{endpoint}\"\n{extra}"))
}

fn said(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_disk_comes_back_from_a_locked_bucket() {
    let Some(weed) = weed::shared("a_disk_comes_back_from_a_locked_bucket") else { return };
    weed.bucket("evidence", true);
    let site = site(weed, "evidence", "[retention]\ndays = 1\nobject_lock = \"compliance\"");
    let (disk, base) = (site.path("d"), site.path("b"));
    sparse(&disk, 24 * MIB + 5, 1, &[(3 * MIB, 9_000_000), (24 * MIB, 5)]);
    sparse(&base, 16 * MIB, 2, &[(0, 6_000_000)]);
    let layers = [Layer { file: &disk, shared: false }, Layer { file: &base, shared: true }];
    let item = site.hand_over(Some("atlas"), "vm-1", &layers);
    let daemon = site.daemon();
    site.wait_captured(&item);
    site.comes_back(&item, 0, &disk);
    site.comes_back(&item, 1, &base);
    let id = item.to_string();
    let verified = site.run(&["verify", &id]);
    assert!(verified.status.success(), "{}", said(&verified));
    assert!(site.run(&["verify", &id, "--sample", "20%"]).status.success());
    let shown = &site.lines(&["show", &id, "--json"])[0];
    assert_eq!(shown["manifest"]["retention"]["object_lock"], "compliance");
    let probed = site.lines(&["probe", "--json"]);
    assert_eq!(probed[0]["capabilities"]["object_lock"]["finding"], "works");
    assert_eq!(daemon.terminate(), 0);
    // Nothing of it can be removed before its time.
    weed::runtime().block_on(async {
        let client = weed.client();
        let versions = client.list_object_versions().bucket("evidence").prefix("q/packs/").send().await.unwrap();
        assert!(!versions.versions().is_empty());
        for version in versions.versions() {
            let delete = client.delete_object().bucket("evidence").key(version.key().unwrap());
            assert!(delete.version_id(version.version_id().unwrap()).send().await.is_err());
        }
    });
}

#[test]
fn an_outage_loses_nothing_and_is_said_in_one_sentence() {
    let Some(program) = weed::weed_or_skip("an_outage_loses_nothing_and_is_said_in_one_sentence") else { return };
    let dir = tempfile::tempdir().unwrap();
    let ports = weed::free_ports();
    let site = with_endpoint(&format!("http://127.0.0.1:{}", ports + 3), "outage", "");
    let disk = site.path("d");
    sparse(&disk, 24 * MIB, 3, &[(0, 20 << 20)]);
    // The bucket is made before: between the start of the server and its first bucket the daemon would rightly end.
    let weed = weed::Weed::start(&program, dir.path(), ports);
    weed.bucket("outage", false);
    weed.stop();
    // Not there when the daemon starts.
    let item = site.hand_over(Some("atlas"), "vm-1", &[Layer { file: &disk, shared: false }]);
    let _daemon = site.daemon();
    site.wait("the sentence", || site.log().contains("cannot reach S3 server"));
    assert!(
        site.log().contains("bucket outage") && site.log().contains("check that the server runs"),
        "{}",
        site.log()
    );
    let weed = weed::Weed::start(&program, dir.path(), ports);
    site.wait_captured(&item);
    // Away while it runs. At once after the hand-over: a moment later the item might be safe already. (What a kill in the
    // middle of an item does is shown in `folder.rs`.)
    let second = site.path("d2");
    sparse(&second, 64 * MIB, 4, &[(0, 48 << 20)]);
    let item = site.hand_over(Some("atlas"), "vm-2", &[Layer { file: &second, shared: false }]);
    weed.stop();
    site.wait("the trouble to show", || {
        let rows = site.lines(&["list", "--pending", "--json"]);
        rows.iter().any(|row| row["trouble"].as_str().is_some_and(|t| t.contains("S3 server")))
    });
    assert!(site.waits(&item) && site.result(&item).is_none());
    let pin = fs::read_dir(site.path("pins")).unwrap().count();
    assert_eq!(pin, 1, "the pin stays");
    let weed = weed::Weed::start(&program, dir.path(), ports);
    site.wait_captured(&item);
    site.comes_back(&item, 0, &second);
    assert_eq!(site.lines(&["list", "--json"]).len(), 2);
    drop(weed);
}

#[test]
fn what_cannot_work_is_said_and_refused() {
    let Some(weed) = weed::shared("what_cannot_work_is_said_and_refused") else { return };
    weed.bucket("unlocked", false);
    let starts = |site: &Site, change: &dyn Fn(&mut std::process::Command), words: &[&str]| {
        let mut command = binary();
        command.args(["daemon", "--config"]).arg(site.config());
        change(&mut command);
        let out = command.output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        let said = said(&out);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    let none = |_: &mut std::process::Command| {};
    starts(&site(weed, "no-such-bucket", ""), &none, &["no-such-bucket", "create it"]);
    let wrong = |c: &mut std::process::Command| {
        c.env("AWS_SECRET_ACCESS_KEY", "wrong");
    };
    starts(&site(weed, "unlocked", ""), &wrong, &["credentials are refused", "unlocked"]);
    let absent = |c: &mut std::process::Command| {
        c.env_remove("AWS_ACCESS_KEY_ID");
    };
    starts(&site(weed, "unlocked", ""), &absent, &["no credentials", "AWS_ACCESS_KEY_ID"]);
    let locked = site(weed, "unlocked", "[retention]\nobject_lock = \"governance\"");
    starts(&locked, &none, &["object_lock = \"off\"", "not offered", "Object Lock"]);
}

#[test]
fn segments_of_the_ledger_are_locked_in_the_bucket_for_as_long_as_configured() {
    let Some(weed) = weed::shared("segments_of_the_ledger_are_locked_in_the_bucket_for_as_long_as_configured") else {
        return;
    };
    weed.bucket("ledgers", true);
    let site = site(weed, "ledgers", "");
    let folder = site.path("ledger/date=2026-11-22/host=hv1");
    fs::create_dir_all(&folder).unwrap();
    let data = support::noise(9, 300_000);
    let sha256 = vestigo_model::Digest::of(&data);
    fs::write(folder.join("00000001-x-flows.parquet"), &data).unwrap();
    fs::write(folder.join("00000001-x.manifest.json.sig"), "signature").unwrap();
    let manifest = format!(
        r#"{{"host":"hv1","sequence":1,"files":[{{"name":"00000001-x-flows.parquet","rows":3,"bytes":300000,"sha256":"{sha256}"}}]}}"#
    );
    fs::write(folder.join("00000001-x.manifest.json"), &manifest).unwrap();
    let ledger = site.path("ledger").display().to_string();
    let endpoint = weed.endpoint();
    site.write_config(
        &format!(
            "endpoint = \"{endpoint}\"\n[retention]\ndays = 1\nobject_lock = \"governance\"\n[ledger]\npath = \"{ledger}\"\nkeep_days = 200"
        ),
        "pack_mib = 4",
    );
    let daemon = site.daemon();
    let receipt = site.path("state/shipped/hv1/1.json");
    site.wait("the receipt", || receipt.exists());
    assert_eq!(daemon.terminate(), 0);
    weed::runtime().block_on(async {
        let client = weed.client();
        let prefix = "q/ledger/date=2026-11-22/host=hv1/00000001-x";
        let get = |name: String| client.get_object().bucket("ledgers").key(name).send();
        let stored = get(format!("{prefix}-flows.parquet")).await.unwrap();
        let until = stored.object_lock_retain_until_date().unwrap().secs();
        assert_eq!(stored.body.collect().await.unwrap().to_vec(), data);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(until > i64::try_from(now).unwrap() + 199 * 86_400, "locked for as long as the ledger is to be kept");
        let stored = get(format!("{prefix}.manifest.json")).await.unwrap();
        assert_eq!(stored.body.collect().await.unwrap().to_vec(), manifest.as_bytes());
    });
}
