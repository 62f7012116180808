//! Signed tasks and tokens against the tools that make them: OpenSSH's `ssh-keygen` and `openssl`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use ed25519_dalek::Signer as _;
use guest_agent::identity::{
    keys::{IssuerKeys, TokenKeys, Verified},
    signers::AllowedSigners,
    sshsig,
    task::{self, Asked, SignedTask, TaskError},
    token::{TokenFacts, TokenPolicy, check_payload_token},
    trust::{Decision, Evidence, TrustError, decide},
};
use proptest::prelude::*;
use vestigo_model::{Digest, Label, PilotId, Timestamp, Trust, User, Vo};

const PRINCIPAL: &str = "alice@https://iam.example/";
const ISSUER: &str = "https://iam.example/";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-11-22T12:00:00Z")
}

fn label(text: &str) -> Label {
    Label::new(text).unwrap()
}

fn user(subject: &str) -> User {
    User { issuer: label(ISSUER), subject: label(subject) }
}

fn command() -> Vec<OsString> {
    ["/work/run.sh", "-n", "5"].map(OsString::from).to_vec()
}

fn statement() -> String {
    let arguments = task::arguments(&command());
    let executable = Digest::of(b"program");
    format!(
        r#"{{"vestigo_task":1,"task":"t-1","vo":"atlas","user":{{"issuer":"{ISSUER}","subject":"alice"}},
        "executable":"{executable}","arguments":"{arguments}","audience":["CERN-PROD"],
        "not_before":"2026-11-22T11:00:00Z","expires":"2026-11-23T12:00:00Z",
        "nonce":"00112233445566778899aabbccddeeff","runs":1,"pilots":["grid-*"]}}"#
    )
}

/// A folder with keys.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new(program).args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn key(&self, name: &str, kind: &[&str]) -> String {
        self.run("ssh-keygen", &[&["-q", "-N", "", "-C", "a comment", "-f", name], kind].concat());
        fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap()
    }

    fn sign(&self, key: &str, namespace: &str, text: &str) -> Vec<u8> {
        fs::write(self.path("s.json"), text).unwrap();
        let _ = fs::remove_file(self.path("s.json.sig"));
        self.run("ssh-keygen", &["-q", "-Y", "sign", "-n", namespace, "-f", key, "s.json"]);
        fs::read(self.path("s.json.sig")).unwrap()
    }

    /// What OpenSSH itself says, at `now()`.
    fn openssh_accepts(&self, signers: &str, principal: &str, text: &[u8], signature: &[u8]) -> bool {
        fs::write(self.path("signers"), signers).unwrap();
        fs::write(self.path("m"), text).unwrap();
        fs::write(self.path("m.sig"), signature).unwrap();
        let arguments = ["-Y", "verify", "-O", "verify-time=20261122120000Z", "-n", sshsig::NAMESPACE, "-f", "signers"];
        let more = ["-I", principal, "-s", "m.sig"];
        let message = Stdio::from(File::open(self.path("m")).unwrap());
        let mut run = Command::new("ssh-keygen");
        run.args(arguments).args(more).current_dir(self.0.path()).stdin(message);
        run.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }
}

fn we_accept(signers: &str, principal: &str, text: &[u8], signature: &[u8]) -> bool {
    let Ok(signers) = AllowedSigners::parse(signers.as_bytes()) else { return false };
    let key = sshsig::verify(text, signature);
    key.is_ok_and(|key| signers.allow(principal, &key, sshsig::NAMESPACE, now()).is_ok())
}

