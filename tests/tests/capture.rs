//! What a tap shows, from real guests to the ledger and the investigator: true to the byte, attributed to the VM behind the tap, and
//! nothing left when a VM is gone. One site, two guests; what is asked of each check is in its name.

#![allow(clippy::indexing_slicing)] // a missing element fails the test

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vestigo_ledger::{Facts, FlowFilter, Ledger};
use vestigo_model::{
    Clock, Coverage, CoverageState, EndReason, EventKind, Expected, Flow, Instance, SystemClock, TimeRange, Timestamp,
};
use vestigo_tests::{
    audit::proto,
    bins,
    guest::{self, GuestImage, VmSpec},
    husk::Husk,
    net::{Bridge, Peer},
    process, require,
    site::Site,
    stack::{Stack, Vault, nova_metadata},
    vm::Vm,
};

const BOOT: Duration = Duration::from_secs(180);
/// From a packet to the ledger, on a busy machine.
const WRITTEN: Duration = Duration::from_secs(60);
const PEER4: &str = "10.77.0.1";
const PEER6: &str = "fd77::1";
const FIRST4: &str = "10.77.0.11";
const FIRST6: &str = "fd77::11";
const SECOND4: &str = "10.77.0.12";

struct World<'a> {
    site: &'a Site,
    stack: &'a Stack<'a>,
    bridge: &'a Bridge,
    peer: &'a Peer<'a>,
    first: &'a Vm<'a>,
    second: &'a Vm<'a>,
    /// When both VMs were ready.
    began: Timestamp,
}

#[test]
fn a_tap_shows_everything_once_and_true_to_the_byte() -> Result<()> {
    if !require::met(require::END_TO_END)? {
        return Ok(());
    }
    let image = GuestImage::ensure(&bins::path("guest-agent")?)?;
    let site = Site::start("capture")?;
    let stack = Stack::new(&site, &[("atlas", "project-a"), ("cms", "project-b")], &Vault::Folder)?;
    stack.start_hostd()?;
    let bridge = site.bridge("tenants")?;
    let peer = site.peer("peer", &bridge, &format!("{PEER4}/24"))?;
    peer.add_address(&format!("{PEER6}/64"))?;
    let first = site.boot(&spec("first", &image, &bridge, FIRST4, Some(FIRST6), "project-a"))?;
    let second = site.boot(&spec("second", &image, &bridge, SECOND4, None, "project-b"))?;
    let send = guest::compile("send", site.dir())?;
    for vm in [&first, &second] {
        vm.wait_ready(BOOT)?;
        // The agent's address translation would change what is sent here; attribution has its own tests.
        vm.console().check("chmod a-x /usr/sbin/guest-agent; killall guest-agent; nft flush ruleset")?;
        vm.console().put("/usr/bin/send", &send, 0o755)?;
    }
    let world = World {
        site: &site,
        stack: &stack,
        bridge: &bridge,
        peer: &peer,
        first: &first,
        second: &second,
        began: SystemClock.now(),
    };
    timed("bulk", || a_bulk_transfer_is_counted_to_the_byte(&world, 7100, 32 << 20))?;
    timed("ipv6", || ipv6_is_counted_and_answered_for(&world))?;
    timed("fragments", || fragments_are_one_flow(&world))?;
    timed("spoofing", || a_spoofed_source_is_recorded_and_its_vm_named(&world))?;
    timed("tags", || tags_are_recorded_and_part_of_what_a_flow_is(&world))?;
    timed("vm to vm", || a_call_to_another_vm_is_seen_twice_and_told_once(&world))?;
    timed("reuse", || a_tap_name_used_again_credits_nobody_else(&world))?;
    timed("many", || fifty_vms_leave_nothing_behind(&world))?;
    timed("pnet", || the_portable_backend_counts_the_same(&world))
}

fn timed(what: &str, phase: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = std::time::Instant::now();
    phase().with_context(|| what.to_owned())?;
    eprintln!("{what}: {:?}", start.elapsed());
    Ok(())
}

