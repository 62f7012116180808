//! The selftest against a real daemon, and every probe against surroundings that lack what it tests. Needs root, `nft`,
//! `perl`, `setpriv` and `unshare`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use common::{Host, PEER, PEER6, VM6, World, agent, dual, network, text};
use guest_agent::{
    selftest::{
        Finding, Orders, Outcome, client,
        inside::{key, make_queue, mark, queue},
        probes::{self, survivor},
        watch::{Watch, judge, judge6},
    },
    sys::probe::Segment,
};
use vestigo_model::PortBlock;

const AGENT: &str = env!("CARGO_BIN_EXE_guest-agent");

/// How the surroundings of a probe are weakened. Everywhere the probe runs as a plain program of the test, beside its baits.
enum Weak {
    /// As root without any sandbox.
    Root,
    /// By a command before the probe's.
    Under(&'static [&'static str]),
    /// By a test of its own, which the second word names.
    Own(&'static str),
}

/// Every probe, and what it does without.
const WEAKENED: &[(&str, Weak, &str)] = &[
    ("home", Weak::Under(&["env", "HOME=/etc"]), "the home folder is one with files"),
    ("namespaces", Weak::Root, "all namespaces are the VM's"),
    ("hostname", Weak::Root, "no UTS namespace"),
    ("environment", Weak::Under(&["env", "X509_USER_PROXY=/tmp/x509up_u0"]), "a variable of the pilot is inherited"),
    ("search-paths", Weak::Under(&["env", "PYTHONPATH=/home"]), "a shared folder is writable and searched"),
    (
        "mounts",
        Weak::Under(&["unshare", "-m", "sh", "-c", "mount -t tmpfs x /mnt; exec \"$@\"", "sh"]),
        "one mount more",
    ),
    ("writable-mounts", Weak::Root, "the VM's mounts are writable"),
    ("mount-flags", Weak::Root, "the VM's mounts have no flags"),
    (
        "devices",
        Weak::Under(&["unshare", "-m", "sh", "-c", "mount -t tmpfs x /dev; : > /dev/vsock; exec \"$@\"", "sh"]),
        "one device more",
    ),
    ("foreign-files", Weak::Root, "the pilot's files are seen"),
    ("descriptors", Weak::Under(&["sh", "-c", "exec 9< /etc; exec \"$@\"", "sh"]), "a folder is left open"),
    (
        "working-folder",
        // The root is another one, and the working folder is left outside.
        Weak::Under(&[
            "unshare",
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs x /mnt; mkdir /mnt/usr /mnt/proc; cp -a /bin /lib* /mnt; cp \"$1\" /mnt/agent; shift; mount --rbind /usr /mnt/usr; mount --rbind /proc /mnt/proc; cd /; exec perl -e 'chroot(\"/mnt\"); exec @ARGV' /agent \"$@\"",
            "sh",
        ]),
        "chroot without chdir",
    ),
    ("agent-channel", Weak::Root, "the agent's socket is seen"),
    ("kernel-settings", Weak::Root, "root's uid"),
    ("residue-files", Weak::Root, "the folders of the payload before"),
    ("foreign-processes", Weak::Root, "no PID namespace"),
    ("foreign-environment", Weak::Under(PID_NAMESPACE), "root's rights over PID 1"),
    ("ptrace", Weak::Under(PID_NAMESPACE), "root's rights over PID 1"),
    ("foreign-memory", Weak::Under(PID_NAMESPACE), "root's rights over PID 1"),
    ("signals", Weak::Root, "no PID namespace"),
    ("survivors", Weak::Own("a_survivor_outside_of_a_sandbox_is_found"), "no PID namespace that ends"),
    ("shared-memory", Weak::Root, "no IPC namespace"),
    ("message-queues", Weak::Root, "no IPC namespace"),
    ("abstract-sockets", Weak::Root, "no network namespace"),
    ("keyring", Weak::Root, "no filter"),
    ("residue-ipc", Weak::Root, "the IPC namespace of the payload before"),
    ("vsock", Weak::Root, "no filter"),
    ("packet-sockets", Weak::Root, "no filter, root's rights"),
    ("rare-families", Weak::Root, "no filter, root's rights"),
    ("io-uring", Weak::Root, "no filter"),
    ("terminal-input", Weak::Root, "no filter"),
    ("device-files", Weak::Root, "no filter, root's rights"),
    ("user-namespace", Weak::Root, "no filter, no limit on user namespaces"),
    ("net-namespace", Weak::Root, "no filter, no limit on network namespaces"),
    ("ids", Weak::Root, "root's uid"),
    ("capabilities", Weak::Root, "root's capabilities"),
    ("no-new-privs", Weak::Root, "no_new_privs is not set"),
    ("seccomp", Weak::Root, "no filter"),
    (
        "set-user-id",
        Weak::Under(&["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]),
        "another uid, but neither nosuid nor no_new_privs",
    ),
    ("set-user-id-bits", Weak::Root, "no filter"),
    ("core-dumps", Weak::Under(&["prlimit", "--core=4096:4096"]), "a limit that lets some through"),
    ("vm-ports", Weak::Root, "no network namespace"),
    ("neighbour", Weak::Root, "no network namespace"),
    ("metadata-address", Weak::Root, "no packet filter"),
    ("spoofed-source", Weak::Own("packets_that_no_filter_stops_are_seen_to_leave"), "no packet filter"),
    ("neighbours-ports", Weak::Own("packets_that_no_filter_stops_are_seen_to_leave"), "no source NAT"),
    ("spoofed-source-6", Weak::Own("packets_that_no_filter_stops_are_seen_to_leave"), "no packet filter"),
    ("fork-bomb", Weak::Root, "no cgroup"),
    ("memory-bomb", Weak::Root, "no cgroup"),
    ("agent-answers", Weak::Own("an_agent_that_does_not_answer_is_noticed"), "a daemon that is stopped"),
];

const PID_NAMESPACE: &[&str] =
    &["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", "SECRET=1; export SECRET; \"$@\"; exit $?", "sh"];

/// Runs one probe with these orders, in the test's surroundings.
fn probe(name: &str, before: &[&str], orders: &Orders) -> Finding {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(before).args([AGENT, "selftest-probe", "one", name]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = serde_json::to_vec(orders).unwrap();
    line.push(b'\n');
    child.stdin.take().unwrap().write_all(&line).unwrap();
    let output = child.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{name}: {e}: {}", text(&output)))
}

#[test]
fn every_probe_is_shown_to_fail() {
    let listed: Vec<_> = WEAKENED.iter().map(|(name, ..)| *name).collect();
    for probe in probes::all() {
        assert!(listed.contains(&probe.name), "no weakened surroundings for {}", probe.name);
    }
    assert_eq!(listed.len(), probes::all().count(), "the table names a probe that is none");
    let source = include_str!("selftest.rs");
    for (_, weak, _) in WEAKENED {
        if let Weak::Own(test) = weak {
            assert!(source.contains(&format!("#[test]\nfn {test}()")), "{test}");
        }
    }
}

#[test]
fn without_its_protection_every_probe_says_broken() {
    let _peer = network();
    let token = format!("vestigo-test-{}", std::process::id());
    // Baits, as the client and another payload lay them.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pilot");
    fs::write(&file, "secret").unwrap();
    let residue = Path::new("/tmp").join(mark(&token, "residue"));
    fs::write(&residue, "left").unwrap();
    let socket = folder.path().join("agent.sock");
    let _listening = UnixListener::bind(&socket).unwrap();
    let _segment = Segment::make(key(&token, "pilot")).unwrap();
    let queue_name = queue(&token, "pilot");
    make_queue(&queue_name).unwrap();
    let name = mark(&token, "pilot");
    let _named = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
    let port = TcpListener::bind("0.0.0.0:0").unwrap();
    let at = SocketAddr::new(IpAddr::V4(common::VM), port.local_addr().unwrap().port());
    let metadata = Command::new("ip").args(["addr", "add", "169.254.169.254/32", "dev", "lo"]).status().unwrap();
    assert!(metadata.success());
    let _metadata = TcpListener::bind("169.254.169.254:80").unwrap();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let orders = Orders {
        token,
        files: vec!["/nonexistent".into(), file],
        pids: vec![child.id().cast_signed()],
        keys: vec![key("nothing", "here"), key(&name, "x"), key(name.strip_suffix("-pilot").unwrap(), "pilot")],
        queues: vec!["/vestigo-nothing".into(), queue_name.clone()],
        names: vec!["vestigo-nothing".into(), name.clone()],
        sockets: vec![socket],
        vm: vec![at],
        neighbours: vec![at],
        namespaces: ["user", "mnt", "pid", "ipc", "net", "uts", "cgroup"]
            .map(|kind| {
                (kind.to_owned(), fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap().display().to_string())
            })
            .into(),
        hostname: nix::unistd::gethostname().unwrap().display().to_string(),
        pids_limit: 32,
        memory_limit: 64 << 20,
        ..Orders::default()
    };
    let mut failures = Vec::new();
    for (name, weak, how) in WEAKENED {
        let finding = match weak {
            Weak::Root => probe(name, &[], &orders),
            Weak::Under(before) => probe(name, before, &orders),
            Weak::Own(_) => continue,
        };
        if finding.outcome != Outcome::Broken {
            failures.push(format!("{name} ({how}): {:?} {}", finding.outcome, finding.detail));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    let _ = nix::mqueue::mq_unlink(queue_name.as_str());
    let _ = fs::remove_file(residue);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_survivor_outside_of_a_sandbox_is_found() {
    let token = format!("vestigo-test-survivor-{}", std::process::id());
    let finding = probe("survivors", &[], &Orders { token: token.clone(), ..Orders::default() });
    assert_eq!(finding.outcome, Outcome::NotTested, "{}", finding.detail);
    let word = survivor(&token);
    // Its parent has ended; it has not. The kernel lets a process go on a moment before its arguments can be seen.
    common::wait_for("what the client would report as broken", || client::lives(&word));
    let holds = |pid: &String| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|argument| argument == word)
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().display().to_string());
    let found: Vec<i32> = pids.filter(holds).map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(found.len(), 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(found[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn packets_that_no_filter_stops_are_seen_to_leave() {
    let peer = network();
    dual(&peer);
    // As a payload's namespace has it: without a route the kernel gives a foreign source none either.
    let route = ["route", "add", "default", "via", &PEER.to_string()];
    assert!(Command::new("ip").args(route).status().unwrap().success());
    let token = format!("vestigo-test-packets-{}", std::process::id());
    let watch = Watch::start(&token).unwrap();
    let orders = Orders {
        token,
        peer: Some(PEER),
        foreign_address: Some(Ipv4Addr::new(100, 64, 0, 6)),
        foreign_port: Some(21504),
        peer6: Some(PEER6),
        foreign_address6: Some("2001:db8:0:1::bad".parse().unwrap()),
        ..Orders::default()
    };
    let finding = probe("spoofed-source", &[], &orders);
    assert!(finding.detail.contains("sent, sent, sent"), "{}", finding.detail);
    let finding = probe("spoofed-source-6", &[], &orders);
    assert!(finding.detail.contains("sent, sent"), "{}", finding.detail);
    let seen = watch.seen();
    // The payload's own ports would be wherever the ordinary packet came from.
    let own = seen.iter().find(|packet| packet.mark == 0).unwrap().port;
    for verdict in judge(&seen, PortBlock { first: own, last: own }) {
        assert_eq!(verdict.outcome, Outcome::Broken, "{} {seen:?}", verdict.detail);
    }
    let verdict = judge6(&seen, VM6);
    assert_eq!(verdict.outcome, Outcome::Broken, "{} {seen:?}", verdict.detail);
}

/// The host has the record; the agent's own are older.
fn wait_for_its_payload(host: &Host) {
    let ours = |start: &vestigo_model::PayloadClaim| start.user.issuer.as_str() == "vestigo:selftest";
    common::wait_for("a payload of the selftest", || host.starts().iter().any(ours));
}

fn selftest(world: &World) -> Command {
    let mut command = agent();
    command.args(["selftest", "--peer", &PEER.to_string(), "--peer6", &PEER6.to_string(), "--socket"]);
    command.arg(world.path("run/agent.sock"));
    command
}

#[test]
fn all_holds_in_a_real_sandbox() {
    let world = World::start("");
    let host = world.host();
    world.wait_connected();
    dual(&world.peer);
    common::wait_for("IPv6 for payloads", || world.status().no_ipv6.is_none());
    let started = Instant::now();
    let mut run = selftest(&world);
    run.arg("--json").env("X509_USER_PROXY", "/tmp/x509up_u0").stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = run.spawn().unwrap();
    let own = format!("vestigo-{}-", run.id());
    let output = run.wait_with_output().unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let probes = report["probes"].as_array().unwrap();
    assert_eq!(probes.len(), probes::all().count());
    let not_held: Vec<_> = probes.iter().filter(|probe| probe["outcome"] != "held").collect();
    // A machine without these controllers sets no bomb off.
    let missing = |probe: &&serde_json::Value| {
        probe["outcome"] != "not-tested" || !probe["detail"].as_str().unwrap().contains("cgroup")
    };
    let wrong: Vec<_> = not_held.into_iter().filter(missing).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(output.status.success() && report["version"] == 1 && report["counts"]["broken"] == 0, "{report:#}");
    assert!(started.elapsed() < Duration::from_secs(60), "it took {:?}", started.elapsed());
    // All baits were there: what is not there cannot be found.
    let detail = |name: &str| {
        let probe = probes.iter().find(|probe| probe["probe"] == name).unwrap();
        probe["detail"].as_str().unwrap().to_owned()
    };
    for name in ["shared-memory", "message-queues", "abstract-sockets", "signals"] {
        assert!(detail(name).starts_with("none of 2 "), "{name}: {}", detail(name));
    }
    assert!(detail("residue-files").starts_with("none of 4 "), "{}", detail("residue-files"));
    assert!(detail("residue-ipc").starts_with("none of 3 "), "{}", detail("residue-ipc"));
    // The record says who it was.
    let starts = host.starts();
    assert!(starts.iter().all(|start| start.user.issuer.as_str() == "vestigo:selftest"), "{starts:?}");
    assert!(starts.iter().any(|start| report["payload"] == start.uid.to_string()));
    let left: Vec<_> = fs::read_dir("/tmp").unwrap().flatten().map(|e| e.file_name().display().to_string()).collect();
    assert!(!left.iter().any(|name| name.starts_with(&own)), "{left:?}");
}

#[test]
fn an_agent_below_usr_is_seen_by_every_payload_and_nothing_is_mounted_for_it() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let mounted = Command::new("sh")
        .args([
            "-c",
            "mount --make-rprivate / && mount -t tmpfs x /usr/local/games && cp \"$0\" /usr/local/games/agent",
            AGENT,
        ])
        .status();
    assert!(mounted.unwrap().success());
    let world = World::start("");
    let host = world.host();
    world.wait_connected();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "/usr/local/games/agent", "selftest", "--peer", &PEER.to_string()]);
    let output = command.arg("--socket").arg(world.path("run/agent.sock")).output().unwrap();
    assert!(output.status.success() && text(&output).contains(" 0 broken"), "{}", text(&output));
    assert!(host.starts().iter().all(|start| start.command[0] == "/usr/local/games/agent"));
}

#[test]
fn an_ordinary_user_gets_the_same_answers_but_for_what_only_root_can_see() {
    let world = World::start("");
    let _host = world.host();
    world.wait_connected();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--", AGENT]);
    command.args(["selftest", "--json", "--peer", &PEER.to_string(), "--socket"]).arg(world.path("run/agent.sock"));
    let output = command.env("HOME", "/nonexistent").output().unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    assert!(output.status.success(), "{report:#}");
    let not_tested = report["probes"].as_array().unwrap().iter().filter(|probe| probe["outcome"] == "not-tested");
    for probe in not_tested {
        let detail = probe["detail"].as_str().unwrap();
        let wanted = ["root", "cgroup", "IPv6"];
        assert!(wanted.iter().any(|word| detail.contains(word)), "{probe}");
    }
}

#[test]
fn a_selftest_that_is_told_to_end_leaves_nothing() {
    let world = World::start("");
    let host = world.host();
    world.wait_connected();
    // While the acknowledgement of its first payload is held back.
    host.hold.store(true, Ordering::SeqCst);
    let mut run = selftest(&world).stdout(Stdio::null()).spawn().unwrap();
    wait_for_its_payload(&host);
    let own = format!("vestigo-{}-", run.id());
    let left = || {
        let entries = fs::read_dir("/tmp").unwrap().flatten().map(|e| e.file_name().display().to_string());
        entries.filter(|name| name.starts_with(&own)).collect::<Vec<_>>()
    };
    let names = left();
    assert!(!names.is_empty(), "baits are laid");
    let token = names[0].split("-pilot").next().unwrap().to_owned();
    assert!(Segment::find(key(&token, "pilot")).is_ok() && client::lives(&mark(&token, "pilot")));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(run.id().cast_signed()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(143));
    assert_eq!(left(), Vec::<String>::new());
    assert!(Segment::find(key(&token, "pilot")).is_err() && !client::lives(&mark(&token, "pilot")));
    host.hold.store(false, Ordering::SeqCst);
    common::wait_for("its payloads' end", || world.status().payloads.is_empty());
}

#[test]
fn refusals_and_wrong_calls_have_their_codes() {
    let world = World::start("ack_timeout = 0.3");
    let output = selftest(&world).output().unwrap();
    assert!(output.status.code() == Some(202) && text(&output).contains("hostd"), "{}", text(&output));
    let host = world.host();
    world.wait_connected();
    let output = selftest(&world).args(["--only", "no-such-probe"]).output().unwrap();
    assert!(output.status.code() == Some(201) && text(&output).contains("--list"), "{}", text(&output));
    let output = selftest(&world).args(["--only", "ptrace", "residue-files"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("2 held, 0 broken") && said.contains("R-ISO-33"), "{said}");
    *host.refuse.lock().unwrap() = Some("selftest is banned");
    let output = selftest(&world).output().unwrap();
    assert!(output.status.code() == Some(203) && text(&output).contains("selftest is banned"), "{}", text(&output));
    let output = agent().args(["selftest", "--socket", "/nonexistent"]).output().unwrap();
    assert!(output.status.code() == Some(202) && text(&output).contains("no agent answers"), "{}", text(&output));
    assert!(agent().args(["selftest", "--list"]).output().unwrap().status.success());
}

#[test]
fn an_agent_that_does_not_answer_is_noticed() {
    let world = World::start("");
    let host = world.host();
    world.wait_connected();
    // A bomb's payload is asked for; its acknowledgement is held back, and meanwhile the daemon is stopped for 3 s.
    host.hold.store(true, Ordering::SeqCst);
    let run = selftest(&world).args(["--only", "agent-answers"]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for_its_payload(&host);
    let daemon = nix::unistd::Pid::from_raw(world.daemon.id().cast_signed());
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGCONT).unwrap();
    host.hold.store(false, Ordering::SeqCst);
    let output = run.wait_with_output().unwrap();
    let said = text(&output);
    assert!(output.status.code() == Some(1) && said.contains("one answer took"), "{said}");
}
