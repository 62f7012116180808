//! `guest-agent exec --plain` as an ordinary user, without a daemon. Needs root (to become that user), `setpriv`, `perl`,
//! `busybox` and user namespaces for ordinary users.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::{text, wait_for};

const WHO: [&str; 8] =
    ["--payload-id", "job-1", "--user-subject", "alice", "--user-issuer", "https://iam.example", "--vo", "atlas"];

/// A pilot's folder, and the pilot.
struct Pilot {
    folder: tempfile::TempDir,
}

impl Pilot {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(1000), Some(1000)).unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        chown(folder.path().join("tmp"), Some(1000), Some(1000)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn own(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(1000), Some(1000)).unwrap();
        path
    }

    fn call(&self) -> Command {
        let mut call = Command::new("setpriv");
        call.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--pdeathsig", "KILL", "--"]);
        call.arg(env!("CARGO_BIN_EXE_guest-agent"));
        call.env("TMPDIR", self.path("tmp")).current_dir(self.folder.path());
        call
    }

    fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        let mut call = self.call();
        call.args(["exec", "--plain"]).args(WHO).args(options).arg("--").args(command);
        call
    }

    /// Exit code, standard output, standard error.
    fn run(&self, options: &[&str], command: &[&str]) -> (Option<i32>, String, String) {
        let output = self.exec(options, command).output().unwrap();
        let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), utf8(output.stdout), utf8(output.stderr))
    }

    /// A shell with "hello" on its standard input, and the status document.
    fn documented(&self, options: &[&str], script: &str) -> (Output, Vec<serde_json::Value>) {
        let status = self.path("status.json");
        fs::write(&status, "").unwrap();
        chown(&status, Some(1000), Some(1000)).unwrap();
        let options: Vec<&str> = ["--json-status-fd", "7"].into_iter().chain(options.iter().copied()).collect();
        let exec = self.exec(&options, &["sh", "-c", script]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 7>>{}; printf hello | \"$@\" 2>&1", status.display()), "sh"]);
        shell.arg(exec.get_program()).args(exec.get_args()).env("TMPDIR", self.path("tmp"));
        let output = shell.output().unwrap();
        let document = fs::read_to_string(status).unwrap();
        (output, document.lines().map(|l| serde_json::from_str(l).unwrap()).collect())
    }

    fn leftovers(&self) -> usize {
        fs::read_dir(self.path("tmp")).unwrap().count()
    }
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
fn it_sees_nothing_of_others() {
    let pilot = Pilot::new();
    let secret = pilot.path("proxy");
    fs::write(&secret, "secret").unwrap();
    chown(&secret, Some(1000), Some(1000)).unwrap();
    let script = "sleep 60 & echo mine > /tmp/bobs; exec sleep 8815";
    let mut neighbour = pilot.exec(&[], &["sh", "-c", script]).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the neighbour", || running("8815"));
    let script = format!(
        "id -u; id -g; pwd; echo $HOME; ls /proc | grep -c '^[0-9]'; cat {0} 2>&1 | grep -c secret; ls {1} 2>&1 | grep -c vestigo-plain; \
         ls /tmp | wc -l; touch /usr/x 2>&1 | grep -c 'Read-only'; touch /etc/x /dev/x /x 2>&1 | grep -c Read-only; \
         grep -E 'Cap(Eff|Bnd|Prm)' /proc/self/status | grep -vc 0000000000000000; grep NoNewPrivs /proc/self/status; \
         ls /proc/self/fd | wc -l; env | sort | cut -d= -f1 | tr '\\n' ' '; echo; cat /proc/1/environ 2>&1 | grep -c denied; \
         unshare -Un true 2>&1 | grep -c 'not permitted'; unshare -m true 2>&1 | grep -c 'not permitted'; \
         perl -MSocket -e 'socket(S, PF_INET, SOCK_RAW, 1) or print \"raw: $!\\n\"'; kill -9 1; cat /proc/1/exe 2>&1 | grep -c denied; \
         ls /proc/1/fd 2>&1 | grep -c denied; cat /proc/net/dev | grep -c :; id -G; hostname; echo alive",
        secret.display(),
        pilot.path("tmp").display()
    );
    let mut exec = pilot.exec(&["--env", "MARK=1"], &["sh", "-c", &script]);
    let output = exec.env("PILOT_SECRET", "x").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..4], ["1000", "1000", "/work", "/work"], "{said}");
    assert!(lines[4].parse::<u32>().unwrap() <= 4, "processes: {said}");
    assert_eq!(lines[5..8], ["0", "0", "0"], "{said}");
    assert_eq!(lines[8..11], ["1", "3", "0"], "{said}");
    assert!(lines[11].ends_with('1'), "{said}");
    assert_eq!(lines[12], "4", "{said}");
    assert_eq!(lines[13].trim(), "HOME LANG LOGNAME MARK PATH PWD TERM USER VESTIGO_PAYLOAD_UID", "{said}");
    let rest = ["1", "1", "1", "raw: Operation not permitted", "1", "1", "1", "1000", "payload", "alive"];
    assert_eq!(lines[14..], rest, "{said}");
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
    wait_for("its death", || !running("8815"));
    assert!(pilot.path("proxy").exists());
}

