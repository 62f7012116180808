#![allow(clippy::unwrap_used, clippy::wildcard_imports)]

mod nat;
mod taps;
mod witnesses;
mod world;

use std::time::Instant;

use vestigo_ledger::Facts;
use vestigo_model::{
    Ban, BanApplied, Caller, Connection, Direction, Holder, LEASE_REST, Label, PayloadClaim, Scope, TaskMark, Trust,
    link::{Claim, PayloadRefused},
    *,
};

use self::world::*;
use super::*;
use crate::{bans::HostBan, guestlink::LinkOptions};

fn events(facts: &Facts, what: EventKind) -> Vec<&Event> {
    facts.events.iter().filter(|event| event.what == what).collect()
}

fn ban(id: &str, scope: Scope) -> HostBan {
    HostBan { ban: Ban { id: text(id), scope, reason: text("attacks"), until: None }, vm: None }
}

fn set(bans: Vec<HostBan>) -> Arc<BanSet> {
    Arc::new(BanSet::new(bans).unwrap())
}

fn task(nonce: &str, runs: u32) -> PayloadClaim {
    let now = SystemClock.now();
    let day = Duration::from_secs(86_400);
    let midnight = Timestamp::from_nanos(now.as_nanos() / 86_400_000_000_000 * 86_400_000_000_000);
    let mark = TaskMark {
        id: text("analysis"),
        nonce: text(&Digest::of(nonce.as_bytes()).to_string()),
        runs,
        // One moment for all claims of a test.
        not_before: midnight - day,
        expires: midnight + day * 2,
        statement: Digest::of(nonce.as_bytes()),
        key: text(&format!("SHA256:{}", "a".repeat(43))),
    };
    PayloadClaim { trust: Trust::SignedByUser, task: Some(mark), ..claim(0, 20_480) }
}

fn start(claim: &PayloadClaim, uid: u128) -> Claim {
    Claim::PayloadStart(PayloadClaim { uid: run(uid), leases: vec![], ..claim.clone() })
}

