//! The two halves of an answer that are never mixed: what the host saw and what a guest said.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use vestigo_model::{
    Access, Cloud, DomainUuid, EndReason, Enforcement, Executable, Expected, Flow, Folded, Holder, HostId, Initiator,
    Instance, InstanceEnd, InstanceId, Label, Learnt, Lease, Payload, PayloadClaim, PayloadEnd, PayloadId, PayloadUid,
    PilotId, PostNat, Project, TapName, TaskMark, Timestamp, TokenMark, Trust, Tunnel, User, Vo,
};

use super::icmp;

/// An address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address, IPv4-mapped IPv6 written as IPv4.
    pub ip: IpAddr,
    /// The port; for ICMP see [`Flow`].
    pub port: u16,
}

impl Endpoint {
    pub(crate) fn new((ip, port): (IpAddr, u16)) -> Self {
        Self { ip: ip.to_canonical(), port }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&std::net::SocketAddr::new(self.ip, self.port).to_string())
    }
}

/// Which of the VM's tuples the question named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MatchedOn {
    /// The address that the VM itself used.
    Address,
    /// The address that the world saw behind the hypervisor's NAT.
    PostNat,
    /// The address that the VM itself used and the range of ports that folded conversations lie in: the one asked for may be among them.
    Folded,
}

/// Sums over flow records, seen from the VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Records.
    pub flows: u64,
    /// Packets from the VM.
    pub packets_out: u64,
    /// Bytes from the VM.
    pub bytes_out: u64,
    /// Packets to the VM.
    pub packets_in: u64,
    /// Bytes to the VM.
    pub bytes_in: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, flow: &Flow) {
        let [(packets_out, bytes_out), (packets_in, bytes_in)] = out_and_in(flow);
        self.flows += 1;
        self.packets_out = self.packets_out.saturating_add(packets_out);
        self.bytes_out = self.bytes_out.saturating_add(bytes_out);
        self.packets_in = self.packets_in.saturating_add(packets_in);
        self.bytes_in = self.bytes_in.saturating_add(bytes_in);
    }

    /// The same, seen from the other side.
    pub(crate) const fn turned(self) -> Self {
        Self {
            flows: self.flows,
            packets_out: self.packets_in,
            bytes_out: self.bytes_in,
            packets_in: self.packets_out,
            bytes_in: self.bytes_out,
        }
    }

    /// Whether packets and bytes agree, however many records they lie in.
    pub(crate) fn agrees(self, other: Self) -> bool {
        Self { flows: 0, ..self } == Self { flows: 0, ..other }
    }
}

/// Packets and bytes from the VM, and to it.
const fn out_and_in(flow: &Flow) -> [(u64, u64); 2] {
    let (orig, resp) = ((flow.orig_packets, flow.orig_bytes), (flow.resp_packets, flow.resp_bytes));
    match flow.direction {
        vestigo_model::Direction::Outgoing => [orig, resp],
        vestigo_model::Direction::Incoming => [resp, orig],
    }
}

/// What an ICMP packet says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpMessage {
    /// ICMP's (or ICMPv6's) type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// In words.
    pub words: String,
}

impl IcmpMessage {
    fn new(v6: bool, kind_and_code: u16) -> Self {
        let [kind, code] = kind_and_code.to_be_bytes();
        Self { kind, code, words: icmp::words(v6, kind, code) }
    }

    /// What the originator of an ICMP flow sent.
    fn of(flow: &Flow) -> Option<Self> {
        let ours = flow.notes.folded.is_none() && matches!(flow.proto, icmp::V4 | icmp::V6);
        ours.then(|| Self::new(flow.proto == icmp::V6, flow.resp_port))
    }
}

/// The packet that an ICMP error speaks of, by the word of whoever sent the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpokenOf {
    /// IANA protocol number.
    pub proto: u8,
    /// Who had sent it.
    pub source: Endpoint,
    /// Where to.
    pub destination: Endpoint,
}

