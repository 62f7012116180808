//! From a packet on a tap to a name, on real VMs: two tenants with the same private address, concurrent payloads, hostd killed
//! in the middle, a VM without metadata, a guest that sends garbage, an agent without hostd.

#![allow(clippy::indexing_slicing)] // a missing element fails the test

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vestigo_tests::{
    bins,
    guest::{GuestImage, VmSpec},
    net::{Bridge, Peer},
    pilot::{self, Work},
    process, require,
    site::Site,
    stack::{Stack, Vault, nova_metadata},
    truth::{self, Who, who},
    vm::Vm,
};

const BOOT: Duration = Duration::from_secs(180);
const GATEWAY: &str = "10.77.0.1";
const ADDRESS: &str = "10.77.0.11/24";
const PROJECTS: [(&str, &str); 2] = [("atlas", "project-a"), ("cms", "project-b")];

struct World<'a> {
    site: &'a Site,
    image: &'a GuestImage,
}

impl<'a> World<'a> {
    /// A VM of a tenant, on that tenant's own bridge.
    fn tenant_vm(&self, name: &str, project: &str, bridge: &Bridge) -> Result<Vm<'a>> {
        let metadata = nova_metadata(name, project, project, "account", ADDRESS);
        let spec = VmSpec::new(name, self.image, bridge, ADDRESS).gateway(GATEWAY).metadata(&metadata);
        self.site.boot(&spec)
    }
}

fn expect(vm: &Vm<'_>, vo: &str, payload: &str, user: &str) -> Who {
    Who {
        domain: vm.uuid().to_owned(),
        vo: vo.to_owned(),
        payload: payload.to_owned(),
        user: user.to_owned(),
        quality: "lease".to_owned(),
    }
}

/// Waits until the ledger answers as it should: flows are written some seconds after they were seen.
fn eventually<T: PartialEq + std::fmt::Debug>(what: &str, truth: &T, ask: impl Fn() -> Result<T>) -> Result<()> {
    let last = std::cell::RefCell::new(None);
    process::wait_for(what, Duration::from_secs(30), || {
        let got = ask()?;
        let right = got == *truth;
        *last.borrow_mut() = Some(got);
        Ok(right.then_some(()))
    })
    .with_context(|| format!("{what}: the last answer was {:?}, the truth is {truth:?}", last.borrow()))
}

#[test]
fn a_call_leads_to_its_payload_whatever_happens() -> Result<()> {
    if !require::met(require::END_TO_END)? {
        return Ok(());
    }
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("attribution")?;
    let stack = Stack::new(&site, &PROJECTS, &Vault::Folder)?;
    let world = World { site: &site, image: &image };
    let bridges = [site.bridge("tenant-a")?, site.bridge("tenant-b")?];
    let peers = [site.peer("peer-a", &bridges[0], "10.77.0.1/24")?, site.peer("peer-b", &bridges[1], "10.77.0.1/24")?];
    // The first VM runs before hostd does and must be found.
    let atlas = world.tenant_vm("vm-a", "project-a", &bridges[0])?;
    stack.start_hostd()?;
    let cms = world.tenant_vm("vm-b", "project-b", &bridges[1])?;
    let vms = [&atlas, &cms];
    for vm in vms {
        vm.wait_ready(BOOT)?;
        pilot::wait_agent(vm)?;
    }
    the_same_address_in_two_tenants(&stack, vms, &peers)?;
    concurrent_payloads(&stack, &atlas, &peers[0])?;
    hostd_is_killed(&stack, &atlas, &peers[0])?;
    a_flooded_frame_is_nobodys(&stack, &peers[0])?;
    garbage_from_a_guest(&stack, &cms, &peers[1])?;
    history_is_not_written_anew(&stack, &cms)?;
    a_vm_without_metadata(&world, &stack, &bridges[1], &peers[1])?;
    without_hostd_nothing_starts(&stack, &atlas)?;
    Ok(())
}

