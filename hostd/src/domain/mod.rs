//! Everything libvirt. "Domain" is libvirt's word and stays in here; the rest of hostd speaks of instances.
//!
//! [`Hypervisor::connect`] opens a read-write connection (needed to plug the agent channel in) and returns a queue of
//! [`Change`]s. A supervisor thread keeps the connection: when libvirtd restarts or hangs it says
//! [`Change::Disconnected`], connects again with growing pauses and says [`Change::Resync`]; running VMs are never
//! touched by that. The queue is bounded; what does not fit is counted ([`Hypervisor::dropped_events`]) and followed by a
//! `Resync`. On `Resync` (the first thing in the queue, too) list the running domains and compare with what is known.
//!
//! ```no_run
//! # use hostd::domain::{Hypervisor, Options, Site, VoMap};
//! # fn f(host: vestigo_model::HostId) -> Result<(), Box<dyn std::error::Error>> {
//! let site = Site { host, vos: VoMap::parse("")? };
//! let (hypervisor, mut changes) = Hypervisor::connect("qemu:///system", &Options::default())?;
//! while let Some(change) = changes.blocking_recv() {
//!     for domain in hypervisor.list_running()? {
//!         let seen = hypervisor.inspect(domain, &site)?;
//!         let socket = hypervisor.ensure_channel(domain, "/run/vestigo/channels".as_ref())?;
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! Calls block (libvirt's answers take milliseconds, a plug some tens): keep the handle on a thread of its own.

mod channel;
mod events;
mod metadata;
mod supervise;
#[cfg(test)]
mod tests;
mod tree;
mod vos;
mod xml;

use std::path::{Path, PathBuf};

use vestigo_model::{Clock as _, Digest, DomainUuid, HostId, Instance, StopReason, SystemClock, Timestamp};
use virt::{
    domain::Domain,
    error::{Error, ErrorNumber},
};

use self::channel::Plan;
pub use self::{
    metadata::{Metadata, PLAIN_NAMESPACE},
    supervise::Hypervisor,
    vos::{VoMap, VosError},
    xml::{CHANNEL_NAME, Channel, Description, XmlError, describe},
};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// libvirt said so.
    #[error("libvirt could not {doing}: {message}")]
    Libvirt {
        /// What was asked.
        doing: &'static str,
        /// Its words.
        message: String,
    },
    /// No connection at the moment; the supervisor is at it.
    #[error("there is no connection to libvirt at the moment (last try: {0}); it is being opened again")]
    Disconnected(String),
    /// libvirt does not know the domain (any more).
    #[error("libvirt knows no domain {0}")]
    Gone(DomainUuid),
    /// Asked for something that only a running domain has.
    #[error("domain {0} is not running")]
    NotRunning(DomainUuid),
    /// Its XML is not usable.
    #[error("domain {domain}: {source}")]
    Xml {
        /// Which.
        domain: DomainUuid,
        /// Why.
        source: XmlError,
    },
    /// It cannot have an agent channel.
    #[error("domain {domain} cannot be given an agent channel: {reason}")]
    Channel {
        /// Which.
        domain: DomainUuid,
        /// Why.
        reason: String,
    },
}

impl DomainError {
    fn libvirt(doing: &'static str) -> impl Fn(Error) -> Self {
        move |error| Self::Libvirt { doing, message: error.message().to_owned() }
    }
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    /// Changes that may wait unread.
    pub queue: usize,
    /// Longest pause between two tries to connect again.
    pub longest_pause: std::time::Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { queue: 1024, longest_pause: std::time::Duration::from_secs(5) }
    }
}

/// What the site knows and libvirt does not.
#[derive(Debug, Clone)]
pub struct Site {
    /// This hypervisor's name.
    pub host: HostId,
    /// Which tenant belongs to which VO.
    pub vos: VoMap,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It began to run.
    Started {
        /// Which.
        domain: DomainUuid,
        /// When libvirt told us.
        time: Timestamp,
    },
    /// It does not run any more. Stopped is not terminated.
    Stopped {
        /// Which.
        domain: DomainUuid,
        /// libvirt's reason.
        why: StopReason,
        /// When libvirt told us.
        time: Timestamp,
    },
    /// The guest rebooted inside the same QEMU process.
    Rebooted {
        /// Which.
        domain: DomainUuid,
        /// When libvirt told us.
        time: Timestamp,
    },
    /// Its configuration, devices or metadata may have changed: inspect it again.
    Changed {
        /// Which.
        domain: DomainUuid,
        /// When libvirt told us.
        time: Timestamp,
    },
    /// libvirt has forgotten it. (A transient domain ends without this.)
    Undefined {
        /// Which.
        domain: DomainUuid,
        /// When libvirt told us.
        time: Timestamp,
    },
    /// List the domains again: the connection is new, or changes were dropped.
    Resync,
    /// libvirt cannot be asked until the next `Resync`.
    Disconnected,
}

