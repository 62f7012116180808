//! One conformance suite for every back end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{sync::Arc, thread, time::Duration};

use bytes::Bytes;
use quarantine::{
    custody::{self, Actor, Draft, What},
    vault::{
        FolderVault, Key, Open, Put, S3Settings, S3Vault, Vault, VaultError,
        probe::{Finding, LockMode},
        s3::S3Credentials,
    },
};
use support::{noise, weed};
use vestigo_model::{Clock, SystemClock};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn keys(vault: &dyn Vault, prefix: &str, after: Option<&str>) -> Vec<String> {
    let mut found = Vec::new();
    vault
        .list(prefix, after, &mut |listed| {
            assert_eq!(vault.size(&listed.key).unwrap(), Some(listed.size));
            found.push(listed.key.to_string());
            Ok(())
        })
        .unwrap();
    found
}

fn conforms(vault: &Arc<dyn Vault>) {
    put_get_and_refusal(&**vault);
    listing(&**vault);
    one_of_many_writers_wins(vault);
    custody_of_many_writers_is_one_chain(vault);
}

fn put_get_and_refusal(vault: &dyn Vault) {
    let name = key("packs/vo/%2e.x/0193.pack");
    assert_eq!(vault.size(&name).unwrap(), None);
    assert!(matches!(vault.get(&name), Err(VaultError::NotFound(_))));
    assert!(matches!(vault.get_range(&name, 0, 1), Err(VaultError::NotFound(_))));
    let bytes = Bytes::from(noise(1, 3_000_000));
    assert_eq!(vault.put_new(&name, bytes.clone()).unwrap(), Put::Created);
    assert_eq!(vault.put_new(&name, Bytes::from_static(b"other")).unwrap(), Put::Exists);
    assert_eq!(vault.get(&name).unwrap(), bytes, "the second put changed nothing");
    assert!(vault.exists(&name).unwrap());
    assert_eq!(vault.get_range(&name, 1_000_000, 70_000).unwrap(), bytes.slice(1_000_000..1_070_000));
    assert_eq!(vault.get_range(&name, 2_999_999, 1).unwrap(), bytes.slice(2_999_999..));
    assert_eq!(vault.get_range(&name, 5, 0).unwrap().len(), 0);
    for (offset, len) in [(2_999_999, 2), (3_000_000, 1), (9_000_000, 10)] {
        let short = vault.get_range(&name, offset, len);
        assert!(matches!(short, Err(VaultError::TooShort { .. })), "{offset} {len}: {short:?}");
    }
    let empty = key("items/empty");
    assert_eq!(vault.put_new(&empty, Bytes::new()).unwrap(), Put::Created);
    assert_eq!(vault.get(&empty).unwrap().len(), 0);
    vault.keep_until(&name, SystemClock.now() + Duration::from_secs(1)).unwrap();
}

/// Keys of one folder come in order, and so do folders. That is all our layout needs, and more than that real servers do
/// not give: S3 sorts `a.b` before `a/x`, SeaweedFS the other way round.
fn listing(vault: &dyn Vault) {
    let names = ["l/a/x", "l/a/y/z", "l/b", "l/c/1", "l/c/2"];
    for name in names {
        vault.put_new(&key(name), Bytes::from_static(b"x")).unwrap();
    }
    assert_eq!(keys(vault, "l/", None), names);
    assert_eq!(keys(vault, "l/", Some("l/a/y/z")), ["l/b", "l/c/1", "l/c/2"]);
    assert_eq!(keys(vault, "l/", Some("l/a/yy")), ["l/b", "l/c/1", "l/c/2"]);
    assert_eq!(keys(vault, "l/", Some("l/bb")), ["l/c/1", "l/c/2"]);
    assert_eq!(keys(vault, "l/c/", Some("l/c/12")), ["l/c/2"]);
    assert_eq!(keys(vault, "l/c/", Some("l/c/1")), ["l/c/2"]);
    assert_eq!(keys(vault, "l/c", None), ["l/c/1", "l/c/2"]);
    assert_eq!(keys(vault, "none/", None), [""; 0]);
}

