//! The guest image, the way to run it (KVM or emulation), and what a VM is made of.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::net::Bridge;
use crate::{paths, process};

/// How many images (one for each build of the agent) are kept.
const IMAGES_KEPT: usize = 4;
/// A guest that KVM really runs says hello within a second.
const KVM_PATIENCE: Duration = Duration::from_secs(5);

/// What runs guests fast, where it does.
pub const KVM: &str = "/dev/kvm";

/// A built guest image with one build of the agent in it.
#[derive(Clone, Debug)]
pub struct GuestImage {
    dir: PathBuf,
    accelerator: Accelerator,
}

/// What executes the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The CPU.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl GuestImage {
    /// Builds the image with this agent, or finds it built.
    pub fn ensure(agent: &Path) -> Result<GuestImage> {
        let images = paths::target("guest")?;
        let digest = process::output(Command::new("sha256sum").arg(agent))?;
        // A folder for each build of the agent: a running VM's base must not be replaced under it.
        let dir = images.join(digest.get(..16).context("sha256sum said nothing")?);
        let lock = File::create(images.join(".lock"))?;
        lock.lock()?;
        let build = paths::repository().join("images/guest/build");
        let cache = paths::target("guest-cache")?;
        let mut build = Command::new(build);
        build.arg("--agent").arg(agent).arg("--out").arg(&dir).arg("--cache").arg(cache);
        process::output(&mut build)?;
        // Touched, so that the sweep takes those unused for longest.
        File::open(&dir)?.set_modified(SystemTime::now())?;
        sweep(&images)?;
        let accelerator = accelerator(&dir, &images)?;
        Ok(GuestImage { dir, accelerator })
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initial RAM disk.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// The base image below every VM's disk.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.qcow2")
    }

    /// Whether guests run on KVM here.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }
}

/// Compiles a program of `tests/guest` for a guest that has the C library. Small enough for a serial line.
pub fn compile(name: &str, dir: &Path) -> Result<Vec<u8>> {
    let program = dir.join(name);
    let source = paths::repository().join("tests/guest").join(name).with_extension("c");
    process::output(Command::new("cc").args(["-O2", "-s", "-o"]).arg(&program).arg(source))?;
    Ok(fs::read(program)?)
}

fn sweep(images: &Path) -> Result<()> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(images)? {
        let path = entry?.path();
        if path.join("manifest.json").is_file() {
            dirs.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    dirs.sort();
    let surplus = dirs.len().saturating_sub(IMAGES_KEPT);
    for (_, path) in dirs.iter().take(surplus) {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

/// KVM only where a guest has really run on it: some machines offer the device, but guests fail or hang. Asked once for each
/// boot of the machine.
fn accelerator(image: &Path, notes: &Path) -> Result<Accelerator> {
    let note = kvm_note(notes);
    let verdict = match fs::read_to_string(&note) {
        Ok(verdict) => verdict,
        Err(_) => {
            let verdict = if kvm_boots(image)? { "kvm" } else { "tcg" };
            fs::write(&note, verdict)?;
            verdict.to_owned()
        }
    };
    Ok(if verdict == "kvm" { Accelerator::Kvm } else { Accelerator::Tcg })
}

fn kvm_note(notes: &Path) -> PathBuf {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    notes.join(format!(".kvm-{}", boot.trim()))
}

/// Whether the device is there and is known to run no guest.
pub(crate) fn kvm_is_broken() -> bool {
    let verdict = paths::target("guest").and_then(|notes| Ok(fs::read_to_string(kvm_note(&notes))?));
    Path::new(KVM).exists() && verdict.is_ok_and(|verdict| verdict == "tcg")
}

fn kvm_boots(image: &Path) -> Result<bool> {
    if !Path::new(KVM).exists() {
        return Ok(false);
    }
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", "pc,accel=kvm", "-cpu", "host", "-m", "256"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
        .args(["-no-reboot", "-append", "console=ttyS0 quiet panic=-1 vestigo.probe", "-kernel"])
        .arg(image.join("vmlinuz"))
        .arg("-initrd")
        .arg(image.join("initrd.img"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run QEMU")?;
    let lines = BufReader::new(qemu.stdout.take().context("QEMU has no output")?).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let alive = lines.map_while(Result::ok).any(|line| line.contains("vestigo-initrd: alive"));
        // Nobody waits any more where the time is over.
        let _ = tell.send(alive);
    });
    let boots = told.recv_timeout(KVM_PATIENCE).unwrap_or(false);
    let _ = qemu.kill();
    qemu.wait()?;
    Ok(boots)
}

/// What a VM is made of. Fields may be changed before [`crate::site::Site::boot`].
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// libvirt's name and the guest's host name.
    pub name: String,
    /// The domain's UUID; derived from the name unless set.
    pub uuid: String,
    /// Raw XML for `<metadata>`.
    pub metadata_xml: String,
    /// The bridge of its only interface.
    pub bridge: Bridge,
    /// IPv4 address with prefix length.
    pub address: String,
    /// Default gateway, none by default.
    pub gateway: Option<String>,
    /// IPv6 address with prefix length, none by default.
    pub address6: Option<String>,
    /// MAC address; derived from the address unless set.
    pub mac: String,
    /// 256 by default.
    pub memory_mib: u32,
    /// QEMU's machine type, `pc` by default: its one PCI bus takes hot-plugged devices anywhere (through ACPI), and it boots
    /// faster than `q35`, whose free root ports take one device each.
    pub machine: String,
    /// Declares the agent's virtio-serial port from the start, on `Vm::agent_socket`.
    pub with_agent_channel: bool,
    /// Raw XML at the end of `<devices>`.
    pub extra_devices: String,
    /// The image to boot.
    pub image: GuestImage,
}

impl VmSpec {
    /// A VM with the usual values.
    pub fn new(name: &str, image: &GuestImage, bridge: &Bridge, address: &str) -> VmSpec {
        let number = fingerprint(name);
        let host = fingerprint(address);
        VmSpec {
            name: name.to_owned(),
            // Version 4 in form, so that every parser takes it.
            uuid: format!("{:08x}-5e57-4b1d-8000-{:012x}", number >> 32, host & 0xffff_ffff_ffff),
            metadata_xml: String::new(),
            bridge: bridge.clone(),
            address: address.to_owned(),
            gateway: None,
            address6: None,
            mac: format!("52:54:00:{:02x}:{:02x}:{:02x}", number & 0xff, number >> 8 & 0xff, host & 0xff),
            memory_mib: 256,
            machine: "pc".to_owned(),
            with_agent_channel: false,
            extra_devices: String::new(),
            image: image.clone(),
        }
    }

    /// Sets the default gateway.
    pub fn gateway(mut self, address: &str) -> VmSpec {
        self.gateway = Some(address.to_owned());
        self
    }

    /// Sets the IPv6 address.
    pub fn address6(mut self, address: &str) -> VmSpec {
        self.address6 = Some(address.to_owned());
        self
    }

    /// Sets the metadata.
    pub fn metadata(mut self, xml: &str) -> VmSpec {
        xml.clone_into(&mut self.metadata_xml);
        self
    }
}

/// FNV-1a: the same name gives the same identifiers in every run.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
