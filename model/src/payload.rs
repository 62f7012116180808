//! Payloads: what a guest's agent claims about the work it runs, and the host's stamp on that claim.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Access, Digest, DomainUuid, HostId, Label, PayloadId, PayloadUid, PilotId, TaskMark, Timestamp, TokenMark, Vo,
};

/// A person or robot, named by who vouches for it and the name used there (`iss` and `sub` of the WLCG token profile).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct User {
    /// Who vouches.
    pub issuer: Label,
    /// The name there.
    pub subject: Label,
}

/// The issuer of a [`User`] who is a pseudonym: the ledger stores no names.
pub const PSEUDONYM: &str = "pseudonym";

impl User {
    /// Whether this is the ledger's pseudonym for a person.
    #[must_use]
    pub fn is_pseudonym(&self) -> bool {
        self.issuer.as_str() == PSEUDONYM
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.subject, self.issuer)
    }
}

/// What stands behind the claim that this user owns the payload. The kinds are never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// The user's own signature over this task was verified.
    SignedByUser,
    /// A verified token of the user.
    AssertedByToken,
    /// The pilot says so.
    AssertedByVo,
}

impl Trust {
    /// The word used in records and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignedByUser => "signed-by-user",
            Self::AssertedByToken => "asserted-by-token",
            Self::AssertedByVo => "asserted-by-vo",
        }
    }
}

/// Source ports `first` to `last`, both included; for ICMP the echo identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBlock {
    /// Lowest port.
    pub first: u16,
    /// Highest port; not below `first`.
    pub last: u16,
}

impl PortBlock {
    /// Whether the port is inside.
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What marks every packet of a payload as its own, by arithmetic alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lease {
    /// IPv4: source ports of the VM, enforced by source NAT inside it.
    Ports(PortBlock),
    /// IPv6: an address of its own.
    Address(std::net::Ipv6Addr),
}

/// How long a lease rests after its payload ended before another payload may get it: longer than any flow's idle
/// timeout, so that late packets of the one are never taken for the other's.
pub const LEASE_REST: Duration = Duration::from_secs(300);

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(block) => write!(f, "ports {block}"),
            Self::Address(address) => write!(f, "address {address}"),
        }
    }
}

/// The file that runs, opened once, digested, and executed through the same descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Executable {
    /// Path inside the payload's own root.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// Whose traffic a lease marks. A VM's own connections have leases too, so that nothing leaves it unmarked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    /// One user's payload.
    #[default]
    Payload,
    /// The pilots of the VM: ordinary accounts outside of every sandbox.
    Pilot,
    /// The VM's system: root, its services, the agent.
    System,
}

impl Holder {
    /// The word used in records and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Payload => "payload",
            Self::Pilot => "pilot",
            Self::System => "system",
        }
    }

    /// Whether this is a user's payload, as nearly everything is.
    #[must_use]
    pub const fn is_payload(&self) -> bool {
        matches!(self, Self::Payload)
    }
}

/// Whether a rule of the WLCG recommendations held for a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleState {
    /// In force.
    Enforced,
    /// In force in part; `how` says which.
    Degraded,
    /// Not in force.
    Off,
}

/// One line of a payload's isolation manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Enforcement {
    /// Whether.
    pub state: RuleState,
    /// By what means, or why not.
    pub how: Label,
}

/// What the agent says about a payload before it runs. A claim by the guest: true as far as the VO's image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadClaim {
    /// This run.
    pub uid: PayloadUid,
    /// Whose traffic the leases mark. Other than [`Holder::Payload`] this is no work of a user: `user`, `payload` and `pilot`
    /// then name the VM's own part in words, and there is neither program nor manifest.
    #[serde(default, skip_serializing_if = "Holder::is_payload")]
    pub holder: Holder,
    /// The pilot job that starts it.
    pub pilot: PilotId,
    /// The VO's name for the work unit.
    pub payload: PayloadId,
    /// Whose it is.
    pub user: User,
    /// The VO that the pilot names.
    pub vo: Vo,
    /// What stands behind the user's name.
    pub trust: Trust,
    /// The user's signed task, when `trust` is [`Trust::SignedByUser`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskMark>,
    /// The token that the payload was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenMark>,
    /// Who asked, and when what was established.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// What runs; `None` if it could not be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<Executable>,
    /// The program that reads `executable`, when that is a script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<Executable>,
    /// Arguments, the program's name first; cut by the agent to 4 KiB in all.
    #[serde(default)]
    pub command: Vec<String>,
    /// What marks its packets.
    #[serde(default)]
    pub leases: Vec<Lease>,
    /// Rule id (`R-ISO-9`) → how it holds.
    #[serde(default)]
    pub isolation: BTreeMap<String, Enforcement>,
    /// The ledger's own mark in a stored claim whose user is a pseudonym: a keyed digest of `command`, `task`, `token`, `access` and
    /// the user, which were taken out and sealed. No guest may say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Label>,
}

/// How a payload ended, as the agent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It returned this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It was never started: the agent failed after the record was acknowledged.
    NotStarted,
    /// The agent (or the VM) went away first.
    Lost,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotStarted => f.write_str("not started"),
            Self::Lost => f.write_str("lost"),
        }
    }
}

/// The end of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadEnd {
    /// Host's clock when the record arrived.
    pub received: Timestamp,
    /// Guest's clock when it happened.
    pub claimed: Timestamp,
    /// How.
    pub exit: Exit,
    /// It never sent a packet, says the agent: its leases do not rest.
    #[serde(default)]
    pub silent: bool,
}

