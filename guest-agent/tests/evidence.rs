//! Who stands behind a payload, and what the hypervisor hears of it: signed tasks, tokens, scripts, refusals, the VM's own leases,
//! against a real daemon. Needs root, `nft`, `ssh-keygen` and `setpriv`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    fs,
    os::unix::{net::UnixStream, process::CommandExt},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use base64ct::{Base64UrlUnpadded, Encoding};
use common::{Host, World, agent, file_of, processes, text, wait_for};
use guest_agent::{protocol::Reply, wire::Channel};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vestigo_model::{
    Ban, Clock, Digest, Exit, Holder, Label, Lease, RuleState, Scope, SystemClock, Trust, link::Claim,
};

const PILOT: u32 = 1000;
const ISSUER: &str = "https://iam.example";

/// What users and the VO keep: keys, statements, trust files.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(desk.0.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        desk.tool("ssh-keygen", &["-q", "-N", "", "-t", "ed25519", "-C", "alice", "-f", "key"]);
        desk.write("signers", &desk.signers());
        desk.write("revoked", "");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }

    fn public(&self) -> String {
        fs::read_to_string(self.path("key.pub")).unwrap()
    }

    fn signers(&self) -> String {
        format!("alice@{ISSUER} namespaces=\"task@vestigo\" {}", self.public())
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
        text(&output)
    }

    /// A statement of alice's over this command, signed; its program lies here.
    fn task(&self, name: &str, executable: &str, command: &[&str]) -> String {
        let mut statement = agent();
        statement.args(["task", "statement", "--task", "t-1", "--vo", "atlas", "--audience", "SITE"]);
        statement.args(["--user-issuer", ISSUER, "--user-subject", "alice", "--executable", executable, "-o"]);
        let output = statement.arg(self.path(name)).arg("--").args(command).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        self.sign(name)
    }

    fn sign(&self, name: &str) -> String {
        let _ = fs::remove_file(self.path(&format!("{name}.sig")));
        self.tool("ssh-keygen", &["-q", "-Y", "sign", "-n", "task@vestigo", "-f", "key", name]);
        for file in [name.to_owned(), format!("{name}.sig")] {
            fs::set_permissions(self.path(&file), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        }
        self.path(name).display().to_string()
    }

    fn config(&self) -> String {
        format!(
            "audience = [\"SITE\"]\nallowed_signers = \"{}\"\nrevoked_keys = \"{}\"\n",
            self.path("signers").display(),
            self.path("revoked").display()
        )
    }
}

/// As [`World::exec_with`], without a user's name.
fn nameless(world: &World, options: &[&str], command: &[&str]) -> Command {
    let mut exec = agent();
    exec.args(["exec", "--payload-id", "job-1", "--vo", "atlas", "--socket"]).arg(world.path("run/agent.sock"));
    exec.args(options).arg("--").args(command).uid(PILOT).gid(PILOT);
    exec
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), text(output))
}