/// One look at a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The record to be. `start` is the time of the look and `end` is `None`: who knows better sets them.
    pub instance: Instance,
    /// The XML as libvirt gave it.
    pub xml: String,
    /// The agent channel's socket, if the domain has the channel.
    pub agent_socket: Option<PathBuf>,
    /// Where the host writes the guest's console, if it does.
    pub console_log: Option<PathBuf>,
    /// Disks on which no hold is possible: target and why.
    pub unpinnable: Vec<(String, String)>,
    /// Whether it runs.
    pub running: bool,
    /// libvirt's number of this run; numbers begin again when libvirtd does.
    pub run: Option<u32>,
}

impl Inspection {
    /// Makes one from the XML. Pure but for the time, which is the caller's.
    pub fn of(xml: String, running: bool, site: &Site, now: Timestamp) -> Result<Self, XmlError> {
        let seen = describe(&xml)?;
        let Metadata { cloud, id, project, owner, flavour, image, machine_type, ports: _ } = seen.metadata;
        let vo = site.vos.vo_of(project.as_ref(), machine_type.as_ref().map(vestigo_model::Label::as_str));
        let instance = Instance {
            host: site.host.clone(),
            domain: seen.uuid,
            id,
            name: seen.name,
            cloud,
            project,
            vo,
            owner,
            // Vac has no size classes; its machine type is what comes nearest.
            flavour: flavour.or(machine_type),
            image,
            taps: seen.taps,
            disks: seen.disks,
            xml_sha256: Digest::of(xml.as_bytes()),
            start: now,
            end: None,
        };
        let agent_socket = match seen.channel {
            Some(Channel::Socket(path)) => Some(path),
            Some(Channel::Unusable(_)) | None => None,
        };
        let (console_log, unpinnable, run) = (seen.console_log, seen.unpinnable, seen.run);
        Ok(Self { instance, xml, agent_socket, console_log, unpinnable, running, run })
    }
}

impl Hypervisor {
    /// Every running (or paused) domain.
    pub fn list_running(&self) -> Result<Vec<DomainUuid>, DomainError> {
        let link = self.link()?;
        let domains = link
            .connection()
            .list_all_domains(virt_sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            .map_err(DomainError::libvirt("list its domains"))?;
        let uuid = |domain: &Domain| domain.get_uuid().map(DomainUuid);
        domains.iter().map(uuid).collect::<Result<_, _>>().map_err(DomainError::libvirt("name a domain"))
    }

    /// Looks at one domain.
    pub fn inspect(&self, domain: DomainUuid, site: &Site) -> Result<Inspection, DomainError> {
        let (xml, running) = self.look(domain)?;
        Inspection::of(xml, running, site, SystemClock.now()).map_err(|source| DomainError::Xml { domain, source })
    }

    /// Makes sure that the running domain has an agent channel and returns its socket. Plugs in what is missing, into the
    /// running domain only; the persistent configuration stays as it is. `folder` must exist; libvirt makes the socket in it
    /// and hands it to QEMU, whose account needs no right there. Doing it again is harmless.
    ///
    /// Only what libvirt itself can plug: a device that went in through QEMU's monitor behind its back would break
    /// migration and save (docs/decisions/0006).
    pub fn ensure_channel(&self, domain: DomainUuid, folder: &Path) -> Result<PathBuf, DomainError> {
        let (xml, running) = self.look(domain)?;
        if !running {
            return Err(DomainError::NotRunning(domain));
        }
        let seen = describe(&xml).map_err(|source| DomainError::Xml { domain, source })?;
        let (devices, socket) = match channel::plan(&seen, folder) {
            Plan::Present(socket) => return Ok(socket),
            Plan::Impossible(reason) => return Err(DomainError::Channel { domain, reason }),
            Plan::Attach { devices, socket } => (devices, socket),
        };
        let link = self.link()?;
        let handle = find(&link, domain)?;
        for device in devices {
            handle
                .attach_device_flags(&device, virt_sys::VIR_DOMAIN_AFFECT_LIVE)
                .map_err(|error| DomainError::Channel { domain, reason: channel::explain(&seen, error.message()) })?;
        }
        Ok(socket)
    }

    fn look(&self, domain: DomainUuid) -> Result<(String, bool), DomainError> {
        let link = self.link()?;
        let handle = find(&link, domain)?;
        let xml = handle.get_xml_desc(0).map_err(gone_or(domain, "give a domain's XML"))?;
        let running = handle.is_active().map_err(gone_or(domain, "say whether a domain runs"))?;
        Ok((xml, running))
    }
}

fn find(link: &events::Link, domain: DomainUuid) -> Result<Domain, DomainError> {
    Domain::lookup_by_uuid(link.connection(), domain.0).map_err(gone_or(domain, "find a domain"))
}

fn gone_or(domain: DomainUuid, doing: &'static str) -> impl Fn(Error) -> DomainError {
    move |error| match error.code() {
        ErrorNumber::NoDomain => DomainError::Gone(domain),
        _ => DomainError::libvirt(doing)(error),
    }
}
