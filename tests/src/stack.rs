//! Vestigo as a site runs it: `hostd` and `quarantine` as real processes in a [`Site`], and the investigator's commands.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use vestigo_ledger::people::Keyring;

use crate::{bins, process, s3::S3Server, site::Site};

/// How long the daemons may take to stop in order.
const STOP: Duration = Duration::from_secs(30);

/// Where evidence goes.
pub enum Vault<'a> {
    /// A folder of the site.
    Folder,
    /// A bucket with Object Lock.
    S3(&'a S3Server<'a>, &'a str),
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Exit status; -1 when a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Standard output as one JSON value.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON in {self:?}"))
    }
}

/// The daemons and their files.
pub struct Stack<'a> {
    site: &'a Site,
    hostd: Mutex<Option<Child>>,
    quarantine: Mutex<Option<Child>>,
}

impl<'a> Stack<'a> {
    /// Writes the configuration of a site whose projects belong to VOs as `vos` says (VO, project id).
    pub fn new(site: &'a Site, vos: &[(&str, &str)], vault: &Vault<'_>) -> Result<Self> {
        let stack = Self { site, hostd: Mutex::new(None), quarantine: Mutex::new(None) };
        for folder in ["etc", "pins"] {
            fs::create_dir_all(site.dir().join(folder))?;
        }
        fs::write(stack.etc("hostd.toml"), stack.hostd_toml())?;
        let rows: Vec<_> =
            vos.iter().map(|(vo, project)| format!("[[vo]]\nname = \"{vo}\"\nprojects = [\"{project}\"]\n")).collect();
        fs::write(stack.etc("vos.toml"), rows.concat())?;
        fs::write(stack.etc("bans.toml"), "")?;
        let record = format!("[access]\nlog = \"{}\"\n", stack.site.dir().join("access/access.jsonl").display());
        fs::write(stack.etc("vestigo.toml"), record)?;
        fs::write(stack.etc("quarantine.toml"), stack.quarantine_toml(vault)?)?;
        Ok(stack)
    }