#[test]
fn a_signed_task_runs_as_its_user_signed_it_and_in_no_other_way() {
    let desk = Desk::new();
    let world = World::start(&desk.config());
    let host = world.host();
    let run = |options: &[&str], command: &[&str]| said(&nameless(&world, options, command).output().unwrap());
    let command = ["/bin/echo", "-n", "signed"];
    let task = desk.task("task.json", "/bin/echo", &command);
    assert_eq!(run(&["--task", &task], &command), (Some(0), "signed".into()));
    let start = host.starts().pop().unwrap();
    assert_eq!(
        (start.trust, start.user.issuer.as_str(), start.user.subject.as_str()),
        (Trust::SignedByUser, ISSUER, "alice")
    );
    let mark = start.task.unwrap();
    assert_eq!((mark.id.as_str(), mark.runs), ("t-1", 1));
    assert_eq!(mark.statement, Digest::of(&fs::read(desk.path("task.json")).unwrap()));
    let statement: serde_json::Value = serde_json::from_slice(&fs::read(desk.path("task.json")).unwrap()).unwrap();
    assert_eq!(mark.nonce.as_str(), statement["nonce"]);
    assert_eq!(serde_json::to_value(mark.expires).unwrap(), statement["expires"]);
    assert!(desk.tool("ssh-keygen", &["-l", "-f", "key.pub"]).contains(mark.key.as_str()), "{}", mark.key);
    // The name beside it may be the user's own only.
    let named = |user| ["--task", &task, "--user-issuer", ISSUER, "--user-subject", user].map(str::to_owned);
    for (user, code) in [("alice", 0), ("bob", 203)] {
        let options = named(user);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let (got, words) = run(&options, &command);
        assert!(got == Some(code) && (code == 0 || words.contains("the task was signed by")), "{words}");
    }
    let before = host.starts().len();
    let refuses = |options: &[&str], command: &[&str], sentence: &str| {
        let (code, words) = run(&[&["--task", &task], options].concat(), command);
        assert!(code == Some(203) && words.contains(sentence), "{options:?} {command:?}: {words}");
        wait_for("the word of it", || {
            host.refused().iter().any(|r| r.code == 203 && r.reason.as_str().contains(&sentence[..20]))
        });
    };
    refuses(&[], &["/bin/echo", "-n", "other"], "the arguments are not the signed ones");
    refuses(&[], &["/bin/echo", "-n", "signed", "x"], "the arguments are not the signed ones");
    refuses(&[], &["/bin/echo", "-nsigned"], "the arguments are not the signed ones");
    for variable in
        ["LD_PRELOAD=/work/x.so", "LD_LIBRARY_PATH=/work", "LD_ANYTHING=1", "BASH_ENV=/work/rc", "PYTHONPATH=/work"]
    {
        refuses(&["--env", variable], &command, "can make another program of a task");
    }
    let own = world.folder_of(PILOT, "own", 0o700);
    for target in ["/usr/lib", "/lib64", "/etc/ld.so.cache", "/bin"] {
        refuses(&["--ro-bind", &format!("{}:{target}", own.display())], &command, "can make another program of a task");
        refuses(&["--tmpfs", target], &command, "can make another program of a task");
    }
    refuses(&["--trust", "asserted-by-vo"], &command, "a signed task was given and trust");
    assert_eq!(host.starts().len(), before, "nothing of these was recorded as started");
    assert_eq!(run(&["--task", &task, "--env", "LC_ALL=C"], &command).0, Some(0));

    // The same command, but the file at its place is another.
    file_of(PILOT, &own.join("prog"), 0o755, fs::read("/bin/echo").unwrap());
    let command = ["./prog", "x"];
    let task = desk.task("prog.json", own.join("prog").to_str().unwrap(), &command);
    let options = ["--task", &task, "--work", own.to_str().unwrap()];
    assert_eq!(run(&options, &command), (Some(0), "x\n".into()));
    file_of(PILOT, &own.join("prog"), 0o755, fs::read("/bin/printf").unwrap());
    let (code, words) = run(&options, &command);
    assert!(code == Some(203) && words.contains("the program is not the signed one"), "{words}");

    // Expired, for another site, signed by nobody known, changed afterwards.
    let change = |name: &str, key: &str, value: &str| {
        let mut statement: serde_json::Value =
            serde_json::from_slice(&fs::read(desk.path("task.json")).unwrap()).unwrap();
        statement[key] = serde_json::from_str(value).unwrap();
        if key == "expires" {
            statement["not_before"] = "2020-01-01T00:00:00Z".into();
        }
        desk.write(name, &statement.to_string());
        desk.sign(name)
    };
    let command = ["/bin/echo", "-n", "signed"];
    for (key, value, sentence) in [
        ("expires", "\"2020-01-02T00:00:00Z\"", "the task's signature ended at 2020-01-02"),
        ("audience", "[\"ELSEWHERE\"]", "the task was signed for ELSEWHERE, this is SITE"),
        ("pilots", "[\"grid-*\"]", "the task may not be started by pilot uid:1000"),
        ("vo", "\"cms\"", "the task was signed for VO cms"),
        ("user", r#"{"issuer":"https://iam.example","subject":"bob"}"#, "is not listed for bob@https://iam.example"),
        ("runs", "0", "the task statement is not usable"),
        ("more", "1", "the task statement cannot be read"),
    ] {
        let (code, words) = run(&["--task", &change("changed.json", key, value)], &command);
        assert!(code == Some(203) && words.contains(sentence), "{key}: {words}");
    }
    let task = change("changed.json", "runs", "7");
    let text = fs::read_to_string(&task).unwrap();
    desk.write("changed.json", &text.replace("\"runs\":7", "\"runs\":8"));
    let (code, words) = run(&["--task", &task], &command);
    assert!(code == Some(203) && !words.is_empty(), "{words}");
    let (code, words) =
        run(&["--trust", "signed-by-user", "--user-issuer", ISSUER, "--user-subject", "alice"], &command);
    assert!(code == Some(203) && words.contains("no signed task was given"), "{words}");
    let (code, words) = run(&[], &command);
    assert!(code == Some(201) && words.contains("nobody says whose payload this is"), "{words}");
}

fn signal(world: &World, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(world.daemon.id()).unwrap()), signal).unwrap();
}

