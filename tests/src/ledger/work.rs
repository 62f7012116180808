//! The payloads of a VM: one or two at a time, one after the other, and the VM's own part.

use std::net::Ipv6Addr;

use anyhow::{Context as _, Result};
use vestigo_model::{
    Executable, Exit, Holder, Label, Lease, Payload, PayloadClaim, PayloadEnd, PayloadId, PayloadUid, PilotId,
    PortBlock, Timestamp, TokenMark, Trust, User,
};

use super::{
    Site,
    draw::{Draw, key, small, uuid},
    machines::Machine,
    shape::{DAY, HOUR, SECOND},
};

/// Ports of one block.
const BLOCK: u64 = 1024;
/// Blocks that payloads get, in turns: one comes back long after it has rested.
const BLOCKS: std::ops::Range<u64> = 8..56;
/// Block of the VM's own connections.
const OWN_BLOCK: u64 = 58;
/// How long a lease rests, and a little.
const REST: i64 = 310 * SECOND;
/// Work shorter than this is not begun.
const SHORTEST: i64 = 600 * SECOND;

/// One run of one payload, or (without `user`) the VM's own part.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// Draws everything else about it.
    pub key: u64,
    /// Its name in the ledger.
    pub uid: PayloadUid,
    /// Its user.
    pub user: Option<&'a User>,
    /// Its pilot.
    pub pilot: PilotId,
    /// When its claim was durable.
    pub received: i64,
    /// When it ended; `None`: not before its VM did.
    pub end: Option<i64>,
    /// First port of its block.
    pub ports: u16,
    /// Its own address.
    pub address: Option<Ipv6Addr>,
}

/// The VM's own part first, then its payloads by place and time; none without an agent.
///
/// # Errors
/// None: the names it makes are names.
pub fn runs<'a>(site: &Site, machine: &Machine<'a>) -> Result<Vec<Run<'a>>> {
    if !machine.agent {
        return Ok(Vec::new());
    }
    let lanes = 1 + machine.key % 2;
    let mut runs = vec![own(machine)?];
    for lane in 0..lanes {
        let mut draw = Draw::new(key(&[machine.key, 20, lane]));
        let period = i64::try_from(4 + draw.below(9))? * HOUR;
        let begins = |number: u64, draw: &mut Draw| -> Result<i64> {
            Ok(machine.start + 60 * SECOND + i64::try_from(number)? * period + draw.between(0, period / 8))
        };
        let mut next = begins(0, &mut draw)?;
        for number in 0.. {
            let received = next;
            next = begins(number + 1, &mut draw)?;
            if received + SHORTEST >= machine.end {
                break;
            }
            let end = Some(next - REST - draw.between(0, period / 4)).filter(|end| *end < machine.end - 10 * SECOND);
            runs.push(run(site, machine, (lane, lanes, number), (received, end))?);
        }
    }
    Ok(runs)
}

fn own<'a>(machine: &Machine<'a>) -> Result<Run<'a>> {
    Ok(Run {
        key: machine.key ^ 3,
        uid: uuid(machine.key ^ 3).parse()?,
        user: None,
        pilot: PilotId::new("system")?,
        received: (machine.start + 20 * SECOND).min(machine.end - 1),
        end: None,
        ports: small(OWN_BLOCK * BLOCK),
        address: machine.own_v6,
    })
}

fn run<'a>(
    site: &Site,
    machine: &Machine<'a>,
    (lane, lanes, number): (u64, u64, u64),
    (received, end): (i64, Option<i64>),
) -> Result<Run<'a>> {
    let key = key(&[machine.key, 21, lane, number]);
    let mut draw = Draw::new(key);
    let user = site.user_ranks.draw(&mut draw);
    let block = BLOCKS.start + (lane + number * lanes) % (BLOCKS.end - BLOCKS.start);
    let own = |[a, b, c, d]: [u16; 4]| {
        let low = key.to_le_bytes();
        let [e, f, g, h, ..] = low;
        let pair = |x: u8, y: u8| u16::from_le_bytes([x, y]);
        Ipv6Addr::new(a, b, c, d, 0xa9e0, pair(e, f), pair(g, h), small(number & 0xfff))
    };
    Ok(Run {
        key,
        uid: uuid(key).parse()?,
        user: Some(machine.tenant.users.get(user).context("a user of the VO")?),
        pilot: PilotId::new(format!(
            "{}-{:010x}.{}",
            machine.tenant.claims,
            machine.key >> 24,
            (received - machine.start) / DAY
        ))?,
        received,
        end,
        ports: small(block * BLOCK),
        address: machine.network.map(own),
    })
}