fn end(uid: u128, exit: Exit) -> Claim {
    Claim::PayloadEnd { uid: run(uid), exit, silent: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_from_no_lease_is_told_once_and_counted() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let listener = host.boot(root.path(), 1).await;
    let mut agent = Agent::meet(&listener, 1).await;
    host.flow(1, 60_000, |_| {}).await;
    assert_eq!(agent.say(own(1, Holder::System, 1024)).await, None);
    assert_eq!(agent.say(own(2, Holder::Pilot, 2048)).await, None);
    assert_eq!(agent.say(Claim::PayloadStart(claim(3, 20_480))).await, None);
    host.flow(1, 20_500, |_| {}).await;
    host.flow(1, 1030, |_| {}).await;
    host.flow(1, 22, |flow| flow.direction = Direction::Incoming).await;
    host.flow(1, 68, |flow| (flow.proto, flow.resp.1) = (17, 67)).await;
    host.flow(1, 60_000, |flow| flow.began = flow.began - Duration::from_secs(60)).await;
    for port in 61_000..61_005 {
        host.flow(1, port, |_| {}).await;
    }
    let facts = host.stop(root.path()).await;
    let told = events(&facts, EventKind::Contradiction);
    let counts: Vec<_> = told.iter().map(|event| event.detail["flow-records"].as_str()).collect();
    assert_eq!(counts, ["1", "4"], "at once, and the rest at the end: {told:?}");
    assert!(told[0].detail["last"].contains("10.0.0.5:61000 to 192.0.2.1:443"), "{told:?}");
    assert!(told[1].detail["last"].contains("10.0.0.5:61004"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_ledger_the_service_ends_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let _listener = host.boot(root.path(), 1).await;
    assert_eq!(host.without_ledger().await, Err(Ended::Ledger));
}

/// A look at all domains may meet one before libvirt says that it has started.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_told_after_the_look_is_no_second_run() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let looked = SystemClock.now();
    let told = looked + Duration::from_millis(1);
    for n in [1, 2, 3] {
        host.runs_as(n, Some(7), (looked, None), &[]).await;
    }
    host.runs_as(1, Some(7), (told, Some(told)), &[]).await;
    host.runs_as(2, Some(8), (told, Some(told)), &[]).await;
    let later = looked + Duration::from_secs(600);
    host.runs_as(3, Some(7), (later, Some(later)), &[]).await;
    host.settled().await;
    let facts = host.stop(root.path()).await;
    let runs = |n| facts.instances.iter().filter(|instance| instance.domain == vm(n)).count();
    assert_eq!((runs(1), runs(2)), (1, 2), "the number tells");
    assert_eq!(runs(3), 2, "libvirtd began again, and its numbers with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vms_own_leases_outlive_hostd_and_not_the_boot() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let listener = host.boot(root.path(), 1).await;
    let mut agent = Agent::meet(&listener, 1).await;
    agent.say(own(1, Holder::System, 1024)).await;
    agent.say(Claim::PayloadStart(claim(3, 20_480))).await;
    let facts = host.stop(root.path()).await;
    assert!(events(&facts, EventKind::Contradiction).is_empty(), "the VM's own traffic is of no VO");
    drop((agent, listener));

    let host = Host::start(root.path());
    let listener = host.boot(root.path(), 1).await;
    let mut agent = Agent::meet(&listener, 1).await;
    assert_eq!(agent.acked, 2);
    // The link welcomes an agent by itself; the service has met it when something that it said is acknowledged.
    agent.say(end(98, Exit::Code(0))).await;
    host.flow(1, 1030, |_| {}).await;
    host.flow(1, 61_000, |_| {}).await;
    host.settled().await;
    // The agent starts anew in the same boot: the same part of the VM under another run id.
    agent.say(own(2, Holder::System, 1024)).await;
    let mut agent = {
        drop(agent);
        Agent::meet(&listener, 2).await
    };
    agent.say(end(99, Exit::Code(0))).await;
    let facts = host.stop(root.path()).await;
    assert_eq!(events(&facts, EventKind::Contradiction).len(), 1, "one flow outside, after the restart as well");
    let own: Vec<_> = facts.payloads.iter().filter(|payload| payload.claim.holder == Holder::System).collect();
    assert_eq!(own.len(), 2);
    assert!(own.iter().all(|payload| payload.end.is_some_and(|end| end.exit == Exit::Lost)), "{own:?}");
    let summary = crate::payloads::FromLedger(root.path().join("ledger"));
    let named = crate::pin::Payloads::payloads(&summary, &facts.instances[0]);
    assert_eq!(named.iter().map(|payload| payload.uid).collect::<Vec<_>>(), [run(3)], "people, not the VM itself");
    let ledger = vestigo_ledger::Ledger::open_folders(&[root.path().join("ledger")]).unwrap();
    let range = TimeRange::around(SystemClock.now(), LEASE_REST);
    let flows = ledger.flows(&vestigo_ledger::FlowFilter { range, ip: None, vo: None }).unwrap();
    let of_system = flows.iter().find(|flow| flow.orig_port == 1030).unwrap();
    assert_eq!(of_system.attribution.payload, Some(run(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_task_runs_as_often_as_was_signed_on_this_host() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let (one, two) = (host.boot(root.path(), 1).await, host.boot(root.path(), 2).await);
    let (mut first, mut second) = (Agent::meet(&one, 1).await, Agent::meet(&two, 1).await);
    let twice = task("n", 2);
    assert_eq!(first.say(start(&twice, 1)).await, None);
    assert_eq!(first.say(start(&twice, 1)).await, None, "said again");
    assert_eq!(second.say(start(&twice, 2)).await, None);
    assert_eq!(second.say(start(&twice, 3)).await.unwrap(), "task analysis has been run 2 of 2 times");
    assert_eq!(second.say(end(2, Exit::NotStarted)).await, None);
    assert_eq!(second.say(start(&twice, 4)).await, None, "given back");
    assert_eq!(first.say(end(1, Exit::Code(0))).await, None);
    host.stop(root.path()).await;
    drop((first, second, one, two));

    let host = Host::start(root.path());
    let three = host.boot(root.path(), 3).await;
    let mut third = Agent::meet(&three, 1).await;
    assert_eq!(third.say(start(&twice, 5)).await.unwrap(), "task analysis has been run 2 of 2 times");
    assert_eq!(
        third.say(start(&task("n", 3), 6)).await,
        None,
        "another number of runs: who lies, the host cannot know"
    );
    let mut for_ever = task("for ever", 1);
    for_ever.task.as_mut().unwrap().expires = Timestamp::from_nanos(i64::MAX);
    assert!(third.say(start(&for_ever, 9)).await.unwrap().contains("31 days"));
    let mut old = task("other", 1);
    old.task.as_mut().unwrap().expires = SystemClock.now() - Duration::from_secs(120);
    assert!(third.say(start(&old, 7)).await.unwrap().contains("expired"));
    assert_eq!(third.say(start(&task("fresh", 1), 8)).await, None);
    let facts = host.stop(root.path()).await;
    assert_eq!(events(&facts, EventKind::LinkFault).len(), 4, "every refusal is on record");
    let told = events(&facts, EventKind::Contradiction);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].detail["what"].contains("3 runs) has the key and nonce of task analysis"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_makes_up_is_bounded_and_silences_nothing() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let listener = host.boot(root.path(), 1).await;
    let mut agent = Agent::meet(&listener, 1).await;
    agent.say(own(1, Holder::System, 1024)).await;
    agent.babble(format!("{{\"type\":\"record\",\"seq\":\"{}\"}}\n", "z".repeat(3000)).as_bytes()).await;
    agent.say(end(1, Exit::Code(0))).await;
    agent.say(own(2, Holder::System, 50_000)).await;
    for boot in 2..700 {
        agent.met_again(boot).await;
    }
    agent.say(end(77, Exit::Code(0))).await;
    host.flow(1, 61_000, |_| {}).await;
    host.settled().await;
    let facts = host.stop(root.path()).await;
    let told = events(&facts, EventKind::Contradiction);
    let what = |word: &str| told.iter().filter(|event| event.detail["what"].contains(word)).count();
    assert_eq!(what("outside of every lease"), 1, "a boot that only the guest tells of: {told:?}");
    assert_eq!(what("other ports than before"), 1, "{told:?}");
    let hellos = events(&facts, EventKind::AgentHello).len();
    assert!((1..660).contains(&hellos), "{hellos}");
    let faults = events(&facts, EventKind::LinkFault);
    assert!(faults.iter().any(|event| event.detail.contains_key("statements-left-out")), "{faults:?}");
    let texts: Vec<_> = faults.iter().filter_map(|event| event.detail.get("fault")).collect();
    assert!(texts.iter().all(|text| text.len() <= 255), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("zzz")), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bans_reach_the_agent_and_hold_against_it() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    host.bans.send_replace(set(vec![ban("b1", Scope::Pilot(PilotId::new("other").unwrap()))]));
    let listener = host.boot(root.path(), 1).await;
    let mut agent = Agent::meet(&listener, 1).await;
    let ids = |bans: Vec<Ban>| bans.into_iter().map(|ban| ban.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(agent.bans().await), ["b1"], "after the welcome");
    assert_eq!(agent.say(Claim::PayloadStart(claim(1, 20_480))).await, None);
    let mut elsewhere = ban("b3", Scope::Everything);
    elsewhere.vm = Some(InstanceId::new("i-2").unwrap());
    let user = Scope::User(claim(1, 1).user);
    host.bans.send_replace(set(vec![ban("b2", user), elsewhere]));
    assert_eq!(ids(agent.bans().await), ["b2"], "the whole list, and only what concerns this VM");
    let refused = agent.say(Claim::PayloadStart(claim(2, 22_528))).await;
    assert_eq!(refused.as_deref(), Some("banned (b2): attacks"), "an agent that ignores it is refused");
    assert_eq!(agent.say(own(9, Holder::System, 1024)).await, None, "the VM's own traffic is not banned");
    let now = SystemClock.now();
    let (received, frozen, dead) = (now, now, now);
    let applied = BanApplied { id: text("b2"), payloads: 1, processes: 7, left: 0, received, frozen, dead };
    assert_eq!(agent.say(Claim::BanApplied(applied)).await, None);
    host.bans.send_replace(set(vec![]));
    assert!(agent.bans().await.is_empty(), "lifted");
    // One link's news come in order: when this is acknowledged, the service knows that the list was sent.
    assert_eq!(agent.say(own(10, Holder::Pilot, 2048)).await, None);
    let facts = host.stop(root.path()).await;
    let sent = events(&facts, EventKind::BanSent);
    let told: Vec<_> = sent.iter().map(|event| (event.detail.get("added"), event.detail.get("lifted"))).collect();
    let word = |word: &str| word.to_owned();
    assert_eq!(told, [(Some(&word("b1")), None), (Some(&word("b2")), Some(&word("b1"))), (None, Some(&word("b2")))]);
    let applied = events(&facts, EventKind::BanApplied);
    assert_eq!((applied.len(), applied[0].detail["processes"].as_str()), (1, "7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reads_nothing_delays_no_other() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let (one, two) = (host.boot(root.path(), 1).await, host.boot(root.path(), 2).await);
    let (stalled, mut agent) = (Agent::meet(&one, 1).await, Agent::meet(&two, 1).await);
    assert!(agent.bans().await.is_empty());
    let many = |round: usize| {
        (0..crate::bans::MAX_BANS).map(move |n| {
            let issuer = Label::cut(&format!("{round} {}", "x".repeat(240)));
            ban(&format!("{n}"), Scope::Issuer(issuer))
        })
    };
    let began = Instant::now();
    for round in 0..5 {
        host.bans.send_replace(set(many(round).collect()));
        assert_eq!(agent.bans().await.len(), crate::bans::MAX_BANS);
    }
    assert_eq!(agent.say(Claim::PayloadStart(claim(1, 20_480))).await, None);
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}: less than hostd waits for a guest to read",
        began.elapsed()
    );
    drop(stalled);
    host.stop(root.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_tell_is_kept_and_a_flood_is_not() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let listener = host.boot(root.path(), 1).await;
    let mut agent = Agent::meet(&listener, 1).await;
    let caller = Caller { uid: 1000, gid: 1000, pid: 77 };
    let PayloadClaim { uid, pilot, payload, user, vo, .. } = claim(1, 1);
    let refused = PayloadRefused { uid, caller, pilot, payload, user, vo, code: 203, reason: text("no") };
    agent.say(Claim::PayloadRefused(refused)).await;
    agent.say(Claim::Alarm { what: text("no free leases") }).await;
    let seen = Connection {
        payload: run(1),
        proto: 6,
        local: "100.64.0.2:4000".parse().unwrap(),
        peer: "192.0.2.1:443".parse().unwrap(),
        pid: (2, 1, 1),
        uid: (1000, 1000),
        gid: (1000, 1000),
        tty: 0,
        executable: "é".repeat(5000),
    };
    agent.say(Claim::Connection(seen.clone())).await;
    let seen = Connection { executable: "/bin/true".to_owned(), ..seen };
    for _ in 0..30 {
        for _ in 0..99 {
            agent.state(Claim::Connection(seen.clone())).await;
        }
        assert_eq!(agent.say(Claim::Connection(seen.clone())).await, None, "all are acknowledged");
    }
    let facts = host.stop(root.path()).await;
    drop((agent, listener));
    let reason = |what| events(&facts, what)[0].detail.clone();
    assert_eq!(reason(EventKind::PayloadRefused)["caller"], "uid 1000 gid 1000 pid 77");
    assert_eq!(reason(EventKind::AgentAlarm)["what"], "no free leases");
    assert_eq!(reason(EventKind::Connection)["executable"].len(), 256);
    let kept = events(&facts, EventKind::Connection).len();
    let dropped: usize = events(&facts, EventKind::LinkFault)[0].detail["connections-left-out"].parse().unwrap();
    assert_eq!(kept + dropped, 3001);
    assert!((1000..1500).contains(&kept), "{kept}");

    let host = Host::start(root.path());
    let listener = host.boot(root.path(), 1).await;
    let agent = Agent::meet(&listener, 1).await;
    assert_eq!(agent.acked, 3003, "the place of what was left out is durable");
    host.stop(root.path()).await;
}

/// A start as large as they come in practice: the isolation manifest makes most of it.
fn realistic(uid: u128) -> PayloadClaim {
    let how = Label::new("cgroup v2 payload-7: memory.max 2147483648, pids.max 4096, cpu.weight 100").unwrap();
    let rules = (1..=37).map(|n| (format!("R-ISO-{n}"), Enforcement { state: RuleState::Enforced, how: how.clone() }));
    PayloadClaim { isolation: rules.collect(), ..claim(uid, 20_480) }
}

#[test]
fn two_hundred_starts_a_second_are_within_a_guests_budget() {
    let options = LinkOptions::default();
    let record = |claim| {
        let time = SystemClock.now();
        let frame = link::GuestFrame::Record(link::Record { seq: 1 << 40, prev: Digest::ZERO, time, claim });
        link::encode(&frame).unwrap().len()
    };
    let lengths = [record(Claim::PayloadStart(realistic(1))), record(end(1, Exit::Code(0)))];
    assert!(lengths[0] > 4096, "{lengths:?}");
    let per_payload: f64 = lengths.iter().map(|length| 1.0 + *length as f64 / options.line_bytes as f64).sum();
    let rate = options.lines_per_second / per_payload;
    assert!((240.0..320.0).contains(&rate), "{rate} starts/s, {lengths:?} bytes");
}

/// `cargo nextest run -p hostd --release --run-ignored only starts --no-capture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn starts_acknowledged() {
    let root = tempfile::tempdir_in(std::env::var("VESTIGO_BENCH_DIR").unwrap_or_else(|_| "/var/tmp".into())).unwrap();
    let host = Host::start(root.path());
    let listener = host.boot(root.path(), 1).await;
    let mut agent = Agent::meet(&listener, 1).await;
    let mut took = Vec::new();
    for uid in 0..300 {
        let claim = PayloadClaim { leases: vec![], ..realistic(uid) };
        let asked = Instant::now();
        assert_eq!(agent.say(Claim::PayloadStart(claim)).await, None);
        took.push(asked.elapsed());
        agent.state(end(uid, Exit::Code(0))).await;
    }
    took.sort();
    println!("start_ack_median_ms: {:.3}", took[150].as_secs_f64() * 1e3);
    println!("start_ack_p99_ms: {:.3}", took[297].as_secs_f64() * 1e3);
    // What pilots at the same time are acknowledged: 8 in flight, for longer than the burst lasts.
    let began = Instant::now();
    let (mut sent, count) = (Vec::new(), 4000u128);
    for uid in 1000..1000 + count {
        sent.push(agent.state(Claim::PayloadStart(PayloadClaim { leases: vec![], ..realistic(uid) })).await);
        agent.state(end(uid, Exit::Code(0))).await;
        if sent.len() >= 8 {
            agent.acknowledged(sent.remove(0)).await;
        }
    }
    println!("starts_acknowledged_per_s: {:.0}", count as f64 / began.elapsed().as_secs_f64());
    host.stop(root.path()).await;
}
