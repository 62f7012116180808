//! The agent in a real VM: thirty payloads of ten users at once, every flow under its own name; what leaves under nobody's; bans
//! while payloads run; records across reboots and restarts; the guest link out of a payload's reach.

#![allow(clippy::indexing_slicing)] // a missing element fails the test

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vestigo_ledger::{Facts, Ledger};
use vestigo_model::{Clock, DomainUuid, Event, EventKind, Exit, Payload, SystemClock, TimeRange, Timestamp};
use vestigo_tests::{
    audit::{Audit, Sender, Verdict, proto},
    bins,
    guest::{self, GuestImage, VmSpec},
    net::{Peer, PeerListener, Seen},
    pilot::{self, Crew, Work},
    process, require,
    site::Site,
    stack::{Stack, Vault, nova_metadata},
    truth::who,
    vm::Vm,
};

const BOOT: Duration = Duration::from_secs(180);
/// From a packet to the ledger, on a busy machine.
const WRITTEN: Duration = Duration::from_secs(60);
const PEER4: &str = "10.77.0.1";
const PEER6: &str = "fd77::1";
/// Inside of the payloads' range: whoever mixed up the two ends of a flow would name a payload.
const TCP: u16 = 11_300;
const UDP: u16 = 21_300;
/// What every payload binds to in its own network; in the VM it is a payload's.
const SAME_PORT: u16 = 31_000;
const PAYLOADS: usize = 30;
const USERS: usize = 10;
const TIMES: usize = 3;
/// As systemd sets it: everybody may ping.
const PING: &str = "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range";
/// TCP, UDP, ping; IPv4 and IPv6.
const KINDS: usize = 6;

struct World<'a> {
    stack: &'a Stack<'a>,
    vm: &'a Vm<'a>,
    ears: Ears,
    domain: DomainUuid,
    /// When the VM was ready.
    began: Timestamp,
}

/// Everything that the peer hears.
struct Ears {
    tcp: PeerListener,
    udp: PeerListener,
    ping: PeerListener,
}

impl Ears {
    fn open(peer: &Peer<'_>) -> Result<Self> {
        Ok(Self { tcp: peer.listen_tcp(TCP)?, udp: peer.listen_udp(UDP)?, ping: peer.listen_ping()? })
    }

    fn heard(&self) -> [(u8, u16, Vec<Seen>); 3] {
        [(proto::TCP, TCP, self.tcp.seen()), (proto::UDP, UDP, self.udp.seen()), (proto::ICMP, 0, self.ping.seen())]
    }

    fn audit(&self) -> Result<Audit> {
        let mut audit = Audit::default();
        for (proto, port, seen) in self.heard() {
            audit.heard(proto, port, &seen, sender)?;
        }
        Ok(audit)
    }
}

fn sender(token: &str) -> Option<Sender> {
    match token.split_once('-')? {
        ("own", "system") => Some(Sender::Own("system")),
        ("own", "pilot") => Some(Sender::Own("pilot")),
        ("job", number) => Some(Sender::Payload(token.to_owned(), user(number.parse().ok()?))),
        ("attack", _) => Some(Sender::Payload(token.to_owned(), "mallory".to_owned())),
        _ => None,
    }
}

fn user(number: usize) -> String {
    format!("user-{}", number % USERS)
}

fn talk(token: &str, times: usize, own_port: u16) -> String {
    format!("/usr/bin/talk {token} {PEER4} {PEER6} {TCP} {UDP} {times} {own_port}")
}

fn job(number: usize, times: usize) -> Work {
    let payload = format!("job-{number}");
    Work { command: format!("exec {}", talk(&payload, times, SAME_PORT)), user: user(number), payload }
}

