//! `guest-agent exec` against a real daemon in namespaces of its own. Needs root, `nft`, `perl` and `setpriv`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    process::Stdio,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use common::{PEER, VM, World, agent, ports, text, wait_for};
use guest_agent::status::LeaseCounts;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vestigo_model::{Digest, Exit, RuleState, link::Claim};

fn pid(child: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

#[test]
fn true_runs_after_the_acknowledgement_and_its_record_says_who() {
    let world = World::start("");
    let host = world.host();
    let output = world.exec("alice", &["/bin/true"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let start = &host.starts()[0];
    assert_eq!((start.user.subject.as_str(), start.vo.as_str(), start.pilot.as_str()), ("alice", "atlas", "uid:0"));
    let executable = start.executable.as_ref().unwrap();
    assert_eq!(executable.sha256, Digest::of(&fs::read("/bin/true").unwrap()));
    assert_eq!(start.isolation["R-ISO-9"].state, RuleState::Enforced);
    assert_eq!(start.isolation["R-ISO-16"].state, RuleState::Degraded);
    wait_for("the record of the end", || host.ends() == [Exit::Code(0)]);
    wait_for("the scratch folder's end", || !world.path("scratch").join(start.uid.to_string()).exists());
    // It sent no packet: its block is free at once.
    wait_for("the lease's return", || world.status().leases.in_use == 0);
    assert_eq!(world.status().leases, LeaseCounts { in_use: 0, resting: 0, all: 54 });
}

#[test]
fn exit_codes_are_the_payloads_own_or_say_why_not() {
    let world = World::start("");
    let host = world.host();
    let code = |command: &[&str]| {
        let output = world.exec("alice", command).output().unwrap();
        (output.status.code(), text(&output))
    };
    assert_eq!(code(&["sh", "-c", "exit 7"]).0, Some(7));
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]).0, Some(137));
    let (status, said) = code(&["no-such-program"]);
    assert!(status == Some(127) && said.contains("not found inside the sandbox"), "{said}");
    let (status, said) = code(&["/etc/passwd"]);
    assert!(status == Some(126) && said.contains("execute permission"), "{said}");
    assert_eq!(host.starts().len(), 2, "what cannot run is not recorded as started");
    let output = world.exec_with("alice", &["--vo", "../x"], &["true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(201), "{}", text(&output));
    let output = world.exec_with("alice", &["--env", "PATH=bin"], &["true"]).output().unwrap();
    assert!(output.status.code() == Some(201) && text(&output).contains("no absolute path"));
    *host.refuse.lock().unwrap() = Some("user alice is banned");
    let (status, said) = code(&["true"]);
    assert!(status == Some(203) && said.contains("user alice is banned"), "{said}");
}

#[test]
fn closed_mode_without_a_host_refuses_with_the_remedy() {
    let world = World::start("ack_timeout = 0.3");
    let output = world.exec("alice", &["/bin/true"]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(202), "{said}");
    assert!(said.contains("hostd did not acknowledge the record within 0.3 s; payload not started; check that hostd runs on the hypervisor or set fail_mode = \"open\""), "{said}");
    // A host that takes the record and says nothing: the record stays, and with it that nothing ran.
    let host = world.host();
    world.wait_connected();
    wait_for("what was refused", || {
        host.said().iter().any(|claim| matches!(claim, Claim::PayloadRefused(r) if r.code == 202))
    });
    assert!(host.starts().is_empty(), "it was not recorded as started");
    host.mute.store(true, Ordering::SeqCst);
    assert_eq!(world.exec("alice", &["/bin/true"]).output().unwrap().status.code(), Some(202));
    wait_for("both records", || host.ends() == [Exit::NotStarted]);
}

#[test]
fn open_mode_runs_and_pays_its_debt_later() {
    let mut world = World::start("fail_mode = \"open\"\nack_timeout = 0.3");
    let output = world.exec("alice", &["sh", "-c", "echo ran"]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("ran"), "{}", text(&output));
    assert_eq!(world.status().link.debt, 1);
    // The debt outlives the agent.
    world.restart();
    assert_eq!(world.status().link.debt, 1);
    let host = world.host();
    wait_for("the debt to be paid", || world.status().link.debt == 0);
    assert_eq!((host.starts().len(), host.ends()), (1, vec![Exit::Code(0)]));
}

#[test]
fn records_survive_a_dead_host_and_a_dead_agent() {
    let mut world = World::start("");
    let host = world.host();
    for round in 0..4 {
        assert!(world.exec("alice", &["true"]).status().unwrap().success());
        if round % 2 == 0 {
            host.hang_up();
        } else {
            world.restart();
        }
    }
    wait_for("all records", || host.ends().len() == 4 && host.starts().len() == 4);
    assert_eq!(host.ends(), vec![Exit::Code(0); 4]);
    assert!(host.book.lock().unwrap().hellos >= 4);
}

#[test]
fn a_killed_agent_takes_its_payloads_along_and_its_successor_says_so() {
    let mut world = World::start("");
    let host = world.host();
    let mut payload = world.exec("alice", &["sleep", "4711"]).spawn().unwrap();
    wait_for("the payload", || host.starts().len() == 1);
    wait_for("sleep", || running("4711"));
    world.restart();
    wait_for("the payload's death", || !running("4711"));
    assert_eq!(payload.wait().unwrap().code(), Some(202));
    wait_for("the record", || host.ends() == [Exit::Lost]);
    assert!(world.exec("bob", &["true"]).status().unwrap().success());
    let resting = world.status().leases.resting;
    assert!(resting >= 1, "what a dead agent held rests");
}

/// Whether a process with this argument exists anywhere on the machine.
fn running(argument: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|e| fs::read(e.path().join("cmdline")).ok()).any(|line| {
        let mut parts = line.split(|b| *b == 0);
        parts.next() == Some(b"sleep") && parts.next() == Some(argument.as_bytes())
    })
}

#[test]
fn two_users_at_once_leave_by_their_own_ports() {
    let world = World::start("");
    let host = world.host();
    let listener = world.peer.inside(|| TcpListener::bind((PEER, 7777)).unwrap());
    // The explicit bind asks for a port outside every block; the VM does not care.
    let script = "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); bind(S, sockaddr_in(1234, INADDR_ANY)) or die; \
                  connect(S, sockaddr_in(7777, inet_aton('10.9.0.2'))) or die $!; syswrite(S, \"$ARGV[0]\\n\"); sleep 60";
    let mut payloads: Vec<_> =
        ["alice", "bob"].map(|user| world.exec(user, &["perl", "-e", script, user]).spawn().unwrap()).into();
    for _ in 0..2 {
        let (stream, from) = listener.accept().unwrap();
        let mut user = String::new();
        BufReader::new(stream).read_line(&mut user).unwrap();
        let starts = host.starts();
        let start = starts.iter().find(|s| s.user.subject.as_str() == user.trim()).unwrap();
        assert_eq!(from.ip(), VM);
        assert!(ports(start).contains(from.port()), "{user} came from {from}, not from {}", ports(start));
    }
    let status = world.status();
    assert_eq!((status.payloads.len(), status.leases.in_use), (2, 2), "prepared sandboxes hold no payload's lease");
    assert!(!ports(&host.starts()[0]).contains(ports(&host.starts()[1]).first));
    for payload in &mut payloads {
        kill(pid(payload), Signal::SIGTERM).unwrap();
        assert_eq!(payload.wait().unwrap().code(), Some(128 + 15), "the signal reached the payload");
    }
    wait_for("the blocks' rest", || world.status().leases == LeaseCounts { in_use: 0, resting: 2, all: 54 });
}

#[test]
fn a_payload_sees_nothing_of_others() {
    let world = World::start("");
    let _host = world.host();
    let secret = world.path("pilot-proxy");
    fs::write(&secret, "secret").unwrap();
    let mut neighbour = world.exec("bob", &["sh", "-c", "echo mine > /tmp/bobs; exec sleep 815"]).spawn().unwrap();
    wait_for("the neighbour", || running("815"));
    let script = format!(
        "id -u; id -g; pwd; echo $HOME; ls /proc | grep -c '^[0-9]'; cat {} 2>&1 | grep -c secret; ls {} 2>&1 | grep -c sock; \
         ls /tmp | wc -l; touch /usr/x 2>&1 | grep -c 'Read-only'; touch /etc/x /dev/x /x 2>&1 | grep -c Read-only; \
         grep -E 'Cap(Eff|Bnd|Prm)' /proc/self/status | grep -vc 0000000000000000; grep NoNewPrivs /proc/self/status; \
         ls /proc/self/fd | wc -l; env | sort | cut -d= -f1 | tr '\\n' ' '; echo; cat /proc/1/environ 2>&1 | grep -c denied; ls /dev | tr '\\n' ' '; echo; \
         cat /proc/self/uid_map; unshare -Un true 2>&1 | grep -c 'not permitted'; \
         perl -MSocket -e 'socket(S, PF_INET, SOCK_RAW, 1) or print \"raw: $!\\n\"'; kill -9 1; cat /proc/1/exe 2>&1 | grep -c denied; echo alive",
        secret.display(),
        world.path("run").display()
    );
    let output = world.exec_with("alice", &["--env", "MARK=1"], &["sh", "-c", &script]).output().unwrap();
    let said = text(&output);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..4], ["1000", "1000", "/work", "/work"], "{said}");
    assert!(lines[4].parse::<u32>().unwrap() <= 4, "processes: {said}");
    assert_eq!(lines[5..8], ["0", "0", "0"], "{said}");
    assert_eq!(lines[8..11], ["1", "3", "0"], "{said}");
    assert!(lines[11].ends_with('1'), "{said}");
    // ls has its own descriptor on top of the three.
    assert_eq!(lines[12], "4", "{said}");
    assert_eq!(lines[13].trim(), "HOME LANG LOGNAME MARK PATH PWD TERM USER VESTIGO_PAYLOAD_UID", "{said}");
    assert_eq!(lines[14], "1", "{said}");
    let devices: Vec<&str> = lines[15].split_whitespace().collect();
    let expected = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    ];
    assert_eq!(devices, expected, "{said}");
    let map: Vec<u32> = lines[16].split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(map[0] == 1000 && map[1] >= 200_000 && map[2] == 1, "{said}");
    assert_eq!(lines[17..], ["1", "raw: Operation not permitted", "1", "alive"], "{said}");
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
}