fn spec(name: &str, image: &GuestImage, bridge: &Bridge, v4: &str, v6: Option<&str>, project: &str) -> VmSpec {
    let mut metadata = nova_metadata(name, project, project, "account", v4);
    let mut spec = VmSpec::new(name, image, bridge, &format!("{v4}/24")).gateway(PEER4);
    if let Some(v6) = v6 {
        spec = spec.address6(&format!("{v6}/64"));
        let more = format!("<nova:ip type='fixed' address='{v6}' ipVersion='6'/></nova:port>");
        metadata = metadata.replace("</nova:port>", &more);
    }
    spec.metadata(&metadata)
}

impl World<'_> {
    fn ledger(&self) -> Result<Ledger> {
        Ok(Ledger::open_folders(&[self.stack.ledger()])?.with_keys(self.stack.keyring()?))
    }

    fn range(&self) -> TimeRange {
        TimeRange { from: self.began, to: SystemClock.now() }
    }

    fn facts(&self) -> Result<Facts> {
        Ok(self.ledger()?.facts(self.range())?)
    }

    /// All records of conversations with this port of a responder, whoever's tap saw them.
    fn records(&self, proto: u8, port: u16) -> Result<Vec<Flow>> {
        let mut flows = self.ledger()?.flows(&FlowFilter { range: self.range(), ip: None, vo: None })?;
        flows.retain(|flow| flow.proto == proto && flow.resp_port == port);
        Ok(flows)
    }

    /// Waits until the records hold so many packets of the originator at the VM's tap, and gives the sum of all.
    fn counted(&self, vm: &Vm<'_>, proto: u8, port: u16, packets: u64) -> Result<Sum> {
        let last = std::cell::RefCell::default();
        process::wait_for("the packets in the ledger", WRITTEN, || {
            let sum = Sum::of(&self.records(proto, port)?, vm)?;
            *last.borrow_mut() = format!("{sum:?}");
            Ok(sum.filter(|sum| sum.orig_packets >= packets))
        })
        .with_context(|| format!("{packets} packets to port {port}, the last was {}", last.borrow()))
    }

    /// Sends from a VM; gives the source port.
    fn send(&self, from: &Vm<'_>, arguments: &str) -> Result<u16> {
        let said = from.console().run(&format!("send {arguments}"), BOOT)?;
        ensure!(said.status == 0, "send {arguments}: {said:?}");
        said.output.trim().parse().with_context(|| format!("no port in {said:?}"))
    }

    /// Asks for an address and port since the test began; finding nothing is an error.
    fn who(&self, ip: &str, port: u16, more: &[&str]) -> Result<Value> {
        let (range, port) = (self.range(), port.to_string());
        let window = format!("{}s", range.to.since(range.from).as_secs() + 1);
        let (time, mut question) = (range.to.to_string(), vec!["who", "--ip", ip, "--port", &port]);
        question.extend(["--time", &time, "--window", &window]);
        question.extend(more);
        self.stack.vestigo_json(&question)
    }
}

/// The records of one flow at one tap, added up.
#[derive(Debug)]
struct Sum {
    orig_packets: u64,
    orig_bytes: u64,
    resp_packets: u64,
    resp_bytes: u64,
    expected: Expected,
    ended: bool,
    one: Flow,
}

impl Sum {
    fn of(records: &[Flow], vm: &Vm<'_>) -> Result<Option<Self>> {
        let domain = vm.uuid().parse()?;
        let ours: Vec<&Flow> = records.iter().filter(|flow| flow.domain == domain).collect();
        let Some(one) = ours.first() else { return Ok(None) };
        let tuple = |flow: &Flow| (flow.orig_ip, flow.orig_port, flow.resp_ip, flow.vlan);
        ensure!(ours.iter().all(|flow| tuple(flow) == tuple(one)), "more than one flow: {ours:#?}");
        let sum = |of: fn(&Flow) -> u64| ours.iter().map(|flow| of(flow)).sum();
        Ok(Some(Self {
            orig_packets: sum(|flow| flow.orig_packets),
            orig_bytes: sum(|flow| flow.orig_bytes),
            resp_packets: sum(|flow| flow.resp_packets),
            resp_bytes: sum(|flow| flow.resp_bytes),
            expected: one.src_expected,
            ended: ours.iter().any(|flow| flow.end_reason == EndReason::EndOfFlow),
            one: (*one).clone(),
        }))
    }
}

