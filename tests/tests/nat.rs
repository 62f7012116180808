//! A VM behind the hypervisor's own NAT, known to the world by the hypervisor's address: found by that, with its payload.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vestigo_tests::{
    bins,
    guest::{GuestImage, VmSpec},
    net::Peer,
    pilot::{self, Work},
    process, require,
    site::Site,
    stack::{Stack, Vault, nova_metadata},
    truth::{self, Who, who},
    vm::Vm,
};

const BOOT: Duration = Duration::from_secs(180);
const ADDRESS: &str = "10.77.0.11/24";
const GATEWAY: &str = "10.77.0.1";
const PUBLIC: &str = "192.0.2.1";
const WORLD: &str = "192.0.2.9";

/// As libvirt's NAT network does it, with ports at random so that none stays what it was; and one floating port.
const RULES: &str = "table ip nat { \
    chain pre { type nat hook prerouting priority -100; ip daddr 192.0.2.1 tcp dport 2222 dnat to 10.77.0.11:22; }; \
    chain post { type nat hook postrouting priority 100; oifname \"world\" masquerade random; }; }";

#[test]
fn a_vm_behind_the_hosts_nat_is_found_by_what_the_world_saw() -> Result<()> {
    if !require::met(require::END_TO_END)? {
        return Ok(());
    }
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("nat")?;
    let stack = Stack::new(&site, &[("atlas", "project-a")], &Vault::Folder)?;
    let (tenant, outside) = (site.bridge("tenant")?, site.bridge("world")?);
    site.run("ip", &["addr", "add", &format!("{GATEWAY}/24"), "dev", tenant.name()])?;
    site.run("ip", &["addr", "add", &format!("{PUBLIC}/24"), "dev", outside.name()])?;
    site.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
    site.run("nft", &[RULES])?;
    let peer = site.peer("peer", &outside, &format!("{WORLD}/24"))?;
    stack.start_hostd()?;
    let metadata = nova_metadata("vm-a", "project-a", "project-a", "account", ADDRESS);
    let vm = site.boot(&VmSpec::new("vm-a", &image, &tenant, ADDRESS).gateway(GATEWAY).metadata(&metadata))?;
    vm.wait_ready(BOOT)?;
    pilot::wait_agent(&vm)?;
    a_call_out(&stack, &vm, &peer)?;
    a_call_in(&stack, &vm, &peer)
}

fn candidates(stack: &Stack<'_>, more: &[&str]) -> Result<Vec<Who>> {
    let mut question = vec!["who", "--window", "10s", "--ip", PUBLIC, "--json"];
    question.extend(more);
    truth::candidates(&stack.vestigo(&question)?.json()?)
}

fn a_call_out(stack: &Stack<'_>, vm: &Vm<'_>, peer: &Peer<'_>) -> Result<()> {
    let listener = peer.listen_tcp(7001)?;
    pilot::run_well(vm, "atlas", "pilot-a", &[Work::call("attack", "mallory", WORLD, 7001, 3)])?;
    let call = listener.wait_for(1, BOOT)?.first().cloned().context("no call")?;
    ensure!(call.address == PUBLIC, "the host did not translate: {call:?}");
    let truth = vec![Who {
        domain: vm.uuid().to_owned(),
        vo: "atlas".to_owned(),
        payload: "attack".to_owned(),
        user: "mallory".to_owned(),
        quality: "lease".to_owned(),
    }];
    process::wait_for("the public address and port to lead to the payload", Duration::from_secs(30), || {
        Ok((who(stack, &call, &[])? == truth).then_some(()))
    })?;
    let time = truth::rfc3339(call.time_ns)?;
    // Without the port it is among the candidates.
    ensure!(candidates(stack, &["--time", &time])?.contains(truth.first().context("nobody was called")?));
    // The next port is nobody's.
    let next = call.port.checked_add(1).unwrap_or(1024).to_string();
    ensure!(candidates(stack, &["--time", &time, "--port", &next])?.is_empty());
    let minute_before = truth::rfc3339(call.time_ns.saturating_sub(60_000_000_000))?;
    let ips =
        stack.vestigo_json(&["ips", "--vo", "atlas", "--from", &minute_before, "--to", &truth::now()])?.to_string();
    ensure!(ips.contains(PUBLIC) && ips.contains("post-nat"), "{ips}");
    Ok(())
}

/// Nothing listens in the VM; that it refuses is a conversation too.
fn a_call_in(stack: &Stack<'_>, vm: &Vm<'_>, peer: &Peer<'_>) -> Result<()> {
    let time = truth::now();
    peer.command("bash")?.args(["-c", &format!("echo hello > /dev/tcp/{PUBLIC}/2222")]).output()?;
    process::wait_for("the floating port to lead to the VM", Duration::from_secs(30), || {
        let found = candidates(stack, &["--time", &time, "--port", "2222"])?;
        Ok(matches!(&found[..], [one] if one.domain == vm.uuid() && one.vo == "atlas").then_some(()))
    })
}