#[test]
fn work_lies_on_the_vms_disk_and_is_private() {
    let world = World::start("");
    let _host = world.host();
    let mut payload = world.exec("alice", &["sh", "-c", "echo marker > $HOME/file; exec sleep 816"]).spawn().unwrap();
    wait_for("the payload", || running("816"));
    let scratch = world.path("scratch").join(world.status().payloads[0].uid.to_string());
    assert_eq!(fs::read_to_string(scratch.join("work/file")).unwrap(), "marker\n");
    let output = world.exec("bob", &["sh", "-c", "ls -A /work /tmp /var/tmp /dev/shm"]).output().unwrap();
    assert!(!text(&output).contains("file"), "{}", text(&output));
    payload.kill().unwrap();
    payload.wait().unwrap();
    wait_for("its removal", || !scratch.exists());
}

#[test]
fn killing_the_client_kills_the_whole_payload() {
    let world = World::start("");
    let host = world.host();
    let script = "setsid sleep 817 & (sleep 817 &) ; trap '' TERM HUP; sleep 817; sleep 817";
    let mut payload = world.exec("alice", &["sh", "-c", script]).spawn().unwrap();
    wait_for("the payload", || running("817"));
    payload.kill().unwrap();
    payload.wait().unwrap();
    wait_for("their death", || !running("817"));
    wait_for("the record", || host.ends() == [Exit::Signal(9)]);
    // Background processes do not outlive the first one either.
    assert!(world.exec("alice", &["sh", "-c", "setsid sleep 818 & exit 0"]).status().unwrap().success());
    assert!(!running("818"));
}

