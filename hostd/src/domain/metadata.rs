//! What cloud managers say about a VM: in the domain's `<metadata>`, or for Vac in the paths of its machine.
//!
//! | form | namespace | taken |
//! |---|---|---|
//! | OpenStack Nova | `http://openstack.org/xmlns/libvirt/nova/…` | project, user, flavour, image, ports' fixed addresses |
//! | OpenNebula | `http://opennebula.org/xmlns/libvirt/1.0` | group, user; the number from the domain's name `one-42` |
//! | Vac | none; `/var/lib/vac/machines/<created>_<machine type>_<name>/…` | machine type |
//! | plain | [`PLAIN_NAMESPACE`] | `<instance id="…"><project id="…">name</project><owner/><flavour/><image/></instance>` |
//!
//! Nothing is guessed: what the metadata does not say stays absent.

use std::{net::IpAddr, path::Path};

use vestigo_model::{Cloud, DomainUuid, InstanceId, Label, Project};

use super::tree::Element;

/// Nova's namespace up to its version.
const NOVA_NAMESPACE: &str = "http://openstack.org/xmlns/libvirt/nova/";
/// OpenNebula's namespace.
const ONE_NAMESPACE: &str = "http://opennebula.org/xmlns/libvirt/";
/// Where Vac keeps its machines.
const VAC_MACHINES: &str = "/var/lib/vac/machines/";
/// The namespace with which a site that uses none of the cloud managers can say whose a VM is.
pub const PLAIN_NAMESPACE: &str = "https://vestigo.invalid/metadata/1";

/// What is known about who a VM belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Who made the domain.
    pub cloud: Cloud,
    /// The cloud's id.
    pub id: InstanceId,
    /// The tenant.
    pub project: Option<Project>,
    /// Who asked for it.
    pub owner: Option<Label>,
    /// Size class.
    pub flavour: Option<Label>,
    /// Image it was made from.
    pub image: Option<Label>,
    /// Vac's machine type.
    pub machine_type: Option<Label>,
    /// Nova's network ports.
    pub ports: Vec<Port>,
}

/// A port of Nova's network service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its UUID as text.
    pub uuid: String,
    /// Its fixed addresses. Floating ones never show on the tap.
    pub addresses: Vec<IpAddr>,
}

/// Text from outside as a label: what may not be in one is replaced, what is too long is cut. The whole XML is kept
/// elsewhere as it was.
#[must_use]
pub fn label(text: &str) -> Option<Label> {
    let mut clean = String::new();
    for c in text.trim().chars() {
        let c = if Label::new(c.to_string()).is_ok() { c } else { '\u{fffd}' };
        if clean.len() + c.len_utf8() > 255 {
            break;
        }
        clean.push(c);
    }
    Label::new(clean).ok()
}

fn instance_id(text: &str) -> Option<InstanceId> {
    InstanceId::new(text).ok()
}

/// Reads the metadata of the domain `root`; `paths` are the files that its disks and console name.
pub(super) fn read<'a>(
    root: &Element,
    uuid: DomainUuid,
    name: &Label,
    paths: impl Iterator<Item = &'a Path>,
) -> Option<Metadata> {
    let by_uuid = instance_id(&uuid.to_string())?;
    let plain = Metadata {
        cloud: Cloud::Plain,
        // A libvirt name may be longer than an instance id.
        id: instance_id(name.as_str()).unwrap_or_else(|| by_uuid.clone()),
        project: None,
        owner: None,
        flavour: None,
        image: None,
        machine_type: None,
        ports: Vec::new(),
    };
    let find = |namespace: &str, element: &str| {
        let metadata = root.child("metadata")?;
        metadata.children.iter().find(|c| c.name == element && c.namespace.starts_with(namespace))
    };
    if let Some(nova) = find(NOVA_NAMESPACE, "instance") {
        return Some(from_nova(nova, by_uuid, plain));
    }
    if let Some(one) = find(ONE_NAMESPACE, "vm") {
        return Some(from_one(one, name, plain));
    }
    if let Some(machine_type) = paths.filter_map(|path| vac_machine_type(path, name)).next() {
        return Some(Metadata { cloud: Cloud::Vac, machine_type: Some(machine_type), ..plain });
    }
    Some(match find(PLAIN_NAMESPACE, "instance") {
        Some(ours) => from_plain(ours, plain),
        None => plain,
    })
}

