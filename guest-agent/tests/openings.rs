//! Each opening of the sandbox by its flag, against a real daemon: what it shows, to whom, and what stays closed. Needs root,
//! `nft`, `perl`, `busybox` and `setpriv`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt, symlink},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{Host, World, file_of, processes, text, wait_for};
use guest_agent::{
    protocol::{ExecRequest, Reply, Request},
    shape::{Bind, Shape},
    wire::Channel,
};
use nix::{
    libc,
    mount::{MsFlags, mount},
};
use vestigo_model::{Enforcement, RuleState, User};

const PILOT: u32 = 1000;

/// `flag SRC:DST` as arguments.
fn pair(source: &Path, target: &str) -> String {
    format!("{}:{target}", source.display())
}

#[test]
fn what_is_shown_read_only_is_read_with_the_callers_rights_and_never_written() {
    let world = World::start("");
    let _host = world.host();
    let own = world.folder_of(PILOT, "own", 0o700);
    file_of(PILOT, &own.join("file"), 0o600, "mine\n");
    for target in ["/opt/a/b", "/opt/x", "/home/x", "/work/x", "/work/x/y", "/tmp/y", "/new", "/var/lib/x"] {
        let script = format!("cat {target}/file; stat -c %u {target} {target}/file; echo x > {target}/new");
        let (_, said) = world.run(PILOT, &["--ro-bind", &pair(&own, target)], &["sh", "-c", &script]);
        assert!(said.starts_with("mine\n1000\n1000\n") && said.contains("Read-only file system"), "{target}: {said}");
        let file = own.join("file");
        let script = format!("cat {target}; stat -c %u {target}; echo x > {target}");
        let (_, said) = world.run(PILOT, &["--ro-bind", &pair(&file, target)], &["sh", "-c", &script]);
        assert!(said.starts_with("mine\n1000\n") && said.contains("Read-only file system"), "{target}: {said}");
    }
    assert!(!own.join("new").exists());
    // Without a target it lies where it lies outside.
    let script = format!("cat {}/file", own.display());
    assert_eq!(
        world.run(PILOT, &["--ro-bind", own.to_str().unwrap()], &["sh", "-c", &script]),
        (Some(0), "mine\n".into())
    );
    // Of what is somebody else's the payload has a stranger's rights, whoever calls.
    let roots = world.folder_of(0, "roots", 0o755);
    file_of(0, &roots.join("open"), 0o644, "open\n");
    file_of(0, &roots.join("shut"), 0o600, "shut\n");
    for caller in [PILOT, 0] {
        let (_, said) =
            world.run(caller, &["--ro-bind", &pair(&roots, "/d")], &["sh", "-c", "cat /d/open /d/shut; stat -c %u /d"]);
        assert!(said.contains("open\n") && said.contains("Permission denied") && !said.contains("shut\n"), "{said}");
        assert!(said.contains("65534"), "{said}");
    }
    // What the caller cannot read it cannot show.
    let secret = world.folder_of(0, "secret", 0o700);
    let (code, said) = world.run(PILOT, &["--ro-bind", &pair(&secret, "/d")], &["true"]);
    assert!(code == Some(201) && said.contains("that you can read"), "{said}");
    wait_for("the scratch folders' end", || world.status().payloads.is_empty());
}

