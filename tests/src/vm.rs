//! A running VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::console::Console;
use crate::guest::{Accelerator, VmSpec};
use crate::process;
use crate::site::Site;

/// A domain of the site's libvirt with its disk and its console.
pub struct Vm<'a> {
    site: &'a Site,
    spec: VmSpec,
    dir: PathBuf,
    console: Mutex<Arc<Console>>,
    /// Where the console's text of the present boot begins.
    boot_from: Mutex<usize>,
}

impl Site {
    /// The folder that plays the cloud manager's instance store.
    pub fn instances(&self) -> PathBuf {
        self.dir().join("instances")
    }

    /// Makes the disk, defines and starts the domain. Returns at once; see [`Vm::wait_ready`].
    pub fn boot(&self, spec: &VmSpec) -> Result<Vm<'_>> {
        let dir = self.instances().join(&spec.uuid);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut image = Command::new("qemu-img");
        image.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(spec.image.root()).arg(dir.join("disk"));
        process::output(&mut image)?;
        let file = dir.join("domain.xml");
        fs::write(&file, domain_xml(spec, &dir))?;
        self.virsh(&["define", &file.to_string_lossy()])?;
        self.virsh(&["start", &spec.name])?;
        let console = connect(self, spec)?;
        Ok(Vm { site: self, spec: spec.clone(), dir, console: Mutex::new(console), boot_from: Mutex::new(0) })
    }
}

