//! Instances: host facts about a VM, from libvirt and the metadata that the cloud manager wrote into the domain XML.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Digest, DomainUuid, HostId, InstanceId, Label, Learnt, Mac, TapName, Timestamp, Vo};

/// Who made the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cloud {
    /// OpenStack Nova (`<nova:instance>` in the metadata).
    Openstack,
    /// OpenNebula (`<one:vm>` in the metadata).
    Opennebula,
    /// Vac: known by the paths of its machines.
    Vac,
    /// None of these: libvirt by hand, or a manager that writes no metadata.
    Plain,
}

impl Cloud {
    /// The word used in records and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Openstack => "openstack",
            Self::Opennebula => "opennebula",
            Self::Vac => "vac",
            Self::Plain => "plain",
        }
    }
}

/// The tenant, as the cloud manager calls it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Project {
    /// Stable id (Nova's project UUID, OpenNebula's group number).
    pub id: Label,
    /// Name, where the metadata gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Label>,
}

/// One host-side interface of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// Kernel name; reused after the VM is gone, so never a key on its own.
    pub name: TapName,
    /// The guest's address on it.
    pub mac: Mac,
    /// Addresses that the cloud expects the VM to use; empty when nothing is known.
    #[serde(default)]
    pub expected: Vec<IpAddr>,
    /// Addresses that were seen given or announced on it while the VM ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learnt: Vec<Learnt>,
    /// The network that it is a port of, as far as the domain XML says: the bridge's name, with `/ID` where the XML gives the port a
    /// VLAN of its own. Taps of one host with the same name here hand each other's frames on. `None` where the XML does not decide
    /// it: Open vSwitch keeps several tenants apart on one bridge by tags that libvirt does not know of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Label>,
    /// Why its frames cannot be seen from the host (passthrough, vhost-user …); `None` when they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_capturable: Option<String>,
}

/// One file under a disk: the image itself or one of its backing files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Where the domain XML says it is.
    pub path: PathBuf,
    /// `raw`, `qcow2` … as declared in the domain XML; never probed.
    pub format: String,
}

/// One disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The guest's name for it: `vda`.
    pub target: String,
    /// The image first, then its backing files, as declared.
    pub chain: Vec<Layer>,
}

/// Why an interval ended. libvirt's words, plus what only hostd can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The guest powered itself off.
    Shutdown,
    /// The host ended it.
    Destroyed,
    /// QEMU died.
    Crashed,
    /// It runs on another host now.
    Migrated,
    /// Its state was saved to disk.
    Saved,
    /// It never came up.
    Failed,
    /// Gone while hostd was not looking: the end is some time before the record.
    Unobserved,
    /// libvirt gave no reason.
    Unknown,
}

/// The end of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEnd {
    /// When.
    pub time: Timestamp,
    /// Why.
    pub why: StopReason,
}

/// One interval during which a VM ran on this host. Its key is (`host`, `domain`, `start`); a later record of the same
/// key replaces the earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The hypervisor.
    pub host: HostId,
    /// libvirt's UUID.
    pub domain: DomainUuid,
    /// The cloud's id.
    pub id: InstanceId,
    /// libvirt's name.
    pub name: Label,
    /// Who made it.
    pub cloud: Cloud,
    /// The tenant, if the metadata names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Project>,
    /// The VO that the site's `vos.toml` maps the tenant to; `None` is *unmapped*, never guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vo: Option<Vo>,
    /// Who asked the cloud for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Label>,
    /// Size class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavour: Option<Label>,
    /// Image it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Label>,
    /// Its interfaces.
    pub taps: Vec<Tap>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// SHA-256 of the domain XML as libvirt gave it.
    pub xml_sha256: Digest,
    /// When it began to run (or when hostd first saw it run, if that is later).
    pub start: Timestamp,
    /// When and why it ended; `None` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<InstanceEnd>,
}
