//! Flows: biflow records in the sense of RFC 5103, seen at one tap, named with IPFIX's words.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{DomainUuid, HostId, InstanceId, PayloadUid, TapName, Timestamp, Vo};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// The word used in records and answers.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// All of them, in the order in which `as i32` numbers them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value that a word stands for.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(
    /// Who began the conversation, seen from the VM.
    Direction {
        /// The VM is the originator.
        Outgoing = "outgoing",
        /// The VM is the responder.
        Incoming = "incoming",
    }
);
words!(
    /// How sure the originator is.
    Initiator {
        /// Its first packet says so (SYN without ACK, echo request).
        Seen = "seen",
        /// Taken from the first packet seen, or from the port numbers.
        Inferred = "inferred",
        /// Neither.
        Unknown = "unknown",
    }
);
words!(
    /// Whether the VM used an address that the cloud gave it.
    Expected {
        /// It did.
        Yes = "yes",
        /// It did not: spoofed, or the cloud's metadata is behind.
        No = "no",
        /// Nothing is known of the expected addresses.
        Unknown = "unknown",
    }
);
words!(
    /// Why the record was written: IPFIX element 136, flowEndReason.
    EndReason {
        /// Nothing was heard for the idle timeout.
        Idle = "idle",
        /// The flow goes on; this is its part since the last record.
        Active = "active",
        /// FIN both ways or RST.
        EndOfFlow = "end-of-flow",
        /// The tap went away or hostd stopped.
        Forced = "forced",
        /// The table was full.
        LackOfResources = "lack-of-resources",
    }
);
words!(
    /// How a flow was attributed.
    Quality {
        /// By arithmetic over a payload's lease.
        Lease = "lease",
        /// The agent saw this very connection.
        Observed = "observed",
        /// By arithmetic over a lease that was announced only after the flow had begun: an agent that paid its debt, or a
        /// guest that made up a story afterwards. The one cannot be told from the other.
        ClaimedLate = "claimed-late",
        /// Only the VM is certain.
        Instance = "instance",
    }
);

/// Reason of a flow record that is not attributed because the flow (not only this record of it) began before the lease that
/// now marks it was announced.
pub const BEGAN_BEFORE: &str = "began-before-the-lease";

/// Which payload a flow belongs to, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribution {
    /// How.
    pub quality: Quality,
    /// The payload; `None` exactly when `quality` is [`Quality::Instance`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadUid>,
    /// Why not better: `agent-absent`, `outside-every-lease`, `no-lease-then` …; empty for `lease`.
    #[serde(default)]
    pub reason: String,
}

/// The tuple that the world beyond the hypervisor's own NAT saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PostNat {
    /// Translated address of the VM.
    pub ip: IpAddr,
    /// Translated port of the VM.
    pub port: u16,
}

/// Conversations folded into one record because the VM's own share of the table was full (a scan, a flood): counted in full, told apart
/// no more. The peer of such a record is the unspecified address with port 0; the VM's side is a range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Folded {
    /// How many conversations, at most: one that came back after it was folded counts again.
    pub flows: u64,
    /// Last port of the VM's range, which begins with the record's own port on the VM's side and never crosses a multiple of 1024.
    pub last_port: u16,
}

/// The packet inside another: which kind of tunnel, and which network in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tunnel {
    /// RFC 7348, with its network identifier.
    Vxlan(u32),
    /// RFC 8926, with its network identifier.
    Geneve(u32),
}

impl Tunnel {
    /// From the words of a record.
    #[must_use]
    pub fn new(kind: &str, id: u32) -> Option<Self> {
        match kind {
            "vxlan" => Some(Self::Vxlan(id)),
            "geneve" => Some(Self::Geneve(id)),
            _ => None,
        }
    }

    /// The word used in records.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Geneve(_) => "geneve",
        }
    }

    /// The network identifier.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Vxlan(id) | Self::Geneve(id) => id,
        }
    }
}

/// A five-tuple, as a packet has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src_ip: IpAddr,
    /// Source port, or ICMP identifier; 0 where there is none.
    pub src_port: u16,
    /// Destination address.
    pub dst_ip: IpAddr,
    /// Destination port; 0 where there is none.
    pub dst_port: u16,
    /// IANA protocol number.
    pub proto: u8,
}