/// A firewall's counters on the peer: IP packets and bytes of a TCP port, in and out, as its own kernel has them.
struct Counters<'a>(&'a Peer<'a>);

impl<'a> Counters<'a> {
    fn start(peer: &'a Peer<'a>, port: u16) -> Result<Self> {
        let rules = format!(
            "add table inet count; add counter inet count arrived-{port}; add counter inet count left-{port};
             add chain inet count in {{ type filter hook prerouting priority -300; }};
             add chain inet count out {{ type filter hook postrouting priority 300; }};
             add rule inet count in tcp dport {port} counter name arrived-{port};
             add rule inet count out tcp sport {port} counter name left-{port}"
        );
        process::output(peer.command("nft")?.arg(&rules))?;
        Ok(Self(peer))
    }

    fn read(&self, name: &str) -> Result<(u64, u64)> {
        let said = process::output(self.0.command("nft")?.args(["-j", "list", "counter", "inet", "count", name]))?;
        let said: Value = serde_json::from_str(&said)?;
        let list = said["nftables"].as_array().context("no list")?;
        let counter = list.iter().find_map(|one| one.get("counter")).context("no counter")?;
        let number = |name: &str| counter[name].as_u64().with_context(|| format!("no {name} in {counter}"));
        Ok((number("packets")?, number("bytes")?))
    }
}

/// With segmentation offload the guest hands frames of up to 64 KiB to its tap: their true lengths are counted, and every one of them.
fn a_bulk_transfer_is_counted_to_the_byte(world: &World<'_>, port: u16, bytes: u64) -> Result<()> {
    let listener = world.peer.listen_tcp(port)?;
    let counters = Counters::start(world.peer, port)?;
    world.send(world.first, &format!("tcp {PEER4} {port} {bytes}"))?;
    listener.wait_for(1, BOOT)?;
    // The last acknowledgement may still be on its way when the guest's program has ended.
    let settled = process::wait_for("the connection's end in the ledger", WRITTEN, || {
        let sum = Sum::of(&world.records(proto::TCP, port)?, world.first)?;
        Ok(sum.filter(|sum| sum.ended))
    })?;
    let [arrived, left] = [format!("arrived-{port}"), format!("left-{port}")].map(|name| counters.read(&name));
    assert_eq!((settled.orig_packets, settled.orig_bytes), arrived?, "what the peer got");
    assert_eq!((settled.resp_packets, settled.resp_bytes), left?, "what the peer sent");
    // 40 bytes of IP and TCP headers, 12 of time stamps; of a segment without offload 1448 bytes are left.
    let overhead = settled.orig_bytes - bytes;
    ensure!(overhead <= bytes * 52 / 1448 + 10_000, "{overhead} bytes of headers");
    let mean = settled.orig_bytes / settled.orig_packets;
    ensure!(mean > 1500, "frames of {mean} bytes: nothing was offloaded");
    Ok(())
}

/// The backend for machines without the packet ring, over the same guests: hostd was away in between.
fn the_portable_backend_counts_the_same(world: &World<'_>) -> Result<()> {
    world.stack.stop_hostd()?;
    let path = world.stack.etc("hostd.toml");
    let config = fs::read_to_string(&path)?;
    fs::write(&path, format!("{config}[capture]\nbackend = \"pnet\"\n"))?;
    world.stack.start_hostd()?;
    let domain = world.first.uuid().parse()?;
    let began = SystemClock.now();
    process::wait_for("the tap to be watched again", WRITTEN, || {
        let of_tap = |one: &&Coverage| one.domain == Some(domain) && one.tap.is_some() && one.from >= began;
        let seen = |one: &Coverage| matches!(one.state, CoverageState::Ok | CoverageState::Nodata);
        Ok(world.facts()?.coverage.iter().filter(of_tap).any(seen).then_some(()))
    })?;
    a_bulk_transfer_is_counted_to_the_byte(world, 7110, 2 << 20)
}