#[test]
fn trust_files_are_read_again_on_a_hangup_and_a_bad_one_changes_nothing() {
    let desk = Desk::new();
    let world = World::start(&desk.config());
    let _host = world.host();
    let task = desk.task("task.json", "/bin/true", &["/bin/true"]);
    let run = || said(&nameless(&world, &["--task", &task], &["/bin/true"]).output().unwrap());
    assert_eq!(run().0, Some(0));
    let bad = |name: &str, content: &str| {
        desk.write(name, content);
        signal(&world, Signal::SIGHUP);
        std::thread::sleep(Duration::from_millis(300));
    };
    for (name, content) in [("signers", "alice@x nonsense\n"), ("revoked", "nonsense\n")] {
        bad(name, content);
        assert_eq!(run().0, Some(0), "{name}");
        desk.write("signers", &desk.signers());
        desk.write("revoked", "");
    }
    desk.write("revoked", &desk.public());
    signal(&world, Signal::SIGHUP);
    wait_for("the revocation", || run().0 == Some(203));
    assert!(run().1.contains("is revoked"), "{}", run().1);
    bad("signers", "nonsense");
    assert_eq!(run().0, Some(203), "the revocation stays");
    desk.write("signers", "");
    desk.write("revoked", "");
    signal(&world, Signal::SIGHUP);
    wait_for("the empty file", || run().1.contains("is not listed for"));
    desk.write("signers", &desk.signers());
    signal(&world, Signal::SIGHUP);
    wait_for("the old trust", || run().0 == Some(0));
}

fn part(text: &str) -> String {
    Base64UrlUnpadded::encode_string(text.as_bytes())
}

