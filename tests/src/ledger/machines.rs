//! The VMs of a host: a few places, each with one VM after the other, from six hours to a month long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use vestigo_model::{
    Cloud, Digest, Disk, DomainUuid, Instance, InstanceEnd, InstanceId, Label, Layer, Mac, Project, StopReason, Tap,
    TapName, Timestamp,
};

use super::{
    Site,
    draw::{Draw, byte, digest, key, small, uuid},
    shape::{DAY, HOUR, SECOND},
    site::Tenant,
};

/// How long the VMs of each place live.
const PERIODS: [i64; 5] = [6 * HOUR, DAY, 3 * DAY, 10 * DAY, 30 * DAY];

/// Where the VM's address is known to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A private address behind the hypervisor's NAT, which has this one.
    Behind(Ipv4Addr),
    /// A public address of its own.
    Public,
}

/// A VM.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// Number of its host.
    pub host: u32,
    /// Draws everything else about it.
    pub key: u64,
    /// Whose it is.
    pub tenant: &'a Tenant,
    /// libvirt's UUID.
    pub domain: DomainUuid,
    /// The cloud's.
    pub id: InstanceId,
    /// Its tap: named by the place, so used again and again.
    pub tap: TapName,
    /// Its IPv4 address: the same for tenants who know nothing of each other, and for one VM after the other.
    pub address: Ipv4Addr,
    /// Its IPv6 network, of which each payload gets an address.
    pub network: Option<[u16; 4]>,
    /// Its address in it.
    pub own_v6: Option<Ipv6Addr>,
    /// How the world sees it.
    pub reach: Reach,
    /// Whether its image has an agent.
    pub agent: bool,
    /// When hostd first saw it.
    pub start: i64,
    /// When it ends, perhaps after the ledger does.
    pub end: i64,
    /// What it does, compared to others.
    pub activity: f64,
}

/// The VMs that run on the host at any time from `from` to before `to`, by place, then time.
///
/// # Errors
/// The site has no such host.
pub fn machines(site: &Site, host: u32, from: i64, to: i64) -> Result<Vec<Machine<'_>>> {
    let mut found = Vec::new();
    for (place, period) in PERIODS.iter().enumerate() {
        let place = u64::try_from(place)?;
        let phase = Draw::new(key(&[site.shape.seed, 10, u64::from(host), place])).between(0, *period);
        let first = (from - site.shape.start() + phase).div_euclid(*period) - 1;
        let last = (to - site.shape.start() + phase).div_euclid(*period);
        for number in first..=last {
            let machine = machine(site, host, (place, *period, phase), number)?;
            found.extend(machine.filter(|machine| machine.start < to && from < machine.end));
        }
    }
    Ok(found)
}

/// The `number`-th VM of a place; none when it is over before the ledger begins.
fn machine(site: &Site, host: u32, place: (u64, i64, i64), number: i64) -> Result<Option<Machine<'_>>> {
    let (place, period, phase) = place;
    let of = |number: i64| key(&[site.shape.seed, 11, u64::from(host), place, number.cast_unsigned()]);
    let begins = |number: i64| {
        let jitter = Draw::new(of(number)).between(0, period / 8);
        site.shape.start() + number * period - phase + jitter
    };
    let key = of(number);
    let mut draw = Draw::new(key ^ 1);
    let start = begins(number).max(site.shape.start());
    let end = begins(number + 1) - draw.between(20 * SECOND, period / 16);
    if end <= start + 60 * SECOND {
        return Ok(None);
    }
    let tenants = u64::try_from(site.tenants.len())?;
    let tenant = usize::try_from(draw.below(tenants))?;
    let tenant = site.tenants.get(tenant).context("a tenant of the site")?;
    let public = draw.happens(0.25);
    let network = draw.happens(0.4).then(|| network(host, place));
    let own_v6 = network.map(|[a, b, c, d]| Ipv6Addr::new(a, b, c, d, 0x5054, 0xff, small(draw.any()), 1));
    let translated = Ipv4Addr::new(198, 19, byte(u64::from(host) / 250), byte(u64::from(host) % 250 + 1));
    Ok(Some(Machine {
        host,
        key,
        tenant,
        domain: uuid(key).parse()?,
        id: InstanceId::new(uuid(key ^ 2))?,
        tap: TapName::new(format!("tap{place}"))?,
        address: if public { public_address(host, place) } else { private_address(site, host, place, tenant) },
        network,
        own_v6,
        reach: if public { Reach::Public } else { Reach::Behind(translated) },
        agent: draw.happens(0.85),
        start,
        end,
        activity: draw.log_normal(1.0, 0.6),
    }))
}

fn network(host: u32, place: u64) -> [u16; 4] {
    [0x2001, 0xdb8, small(u64::from(host) + 1), small(place + 1)]
}

fn public_address(host: u32, place: u64) -> Ipv4Addr {
    let index = u64::from(host) * 8 + place;
    Ipv4Addr::new(198, 18, byte(index >> 8), byte(index))
}

/// Each tenant numbers the same network in its own order: the VMs of one tenant never share an address, those of two often do.
fn private_address(site: &Site, host: u32, place: u64, tenant: &Tenant) -> Ipv4Addr {
    // More than there are places, and odd, so that multiplication by a power of two permutes them.
    let size = u64::from(site.shape.hosts) * 8 + 1;
    let index = u64::from(host) * 8 + place;
    let permuted = (index << tenant.number) % size + 10;
    Ipv4Addr::new(10, 0, byte(permuted >> 8), byte(permuted))
}

impl Machine<'_> {
    /// The addresses that the cloud gave it.
    #[must_use]
    pub fn expected(&self) -> Vec<IpAddr> {
        [Some(IpAddr::V4(self.address)), self.own_v6.map(IpAddr::V6)].into_iter().flatten().collect()
    }

    /// What hostd records of it; with its end when that is known.
    ///
    /// # Errors
    /// None: the names it makes are names.
    pub fn instance(&self, site: &Site, ended: bool) -> Result<Instance> {
        let [a, b, c, ..] = self.key.to_le_bytes();
        let file = format!("/var/lib/nova/instances/{}/disk", self.id);
        let base = format!("/var/lib/nova/instances/_base/{}", self.image());
        let layer = |path: String, format: &str| Layer { path: path.into(), format: format.to_owned() };
        Ok(Instance {
            host: site.host(self.host)?.clone(),
            domain: self.domain,
            id: self.id.clone(),
            name: Label::new(format!("instance-{:08x}", self.key >> 32))?,
            cloud: Cloud::Openstack,
            project: Some(Project { id: self.tenant.project.clone(), name: None }),
            vo: self.tenant.vo.clone(),
            owner: None,
            flavour: Some(Label::new("grid.8core")?),
            image: Some(Label::new(self.image().to_string())?),
            taps: vec![Tap {
                name: self.tap.clone(),
                mac: Mac([0xfa, 0x16, 0x3e, a, b, c]),
                expected: self.expected(),
                learnt: Vec::new(),
                network: Some(Label::new(format!("brq{}", self.tenant.number))?),
                not_capturable: None,
            }],
            disks: vec![Disk { target: "vda".to_owned(), chain: vec![layer(file, "qcow2"), layer(base, "raw")] }],
            xml_sha256: digest(self.key),
            start: Timestamp::from_nanos(self.start),
            end: ended.then_some(InstanceEnd { time: Timestamp::from_nanos(self.end), why: StopReason::Destroyed }),
        })
    }

    fn image(&self) -> Digest {
        digest(key(&[12, self.tenant.number]))
    }
}