#[test]
fn a_place_that_is_the_sandboxs_or_the_systems_is_refused_with_the_remedy() {
    let world = World::start("");
    let _host = world.host();
    let own = world.folder_of(PILOT, "own", 0o700);
    for target in ["/", "/proc/x", "/dev/shm", "/sys", "/run", "/work", "/tmp", "/var", "relative", "/a/../b"] {
        let (code, said) = world.run(PILOT, &["--ro-bind", &pair(&own, target)], &["true"]);
        assert!(
            code == Some(201) && said.contains("give an absolute path") || said.contains("mount on another folder"),
            "{target}: {said}"
        );
        let (code, said) = world.run(PILOT, &["--tmpfs", target], &["true"]);
        assert!(code == Some(201), "{target}: {said}");
    }
    for target in ["/usr/no-such-folder", "/usr/share/x/y", "/etc/x"] {
        let (code, said) = world.run(PILOT, &["--ro-bind", &pair(&own, target)], &["true"]);
        assert!(code == Some(201) && said.contains(target) && said.contains("read-only there"), "{said}");
    }
    // A link of the system's, /bin for one, leads nowhere.
    let (code, said) = world.run(PILOT, &["--ro-bind", &pair(&own, "/bin/x")], &["true"]);
    assert!(code == Some(201) && said.contains("symbolic link"), "{said}");
    // A folder on a file and a file on a folder.
    file_of(PILOT, &own.join("file"), 0o600, "mine\n");
    for (source, target) in [(own.clone(), "/etc/passwd"), (own.join("file"), "/etc")] {
        let (code, said) = world.run(PILOT, &["--ro-bind", &pair(&source, target)], &["true"]);
        assert!(code == Some(201) && said.contains(target), "{said}");
    }
    let many: Vec<String> = (0..17).flat_map(|n| ["--tmpfs".to_owned(), format!("/d{n}")]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (code, said) = world.run(PILOT, &many, &["true"]);
    assert!(code == Some(201) && said.contains("more than 16"), "{said}");
    assert_eq!(world.run(PILOT, &many[2..], &["true"]).0, Some(0));
}

#[test]
fn what_is_shown_for_writing_is_the_callers_own_and_so_is_what_is_made_there() {
    let world = World::start("");
    let _host = world.host();
    let own = world.folder_of(PILOT, "own", 0o700);
    file_of(PILOT, &own.join("file"), 0o600, "mine\n");
    for (number, target) in ["/opt/a", "/home/x", "/work/x", "/tmp/y"].into_iter().enumerate() {
        let script = format!(
            "set -e; cd {target}; mkdir d{number}; echo x > d{number}/f; echo more >> file; mv d{number}/f .; rm f"
        );
        let (code, said) = world.run(PILOT, &["--bind", &pair(&own, target)], &["sh", "-c", &script]);
        assert_eq!(code, Some(0), "{target}: {said}");
        let made = fs::metadata(own.join(format!("d{number}"))).unwrap();
        assert_eq!((made.uid(), made.gid()), (PILOT, PILOT));
    }
    assert_eq!(fs::read_to_string(own.join("file")).unwrap(), "mine\nmore\nmore\nmore\nmore\n");
    let file = own.join("file");
    let (code, said) = world.run(PILOT, &["--bind", &pair(&file, "/out.txt")], &["sh", "-c", "echo only > /out.txt"]);
    assert!(code == Some(0) && fs::read_to_string(&file).unwrap() == "only\n", "{said}");
    // A program of the caller's that whoever runs it would be the caller with: nobody makes one.
    for mode in ["4755", "2755", "6755", "u+s", "g+s"] {
        for options in [&["--bind", &pair(&own, "/d")][..], &["--nested", "--bind", &pair(&own, "/d")]] {
            let script = format!("cp /usr/bin/id /d/suid && chmod 755 /d/suid && chmod {mode} /d/suid");
            let (code, said) = world.run(PILOT, options, &["sh", "-c", &script]);
            assert!(code != Some(0) && said.contains("Operation not permitted"), "{mode}: {said}");
            let made = fs::metadata(own.join("suid")).unwrap();
            assert_eq!((made.uid(), made.mode() & 0o7777), (PILOT, 0o755), "{mode}");
            fs::remove_file(own.join("suid")).unwrap();
        }
    }
    // Set-uid bits and devices are worth nothing there.
    let script = "cp /usr/bin/id /d/id && grep ' /d ' /proc/self/mounts";
    let (_, said) = world.run(PILOT, &["--bind", &pair(&own, "/d")], &["sh", "-c", script]);
    assert!(said.contains("nosuid") && said.contains("nodev"), "{said}");
    for (caller, folder, sentence) in [
        (0, world.folder_of(0, "roots", 0o777), "root's files"),
        (PILOT, world.path("roots"), "give one of your own"),
        (PILOT, world.folder_of(1001, "other", 0o777), "give one of your own"),
    ] {
        let (code, said) = world.run(caller, &["--bind", &pair(&folder, "/d")], &["sh", "-c", "touch /d/x"]);
        assert!(code == Some(203) && said.contains(sentence) && !folder.join("x").exists(), "{said}");
        let (code, said) = world.run(caller, &["--work", folder.to_str().unwrap()], &["touch", "x"]);
        assert!(code == Some(203) && said.contains(sentence) && !folder.join("x").exists(), "{said}");
    }
    // With --work and a bind below it: the mount point is not made in the caller's folder.
    let work = world.folder_of(PILOT, "pilot", 0o700);
    let options = ["--work", work.to_str().unwrap(), "--bind", &pair(&own, "/work/x")];
    let (code, said) = world.run(PILOT, &options, &["true"]);
    assert!(code == Some(201) && said.contains("/work/x") && said.contains("make it"), "{said}");
    fs::create_dir(work.join("x")).unwrap();
    std::os::unix::fs::chown(work.join("x"), Some(PILOT), Some(PILOT)).unwrap();
    let (code, said) = world.run(PILOT, &options, &["sh", "-c", "echo x > x/y; cat x/file"]);
    assert!(code == Some(0) && said == "only\n" && own.join("y").exists() && !work.join("x/y").exists(), "{said}");
}

/// A request as a hostile client could make it: descriptors of its own choosing.
fn forged(world: &World, shape: Shape, files: &[OwnedFd]) -> Reply {
    let label = |text: &str| vestigo_model::Label::new(text).unwrap();
    let request = ExecRequest {
        payload: vestigo_model::PayloadId::new("job-1").unwrap(),
        user: Some(User { issuer: label("https://iam.example"), subject: label("alice") }),
        vo: vestigo_model::Vo::new("atlas").unwrap(),
        pilot: None,
        trust: None,
        task: None,
        token: None,
        pilot_tokens: Vec::new(),
        command: vec!["/bin/true".into()],
        env: Vec::new(),
        shape,
    };
    let null = File::open("/dev/null").unwrap();
    let mut fds = vec![null.as_fd(), null.as_fd(), null.as_fd()];
    fds.extend(files.iter().map(AsFd::as_fd));
    let mut channel = Channel::new(UnixStream::connect(world.path("run/agent.sock")).unwrap());
    channel.send(&Request::Exec(Box::new(request)), &fds).unwrap();
    channel.receive_within(Duration::from_secs(20)).unwrap()
}

fn bind() -> Shape {
    Shape { binds: vec![Bind { target: "/d".into(), writable: false }], ..Shape::default() }
}

#[test]
fn sockets_devices_and_processes_of_the_vm_are_not_shown_whoever_asks() {
    let world = World::start("");
    let _host = world.host();
    let open = |path: &Path| -> OwnedFd { File::open(path).unwrap().into() };
    let path =
        |path: &str| -> OwnedFd { File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into() };
    let (socket, _other) = UnixStream::pair().unwrap();
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let cases: Vec<(&str, OwnedFd)> = vec![
        ("below /dev, /proc, /sys or /run", open(Path::new("/proc"))),
        ("below /dev, /proc, /sys or /run", open(Path::new("/proc/sys"))),
        ("below /dev, /proc, /sys or /run", open(Path::new("/proc/self/fd"))),
        ("below /dev, /proc, /sys or /run", open(Path::new("/proc/self/environ"))),
        ("below /dev, /proc, /sys or /run", open(Path::new("/dev"))),
        ("below /dev, /proc, /sys or /run", open(Path::new("/sys/fs/cgroup"))),
        ("below /dev, /proc, /sys or /run", open(Path::new("/run"))),
        ("neither a folder nor a file", open(Path::new("/dev/null"))),
        ("neither a folder nor a file", socket.into()),
        ("neither a folder nor a file", reader),
        ("a mere path", path("/usr")),
        ("a mere path", path("/proc/1")),
        ("a mere path", path("/dev/null")),
    ];
    for (sentence, file) in cases {
        let name = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
        match forged(&world, bind(), &[file]) {
            Reply::Refused { reason, code } => {
                assert!(reason.contains(sentence) && (code == 201 || code == 203), "{name:?}: {reason}");
            }
            other => panic!("{name:?}: {other:?}"),
        }
    }
    // The same for a root and a home.
    for shape in [Shape { rootfs: true, ..Shape::default() }, Shape { work: true, ..Shape::default() }] {
        for (file, sentence) in [(open(Path::new("/proc")), "R"), (open(Path::new("/etc/passwd")), "not a folder")] {
            let reply = forged(&world, shape.clone(), &[file]);
            assert!(
                matches!(&reply, Reply::Refused { reason, .. } if reason.contains(sentence) || sentence == "R"),
                "{reply:?}"
            );
        }
    }
    // One too few, and one of a mount namespace of the caller's own.
    let reply = forged(&world, bind(), &[]);
    assert!(matches!(&reply, Reply::Refused { reason, .. } if reason.contains("is missing")), "{reply:?}");
    let foreign = std::thread::spawn(|| -> OwnedFd {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        File::open("/mnt").unwrap().into()
    });
    let reply = forged(&world, bind(), &[foreign.join().unwrap()]);
    assert!(matches!(&reply, Reply::Refused { .. }), "{reply:?}");
    // And one that is fine, so that the requests are what they seem.
    let fine = world.folder_of(0, "fine", 0o755);
    let reply = forged(&world, bind(), &[open(&fine)]);
    assert!(matches!(&reply, Reply::Started { .. }), "{reply:?}");
}

#[test]
fn the_agents_socket_is_out_of_reach_and_a_payload_that_gets_there_is_refused() {
    let world = World::start("");
    let _host = world.host();
    let connect = |path: &str| {
        format!(
            "use Socket; $SIG{{PIPE}} = 'IGNORE'; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; connect($s, sockaddr_un('{path}')) or do {{ print \"no: $!\\n\"; exit }}; \
             print $s qq({{\"type\":\"status\"}}\\n); $s->flush if $s->can('flush'); shutdown($s, 1); print scalar <$s>"
        )
    };
    let run = world.path("run");
    // The state folder stands somewhere else than in /run here: it must not be shown all the same.
    for source in [run.clone(), run.join("agent.sock"), world.path("scratch"), world.folder.path().to_path_buf()] {
        let (code, said) = world.run(
            PILOT,
            &["--ro-bind", &pair(&source, "/d")],
            &["perl", "-MIO::Handle", "-e", &connect("/d/agent.sock")],
        );
        assert!(code == Some(203) || code == Some(201), "{}: {said}", source.display());
    }
    // No folder above it is refused by name where a link of the caller's leads there: the descriptor tells.
    let own = world.folder_of(PILOT, "own", 0o755);
    symlink(&run, own.join("link")).unwrap();
    let (code, said) = world.run(PILOT, &["--ro-bind", &pair(&own.join("link"), "/d")], &["true"]);
    assert!(code == Some(203), "{said}");
    // A link inside a folder leads nowhere inside.
    let (_, said) = world.run(
        PILOT,
        &["--ro-bind", &pair(&own, "/d")],
        &["perl", "-MIO::Handle", "-e", &connect("/d/link/agent.sock")],
    );
    assert!(said.contains("No such file"), "{said}");
    // Should it get there by a hard link, it is known by its uid. In a folder of the caller's the kernel is before that: root, whose
    // socket it is, has no name there.
    let roots = world.folder_of(0, "roots", 0o755);
    for (folder, sentence) in [(own, "no: Permission denied"), (roots, "a payload may not start payloads")] {
        fs::hard_link(run.join("agent.sock"), folder.join("sock")).unwrap();
        let command = ["perl", "-MIO::Handle", "-e", &connect("/d/sock")];
        let (_, said) = world.run(PILOT, &["--ro-bind", &pair(&folder, "/d")], &command);
        assert!(said.contains(sentence), "{said}");
    }
}

/// A root with busybox alone, of this uid's.
fn image(world: &World, name: &str, uid: u32) -> std::path::PathBuf {
    let root = world.folder_of(uid, name, 0o755);
    for folder in ["bin", "etc", "var", "var/tmp", "var/lib", "data"] {
        fs::create_dir(root.join(folder)).unwrap();
        std::os::unix::fs::chown(root.join(folder), Some(uid), Some(uid)).unwrap();
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    file_of(uid, &root.join("etc/os-release"), 0o644, "ID=other\n");
    file_of(uid, &root.join("etc/passwd"), 0o644, "nobody-here:x:0:0::/:/\n");
    file_of(uid, &root.join("etc/resolv.conf"), 0o644, "nameserver 192.0.2.1\n");
    root
}

#[test]
fn another_systems_root_is_run_read_only_with_the_sandboxs_own_folders() {
    let world = World::start("");
    let host = world.host();
    for caller in [PILOT, 0] {
        let root = image(&world, &format!("image{caller}"), caller);
        let root = root.to_str().unwrap();
        let script = "B=/bin/busybox; $B cat /etc/os-release; $B grep -c payload /etc/passwd; $B grep -c 192.0.2.1 /etc/resolv.conf; \
                      $B ls /usr 2>&1; $B id -u; $B ls / | $B tr '\\n' ' '; echo; echo x > /bin/x; echo x > /x; \
                      for d in /work /tmp /var/tmp /dev/shm; do echo x > $d/x && echo fine; done; $B head -c1 /dev/zero | $B wc -c; $B ls -d /proc/self";
        let (_, said) = world.run(caller, &["--rootfs", root], &["/bin/sh", "-c", script]);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..3], ["ID=other", "1", "0"], "{said}");
        assert!(lines[3].contains("/usr: No such file"), "{said}");
        assert_eq!(lines[4..6], ["1000", "bin data dev etc proc run sys tmp var work "], "{said}");
        assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
        assert_eq!(said.matches("fine").count(), 4, "{said}");
        let digest = vestigo_model::Digest::of(&fs::read("/usr/bin/busybox").unwrap());
        wait_for("the record", || {
            host.starts().last().is_some_and(|s| s.executable.as_ref().unwrap().sha256 == digest)
        });
        // Openings go together.
        let own =
            if caller == 0 { world.folder_of(0, "shown0", 0o755) } else { world.folder_of(PILOT, "shown", 0o700) };
        file_of(caller, &own.join("f"), 0o644, "shown\n");
        for target in ["/data", "/newer", "/var/lib", "/work/x"] {
            let script = format!("/bin/busybox cat {target}/f");
            let said =
                world.run(caller, &["--rootfs", root, "--ro-bind", &pair(&own, target)], &["/bin/sh", "-c", &script]);
            assert_eq!(said, (Some(0), "shown\n".into()), "{target}");
        }
        let (code, said) = world.run(caller, &["--rootfs", root, "--ro-bind", &pair(&own, "/bin/new")], &["/bin/sh"]);
        assert!(code == Some(201) && said.contains("read-only there"), "{said}");
    }
    // The VM's programs are not there.
    let (code, said) = world.run(PILOT, &["--rootfs", world.path("image1000").to_str().unwrap()], &["/usr/bin/true"]);
    assert!(code == Some(127), "{said}");
}