fn verify_as(
    text: &str,
    signature: &[u8],
    signers: &AllowedSigners,
    change: impl FnOnce(&mut Asked<'_>, &mut Timestamp),
) -> Result<SignedTask, TaskError> {
    let (vo, pilot, command) = (Vo::new("atlas").unwrap(), PilotId::new("grid-7").unwrap(), command());
    let audience = [label("other"), label("CERN-PROD")];
    let mut asked = Asked { vo: &vo, user: None, pilot: &pilot, audience: &audience, command: &command };
    let mut time = now();
    change(&mut asked, &mut time);
    task::verify(text.as_bytes(), signature, signers, time, &asked)
}

fn trusted(line: &str) -> AllowedSigners {
    AllowedSigners::parse(format!("{PRINCIPAL} namespaces=\"task@vestigo\" {line}").as_bytes()).unwrap()
}

#[test]
fn every_accepted_kind_of_key_signs_a_task() {
    let desk = Desk::new();
    for (name, kind) in [
        ("ed", &["-t", "ed25519"][..]),
        ("p256", &["-t", "ecdsa", "-b", "256"]),
        ("p384", &["-t", "ecdsa", "-b", "384"]),
        ("rsa2", &["-t", "rsa", "-b", "2048"]),
        ("rsa4", &["-t", "rsa", "-b", "4096"]),
    ] {
        let public = desk.key(name, kind);
        let signature = desk.sign(name, sshsig::NAMESPACE, &statement());
        let task =
            verify_as(&statement(), &signature, &trusted(&public), |_, _| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((task.user(), task.principal(), task.line()), (&user("alice"), PRINCIPAL, 1));
        assert_eq!(task.digest(), Digest::of(statement().as_bytes()));
        let listed = String::from_utf8(desk.run("ssh-keygen", &["-l", "-f", name])).unwrap();
        assert!(listed.contains(task.fingerprint()), "{listed} {}", task.fingerprint());
        assert_eq!(task.permits(&Digest::of(b"program")), Ok(()));
        assert!(task.permits(&Digest::of(b"other")).unwrap_err().to_string().contains("not the signed one"));
        let changed = statement().replace("\"runs\":1", "\"runs\":2");
        let error = verify_as(&changed, &signature, &trusted(&public), |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("changed after signing"), "{name}: {error}");
    }
}

#[test]
fn keys_of_other_kinds_are_refused_by_name() {
    let desk = Desk::new();
    for (kind, said) in [(&["-t", "ecdsa", "-b", "521"][..], "nistp521"), (&["-t", "rsa", "-b", "1024"], "1024 bits")] {
        let public = desk.key(said.split(' ').next().unwrap(), kind);
        let signature = desk.sign(said.split(' ').next().unwrap(), sshsig::NAMESPACE, &statement());
        let signers = trusted(&public);
        assert!(signers.unusable()[0].1.contains(said), "{:?}", signers.unusable());
        let error = verify_as(&statement(), &signature, &signers, |_, _| ()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// What a security key with a touch makes, made in software: OpenSSH checks it too.
fn security_key(kind: &str, public: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) {
    let kind_frame = framed(kind.as_bytes());
    let blob = [kind_frame.as_slice(), public, &framed(b"ssh:")].concat();
    let named = [framed(b"task@vestigo"), framed(b""), framed(b"sha256")].concat();
    let inner = [b"SSHSIG".to_vec(), named.clone(), framed(&Digest::of(statement().as_bytes()).0)].concat();
    let trailer = [&[1][..], &9u32.to_be_bytes()].concat();
    let message = [&Digest::of(b"ssh:").0[..], &trailer, &Digest::of(&inner).0].concat();
    let made = [kind_frame, framed(&sign(&message)), trailer].concat();
    let whole = [b"SSHSIG".to_vec(), 1u32.to_be_bytes().to_vec(), framed(&blob), named, framed(&made)].concat();
    let text = Base64::encode_string(&whole);
    let lines: Vec<_> = text.as_bytes().chunks(70).map(|l| str::from_utf8(l).unwrap()).collect();
    let armored = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"));
    let public = format!("{kind} {}", Base64::encode_string(&blob));
    let signers = format!("{PRINCIPAL} {public}");
    assert!(Desk::new().openssh_accepts(&signers, PRINCIPAL, statement().as_bytes(), armored.as_bytes()));
    verify_as(&statement(), armored.as_bytes(), &trusted(&public), |_, _| ()).unwrap();
    let changed = statement().replace("atlas", "cms");
    assert!(verify_as(&changed, armored.as_bytes(), &trusted(&public), |_, _| ()).is_err());
}

#[test]
fn security_keys_sign_a_task() {
    let public = framed(ed().verifying_key().as_bytes());
    security_key("sk-ssh-ed25519@openssh.com", &public, |message| ed().sign(message).to_bytes().to_vec());
    let point = ec().verifying_key().to_encoded_point(false);
    let public = [framed(b"nistp256"), framed(point.as_bytes())].concat();
    security_key("sk-ecdsa-sha2-nistp256@openssh.com", &public, |message| {
        let signature: p256::ecdsa::Signature = p256::ecdsa::signature::Signer::sign(&ec(), message);
        let halves = signature.to_bytes();
        // A positive number has no leading one bit.
        let number = |half: &[u8]| framed(&if half[0] < 128 { half.to_vec() } else { [&[0], half].concat() });
        [number(&halves[..32]), number(&halves[32..])].concat()
    });
}

#[test]
fn whatever_differs_is_named() {
    let desk = Desk::new();
    let public = desk.key("k", &["-t", "ed25519"]);
    let (text, signers) = (statement(), trusted(&public));
    let signature = desk.sign("k", sshsig::NAMESPACE, &text);
    let said = |change: &dyn Fn(&mut Asked<'_>, &mut Timestamp)| {
        verify_as(&text, &signature, &signers, change).unwrap_err().to_string()
    };
    assert!(said(&|_, time| *time = at("2026-11-23T12:00:00Z")).contains("ended at 2026-11-23T12:00:00Z"));
    assert!(said(&|_, time| *time = at("2026-11-22T10:59:59Z")).contains("may not start before"));
    assert!(said(&|asked, _| asked.audience = &[]).contains("set audience"));
    let elsewhere = [label("RAL")];
    let error = verify_as(&text, &signature, &signers, |asked, _| {
        // Borrowed for the call only.
        asked.audience = Box::leak(Box::new(elsewhere.clone()));
    });
    assert_eq!(
        error.unwrap_err().to_string(),
        "the task was signed for CERN-PROD, this is RAL; sign it for this site as well"
    );
    let pilot: &PilotId = Box::leak(Box::new(PilotId::new("batch-1").unwrap()));
    assert!(said(&|asked, _| asked.pilot = pilot).contains("batch-1"));
    let vo: &Vo = Box::leak(Box::new(Vo::new("cms").unwrap()));
    assert!(said(&|asked, _| asked.vo = vo).contains("signed for VO atlas, asked for cms"));
    let bob: &User = Box::leak(Box::new(user("bob")));
    assert!(said(&|asked, _| asked.user = Some(bob)).contains("signed by alice (https://iam.example/), asked for bob"));
    for other in
        [&["/work/run.sh", "-n", "6"][..], &["/work/run.sh", "-n"], &["/work/run.sh", "-n5"], &["/work/ls", "-n", "5"]]
    {
        let other: &[OsString] = Box::leak(other.iter().map(OsString::from).collect::<Vec<_>>().into_boxed_slice());
        assert!(said(&|asked, _| asked.command = other).contains("arguments are not the signed ones"));
    }
    let same: &[OsString] = Box::leak(["./x/run.sh", "-n", "5"].map(OsString::from).to_vec().into_boxed_slice());
    verify_as(&text, &signature, &signers, |asked, _| asked.command = same).unwrap();
    // Another namespace, another key, a revoked key, a key of another user.
    let git = desk.sign("k", "git", &text);
    assert!(verify_as(&text, &git, &signers, |_, _| ()).unwrap_err().to_string().contains("namespace \"git\""));
    let mut revoked = signers.clone();
    revoked.revoke(public.as_bytes()).unwrap();
    assert!(verify_as(&text, &signature, &revoked, |_, _| ()).unwrap_err().to_string().contains("is revoked"));
    let bobs = AllowedSigners::parse(format!("bob@{ISSUER} {public}").as_bytes()).unwrap();
    assert!(
        verify_as(&text, &signature, &bobs, |_, _| ()).unwrap_err().to_string().contains("is not listed for alice@")
    );
    desk.key("stranger", &["-t", "ed25519"]);
    let strange = desk.sign("stranger", sshsig::NAMESPACE, &text);
    assert!(verify_as(&text, &strange, &signers, |_, _| ()).unwrap_err().to_string().contains("is not listed"));
}

#[test]
fn statements_that_say_more_or_less_are_refused() {
    let said = |from: &str, to: &str| {
        let changed = statement().replace(from, to);
        assert_ne!(changed, statement(), "{from}");
        task::parse(changed.as_bytes()).unwrap_err().to_string()
    };
    assert!(said("\"runs\":1", "\"runs\":1,\"only_on_mondays\":true").contains("unknown field `only_on_mondays`"));
    assert!(said("\"runs\":1", "\"runs\":1,\"runs\":2").contains("duplicate field `runs`"));
    assert!(said("\"subject\"", "\"group\":\"x\",\"subject\"").contains("unknown field `group`"));
    assert!(said("\"runs\":1,", "").contains("missing field `runs`"));
    assert!(
        said("\"runs\":1", "\"runs\":0").contains("1 to 10000")
            && said("\"runs\":1", "\"runs\":10001").contains("10001")
    );
    assert!(said("\"vestigo_task\":1", "\"vestigo_task\":2,\"later\":1").contains("version 2"));
    assert!(said("00112233445566778899aabbccddeeff", "0011").contains("nonce"));
    assert!(said("[\"CERN-PROD\"]", "[]").contains("audience is empty"));
    assert!(
        said("2026-11-23T12", "2026-12-23T12").contains("31 days")
            && said("2026-11-23T12", "2026-11-21T12").contains("not after")
    );
    assert_eq!(task::parse(&vec![b' '; task::MAX_STATEMENT + 1]), Err(TaskError::Size));
    let back = serde_json::to_vec(&task::parse(statement().as_bytes()).unwrap()).unwrap();
    assert_eq!(task::parse(&back), task::parse(statement().as_bytes()));
}

#[test]
fn we_and_ssh_keygen_agree() {
    let desk = Desk::new();
    let (mine, other) = (desk.key("k", &["-t", "ed25519"]), desk.key("o", &["-t", "ecdsa"]));
    let text = statement();
    let good = desk.sign("k", sshsig::NAMESPACE, &text);
    let git = desk.sign("k", "git", &text);
    let mut accepted = 0;
    let mut agree = |line: &str, principal: &str, text: &[u8], signature: &[u8]| {
        let theirs = desk.openssh_accepts(line, principal, text, signature);
        assert_eq!(we_accept(line, principal, text, signature), theirs, "{line} for {principal}");
        accepted += u32::from(theirs);
    };
    for (principals, options) in [
        (PRINCIPAL, ""),
        ("*", ""),
        ("bob,alice@*", "namespaces=\"task@vestigo\" "),
        ("\"bob,alice@https://iam.example/\"", "namespaces=\"git,task@*\" "),
        ("*,!alice@*", ""),
        ("!bob@x", ""),
        ("alice@https://iam.example", ""),
        ("alice@https://iam.example?", ""),
        ("Alice@*", ""),
        ("*", "namespaces=\"git\" "),
        ("*", "namespaces=\"*,!task@vestigo\" "),
        ("*", "NAMESPACES=\"task@vestigo\" "),
        ("*", "valid-after=\"20261122Z\" "),
        ("*", "valid-after=\"202611221201Z\" "),
        ("*", "valid-before=\"20261122115959Z\" "),
        ("*", "valid-after=\"20260101Z\",valid-before=\"20270101Z\",namespaces=\"task@vestigo\" "),
        ("*", "valid-after=\"20270101Z\",valid-before=\"20260101Z\" "),
        ("*", "cert-authority "),
        ("*", "nonsense "),
        ("*", "namespaces= "),
    ] {
        agree(&format!("# c\n\n{principals} {options}{mine}"), PRINCIPAL, text.as_bytes(), &good);
        agree(&format!("{principals} {options}{other}{principals} {options}{mine}"), PRINCIPAL, text.as_bytes(), &good);
    }
    agree(&format!("* {other}* namespaces=\"git\" {mine}* {mine}"), PRINCIPAL, text.as_bytes(), &good);
    agree(&format!("* {mine}"), PRINCIPAL, text.replace("atlas", "cms").as_bytes(), &good);
    agree(&format!("* {mine}"), PRINCIPAL, text.as_bytes(), &git);
    agree(
        &format!("* {mine}"),
        PRINCIPAL,
        text.as_bytes(),
        b"-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n",
    );
    let whole = String::from_utf8(good).unwrap();
    for (place, letter) in whole.char_indices().filter(|(place, _)| place % 17 == 0) {
        let other = if letter == 'A' { "B" } else { "A" };
        let damaged = format!("{}{other}{}", &whole[..place], &whole[place + letter.len_utf8()..]);
        agree(&format!("* {mine}"), PRINCIPAL, text.as_bytes(), damaged.as_bytes());
    }
    assert!(accepted >= 8, "{accepted}: the comparison must see both answers");
}

#[test]
fn the_example_of_the_documentation_works() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/signed-tasks.md")).unwrap();
    let script: Vec<_> = page.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
    assert!(script.len() >= 3, "the page has its example");
    let desk = Desk::new();
    let agent = Path::new(env!("CARGO_BIN_EXE_guest-agent")).parent().unwrap();
    let path = format!("{}:{}", agent.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-euc", &script.concat()]).current_dir(desk.0.path()).env("PATH", path).env("HOME", desk.0.path());
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("good: task analysis-7 of alice@https://iam.example/"), "{said}");
    let digest = said.lines().find_map(|l| l.strip_prefix("arguments  ")).unwrap();
    assert!(said.contains(&format!("{digest}  -")), "sha256sum says the same: {said}");
}

// Tokens.

fn part(text: &str) -> String {
    Base64UrlUnpadded::encode_string(text.as_bytes())
}

fn end() -> i64 {
    now().as_nanos() / 1_000_000_000 + 3600
}

fn body(subject: &str) -> String {
    let end = end();
    format!(
        r#"{{"iss":"{ISSUER}","sub":"{subject}","exp":{end},"jti":"j","scope":"storage.read:/","wlcg.ver":"1.0","wlcg.groups":["/atlas"],"aud":"x"}}"#
    )
}

fn ed() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[9; 32])
}

fn ec() -> p256::ecdsa::SigningKey {
    p256::ecdsa::SigningKey::from_slice(&[5; 32]).unwrap()
}

fn jws(header: &str, body: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let signed = format!("{}.{}", part(header), part(body));
    let signature = Base64UrlUnpadded::encode_string(&sign(signed.as_bytes()));
    format!("{signed}.{signature}").into_bytes()
}

fn ed_token(header: &str, body: &str) -> Vec<u8> {
    jws(header, body, |m| ed().sign(m).to_bytes().to_vec())
}

/// The public keys of an issuer, and the modulus of its RSA key.
fn issuer(desk: &Desk) -> (TokenKeys, String) {
    desk.run("openssl", &["genrsa", "-out", "rsa.pem", "2048"]);
    let modulus = String::from_utf8(desk.run("openssl", &["rsa", "-in", "rsa.pem", "-noout", "-modulus"])).unwrap();
    let hex = modulus.trim().strip_prefix("Modulus=").unwrap().to_owned();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
    let n = Base64UrlUnpadded::encode_string(&bytes);
    let x = Base64UrlUnpadded::encode_string(ed().verifying_key().as_bytes());
    let point = ec().verifying_key().to_encoded_point(false);
    let (px, py) =
        (Base64UrlUnpadded::encode_string(point.x().unwrap()), Base64UrlUnpadded::encode_string(point.y().unwrap()));
    let file = format!(
        r#"{{"issuer":"{ISSUER}","known_as":["atlas-iam"],"keys":[
        {{"kty":"RSA","kid":"r","alg":"RS256","use":"sig","n":"{n}","e":"AQAB","x5t":"ignored"}},
        {{"kty":"EC","kid":"p","crv":"P-256","x":"{px}","y":"{py}"}},
        {{"kty":"OKP","kid":"e","crv":"Ed25519","x":"{x}"}},
        {{"kty":"OKP","kid":"enc","use":"enc","crv":"Ed25519","x":"{x}"}},
        {{"kty":"EC","kid":"big","crv":"P-521","x":"AA","y":"AA"}}]}}"#
    );
    fs::create_dir(desk.path("keys")).unwrap();
    fs::write(desk.path("keys/iam.json"), &file).unwrap();
    fs::write(desk.path("keys/README"), "not a key file").unwrap();
    let keys = TokenKeys::read(&desk.path("keys")).unwrap();
    fs::write(desk.path("keys/again.json"), &file).unwrap();
    let twice = TokenKeys::read(&desk.path("keys")).unwrap_err().to_string();
    assert!(twice.contains("stands in two files") && twice.contains("iam.json"), "{twice}");
    (keys, n)
}