impl World<'_> {
    fn ledger(&self) -> Result<Ledger> {
        Ok(Ledger::open_folders(&[self.stack.ledger()])?.with_keys(self.stack.keyring()?))
    }

    fn facts(&self, since: Timestamp) -> Result<Facts> {
        Ok(self.ledger()?.facts(TimeRange { from: since, to: SystemClock.now() })?)
    }

    fn events(&self, since: Timestamp, what: EventKind) -> Result<Vec<Event>> {
        let ours = |event: &Event| event.what == what && event.domain == Some(self.domain);
        Ok(self.facts(since)?.events.into_iter().filter(ours).collect())
    }

    /// The run of a payload, when its end is recorded.
    fn ended(&self, since: Timestamp, payload: &str) -> Result<Payload> {
        process::wait_for(&format!("the end of {payload}"), WRITTEN, || {
            let runs = self.facts(since)?.payloads.into_iter().filter(|run| run.claim.payload.as_str() == payload);
            let runs: Vec<Payload> = runs.collect();
            ensure!(runs.len() <= 1, "{payload} ran more than once: {runs:?}");
            Ok(runs.into_iter().find(|run| run.end.is_some()))
        })
    }

    fn live(&self) -> Result<usize> {
        let said = self.vm.console().check("guest-agent status --json")?;
        let status: serde_json::Value = serde_json::from_str(&said)?;
        status["payloads"].as_array().map(Vec::len).context("no payloads in the status")
    }
}

#[test]
fn every_flow_of_a_vm_has_its_sender() -> Result<()> {
    if !require::met(require::END_TO_END)? {
        return Ok(());
    }
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("agent")?;
    let stack = Stack::new(&site, &[("atlas", "project-a")], &Vault::Folder)?;
    stack.start_hostd()?;
    let bridge = site.bridge("tenant-a")?;
    let peer = site.peer("peer-a", &bridge, &format!("{PEER4}/24"))?;
    peer.add_address(&format!("{PEER6}/64"))?;
    let address = "10.77.0.11/24";
    let metadata = nova_metadata("vm-a", "project-a", "project-a", "account", address);
    let mut spec = VmSpec::new("vm-a", &image, &bridge, address).gateway(PEER4).address6("fd77::11/64");
    spec = spec.metadata(&metadata);
    spec.memory_mib = 512;
    let vm = site.boot(&spec)?;
    let talk = guest::compile("talk", site.dir())?;
    vm.wait_ready(BOOT)?;
    vm.console().put("/usr/bin/talk", &talk, 0o755)?;
    wait_agent(&vm)?;
    let (ears, began) = (Ears::open(&peer)?, SystemClock.now());
    let world = World { stack: &stack, vm: &vm, ears, domain: vm.uuid().parse()?, began };
    timed("a crowd", || a_crowd(&world))?;
    timed("the link", || the_link_is_out_of_reach(&world))?;
    timed("bans", || bans_while_payloads_run(&world))?;
    timed("restarts", || restarts_lose_nothing_and_count_nothing_twice(&world))?;
    timed("outside", || what_leaves_from_no_lease_is_told(&world))
}

fn timed(what: &str, phase: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = std::time::Instant::now();
    phase().with_context(|| what.to_owned())?;
    eprintln!("{what}: {:?}", start.elapsed());
    Ok(())
}

/// In touch, and able to give payloads IPv6: the guest's own address may still be tentative when the agent starts.
fn wait_agent(vm: &Vm<'_>) -> Result<()> {
    pilot::wait_agent(vm)?;
    vm.console().until("guest-agent status --json > /tmp/status && ! grep no_ipv6 /tmp/status", BOOT).map(drop)
}

/// Thirty payloads of ten users, and the VM itself, all at once, each in every way that a payload can speak.
fn a_crowd(world: &World<'_>) -> Result<()> {
    let began = SystemClock.now();
    let works: Vec<Work> = (0..PAYLOADS).map(|number| job(number, TIMES)).collect();
    let crew = Crew::start(world.vm, "crowd", "atlas", "pilot-a", &works)?;
    let own = format!(
        "{PING}; {} && su pilot -s /bin/sh -c '{}'",
        talk("own-system", TIMES, SAME_PORT),
        talk("own-pilot", TIMES, SAME_PORT + 2)
    );
    let done = world.vm.console().run(&own, BOOT)?;
    ensure!(done.status == 0, "the VM's own traffic: {done:?}");
    crew.wait_said("spoken", PAYLOADS)?;
    ensure!(world.live()? == PAYLOADS, "not all at once");
    crew.release()?;
    let (statuses, said) = crew.finish()?;
    ensure!(statuses.iter().all(|status| *status == 0), "{said}");
    let audit = world.ears.audit()?;
    let senders = (0..PAYLOADS).map(|number| format!("job-{number}")).chain(["own-system".into(), "own-pilot".into()]);
    for token in senders {
        let one = sender(&token).context("no sender")?;
        assert_eq!(audit.flows_of(&one), KINDS * TIMES, "the peer heard all of {one:?}");
    }
    let verdict = compare(world)?;
    assert_eq!(verdict.right.keys().copied().collect::<Vec<_>>(), [1, 6, 17, 58]);
    for (number, of_proto) in &verdict.right {
        let all = (PAYLOADS + 2) * TIMES * if matches!(*number, proto::TCP | proto::UDP) { 2 } else { 1 };
        ensure!(*of_proto >= all, "protocol {number}: {of_proto} records for {all} flows");
    }
    let facts = world.facts(began)?;
    let runs: Vec<&Payload> = facts.payloads.iter().filter(|run| run.claim.holder.is_payload()).collect();
    assert_eq!(runs.len(), PAYLOADS);
    let last_start = runs.iter().map(|run| run.received).max().context("no start")?;
    ensure!(runs.iter().all(|run| run.end.is_none_or(|end| end.received > last_start)), "not all at once");
    assert_eq!(world.events(began, EventKind::Contradiction)?, []);
    the_investigator_is_told_the_same(world)
}