/// A flow as an answer shows it: seen from the VM, without what a guest's claim adds to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSeen {
    /// Observation point.
    pub tap: TapName,
    /// First packet of this record.
    pub first: Timestamp,
    /// Last packet of this record.
    pub last: Timestamp,
    /// `outgoing` or `incoming`, seen from the VM.
    pub direction: vestigo_model::Direction,
    /// The VM's side.
    pub vm: Endpoint,
    /// The other side; unspecified with port 0 where conversations were folded.
    pub peer: Endpoint,
    /// Conversations that were folded into this record, at most, and the last port on the VM's side, where they were.
    #[serde(default)]
    pub folded: Option<Folded>,
    /// The record is of packets inside a tunnel.
    #[serde(default)]
    pub tunnel: Option<Tunnel>,
    /// 802.1Q VLAN id, if tagged.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// The second tag's, if there are two.
    #[serde(default)]
    pub inner_vlan: Option<u16>,
    /// Of an ICMP flow: what its originator sent.
    #[serde(default)]
    pub icmp: Option<IcmpMessage>,
    /// The last ICMP error that spoke of the flow.
    #[serde(default)]
    pub icmp_error: Option<IcmpMessage>,
    /// Of a flow of ICMP errors: what the last of them speaks of.
    #[serde(default)]
    pub speaks_of: Option<SpokenOf>,
    /// What the world saw of the VM, if translated.
    pub post_nat: Option<PostNat>,
    /// Which of the two the question named.
    pub matched_on: MatchedOn,
    /// IANA protocol number.
    pub proto: u8,
    /// Packets from the VM.
    pub packets_out: u64,
    /// Bytes from the VM.
    pub bytes_out: u64,
    /// Packets to the VM.
    pub packets_in: u64,
    /// Bytes to the VM.
    pub bytes_in: u64,
    /// Why the record was written.
    pub end_reason: EndReason,
    /// How sure the direction is.
    pub initiator: Initiator,
    /// Whether the VM used an address it was given.
    pub src_expected: Expected,
    /// Community ID.
    pub community_id: String,
}

impl FlowSeen {
    pub(crate) fn new(flow: &Flow, matched_on: MatchedOn) -> Self {
        let [(packets_out, bytes_out), (packets_in, bytes_in)] = out_and_in(flow);
        let notes = &flow.notes;
        Self {
            tap: flow.tap.clone(),
            first: flow.first,
            last: flow.last,
            direction: flow.direction,
            vm: Endpoint::new(flow.local()),
            peer: Endpoint::new(flow.peer()),
            folded: notes.folded,
            tunnel: notes.tunnel,
            vlan: flow.vlan,
            inner_vlan: notes.inner_vlan,
            icmp: IcmpMessage::of(flow),
            icmp_error: notes.icmp_error.map(|error| IcmpMessage::new(flow.orig_ip.to_canonical().is_ipv6(), error)),
            speaks_of: notes.speaks_of.map(|of| SpokenOf {
                proto: of.proto,
                source: Endpoint::new((of.src_ip, of.src_port)),
                destination: Endpoint::new((of.dst_ip, of.dst_port)),
            }),
            post_nat: flow.post_nat,
            matched_on,
            proto: flow.proto,
            packets_out,
            bytes_out,
            packets_in,
            bytes_in,
            end_reason: flow.end_reason,
            initiator: flow.initiator,
            src_expected: flow.src_expected,
            community_id: crate::community_id(
                (flow.orig_ip, flow.orig_port),
                (flow.resp_ip, flow.resp_port),
                flow.proto,
            ),
        }
    }
}

/// What the host knows about a VM. The VM cannot forge any of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The tenant's VO; `None` is *unmapped*.
    pub vo: Option<Vo>,
    /// Who made the VM; `None` when the ledger holds no record of the VM itself.
    pub cloud: Option<Cloud>,
    /// The tenant.
    pub project: Option<Project>,
    /// The cloud's id.
    pub instance: InstanceId,
    /// libvirt's name.
    pub name: Option<Label>,
    /// Who asked the cloud for it.
    pub owner: Option<Label>,
    /// Image it was made from.
    pub image: Option<Label>,
    /// libvirt's UUID.
    pub domain: DomainUuid,
    /// The hypervisor.
    pub host: HostId,
    /// Its interfaces.
    pub taps: Vec<TapName>,
    /// Addresses the cloud gave it.
    pub expected_addresses: Vec<IpAddr>,
    /// Addresses that were seen given to it by DHCP, or announced by it, on its taps: when, and whose word that is.
    #[serde(default)]
    pub learnt_addresses: Vec<Learnt>,
    /// When it began to run there.
    pub start: Option<Timestamp>,
    /// When and why it ended.
    pub end: Option<InstanceEnd>,
}

impl HostFacts {
    pub(crate) fn of_instance(instance: &Instance) -> Self {
        let expected = instance.taps.iter().flat_map(|tap| &tap.expected);
        Self {
            vo: instance.vo.clone(),
            cloud: Some(instance.cloud),
            project: instance.project.clone(),
            instance: instance.id.clone(),
            name: Some(instance.name.clone()),
            owner: instance.owner.clone(),
            image: instance.image.clone(),
            domain: instance.domain,
            host: instance.host.clone(),
            taps: instance.taps.iter().map(|tap| tap.name.clone()).collect(),
            expected_addresses: expected.map(IpAddr::to_canonical).collect(),
            learnt_addresses: instance.taps.iter().flat_map(|tap| tap.learnt.iter().copied()).collect(),
            start: Some(instance.start),
            end: instance.end,
        }
    }