impl Run<'_> {
    /// Until when it can have sent something.
    #[must_use]
    pub fn until(&self, machine: &Machine<'_>) -> i64 {
        self.end.unwrap_or(machine.end)
    }

    /// What hostd records of it; with its end when that is known.
    ///
    /// # Errors
    /// None: the names it makes are names.
    pub fn payload(&self, site: &Site, machine: &Machine<'_>, ended: bool) -> Result<Payload> {
        let until = self.until(machine);
        let end = PayloadEnd {
            received: Timestamp::from_nanos(until),
            claimed: Timestamp::from_nanos(until - 3_000_000),
            exit: self.exit(),
            silent: false,
        };
        Ok(Payload {
            host: site.host(machine.host)?.clone(),
            domain: machine.domain,
            received: Timestamp::from_nanos(self.received),
            claimed: Timestamp::from_nanos(self.received - 2_000_000),
            claim: self.claim(site, machine)?,
            end: ended.then_some(end),
        })
    }

    fn exit(&self) -> Exit {
        match (self.end, self.key % 20) {
            (None, _) => Exit::Lost,
            (Some(_), 0) => Exit::Signal(9),
            (Some(_), 1) => Exit::Code(1),
            (Some(_), _) => Exit::Code(0),
        }
    }

    fn leases(&self) -> Vec<Lease> {
        let ports = Lease::Ports(PortBlock { first: self.ports, last: self.ports + small(BLOCK - 1) });
        [Some(ports), self.address.map(Lease::Address)].into_iter().flatten().collect()
    }

    fn claim(&self, site: &Site, machine: &Machine<'_>) -> Result<PayloadClaim> {
        let Some(user) = self.user else { return self.own_claim(machine) };
        let mut draw = Draw::new(self.key ^ 4);
        let programs = &machine.tenant.programs;
        let program = usize::try_from(draw.below(u64::try_from(programs.len())?))?;
        let (path, sha256) = programs.get(program).cloned().context("a program of the VO")?;
        let task = draw.below(90_000_000);
        let token = draw.happens(0.5).then(|| token(user, self)).transpose()?;
        Ok(PayloadClaim {
            uid: self.uid,
            holder: Holder::Payload,
            pilot: self.pilot.clone(),
            payload: PayloadId::new(format!("{task}"))?,
            user: user.clone(),
            vo: machine.tenant.claims.clone(),
            trust: if token.is_some() { Trust::AssertedByToken } else { Trust::AssertedByVo },
            task: None,
            token,
            access: None,
            executable: Some(Executable { path: path.clone(), sha256 }),
            interpreter: None,
            command: vec![path, "--task".to_owned(), task.to_string(), "--events".to_owned(), "10000".to_owned()],
            leases: self.leases(),
            isolation: site.isolation.iter().cloned().collect(),
        })
    }

    fn own_claim(&self, machine: &Machine<'_>) -> Result<PayloadClaim> {
        let word = Label::new("system")?;
        Ok(PayloadClaim {
            uid: self.uid,
            holder: Holder::System,
            pilot: self.pilot.clone(),
            payload: PayloadId::new("system")?,
            user: User { issuer: word.clone(), subject: word },
            vo: machine.tenant.claims.clone(),
            trust: Trust::AssertedByVo,
            task: None,
            token: None,
            access: None,
            executable: None,
            interpreter: None,
            command: Vec::new(),
            leases: self.leases(),
            isolation: [].into(),
        })
    }
}

fn token(user: &User, run: &Run<'_>) -> Result<TokenMark> {
    Ok(TokenMark {
        issuer: user.issuer.clone(),
        subject: user.subject.clone(),
        id: Some(Label::new(uuid(run.key ^ 5))?),
        expires: Timestamp::from_nanos(run.received + DAY),
        verified: true,
    })
}
