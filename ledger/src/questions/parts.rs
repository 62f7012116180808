//! The two halves of an answer that are never mixed: what the host saw and what a guest said.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use vestigo_model::{
    Access, Cloud, DomainUuid, EndReason, Enforcement, Executable, Expected, Flow, Holder, HostId, Initiator, Instance,
    InstanceEnd, InstanceId, Label, Lease, Payload, PayloadClaim, PayloadEnd, PayloadId, PayloadUid, PilotId, PostNat,
    Project, TapName, TaskMark, Timestamp, TokenMark, Trust, User, Vo,
};

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
    /// The other side.
    pub peer: Endpoint,
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
        let orig = (flow.orig_packets, flow.orig_bytes);
        let resp = (flow.resp_packets, flow.resp_bytes);
        let ((packets_out, bytes_out), (packets_in, bytes_in)) = match flow.direction {
            vestigo_model::Direction::Outgoing => (orig, resp),
            vestigo_model::Direction::Incoming => (resp, orig),
        };
        Self {
            tap: flow.tap.clone(),
            first: flow.first,
            last: flow.last,
            direction: flow.direction,
            vm: Endpoint::new(flow.local()),
            peer: Endpoint::new(flow.peer()),
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
            community_id: flow.community_id.clone(),
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