#[test]
fn exit_codes_and_the_status_document_say_what_happened() {
    let pilot = Pilot::new();
    assert_eq!(pilot.run(&[], &["sh", "-c", "exit 7"]).0, Some(7));
    assert_eq!(pilot.run(&[], &["sh", "-c", "kill -9 $$"]).0, Some(137));
    let (code, _, said) = pilot.run(&[], &["no-such-program"]);
    assert!(code == Some(127) && said.contains("not found inside the sandbox"), "{said}");
    let (code, _, said) = pilot.run(&[], &["/etc/passwd"]);
    assert!(code == Some(126) && said.contains("execute permission"), "{said}");
    let (output, events) = pilot.documented(&[], "cat; exit 3");
    assert!(output.status.code() == Some(3) && text(&output).contains("hello"), "{}", text(&output));
    assert!(text(&output).contains("the hypervisor has no record of it"), "{}", text(&output));
    assert_eq!((&events[0]["event"], &events[0]["mode"]), (&"started".into(), &"plain".into()));
    assert_eq!((&events[0]["acknowledged"], &events[0]["leases"]), (&false.into(), &serde_json::json!([])));
    assert_eq!(events[0]["isolation"]["R-ISO-37"]["state"], "degraded");
    assert_eq!(events[0]["isolation"]["R-ISO-27"]["state"], "off");
    let digest = vestigo_model::Digest::of(&fs::read("/bin/sh").unwrap()).to_string();
    assert!(events[0]["executable"]["sha256"].as_str().unwrap().contains(&digest), "{events:?}");
    assert_eq!(events[1]["exit"], serde_json::json!({"code": 3}));
    assert_eq!(pilot.leftovers(), 0);
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let pilot = Pilot::new();
    let token = pilot.path("token");
    fs::write(&token, "x").unwrap();
    for (options, code, sentence) in [
        (vec!["--memory", "1G"], 201, "--memory and --cpus need cgroups"),
        (vec!["--cpus", "1"], 201, "systemd-run --user"),
        (vec!["--token-file", token.to_str().unwrap()], 201, "--token-file needs the daemon"),
        (vec!["--trust", "signed-by-user"], 201, "--trust needs the daemon"),
        (vec!["--bind", "/usr:/data"], 203, "does not belong to the caller"),
        (vec!["--work", "/usr"], 203, "does not belong to the caller"),
        (vec!["--ro-bind", "/proc:/data"], 203, "which no payload gets"),
        (vec!["--ro-bind", "/:/data"], 203, "is the whole VM"),
        (vec!["--ro-bind", "/usr:/proc"], 201, "the sandbox's own"),
        (vec!["--rootfs", "/etc/passwd"], 201, "is not a folder"),
        (vec!["--ro-bind", "/nowhere:/data"], 201, "cannot be opened"),
        (vec!["--chdir", "/nowhere"], 201, "cannot be entered"),
        (vec!["--env", "USER=x"], 201, "USER is set by the sandbox"),
    ] {
        let (status, out, said) = pilot.run(&options, &["echo", "ran"]);
        assert_eq!(status, Some(code), "{options:?}: {said}");
        assert!(said.contains(sentence) && !out.contains("ran"), "{options:?}: {said}");
    }
    assert_eq!(pilot.leftovers(), 0);
    let mut call = common::agent();
    let output = call.args(["exec", "--plain"]).args(WHO).args(["--", "true"]).output().unwrap();
    assert!(
        output.status.code() == Some(203) && text(&output).contains("root's files and rights"),
        "{}",
        text(&output)
    );
    // A directory as standard input would be a way out.
    let output = pilot.exec(&[], &["true"]).stdin(fs::File::open("/").unwrap()).output().unwrap();
    assert!(output.status.code() == Some(201) && text(&output).contains("standard input is a directory"));
}