/// Waits until everything that the peer heard is in the ledger, and nothing else is that should not be.
fn compare(world: &World<'_>) -> Result<Verdict> {
    let last = std::cell::RefCell::default();
    let verdict = process::wait_for("all flows in the ledger, and heard", WRITTEN, || {
        let range = TimeRange { from: world.began, to: SystemClock.now() };
        let verdict = world.ears.audit()?.compare(&world.ledger()?, world.domain, range)?;
        ensure!(
            verdict.wrong.is_empty(),
            "{} of {} records are wrong: {:#?}",
            verdict.wrong.len(),
            verdict.right.values().sum::<usize>(),
            verdict.wrong
        );
        let done = verdict.missing.is_empty() && verdict.unheard.is_empty();
        *last.borrow_mut() = (verdict.missing.clone(), verdict.unheard.clone());
        Ok(done.then_some(verdict))
    })
    .with_context(|| format!("never seen by hostd, never heard by a peer: {:?}", last.borrow()))?;
    let others: Vec<_> = verdict.others.iter().map(|(reason, records)| (reason, records.len())).collect();
    eprintln!("records by protocol {:?}; others {others:?}", verdict.right);
    // What no lease can mark, each for a reason of its own: neighbours and groups, answers to nobody.
    let named = ["link-control", "icmp-error", "vm-service", "unanswered", "neighbour"];
    ensure!(verdict.others.keys().all(|reason| named.contains(&reason.as_str())), "{:#?}", verdict.others);
    Ok(verdict)
}

/// One flow of each kind, asked for as it is after an incident.
fn the_investigator_is_told_the_same(world: &World<'_>) -> Result<()> {
    for (number, _, seen) in world.ears.heard() {
        for v6 in [false, true] {
            let ours = |one: &&Seen| one.address.contains(':') == v6 && one.line.starts_with("job-");
            let call = seen.iter().rev().find(ours).context("nothing heard")?;
            let name = match (number, v6) {
                (proto::TCP, _) => "tcp",
                (proto::UDP, _) => "udp",
                (_, false) => "icmp",
                (_, true) => "icmp6",
            };
            let said = who(world.stack, call, &["--proto", name])?;
            let truth = Some(Sender::Payload(call.line.clone(), user(call.line[4..].parse()?)));
            let named: Vec<_> =
                said.iter().map(|one| Some(Sender::Payload(one.payload.clone(), one.user.clone()))).collect();
            assert_eq!(named, [truth], "{name} {call:?}");
            assert_eq!(
                (said[0].domain.as_str(), said[0].vo.as_str(), said[0].quality.as_str()),
                (world.vm.uuid(), "atlas", "lease")
            );
        }
    }
    Ok(())
}