fn one_of_many_writers_wins(vault: &Arc<dyn Vault>) {
    let name = key("race/one");
    let puts: Vec<Put> = thread::scope(|scope| {
        let writers: Vec<_> = (0..6u8)
            .map(|n| {
                let name = &name;
                scope.spawn(move || vault.put_new(name, vec![n; 1000].into()).unwrap())
            })
            .collect();
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(puts.iter().filter(|put| **put == Put::Created).count(), 1, "{puts:?}");
    let winner = puts.iter().position(|put| *put == Put::Created).unwrap();
    assert_eq!(vault.get(&name).unwrap(), vec![u8::try_from(winner).unwrap(); 1000]);
}

fn custody_of_many_writers_is_one_chain(vault: &Arc<dyn Vault>) {
    let draft = Draft {
        what: What::Probed,
        item: None,
        who: Actor::current(),
        case: Some("C".into()),
        reason: None,
        detail: std::collections::BTreeMap::new(),
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..4).for_each(|_| drop(custody::append(&**vault, &draft, SystemClock.now()).unwrap())));
        }
    });
    assert_eq!(custody::check_chain(&**vault).unwrap(), 12);
}

#[test]
fn folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let vault: Arc<dyn Vault> = Arc::new(FolderVault::open(&dir.path().join("v"), Open::Create).unwrap());
    conforms(&vault);
    let caps = vault.probe().unwrap();
    assert!(caps.create_only);
    assert_eq!(caps.object_lock, Finding::NotOffered);
}

fn s3(weed: &weed::Weed, bucket: &str, prefix: &str, lock: LockMode) -> Arc<dyn Vault> {
    let settings = S3Settings {
        endpoint: Some(weed.endpoint()),
        credentials: S3Credentials {
            access_key: weed::ACCESS.into(),
            secret_key: weed::SECRET.into(),
            session_token: None,
        },
        lock,
        retention: Duration::from_secs(3600),
        ..S3Settings::default()
    };
    Arc::new(S3Vault::open(bucket, prefix, &settings).unwrap())
}

#[test]
fn s3_conforms() {
    let Some(weed) = weed::shared("s3_conforms") else { return };
    weed.bucket("conform", false);
    conforms(&s3(weed, "conform", "some/prefix", LockMode::Off));
    let caps = s3(weed, "conform", "", LockMode::Off).probe().unwrap();
    assert!(caps.create_only);
    assert_eq!((caps.checksum, caps.object_lock), (Finding::Works, Finding::NotOffered));
}

#[test]
fn s3_under_object_lock_conforms_and_the_lock_holds() {
    let Some(weed) = weed::shared("s3_under_object_lock") else { return };
    weed.bucket("locked", true);
    for lock in [LockMode::Governance, LockMode::Compliance] {
        let vault = s3(weed, "locked", lock.as_str(), lock);
        conforms(&vault);
        let caps = vault.probe().unwrap();
        assert_eq!((caps.create_only, &caps.checksum, &caps.object_lock), (true, &Finding::Works, &Finding::Works));
        vault.keep_until(&key("race/one"), SystemClock.now() + Duration::from_secs(7200)).unwrap();
    }
    let client = weed.client();
    weed::runtime().block_on(async {
        let object = "compliance/race/one";
        let head = client.head_object().bucket("locked").key(object).send().await.unwrap();
        let left = head.object_lock_retain_until_date().unwrap().secs() - SystemClock.now().as_nanos() / 1_000_000_000;
        assert!((7000..7300).contains(&left), "the retention was extended: {left}");
        let version = head.version_id().unwrap();
        let delete = client.delete_object().bucket("locked").key(object).version_id(version);
        assert!(delete.send().await.is_err(), "the lock holds");
    });
}
