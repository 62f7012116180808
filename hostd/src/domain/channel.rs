//! The agent channel of a domain: what is missing and the XML that adds it.
//!
//! Cloud managers do not put the channel into the domain XML, so hostd plugs it into the running domain, and only there:
//! the persistent configuration stays the cloud manager's. Pure; [`super::Hypervisor::ensure_channel`] does it.

use std::path::{Path, PathBuf};

use quick_xml::escape::escape;
use vestigo_model::DomainUuid;

use super::xml::{CHANNEL_NAME, Channel, Description};

/// Longest path of a Unix socket on Linux, its end mark apart.
const MAX_SOCKET_PATH: usize = 107;

/// What must be done so that the domain has its channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It has one.
    Present(PathBuf),
    /// These devices are missing, in this order.
    Attach {
        /// Each device's XML.
        devices: Vec<String>,
        /// Where the socket will be.
        socket: PathBuf,
    },
    /// It cannot be done.
    Impossible(String),
}

/// Decides what the domain needs.
#[must_use]
pub fn plan(domain: &Description, folder: &Path) -> Plan {
    match &domain.channel {
        Some(Channel::Socket(path)) => return Plan::Present(path.clone()),
        Some(Channel::Unusable(why)) => return Plan::Impossible(format!("the domain has a channel, but {why}")),
        None => {}
    }
    let socket = folder.join(format!("{}.sock", domain.uuid));
    let Some(path) = socket.to_str().filter(|path| path.len() <= MAX_SOCKET_PATH) else {
        let longest = MAX_SOCKET_PATH.saturating_sub(file_name_length(domain.uuid));
        return Plan::Impossible(format!(
            "the path of its socket, {}, is longer than {MAX_SOCKET_PATH} bytes or not UTF-8; choose a channel folder of at \
             most {longest} bytes",
            socket.display()
        ));
    };
    let controller = (!domain.virtio_serial).then(|| "<controller type='virtio-serial'/>".to_owned());
    let channel = format!(
        "<channel type='unix'><source mode='bind' path='{}'/><target type='virtio' name='{CHANNEL_NAME}'/></channel>",
        escape(path)
    );
    Plan::Attach { devices: controller.into_iter().chain([channel]).collect(), socket }
}

fn file_name_length(domain: DomainUuid) -> usize {
    format!("/{domain}.sock").len()
}

/// Why it failed, with the likeliest cause where the XML shows one.
#[must_use]
pub fn explain(domain: &Description, message: &str) -> String {
    if !domain.acpi {
        format!("{message} (the domain has no <acpi/> feature, which plugging needs)")
    } else if !domain.virtio_serial && message.contains("cannot be hot plugged") {
        format!(
            "{message} (this libvirt is too old to plug in a virtio-serial controller, 11.3 is known to do it; or give the \
             VM one: Nova's image property hw_qemu_guest_agent=yes, OpenNebula's FEATURES = [ GUEST_AGENT = yes ])"
        )
    } else {
        message.to_owned()
    }
}