/// One address, one port, one moment, two tenants: two candidates, each with its own; one when the instance is named.
fn the_same_address_in_two_tenants(stack: &Stack<'_>, vms: [&Vm<'_>; 2], peers: &[Peer<'_>; 2]) -> Result<()> {
    let listeners = [peers[0].listen_tcp(7001)?, peers[1].listen_tcp(7001)?];
    // The first payload of each VM gets the same block, and each binds the same port in its own network.
    let call = |payload: &str| Work {
        payload: payload.to_owned(),
        user: format!("user-of-{payload}"),
        command: format!("(echo {payload}; sleep 3) | nc -p 30000 {GATEWAY} 7001"),
    };
    std::thread::scope(|scope| {
        let cms = scope.spawn(|| pilot::run_well(vms[1], "cms", "pilot-b", &[call("same-b")]));
        pilot::run_well(vms[0], "atlas", "pilot-a", &[call("same-a")])?;
        cms.join().unwrap_or_else(|_| anyhow::bail!("the other pilot panicked"))
    })?;
    let calls = [&listeners[0].wait_for(1, BOOT)?[0], &listeners[1].wait_for(1, BOOT)?[0]].map(Clone::clone);
    let [a, b] = &calls;
    ensure!(a.address == b.address && a.address == "10.77.0.11", "{calls:?}");
    let truth_a = expect(vms[0], "atlas", "same-a", "user-of-same-a");
    let truth_b = expect(vms[1], "cms", "same-b", "user-of-same-b");
    // Without the port both are candidates, whatever ports they got.
    let mut both = vec![truth_a.clone(), truth_b.clone()];
    both.sort();
    eventually("both tenants", &both, || {
        let time = truth::rfc3339(a.time_ns)?;
        let said = stack
            .vestigo(&["who", "--time", &time, "--window", "10s", "--ip", &a.address, "--proto", "tcp", "--json"])?;
        truth::candidates(&said.json()?)
    })?;
    for (call, vm, truth) in [(a, vms[0], &truth_a), (b, vms[1], &truth_b)] {
        let one = who(stack, call, &["--instance", vm.uuid()])?;
        assert_eq!(one, std::slice::from_ref(truth), "the instance was named");
    }
    Ok(())
}

/// Users of one VM, all to one destination at once: each flow to its own payload.
fn concurrent_payloads(stack: &Stack<'_>, vm: &Vm<'_>, peer: &Peer<'_>) -> Result<()> {
    let listener = peer.listen_tcp(7002)?;
    let users = ["ann", "ben", "cid", "dot", "eve"];
    let works: Vec<Work> =
        users.iter().map(|user| Work::call(&format!("job-{user}"), user, GATEWAY, 7002, 3)).collect();
    pilot::run_well(vm, "atlas", "pilot-a", &works)?;
    let calls = listener.wait_for(users.len(), BOOT)?;
    let mut named = Vec::new();
    for call in &calls {
        let user = call.line.strip_prefix("job-").context("a call of nobody's")?;
        let truth = vec![expect(vm, "atlas", &call.line, user)];
        eventually(&format!("the call of {user}"), &truth, || who(stack, call, &[]))?;
        named.push(user.to_owned());
    }
    named.sort();
    assert_eq!(named, users);
    Ok(())
}

