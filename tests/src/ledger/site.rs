//! What all hosts of a generated site share: tenants and their VOs, users, and the servers that everybody talks to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use vestigo_model::{Digest, Enforcement, HostId, Label, RuleState, User, Vo};

use super::{
    Shape,
    draw::{Draw, Zipf, byte, digest, key, small},
};

/// Tenants of the cloud. Two of them are one VO's, the last is no VO's.
const TENANTS: [Option<&str>; 8] =
    [Some("atlas"), Some("cms"), Some("lhcb"), Some("alice"), Some("belle2"), Some("atlas"), Some("cms"), None];
/// Users of each VO.
pub const USERS: u32 = 200;
/// Servers out there.
const PEERS: u32 = 4000;
/// Programs of each VO.
const PROGRAMS: u64 = 40;
/// Rules of an isolation manifest.
const RULES: [&str; 6] = ["R-ISO-1", "R-ISO-2", "R-ISO-3", "R-ISO-5", "R-ISO-9", "R-TRC-1"];

/// A tenant of the cloud.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Which.
    pub number: u64,
    /// Project id.
    pub project: Label,
    /// VO, if it is one's.
    pub vo: Option<Vo>,
    /// Its users; a pilot of an unmapped tenant has some, too.
    pub users: Vec<User>,
    /// What its payloads say they are of.
    pub claims: Vo,
    /// Its programs.
    pub programs: Vec<(String, Digest)>,
}

/// A server.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
    /// Port.
    pub port: u16,
}

impl Peer {
    /// Its address of the kind that the other has.
    #[must_use]
    pub const fn like(&self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => IpAddr::V4(self.v4),
            IpAddr::V6(_) => IpAddr::V6(self.v6),
        }
    }
}

/// The site.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its size.
    pub shape: Shape,
    /// Hypervisors.
    pub hosts: Vec<HostId>,
    /// Tenants.
    pub tenants: Vec<Tenant>,
    /// Servers, the busiest first.
    pub peers: Vec<Peer>,
    /// Which of them is met how often.
    pub peer_ranks: Zipf,
    /// Which user works how much.
    pub user_ranks: Zipf,
    /// Isolation of every payload.
    pub isolation: Vec<(String, Enforcement)>,
}

impl Site {
    /// The site of the shape.
    ///
    /// # Errors
    /// None for any shape: the names it makes are names.
    pub fn new(shape: Shape) -> Result<Self> {
        let hosts = (0..shape.hosts).map(|host| HostId::new(format!("hv{:03}", host + 1)));
        let how = Label::new("namespaces, seccomp and cgroup of its own")?;
        let rule = |rule: &&str| (rule.to_string(), Enforcement { state: RuleState::Enforced, how: how.clone() });
        Ok(Self {
            shape,
            hosts: hosts.collect::<Result<_, _>>()?,
            tenants: TENANTS.iter().zip(0..).map(|(vo, number)| tenant(number, *vo)).collect::<Result<_>>()?,
            peers: (0..PEERS).map(|rank| peer(&shape, rank)).collect(),
            peer_ranks: Zipf::new(PEERS, 1.1),
            user_ranks: Zipf::new(USERS, 0.9),
            isolation: RULES.iter().map(rule).collect(),
        })
    }

    /// The host of this number.
    ///
    /// # Errors
    /// There is none.
    pub fn host(&self, number: u32) -> Result<&HostId> {
        let index = usize::try_from(number)?;
        self.hosts.get(index).with_context(|| format!("the site has no host {number}"))
    }

    /// A server, the busy ones more often.
    pub fn peer(&self, draw: &mut Draw) -> Peer {
        let rank = self.peer_ranks.draw(draw);
        self.peers.get(rank).copied().unwrap_or(Peer { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST, port: 1 })
    }
}

fn tenant(number: u64, vo: Option<&str>) -> Result<Tenant> {
    let claims = vo.unwrap_or("escape");
    let issuer = Label::new(format!("https://iam-{claims}.example/"))?;
    let user = |rank: u32| -> Result<User> {
        Ok(User { issuer: issuer.clone(), subject: Label::new(format!("{claims}-user-{rank:03}"))? })
    };
    let program = |program: u64| {
        let path = format!("/cvmfs/{claims}.example/sw/release-{}/bin/run-{program}", program % 7);
        (path, digest(key(&[7, number, program])))
    };
    Ok(Tenant {
        number,
        project: Label::new(format!("{:032x}", u128::from(key(&[6, number])) << 17))?,
        vo: vo.map(Vo::new).transpose()?,
        users: (0..USERS).map(user).collect::<Result<_>>()?,
        claims: Vo::new(claims)?,
        programs: (0..PROGRAMS).map(program).collect(),
    })
}

fn peer(shape: &Shape, rank: u32) -> Peer {
    const PORTS: [u16; 6] = [443, 1094, 3128, 8443, 443, 2880];
    let mut draw = Draw::new(key(&[shape.seed, 5, u64::from(rank)]));
    // Shared address space: nobody's server stands there.
    let place = draw.below(1 << 22);
    let v4 = Ipv4Addr::new(100, 64 + byte(place >> 16), byte(place >> 8), byte(place));
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xf000, small(place >> 16), 0, 0, 0, small(place));
    let port = PORTS.get(usize::try_from(rank).unwrap_or(0) % PORTS.len()).copied().unwrap_or(443);
    Peer { v4, v6, port }
}