    /// All that is known when only the flow speaks of the VM.
    pub(crate) fn of_flow(flow: &Flow) -> Self {
        Self {
            vo: flow.vo.clone(),
            cloud: None,
            project: None,
            instance: flow.instance.clone(),
            name: None,
            owner: None,
            image: None,
            domain: flow.domain,
            host: flow.host.clone(),
            taps: vec![flow.tap.clone()],
            expected_addresses: Vec::new(),
            learnt_addresses: Vec::new(),
            start: None,
            end: None,
        }
    }
}

/// What a guest's agent said about a payload, under the host's stamps. True as far as the VO's image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestClaims {
    /// The run.
    pub payload: PayloadUid,
    /// `payload`: a user's work. `pilot` or `system`: the VM's own traffic, and no user's; what stands below under the names
    /// of a payload are then words for that part of the VM.
    #[serde(default)]
    pub holder: Holder,
    /// The VO's name for the work unit.
    pub payload_id: PayloadId,
    /// The pilot job.
    pub pilot: PilotId,
    /// Whose it is.
    pub user: User,
    /// The VO that the pilot named.
    pub vo_claimed: Vo,
    /// What stands behind the user's name.
    pub trust: Trust,
    /// The user's signed task; there exactly when `trust` is `signed-by-user`.
    #[serde(default)]
    pub task: Option<TaskMark>,
    /// The token that the payload was given; by itself no ground for `trust`.
    #[serde(default)]
    pub token: Option<TokenMark>,
    /// Who asked for it in the VM, and when what was established.
    #[serde(default)]
    pub access: Option<Access>,
    /// What ran.
    pub executable: Option<Executable>,
    /// The program that read it, when that is a script.
    #[serde(default)]
    pub interpreter: Option<Executable>,
    /// With which arguments.
    pub command: Vec<String>,
    /// What marks its packets.
    pub leases: Vec<Lease>,
    /// Rule id → how it held.
    pub isolation: BTreeMap<String, Enforcement>,
    /// Host's clock when the claim arrived; the first instruction ran later (unless the agent ran without hostd).
    pub start_received: Timestamp,
    /// Guest's clock then.
    pub start_claimed: Timestamp,
    /// How it ended.
    pub end: Option<PayloadEnd>,
}

impl GuestClaims {
    pub(crate) fn new(payload: &Payload) -> Self {
        let claim = &payload.claim;
        Self {
            payload: claim.uid,
            holder: claim.holder,
            payload_id: claim.payload.clone(),
            pilot: claim.pilot.clone(),
            user: claim.user.clone(),
            vo_claimed: claim.vo.clone(),
            trust: claim.trust,
            task: claim.task.clone(),
            token: claim.token.clone(),
            access: claim.access.clone(),
            executable: claim.executable.clone(),
            interpreter: claim.interpreter.clone(),
            command: claim.command.clone(),
            leases: claim.leases.clone(),
            isolation: claim.isolation.clone(),
            start_received: payload.received,
            start_claimed: payload.claimed,
            end: payload.end,
        }
    }
}

/// How good an answer's link between flow and payload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// `lease`, `observed`, `claimed-late` or `instance`.
    pub quality: vestigo_model::Quality,
    /// Why not better, or how the join was made when asked.
    pub reason: String,
}

/// Whether a guest claimed something else under a run id that it had used: stated, and the first claim holds.
pub(crate) fn conflict_note(conflicting: &[Payload]) -> Option<String> {
    let times = match conflicting.len() {
        0 => return None,
        1 => "once".to_owned(),
        many => format!("{many} times"),
    };
    Some(format!("the guest later claimed something else under this run id ({times}); the first claim holds"))
}

/// Whether a claim contradicts what the host knows: stated, never resolved.
pub(crate) fn vo_contradiction(tenant: Option<&Vo>, claim: &PayloadClaim) -> Option<String> {
    let claimed = &claim.vo;
    match tenant {
        // The VM's own traffic is no VO's work.
        _ if !claim.holder.is_payload() => None,
        Some(tenant) if tenant != claimed => {
            Some(format!("contradiction: the guest claims VO {claimed}, but the VM belongs to a tenant of VO {tenant}"))
        }
        None => Some(format!("the VM's tenant is mapped to no VO; only the guest claims VO {claimed}")),
        Some(_) => None,
    }
}