#[test]
fn killing_the_client_kills_everything_and_the_next_one_wipes() {
    let pilot = Pilot::new();
    let script = "setsid sleep 8817 & (sleep 8817 &) ; trap '' TERM HUP; sleep 8817; sleep 8817";
    let mut payload = pilot.exec(&[], &["sh", "-c", script]).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the payload", || running("8817"));
    payload.kill().unwrap();
    payload.wait().unwrap();
    wait_for("their death", || !running("8817"));
    assert_eq!(pilot.leftovers(), 1, "nobody was left to wipe it");
    let left = fs::read_dir(pilot.path("tmp")).unwrap().next().unwrap().unwrap().path();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
    fs::File::open(&left).unwrap().set_times(fs::FileTimes::new().set_modified(old)).unwrap();
    // Background processes do not outlive the first one, and folders closed to their owner do not stay.
    let script = "setsid sleep 8818 & mkdir -p a/b/c; touch a/b/c/d; chmod 0 a/b/c a/b a; exit 0";
    assert_eq!(pilot.run(&[], &["sh", "-c", script]).0, Some(0));
    assert!(!running("8818"));
    assert_eq!(pilot.leftovers(), 0);
    // Signals are passed on.
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut payload =
        pilot.exec(&[], &["sh", "-c", script]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(payload.stdout.take().unwrap()), &mut line).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(payload.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(payload.wait().unwrap().code(), Some(5));
}

/// A system of its own: busybox and what hangs on it.
fn image(at: &Path) {
    for folder in ["bin", "etc"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::copy("/usr/bin/busybox", at.join("bin/busybox")).unwrap();
    fs::set_permissions(at.join("bin/busybox"), PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["sh", "ls", "cat", "id", "touch"] {
        std::os::unix::fs::symlink("busybox", at.join("bin").join(name)).unwrap();
    }
    fs::write(at.join("etc/passwd"), "").unwrap();
    fs::write(at.join("etc/os-release"), "the image's").unwrap();
}

#[test]
fn folders_are_opened_one_by_one() {
    let pilot = Pilot::new();
    let (root, work, data) = (pilot.path("root"), pilot.own("work"), pilot.own("data"));
    image(&root);
    fs::write(data.join("in"), "data\n").unwrap();
    let bind = format!("{}:/data", data.display());
    let (root, work) = (root.to_str().unwrap().to_owned(), work.to_str().unwrap().to_owned());
    let script = "cat /etc/os-release; ls -d /usr 2>/dev/null; id -un; cat /data/in; touch /data/x /etc/x 2>/dev/null; echo result > result; ls /scratch";
    let options = ["--rootfs", &root, "--work", &work, "--ro-bind", &bind, "--tmpfs", "/scratch", "--hostname", "n1"];
    let (code, out, said) = pilot.run(&options, &["sh", "-c", script]);
    assert_eq!((code, out.as_str()), (Some(0), "the image'spayload\ndata\n"), "{said}");
    assert!(!Path::new(&data).join("x").exists() && !Path::new(&root).join("etc/x").exists());
    assert_eq!(fs::read_to_string(Path::new(&work).join("result")).unwrap(), "result\n");
    // Writable, and a file alone; both on the VM's own system.
    let file = format!("{}:/opt/one", data.join("in").display());
    let (code, out, said) =
        pilot.run(&["--bind", &bind, "--ro-bind", &file], &["sh", "-c", "touch /data/new; cat /opt/one; hostname"]);
    assert_eq!((code, out.as_str()), (Some(0), "data\npayload\n"), "{said}");
    assert!(data.join("new").exists());
    // Another payload's folder that only root may read is not there for the taking.
    let closed = pilot.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let bind = format!("{}:/data", closed.display());
    let (code, _, said) = pilot.run(&["--ro-bind", &bind], &["true"]);
    assert!(code == Some(201) && said.contains("Permission denied"), "{said}");
}

#[test]
fn processes_are_counted_for_one_payload() {
    let pilot = Pilot::new();
    let script = "for i in 1 2 3 4 5 6; do sleep 1 & done; wait; echo all";
    let (_, out, said) = pilot.run(&["--pids", "5"], &["sh", "-c", script]);
    assert!(!out.contains("all") && said.contains("annot fork"), "{out} {said}");
    let (code, out, _) = pilot.run(&["--pids", "8"], &["sh", "-c", script]);
    assert_eq!((code, out.as_str()), (Some(0), "all\n"));
}

/// A pilot inside of a payload's sandbox starts payloads of its own, and those still see nothing of it.
#[test]
fn it_nests_two_deep() {
    let pilot = Pilot::new();
    let agent = format!("{}:/opt/agent", env!("CARGO_BIN_EXE_guest-agent"));
    let inner = format!("/opt/agent exec --plain --nested --net host {} -- ", WHO.join(" "));
    let facts = "id -u; ls /proc | grep -c \"^[0-9]\"; ls /work /tmp | grep -c mark; cat /proc/sys/kernel/hostname; \
                 cat /proc/1/environ 2>&1 | grep -c denied; unshare -Urm true && echo deeper; unshare -Urn true 2>&1 | grep -c permitted";
    let script = format!("touch /work/mark /tmp/mark; {inner} sh -c '{facts}'");
    let (code, out, said) = pilot.run(&["--nested", "--ro-bind", &agent], &["sh", "-c", &script]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(code, Some(0), "{out} {said}");
    assert_eq!(lines[0], "1000", "{out}");
    assert!(lines[1].parse::<u32>().unwrap() <= 4, "{out}");
    assert_eq!(lines[2..], ["0", "payload", "1", "deeper", "1"], "{out} {said}");
    // Without the flag there is nothing to nest in, and the agent inside says what would help.
    let (code, _, said) = pilot.run(&["--ro-bind", &agent], &["sh", "-c", &format!("{inner} true")]);
    assert!(code == Some(202) && said.contains("--plain needs user namespaces"), "{said}");
}

#[test]
fn a_shared_network_is_one_named_flag_and_recorded() {
    let pilot = Pilot::new();
    let mine = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let (_, none, _) = pilot.run(&[], &["readlink", "/proc/self/ns/net"]);
    let (code, host, said) = pilot.run(&["--net", "host"], &["readlink", "/proc/self/ns/net"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(none.trim() != mine && host.trim() == mine, "{none} {host} {mine}");
    let mut call = pilot.call();
    let output = call.args(["exec", "--net", "host"]).args(WHO).args(["--", "true"]).output().unwrap();
    assert!(output.status.code() == Some(201) && text(&output).contains("--plain"), "{}", text(&output));
    let (_, events) = pilot.documented(&["--net", "host"], "true");
    assert_eq!(events[0]["isolation"]["R-ISO-37"]["state"], "off");
    let (output, events) = pilot.documented(&["--memory", "1G"], "true");
    assert_eq!((output.status.code(), &events[0]["event"]), (Some(201), &"refused".into()));
}