fn project(element: Option<&Element>, id_attribute: &str) -> Option<Project> {
    let element = element?;
    let name = element.text().and_then(label);
    let id = element.attribute(id_attribute).and_then(label).or_else(|| name.clone())?;
    Some(Project { id, name })
}

fn from_nova(nova: &Element, id: InstanceId, plain: Metadata) -> Metadata {
    let owner = nova.child("owner");
    let user = owner.and_then(|o| o.child("user"));
    Metadata {
        cloud: Cloud::Openstack,
        id,
        project: project(owner.and_then(|o| o.child("project")), "uuid"),
        owner: user.and_then(|u| u.text().or_else(|| u.attribute("uuid"))).and_then(label),
        flavour: nova.child_attribute("flavor", "name").and_then(label),
        image: nova.child_attribute("root", "uuid").and_then(label),
        ports: nova.child("ports").map(nova_ports).unwrap_or_default(),
        ..plain
    }
}

fn nova_ports(ports: &Element) -> Vec<Port> {
    let port = |port: &Element| Port {
        uuid: port.attribute("uuid").unwrap_or_default().to_owned(),
        addresses: port
            .all("ip")
            .filter(|ip| ip.attribute("type").is_none_or(|kind| kind == "fixed"))
            .filter_map(|ip| ip.attribute("address")?.parse().ok())
            .collect(),
    };
    ports.all("port").map(port).collect()
}

fn from_one(one: &Element, name: &Label, plain: Metadata) -> Metadata {
    // OpenNebula keeps its number in the domain's name and in the last part of the VM's folder, not in the metadata.
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let by_name = name.as_str().strip_prefix("one-").filter(is_number);
    let by_folder = one.child_text("system_datastore").and_then(|path| path.rsplit('/').find(|p| !p.is_empty()));
    let id = by_name.or_else(|| by_folder.filter(is_number)).and_then(instance_id);
    let group = one.child_text("gname").and_then(label);
    let number = one.child_text("gid").and_then(label);
    Metadata {
        cloud: Cloud::Opennebula,
        id: id.unwrap_or_else(|| plain.id.clone()),
        project: number.or_else(|| group.clone()).map(|id| Project { id, name: group }),
        owner: one.child_text("uname").and_then(label),
        ..plain
    }
}

/// Vac's folder was named in three ways over the years: `<created>_<type>_<name>`, `<created>:<type>[:<uuid>]` and
/// `<name>/<type>/<uuid>`.
fn vac_machine_type(path: &Path, name: &Label) -> Option<Label> {
    let mut parts = path.to_str()?.strip_prefix(VAC_MACHINES)?.split('/');
    let folder = parts.next()?;
    if folder == name.as_str() {
        return label(parts.next()?);
    }
    let digits = folder.bytes().take_while(u8::is_ascii_digit).count();
    let (_, rest) = folder.split_at_checked(digits).filter(|(created, _)| !created.is_empty())?;
    match rest.strip_prefix(':') {
        Some(rest) => label(rest.split(':').next()?),
        None => label(rest.strip_prefix('_')?.strip_suffix(name.as_str())?.strip_suffix('_')?),
    }
}

fn from_plain(ours: &Element, plain: Metadata) -> Metadata {
    let text = |name| ours.child_text(name).and_then(label);
    Metadata {
        id: ours.attribute("id").and_then(instance_id).unwrap_or_else(|| plain.id.clone()),
        project: project(ours.child("project"), "id"),
        owner: text("owner"),
        flavour: text("flavour"),
        image: text("image"),
        ..plain
    }
}