fn ipv6_is_counted_and_answered_for(world: &World<'_>) -> Result<()> {
    let listener = world.peer.listen_udp(7101)?;
    let port = world.send(world.first, &format!("udp {PEER6} 7101 100 - 5"))?;
    listener.wait_for(5, BOOT)?;
    let sum = world.counted(world.first, proto::UDP, 7101, 5)?;
    // 40 of IPv6, 8 of UDP.
    assert_eq!((sum.orig_packets, sum.orig_bytes), (5, 5 * 148));
    assert_eq!((sum.one.orig_ip.to_string(), sum.one.orig_port), (FIRST6.to_owned(), port));
    assert_eq!(sum.expected, Expected::Yes);
    let answer = world.who(FIRST6, port, &["--proto", "udp"])?;
    assert_eq!(answer["answer"]["candidates"][0]["host_facts"]["domain"], world.first.uuid());
    Ok(())
}

/// Only the first fragment has ports; the others are of the same flow all the same, both ways and in both families.
fn fragments_are_one_flow(world: &World<'_>) -> Result<()> {
    for (peer, port, headers) in [(PEER4, 7102, 3 * 20), (PEER6, 7103, 3 * (40 + 8))] {
        let listener = world.peer.listen_udp(port)?;
        world.send(world.first, &format!("udp {peer} {port} 4000 - 4"))?;
        listener.wait_for(4, BOOT)?;
        let sum = world.counted(world.first, proto::UDP, port, 12)?;
        let one = 4008 + headers;
        assert_eq!((sum.orig_packets, sum.orig_bytes), (12, 4 * one), "{peer}");
        // The echo; the guest's kernel refuses what its ended program asked for, which is ICMP and another flow.
        assert_eq!((sum.resp_packets, sum.resp_bytes), (12, 4 * one), "{peer}");
        ensure!(world.records(proto::UDP, 0)?.is_empty(), "fragments without a flow");
    }
    Ok(())
}

/// A guest that tags its frames by itself, once and twice. Nobody is there to answer.
fn tags_are_recorded_and_part_of_what_a_flow_is(world: &World<'_>) -> Result<()> {
    let nobody = "02:00:00:00:00:99";
    world.first.console().check(&format!(
        "modprobe 8021q
         ip link add link eth0 name once type vlan id 7 && ip link add link once name twice type vlan id 8
         ip addr add 10.88.0.11/24 dev once && ip link set once up && arp -i once -s 10.88.0.1 {nobody}
         ip addr add 10.89.0.11/24 dev twice && ip link set twice up && arp -i twice -s 10.89.0.1 {nobody}"
    ))?;
    for (address, port, tags) in [("10.88.0.1", 7106, (Some(7), None)), ("10.89.0.1", 7107, (Some(7), Some(8)))] {
        world.send(world.first, &format!("udp {address} {port} 100 - 5"))?;
        let sum = world.counted(world.first, proto::UDP, port, 5)?;
        assert_eq!((sum.orig_packets, sum.orig_bytes), (5, 5 * 128), "{address}");
        assert_eq!((sum.one.vlan, sum.one.notes.inner_vlan), tags, "{address}");
    }
    Ok(())
}

/// The first VM sends with the second's address.
fn a_spoofed_source_is_recorded_and_its_vm_named(world: &World<'_>) -> Result<()> {
    let listener = world.peer.listen_udp(7104)?;
    let port = world.send(world.first, &format!("udp {PEER4} 7104 100 {SECOND4} 3"))?;
    let seen = listener.wait_for(3, BOOT)?;
    assert_eq!((seen[0].address.as_str(), seen[0].port), (SECOND4, port), "the peer is fooled");
    let sum = world.counted(world.first, proto::UDP, 7104, 3)?;
    assert_eq!((sum.orig_packets, sum.one.orig_ip.to_string()), (3, SECOND4.to_owned()));
    assert_eq!(sum.expected, Expected::No);
    let domain = Some(world.first.uuid().parse()?);
    let told = process::wait_for("the event", WRITTEN, || {
        let mut events = world.facts()?.events.into_iter();
        Ok(events.find(|event| event.what == EventKind::Spoofing && event.domain == domain))
    })?;
    let last = told.detail.get("last").context("which flow is not told")?;
    ensure!(last.contains(&format!("{SECOND4}:{port} to {PEER4}:7104")), "{told:?}");
    let answer = world.who(SECOND4, port, &["--peer", &format!("{PEER4}:7104")])?;
    let candidates = answer["answer"]["candidates"].as_array().context("no candidates")?;
    let culprit = candidates.iter().find(|one| one["host_facts"]["domain"] == world.first.uuid());
    let notes = &culprit.with_context(|| format!("the sender is not named: {answer:#}"))?["notes"];
    ensure!(notes.to_string().contains("had not given it"), "{notes}");
    Ok(())
}