#[test]
fn an_ordinary_pilot_works_in_its_own_folder() {
    let world = World::start("");
    let host = world.host();
    let work = world.path("pilot");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("run.sh"), "#!/bin/sh\nread line < input; echo got $line > result; ls -ln result input\n")
        .unwrap();
    fs::write(work.join("input"), "data\n").unwrap();
    fs::set_permissions(work.join("run.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for path in [work.clone(), work.join("run.sh"), work.join("input")] {
        chown(path, Some(1000), Some(1000)).unwrap();
    }
    let folder = work.display().to_string();
    let run = |uid: u32| {
        let mut exec = world.exec_with("alice", &["--work", &folder], &["./run.sh"]);
        exec.uid(uid).gid(uid).env("VESTIGO_PILOT_ID", "pilot-7").output().unwrap()
    };
    let output = run(1000);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(fs::read_to_string(work.join("result")).unwrap(), "got data\n");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(work.join("result")).unwrap()), 1000);
    let start = &host.starts()[0];
    assert_eq!(start.pilot.as_str(), "pilot-7");
    assert_eq!(start.executable.as_ref().unwrap().path, "/work/run.sh");
    assert_eq!(start.executable.as_ref().unwrap().sha256, Digest::of(&fs::read(work.join("run.sh")).unwrap()));
    assert_eq!(start.isolation["R-ISO-18"].state, RuleState::Off);
    for (uid, sentence) in [(1001, "give one of your own"), (0, "root's files")] {
        let output = run(uid);
        assert_eq!(output.status.code(), Some(203), "{}", text(&output));
        assert!(text(&output).contains(sentence), "{}", text(&output));
    }
}

