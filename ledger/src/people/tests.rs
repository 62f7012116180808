#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use proptest::prelude::*;
use vestigo_model::{
    Digest, Event, EventKind, Fact, FactRecord, Holder, HostId, Label, LinkPosition, Payload, PayloadClaim, PayloadId,
    PilotId, TimeRange, Timestamp, Trust, User, Vo,
};

use super::{keys::SearchKey, withhold::same_claim, *};
use crate::reader::Facts;

fn user(subject: &str) -> User {
    User { issuer: Label::new("https://iss.example").unwrap(), subject: Label::new(subject).unwrap() }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn vo(name: &str) -> Vo {
    Vo::new(name).unwrap()
}

fn period(text: &str) -> Period {
    text.parse().unwrap()
}

fn payload(subject: &str, command: &[&str]) -> FactRecord {
    let received = time("2026-11-22T14:00:00Z");
    let claim = PayloadClaim {
        uid: "a0000000-0000-4000-8000-000000000001".parse().unwrap(),
        holder: Holder::Payload,
        pilot: PilotId::new("pilot-1").unwrap(),
        payload: PayloadId::new("job-1").unwrap(),
        user: user(subject),
        vo: vo("atlas"),
        trust: Trust::AssertedByVo,
        task: None,
        token: None,
        access: None,
        executable: None,
        interpreter: None,
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        leases: Vec::new(),
        isolation: BTreeMap::new(),
        withheld: None,
    };
    let host = HostId::new("hv1").unwrap();
    let domain = "d0000000-0000-4000-8000-000000000001".parse().unwrap();
    let boot = "b0000000-0000-4000-8000-000000000001".parse().unwrap();
    let link = Some(LinkPosition { domain, boot, seq: 7, digest: Digest::of(b"the guest's line, with its names") });
    let fact = Fact::Payload(Payload { host, domain, received, claimed: received, claim, end: None });
    FactRecord { recorded: received, fact, link }
}

fn refused(subject: &str) -> FactRecord {
    let detail = [
        ("run", "a0000000-0000-4000-8000-000000000002"),
        ("user-issuer", "https://iss.example"),
        ("user-subject", subject),
        ("caller", "uid 1000 gid 1000 pid 77"),
        ("code", "203"),
        ("reason", "alice signed nothing"),
    ];
    let detail = detail.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
    let domain = Some("d0000000-0000-4000-8000-000000000001".parse().unwrap());
    let (time, what) = (time("2026-11-22T14:00:05Z"), EventKind::PayloadRefused);
    let fact = Fact::Event(Event { host: HostId::new("hv1").unwrap(), domain, time, what, detail });
    FactRecord { recorded: time, fact, link: None }
}

fn claim(record: &FactRecord) -> &PayloadClaim {
    let Fact::Payload(payload) = &record.fact else { panic!("no payload") };
    &payload.claim
}

fn november(owner: Owner) -> SecretSet {
    SecretSet::generate(owner, period("2026-11"))
}

fn facts(records: &[FactRecord]) -> Facts {
    let mut facts = Facts::default();
    for record in records {
        match &record.fact {
            Fact::Payload(payload) => facts.payloads.push(payload.clone()),
            Fact::Event(event) => facts.events.push(event.clone()),
            _ => {}
        }
    }
    facts
}

fn reveal(keyring: &Keyring, records: &[FactRecord], rows: &[PersonRow]) -> Facts {
    let mut facts = facts(records);
    keyring.reveal(&mut facts, |_| Ok::<_, std::convert::Infallible>(rows.to_vec())).unwrap();
    facts
}

/// As anybody can compute it: `base64.b32encode(hmac.new(key, issuer + b"\0" + subject, "sha256").digest()[:16])`.
#[test]
fn a_pseudonym_is_the_documented_one() {
    let search = SearchKey(std::array::from_fn(|i| u8::try_from(i).unwrap()));
    let pseudonym = search.pseudonym(&Owner::Vo(vo("atlas")), period("2026-11"), &user("alice"));
    assert_eq!(pseudonym.as_str(), "p1.atlas.2026-11.v35poqxdth5atwmarmv4iwykgi");
    assert_ne!(pseudonym, search.pseudonym(&Owner::Vo(vo("atlas")), period("2026-11"), &user("alic")));
}

#[test]
fn months_go_on_over_the_year() {
    let months: Vec<String> = period("2026-11").months(3).map(String::from).collect();
    assert_eq!(months, ["2026-11", "2026-12", "2027-01"]);
    assert_eq!(Period::of(time("2026-11-30T23:59:59.999999999Z")), period("2026-11"));
    for wrong in ["2026-13", "2026-00", "2026-1", "26-11", "2026-11-01", "2026", "+026-11", "", "é"] {
        assert!(wrong.parse::<Period>().is_err(), "{wrong}");
    }
    assert_eq!("@site".parse::<Owner>(), Ok(Owner::Site));
    assert!("../x".parse::<Owner>().is_err() && "*".parse::<Owner>().is_err());
}

#[test]
fn the_vo_reads_its_own_users_and_no_others() {
    let (atlas, cms) = (november(Owner::Vo(vo("atlas"))), november(Owner::Vo(vo("cms"))));
    let sealer = Sealer::new(vec![atlas.shared.clone(), cms.shared.clone()], None);
    let (clear, mut ours, mut theirs) =
        (payload("alice", &["./a"]), payload("alice", &["./a"]), payload("bob", &["./b"]));
    let rows = [
        sealer.withhold(&mut ours, Some(&vo("atlas")), false).unwrap().unwrap(),
        sealer.withhold(&mut theirs, Some(&vo("cms")), false).unwrap().unwrap(),
    ];
    let mut keyring = Keyring::default();
    keyring.add(atlas);
    assert_eq!(reveal(&keyring, &[ours.clone()], &rows).payloads, facts(&[clear]).payloads);
    let told = reveal(&keyring, &[theirs.clone()], &rows);
    assert_eq!(told.payloads, facts(&[theirs.clone()]).payloads);
    assert!(claim(&theirs).user.subject.as_str().starts_with("p1.cms.2026-11."));
    assert!(keyring.unseal(&rows[1]).is_none());
    // Nor does the wrong row answer for a record, even where its key is there.
    let mut other = payload("carol", &["./a"]);
    sealer.withhold(&mut other, Some(&vo("atlas")), true).unwrap();
    assert_eq!(reveal(&keyring, &[other.clone()], &rows).payloads, facts(&[other]).payloads);
}

#[test]
fn a_refused_start_names_nobody_either() {
    let site = november(Owner::Site);
    let sealer = Sealer::new(vec![site.shared.clone()], None);
    let mut stored = refused("alice");
    let row = sealer.withhold(&mut stored, None, false).unwrap().unwrap();
    let text = serde_json::to_string(&stored).unwrap();
    assert!(!text.contains("alice") && !text.contains("1000") && text.contains("203"), "{text}");
    let mut keyring = Keyring::default();
    keyring.add(site);
    assert_eq!(reveal(&keyring, &[stored], &[row]).events, facts(&[refused("alice")]).events);
}

#[test]
fn copies_agree_and_other_claims_do_not() {
    let (atlas, site) = (november(Owner::Vo(vo("atlas"))), november(Owner::Site));
    let sealer = Sealer::new(vec![atlas.shared, site.shared], None);
    let stored = |subject, command: &[&str], of: Option<&str>| {
        let mut record = payload(subject, command);
        sealer.withhold(&mut record, of.map(vo).as_ref(), true).unwrap();
        record
    };
    let first = stored("alice", &["./a", "x"], Some("atlas"));
    let same = |other: &FactRecord| same_claim(claim(&first), claim(other));
    assert!(same(&stored("alice", &["./a", "x"], Some("atlas"))));
    // The command alone differs: the mark says so.
    assert!(!same(&stored("alice", &["./a", "y"], Some("atlas"))));
    assert!(!same(&stored("bob", &["./a", "x"], Some("atlas"))));
    // Still in the log, or under the keys of a VO that was mapped later: nothing to compare but the rest.
    assert!(same(&payload("alice", &["./a", "x"])) && same(&stored("alice", &["./a", "x"], None)));
    let mut other = payload("alice", &["./a", "x"]);
    let Fact::Payload(payload) = &mut other.fact else { panic!("no payload") };
    payload.claim.pilot = PilotId::new("pilot-2").unwrap();
    assert!(!same(&other));
}

#[test]
fn a_search_key_finds_a_known_user_and_reads_nothing() {
    let site = november(Owner::Site);
    let sealer = Sealer::new(vec![site.shared.clone()], None);
    let mut stored = payload("alice", &["./a"]);
    let row = sealer.withhold(&mut stored, Some(&vo("atlas")), false).unwrap().unwrap();
    let mut keyring = Keyring::default();
    keyring.add_search(site.shared);
    let of = |subject, to| {
        let (user, range) = (user(subject), TimeRange { from: time("2026-11-25T00:00:00Z"), to: time(to) });
        keyring.pseudonyms(&user.issuer, &user.subject, Some(&vo("atlas")), range)
    };
    assert!(of("alice", "2027-02-01T00:00:00Z").contains(&claim(&stored).user.subject));
    assert!(!of("bob", "2027-02-01T00:00:00Z").contains(&claim(&stored).user.subject));
    assert!(of("alice", "2026-10-31T00:00:00Z").is_empty());
    assert!(!keyring.opens() && keyring.unseal(&row).is_none());
}

#[test]
fn keys_are_kept_in_files_and_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let set = november(Owner::Vo(vo("ops.example.org")));
    let path = write_secret(&keys, &set).unwrap();
    assert_eq!(path, keys.join("ops.example.org.2026-11.key.json"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(read_secret(&path).unwrap().shared, set.shared);
    let again = write_secret(&keys, &november(Owner::Vo(vo("ops.example.org"))));
    assert!(matches!(again, Err(KeyError::Exists { .. })));
    assert_eq!(read_secret(&path).unwrap().shared, set.shared);
    let public = keys.join(PUBLIC_NAME);
    write_public(&public, std::slice::from_ref(&set.shared)).unwrap();
    assert_eq!(fs::metadata(&public).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(read_public(&public).unwrap(), std::slice::from_ref(&set.shared));
    let keyring = Keyring::open(std::slice::from_ref(&keys)).unwrap();
    assert_eq!(keyring.sets().collect::<Vec<_>>(), [(&set.shared, true)]);
    destroy_secret(&path).unwrap();
    assert!(!path.exists() && !Keyring::open(&[keys]).unwrap().opens());
}

#[test]
fn files_that_are_no_keys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_secret(folder.path(), &november(Owner::Site)).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let other: serde_json::Value = serde_json::from_slice(
        &fs::read(write_secret(folder.path(), &SecretSet::generate(Owner::Site, period("2026-12"))).unwrap()).unwrap(),
    )
    .unwrap();
    let swap = |name: &str, value: serde_json::Value| {
        let mut file: serde_json::Value = serde_json::from_str(&good).unwrap();
        file[name] = value;
        fs::write(&path, file.to_string()).unwrap();
        read_secret(&path).map(|set| set.shared.period)
    };
    assert_eq!(swap("format", "vestigo-people-key".into()).unwrap(), period("2026-11"));
    assert!(matches!(swap("version", 2.into()), Err(KeyError::Content { .. })));
    assert!(matches!(swap("secret", other["secret"].clone()), Err(KeyError::Content { .. })));
    assert!(matches!(swap("search", "AAAA".into()), Err(KeyError::Content { .. })));
    assert!(matches!(swap("owner", "../up".into()), Err(KeyError::Malformed { .. })));
    fs::write(&path, vec![b' '; (4 << 20) + 1]).unwrap();
    assert!(matches!(read_secret(&path), Err(KeyError::Content { .. })));
    assert!(Keyring::open(&[folder.path().join("nothing-there")]).is_err());
    assert!(Keyring::open_where_readable(&[folder.path().join("nothing-there")]).unwrap().is_empty());
}

#[test]
fn a_host_without_keys_makes_its_own_and_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("people");
    let stored = |sealer: &Sealer| {
        let mut record = payload("alice", &["./a"]);
        let row = sealer.withhold(&mut record, Some(&vo("atlas")), false).unwrap().unwrap();
        (record, row)
    };
    let (first, row) = stored(&Sealer::new(Vec::new(), Some(keys.clone())));
    let (second, _) = stored(&Sealer::new(Vec::new(), Some(keys.clone())));
    assert_eq!(claim(&first), claim(&second), "a restarted hostd uses the same keys");
    let keyring = Keyring::open(&[keys]).unwrap();
    assert_eq!(keyring.unseal(&row).unwrap().user, user("alice"));
    // Keys of the site that have run out are no reason to store names.
    let october = SecretSet::generate(Owner::Site, period("2026-10")).shared;
    let none = Sealer::new(vec![october.clone()], None).withhold(&mut payload("alice", &[]), None, false);
    assert!(matches!(none, Err(KeyError::NoKey { .. })));
    assert_eq!(
        Sealer::new(vec![october.clone()], None).lasts_until(time("2026-10-05T00:00:00Z")),
        Some(october.period)
    );
    assert_eq!(Sealer::new(vec![october], None).lasts_until(time("2026-11-05T00:00:00Z")), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is stored holds no name, and what is sealed gives back all of it.
    #[test]
    fn nothing_personal_stays_and_nothing_is_lost(
        subject in "zz[a-z]{6,20}", words in proptest::collection::vec("qq[a-z]{6,20}", 0..5), known: bool
    ) {
        let set = november(if known { Owner::Vo(vo("atlas")) } else { Owner::Site });
        let sealer = Sealer::new(vec![set.shared.clone()], None);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let clear = payload(&subject, &words);
        let mut stored = clear.clone();
        let row = sealer.withhold(&mut stored, Some(&vo("atlas")), false).unwrap().unwrap();
        let text = serde_json::to_string(&stored).unwrap();
        let digest = clear.link.as_ref().unwrap().digest.to_string();
        for personal in words.iter().copied().chain([subject.as_str(), "iss.example", digest.as_str()]) {
            prop_assert!(!text.contains(personal), "{personal} in {text}");
            prop_assert!(!row.sealed.windows(personal.len()).any(|bytes| bytes == personal.as_bytes()));
        }
        let mut keyring = Keyring::default();
        keyring.add(set);
        prop_assert_eq!(reveal(&keyring, &[stored], &[row]).payloads, facts(&[clear]).payloads);
    }

    #[test]
    fn no_bytes_make_a_key_panic(sealed: Vec<u8>) {
        let set = november(Owner::Site);
        let mut keyring = Keyring::default();
        let row = PersonRow {
            pseudonym: Label::new("p1").unwrap(), vo: None, period: set.shared.period, host: HostId::new("hv1").unwrap(),
            domain: None, payload: None, key: set.shared.id(), sealed,
        };
        keyring.add(set);
        prop_assert!(keyring.unseal(&row).is_none());
    }
}