fn a_call_to_another_vm_is_seen_twice_and_told_once(world: &World<'_>) -> Result<()> {
    world
        .second
        .console()
        .check("nc -l -p 7105 > /dev/null 2>&1 < /dev/null & until grep -q :1BC1 /proc/net/tcp*; do :; done")?;
    let port = world.send(world.first, &format!("tcp {SECOND4} 7105 300000"))?;
    for vm in [world.first, world.second] {
        process::wait_for("the call at both taps", WRITTEN, || {
            Ok(Sum::of(&world.records(proto::TCP, 7105)?, vm)?.filter(|sum| sum.ended))
        })?;
    }
    let both = [world.first, world.second].map(|vm| vm.uuid().to_owned());
    for (asked, asked_port, own, other) in [(FIRST4, port, 0, 1), (SECOND4, 7105, 1, 0)] {
        let answer = world.who(asked, asked_port, &["--proto", "tcp"])?;
        let candidates = answer["answer"]["candidates"].as_array().context("no candidates")?;
        assert_eq!(candidates.len(), 1, "{answer:#}");
        let (one, seen) = (&candidates[0], &candidates[0]["also_seen"]);
        assert_eq!(one["host_facts"]["domain"], both[own].as_str());
        assert_eq!(seen.as_array().map(Vec::len), Some(1), "{answer:#}");
        assert_eq!(
            (&seen[0]["sameness"], &seen[0]["host_facts"]["domain"]),
            (&"same".into(), &both[other].as_str().into())
        );
        let why = seen[0]["why"].as_str().unwrap_or_default();
        assert_eq!(why, "both taps are on network tenants of the host; packets and bytes agree both ways");
        for way in ["packets_out", "bytes_out", "packets_in", "bytes_in"] {
            assert_eq!(
                (&one["totals"][way], &seen[0]["there"][way]),
                (&seen[0]["here"][way], &seen[0]["here"][way]),
                "{way}"
            );
        }
    }
    let vo = |facts: &Value| facts["vo"].as_str().map(str::to_owned);
    let answer = world.who(FIRST4, port, &["--peer", SECOND4])?;
    assert_eq!(vo(&answer["answer"]["candidates"][0]["also_seen"][0]["host_facts"]).as_deref(), Some("cms"));
    Ok(())
}

/// Two VMs, one after the other, with the same tap name, MAC and address. What comes for the second is not the first's.
fn a_tap_name_used_again_credits_nobody_else(world: &World<'_>) -> Result<()> {
    let address = "10.77.0.21";
    let (mut before, mut after) = (Husk::new("before", 9001), Husk::new("after", 9002));
    after.mac.clone_from(&before.mac);
    for husk in [&mut before, &mut after] {
        husk.tap = Some("reused".to_owned());
        husk.metadata_xml = nova_metadata(&husk.name, "project-a", "project-a", "account", address);
    }
    let arrive = |husk: &Husk, port: u16| -> Result<()> {
        wait_instances(world, std::slice::from_ref(husk), |instance| instance.taps[0].name.as_str() == "reused")?;
        let mac = &husk.mac;
        let send = format!("ip neigh replace {address} lladdr {mac} dev eth0; echo hello > /dev/udp/{address}/{port}");
        process::output(world.peer.command("bash")?.args(["-c", &send]))?;
        let domain = husk.uuid.parse()?;
        process::wait_for("the datagram at the tap", WRITTEN, || {
            Ok(world.records(proto::UDP, port)?.iter().any(|flow| flow.domain == domain).then_some(()))
        })
    };
    let [first, second] = [&before, &after].map(std::slice::from_ref);
    world.site.start_husks(first, world.bridge)?;
    arrive(&before, 7201)?;
    // At once: hostd may hear of the second before it has let go of the first.
    world.site.destroy_husks(first)?;
    world.site.start_husks(second, world.bridge)?;
    arrive(&after, 7202)?;
    world.site.destroy_husks(second)?;
    let ended = wait_instances(world, &[before.clone(), after.clone()], |instance| instance.end.is_some())?;
    let ip: IpAddr = address.parse()?;
    let flows = world.ledger()?.flows(&FlowFilter { range: world.range(), ip: Some(ip), vo: None })?;
    let credited: BTreeSet<_> = flows.iter().map(|flow| (flow.instance.to_string(), flow.resp_port)).collect();
    assert_eq!(credited, BTreeSet::from([(before.uuid.clone(), 7201), (after.uuid.clone(), 7202)]));
    let of = |husk: &Husk| ended.iter().find(|instance| instance.id.as_str() == husk.uuid).context("no record of it");
    let (old, new) = (of(&before)?, of(&after)?);
    ensure!(old.end.context("no end")?.time <= new.start, "one after the other: {old:?} {new:?}");
    Ok(())
}