impl Vm<'_> {
    /// libvirt's name of it.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The domain's UUID.
    pub fn uuid(&self) -> &str {
        &self.spec.uuid
    }

    /// What it was made of.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// The serial console of the present run.
    pub fn console(&self) -> Arc<Console> {
        Arc::clone(&lock(&self.console))
    }

    /// Waits until the guest's shell takes commands.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let from = *lock(&self.boot_from);
        self.console().wait_greeting(from, timeout)
    }

    /// The domain as libvirt has it now.
    pub fn xml(&self) -> Result<String> {
        self.site.virsh(&["dumpxml", self.name()])
    }

    /// libvirt's word for its state, such as `running` or `shut off`.
    pub fn state(&self) -> Result<String> {
        Ok(self.site.virsh(&["domstate", self.name()])?.trim().to_owned())
    }

    /// Waits for a state.
    pub fn wait_state(&self, state: &str, limit: Duration) -> Result<()> {
        let what = format!("{} to be {state}", self.name());
        process::wait_for(&what, limit, || Ok((self.state()? == state).then_some(())))
    }

    /// The qcow2 file over the image's base.
    pub fn disk_path(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// The folder of the instance, as a cloud manager keeps it.
    pub fn instance_dir(&self) -> &Path {
        &self.dir
    }

    /// The socket of the agent's channel where the specification asked for one, as the site sees it; a test outside uses
    /// [`Site::connect`].
    pub fn agent_socket(&self) -> PathBuf {
        socket(&self.spec, "agent")
    }

    /// The host's interface of this VM (`vnetN`).
    pub fn tap(&self) -> Result<String> {
        let list = self.site.virsh(&["domiflist", self.name()])?;
        list.split_whitespace().next().map(str::to_owned).context("the domain has no interface")
    }

    /// Plugs a device into the running domain.
    pub fn attach_device(&self, xml: &str) -> Result<()> {
        let file = self.dir.join("attach.xml");
        fs::write(&file, xml)?;
        self.site.virsh(&["attach-device", self.name(), &file.to_string_lossy(), "--live"]).map(drop)
    }

    /// Reboots from inside, as a user would; wait with [`Vm::wait_ready`].
    pub fn reboot(&self) -> Result<()> {
        *lock(&self.boot_from) = self.console().position();
        // The command's end is never told, so it must not be waited for.
        self.console().run("(sleep 0.2; reboot -f) > /dev/null 2>&1 &", Duration::from_secs(60)).map(drop)
    }

    /// Shuts down from inside and waits until libvirt says so. The domain stays defined.
    pub fn stop(&self) -> Result<()> {
        self.console().run("(sleep 0.2; sync; poweroff -f) > /dev/null 2>&1 &", Duration::from_secs(60))?;
        self.wait_state("shut off", Duration::from_secs(60))
    }

    /// Starts it again after [`Vm::stop`] or [`Vm::destroy`].
    pub fn start(&self) -> Result<()> {
        self.site.virsh(&["start", self.name()])?;
        *lock(&self.console) = connect(self.site, &self.spec)?;
        *lock(&self.boot_from) = 0;
        Ok(())
    }

    /// Pulls the plug. The domain stays defined.
    pub fn destroy(&self) -> Result<()> {
        self.site.virsh(&["destroy", self.name()]).map(drop)
    }

    /// Makes libvirt forget the domain.
    pub fn undefine(&self) -> Result<()> {
        self.site.virsh(&["undefine", self.name()]).map(drop)
    }

    /// Deletes the disk as Nova does: the folder is renamed to `…_del`, then removed with all it holds.
    pub fn delete_disk_like_nova(&self) -> Result<()> {
        let mut doomed = self.dir.clone().into_os_string();
        doomed.push("_del");
        fs::rename(&self.dir, &doomed)?;
        fs::remove_dir_all(&doomed)?;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(site: &Site, spec: &VmSpec) -> Result<Arc<Console>> {
    let log = site.dir().join(format!("console-{}.log", spec.name));
    Console::open(site.connect(&socket(spec, "console"))?, &log).map(Arc::new)
}

/// Inside the site, in /run: the instance's folder may have a longer path than a socket address holds.
fn socket(spec: &VmSpec, kind: &str) -> PathBuf {
    Path::new("/run").join(format!("{}.{kind}", spec.name))
}

fn domain_xml(spec: &VmSpec, dir: &Path) -> String {
    let VmSpec { name, uuid, metadata_xml, mac, memory_mib, machine, extra_devices, .. } = spec;
    let (kind, cpu) = match spec.image.accelerator() {
        Accelerator::Kvm => ("kvm", "<cpu mode='host-passthrough'/>"),
        // The plain model translates fastest; rdrand lets the kernel have its random numbers without waiting.
        Accelerator::Tcg => (
            "qemu",
            "<cpu mode='custom' match='exact'><model>qemu64</model><feature policy='require' name='rdrand'/></cpu>",
        ),
    };
    let (kernel, initrd, root) = (spec.image.kernel(), spec.image.initrd(), spec.image.root());
    let (disk, console, bridge) = (dir.join("disk"), socket(spec, "console"), spec.bridge.name());
    let channel = if spec.with_agent_channel { channel_xml(&socket(spec, "agent")) } else { String::new() };
    format!(
        "<domain type='{kind}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata>{metadata_xml}</metadata>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  {cpu}
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='writeback'/>
      <source file='{disk}'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='{root}'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='{bridge}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='unix'>
      <source mode='bind' path='{console}'/>
      <target port='0'/>
    </serial>
    {channel}{extra_devices}
  </devices>
</domain>
",
        kernel = kernel.display(),
        initrd = initrd.display(),
        cmdline = command_line(spec),
        disk = disk.display(),
        root = root.display(),
        console = console.display(),
    )
}

/// The agent's channel, for a domain's XML or for hot-plugging.
pub fn channel_xml(socket: &Path) -> String {
    format!(
        "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='org.vestigo.attribution.0'/></channel>",
        socket.display()
    )
}

fn command_line(spec: &VmSpec) -> String {
    // Quiet, because the kernel's words share the serial line with the console's answers.
    let mut line =
        String::from("console=ttyS0 quiet loglevel=1 edd=off mitigations=off tsc=reliable net.ifnames=0 panic=-1");
    let words = [("hostname", Some(&spec.name)), ("address", Some(&spec.address)), ("gateway", spec.gateway.as_ref())];
    for (key, value) in words.into_iter().chain([("address6", spec.address6.as_ref())]) {
        if let Some(value) = value {
            line.push_str(&format!(" vestigo.{key}={value}"));
        }
    }
    line
}
