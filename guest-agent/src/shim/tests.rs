#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;

/// A made-up VM of a pilot with uid 1000.
struct Vm {
    variables: BTreeMap<String, String>,
    folder: PathBuf,
}

const IDENTITY: &[(&str, &str)] = &[
    ("VESTIGO_PAYLOAD_ID", "job-1"),
    ("VESTIGO_VO", "atlas"),
    ("VESTIGO_USER_SUBJECT", "alice"),
    ("VESTIGO_USER_ISSUER", "https://iam.example"),
];
const NAMED: &[&str] =
    &["--payload-id=job-1", "--vo=atlas", "--user-subject=alice", "--user-issuer=https://iam.example"];
/// Unpacked, as all images here.
const IMAGE: &str = "/cvmfs/unpacked/el9";

impl Vm {
    fn new(folder: &str, more: &[(&str, &str)]) -> Self {
        let variables = IDENTITY.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Self { variables, folder: folder.into() }
    }
}

impl Surroundings for Vm {
    fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn see(&self, path: &Path) -> Seen {
        let path = path.to_str().unwrap();
        match path {
            "/nowhere" | "/pilot/work/var_tmp" => Seen::Nothing,
            "/images/el9.sif" | "/etc/hosts" => Seen::File { mine: false },
            "/cvmfs/unpacked/el9/.singularity.d/runscript" => Seen::File { mine: false },
            "/cvmfs/unpacked/el9/.singularity.d/test" => Seen::Nothing,
            "/pilot/proxy" => Seen::File { mine: true },
            _ if path.starts_with("/pilot") || path.starts_with("/execute") => Seen::Folder { mine: true },
            _ => Seen::Folder { mine: false },
        }
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        match path.to_str() {
            Some("/pilot/env") => Ok("# a comment\nA=1\n\nC=3\n".to_owned()),
            Some("/pilot/shell") => Ok("A=1\nB=$(id)\n".to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(ToOwned::to_owned).collect()
}

fn arguments(answer: Answer) -> Vec<String> {
    let Answer::Exec(call) = answer else { panic!("{answer:?}") };
    // What is made must be understood.
    let parsed = ["guest-agent", "exec"].into_iter().map(ToOwned::to_owned).chain(call.arguments.clone());
    Cli::try_parse_from(parsed).unwrap();
    let (named, rest) = call.arguments.split_at(NAMED.len());
    assert_eq!(named, NAMED);
    rest.to_vec()
}

fn mapped(vm: &Vm, line: &str) -> Vec<String> {
    arguments(apptainer::map(&words(line), vm).unwrap_or_else(|e| panic!("{line}: {e}")))
}

fn refusal(vm: &Vm, line: &str) -> String {
    match apptainer::map(&words(line), vm) {
        Err(refusal) => refusal.reason,
        Ok(answer) => panic!("{line}: {answer:?}"),
    }
}

/// Who calls so, in which folder, with which variables, the call, and what becomes of it.
type Line = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);

#[test]
fn what_the_frameworks_write_today() {
    let table: &[Line] = &[
        (
            "PanDA pilot, payload in the job's folder",
            "/pilot/job",
            &[],
            "exec -c -i -p --pwd /srv -B /cvmfs:/cvmfs,/pilot/job:/srv /cvmfs/unpacked/el9 /bin/bash /srv/run.sh",
            "--rootfs=/cvmfs/unpacked/el9 --ro-bind=/cvmfs:/cvmfs --bind=/pilot/job:/srv --chdir=/srv -- /bin/bash /srv/run.sh",
        ),
        (
            "ATLASLocalRootBase",
            "/pilot/job",
            &[("APPTAINERENV_ATLAS_LOCAL_ROOT_BASE", "/cvmfs/atlas"), ("APPTAINER_BINDPATH", "/cvmfs")],
            "-s exec -e -H /pilot/job/home:/alrb -B /pilot/job:/srv --pwd=/srv /cvmfs/unpacked/el9 /bin/bash -c true",
            "--rootfs=/cvmfs/unpacked/el9 --ro-bind=/cvmfs:/cvmfs --bind=/pilot/job:/srv --bind=/pilot/job/home:/alrb --chdir=/srv \
             --env=ATLAS_LOCAL_ROOT_BASE=/cvmfs/atlas --env=HOME=/alrb -- /bin/bash -c true",
        ),
        (
            "DIRAC, the script lies in the work directory's tmp",
            "/pilot",
            &[],
            "exec --contain --ipc --workdir /pilot/work --home /tmp --userns --bind /cvmfs --bind /opt/dirac:/opt/dirac:ro \
             /cvmfs/unpacked/el9 /tmp/dirac_container.sh",
            "--rootfs=/cvmfs/unpacked/el9 --ro-bind=/cvmfs:/cvmfs --ro-bind=/opt/dirac:/opt/dirac --bind=/pilot/work/tmp:/tmp \
             --chdir=/tmp --env=HOME=/tmp -- /tmp/dirac_container.sh",
        ),
        (
            "GlideinWMS",
            "/pilot/job",
            &[],
            "exec --home /pilot/job:/srv --pwd /srv --bind /cvmfs --bind /etc/hosts --no-home --ipc --contain --pid \
             --scratch /var/tmp --scratch /tmp /cvmfs/unpacked/el9 /srv/condor_job_wrapper.sh a -b",
            "--rootfs=/cvmfs/unpacked/el9 --ro-bind=/cvmfs:/cvmfs --ro-bind=/etc/hosts:/etc/hosts --bind=/pilot/job:/srv \
             --chdir=/srv --env=HOME=/srv -- /srv/condor_job_wrapper.sh a -b",
        ),
        (
            "HTCondor's starter",
            "/execute/dir_7",
            &[("APPTAINERENV_A", "1"), ("APPTAINER_CACHEDIR", "/execute/dir_7"), ("SINGULARITYENV_A", "0")],
            "-s exec -S /tmp -S /var/tmp -S /var/lib/scratch -W /execute/dir_7 --pwd /execute/dir_7 -B /execute/dir_7 \
             --home /execute/dir_7 -C /cvmfs/unpacked/el9 /execute/dir_7/condor_exec.exe 1",
            "--rootfs=/cvmfs/unpacked/el9 --bind=/execute/dir_7:/execute/dir_7 --tmpfs=/var/lib/scratch \
             --chdir=/execute/dir_7 --env=A=1 --env=HOME=/execute/dir_7 -- /execute/dir_7/condor_exec.exe 1",
        ),
        (
            "HTCondor's test before a job, and a job without an executable",
            "/",
            &[],
            "-q test -C /cvmfs/unpacked/el9",
            "--rootfs=/cvmfs/unpacked/el9 -- /bin/sh -c true",
        ),
        (
            "an image's own program",
            "/",
            &[],
            "run --env-file /pilot/env --env A=1,B=2 /cvmfs/unpacked/el9 x",
            "--rootfs=/cvmfs/unpacked/el9 --env=C=3 --env=A=1 --env=B=2 -- /.singularity.d/runscript x",
        ),
        (
            "letters in one word, limits, an option of the command",
            "/pilot",
            &[],
            "exec -ciB/pilot/job:/srv:ro --memory 2g --cpus 1.5 --pids-limit=9 --hostname n --no-mount home,cwd ../cvmfs/unpacked/el9 ls -la --nv",
            "--rootfs=/pilot/../cvmfs/unpacked/el9 --ro-bind=/pilot/job:/srv --memory=2G --cpus=1.5 --pids=9 --hostname=n -- ls -la --nv",
        ),
        (
            "the caller's folder stays the same inside if it is bound there",
            "/pilot/job/sub",
            &[],
            "exec -B /pilot/job /cvmfs/unpacked/el9 pwd",
            "--rootfs=/cvmfs/unpacked/el9 --bind=/pilot/job:/pilot/job --chdir=/pilot/job/sub -- pwd",
        ),
    ];
    for (name, folder, variables, line, expected) in table {
        let made = mapped(&Vm::new(folder, variables), line);
        let expected = words(expected);
        assert_eq!(made, expected, "{name}");
    }
}

#[test]
fn nothing_is_ignored_in_silence() {
    let vm = Vm::new("/pilot", &[]);
    for (options, sentence) in [
        ("--nv", "--nv: devices of graphics cards"),
        ("--rocm", "graphics cards"),
        ("--overlay x", "--overlay: the image is read-only"),
        ("-w", "--writable: the image is read-only"),
        ("--writable-tmpfs", "the image is read-only"),
        ("--fakeroot", "--fakeroot: a payload has no rights"),
        ("-f", "--fakeroot"),
        ("--allow-setuid", "no rights"),
        ("--add-caps=CAP_NET_RAW", "no rights"),
        ("--security seccomp:/x", "--security: labels"),
        ("--docker-login", "no image is fetched"),
        ("--net --network none", "--net: each payload has a network of its own"),
        ("-n", "--net"),
        ("--mount type=bind,src=/a,dst=/b", "--bind SRC:DST"),
        ("--no-init", "init of its own"),
        ("--pid=false", "--pid=false: this cannot be turned off"),
        ("--frobnicate", "--frobnicate is no option"),
        ("-Z", "-Z is no option"),
        ("--no-mount proc", "--no-mount proc"),
        ("--bind /pilot/job:/srv:ro:x", "write it as SRC[:DST[:ro|rw]]"),
        ("--bind a:b:image-src=/", "write it as"),
        ("--bind /nowhere", "there is no such folder"),
        ("--bind /tmp", "files of the pilot and of other payloads lie there"),
        ("--bind /:/host", "files of the pilot"),
        ("--bind /cvmfs:/cvmfs:rw", "is not the caller's"),
        ("--home /cvmfs:/srv", "is not the caller's"),
        ("--scratch x", "give an absolute path"),
        ("--env A", "write one KEY=VALUE"),
        ("--env-file /pilot/shell", "line 2 is not a plain KEY=VALUE"),
        ("--env-file /pilot/none", "--env-file /pilot/none:"),
    ] {
        let said = refusal(&vm, &format!("exec {options} {IMAGE} true"));
        assert!(said.contains(sentence), "{options}: {said}");
    }
    for (line, sentence) in [
        ("exec docker://alpine true", "no image is fetched here; name a folder with an unpacked image"),
        ("exec /images/el9.sif true", "is a file, and image files are not opened here; name a folder"),
        ("exec /nowhere true", "there is no image /nowhere"),
        ("exec /cvmfs/unpacked/el9", "no command is given"),
        ("exec --bind", "--bind needs a value"),
        ("exec", "no image is given"),
        ("shell /cvmfs/unpacked/el9", "`shell` cannot be had"),
        ("instance start x y", "`instance` cannot be had"),
        ("", "usage:"),
    ] {
        let said = refusal(&vm, line);
        assert!(said.contains(sentence), "{line}: {said}");
    }
}

#[test]
fn variables_count_as_options_do() {
    let line = format!("exec {IMAGE} true");
    for (name, value, sentence) in [
        ("SINGULARITY_NV", "1", "SINGULARITY_NV is set: --nv"),
        ("APPTAINER_FAKEROOT", "true", "APPTAINER_FAKEROOT is set: --fakeroot"),
        ("APPTAINER_WRITABLE_TMPFS", "yes", "--writable-tmpfs"),
        ("APPTAINER_NETWORK", "none", "--network"),
        ("SINGULARITY_BIND", "/tmp", "files of the pilot"),
    ] {
        let said = refusal(&Vm::new("/", &[(name, value)]), &line);
        assert!(said.contains(sentence), "{name}: {said}");
    }
    let vm = Vm::new(
        "/",
        &[
            ("APPTAINER_NV", "0"),
            ("APPTAINER_CONTAIN", "1"),
            ("APPTAINER_CACHEDIR", "/x"),
            ("SINGULARITY_BIND", "/a:/b,/c"),
            ("APPTAINERENV_USER", "root"),
            ("APPTAINERENV_PATH", "/opt/bin:/bin"),
        ],
    );
    let made = mapped(&vm, &line);
    let expected = format!("--rootfs={IMAGE} --ro-bind=/a:/b --ro-bind=/c:/c --env=PATH=/opt/bin:/bin -- true");
    assert_eq!(made, words(&expected));
    let Ok(Answer::Exec(call)) = apptainer::map(&words(&line), &vm) else { panic!("no call") };
    assert!(call.notes.first().is_some_and(|note| note.contains("USER is set by the sandbox")), "{:?}", call.notes);
}

#[test]
fn without_a_name_nothing_runs() {
    let mut vm = Vm::new("/", &[("VESTIGO_TASK", "/pilot/task"), ("VESTIGO_PLAIN", "1"), ("VESTIGO_NET", "host")]);
    let line = format!("exec {IMAGE} true");
    let made = mapped(&vm, &line);
    assert_eq!(made.get(..3).unwrap(), ["--task=/pilot/task", "--plain", "--net=host"]);
    vm.variables.remove("VESTIGO_USER_SUBJECT");
    vm.variables.remove("VESTIGO_USER_ISSUER");
    assert!(apptainer::map(&words(&line), &vm).is_ok(), "the task says who");
    vm.variables.clear();
    let refused = apptainer::map(&words(&line), &vm).unwrap_err();
    assert_eq!(refused.code, 201);
    for name in IDENTITY.iter().map(|(name, _)| name) {
        assert!(refused.reason.contains(name), "{refused}");
    }
    vm.variables.insert("GLEXEC_CLIENT_CERT".to_owned(), "/pilot/proxy".to_owned());
    let refused = glexec::map(&words("/usr/bin/id -a"), &vm).unwrap_err();
    assert!(refused.code == 201 && refused.reason.contains("GLEXEC_CLIENT_CERT is not read"), "{refused}");
}

#[test]
fn glexec_takes_its_variables_and_gives_its_codes() {
    let proxy = [
        ("GLEXEC_CLIENT_CERT", "/pilot/proxy"),
        ("GLEXEC_SOURCE_PROXY", "/pilot/proxy"),
        ("GLEXEC_ENV", "abc"),
        ("SECRET", "x"),
        ("VESTIGO_WORK", "/pilot/job"),
    ];
    let made = arguments(glexec::map(&words("/pilot/job/run.sh -v"), &Vm::new("/pilot/job/sub", &proxy)).unwrap());
    let expected = "--bind=/pilot/job:/pilot/job --chdir=/pilot/job/sub --ro-bind=/pilot/proxy:/tmp/x509up_u1000 \
                    --env=GLEXEC_ENV=abc --env=HOME=/pilot/job --env=X509_USER_PROXY=/tmp/x509up_u1000 -- /pilot/job/run.sh -v";
    assert_eq!(made, words(expected));
    let bare = arguments(glexec::map(&words("/usr/bin/id -a"), &Vm::new("/", &[])).unwrap());
    assert_eq!(bare, words("-- /usr/bin/id -a"));
    for (name, value, line, sentence) in [
        ("GLEXEC_MODE", "lcmaps_verify_account", "id", "GLEXEC_MODE=lcmaps_verify_account"),
        ("GLEXEC_SOURCE_PROXY", "/cvmfs/x", "id", "is no file of the caller's"),
        ("VESTIGO_WORK", "/cvmfs", "id", "is no folder of the caller's"),
        ("A", "1", "-x id", "-x is no option"),
        ("A", "1", "", "no command is given"),
    ] {
        let refused = glexec::map(&words(line), &Vm::new("/", &[(name, value)])).unwrap_err();
        assert!(refused.code == 201 && refused.reason.contains(sentence), "{refused}");
    }
    let codes = [0, 7, 126, 137, 200, 201, 204, 205].map(glexec::ended);
    assert_eq!(codes, [0, 7, 126, 137, 200, 204, 204, 205]);
    assert_eq!([125, 126, 127, 201, 202, 203].map(glexec::refused), [202, 126, 201, 201, 202, 203]);
}

#[test]
fn names_and_versions_are_honest() {
    for (program, shim) in [
        ("/usr/bin/apptainer", Some(Shim::Apptainer)),
        ("singularity", Some(Shim::Apptainer)),
        ("/opt/glite/sbin/glexec", Some(Shim::Glexec)),
        ("/usr/bin/guest-agent", None),
        ("/proc/self/exe", None),
    ] {
        assert_eq!(Shim::named(OsStr::new(program)), shim, "{program}");
    }
    let said = |answer: Result<Answer, Refusal>| match answer {
        Ok(Answer::Say(text)) => text,
        other => panic!("{other:?}"),
    };
    let vm = Vm::new("/", &[]);
    assert!(said(apptainer::map(&words("--version"), &vm)).ends_with("(apptainer shim)"));
    assert!(said(apptainer::map(&words("version"), &vm)).starts_with("guest-agent "));
    assert!(said(glexec::map(&words("-V"), &vm)).ends_with("(glexec shim)"));
}

proptest::proptest! {
    #[test]
    fn no_words_break_it(words in proptest::collection::vec("[-=:,a-zA-Z0-9/$]{0,12}", 0..12)) {
        let vm = Vm::new("/pilot", &[]);
        for words in [&words, &["exec".to_owned()].into_iter().chain(words.clone()).collect()] {
            if let Ok(Answer::Exec(call)) = apptainer::map(words, &vm) {
                let end = call.arguments.iter().position(|word| word == "--").unwrap();
                // Nothing of the caller's words can become an option that it is not: each is one word with its value.
                proptest::prop_assert!(call.arguments.iter().take(end).all(|word| word.starts_with("--") && word.contains('=')));
            }
            let _ = glexec::map(words, &vm);
        }
    }
}