/// Neither the device nor its name is there; it cannot be made, and one that root made elsewhere does not open.
fn the_link_is_out_of_reach(world: &World<'_>) -> Result<()> {
    let console = world.vm.console();
    let numbers = console.check("stat -L -c '%t %T' /dev/virtio-ports/org.vestigo.attribution.0")?;
    let (major, minor) = numbers.split_once(' ').context("no numbers of the device")?;
    let (major, minor) = (u32::from_str_radix(major, 16)?, u32::from_str_radix(minor, 16)?);
    console.check(&format!(
        "mkdir -p /home/pilot/w && chown pilot /home/pilot/w && chmod 700 /home/pilot/w && mknod -m 666 /home/pilot/w/port c {major} {minor}"
    ))?;
    let probe = format!(
        "for place in /dev/vport* /dev/virtio-ports /sys/class/virtio-ports; do test -e $place && echo reached $place; done; \
         for place in /tmp /dev /dev/shm /work; do mknod $place/own c {major} {minor} 2>/dev/null && echo made in $place; done; \
         test -c /work/port && echo there; (exec 5<>/work/port) 2>/dev/null && echo opened; echo probed"
    );
    let done = console.run(
        &format!(
            "su pilot -s /bin/sh -c \"guest-agent exec --pilot-id pilot-a --payload-id probe --user-subject mallory --user-issuer {} \
             --vo atlas --work /home/pilot/w -- /bin/sh -c '{}'\" < /dev/null",
            pilot::ISSUER,
            probe.replace('$', "\\$"),
        ),
        BOOT,
    )?;
    ensure!(done.status == 0 && done.output == "there\nprobed", "{done:?}");
    // The very same opening works where the device is one: the probe can fail.
    let held = console.run("guest-agent status > /dev/null; (exec 5<>/home/pilot/w/port)", BOOT)?;
    ensure!(held.output.contains("busy"), "root meets the device itself, which the agent holds: {held:?}");
    Ok(())
}

/// hostd bans a user whose payloads run: they die, it is confirmed, nobody else notices, and it can be lifted.
fn bans_while_payloads_run(world: &World<'_>) -> Result<()> {
    let began = SystemClock.now();
    let attack = |number: usize| {
        let payload = format!("attack-{number}");
        Work { command: format!("exec {}", talk(&payload, 1, SAME_PORT)), user: "mallory".into(), payload }
    };
    let works = [attack(1), attack(2), job(51, 1)];
    let crew = Crew::start(world.vm, "banned", "atlas", "pilot-a", &works)?;
    crew.wait_said("spoken", 3)?;
    let ban = format!(
        "[[ban]]\nid = \"ticket-1\"\nuser = {{ issuer = \"{}\", subject = \"mallory\" }}\nreason = \"attacked the peer; write to security@example.org\"\n",
        pilot::ISSUER
    );
    world.stack.ban(&ban)?;
    let applied =
        process::wait_for("the ban in force", WRITTEN, || Ok(world.events(began, EventKind::BanApplied)?.pop()))?;
    let detail = |key: &str| applied.detail.get(key).map(String::as_str);
    assert_eq!(
        (detail("id"), detail("payloads"), detail("left")),
        (Some("ticket-1"), Some("2"), Some("0")),
        "{applied:?}"
    );
    for (payload, exit) in [("attack-1", Exit::Signal(9)), ("attack-2", Exit::Signal(9))] {
        assert_eq!(world.ended(began, payload)?.end.map(|end| end.exit), Some(exit), "{payload}");
    }
    assert_eq!(world.live()?, 1, "nobody else was hit");
    // A restart of hostd tells the agent the same list again, which is no new ban.
    world.stack.stop_hostd()?;
    world.stack.start_hostd()?;
    pilot::wait_agent(world.vm)?;
    let again = Work { payload: "again".into(), user: "mallory".into(), command: "echo it ran".into() };
    let (statuses, said) = pilot::run(world.vm, "atlas", "pilot-a", std::slice::from_ref(&again))?;
    ensure!(statuses == [203] && said.contains("ticket-1") && !said.contains("it ran"), "{statuses:?} {said}");
    crew.release()?;
    let (statuses, said) = crew.finish()?;
    ensure!(statuses == [203, 203, 0] || statuses == [137, 137, 0], "{statuses:?} {said}");
    world.stack.ban("")?;
    let lifted = |said: &Event| said.detail.get("lifted").is_some_and(|ids| ids == "ticket-1");
    process::wait_for("the ban to be lifted", WRITTEN, || {
        Ok(world.events(began, EventKind::BanSent)?.into_iter().find(lifted))
    })?;
    pilot::run_well(world.vm, "atlas", "pilot-a", &[again])?;
    assert_eq!(world.events(began, EventKind::BanApplied)?.len(), 1, "told once");
    Ok(())
}