/// Whatever an image holds, what the payload sees of the VM is nothing but the image and the sandbox's own.
#[test]
fn links_in_an_image_lead_nowhere() {
    let world = World::start("");
    let _host = world.host();
    let marker = world.folder_of(0, "vm", 0o755);
    file_of(0, &marker.join("marker"), 0o644, "of the VM\n");
    let own = world.folder_of(PILOT, "own", 0o700);
    file_of(PILOT, &own.join("f"), 0o600, "shown\n");
    let up = "/../../../../../../../..";
    let change = |name: &str, change: &dyn Fn(&Path)| {
        let root = image(&world, name, PILOT);
        change(&root);
        root.display().to_string()
    };
    let replace = |root: &Path, name: &str, target: &str| {
        let at = root.join(name);
        let _ = fs::remove_dir_all(&at);
        symlink(target, at).unwrap();
    };
    let usual = "B=/bin/busybox; $B id -u; $B grep -c . /proc/self/status; $B readlink /proc/self/exe; $B test -c /dev/null && echo null; \
                 $B ls -ld /proc /dev /work /tmp | $B cut -c1; $B grep -h max /proc/sys/user/max_net_namespaces /dev/null; $B cat /proc/sys/user/max_net_namespaces";
    let looks = |root: &str, options: &[&str], script: &str| {
        let options = [&["--rootfs", root], options].concat();
        let (code, said) = world.run(PILOT, &options, &["/bin/sh", "-c", script]);
        assert!(!said.contains("of the VM"), "{root}: {said}");
        (code, said)
    };
    let all_own = |root: &str| {
        let (code, said) = looks(root, &[], usual);
        assert!(code == Some(0) && said.contains("null\nd\nd\nd\nd\n") && said.ends_with("\n0\n"), "{root}: {said}");
    };
    // A target that is a link: into the VM, to the root itself, onto what is the sandbox's.
    for (number, link) in
        [up, "/", ".", "/proc", "/dev", "proc/sys", "/work", &marker.display().to_string()].into_iter().enumerate()
    {
        let root = change(&format!("to{number}"), &|root| replace(root, "data", link));
        for target in ["/data", "/data/x"] {
            let (code, said) = looks(&root, &["--ro-bind", &pair(&own, target)], usual);
            assert!(code == Some(201) && said.contains("symbolic link"), "{link}: {said}");
            let (code, said) = looks(&root, &["--tmpfs", target], usual);
            assert!(code == Some(201) && said.contains("symbolic link"), "{link}: {said}");
        }
        all_own(&root);
        looks(&root, &[], &format!("/bin/busybox cat /data/marker /data{}/marker", marker.display()));
    }
    // What the sandbox brings itself, as a link or a file.
    for name in ["dev", "proc", "sys", "run", "tmp", "work"] {
        let root = change(&format!("own-{name}"), &|root| replace(root, name, up));
        all_own(&root);
        let root = change(&format!("file-{name}"), &|root| file_of(PILOT, &root.join(name), 0o644, "a file\n"));
        all_own(&root);
    }
    for (number, link) in [up, "../../etc", "/etc", "/proc", "nowhere"].into_iter().enumerate() {
        let root = change(&format!("etc{number}"), &|root| replace(root, "etc", link));
        all_own(&root);
    }
    for (number, link) in [up, "/", "/tmp", "/dev", "/etc", "data", "nowhere"].into_iter().enumerate() {
        let root = change(&format!("var{number}"), &|root| replace(root, "var", link));
        let (code, said) = looks(&root, &[], usual);
        assert!(code == Some(0) || said.contains("/var/tmp") && said.contains("image"), "{link}: {said}");
        println!("var -> {link}: {said}");
    }
    for name in ["passwd", "resolv.conf"] {
        let root = change(&format!("link-{name}"), &|root| {
            fs::remove_file(root.join("etc").join(name)).unwrap();
            symlink(marker.join("marker"), root.join("etc").join(name)).unwrap();
        });
        let (_, said) = looks(&root, &[], &format!("/bin/busybox cat /etc/{name}"));
        assert!(said.contains("No such file"), "{said}");
    }
    // A root without the folder, one with a file for it, and one with more entries than any system has.
    let root = change("bare", &|root| fs::remove_dir_all(root.join("var")).unwrap());
    all_own(&root);
    let root = change("no-var-tmp", &|root| fs::remove_dir(root.join("var/tmp")).unwrap());
    let (code, said) = looks(&root, &[], usual);
    assert!(code == Some(0) || said.contains("/var/tmp") && said.contains("image"), "{said}");
    let root =
        change("crowd", &|root| (0..20_000).for_each(|n| drop(File::create(root.join(format!("f{n}"))).unwrap())));
    let begin = Instant::now();
    let (code, said) = looks(&root, &[], "true");
    assert!(code == Some(201) && said.contains("entries"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(world.run(PILOT, &[], &["true"]), (Some(0), String::new()));
}

#[test]
fn a_folder_in_memory_a_start_folder_and_a_host_name() {
    let world = World::start("");
    let _host = world.host();
    for target in ["/scratch/a", "/opt/x", "/work/x", "/tmp/x", "/var/x"] {
        let script =
            format!("echo x > {target}/f && cat {target}/f; grep ' {target} ' /proc/self/mounts | cut -d' ' -f1,3-4");
        let (code, said) = world.run(PILOT, &["--tmpfs", target], &["sh", "-c", &script]);
        assert!(code == Some(0) && said.starts_with("x\ntmpfs tmpfs") && said.contains("nosuid,nodev"), "{said}");
        // Each has its own.
        assert_eq!(world.run(PILOT, &["--tmpfs", target], &["ls", "-A", target]), (Some(0), String::new()));
    }
    for flag in ["--chdir", "--pwd"] {
        assert_eq!(world.run(PILOT, &[flag, "/usr/bin"], &["pwd"]), (Some(0), "/usr/bin\n".into()));
    }
    for (folder, sentence) in [
        ("/no/such", "cannot be entered in the sandbox"),
        ("bin", "absolute path"),
        ("/etc/passwd", "cannot be entered"),
    ] {
        let (code, said) = world.run(PILOT, &["--chdir", folder], &["pwd"]);
        assert!(code == Some(201) && said.contains(sentence), "{said}");
    }
    assert_eq!(
        world.run(PILOT, &["--hostname", "node-7.x"], &["sh", "-c", "uname -n; cat /proc/sys/kernel/hostname"]).1,
        "node-7.x\nnode-7.x\n"
    );
    assert_eq!(world.run(PILOT, &[], &["uname", "-n"]).1, "payload\n");
    for name in ["", "a b", "x/y", &"n".repeat(64)] {
        let (code, said) = world.run(PILOT, &["--hostname", name], &["true"]);
        assert!(code == Some(201) && said.contains("--hostname"), "{said}");
    }
}

#[test]
fn a_payload_makes_namespaces_only_where_that_was_asked_for_and_never_a_network() {
    let world = World::start("");
    let _host = world.host();
    let run = |options: &[&str], script: &str| world.run(PILOT, options, &["sh", "-c", script]);
    let user = "unshare -Ur id -u";
    let mounts = "unshare -Urm sh -c 'mkdir m; mount -t tmpfs x m && echo y > m/f && cat m/f'";
    let process = "unshare -Urpf --mount-proc sh -c 'echo $$; ls /proc | grep -c ^1'";
    for script in [user, mounts, process] {
        let (code, said) = run(&[], script);
        assert!(code != Some(0), "{said}");
    }
    assert_eq!(run(&["--nested"], user), (Some(0), "0\n".into()));
    assert_eq!(run(&["--nested"], mounts), (Some(0), "y\n".into()));
    let (code, said) = run(&["--nested"], process);
    assert!(code == Some(0) && said.starts_with("1\n"), "{said}");
    for script in
        ["unshare -n true", "unshare -Urn true", "unshare -Ur unshare -n true", "unshare -Ur unshare -Urn true"]
    {
        for options in [&[][..], &["--nested"]] {
            let (code, said) = run(options, script);
            assert!(code != Some(0) && !said.is_empty(), "{script}: {said}");
        }
    }
    // What is read-only stays so, and the ids of others stay out of reach.
    for script in [
        "unshare -Urm sh -c 'mount -o remount,rw,bind /usr && touch /usr/x'",
        "unshare -Urm sh -c 'mount -o remount,rw / && touch /x'",
        "unshare -Urm sh -c 'umount /proc && ls /proc/1'",
        "unshare -U --map-users 0:0:10 true",
        "unshare -Ur sh -c 'mknod d b 8 0'",
        "unshare -Ur dmesg",
        "unshare -Ur hostname x",
    ] {
        let (code, said) = run(&["--nested"], script);
        assert!(code != Some(0), "{script}: {said}");
    }
    if Path::new("/usr/bin/bwrap").exists() {
        let inner = "bwrap --unshare-user --unshare-pid --unshare-ipc --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp sh -c 'echo inner; echo $$'";
        assert_eq!(run(&["--nested"], inner), (Some(0), "inner\n2\n".into()));
        assert_ne!(run(&[], inner).0, Some(0));
        let net = "bwrap --unshare-all --ro-bind / / --dev /dev true";
        assert_ne!(run(&["--nested"], net).0, Some(0));
    }
}

#[test]
fn limits_bite_and_the_status_document_says_which() {
    let world = World::start("");
    let host = world.host();
    let usage = |options: &[&str], script: &str| {
        let (output, lines) = world.documented(PILOT, options, &["sh", "-c", script]);
        assert_eq!(lines.len(), 2, "{}", text(&output));
        (output, lines[1]["usage"].clone())
    };
    let eat = "perl -e '$x = q(x) x 300_000_000; print length $x'";
    let (output, used) = usage(&["--memory", "100M"], eat);
    assert!(!output.status.success() && used["oom_kills"].as_u64() >= Some(1), "{used} {}", text(&output));
    assert!(used["memory_peak"].as_u64() <= Some(110 << 20), "{used}");
    let (output, used) = usage(&["--memory", "1G"], eat);
    assert!(output.status.success() && used["oom_kills"] == 0, "{used}");
    let crowd = "i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done 2>/dev/null; echo all";
    let (_, used) = usage(&["--pids", "20"], crowd);
    assert!(used["pids_max_hits"].as_u64() >= Some(1), "{used}");
    let (_, used) = usage(&["--pids", "100"], crowd);
    assert_eq!(used["pids_max_hits"], 0, "{used}");
    // A second of the clock has room for less than half a second of a fifth of a processor.
    let busy = "timeout 1 sh -c 'while :; do :; done'; true";
    let (_, used) = usage(&["--cpus", "0.2"], busy);
    assert!(used["cpu_usec"].as_u64().is_some_and(|spent| (1000..600_000).contains(&spent)), "{used}");
    // A fork bomb, everything that swallows memory, and the agent beside them.
    let bomb =
        world.exec_with("bob", &["--pids", "200", "--memory", "200M"], &["sh", "-c", "b() { b | b & }; b; sleep 4834"]);
    let mut bomb = { bomb }.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the bomb", || host.starts().iter().any(|start| start.user.subject.as_str() == "bob"));
    for _ in 0..5 {
        let begin = Instant::now();
        assert_eq!(world.run(PILOT, &[], &["true"]).0, Some(0));
        assert!(world.status().payloads.iter().any(|payload| payload.user.subject.as_str() == "bob"));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
    bomb.kill().unwrap();
    bomb.wait().unwrap();
    wait_for("its end", || processes(&["sleep", "4834"]) == 0 && world.status().payloads.is_empty());
    for (option, value) in
        [("--memory", "1"), ("--pids", "0"), ("--cpus", "0"), ("--memory", "9999999999G"), ("--cpus", "x")]
    {
        let (code, said) = world.run(PILOT, &[option, value], &["true"]);
        assert!(code == Some(201), "{option} {value}: {said}");
    }
}

#[test]
fn two_users_never_have_one_folder_for_writing_at_a_time() {
    let world = World::start("");
    let host = world.host();
    let own = world.folder_of(PILOT, "own", 0o700);
    fs::create_dir(own.join("below")).unwrap();
    std::os::unix::fs::chown(own.join("below"), Some(PILOT), Some(PILOT)).unwrap();
    let folder = own.to_str().unwrap();
    let exec = |user: &str, options: &[&str], command: &[&str]| {
        let mut exec = world.exec_with(user, options, command);
        exec.uid(PILOT).gid(PILOT);
        exec
    };
    let mut first = exec("alice", &["--work", folder], &["sleep", "4835"]).spawn().unwrap();
    wait_for("the first", || processes(&["sleep", "4835"]) == 1);
    let below = own.join("below");
    for options in [
        ["--work", folder],
        ["--bind", &pair(&own, "/d")],
        ["--bind", &pair(&below, "/d")],
        ["--work", below.to_str().unwrap()],
    ] {
        let output = exec("bob", &options, &["true"]).output().unwrap();
        let said = text(&output);
        assert!(
            output.status.code() == Some(203) && said.contains("is in use by payload") && said.contains("R-ISO-17"),
            "{said}"
        );
    }
    // The pilot moves it: it is the same folder.
    let moved = own.with_file_name("moved");
    fs::rename(&own, &moved).unwrap();
    for path in [&moved, &moved.join("below")] {
        let output = exec("bob", &["--bind", &pair(path, "/d")], &["true"]).output().unwrap();
        assert!(output.status.code() == Some(203) && text(&output).contains("R-ISO-17"), "{}", text(&output));
    }
    fs::rename(&moved, &own).unwrap();
    // A file alone is to have one name.
    let file = world.folder_of(PILOT, "other", 0o700).join("file");
    file_of(PILOT, &file, 0o600, "x");
    fs::hard_link(&file, file.with_file_name("link")).unwrap();
    let linked = pair(&file, "/file");
    let output = exec("bob", &["--bind", &linked], &["true"]).output().unwrap();
    assert!(output.status.code() == Some(203) && text(&output).contains("hard links"), "{}", text(&output));
    fs::remove_file(file.with_file_name("link")).unwrap();
    assert!(exec("bob", &["--bind", &linked], &["true"]).status().unwrap().success());
    assert!(exec("alice", &["--work", folder], &["true"]).status().unwrap().success());
    assert!(exec("bob", &["--ro-bind", &pair(&own, "/d")], &["true"]).status().unwrap().success());
    first.kill().unwrap();
    first.wait().unwrap();
    wait_for("its end", || host.ends().len() == 4 && world.status().payloads.is_empty());
    assert!(exec("bob", &["--work", folder], &["true"]).status().unwrap().success());
}

fn differs(fine: &BTreeMap<String, Enforcement>, this: &BTreeMap<String, Enforcement>) -> Vec<(String, RuleState)> {
    assert_eq!(fine.len(), this.len());
    this.iter()
        .filter(|(rule, e)| fine[*rule].state != e.state)
        .map(|(rule, e)| (rule[6..].to_owned(), e.state))
        .collect()
}

fn last(host: &Host) -> BTreeMap<String, Enforcement> {
    host.starts().last().unwrap().isolation.clone()
}

#[test]
fn the_record_calls_weak_what_was_opened_and_nothing_else() {
    use RuleState::{Degraded, Off};
    let world = World::start("");
    let host = world.host();
    let own = world.folder_of(PILOT, "own", 0o700);
    let root = image(&world, "image", PILOT);
    let (folder, root) = (own.to_str().unwrap(), root.to_str().unwrap());
    assert_eq!(world.run(PILOT, &[], &["true"]).0, Some(0));
    let fine = last(&host);
    let weak: Vec<&str> =
        fine.iter().filter(|(_, e)| e.state != RuleState::Enforced).map(|(rule, _)| rule.as_str()).collect();
    assert_eq!(weak, ["R-ISO-16"], "network file systems follow their own rules");
    let rules =
        |weak: &[(&str, RuleState)]| weak.iter().map(|(rule, state)| ((*rule).to_owned(), *state)).collect::<Vec<_>>();
    let bind = pair(&own, "/d");
    for (options, expected) in [
        (&["--ro-bind", &bind][..], rules(&[("21", Degraded), ("4", Degraded), ("8", Degraded)])),
        (&["--bind", &bind], rules(&[("21", Degraded), ("33", Degraded), ("4", Degraded), ("8", Degraded)])),
        (&["--work", folder], rules(&[("18", Off), ("21", Degraded), ("33", Degraded), ("4", Degraded)])),
        (&["--nested"], rules(&[("23", Degraded)])),
        (&["--rootfs", root, "--chdir", "/"], Vec::new()),
        (
            &["--tmpfs", "/d", "--hostname", "x", "--chdir", "/d", "--memory", "1G", "--pids", "50", "--cpus", "1"],
            Vec::new(),
        ),
    ] {
        let command = if options[0] == "--rootfs" { ["/bin/busybox", "true"] } else { ["true", ""] };
        let (output, lines) = world.documented(PILOT, options, &command);
        assert!(output.status.success(), "{options:?}: {}", text(&output));
        assert_eq!(differs(&fine, &last(&host)), expected, "{options:?}");
        // The pilot reads the same.
        let isolation: BTreeMap<String, Enforcement> = serde_json::from_value(lines[0]["isolation"].clone()).unwrap();
        assert_eq!(isolation, last(&host));
    }
}

/// As CVMFS does it: the folder is empty when the agent starts, and file systems come while payloads run.
#[test]
fn what_is_mounted_later_below_an_exposed_folder_appears_inside() {
    let exposed = Path::new("/mnt/cvmfs");
    let at = exposed.display().to_string();
    // On systems with systemd all mounts are shared; here the agent's are private to the test.
    let world = World::start_after(&format!("expose = [\"{at}\"]\nready = 2"), || {
        mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        fs::create_dir(exposed).unwrap();
        mount(Some("tmpfs"), exposed, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        mount(None::<&str>, exposed, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    });
    let host = world.host();
    world.wait_connected();
    wait_for("sandboxes prepared ahead", || world.status().pool.ready == 2);
    let own = world.folder_of(PILOT, "own", 0o700);
    let wait = format!(
        "while ! test -e {at}/repo/file; do sleep 0.02; done; cat {at}/repo/file; touch {at}/repo/x {at}/y; echo x >> {at}/repo/file"
    );
    let spawn = |options: &[&str]| {
        let mut exec = world.exec_with("alice", options, &["sh", "-c", &wait]);
        exec.uid(PILOT).gid(PILOT).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let bound = pair(&own, "/d");
    let payloads = [spawn(&[]), spawn(&["--ro-bind", &bound])];
    wait_for("the payloads", || host.starts().len() == 2);
    wait_for("sandboxes prepared ahead", || world.status().pool.ready == 2);
    // World-writable: what keeps a payload from writing is the sandbox.
    let later = || {
        mount(Some("tmpfs"), exposed.join("repo").as_path(), Some("tmpfs"), MsFlags::empty(), Some("mode=777"))
            .unwrap();
        file_of(0, &exposed.join("repo/new"), 0o666, "from later\n");
        fs::rename(exposed.join("repo/new"), exposed.join("repo/file")).unwrap();
    };
    fs::create_dir(exposed.join("repo")).unwrap();
    later();
    for payload in payloads {
        let said = text(&payload.wait_with_output().unwrap());
        assert!(said.starts_with("from later\n") && said.matches("Permission denied").count() == 2, "{said}");
        assert!(!exposed.join("repo/x").exists() && !exposed.join("y").exists(), "{said}");
        assert_eq!(fs::read_to_string(exposed.join("repo/file")).unwrap(), "from later\n");
    }
    assert_eq!(last(&host)["R-ISO-19"].state, RuleState::Enforced);
    // One that was prepared before the mount came.
    let (_, said) = world.run(PILOT, &[], &["cat", &format!("{at}/repo/file")]);
    assert!(said.starts_with("from later\n"), "{said}");
    assert_eq!(last(&host)["R-ISO-8"].state, RuleState::Degraded);
    // No Landlock rules with --nested: a mount of the VM's that comes later keeps its own rights, and the record says so.
    nix::mount::umount2(exposed.join("repo").as_path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    let nested = spawn(&["--nested"]);
    wait_for("the payload", || host.starts().len() == 4);
    later();
    let said = text(&nested.wait_with_output().unwrap());
    assert!(said.starts_with("from later\n") && !exposed.join("y").exists(), "{said}");
    assert_eq!(last(&host)["R-ISO-19"].state, RuleState::Degraded);
}

/// A core would hold the payload's memory, and be written or read outside of its sandbox.
#[test]
fn a_payload_that_crashes_leaves_no_core() {
    let world = World::start("");
    let _host = world.host();
    let own = world.folder_of(PILOT, "own", 0o700);
    let script = "ulimit -c unlimited; grep core /proc/self/limits; cd /d; sh -c 'kill -SEGV $$'; ls -A";
    for options in [&["--bind", &pair(&own, "/d")][..], &["--nested", "--bind", &pair(&own, "/d")]] {
        let (_, said) = world.run(PILOT, options, &["bash", "-c", script]);
        let limits: Vec<&str> = said.lines().filter(|line| line.starts_with("Max core")).collect();
        assert_eq!(limits.len(), 1, "{said}");
        let values: Vec<&str> = limits[0].split_whitespace().collect();
        // 0 where the agent itself was started so; 1 also keeps the VM's own handler away.
        assert!(values[4] == values[5] && matches!(values[4], "0" | "1"), "{said}");
        assert_eq!(fs::read_dir(&own).unwrap().count(), 0, "{said}");
    }
}
