//! What hostd needs out of a domain's XML. Pure: text in, values out; nothing is opened and nothing is probed.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use vestigo_model::{Disk, DomainUuid, Label, Layer, Mac, Tap, TapName};

pub use super::tree::XmlError;
use super::{
    metadata::{self, Metadata, Port},
    tree::{self, Element},
};

/// The port's name in the guest and in the XML.
pub const CHANNEL_NAME: &str = "org.vestigo.attribution.0";
/// Longest backing chain that is followed.
const MAX_CHAIN: usize = 64;

/// Everything taken from one domain's XML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// libvirt's UUID.
    pub uuid: DomainUuid,
    /// libvirt's name.
    pub name: Label,
    /// libvirt's number of this run of it, while it runs.
    pub run: Option<u32>,
    /// What the cloud manager says about it.
    pub metadata: Metadata,
    /// Its interfaces.
    pub taps: Vec<Tap>,
    /// Its file-backed disks.
    pub disks: Vec<Disk>,
    /// Disks (or layers) on which no hold is possible: target and reason. CD-ROMs and floppies are not the VM's own
    /// disks and are left out.
    pub unpinnable: Vec<(String, String)>,
    /// The agent channel, if there is one.
    pub channel: Option<Channel>,
    /// Whether a `virtio-serial` controller is there to plug the channel into.
    pub virtio_serial: bool,
    /// Whether the guest has ACPI, without which it does not notice a plugged device.
    pub acpi: bool,
    /// Where the host writes the guest's console.
    pub console_log: Option<PathBuf>,
}

/// The agent channel as the XML declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// A Unix socket on the host.
    Socket(PathBuf),
    /// Something that hostd cannot connect to.
    Unusable(String),
}

/// Reads the XML of a domain.
pub fn describe(xml: &str) -> Result<Description, XmlError> {
    let root = tree::parse(xml)?;
    if root.name != "domain" {
        return Err(XmlError::Absent("<domain>"));
    }
    let uuid = root.child_text("uuid").ok_or(XmlError::Absent("<uuid>"))?;
    let uuid = uuid.parse().map_err(|error| unusable("<uuid>", error))?;
    let name = root.child_text("name").ok_or(XmlError::Absent("<name>"))?;
    let name = metadata::label(name).ok_or_else(|| unusable("<name>", "it is empty"))?;
    let none = Element::default();
    let devices = root.child("devices").unwrap_or(&none);
    let console_log = console_log(devices);
    let (disks, unpinnable) = disks(devices);
    let paths = disks.iter().flat_map(|disk| &disk.chain).map(|layer| layer.path.as_path());
    let metadata = metadata::read(&root, uuid, &name, paths.chain(console_log.as_deref()))
        .ok_or_else(|| unusable("<uuid>", "it is no instance id"))?;
    let sole = devices.all("interface").count() == 1;
    let taps = devices.all("interface").enumerate().filter_map(|(n, interface)| tap(n, interface, &metadata, sole));
    let taps = taps.collect();
    Ok(Description {
        uuid,
        name,
        run: root.attribute("id").and_then(|id| id.parse().ok()),
        metadata,
        taps,
        disks,
        unpinnable,
        channel: devices.all("channel").find_map(channel),
        virtio_serial: devices.all("controller").any(|c| c.attribute("type") == Some("virtio-serial")),
        acpi: root.child("features").is_some_and(|features| features.child("acpi").is_some()),
        console_log,
    })
}

fn unusable(what: &'static str, why: impl ToString) -> XmlError {
    XmlError::Value { what, why: why.to_string() }
}

