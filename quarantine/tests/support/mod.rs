//! What the tests share: a site in a temporary folder, hand-overs as hostd writes them, the built binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code, missing_docs)]

pub mod weed;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use vestigo_model::{
    Cloud, Digest, Handover, HandoverResult, Instance, InstanceEnd, ItemId, Label, Outcome, PayloadSummary, PinnedDisk,
    PinnedLayer, StopReason, Timestamp, Trust, User,
};

pub const XML: &str = "<domain><name>vm</name></domain>";

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A sparse file: noise at the given stretches.
pub fn sparse(path: &Path, size: u64, seed: u64, stretches: &[(u64, usize)]) {
    let file = File::create_new(path).unwrap();
    file.set_len(size).unwrap();
    for (number, (offset, len)) in stretches.iter().enumerate() {
        file.write_all_at(&noise(seed * 1000 + number as u64, *len), *offset).unwrap();
    }
}

pub struct Site {
    pub dir: tempfile::TempDir,
    pub vault: String,
    extra: String,
}

/// One file for a hand-over.
pub struct Layer<'a> {
    pub file: &'a Path,
    pub shared: bool,
}

impl Site {
    pub fn folder() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = format!("file://{}/vault", dir.path().display());
        Self::with(dir, vault, "")
    }

    /// `vault` lines go into `[vault]`, further sections may follow.
    pub fn with(dir: tempfile::TempDir, vault: String, extra: &str) -> Self {
        for name in ["spool/done", "pins"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let site = Self { dir, vault, extra: extra.to_owned() };
        site.write_config(&site.extra, "pack_mib = 4");
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("quarantine.toml")
    }

    pub fn write_config(&self, extra: &str, store: &str) {
        let root = self.dir.path().display();
        let text = format!(
            "spool = \"{root}/spool\"\nstate = \"{root}/state\"\n[store]\n{store}\n[vault]\nurl = \"{}\"\n{extra}\n",
            self.vault
        );
        fs::write(self.config(), text).unwrap();
    }

    /// Adds a line before all sections.
    pub fn write_top(&self, line: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        fs::write(self.config(), format!("{line}\n{text}")).unwrap();
    }

    pub fn vault_path(&self) -> PathBuf {
        PathBuf::from(self.vault.strip_prefix("file://").expect("a folder vault"))
    }

    /// Lays a hand-over into the spool as hostd does: pins first, then the file under a hidden name, then its own.
    pub fn hand_over(&self, vo: Option<&str>, instance: &str, layers: &[Layer<'_>]) -> ItemId {
        let item = ItemId(uuid::Uuid::now_v7());
        let layers = layers.iter().enumerate().map(|(number, layer)| {
            let pin = self.path("pins").join(format!("{item}-{number}"));
            fs::hard_link(layer.file, &pin).unwrap();
            let format = if layer.shared { "raw" } else { "qcow2" }.to_owned();
            PinnedLayer { original: layer.file.to_owned(), pin, format, shared: layer.shared }
        });
        let disks = vec![PinnedDisk { target: "vda".into(), layers: layers.collect() }];
        self.spool(&handover(item, vo, instance, disks));
        item
    }

    pub fn spool(&self, handover: &Handover) {
        let name = format!("{}.json", handover.item);
        let hidden = self.path("spool").join(format!(".{name}"));
        fs::write(&hidden, serde_json::to_vec(handover).unwrap()).unwrap();
        fs::rename(hidden, self.path("spool").join(name)).unwrap();
    }

    pub fn daemon(&self) -> Daemon {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = binary()
            .args(["daemon", "--config"])
            .arg(self.config())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("the built quarantine binary");
        Daemon(child)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn result(&self, item: &ItemId) -> Option<HandoverResult> {
        let bytes = fs::read(self.path("spool/done").join(format!("{item}.json"))).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    pub fn waits(&self, item: &ItemId) -> bool {
        self.path("spool").join(format!("{item}.json")).exists()
    }

    /// Waits until the item is answered for and cleared up.
    pub fn wait_captured(&self, item: &ItemId) -> Digest {
        self.wait("the item to be captured", || self.result(item).is_some() && !self.waits(item));
        match self.result(item).unwrap().outcome {
            Outcome::Captured { manifest_sha256, .. } => manifest_sha256,
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    pub fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < end, "waited in vain for {what}; the daemon said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        binary().args(arguments).arg("--config").arg(self.config()).output().unwrap()
    }

    pub fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let out = self.run(arguments);
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Gets a layer back and says whether it is the file, byte for byte.
    pub fn comes_back(&self, item: &ItemId, layer: usize, original: &Path) {
        let out = self.path(&format!("back-{}", uuid::Uuid::new_v4()));
        let got = self.run(&["get", &item.to_string(), "--layer", &layer.to_string(), "--out", out.to_str().unwrap()]);
        assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
        assert!(fs::read(&out).unwrap() == fs::read(original).unwrap(), "the file is another");
        fs::remove_file(out).unwrap();
    }
}

pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quarantine"));
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "NOTIFY_SOCKET", "VESTIGO_LOG"] {
        command.env_remove(name);
    }
    command.env("AWS_ACCESS_KEY_ID", weed::ACCESS).env("AWS_SECRET_ACCESS_KEY", weed::SECRET);
    command
}

/// A running daemon; dies with the test.
pub struct Daemon(pub Child);

impl Daemon {
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// As systemd does it.
    pub fn terminate(mut self) -> i32 {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn handover(item: ItemId, vo: Option<&str>, instance: &str, disks: Vec<PinnedDisk>) -> Handover {
    Handover {
        version: 1,
        item,
        host: "hv1".parse().unwrap(),
        instance: Instance {
            host: "hv1".parse().unwrap(),
            domain: "6f1d2c3b-0000-4000-8000-000000000001".parse().unwrap(),
            id: instance.parse().unwrap(),
            name: Label::new("instance-00000001").unwrap(),
            cloud: Cloud::Openstack,
            project: None,
            vo: vo.map(|vo| vo.parse().unwrap()),
            owner: None,
            flavour: None,
            image: None,
            taps: vec![],
            disks: vec![],
            xml_sha256: Digest::of(XML.as_bytes()),
            start: at("2026-11-01T10:00:00Z"),
            end: Some(InstanceEnd { time: at("2026-11-01T12:00:00Z"), why: StopReason::Destroyed }),
        },
        payloads: vec![PayloadSummary {
            uid: "6f1d2c3b-0000-4000-8000-0000000000aa".parse().unwrap(),
            pilot: "pilot-1".parse().unwrap(),
            payload: "task-7".parse().unwrap(),
            user: User { issuer: Label::new("https://iam.example").unwrap(), subject: Label::new("alice").unwrap() },
            vo: "atlas".parse().unwrap(),
            trust: Trust::AssertedByVo,
            start: at("2026-11-01T10:05:00Z"),
            end: None,
        }],
        deleted: at("2026-11-01T12:00:01Z"),
        reason: "terminated".into(),
        disks,
        domain_xml: XML.into(),
    }
}