#[test]
fn streams_and_the_status_document_reach_the_pilot() {
    let world = World::start("");
    let _host = world.host();
    let status = world.path("status.json");
    // Not for appending: what the pilot wrote there itself must stay.
    let script =
        format!("exec 7>{}; echo '{{\"event\":\"mine\"}}' >&7; printf hello | \"$@\" 2>/dev/null", status.display());
    let exec = world.exec_with("alice", &["--json-status-fd", "7"], &["sh", "-c", "cat; echo lost >&2; exit 3"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(exec.get_program()).args(exec.get_args());
    let output = shell.output().unwrap();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(3), "hello"));
    let document = fs::read_to_string(status).unwrap();
    let events: Vec<serde_json::Value> = document.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&events[0]["event"], &events[1]["event"]), (&"mine".into(), &"started".into()));
    assert_eq!(events[1]["acknowledged"], true);
    assert_eq!(events[2]["exit"], serde_json::json!({"code": 3}));
    // A directory as standard input would be a way out.
    let output = world.exec("alice", &["true"]).stdin(fs::File::open("/").unwrap()).output().unwrap();
    assert!(output.status.code() == Some(201) && text(&output).contains("standard input is a directory"));
}

#[test]
fn what_the_client_refuses_is_in_the_status_document_too_and_a_socket_takes_it() {
    let world = World::start("");
    let _host = world.host();
    let refused = |options: &[&str]| {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let options = [&["--json-status-fd", "0"], options].concat();
        let mut exec = world.exec_with("alice", &options, &["true"]);
        let status = exec.stdin(std::os::fd::OwnedFd::from(theirs)).status().unwrap();
        drop(exec);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut ours, &mut said).unwrap();
        let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.last().map_or(0, |line| line["code"].as_i64().unwrap_or(0));
        (status.code(), lines.len(), last, said)
    };
    let (status, lines, code, said) = refused(&["--bind", "/no/such/folder"]);
    assert_eq!((status, lines, code), (Some(201), 1, 201), "{said}");
    // The client's refusal of no daemon, and the daemon's own: once each.
    let (status, lines, code, said) = refused(&["--bind", "/proc:/x"]);
    assert_eq!((status, lines, code), (Some(203), 1, 203), "{said}");
    let nobody = world.path("run/agent.sock");
    fs::rename(&nobody, world.path("run/away")).unwrap();
    let (status, lines, code, said) = refused(&[]);
    assert_eq!((status, lines, code), (Some(202), 1, 202), "{said}");
    fs::rename(world.path("run/away"), nobody).unwrap();
    let (status, lines, _, said) = refused(&[]);
    assert_eq!((status, lines), (Some(0), 2), "{said}");
    // A number that is not open is the client's own next one; nothing may be written there.
    let (status, said) = world.run(0, &["--json-status-fd", "3"], &["true"]);
    assert!(status == Some(201) && said.contains("--json-status-fd 3"), "{said}");
    let mut exec = world.exec_with("alice", &["--json-status-fd", "0"], &["true"]);
    let output = exec.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.code() == Some(201) && text(&output).contains("reading only"), "{}", text(&output));
}