impl PayloadEnd {
    /// How long the payload's leases rest from then on. One that was lost (its VM or its agent went away) or never sent
    /// anything has no late packets.
    #[must_use]
    pub fn rest(&self) -> Duration {
        if self.exit == Exit::Lost || self.silent { Duration::ZERO } else { LEASE_REST }
    }
}

/// A payload as the host keeps it: the guest's claim under the host's own stamp. Its key is (`host`, `domain`, `claim.uid`);
/// the first claim under a key holds, and a later record may only add the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The hypervisor.
    pub host: HostId,
    /// The VM: known from the channel the claim came through, never from the claim.
    pub domain: DomainUuid,
    /// Host's clock when the claim arrived. The payload's first instruction ran later than this.
    pub received: Timestamp,
    /// Guest's clock when the claim was made.
    pub claimed: Timestamp,
    /// What the guest said.
    pub claim: PayloadClaim,
    /// How it ended; `None` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<PayloadEnd>,
}

impl Payload {
    /// Whether the payload's leases were its own at `time` on the host's clock: from the moment its claim was durable
    /// until its leases had rested. A payload that was lost (its VM or its agent went away) has no late packets: whatever
    /// comes after is somebody else's.
    #[must_use]
    pub fn held_leases_at(&self, time: Timestamp) -> bool {
        let until = |end: PayloadEnd| end.received + end.rest();
        self.received <= time && self.end.is_none_or(|end| time <= until(end))
    }
}

/// Most leases of one payload.
const MAX_LEASES: usize = 8;
/// Most ports in all leases of a user's payload; agents give out 1024. Who claims all ports of a VM claims all that leaves it.
const MAX_PORTS: u32 = 16_384;
/// Most arguments of one command, and most bytes in all of them.
const MAX_ARGUMENTS: (usize, usize) = (1024, 8192);
/// Longest path, as the kernel has it (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Most rules in an isolation manifest, the longest name of one, and most bytes in all of them.
const MAX_RULES: (usize, usize, usize) = (128, 64, 16_384);

impl PayloadClaim {
    /// What is too much in a claim, in words for the pilot. Claims come from guests: what the host keeps of each is bounded.
    ///
    /// # Errors
    /// The first thing that is out of bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.withheld.is_some() || self.user.is_pseudonym() {
            return Err("a pseudonym in place of a user, which only the ledger writes");
        }
        self.check_leases()?;
        self.check_program()?;
        if self.holder.is_payload() { self.check_ground() } else { self.check_own() }
    }

    fn blocks(&self) -> impl Iterator<Item = PortBlock> + Clone {
        self.leases.iter().filter_map(|lease| match lease {
            Lease::Ports(block) => Some(*block),
            Lease::Address(_) => None,
        })
    }

    /// Whether no two port blocks of the claim overlap.
    #[must_use]
    pub fn leases_are_apart(&self) -> bool {
        let mut blocks: Vec<PortBlock> = self.blocks().collect();
        blocks.sort_unstable();
        let next = blocks.iter().skip(1);
        blocks.iter().zip(next).all(|(block, next)| block.last < next.first)
    }

    fn check_leases(&self) -> Result<(), &'static str> {
        let blocks = self.blocks();
        let ports: u32 =
            blocks.clone().map(|block| u32::from(block.last).saturating_sub(u32::from(block.first)) + 1).sum();
        if self.leases.len() > MAX_LEASES {
            Err("more than 8 leases")
        } else if blocks.clone().any(|block| block.first > block.last) {
            Err("a port block that ends before it begins")
        } else if !self.leases_are_apart() {
            Err("port blocks that overlap each other")
        } else if blocks.clone().any(|block| block.first == 0) {
            Err("a port block with port 0, which nobody can hold")
        } else if self.holder.is_payload() && ports > MAX_PORTS {
            Err("leases of more than 16384 ports")
        } else {
            Ok(())
        }
    }

    fn check_program(&self) -> Result<(), &'static str> {
        let bytes: usize = self.command.iter().map(String::len).sum();
        let rules: usize = self.isolation.iter().map(|(rule, held)| rule.len() + held.how.as_str().len()).sum();
        if self.command.len() > MAX_ARGUMENTS.0 || bytes > MAX_ARGUMENTS.1 {
            Err("a command of more than 1024 arguments or 8 KiB")
        } else if [&self.executable, &self.interpreter].into_iter().flatten().any(|file| file.path.len() > MAX_PATH) {
            Err("a path of more than 4096 bytes")
        } else if self.isolation.len() > MAX_RULES.0 || self.isolation.keys().any(|rule| rule.len() > MAX_RULES.1) {
            Err("an isolation manifest of more than 128 rules, or a rule with a name of more than 64 bytes")
        } else if rules > MAX_RULES.2 {
            Err("an isolation manifest of more than 16 KiB")
        } else {
            Ok(())
        }
    }

    /// What stands behind the user's name.
    fn check_ground(&self) -> Result<(), &'static str> {
        if (self.trust == Trust::SignedByUser) != self.task.is_some() {
            Err("trust signed-by-user without a signed task, or a signed task with another trust")
        } else if self.trust == Trust::AssertedByToken && !self.token.as_ref().is_some_and(|token| token.verified) {
            Err("trust asserted-by-token without a verified token")
        } else {
            self.task.as_ref().map_or(Ok(()), TaskMark::check)
        }
    }

    /// The VM's own part is no work: what only work has would be a story told under a name that nobody bans or counts.
    fn check_own(&self) -> Result<(), &'static str> {
        let program = self.executable.is_some() || self.interpreter.is_some() || !self.command.is_empty();
        let ground = self.task.is_some() || self.token.is_some() || self.trust != Trust::AssertedByVo;
        if program || ground || !self.isolation.is_empty() {
            Err("a program, task, token or manifest of the VM's own traffic, which has none")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