/// Ends that happen while hostd is away, and a reboot in the middle of a payload: each run is there once, with its end.
fn restarts_lose_nothing_and_count_nothing_twice(world: &World<'_>) -> Result<()> {
    let began = SystemClock.now();
    let works: Vec<Work> = (60..64).map(|number| job(number, 1)).collect();
    let crew = Crew::start(world.vm, "restart", "atlas", "pilot-a", &works)?;
    crew.wait_said("spoken", works.len())?;
    world.stack.stop_hostd()?;
    crew.release()?;
    crew.finish()?;
    world.stack.start_hostd()?;
    for work in &works {
        assert_eq!(world.ended(began, &work.payload)?.end.map(|end| end.exit), Some(Exit::Code(0)));
    }
    let crew = Crew::start(world.vm, "reboot", "atlas", "pilot-a", &[job(70, 1)])?;
    crew.wait_said("spoken", 1)?;
    world.vm.reboot()?;
    world.vm.wait_ready(BOOT)?;
    wait_agent(world.vm)?;
    assert_eq!(world.ended(began, "job-70")?.end.map(|end| end.exit), Some(Exit::Lost));
    pilot::run_well(world.vm, "atlas", "pilot-a", &[job(71, 1)])?;
    assert_eq!(world.ended(began, "job-71")?.end.map(|end| end.exit), Some(Exit::Code(0)));
    compare(world)?;
    let facts = world.facts(began)?;
    assert_eq!(facts.conflicting, []);
    assert_eq!(world.events(began, EventKind::LinkFault)?, []);
    assert_eq!(world.events(began, EventKind::Contradiction)?, []);
    // Pings have no retransmissions: what is counted in all records of a flow is what was sent.
    let pings = world.ears.ping.seen().len();
    let range = TimeRange { from: world.began, to: SystemClock.now() };
    let filter = vestigo_ledger::FlowFilter { range, ip: None, vo: None };
    let flows = world.ledger()?.flows(&filter)?;
    let echo = |flow: &&vestigo_model::Flow| {
        matches!((flow.proto, flow.resp_port >> 8), (proto::ICMP, 8) | (proto::ICMPV6, 128))
    };
    let counted: u64 = flows.iter().filter(echo).map(|flow| flow.orig_packets).sum();
    assert_eq!(counted, u64::try_from(pings)?, "echo requests");
    Ok(())
}

/// Root takes the rules away: what leaves then is the VM's, and is told as a contradiction.
fn what_leaves_from_no_lease_is_told(world: &World<'_>) -> Result<()> {
    let began = SystemClock.now();
    // With the rules in place even a port out of a payload's block leaves as the system's.
    world.vm.console().check(&format!("{PING}; {}", talk("own-system", 1, 61_000)))?;
    compare(world)?;
    assert_eq!(world.events(began, EventKind::Contradiction)?, []);
    world.vm.console().check(&format!("nft delete table inet vestigo && {}", talk("loose", 1, 61_001)))?;
    let loose = process::wait_for("the loose call", WRITTEN, || {
        Ok(world.ears.tcp.seen().into_iter().find(|call| call.line == "loose" && !call.address.contains(':')))
    })?;
    assert_eq!(loose.port, 61_001);
    let told =
        process::wait_for("the contradiction", WRITTEN, || Ok(world.events(began, EventKind::Contradiction)?.pop()))?;
    // One of them is told at once and the rest counted; which family and protocol comes first is chance. The echo identifier is the
    // port after those of TCP and UDP.
    let ports = [61_001, 61_002];
    let ours =
        ports.map(|port| [format!("10.77.0.11:{port} to 10.77.0.1:"), format!("[fd77::11]:{port} to [fd77::1]:")]);
    let is_ours = |last: &String| ours.iter().flatten().any(|flow| last.contains(flow));
    ensure!(told.detail.get("last").is_some_and(is_ours), "{told:?}");
    let said = who(world.stack, &loose, &["--proto", "tcp"])?;
    assert_eq!(
        said.iter().map(|one| (one.payload.as_str(), one.quality.as_str())).collect::<Vec<_>>(),
        [("", "instance")]
    );
    Ok(())
}