#[test]
fn exhausted_ports_are_a_clear_refusal() {
    let world = World::start("ports = \"20480-21503\"");
    let _host = world.host();
    let mut payload = world.exec("alice", &["sleep", "819"]).spawn().unwrap();
    wait_for("the payload", || running("819"));
    let output = world.exec("bob", &["true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(202));
    assert!(text(&output).contains("all 1 port blocks are in use (1)"), "{}", text(&output));
    payload.kill().unwrap();
    payload.wait().unwrap();
}

#[test]
fn bad_configuration_names_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    for (content, words) in [
        ("# fine\nfail_mod = \"open\"\n", ["line 2", "`fail_mod`", "unknown field"]),
        ("block = \"many\"\n", ["line 1", "`block`", "invalid type"]),
        ("\n\nports = \"70000-1\"\n", ["line 3", "`ports`", "10240-65535"]),
    ] {
        fs::write(&path, content).unwrap();
        let output = agent().args(["daemon", "--check-config", "--config"]).arg(&path).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            words.iter().all(|w| said.contains(w)) && said.contains("agent.toml") && said.lines().count() == 1,
            "{said}"
        );
    }
    fs::write(&path, "fail_mode = \"open\"\n").unwrap();
    let output = agent().args(["daemon", "--check-config", "--config"]).arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    fs::write(&path, "allowed_signers = \"/no/such/file\"\n").unwrap();
    let output = agent().args(["daemon", "--check-config", "--config"]).arg(&path).output().unwrap();
    assert!(output.status.code() == Some(2) && text(&output).contains("/no/such/file"), "{}", text(&output));
    let output = agent().args(["daemon", "--config", "/no/such/file"]).output().unwrap();
    assert_eq!(text(&output).matches("os error 2").count(), 1, "{}", text(&output));
    let wrong: [&[&str]; 3] = [&["exec", "--payload-id", "x"], &["selftest", "--peer", "x"], &["selftest", "--vo", ""]];
    for call in wrong {
        let output = agent().args(call).output().unwrap();
        assert_eq!(output.status.code(), Some(201), "{call:?}");
    }
    let output = agent().args(["status", "--socket", "/nowhere/agent.sock"]).output().unwrap();
    assert!(output.status.code() == Some(202) && text(&output).contains("start `guest-agent daemon`"));
}

#[test]
fn a_client_that_says_nothing_or_rubbish_hurts_nobody() {
    let world = World::start("");
    let _host = world.host();
    let connect = || std::os::unix::net::UnixStream::connect(world.path("run/agent.sock")).unwrap();
    let silent = connect();
    let mut rubbish = connect();
    std::io::Write::write_all(&mut rubbish, b"{\"type\":\"exec\",\"vo\":\"../../x\"}\n").unwrap();
    let mut answer = String::new();
    rubbish.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("refused") && answer.contains("201"), "{answer}");
    assert!(world.exec("alice", &["true"]).status().unwrap().success());
    drop(silent);
}

/// What was hashed is what runs, whatever happens to the file while the record is on its way.
#[test]
fn a_program_patched_after_its_digest_was_taken_does_not_run() {
    let world = World::start("");
    let host = world.host();
    let work = world.path("pilot");
    fs::create_dir(&work).unwrap();
    chown(&work, Some(1000), Some(1000)).unwrap();
    let prog = work.join("prog");
    let script = b"#!/bin/sh\necho good $1; echo $0 | cut -c1-8; ls -l $0 | cut -c1\n".to_vec();
    let (binary, other) = (fs::read("/bin/echo").unwrap(), fs::read("/bin/false").unwrap());
    let evil = b"#!/bin/sh\necho evil\n".to_vec();
    for (round, (before, after, expected)) in
        [(script, evil, "good x\n/dev/fd/\nl\n"), (binary, other, "x\n")].into_iter().enumerate()
    {
        fs::write(&prog, &before).unwrap();
        chown(&prog, Some(1000), Some(1000)).unwrap();
        fs::set_permissions(&prog, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        // The stand-in reads no further while it holds: what was said before must be out of its way.
        wait_for("the records before", || {
            host.ends().len() == round && (round == 0 || world.status().link.spooled == 0)
        });
        host.hold.store(true, Ordering::SeqCst);
        let folder = work.display().to_string();
        let mut exec = world.exec_with("alice", &["--work", &folder], &["./prog", "x"]);
        let payload = exec.uid(1000).gid(1000).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let payload = payload.unwrap();
        if round == 0 {
            // Before the greeting is answered nothing is built at all.
            wait_for("the greeting", || host.book.lock().unwrap().hellos > 0);
            host.hold.store(false, Ordering::SeqCst);
            world.wait_connected();
            host.hold.store(true, Ordering::SeqCst);
        }
        wait_for("the record", || host.starts().len() == round + 1);
        // In place: the same inode, so the descriptor of whoever opened it shows the new content.
        fs::write(&prog, &after).unwrap();
        host.hold.store(false, Ordering::SeqCst);
        let output = payload.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), expected));
        assert_eq!(host.starts()[round].executable.as_ref().unwrap().sha256, Digest::of(&before));
    }
    // What only root can change needs no copy; what others can change gets one.
    assert_eq!(text(&world.exec("alice", &["readlink", "/proc/self/exe"]).output().unwrap()), "/usr/bin/readlink\n");
    fs::copy("/usr/bin/readlink", &prog).unwrap();
    let folder = work.display().to_string();
    let mut exec = world.exec_with("alice", &["--work", &folder], &["./prog", "/proc/self/exe"]);
    let said = text(&exec.uid(1000).gid(1000).output().unwrap());
    assert!(said.contains("memfd:"), "{said}");
    // Not more than memory should hold; the file has holes only.
    fs::File::options().write(true).open(&prog).unwrap().set_len((512 << 20) + 1).unwrap();
    let mut exec = world.exec_with("alice", &["--work", &folder], &["./prog"]);
    let output = exec.uid(1000).gid(1000).output().unwrap();
    assert!(output.status.code() == Some(126) && text(&output).contains("larger than 512 MiB"), "{}", text(&output));
}