/// Waits until the ledger's record of each of these VMs is as it should be; each ran once.
fn wait_instances(world: &World<'_>, husks: &[Husk], is: impl Fn(&Instance) -> bool) -> Result<Vec<Instance>> {
    let uuids: BTreeSet<&str> = husks.iter().map(|husk| husk.uuid.as_str()).collect();
    process::wait_for("the VMs' records", WRITTEN, || {
        let mut instances = world.facts()?.instances;
        instances.retain(|instance| uuids.contains(instance.domain.to_string().as_str()));
        let domains: BTreeSet<_> = instances.iter().map(|instance| instance.domain).collect();
        ensure!(domains.len() == instances.len(), "one of them ran twice: {instances:#?}");
        Ok((instances.len() == husks.len() && instances.iter().all(&is)).then_some(instances))
    })
}

/// What hostd holds beside its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    threads: BTreeSet<String>,
    descriptors: usize,
    packet_sockets: usize,
}

impl Held {
    fn by(process: &Path) -> Result<Self> {
        let mut threads = BTreeSet::new();
        for thread in fs::read_dir(process.join("task"))?.flatten() {
            // One that ends in this moment has no name any more.
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            threads.insert(format!("{} {}", name.trim(), thread.file_name().display()));
        }
        // The first line is the table's head.
        let sockets = fs::read_to_string(process.join("net/packet"))?.lines().count().saturating_sub(1);
        Ok(Self { threads, descriptors: fs::read_dir(process.join("fd"))?.count(), packet_sockets: sockets })
    }
}

/// Ten at once, five times: each has its beginning and its end in the ledger, and hostd holds nothing more than before.
fn fifty_vms_leave_nothing_behind(world: &World<'_>) -> Result<()> {
    let hostd = world.stack.hostd_process()?;
    let before = Held::by(&hostd)?;
    let husks: Vec<Husk> = (0..50).map(|number| Husk::new(&format!("husk-{number}"), number)).collect();
    for batch in husks.chunks(10) {
        world.site.start_husks(batch, world.bridge)?;
        wait_instances(world, batch, |instance| instance.end.is_none())?;
        let during = Held::by(&hostd)?;
        ensure!(during.packet_sockets >= before.packet_sockets + batch.len(), "each tap is watched: {during:?}");
        world.site.destroy_husks(batch)?;
    }
    for instance in wait_instances(world, &husks, |instance| instance.end.is_some())? {
        let end = instance.end.context("no end")?.time;
        ensure!(world.began <= instance.start && instance.start < end, "{instance:?}");
    }
    // Threads for blocking calls rest for some seconds before they go.
    let last = std::cell::RefCell::new(before.clone());
    process::wait_for("hostd to hold no more than before", WRITTEN, || {
        let now = Held::by(&hostd)?;
        let more = now.threads.len() > before.threads.len()
            || now.descriptors > before.descriptors
            || now.packet_sockets > before.packet_sockets;
        *last.borrow_mut() = now;
        Ok((!more).then_some(()))
    })
    .with_context(|| format!("before {before:#?}, now {:#?}", last.borrow()))?;
    let left = world.site.run("ip", &["-o", "link"])?;
    assert_eq!(left.matches("vnet").count(), 2, "the two guests' taps: {left}");
    Ok(())
}
