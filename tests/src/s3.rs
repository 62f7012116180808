//! A real S3 server with Object Lock (SeaweedFS from the Python environment), on the site's own loopback.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::site::Site;
use crate::{paths, process};

const ACCESS_KEY: &str = "vestigo-test";
const SECRET_KEY: &str = "vestigo-test-secret-key-for-one-site-only";
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const START: Duration = Duration::from_secs(90);
/// It takes its time, and has been seen to hang for minutes.
const STOP: Duration = Duration::from_secs(2);

/// The server's settings. Loopback only, nothing it can do without: its internal doors do not know Object Lock, so the
/// filer's HTTP is off and volumes take only signed requests (keys in [`S3Server::start_again`]). `volume.max`: every bucket takes
/// several volumes, and with the default of 8 the third bucket's writes fail. `preStopSeconds` makes stopping quick.
const OPTIONS: &[&str] = &[
    "server",
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-master.telemetry=false",
    // A master alone still waits this long before it trusts itself after a restart; the default is ten times it.
    "-master.electionTimeout=1s",
    "-master.volumeSizeLimitMB=1024",
    "-volume.max=200",
    "-volume.preStopSeconds=0",
    "-filer",
    "-filer.disableHttp",
    "-s3",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.iam=false",
    "-s3.autoCreateBucket=false",
];

/// The server of a site. Ends with the site.
pub struct S3Server<'a> {
    site: &'a Site,
    ports: Ports,
    endpoint: String,
    dir: PathBuf,
    child: Mutex<Option<Child>>,
}

impl<'a> S3Server<'a> {
    /// Starts the server on an empty store in the site's folder and waits until it serves.
    pub fn start(site: &'a Site) -> Result<S3Server<'a>> {
        let dir = site.dir().join("s3");
        fs::create_dir_all(dir.join("data"))?;
        let credentials = serde_json::json!([{ "accessKey": ACCESS_KEY, "secretKey": SECRET_KEY }]);
        let actions = ["Admin", "Read", "List", "Tagging", "Write"];
        let config = serde_json::json!({ "identities": [{ "name": "vestigo", "credentials": credentials, "actions": actions }] });
        fs::write(dir.join("s3.json"), config.to_string())?;
        let ports = Ports::take()?;
        let endpoint = format!("http://127.0.0.1:{}", ports.base);
        let server = S3Server { site, ports, endpoint, dir, child: Mutex::new(None) };
        server.start_again()?;
        Ok(server)
    }

    /// Address for clients inside the site; path style.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The access key id.
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The secret key.
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The region to sign for.
    pub fn region(&self) -> &'static str {
        "us-east-1"
    }

    /// Makes a bucket with versioning and Object Lock (names have at least 3 characters).
    pub fn create_bucket_with_object_lock(&self, name: &str) -> Result<()> {
        let lock = "x-amz-bucket-object-lock-enabled: true";
        self.curl(&["-X", "PUT", "-H", lock], &format!("/{name}")).map(drop)
    }

    /// Makes a plain bucket.
    pub fn create_bucket(&self, name: &str) -> Result<()> {
        self.curl(&["-X", "PUT"], &format!("/{name}")).map(drop)
    }

    /// A signed request with curl from inside the site: `arguments` are curl's, `path` begins with the bucket. For a body give
    /// `-T FILE` (signed as unsigned payload).
    pub fn curl(&self, arguments: &[&str], path: &str) -> Result<String> {
        let has_body = arguments.iter().any(|argument| argument.starts_with("-T") || argument.starts_with("-d"));
        let digest = if has_body { "UNSIGNED-PAYLOAD" } else { EMPTY_SHA256 };
        let mut command = self.site.command("curl")?;
        command.args(["-sS", "--fail-with-body", "--max-time", "60", "--noproxy", "*"]);
        command.args([
            "--aws-sigv4",
            &format!("aws:amz:{}:s3", self.region()),
            "-u",
            &format!("{ACCESS_KEY}:{SECRET_KEY}"),
        ]);
        command
            .args(["-H", &format!("x-amz-content-sha256: {digest}")])
            .args(arguments)
            .arg(format!("{}{path}", self.endpoint));
        process::output(command.stdin(Stdio::null()))
    }

    /// The outage: ends the server, by force if it takes too long. Its data stay.
    pub fn stop(&self) -> Result<()> {
        let taken = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut child = taken.context("the S3 server is not running")?;
        process::stop(&mut child, STOP).map(drop)
    }

    /// Starts it again on the same data.
    pub fn start_again(&self) -> Result<()> {
        let mut running = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(running.is_none(), "the S3 server is running already");
        let mut child = self.serve()?;
        process::wait_for("the S3 server", START, || {
            if let Some(status) = child.try_wait()? {
                bail!("the S3 server ended ({status}); see {}", self.dir.join("log").display());
            }
            Ok(self.serves().then_some(()))
        })?;
        *running = Some(child);
        Ok(())
    }

    fn serve(&self) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.dir.join("log"))?;
        let key = "one-key-for-the-doors-that-know-no-object-lock";
        let mut command: Command = self.site.command(paths::venv("weed"))?;
        command.args(OPTIONS).args([
            "-dir=data",
            "-s3.config=s3.json",
            "-filer.localSocket=filer.sock",
            "-s3.localSocket=s3.sock",
        ]);
        for (part, port) in ["s3", "master", "volume", "filer"].iter().zip(self.ports.base..) {
            command.arg(format!("-{part}.port={port}"));
        }
        for name in ["JWT_SIGNING_KEY", "JWT_SIGNING_READ_KEY", "JWT_FILER_SIGNING_KEY", "JWT_FILER_SIGNING_READ_KEY"] {
            command.env(format!("WEED_{name}"), key);
        }
        command.current_dir(&self.dir).env("HOME", &self.dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("cannot start the S3 server")
    }

    /// Serving means: S3 answers a signed request, and a volume server has told the master of its room.
    fn serves(&self) -> bool {
        let topology = format!("http://127.0.0.1:{}/dir/status", self.ports.base + 1);
        self.curl(&[], "/").is_ok()
            && self
                .site
                .run("curl", &["-sf", "--max-time", "5", "--noproxy", "*", &topology])
                .is_ok_and(|said| said.contains("\"DataNodes\":[{"))
    }
}

/// Ports that no other server on this machine uses. They lie in the site's own network, but some of the server's sockets are
/// files in /tmp with nothing but a port in their name, and its parts would talk to another site's server.
struct Ports {
    base: u16,
    _lock: File,
}

impl Ports {
    fn take() -> Result<Ports> {
        let dir = paths::target("tmp")?;
        // Below 10000, because the server adds 10000 for its internal calls and clients' own ports begin at 32768.
        for base in (8300..9300).step_by(10) {
            let lock = File::create(dir.join(format!(".s3-ports-{base}")))?;
            if lock.try_lock().is_ok() {
                return Ok(Ports { base, _lock: lock });
            }
        }
        bail!("every port range for S3 servers is taken");
    }
}
