//! The story of an incident, told on a real libvirt, real VMs and a real S3 server. Every answer is compared with what
//! the demo knows to be true; one wrong answer ends it.

// Indexing a JSON value yields null where there is nothing; it never panics.
#![allow(clippy::indexing_slicing)]

mod evidence;
mod story;
mod suspects;

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::{
    bins,
    guest::{Accelerator, GuestImage, VmSpec},
    net::Bridge,
    pilot,
    s3::S3Server,
    site::Site,
    stack::{Stack, Vault, nova_metadata},
    vm::Vm,
};

use story::Story;

const BUCKET: &str = "evidence";
const BOOT: Duration = Duration::from_secs(180);
/// The victim of the attack: the one address and port that everybody talks to.
const VICTIM: &str = "10.77.0.1";
const PORT: u16 = 8443;

/// One tenant with one VM, as the demo knows it to be.
#[derive(Debug)]
pub(crate) struct Tenant {
    vo: &'static str,
    project: &'static str,
    vm: &'static str,
    uuid: &'static str,
    address: &'static str,
    pilot: &'static str,
    users: [&'static str; 3],
}

const TENANTS: [Tenant; 2] = [
    Tenant {
        vo: "atlas",
        project: "5f1a0000000040008000000000000a71",
        vm: "atlas-worker-1",
        uuid: "11111111-1111-4111-8111-111111111111",
        address: "10.77.0.11/24",
        pilot: "atlas-pilot-4711",
        users: ["alice", "bob", "carol"],
    },
    Tenant {
        vo: "cms",
        project: "5f1a0000000040008000000000000c35",
        vm: "cms-worker-1",
        uuid: "22222222-2222-4222-8222-222222222222",
        address: "10.77.0.12/24",
        pilot: "cms-pilot-815",
        users: ["dave", "erin", "frank"],
    },
];

impl Tenant {
    /// The VM's address without its prefix length.
    pub(crate) fn ip(&self) -> &'static str {
        self.address.split('/').next().unwrap_or(self.address)
    }

    /// The VO's name for this user's work.
    pub(crate) fn task(user: &str) -> String {
        format!("task-of-{user}")
    }
}

/// Tells the story.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn run() -> Result<()> {
    let story = Story::new();
    story.chapter("A site: libvirt, an S3 server with Object Lock, hostd, quarantine");
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("demo")?;
    let s3 = S3Server::start(&site)?;
    s3.create_bucket_with_object_lock(BUCKET)?;
    let vos = TENANTS.each_ref().map(|tenant| (tenant.vo, tenant.project));
    let stack = Stack::new(&site, &vos, &Vault::S3(&s3, BUCKET))?;
    stack.start_hostd()?;
    stack.start_quarantine()?;
    story.tell(&format!("all four run, in namespaces of their own below {}", site.dir().display()));

    story.chapter("Two VMs of two VOs, made as Nova makes them; their XML has no agent channel");
    let bridge = site.bridge("tenants")?;
    let victim = site.peer("victim", &bridge, &format!("{VICTIM}/24"))?;
    let listener = victim.listen_tcp(PORT)?;
    let how = match image.accelerator() {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "emulation (no usable KVM here)",
    };
    let vms = TENANTS.each_ref().map(|tenant| boot(&site, &image, &bridge, tenant));
    let [atlas, cms] = vms;
    let vms = [atlas?, cms?];
    for vm in &vms {
        vm.wait_ready(BOOT)?;
        pilot::wait_agent(vm)?;
        story.tell(&format!("{} runs under {how}; hostd has plugged the channel in and the agent speaks", vm.name()));
    }

    let seen = suspects::payloads_call(&story, &vms, &listener)?;
    suspects::who(&story, &stack, &seen)?;
    suspects::other_directions(&story, &stack, &seen)?;
    evidence::disk_comes_back(&story, &stack, &vms)?;
    story.end();
    Ok(())
}

fn boot<'a>(site: &'a Site, image: &GuestImage, bridge: &Bridge, tenant: &Tenant) -> Result<Vm<'a>> {
    let metadata = nova_metadata(tenant.vm, tenant.project, tenant.vo, "cloud-account", tenant.address);
    let mut spec = VmSpec::new(tenant.vm, image, bridge, tenant.address).gateway(VICTIM).metadata(&metadata);
    spec.uuid = tenant.uuid.to_owned();
    site.boot(&spec)
}

pub(crate) fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    Ok(std::fs::read(a)? == std::fs::read(b)?)
}