fn channel(channel: &Element) -> Option<Channel> {
    let target = channel.child("target")?;
    if target.attribute("name") != Some(CHANNEL_NAME) || target.attribute("type") != Some("virtio") {
        return None;
    }
    let kind = channel.attribute("type").unwrap_or("unknown");
    let source = channel.child("source");
    let mode = source.and_then(|s| s.attribute("mode")).unwrap_or("bind");
    Some(match source.and_then(|s| s.attribute("path")) {
        Some(path) if kind == "unix" && mode == "bind" => Channel::Socket(path.into()),
        Some(_) if kind == "unix" => Channel::Unusable(format!("its socket has mode {mode:?}; it must be \"bind\"")),
        _ => Channel::Unusable(format!("it is of type {kind:?}; it must be a Unix socket")),
    })
}

fn console_log(devices: &Element) -> Option<PathBuf> {
    let of = |device: &Element| -> Option<PathBuf> {
        let path = match device.child_attribute("log", "file") {
            Some(log) => log,
            None if device.attribute("type") == Some("file") => device.child_attribute("source", "path")?,
            None => return None,
        };
        Some(path.into())
    };
    devices.all("serial").chain(devices.all("console")).find_map(of)
}

fn tap(position: usize, interface: &Element, metadata: &Metadata, sole: bool) -> Option<Tap> {
    let kind = interface.attribute("type").unwrap_or("unknown");
    let device = interface.child_attribute("target", "dev").and_then(|name| TapName::new(name).ok());
    let mac = interface.child_attribute("mac", "address").and_then(|mac| mac.parse().ok());
    let not_capturable = why_not_capturable(kind, interface).or_else(|| match (&device, mac) {
        (None, _) => Some("libvirt names no host interface for it".to_owned()),
        (_, None) => Some("libvirt names no MAC address for it".to_owned()),
        _ => None,
    });
    // An interface that the host has no device for gets a name of its own, so that its coverage can still be recorded.
    let name = device.or_else(|| TapName::new(format!("nic{position}")).ok())?;
    let mut expected = granted(interface);
    expected.extend(port_addresses(&name, interface, metadata, sole));
    expected.sort();
    expected.dedup();
    let network = if not_capturable.is_none() { network(interface) } else { None };
    Some(Tap { name, mac: mac.unwrap_or(Mac([0; 6])), expected, learnt: Vec::new(), network, not_capturable })
}

/// The bridge (of a libvirt network too: the live XML names it) and the port's VLAN. On an Open vSwitch without a VLAN in the XML the
/// tag is set behind libvirt's back, and a trunk is in several networks.
fn network(interface: &Element) -> Option<Label> {
    let bridge = interface.child_attribute("source", "bridge")?;
    let mut tags = interface.child("vlan").into_iter().flat_map(|vlan| vlan.all("tag"));
    let open_vswitch = interface.child_attribute("virtualport", "type").is_some();
    match (tags.next(), tags.next()) {
        (None, _) if !open_vswitch => metadata::label(bridge),
        (Some(tag), None) => metadata::label(&format!("{bridge}/{}", tag.attribute("id")?)),
        _ => None,
    }
}

fn why_not_capturable(kind: &str, interface: &Element) -> Option<String> {
    let why = match kind {
        "network" | "bridge" | "ethernet" | "internal" => return None,
        "hostdev" => "PCI passthrough: frames go from the card to the guest, past the host".to_owned(),
        "vhostuser" => "vhost-user: frames go through a user-space switch's memory, past the kernel".to_owned(),
        "vdpa" => "vDPA: frames go from the card to the guest, past the host".to_owned(),
        "direct" => {
            let mode = interface.child_attribute("source", "mode").unwrap_or("vepa");
            format!("macvtap in mode {mode:?}: the host has no tap to capture on")
        }
        "user" => "user-mode network: QEMU translates it to sockets of its own".to_owned(),
        other => format!("interfaces of type {other:?} have no tap on the host"),
    };
    Some(why)
}

