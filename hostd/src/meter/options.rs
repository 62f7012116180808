use std::time::Duration;

use crate::decode::proto;

/// Quiet time that ends a flow, by protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// TCP.
    pub tcp: Duration,
    /// UDP.
    pub udp: Duration,
    /// Any other.
    pub other: Duration,
}

/// Timeouts and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterOptions {
    /// Age at which a flow that goes on gets its first record: at the next asking for what is due.
    pub first: Duration,
    /// Time between two records of a flow that goes on.
    pub active: Duration,
    /// Quiet time that ends a flow.
    pub idle: Idle,
    /// The same while more than three quarters of `max_flows` are held.
    pub emergency: Idle,
    /// How long a closed TCP flow still takes stragglers.
    pub linger: Duration,
    /// Most flows held at once for this tap.
    pub max_flows: usize,
    /// Meter also what VXLAN and Geneve carry.
    pub tunnels: bool,
    /// Take the IPv6 flow label of the VM's packets for a SciTag. An ordinary stack puts a random number there, so that without the
    /// registry of experiments nearly every flow looks marked.
    pub scitags: bool,
}

impl Default for MeterOptions {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(250),
            active: Duration::from_secs(60),
            idle: Idle { tcp: Duration::from_secs(300), udp: Duration::from_secs(60), other: Duration::from_secs(30) },
            emergency: Idle {
                tcp: Duration::from_secs(30),
                udp: Duration::from_secs(5),
                other: Duration::from_secs(5),
            },
            linger: Duration::from_secs(1),
            max_flows: 65_536,
            tunnels: false,
            scitags: false,
        }
    }
}

/// The same in the table's own unit, at hand for every look at a flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) first: i64,
    pub(super) active: i64,
    pub(super) linger: i64,
    idle: [i64; 3],
    emergency: [i64; 3],
}

impl Timeouts {
    pub(super) fn new(options: &MeterOptions) -> Self {
        let of = |idle: Idle| [idle.tcp, idle.udp, idle.other].map(nanos);
        Self {
            first: nanos(options.first),
            active: nanos(options.active),
            linger: nanos(options.linger),
            idle: of(options.idle),
            emergency: of(options.emergency),
        }
    }

    pub(super) const fn idle(&self, proto: u8) -> i64 {
        by_proto(self.idle, proto)
    }

    /// Never longer than the ordinary one.
    pub(super) fn emergency(&self, proto: u8) -> i64 {
        by_proto(self.emergency, proto).min(self.idle(proto))
    }
}

const fn by_proto([tcp, udp, other]: [i64; 3], proto: u8) -> i64 {
    match proto {
        proto::TCP => tcp,
        proto::UDP => udp,
        _ => other,
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
