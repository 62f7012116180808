//! Fireflies: datagrams that tell whose transfer a flow is (scitags.org, firefly schema 1.0.0). Pure.
//!
//! A syslog header (RFC 5424, which senders abbreviate), then JSON. What is taken is a claim by the sender, and bounded by its
//! size: a datagram that was cut is no JSON and counts as unreadable.

use std::net::IpAddr;

use serde::Deserialize;
use vestigo_model::{SciTag, SciTagSource, Tuple};

use crate::decode::proto;

/// Longest datagram that is read: as much as the capture keeps of one.
const MAX: usize = 2048;

/// What a firefly says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firefly {
    /// Of which flow, as its sender names it: either end may be the VM.
    pub flow: Tuple,
    /// Whose it is.
    pub tag: SciTag,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Message {
    version: u32,
    flow_id: FlowId,
    context: Context,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FlowId {
    src_ip: IpAddr,
    dst_ip: IpAddr,
    protocol: Protocol,
    src_port: u16,
    dst_port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Tcp,
    Udp,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Context {
    experiment_id: u16,
    activity_id: u8,
}

/// Reads a datagram's payload.
#[must_use]
pub fn read(payload: &[u8]) -> Option<Firefly> {
    let payload = payload.get(..payload.len().min(MAX))?;
    let start = payload.iter().position(|byte| *byte == b'{')?;
    let message: Message = serde_json::from_slice(payload.get(start..)?).ok()?;
    let FlowId { src_ip, dst_ip, protocol, src_port, dst_port } = message.flow_id;
    let proto = match protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
    };
    let Context { experiment_id: experiment, activity_id: activity } = message.context;
    (message.version == 1 && experiment != 0).then_some(Firefly {
        flow: Tuple { src_ip, src_port, dst_ip, dst_port, proto },
        tag: SciTag { experiment, activity, by: SciTagSource::Firefly },
    })
}