/// Addresses that the XML itself grants: `<ip>` and the parameters of the spoofing filter.
fn granted(interface: &Element) -> Vec<IpAddr> {
    let filter = interface.child("filterref");
    let parameters = filter.iter().flat_map(|f| f.all("parameter"));
    let granted = parameters
        .filter(|p| matches!(p.attribute("name"), Some("IP" | "IPV6")))
        .filter_map(|p| p.attribute("value"))
        .chain(interface.all("ip").filter_map(|ip| ip.attribute("address")));
    granted.filter_map(|text| text.parse().ok()).collect()
}

/// The fixed addresses of the tap's Nova port. Port and tap are matched by the identifier that Nova puts into the virtual
/// port or into the tap's name (`tap` and its first 11 characters); a VM with one tap and one port needs no match.
fn port_addresses(name: &TapName, interface: &Element, metadata: &Metadata, sole: bool) -> Vec<IpAddr> {
    let virtual_port = interface.child("virtualport").and_then(|v| v.child_attribute("parameters", "interfaceid"));
    let belongs = |port: &&Port| {
        let short = port.uuid.get(..11).unwrap_or("");
        let by_name = !short.is_empty() && name.as_str().ends_with(short);
        (sole && metadata.ports.len() == 1) || virtual_port == Some(port.uuid.as_str()) || by_name
    };
    metadata.ports.iter().filter(belongs).flat_map(|port| port.addresses.iter().copied()).collect()
}

type Disks = (Vec<Disk>, Vec<(String, String)>);

fn disks(devices: &Element) -> Disks {
    let (mut disks, mut unpinnable) = Disks::default();
    for disk in devices.all("disk") {
        let device = disk.attribute("device").unwrap_or("disk");
        if matches!(device, "cdrom" | "floppy") {
            continue;
        }
        let target = disk.child_attribute("target", "dev").and_then(metadata::label);
        let target = target.map_or_else(|| "unnamed".to_owned(), String::from);
        match image(disk) {
            Ok(path) => {
                let (chain, broken) = chain(disk, path);
                unpinnable.extend(broken.map(|why| (target.clone(), why)));
                disks.push(Disk { target, chain });
            }
            Err(why) => unpinnable.push((target, why)),
        }
    }
    (disks, unpinnable)
}

/// The file under a disk or a backing store, or what it is instead.
fn image(store: &Element) -> Result<PathBuf, String> {
    let kind = store.attribute("type").unwrap_or("unknown");
    let source = store.child("source");
    let of = |name| source.and_then(|s| s.attribute(name)).unwrap_or("?");
    match kind {
        "file" => match source.and_then(|s| s.attribute("file")) {
            Some(path) if Path::new(path).is_absolute() => Ok(path.into()),
            Some(path) => Err(format!("its path {path:?} is not absolute")),
            None => Err("it names no file".to_owned()),
        },
        "block" => Err(format!("it is the block volume {}", of("dev"))),
        "network" => Err(format!("it is the network volume {}:{}", of("protocol"), of("name"))),
        "volume" => Err(format!("it is the volume {} of storage pool {}", of("volume"), of("pool"))),
        other => Err(format!("disks of type {other:?} are not files")),
    }
}

/// The declared chain, image first, and why it is not complete, if it is not.
fn chain(disk: &Element, path: PathBuf) -> (Vec<Layer>, Option<String>) {
    let declared = disk.child_attribute("driver", "type").unwrap_or("raw");
    let mut chain = vec![Layer { path, format: declared.to_owned() }];
    let mut below = disk.child("backingStore");
    while let Some(store) = below.filter(|store| !store.children.is_empty()) {
        if chain.len() >= MAX_CHAIN {
            return (chain, Some(format!("its backing chain is longer than {MAX_CHAIN} files; the rest is not kept")));
        }
        match image(store) {
            Ok(path) => {
                let format = store.child_attribute("format", "type").unwrap_or("raw").to_owned();
                chain.push(Layer { path, format });
            }
            Err(why) => {
                let layer = chain.len();
                return (chain, Some(format!("its backing layer {layer} cannot be kept: {why}")));
            }
        }
        below = store.child("backingStore");
    }
    (chain, None)
}