/// SIGKILL in the middle of traffic: what was acknowledged is there, the VM and its payload are found again, and the gap is stated.
fn hostd_is_killed(stack: &Stack<'_>, vm: &Vm<'_>, peer: &Peer<'_>) -> Result<()> {
    let listener = peer.listen_tcp(7003)?;
    let killed_at = std::thread::scope(|scope| -> Result<String> {
        let long = scope.spawn(|| {
            let command =
                format!("(echo before; sleep 12; echo after) | nc {GATEWAY} 7003; echo again | nc {GATEWAY} 7003");
            let work = Work { payload: "survivor".into(), user: "zoe".into(), command };
            pilot::run_well(vm, "atlas", "pilot-a", &[work])
        });
        listener.wait_for(1, BOOT)?;
        stack.kill_hostd()?;
        let killed_at = truth::now();
        std::thread::sleep(Duration::from_secs(3));
        stack.start_hostd()?;
        long.join().unwrap_or_else(|_| anyhow::bail!("the pilot panicked"))?;
        Ok(killed_at)
    })?;
    let calls = listener.wait_for(2, BOOT)?;
    // The payload was acknowledged before the kill; its second call came after the restart.
    let truth = vec![expect(vm, "atlas", "survivor", "zoe")];
    eventually("the call after the restart", &truth, || who(stack, &calls[1], &[]))?;
    let pilots = stack.vestigo_json(&["pilots", "--user", "zoe"])?;
    assert_eq!(pilots.pointer("/answer/rows/0/payloads/0/payload_id").and_then(|v| v.as_str()), Some("survivor"));
    ensure!(
        pilots
            .pointer("/answer/rows/0/payloads/0/end/exit")
            .is_some_and(|exit| *exit == serde_json::json!({"code": 0})),
        "its end, which came after the restart, is recorded too: {pilots:#}"
    );
    let said = stack.vestigo(&["who", "--time", &killed_at, "--ip", "10.77.0.11", "--json"])?;
    let coverage = said.json()?.pointer("/answer/coverage").cloned().context("no coverage")?;
    ensure!(
        coverage["complete"] == false && coverage.to_string().contains("hostd-down"),
        "the gap is stated: {coverage:#}"
    );
    Ok(())
}

/// Root in the guest writes rubbish into the link. It costs the guest its link for a moment, and nobody else anything.
fn garbage_from_a_guest(stack: &Stack<'_>, vm: &Vm<'_>, peer: &Peer<'_>) -> Result<()> {
    let garbage = "chmod a-x /usr/sbin/guest-agent; killall guest-agent; sleep 1
        port=/dev/virtio-ports/org.vestigo.attribution.0
        { head -c 200000 /dev/urandom; echo; echo '{\"type\":\"record\"'; echo '{\"type\":\"record\",\"seq\":99}'; } > $port
        chmod a+x /usr/sbin/guest-agent";
    vm.console().run(garbage, BOOT)?;
    process::wait_for("the fault to be recorded", Duration::from_secs(30), || {
        Ok(stack.log("hostd").contains("a guest broke the link's protocol").then_some(()))
    })?;
    pilot::wait_agent(vm)?;
    let listener = peer.listen_tcp(7004)?;
    pilot::run_well(vm, "cms", "pilot-b", &[Work::call("after-garbage", "gus", GATEWAY, 7004, 2)])?;
    let call = listener.wait_for(1, BOOT)?.remove(0);
    let truth = vec![expect(vm, "cms", "after-garbage", "gus")];
    eventually("the call after the garbage", &truth, || who(stack, &call, &[]))
}

/// A frame to an address that the bridge does not know reaches every tap. It comes from none of their VMs.
fn a_flooded_frame_is_nobodys(stack: &Stack<'_>, peer: &Peer<'_>) -> Result<()> {
    let send = "ip neigh replace 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0; echo flood > /dev/udp/10.77.0.99/9999";
    let time = truth::now();
    process::output(peer.command("bash")?.args(["-c", send]))?;
    // Longer than the first record of a flow waits, and its way into the ledger.
    std::thread::sleep(Duration::from_secs(4));
    let said = stack.vestigo(&[
        "who",
        "--time",
        &time,
        "--window",
        "4s",
        "--ip",
        GATEWAY,
        "--peer",
        "10.77.0.99",
        "--json",
    ])?;
    assert_eq!(truth::candidates(&said.json()?)?, [], "no VM sent it");
    Ok(())
}