#[test]
fn a_refusal_is_never_taken_for_an_acknowledgement_and_the_chain_goes_on() {
    let mut world = World::start("");
    let host = world.host();
    let said = |world: &World| {
        let output = world.exec("alice", &["sh", "-c", "echo ran"]).output().unwrap();
        (output.status.code(), text(&output))
    };
    *host.refuse.lock().unwrap() = Some("the claim is out of bounds: more than 8 leases");
    let (code, text) = said(&world);
    assert!(code == Some(203) && text.contains("more than 8 leases") && !text.contains("ran"), "{text}");
    // The refusal is lost with the connection, and the next greeting counts the record as taken.
    host.sever.store(true, Ordering::SeqCst);
    let (code, text) = said(&world);
    assert!(code == Some(203) && text.contains("more than 8 leases") && !text.contains("ran"), "{text}");
    assert_eq!(host.starts().len(), 3, "it was said again");
    assert_eq!(host.starts()[1], host.starts()[2]);
    *host.refuse.lock().unwrap() = None;
    assert_eq!(said(&world), (Some(0), "ran\n".into()));
    // An acknowledgement that is lost the same way costs an honest pilot nothing.
    host.sever.store(true, Ordering::SeqCst);
    assert_eq!(said(&world), (Some(0), "ran\n".into()));
    wait_for("the ends", || host.ends() == [Exit::Code(0); 2]);
    // What was refused never ran, and a later life of the agent has not lost it.
    let before = (host.starts().len(), host.ends().len());
    world.restart();
    world.wait_connected();
    assert_eq!(said(&world).0, Some(0));
    wait_for("the end", || (host.starts().len(), host.ends().len()) == (before.0 + 1, before.1 + 1));
    assert!(!host.ends().contains(&Exit::Lost), "{:?}", host.ends());
    assert_eq!(world.status().link.contradictions, 0);
}

#[test]
fn one_uid_cannot_take_the_agent_from_the_others() {
    let world = World::start("");
    let _host = world.host();
    world.wait_connected();
    let socket = world.path("run/agent.sock").display().to_string();
    let script = "use Socket; $SIG{PIPE} = 'IGNORE'; for (1..520) { socket($s[$_], PF_UNIX, SOCK_STREAM, 0); \
                  connect($s[$_], sockaddr_un($ARGV[0])) } $| = 1; print \"done\\n\"; sleep 60";
    let mut flood = std::process::Command::new("setpriv");
    flood.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--pdeathsig", "KILL", "perl", "-e", script]);
    let mut flood = flood.arg(socket).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(flood.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let run = |uid: u32| {
        let output = world.exec("alice", &["true"]).uid(uid).gid(uid).output().unwrap();
        (output.status.code(), text(&output))
    };
    let (code, said) = run(1000);
    assert!(code == Some(202) && said.contains("uid 1000 has 64 connections"), "{said}");
    assert_eq!((run(1001), run(0)), ((Some(0), String::new()), (Some(0), String::new())));
    // Who says nothing is put out after a while.
    wait_for("room", || run(1000).0 == Some(0));
    flood.kill().unwrap();
    flood.wait().unwrap();
}

#[test]
fn only_allowed_uids_may_call() {
    let world = World::start("allow_uids = [1000]");
    let _host = world.host();
    let run = |uid: u32| {
        let output = world.exec("alice", &["true"]).uid(uid).gid(uid).output().unwrap();
        (output.status.code(), text(&output))
    };
    assert_eq!((run(1000).0, run(0).0), (Some(0), Some(0)));
    for _ in 0..20 {
        let (code, said) = run(1001);
        assert!(code == Some(203) && said.contains("uid 1001 may not use") && said.contains("`allow_uids`"), "{said}");
    }
}

#[test]
fn a_refusal_is_read_even_when_the_request_cannot_be_sent() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // Time for the client to fill the socket up, and to wait for room.
        std::thread::sleep(Duration::from_millis(300));
        let line = b"{\"event\":\"refused\",\"code\":203,\"reason\":\"not today\"}\n";
        std::io::Write::write_all(&mut stream, line).unwrap();
    });
    let long = "x".repeat(120_000);
    let mut exec = agent();
    exec.arg("exec").args(["--payload-id", "job-1", "--user-issuer", "https://iam.example", "--vo", "atlas"]);
    exec.args(["--user-subject", "alice", "--socket"]).arg(&socket);
    let output = exec.args(["--env", &format!("A={long}"), "--", "true", &long]).output().unwrap();
    daemon.join().unwrap();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(203), "guest-agent: not today\n"));
}