    /// A file of the site's `/etc/vestigo`.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.site.dir().join("etc").join(name)
    }

    /// The ledger's folder.
    pub fn ledger(&self) -> PathBuf {
        self.site.dir().join("ledger")
    }

    /// The folder of the keys that hostd makes for itself.
    pub fn keys(&self) -> PathBuf {
        self.site.dir().join("keys")
    }

    /// Those keys; none before hostd sealed a first name.
    pub fn keyring(&self) -> Result<Keyring> {
        let keys = self.keys();
        Ok(if keys.is_dir() { Keyring::open(&[keys])? } else { Keyring::default() })
    }

    /// The folder of hand-overs.
    pub fn spool(&self) -> PathBuf {
        self.site.dir().join("spool")
    }

    /// The pins' folder.
    pub fn pins(&self) -> PathBuf {
        self.site.dir().join("pins")
    }

    /// The socket of a VM's agent channel, as QEMU made it for hostd, seen from outside the site.
    pub fn channel(&self, domain: &str) -> PathBuf {
        self.site.dir().join(format!("run/vestigo/channels/{domain}.sock"))
    }

    /// Short periods, so that a test need not wait for minutes.
    fn hostd_toml(&self) -> String {
        format!(
            "host = \"hv1\"\nledger = {:?}\nspool = {:?}\nvos = {:?}\nbans = {:?}\nchannels = \"/run/vestigo/channels\"\n\
             [libvirt]\nresync = 5\n[meter]\nactive = 5\n\
             [record]\nseal_after = 20\ncoverage = 2\n[pins]\nfolders = [{:?}]\nsettle = 1\n[people]\nown = {:?}\n[ledger_key]\nfile = {:?}\n",
            self.ledger(),
            self.spool(),
            self.etc("vos.toml"),
            self.etc("bans.toml"),
            self.pins(),
            self.keys(),
            self.site.dir().join("host_ed25519"),
        )
    }

    fn quarantine_toml(&self, vault: &Vault<'_>) -> Result<String> {
        let (spool, state) = (self.spool(), self.site.dir().join("quarantine"));
        let vault = match vault {
            Vault::Folder => format!("url = \"file://{}\"\n", self.site.dir().join("vault").display()),
            Vault::S3(server, bucket) => {
                let credentials = self.etc("s3-credentials");
                let (key, secret) = (server.access_key(), server.secret_key());
                fs::write(
                    &credentials,
                    format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"),
                )?;
                format!(
                    "url = \"s3://{bucket}/site\"\nendpoint = {:?}\nregion = {:?}\ncredentials = {credentials:?}\n\
                     [retention]\ndays = 1\nobject_lock = \"governance\"\n",
                    server.endpoint(),
                    server.region(),
                )
            }
        };
        let ledger = self.ledger();
        Ok(format!("spool = {spool:?}\nstate = {state:?}\n[vault]\n{vault}[ledger]\npath = {ledger:?}\n"))
    }

    /// Starts hostd and waits until it says that it runs.
    pub fn start_hostd(&self) -> Result<()> {
        let config = self.etc("hostd.toml");
        self.start(&self.hostd, "hostd", &config, "hostd runs")
    }

    /// Ends hostd in order.
    pub fn stop_hostd(&self) -> Result<()> {
        stop(&self.hostd)
    }

    /// Kills hostd as a power failure of its process would: SIGKILL to the program itself.
    pub fn kill_hostd(&self) -> Result<()> {
        kill(&self.hostd)
    }

    /// hostd's process, as this test sees it: for looking at what it holds.
    pub fn hostd_process(&self) -> Result<PathBuf> {
        let hostd = lock(&self.hostd);
        let pid = process::inner_pid(hostd.as_ref().context("hostd is not running")?)?;
        Ok(Path::new("/proc").join(pid.to_string()))
    }

    /// Writes `bans.toml` and has hostd read it: SIGHUP, as an administrator does it.
    pub fn ban(&self, bans: &str) -> Result<()> {
        fs::write(self.etc("bans.toml"), bans)?;
        let before = self.log("hostd").len();
        let hostd = lock(&self.hostd);
        process::signal(hostd.as_ref().context("hostd is not running")?, Signal::SIGHUP)?;
        process::wait_for("hostd to read the bans", Duration::from_secs(30), || {
            Ok(self.log("hostd").get(before..).is_some_and(|new| new.contains("were read again")).then_some(()))
        })
    }

    /// Starts the quarantine daemon and waits until it has looked at its vault.
    pub fn start_quarantine(&self) -> Result<()> {
        let config = self.etc("quarantine.toml");
        self.start(&self.quarantine, "quarantine", &config, "quarantine is ready")
    }

    /// Kills the quarantine daemon.
    pub fn kill_quarantine(&self) -> Result<()> {
        kill(&self.quarantine)
    }

    /// Ends the quarantine daemon in order.
    pub fn stop_quarantine(&self) -> Result<()> {
        stop(&self.quarantine)
    }

    /// The log of a daemon: `hostd` or `quarantine`.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.site.dir().join(format!("{name}.log"))
    }

    fn start(&self, slot: &Mutex<Option<Child>>, name: &str, config: &Path, ready: &str) -> Result<()> {
        let mut slot = lock(slot);
        ensure!(slot.is_none(), "{name} is running already");
        let before = self.log(name).len();
        let log = File::options().create(true).append(true).open(self.log_path(name))?;
        let mut command = self.site.command(bins::path(name)?)?;
        command.args(["daemon", "--config"]).arg(config).env("VESTIGO_LOG", "info,hostd=debug");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        process::wait_for(&format!("{name} to run"), Duration::from_secs(60), || {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended ({status}): {}", self.log(name));
            }
            Ok(self.log(name).get(before..).is_some_and(|new| new.contains(ready)).then_some(()))
        })?;
        *slot = Some(child);
        Ok(())
    }

    /// Asks the investigator's tool; `--ledger` is added.
    pub fn vestigo(&self, arguments: &[&str]) -> Result<Said> {
        let ledger = self.ledger();
        self.ask("vestigo", arguments, &["--ledger", &ledger.to_string_lossy()])
    }

    /// The answer in JSON; finding nothing is an error.
    pub fn vestigo_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let said = self.vestigo(&all)?;
        ensure!(said.status == 0, "vestigo {arguments:?} ended with {}: {}{}", said.status, said.stdout, said.stderr);
        said.json()
    }

    /// Asks the quarantine tool; `--config` is added.
    pub fn quarantine(&self, arguments: &[&str]) -> Result<Said> {
        let config = self.etc("quarantine.toml");
        self.ask("quarantine", arguments, &["--config", &config.to_string_lossy()])
    }

    fn ask(&self, program: &str, arguments: &[&str], more: &[&str]) -> Result<Said> {
        let mut command = self.site.command(bins::path(program)?)?;
        command.args(arguments).args(more).env("NO_COLOR", "1").stdin(Stdio::null());
        // What every question must say of itself, and where it is recorded.
        let etc = self.etc("vestigo.toml");
        command.env("VESTIGO_CASE", "TEST-1").env("VESTIGO_REASON", "a test asks").env("VESTIGO_CONFIG", etc);
        if self.keys().is_dir() {
            command.env("VESTIGO_KEYS", self.keys());
        }
        let done = command.output().with_context(|| format!("cannot run {program}"))?;
        Ok(Said {
            status: done.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        let _ = kill(&self.hostd);
        let _ = kill(&self.quarantine);
    }
}

fn stop(slot: &Mutex<Option<Child>>) -> Result<()> {
    let mut child = lock(slot).take().context("the daemon is not running")?;
    let status = process::stop(&mut child, STOP)?;
    ensure!(status.success(), "the daemon ended with {status}");
    Ok(())
}

fn kill(slot: &Mutex<Option<Child>>) -> Result<()> {
    let mut child = lock(slot).take().context("the daemon is not running")?;
    process::signal(&child, Signal::SIGKILL)?;
    child.wait()?;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The metadata that Nova writes into a domain's XML.
pub fn nova_metadata(name: &str, project: &str, project_name: &str, user: &str, address: &str) -> String {
    let bare = address.split('/').next().unwrap_or(address);
    format!(
        "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>\
         <nova:package version='26.2.2'/><nova:name>{name}</nova:name>\
         <nova:creationTime>2026-11-22 04:00:00</nova:creationTime>\
         <nova:flavor name='m1.tiny'><nova:memory>256</nova:memory><nova:disk>1</nova:disk><nova:vcpus>1</nova:vcpus></nova:flavor>\
         <nova:owner><nova:user uuid='{user}'>{user}</nova:user><nova:project uuid='{project}'>{project_name}</nova:project></nova:owner>\
         <nova:root type='image' uuid='5c0a1b2e-0000-4000-8000-00000000cafe'/>\
         <nova:ports><nova:port uuid='7d1a1b2e-0000-4000-8000-00000000beef'>\
         <nova:ip type='fixed' address='{bare}' ipVersion='4'/></nova:port></nova:ports></nova:instance>"
    )
}
