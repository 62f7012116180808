//! VMs that never run an instruction: no disk, no kernel, paused from the start. libvirt, QEMU, a tap and the events are real, and
//! one costs a fraction of a second.

use std::fs;

use anyhow::Result;

use crate::{net::Bridge, site::Site};

/// One such VM. Gone from libvirt when it is destroyed.
#[derive(Clone, Debug)]
pub struct Husk {
    /// libvirt's name.
    pub name: String,
    /// The domain's UUID.
    pub uuid: String,
    /// MAC address of its only interface.
    pub mac: String,
    /// Name of its tap; libvirt's next `vnetN` unless set.
    pub tap: Option<String>,
    /// Raw XML for `<metadata>`.
    pub metadata_xml: String,
}

impl Husk {
    /// The usual values, made of a number below 65536.
    pub fn new(name: &str, number: u16) -> Self {
        Self {
            name: name.to_owned(),
            uuid: format!("0000{number:04x}-5e57-4b1d-8000-00000000cafe"),
            mac: format!("52:54:00:ca:{:02x}:{:02x}", number >> 8, number & 0xff),
            tap: None,
            metadata_xml: String::new(),
        }
    }

    fn xml(&self, bridge: &Bridge) -> String {
        let Self { name, uuid, mac, metadata_xml, .. } = self;
        let target = self.tap.as_ref().map_or(String::new(), |tap| format!("<target dev='{tap}'/>"));
        format!(
            "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><metadata>{metadata_xml}</metadata>
  <memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/>
    <interface type='bridge'><mac address='{mac}'/><source bridge='{}'/>{target}<model type='virtio'/><rom enabled='no'/></interface>
  </devices>
</domain>
",
            bridge.name()
        )
    }
}

impl Site {
    /// Starts them, paused, one after the other.
    pub fn start_husks(&self, husks: &[Husk], bridge: &Bridge) -> Result<()> {
        let mut commands = Vec::new();
        for husk in husks {
            let file = self.dir().join(format!("{}.xml", husk.name));
            fs::write(&file, husk.xml(bridge))?;
            commands.push(format!("create {} --paused", file.display()));
        }
        self.virsh(&[&commands.join("; ")]).map(drop)
    }

    /// Ends them, one after the other.
    pub fn destroy_husks(&self, husks: &[Husk]) -> Result<()> {
        let commands: Vec<String> = husks.iter().map(|husk| format!("destroy {}", husk.uuid)).collect();
        self.virsh(&[&commands.join("; ")]).map(drop)
    }
}