/// A token that nobody here can check, with this scope and number.
fn token(scope: &str, number: &str) -> String {
    let expires = SystemClock.now().as_nanos() / 1_000_000_000 + 3600;
    let body = format!(
        r#"{{"iss":"{ISSUER}","sub":"alice","jti":"{number}","exp":{expires},"scope":"{scope}","aud":"any","wlcg.ver":"1.0"}}"#
    );
    format!("{}.{}.{}", part(r#"{"alg":"RS256","kid":"k"}"#), part(&body), part("no signature of anybody's at all"))
}

#[test]
fn a_token_is_handed_over_by_a_descriptor_and_stands_nowhere_else() {
    let desk = Desk::new();
    let world = World::start("");
    let host = world.host();
    let good = token("storage.read:/ storage.create:/x", "n-1");
    desk.write("token", &good);
    let path = desk.path("token").display().to_string();
    let run = |options: &[&str], variables: &[(&str, &str)], command: &[&str]| {
        let mut exec = world.exec_with("alice", options, command);
        said(&exec.envs(variables.iter().copied()).uid(PILOT).gid(PILOT).output().unwrap())
    };
    let script = r#"
        cat "$BEARER_TOKEN_FILE"; echo; cat "$BEARER_TOKEN_FILE"; echo
        sh -c 'cat "$BEARER_TOKEN_FILE"'; echo; setsid sh -c '(cat "$BEARER_TOKEN_FILE"; echo) & wait'
        (echo x > "$BEARER_TOKEN_FILE") 2>/dev/null && echo WRITTEN; (: >> "$BEARER_TOKEN_FILE") 2>/dev/null && echo WRITTEN
        perl -e 'open(my $f, "+<", $ENV{BEARER_TOKEN_FILE}) and print "WRITTEN\n"; open(my $g, ">&=", 3) and syswrite($g, "x") and print "WRITTEN\n"'
        perl -e 'chmod(0777, $ENV{BEARER_TOKEN_FILE}) and print "WRITTEN\n"; truncate($ENV{BEARER_TOKEN_FILE}, 0) and print "WRITTEN\n"'
        cat "$BEARER_TOKEN_FILE"; echo
        cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | grep -c "$(head -c 60 $BEARER_TOKEN_FILE)""#;
    let (code, words) = run(&["--token-file", &path], &[], &["sh", "-c", script]);
    let lines: Vec<&str> = words.lines().collect();
    // grep finds itself alone.
    assert_eq!(lines[..5], [good.as_str(); 5], "{code:?} {words}");
    assert!(lines.len() == 6 && !words.contains("WRITTEN"), "{words}");
    let start = host.starts().pop().unwrap();
    let mark = start.token.clone().unwrap();
    assert_eq!((mark.issuer.as_str(), mark.subject.as_str(), mark.verified), (ISSUER, "alice", false));
    assert_eq!(mark.id.unwrap().as_str(), "n-1");
    assert_eq!((start.trust, start.isolation["R-ISO-11"].state), (Trust::AssertedByVo, RuleState::Enforced));
    // Nowhere in what is kept or told.
    wait_for("the end", || host.ends().len() == 1);
    let told = serde_json::to_string(&host.book.lock().unwrap().records).unwrap();
    let secret = good.rsplit('.').next().unwrap();
    assert!(!told.contains(secret) && !told.contains(good.split('.').nth(1).unwrap()), "{told}");
    for entry in fs::read_dir(world.path("run")).unwrap().flatten().filter(|e| e.path().is_file()) {
        let kept = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
        assert!(!kept.contains(secret), "{:?}", entry.path());
    }
    // A payload without one has none, and cannot be given one by a variable.
    assert_eq!(run(&[], &[("BEARER_TOKEN", "pilots")], &["sh", "-c", "env | grep -c BEARER"]), (Some(1), "0\n".into()));
    assert_eq!(run(&["--env", "BEARER_TOKEN_FILE=/work/x"], &[], &["true"]).0, Some(201));
    let refuses = |content: &str, variables: &[(&str, &str)], code: i32, sentence: &str| {
        desk.write("token", content);
        let before = host.starts().len();
        let (got, words) = run(&["--token-file", &path], variables, &["true"]);
        assert!(got == Some(code) && words.contains(sentence) && host.starts().len() == before, "{words}");
    };
    for scope in ["compute.create", "storage.read:/ compute.read", "compute.modify:/x", "compute"] {
        refuses(&token(scope, "n-2"), &[], 203, "by which new payloads can be obtained");
    }
    refuses(&good, &[("BEARER_TOKEN", &good)], 203, "this is the pilot's own token");
    refuses(&good, &[("BEARER_TOKEN", &token("storage.read:/", "n-1"))], 203, "this is the pilot's own token");
    desk.write("pilot", &good);
    refuses(
        &good,
        &[("BEARER_TOKEN_FILE", desk.path("pilot").to_str().unwrap())],
        203,
        "this is the pilot's own token",
    );
    refuses("opaque-token", &[], 203, "token");
    desk.write("token", &good);
    assert_eq!(run(&["--token-file", &path], &[("BEARER_TOKEN", &token("compute.read", "n-9"))], &["true"]).0, Some(0));
}

#[test]
fn a_verified_token_names_its_user() {
    use ed25519_dalek::Signer;
    let desk = Desk::new();
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    fs::create_dir(desk.path("keys")).unwrap();
    let x = Base64UrlUnpadded::encode_string(key.verifying_key().as_bytes());
    desk.write(
        "keys/iam.json",
        &format!(r#"{{"issuer":"{ISSUER}","keys":[{{"kty":"OKP","kid":"e","crv":"Ed25519","x":"{x}"}}]}}"#),
    );
    let world = World::start(&format!("token_keys = \"{}\"", desk.path("keys").display()));
    let host = world.host();
    let unsigned = token("storage.read:/", "n-1");
    let body = unsigned.split('.').nth(1).unwrap();
    let message = format!("{}.{body}", part(r#"{"alg":"EdDSA","kid":"e"}"#));
    let signature = Base64UrlUnpadded::encode_string(&key.sign(message.as_bytes()).to_bytes());
    desk.write("token", &format!("{message}.{signature}"));
    let path = desk.path("token").display().to_string();
    let output = nameless(&world, &["--token-file", &path], &["true"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let start = host.starts().pop().unwrap();
    assert_eq!((start.trust, start.user.subject.as_str()), (Trust::AssertedByToken, "alice"));
    assert!(start.token.unwrap().verified);
    // Another name beside it is another user's word.
    let exec = |user| {
        world.exec_with(user, &["--token-file", &path, "--trust", "asserted-by-token"], &["true"]).output().unwrap()
    };
    assert_eq!((exec("alice").status.code(), exec("bob").status.code()), (Some(0), Some(203)));
    desk.write("token", &unsigned);
    let (code, words) = said(&exec("alice"));
    assert!(code == Some(203) && words.contains("asserted-by-token"), "{words}");
}

#[test]
fn a_script_is_recorded_with_its_interpreter_and_neither_can_be_changed_before_it_runs() {
    let world = World::start("");
    let host = world.host();
    let own = world.folder_of(PILOT, "own", 0o700);
    let folder = own.display().to_string();
    let dash = fs::read("/bin/dash").unwrap();
    let script = "#!/work/interp -e\necho good $1\n";
    file_of(PILOT, &own.join("interp"), 0o755, &dash);
    file_of(PILOT, &own.join("script"), 0o755, script);
    let exec = || {
        let mut exec = world.exec_with("alice", &["--work", &folder], &["./script", "x"]);
        exec.uid(PILOT).gid(PILOT).stdout(Stdio::piped()).stderr(Stdio::piped());
        exec
    };
    assert_eq!(said(&exec().output().unwrap()), (Some(0), "good x\n".into()));
    let digests = |host: &Host| {
        let start = host.starts().pop().unwrap();
        let (script, interpreter) = (start.executable.unwrap(), start.interpreter.unwrap());
        (script.path, script.sha256, interpreter.path, interpreter.sha256)
    };
    let expected =
        ("/work/script".to_owned(), Digest::of(script.as_bytes()), "/work/interp".to_owned(), Digest::of(&dash));
    assert_eq!(digests(&host), expected);
    for (victim, other) in [("interp", fs::read("/bin/false").unwrap()), ("script", b"#!/bin/sh\necho evil\n".to_vec())]
    {
        let before = host.starts().len();
        // The stand-in reads no further while it holds: what was said before must be answered.
        wait_for("the ends before", || host.ends().len() == before && world.status().link.spooled == 0);
        host.hold.store(true, Ordering::SeqCst);
        let payload = exec().spawn().unwrap();
        wait_for("the record", || host.starts().len() == before + 1);
        let was = fs::read(own.join(victim)).unwrap();
        fs::write(own.join(victim), other).unwrap();
        host.hold.store(false, Ordering::SeqCst);
        assert_eq!(said(&payload.wait_with_output().unwrap()), (Some(0), "good x\n".into()), "{victim}");
        assert_eq!(digests(&host), expected);
        fs::write(own.join(victim), was).unwrap();
    }
    // The system's interpreter, and scripts that cannot be recorded.
    let run = |script: &str| {
        file_of(PILOT, &own.join("script"), 0o755, script);
        said(&exec().output().unwrap())
    };
    assert_eq!(run("#!/bin/sh\necho fine\n"), (Some(0), "fine\n".into()));
    assert_eq!(host.starts().pop().unwrap().interpreter.unwrap().sha256, Digest::of(&fs::read("/bin/sh").unwrap()));
    let before = host.starts().len();
    file_of(PILOT, &own.join("again"), 0o755, "#!/bin/sh\n");
    for (script, sentence) in [
        ("#!/work/again\n", "is itself a script"),
        ("#!interp\n", "give its full path"),
        ("#!/no/such\n", "its interpreter"),
        ("no program\n", "a script needs #!"),
    ] {
        let (code, words) = run(script);
        assert!(code == Some(126) && words.contains(sentence), "{script}: {words}");
    }
    assert_eq!(host.starts().len(), before + 1, "only what looked like a program was recorded");
    wait_for("its end", || host.ends().last() == Some(&Exit::NotStarted));
}

#[test]
fn refused_starts_are_told_and_nobody_floods_the_hypervisor_with_them() {
    let world = World::start("");
    let host = world.host();
    world.wait_connected();
    let mut exec = world.exec_with("alice", &["--chdir", "relative"], &["true"]);
    let mut exec = exec.uid(PILOT).gid(PILOT).env("VESTIGO_PILOT_ID", "pilot-7").stderr(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(exec.id()).unwrap();
    assert_eq!(exec.wait().unwrap().code(), Some(201));
    wait_for("the word of it", || host.refused().len() == 1);
    let refused = host.refused().remove(0);
    assert_eq!((refused.caller.uid, refused.caller.gid, refused.caller.pid), (PILOT, PILOT, pid));
    assert_eq!((refused.pilot.as_str(), refused.payload.as_str(), refused.vo.as_str()), ("pilot-7", "job-1", "atlas"));
    assert_eq!((refused.user.subject.as_str(), refused.code), ("alice", 201));
    assert!(refused.reason.as_str().contains("give an absolute path inside"), "{}", refused.reason);
    // A flood. As fast as can be: without programs to start.
    let line = br#"{"type":"exec","payload":"job-1","user":{"issuer":"i","subject":"eve"},"vo":"atlas","command":[]}"#;
    let begin = Instant::now();
    for _ in 0..300 {
        let mut stream = UnixStream::connect(world.path("run/agent.sock")).unwrap();
        std::io::Write::write_all(&mut stream, &[line.as_slice(), b"\n"].concat()).unwrap();
        let reply = Channel::new(stream).receive_within::<Reply>(Duration::from_secs(10)).unwrap();
        assert!(matches!(reply, Reply::Refused { code: 201, .. }), "{reply:?}");
    }
    let told = host.refused().len();
    let most = 61 + usize::try_from(begin.elapsed().as_secs()).unwrap();
    assert!((30..=most).contains(&told), "{told} of 300");
    // What was left out is told with the next that there is room for.
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(world.run(PILOT, &["--chdir", "relative"], &["true"]).0, Some(201));
    let alarm =
        || host.said().into_iter().find_map(|claim| if let Claim::Alarm { what } = claim { Some(what) } else { None });
    wait_for("the count", || alarm().is_some());
    let alarm = alarm().unwrap();
    let number: usize = alarm.as_str().split(' ').next().unwrap().parse().unwrap();
    assert!(number >= 300 - most && alarm.as_str().contains("not told one by one"), "{alarm}");
    assert!(world.exec("alice", &["true"]).status().unwrap().success());
}

/// Starts and ends of the VM's own leases, in their order.
fn own(host: &Host) -> Vec<(Holder, Option<Exit>)> {
    let claims = host.claims();
    let holder = |uid| claims.iter().find(|c| c.uid == uid).map(|c| c.holder).filter(|holder| !holder.is_payload());
    let records = host.book.lock().unwrap().records.clone();
    let said = |claim: Claim| match claim {
        Claim::PayloadStart(start) if !start.holder.is_payload() => Some((start.holder, None)),
        Claim::PayloadEnd { uid, exit, .. } => holder(uid).map(|holder| (holder, Some(exit))),
        _ => None,
    };
    records.into_iter().filter_map(|record| said(record.claim)).collect()
}

#[test]
fn the_vms_own_leases_are_announced_and_ended_and_announced_anew() {
    use Holder::{Pilot, System};
    let mut world = World::start("");
    let host = world.host();
    let announced = [(System, None), (Pilot, None)];
    wait_for("both", || own(&host).len() == 2);
    assert_eq!(own(&host), announced);
    let leases: Vec<Vec<Lease>> = host.claims().into_iter().map(|claim| claim.leases).collect();
    assert!(leases[0].iter().all(|lease| !leases[1].contains(lease)), "{leases:?}");
    assert!(host.claims().iter().all(|claim| claim.access.is_none() && claim.executable.is_none()));
    // Payloads' ports are apart from theirs.
    assert!(world.exec("alice", &["true"]).status().unwrap().success());
    let Lease::Ports(block) = host.starts()[0].leases[0] else { panic!("no ports") };
    let overlaps =
        |lease: &Lease| matches!(lease, Lease::Ports(other) if other.first <= block.last && block.first <= other.last);
    assert!(!leases.iter().flatten().any(overlaps), "{leases:?} {block:?}");
    // Killed: lost, and there again with the next agent.
    world.restart();
    wait_for("the next life's", || own(&host).len() == 6);
    let all = own(&host);
    let mut lost = all[2..4].to_vec();
    lost.sort_by_key(|(holder, _)| holder.as_str());
    assert_eq!(lost, [(Pilot, Some(Exit::Lost)), (System, Some(Exit::Lost))]);
    assert_eq!(all[4..], announced);
    // Told to end: ended in order.
    wait_for("the link", || world.status().link.spooled == 0);
    signal(&world, Signal::SIGTERM);
    assert!(world.daemon.wait().unwrap().success());
    let all = own(&host);
    assert_eq!(all[6..], [(System, Some(Exit::Code(0))), (Pilot, Some(Exit::Code(0)))], "{all:?}");
    world.restart();
    wait_for("the next life's", || own(&host).len() == 10);
    assert_eq!(own(&host)[8..], announced);
}

#[test]
fn a_record_says_who_asked_and_when_what_was_established() {
    let world = World::start("");
    let host = world.host();
    world.wait_connected();
    let before = SystemClock.now();
    let mut exec = world.exec("alice", &["cat", "/proc/self/uid_map", "/proc/self/gid_map"]);
    let exec = exec.uid(PILOT).gid(1234).stdout(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(exec.id()).unwrap();
    let words = text(&exec.wait_with_output().unwrap());
    let access = host.starts()[0].access.clone().unwrap();
    assert_eq!((access.caller.uid, access.caller.gid, access.caller.pid), (PILOT, 1234, pid));
    let times = [before, access.connected, access.authenticated, access.authorized, SystemClock.now()];
    assert!(times.is_sorted(), "{times:?}");
    let outside: Vec<u32> =
        words.lines().map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(outside, [access.runs_as; 2]);
    assert!(access.runs_as >= 200_000);
    // Two at once are two.
    let mut one = world.exec("alice", &["sleep", "4836"]).spawn().unwrap();
    let mut two = world.exec("alice", &["sleep", "4836"]).spawn().unwrap();
    wait_for("both", || host.starts().len() == 3);
    let ids: Vec<u32> = host.starts()[1..].iter().map(|start| start.access.as_ref().unwrap().runs_as).collect();
    assert_ne!(ids[0], ids[1]);
    for child in [&mut one, &mut two] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_ban_of_a_key_ends_what_it_signed_and_nothing_else_of_its_user() {
    let desk = Desk::new();
    let world = World::start(&desk.config());
    let host = world.host();
    let task = desk.task("task.json", "/bin/sleep", &["/bin/sleep", "4846"]);
    let exec = || nameless(&world, &["--task", &task], &["/bin/sleep", "4846"]);
    let signed = exec().stderr(Stdio::piped()).spawn().unwrap();
    let mut unsigned = world.exec("alice", &["/bin/sleep", "4846"]).spawn().unwrap();
    wait_for("both", || processes(&["/bin/sleep", "4846"]) == 2);
    let key = host.starts().into_iter().find_map(|start| start.task).unwrap().key;
    let (id, reason) = (Label::new("b1").unwrap(), Label::new("stolen key").unwrap());
    host.ban(vec![Ban { id, scope: Scope::Key(key), reason, until: None }]);
    let (code, words) = said(&signed.wait_with_output().unwrap());
    assert!(code == Some(203) && words.contains("stolen key"), "{words}");
    assert_eq!(processes(&["/bin/sleep", "4846"]), 1);
    let (code, words) = said(&exec().output().unwrap());
    assert!(code == Some(203) && words.contains("refused by the hypervisor's ban b1: stolen key"), "{words}");
    assert!(unsigned.try_wait().unwrap().is_none());
    unsigned.kill().unwrap();
    unsigned.wait().unwrap();
}
