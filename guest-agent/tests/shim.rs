//! The agent in the place of `apptainer` and `glexec`, against a real daemon. Needs root, `nft`, `setpriv` and `busybox`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use common::{World, text};

/// An unpacked image: busybox and what hangs on it.
fn image(at: &Path) {
    for folder in ["bin", "etc", "srv", "data", ".singularity.d"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::copy("/usr/bin/busybox", at.join("bin/busybox")).unwrap();
    for name in ["sh", "ls", "cat", "id", "touch", "pwd", "env"] {
        symlink("busybox", at.join("bin").join(name)).unwrap();
    }
    fs::write(at.join("etc/os-release"), "the image's\n").unwrap();
    fs::write(at.join(".singularity.d/runscript"), "#!/bin/sh\necho runscript $1\n").unwrap();
    for program in ["bin/busybox", ".singularity.d/runscript"] {
        fs::set_permissions(at.join(program), PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// A call by uid 1000, under another name.
fn call(world: &World, name: &str, folder: &Path, words: &[&str]) -> Command {
    let link = world.path(name);
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_guest-agent"), &link).unwrap();
    }
    let mut call = Command::new("setpriv");
    call.args(["--pdeathsig", "KILL", "--"]).arg(link).args(words).current_dir(folder).uid(1000).gid(1000);
    call.env("VESTIGO_PAYLOAD_ID", "job-1").env("VESTIGO_VO", "atlas").env("VESTIGO_USER_SUBJECT", "alice");
    call.env("VESTIGO_USER_ISSUER", "https://iam.example").env("VESTIGO_SOCKET", world.path("run/agent.sock"));
    call
}

fn pilot(world: &World) -> PathBuf {
    let folder = world.path("pilot");
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(1000), Some(1000)).unwrap();
    folder
}

#[test]
fn a_pilots_apptainer_call_runs_in_the_agents_sandbox() {
    let world = World::start("");
    let host = world.host();
    let (root, job) = (world.path("image"), pilot(&world));
    image(&root);
    let root = root.display().to_string();
    let bind = format!("{}:/srv", job.display());
    let script = "cat /etc/os-release; pwd; id -u; echo $HOME $A; echo out > result; touch /etc/x 2>/dev/null || echo read-only; ls /usr 2>/dev/null";
    let words = ["-s", "exec", "-c", "-i", "-p", "--pwd", "/srv", "-B", &bind, &root, "/bin/sh", "-c", script];
    let output =
        call(&world, "apptainer", &job, &words).env("APPTAINERENV_A", "1").env("SECRET", "x").output().unwrap();
    assert_eq!(text(&output), "the image's\n/srv\n1000\n/work 1\nread-only\n");
    assert_eq!(fs::read_to_string(job.join("result")).unwrap(), "out\n");
    let start = &host.starts()[0];
    assert_eq!((start.user.subject.as_str(), start.vo.as_str()), ("alice", "atlas"));
    assert_eq!(start.executable.as_ref().unwrap().path, "/bin/sh");
    // The home goes along, `run` takes the image's own program, and exit codes are the payload's.
    let home = format!("{}:/data", job.display());
    let output =
        call(&world, "singularity", &job, &["exec", "-H", &home, &root, "sh", "-c", "echo $HOME; pwd; exit 7"]);
    let output = { output }.output().unwrap();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(7), "/data\n/data\n"));
    let output = call(&world, "apptainer", &job, &["run", &root, "here"]).output().unwrap();
    assert_eq!(text(&output), "runscript here\n");
    let output = call(&world, "apptainer", &job, &["-q", "test", "-C", &root]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    // DIRAC's way: the script lies in the work directory's own /tmp.
    fs::create_dir(job.join("tmp")).unwrap();
    fs::write(job.join("tmp/run.sh"), "#!/bin/sh\necho $HOME\n").unwrap();
    fs::set_permissions(job.join("tmp/run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    for path in ["tmp", "tmp/run.sh"] {
        chown(job.join(path), Some(1000), Some(1000)).unwrap();
    }
    let work = job.display().to_string();
    let words = ["exec", "--contain", "--ipc", "--workdir", &work, "--home", "/tmp", "--userns", &root, "/tmp/run.sh"];
    let output = call(&world, "apptainer", &job, &words).output().unwrap();
    assert_eq!(text(&output), "/tmp\n");
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_runs() {
    let world = World::start("");
    let host = world.host();
    let (root, job) = (world.path("image"), pilot(&world));
    image(&root);
    let root = root.display().to_string();
    let output = call(&world, "apptainer", &job, &["exec", "--nv", &root, "true"]).output().unwrap();
    assert!(output.status.code() == Some(201) && text(&output).contains("--nv: devices"), "{}", text(&output));
    let mut nameless = call(&world, "apptainer", &job, &["exec", &root, "true"]);
    let output = nameless.env_remove("VESTIGO_USER_SUBJECT").output().unwrap();
    assert!(
        output.status.code() == Some(201) && text(&output).contains("set VESTIGO_USER_SUBJECT in"),
        "{}",
        text(&output)
    );
    let output = call(&world, "apptainer", &job, &["exec", &root, "true"]).env("VESTIGO_VO", "../x").output().unwrap();
    assert_eq!(output.status.code(), Some(201), "{}", text(&output));
    assert!(host.starts().is_empty());
    let output = call(&world, "singularity", &job, &["--version"]).output().unwrap();
    assert!(output.status.success() && text(&output).starts_with("guest-agent "), "{}", text(&output));
}

#[test]
fn glexec_gives_its_own_codes_and_hands_the_proxy_over() {
    let world = World::start("");
    let host = world.host();
    let job = pilot(&world);
    let run = |words: &[&str]| {
        let output = call(&world, "glexec", &job, words).output().unwrap();
        (output.status.code(), text(&output))
    };
    assert_eq!(run(&["/bin/sh", "-c", "exit 203"]).0, Some(204));
    assert_eq!(run(&["/bin/sh", "-c", "exit 9"]).0, Some(9));
    assert_eq!(run(&["/no/such"]).0, Some(201));
    assert_eq!(run(&["/etc/passwd"]).0, Some(126));
    *host.refuse.lock().unwrap() = Some("user alice is banned");
    assert_eq!(run(&["/bin/true"]).0, Some(203));
    *host.refuse.lock().unwrap() = None;
    let proxy = job.join("proxy");
    fs::write(&proxy, "the proxy\n").unwrap();
    fs::set_permissions(&proxy, PermissionsExt::from_mode(0o600)).unwrap();
    chown(&proxy, Some(1000), Some(1000)).unwrap();
    let script =
        "cat $X509_USER_PROXY; echo $X509_USER_PROXY; (echo x > $X509_USER_PROXY) 2>/dev/null || echo read-only";
    let mut glexec = call(&world, "glexec", &job, &["/bin/sh", "-c", script]);
    let output = glexec.env("GLEXEC_CLIENT_CERT", &proxy).env("GLEXEC_SOURCE_PROXY", &proxy).output().unwrap();
    assert_eq!(text(&output), "the proxy\n/tmp/x509up_u1000\nread-only\n");
}

/// CVMFS is a folder of mounts: they come along, read-only.
#[test]
fn what_is_mounted_below_a_shown_folder_is_shown_too() {
    let world = World::start("");
    let _host = world.host();
    let (root, job, cvmfs) = (world.path("image"), pilot(&world), world.path("cvmfs"));
    image(&root);
    let repository = cvmfs.join("atlas.cern.ch");
    fs::create_dir_all(&repository).unwrap();
    let fill = format!("echo software > {}/setup.sh", repository.display());
    let nsenter = |words: &[&str]| {
        let mut call = Command::new("nsenter");
        call.args(["-m", "-t", &world.daemon.id().to_string()]).args(words);
        call
    };
    let place = repository.display().to_string();
    assert!(nsenter(&["mount", "-t", "tmpfs", "tmpfs", &place]).status().unwrap().success());
    assert!(nsenter(&["sh", "-c", &fill]).status().unwrap().success());
    let bind = format!("{}:/data", cvmfs.display());
    let script = "cat /data/atlas.cern.ch/setup.sh; touch /data/atlas.cern.ch/x 2>/dev/null || echo read-only";
    let words = ["exec", "-B", &bind, &root.display().to_string(), "sh", "-c", script];
    let output = call(&world, "apptainer", &job, &words).output().unwrap();
    assert!(nsenter(&["umount", "-l", &place]).status().unwrap().success());
    assert_eq!(text(&output), "software\nread-only\n");
}

/// The same calls where there is no daemon and no root.
#[test]
fn shims_work_without_the_daemon_if_the_pilot_says_so() {
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(1000), Some(1000)).unwrap();
    let (root, link) = (folder.path().join("image"), folder.path().join("apptainer"));
    image(&root);
    symlink(env!("CARGO_BIN_EXE_guest-agent"), &link).unwrap();
    let mut call = Command::new("setpriv");
    call.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--pdeathsig", "KILL", "--"]).arg(&link);
    call.args(["exec", "-B"]).arg(format!("{}:/srv", folder.path().display())).arg(&root).args([
        "sh",
        "-c",
        "cat /etc/os-release; ls /srv",
    ]);
    call.env("VESTIGO_PAYLOAD_ID", "j").env("VESTIGO_VO", "atlas").env("VESTIGO_USER_SUBJECT", "alice");
    call.env("VESTIGO_USER_ISSUER", "i")
        .env("VESTIGO_PLAIN", "1")
        .env("TMPDIR", folder.path())
        .current_dir(folder.path());
    let output = call.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.starts_with("the image's\n") && said.contains("image\n"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_bad_variable_and_a_bad_name_are_called_by_their_names() {
    let world = World::start("");
    let job = pilot(&world);
    for (variable, value) in
        [("VESTIGO_NET", "some"), ("VESTIGO_STATUS_FD", "x"), ("VESTIGO_STATUS_FD", "77"), ("VESTIGO_VO", " ")]
    {
        let mut call = call(&world, "glexec", &job, &["/bin/true"]);
        let output = call.env("VESTIGO_PLAIN", "1").env(variable, value).output().unwrap();
        assert!(output.status.code() == Some(201) && text(&output).contains(variable), "{variable}: {}", text(&output));
    }
    // What the mapping refuses is in the document too.
    let status = job.join("status.json");
    common::file_of(1000, &status, 0o644, "");
    let file = fs::OpenOptions::new().read(true).write(true).open(&status).unwrap();
    let mut call = call(&world, "glexec", &job, &["/bin/true"]);
    let output = call.env("VESTIGO_STATUS_FD", "0").env_remove("VESTIGO_VO").stdin(file).output().unwrap();
    let said: serde_json::Value = serde_json::from_str(&fs::read_to_string(status).unwrap()).unwrap();
    assert!(output.status.code() == Some(201) && said["event"] == "refused" && said["code"] == 201, "{said}");
    let shim = |words: &[&str]| common::agent().arg("shim").args(words).output().unwrap();
    let (help, unknown) = (shim(&["--help"]), shim(&["docker"]));
    assert!(help.status.success() && text(&help).contains("apptainer|singularity|glexec"), "{}", text(&help));
    assert!(unknown.status.code() == Some(201) && text(&unknown).contains("docker"), "{}", text(&unknown));
}