fn facts(token: &[u8], keys: &TokenKeys) -> TokenFacts {
    check_payload_token(token, &[], keys, TokenPolicy::default(), now()).unwrap()
}

fn unverified(token: &[u8], keys: &TokenKeys) -> String {
    match facts(token, keys).verified {
        Verified::No(why) => why,
        Verified::Yes => panic!("verified: {}", String::from_utf8_lossy(token)),
    }
}

#[test]
fn tokens_are_believed_by_the_key_and_its_own_algorithm_only() {
    let desk = Desk::new();
    let (keys, modulus) = issuer(&desk);
    let rs = |header: &str| {
        jws(header, &body("alice"), |message| {
            fs::write(desk.path("m"), message).unwrap();
            desk.run("openssl", &["dgst", "-sha256", "-sign", "rsa.pem", "m"])
        })
    };
    let es = |header: &str| {
        jws(header, &body("alice"), |m| {
            let signature: p256::ecdsa::Signature = p256::ecdsa::signature::Signer::sign(&ec(), m);
            signature.to_bytes().to_vec()
        })
    };
    let eds = |header: &str| ed_token(header, &body("alice"));
    let good = [
        rs(r#"{"alg":"RS256","kid":"r"}"#),
        rs(r#"{"alg":"RS256","typ":"at+jwt"}"#),
        es(r#"{"alg":"ES256","kid":"p"}"#),
        eds(r#"{"alg":"EdDSA","kid":"e"}"#),
        eds(r#"{"alg":"Ed25519","kid":"e"}"#),
    ];
    for token in &good {
        assert_eq!(facts(token, &keys).verified, Verified::Yes);
        let text = String::from_utf8(token.clone()).unwrap();
        let forged = text.replace(&part(&body("alice")), &part(&body("mallory")));
        assert!(unverified(forged.as_bytes(), &keys).contains("not by the key"));
    }
    let claims = facts(&good[0], &keys).claims.unwrap();
    assert_eq!(
        (claims.subject.as_str(), claims.groups[0].as_str(), claims.jti.as_deref()),
        ("alice", "/atlas", Some("j"))
    );
    // The right key under another name, and each algorithm with the wrong key.
    assert!(unverified(&eds(r#"{"alg":"EdDSA","kid":"x"}"#), &keys).contains("refresh the issuer's key file"));
    for header in [
        r#"{"alg":"EdDSA","kid":"enc"}"#,
        r#"{"alg":"RS256","kid":"e"}"#,
        r#"{"alg":"ES256","kid":"r"}"#,
        r#"{"alg":"RS512","kid":"r"}"#,
        r#"{"alg":"eddsa","kid":"e"}"#,
    ] {
        assert!(unverified(&eds(header), &keys).contains("no key of"), "{header}");
    }
    assert!(unverified(&eds(r#"{"alg":"EdDSA","kid":"e","crit":["x"]}"#), &keys).contains("crit"));
    // The classic: the public key as the secret of an HMAC; and no signature at all.
    let hmac = jws(r#"{"alg":"HS256","kid":"r"}"#, &body("alice"), |m| {
        Digest::of(&[modulus.as_bytes(), m].concat()).0.to_vec()
    });
    assert!(unverified(&hmac, &keys).contains("for HS256 and r"));
    for alg in ["none", "NONE", "nOnE"] {
        let token = jws(&format!(r#"{{"alg":"{alg}"}}"#), &body("alice"), |_| b"x".to_vec());
        let refused = check_payload_token(&token, &[], &keys, TokenPolicy::default(), now());
        assert!(refused.unwrap_err().to_string().contains("not signed"));
    }
    let strange = eds(r#"{"alg":"EdDSA"}"#);
    assert!(unverified(&strange, &TokenKeys::default()).contains("no keys of issuer https://iam.example/"));
}

#[test]
fn a_token_of_several_possible_keys_must_say_which() {
    let x = Base64UrlUnpadded::encode_string(ed().verifying_key().as_bytes());
    let two = format!(
        r#"{{"issuer":"{ISSUER}","keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}"}},{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}]}}"#
    );
    let mut keys = TokenKeys::default();
    keys.add(IssuerKeys::parse(two.as_bytes()).unwrap()).unwrap();
    assert!(unverified(&ed_token(r#"{"alg":"EdDSA"}"#, &body("alice")), &keys).contains("which of several"));
}

#[test]
fn trust_is_what_the_evidence_bears_and_never_a_mixture() {
    let desk = Desk::new();
    let (keys, _) = issuer(&desk);
    let public = desk.key("k", &["-t", "ed25519"]);
    let signature = desk.sign("k", sshsig::NAMESPACE, &statement());
    let task = verify_as(&statement(), &signature, &trusted(&public), |_, _| ()).unwrap();
    let header = r#"{"alg":"EdDSA","kid":"e"}"#;
    let (alices, bobs) =
        (facts(&ed_token(header, &body("alice")), &keys), facts(&ed_token(header, &body("bob")), &keys));
    let unknown = facts(&ed_token(r#"{"alg":"EdDSA","kid":"?"}"#, &body("alice")), &keys);
    let (alice, bob) = (user("alice"), user("bob"));
    let alias = User { issuer: label("atlas-iam"), subject: label("alice") };
    let ask = |named, task, token, wanted| decide(&Evidence { named, task, token, wanted }, &keys);
    let is = |decision: Result<Decision, TrustError>, trust, user: &User| {
        let decision = decision.unwrap();
        assert_eq!((decision.trust, &decision.user), (trust, user), "{}", decision.why);
    };
    let (signed, by_token, by_vo) = (Trust::SignedByUser, Trust::AssertedByToken, Trust::AssertedByVo);
    is(ask(None, Some(&task), None, None), signed, &alice);
    is(ask(Some(&alias), Some(&task), Some(&alices), Some(signed)), signed, &alice);
    is(ask(Some(&alice), None, Some(&alices), None), by_token, &alice);
    is(ask(Some(&alias), None, Some(&alices), Some(by_token)), by_token, &alice);
    is(ask(None, None, Some(&bobs), None), by_token, &bob);
    is(ask(Some(&alice), None, Some(&alices), Some(by_vo)), by_vo, &alice);
    is(ask(Some(&alice), None, Some(&bobs), None), by_vo, &alice);
    is(ask(Some(&alice), None, Some(&unknown), None), by_vo, &alice);
    is(ask(Some(&alice), None, None, None), by_vo, &alice);
    for refused in [
        ask(Some(&bob), Some(&task), None, None),
        ask(None, Some(&task), Some(&bobs), None),
        ask(Some(&alice), None, Some(&bobs), Some(by_token)),
    ] {
        assert!(matches!(refused, Err(TrustError::Differ { .. })), "{refused:?}");
    }
    for (named, token, wanted) in [
        (Some(&alice), None, signed),
        (Some(&alice), None, by_token),
        (Some(&alice), Some(&unknown), by_token),
        (None, Some(&unknown), by_token),
    ] {
        assert!(matches!(ask(named, None, token, Some(wanted)), Err(TrustError::Missing { .. })));
    }
    assert_eq!(ask(None, Some(&task), None, Some(by_vo)), Err(TrustError::Weaker(by_vo)));
    assert_eq!(ask(None, None, Some(&unknown), None), Err(TrustError::Nobody));
    assert_eq!(ask(None, None, Some(&alices), Some(by_vo)), Err(TrustError::Nobody));
    assert_eq!(ask(None, None, None, None), Err(TrustError::Nobody));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = task::parse(&bytes);
        let _ = sshsig::verify(b"m", &bytes);
        let armored = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n",
            Base64::encode_string(&[b"SSHSIG\0\0\0\x01", bytes.as_slice()].concat()));
        let _ = sshsig::verify(b"m", armored.as_bytes());
    }

    #[test]
    fn arguments_are_framed(one in prop::collection::vec("[a-c]{0,3}", 0..4), two in prop::collection::vec("[a-c]{0,3}", 0..4)) {
        let digest = |words: &[String]| {
            let command: Vec<OsString> = std::iter::once("run").chain(words.iter().map(String::as_str)).map(Into::into).collect();
            task::arguments(&command)
        };
        prop_assert_eq!(digest(&one) == digest(&two), one == two);
    }
}