/// What the VM's traffic says of its own VO (scitags.org): a claim by the guest, never more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SciTag {
    /// Experiment number of the registry.
    pub experiment: u16,
    /// Activity number of the registry.
    pub activity: u8,
    /// Where it was said.
    pub by: SciTagSource,
}

words!(
    /// Where a flow's SciTag was said.
    SciTagSource {
        /// In the flow label of its IPv6 packets.
        FlowLabel = "flow-label",
        /// In a firefly datagram that the VM sent.
        Firefly = "firefly",
    }
);

/// What few flows have: all empty for an ordinary one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FlowNotes {
    /// Inner VLAN id of a frame with two tags (802.1ad).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inner_vlan: Option<u16>,
    /// The record is of packets inside a tunnel, metered beside the tunnel's own flow: left out of sums over traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// The record stands for many conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded: Option<Folded>,
    /// Of a flow of ICMP errors: the packet that the last of them speaks of, as its sender sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaks_of: Option<Tuple>,
    /// The last ICMP error that spoke of this flow, `type << 8 | code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_error: Option<u16>,
    /// The VO by the guest's own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scitag: Option<SciTag>,
}

impl FlowNotes {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One biflow record, originator first. Counters are deltas: the sum over the records of a flow is its total.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The hypervisor.
    pub host: HostId,
    /// Observation point.
    pub tap: TapName,
    /// The VM behind the tap.
    pub domain: DomainUuid,
    /// Its cloud id.
    pub instance: InstanceId,
    /// Its VO; `None` is *unmapped*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vo: Option<Vo>,
    /// Who began.
    pub direction: Direction,
    /// Originator's address.
    pub orig_ip: IpAddr,
    /// Originator's port; for ICMP echo the identifier, for an ICMP error the originator's port in the packet that it speaks of;
    /// 0 where the protocol has none.
    pub orig_port: u16,
    /// Responder's address.
    pub resp_ip: IpAddr,
    /// Responder's port; for ICMP `type << 8 | code` of the originator; 0 where the protocol has none.
    pub resp_port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// 802.1Q VLAN id, if tagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// First packet of this record, UTC.
    pub first: Timestamp,
    /// Last packet of this record, UTC.
    pub last: Timestamp,
    /// Packets from the originator since the last record of this flow.
    pub orig_packets: u64,
    /// IP bytes from the originator (true lengths, offloaded frames included).
    pub orig_bytes: u64,
    /// Packets from the responder.
    pub resp_packets: u64,
    /// IP bytes from the responder.
    pub resp_bytes: u64,
    /// Union of TCP flags from the originator (RFC 9293 bit order, FIN = 1).
    pub orig_flags: u8,
    /// Union of TCP flags from the responder.
    pub resp_flags: u8,
    /// Why the record was written.
    pub end_reason: EndReason,
    /// How sure the originator is.
    pub initiator: Initiator,
    /// Whether the VM used an address it was given.
    pub src_expected: Expected,
    /// What the world saw, if the hypervisor translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_nat: Option<PostNat>,
    /// What few flows have.
    #[serde(default, skip_serializing_if = "FlowNotes::is_empty")]
    pub notes: FlowNotes,
    /// Whose it is.
    pub attribution: Attribution,
}

impl Flow {
    /// The VM's own address and port.
    #[must_use]
    pub const fn local(&self) -> (IpAddr, u16) {
        match self.direction {
            Direction::Outgoing => (self.orig_ip, self.orig_port),
            Direction::Incoming => (self.resp_ip, self.resp_port),
        }
    }

    /// Packets that the VM itself sent. Without one, the address on the VM's side is only where others sent to: a group, a
    /// broadcast, somebody's guess.
    #[must_use]
    pub const fn sent_by_vm(&self) -> u64 {
        match self.direction {
            Direction::Outgoing => self.orig_packets,
            Direction::Incoming => self.resp_packets,
        }
    }

    /// The other side's address and port.
    #[must_use]
    pub const fn peer(&self) -> (IpAddr, u16) {
        match self.direction {
            Direction::Outgoing => (self.resp_ip, self.resp_port),
            Direction::Incoming => (self.orig_ip, self.orig_port),
        }
    }
}
