//! A signed task as a pilot hands it in. The first byte says which of its files the rest is: statement, signature, or the site's list of
//! signers (which an administrator writes, often out of what users send).
#![no_main]

use guest_agent::identity::{
    signers::{AllowedSigners, MAX_FILE},
    sshsig::{self, NAMESPACE},
    task::{self, MAX_ENTRIES, MAX_LIFE, MAX_RUNS},
};
use vestigo_model::Timestamp;

/// What the seeds' signatures are over, and one of them.
const MESSAGE: &[u8] = b"{}\n";
const SIGNATURE: &[u8] = include_bytes!("../corpus/signed_task.sig");
/// All of them, a key of each kind; behind the byte that says what they are.
const SEEDS: [&[u8]; 3] = [
    include_bytes!("../corpus/signed_task/ecdsa"),
    include_bytes!("../corpus/signed_task/ed25519"),
    include_bytes!("../corpus/signed_task/rsa"),
];

/// A sentence for a person: short, one line, without what a terminal would obey.
fn sentence(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 2048, "a sentence of {} bytes", text.len());
    assert!(!text.contains(char::is_control), "control characters in {text:?}");
}

fn statement(data: &[u8]) {
    let read = match task::parse(data) {
        Ok(read) => read,
        Err(error) => return sentence(&error),
    };
    assert!((1..=MAX_RUNS).contains(&read.runs) && !read.audience.is_empty());
    assert!([read.inputs.len(), read.audience.len(), read.pilots.len()].iter().all(|n| *n <= MAX_ENTRIES));
    assert!(read.not_before < read.expires && read.expires.since(read.not_before) <= MAX_LIFE);
    assert!((32..=128).contains(&read.nonce.as_str().len()));
    let written = serde_json::to_vec(&read).expect("a statement can be written");
    assert_eq!(task::parse(&written).expect("what was written can be read"), read);
}

fn signature(data: &[u8]) {
    if let Err(error) = sshsig::read(data) {
        sentence(&error);
        assert!(sshsig::verify(MESSAGE, data).is_err(), "what cannot be read does not hold");
        return;
    }
    assert!(sshsig::verify(b"{} \n", data).is_err(), "nobody signed this");
    match sshsig::verify(MESSAGE, data) {
        Ok(key) => {
            let mut signed = SEEDS.iter().map(|seed| sshsig::verify(MESSAGE, &seed[1..]).expect("the seed holds"));
            assert!(signed.any(|by| by == key), "nobody signed with {key:?}");
        }
        Err(error) => sentence(&error),
    }
}

fn signers(data: &[u8]) {
    let key = sshsig::verify(MESSAGE, SIGNATURE).expect("the seed holds");
    let file = match AllowedSigners::parse(data) {
        Ok(file) => file,
        Err(error) => return sentence(&error),
    };
    assert!(data.len() <= MAX_FILE && file.signers().len() + file.unusable().len() <= data.len());
    for (_, why) in file.unusable() {
        assert!(!why.contains(char::is_control), "{why:?}");
    }
    let now = Timestamp::from_nanos(1_790_000_000_000_000_000);
    if let Ok(line) = file.allow("ann@https://iam.example", &key, NAMESPACE, now) {
        assert!(line >= 1 && file.signers().iter().any(|signer| signer.key == key), "only listed keys");
        let mut file = file.clone();
        let own = ssh_key::PublicKey::from(key.clone()).to_openssh().expect("a key can be written");
        file.revoke(own.as_bytes()).expect("a key can be revoked");
        assert!(file.allow("ann@https://iam.example", &key, NAMESPACE, now).is_err(), "a revoked key signs nothing");
    }
    // What it writes of a line is the line again.
    for signer in file.signers() {
        let whole = |time: Option<Timestamp>| time.is_none_or(|time| time.as_nanos() % 1_000_000_000 == 0);
        if whole(signer.valid_after) && whole(signer.valid_before) {
            let again = AllowedSigners::parse(signer.to_string().as_bytes()).expect("what was written can be read");
            assert_eq!(again.signers(), [signer]);
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((b'1', rest)) => signature(rest),
        Some((b'2', rest)) => signers(rest),
        Some((_, rest)) => statement(rest),
        None => {}
    }
});