#[test]
fn a_network_socket_of_the_vm_is_no_standard_stream() {
    let world = World::start("");
    let _host = world.host();
    let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let output = world.exec("alice", &["true"]).stdin(std::os::fd::OwnedFd::from(udp)).output().unwrap();
    let said = text(&output);
    assert!(output.status.code() == Some(201) && said.contains("standard input is a network socket"), "{said}");
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let exec = world.exec("alice", &["echo", "hello"]).stdout(std::os::fd::OwnedFd::from(there)).status().unwrap();
    let mut line = String::new();
    BufReader::new(here).read_line(&mut line).unwrap();
    assert!(exec.success() && line == "hello\n");
}

/// Not a bench, but a figure to watch, and a bound that only something broken exceeds.
#[test]
fn start_latency() {
    let world = World::start("");
    let _host = world.host();
    world.wait_connected();
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let begin = Instant::now();
            assert!(world.exec("alice", &["/bin/true"]).stdout(Stdio::null()).status().unwrap().success());
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!("start_of_true_median_ms: {}", times[7].as_millis());
    assert!(times[7] < Duration::from_secs(2), "{times:?}");
}

#[test]
fn connections_are_told_where_that_is_switched_on() {
    let world = World::start("detail = \"connections\"\ndetail_interval = 0.2");
    let host = world.host();
    let listener = world.peer.inside(|| TcpListener::bind((PEER, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let script = format!("use IO::Socket::INET; my $s = IO::Socket::INET->new('{PEER}:{port}') or die; sleep 20");
    let mut payload = world.exec("alice", &["perl", "-e", &script]).spawn().unwrap();
    let (_stream, from) = listener.accept().unwrap();
    let told = || {
        host.said().into_iter().find_map(|claim| match claim {
            Claim::Connection(connection) if connection.peer.port() == port => Some(connection),
            _ => None,
        })
    };
    wait_for("the connection", || told().is_some());
    let (connection, start) = (told().unwrap(), &host.starts()[0]);
    assert!(ports(start).contains(from.port()));
    assert_eq!((connection.payload, connection.proto, connection.uid), (start.uid, 6, (1000, 1000)));
    assert!(connection.executable.contains("perl") && connection.pid.0 > 1, "{connection:?}");
    payload.kill().unwrap();
    payload.wait().unwrap();
}

/// Folders of this name below the machine's cgroup trees.
fn groups_named(name: &str) -> usize {
    let found =
        std::process::Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", name]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().count()
}

#[test]
fn an_agent_told_to_end_leaves_no_groups_behind() {
    let mut world = World::start("");
    let _host = world.host();
    let config = fs::read_to_string(world.path("agent.toml")).unwrap();
    let name = config.lines().find_map(|line| line.strip_prefix("cgroup = ")).unwrap().trim_matches('"').to_owned();
    let mut payload = world.exec("alice", &["sleep", "823"]).spawn().unwrap();
    wait_for("the payload", || running("823"));
    assert!(groups_named(&name) > 0, "without groups nothing is tested");
    kill(pid(&world.daemon), Signal::SIGTERM).unwrap();
    assert!(world.daemon.wait().unwrap().success());
    payload.wait().unwrap();
    assert_eq!(groups_named(&name), 0);
}