/// Root in the guest says again, under the run id of an earlier payload, that it was somebody else's.
fn history_is_not_written_anew(stack: &Stack<'_>, vm: &Vm<'_>) -> Result<()> {
    let uid_of = |user: &str| -> Result<String> {
        let pilots = stack.vestigo_json(&["pilots", "--user", user])?;
        let uid = pilots.pointer("/answer/rows/0/payloads/0/payload").and_then(|uid| uid.as_str());
        uid.map(str::to_owned).with_context(|| format!("no run of {user}: {pilots:#}"))
    };
    let uid = uid_of("gus")?;
    let zeros = "0".repeat(64);
    let lines = format!(
        "{{\"type\":\"hello\",\"protocol\":1,\"boot\":\"00000000-0000-4000-8000-00000000beef\",\"agent\":\"forged\",\"last\":0,\"time\":\"2026-01-01T00:00:00Z\"}}\n\
         {{\"type\":\"record\",\"seq\":1,\"prev\":\"{zeros}\",\"time\":\"2026-01-01T00:00:00Z\",\"claim\":{{\"event\":\"payload-start\",\
         \"uid\":\"{uid}\",\"pilot\":\"p\",\"payload\":\"after-garbage\",\"user\":{{\"issuer\":\"https://iam.example\",\"subject\":\"ivan.the.innocent\"}},\
         \"vo\":\"cms\",\"trust\":\"asserted-by-vo\"}}}}\n"
    );
    vm.console().put("/tmp/forged", lines.as_bytes(), 0o600)?;
    let forge = "chmod a-x /usr/sbin/guest-agent; killall guest-agent; sleep 1
        { echo; cat /tmp/forged; sleep 1; } > /dev/virtio-ports/org.vestigo.attribution.0
        chmod a+x /usr/sbin/guest-agent";
    vm.console().run(forge, BOOT)?;
    process::wait_for("the forgery to be refused", Duration::from_secs(30), || {
        Ok(stack.log("hostd").contains("its run id belongs to another payload").then_some(()))
    })?;
    pilot::wait_agent(vm)?;
    assert_eq!(uid_of("gus")?, uid, "the first claim holds");
    let innocent = stack.vestigo(&["pilots", "--user", "ivan.the.innocent"])?;
    assert_eq!(innocent.status, 3, "{innocent:?}");
    Ok(())
}

/// No metadata: the VM is `plain` and its VO unmapped, never guessed; its payloads are attributed all the same.
fn a_vm_without_metadata(world: &World<'_>, stack: &Stack<'_>, bridge: &Bridge, peer: &Peer<'_>) -> Result<()> {
    let spec = VmSpec::new("nobody", world.image, bridge, "10.77.0.13/24").gateway(GATEWAY);
    let vm = world.site.boot(&spec)?;
    vm.wait_ready(BOOT)?;
    pilot::wait_agent(&vm)?;
    let listener = peer.listen_tcp(7005)?;
    pilot::run_well(&vm, "lhcb", "pilot-c", &[Work::call("lone", "hal", GATEWAY, 7005, 2)])?;
    let call = listener.wait_for(1, BOOT)?.remove(0);
    eventually("an unmapped VO", &vec![expect(&vm, "", "lone", "hal")], || who(stack, &call, &[]))?;
    // What the VM itself sends has a lease of its own, in words instead of names.
    vm.console().check(&format!("echo own | nc {GATEWAY} 7005"))?;
    let call = listener.wait_for(2, BOOT)?.remove(1);
    eventually("the VM's own call", &vec![expect(&vm, "", "system", "system")], || who(stack, &call, &[]))?;
    vm.destroy()
}

/// Fail mode closed: without hostd a payload is refused, in words that say what to do.
fn without_hostd_nothing_starts(stack: &Stack<'_>, vm: &Vm<'_>) -> Result<()> {
    stack.stop_hostd()?;
    let work = Work { payload: "too-early".into(), user: "ivy".into(), command: "echo it ran".into() };
    let (statuses, said) = pilot::run(vm, "atlas", "pilot-a", &[work])?;
    ensure!(statuses.iter().all(|status| (201..=203).contains(status)), "{statuses:?}: {said}");
    ensure!(!said.contains("it ran"), "the payload ran: {said}");
    ensure!(said.contains("hostd") && said.contains("fail_mode"), "the refusal names the thing and the remedy: {said}");
    Ok(())
}
