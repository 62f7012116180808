//! Taps that come and go, with real packets; and that no VM is in another's way.

#[path = "../../../tests/net/mod.rs"]
#[allow(dead_code)]
mod net;

use vestigo_ledger::FlowFilter;

use self::net::{Sender, ip, isolated, udp};
use super::*;

fn flows(root: &std::path::Path) -> Vec<Flow> {
    let ledger = vestigo_ledger::Ledger::open_folders(&[root.join("ledger")]).unwrap();
    let range = TimeRange::around(SystemClock.now(), LEASE_REST);
    ledger.flows(&FlowFilter { range, ip: None, vo: None }).unwrap()
}

/// Runs in a network namespace of its own: the threads of the runtime are begun in it.
fn in_isolation(test: impl Future<Output = ()>) {
    if isolated() {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
    }
}

fn pair(one: &str, other: &str) {
    ip(&["link", "add", one, "type", "veth", "peer", "name", other]);
    net::up(&[one, other]);
}

async fn asked(host: &mut Host) -> DomainUuid {
    tokio::time::timeout(PATIENCE, host.rechecks.recv()).await.unwrap().unwrap()
}

/// Sends until the tap is captured: a queue says that it is.
async fn captured(host: &Host, n: u128) {
    let began = Instant::now();
    while !host.taps.has(vm(n)) {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_tap_made_anew_is_captured_at_once_and_is_never_the_old_vms() {
    in_isolation(async {
        let root = tempfile::tempdir().unwrap();
        let mut host = Host::start(root.path());
        let mut news = crate::capture::links::watch().unwrap();
        let interfaces = host.interfaces.clone();
        tokio::spawn(async move {
            while let Some(news) = news.recv().await {
                let _ = interfaces.send(news).await;
            }
        });
        let start = SystemClock.now();
        pair("v0", "v1");
        host.runs(1, start, Some(start), &["v0"]).await;
        captured(&host, 1).await;
        Sender::new("v1").send(&udp((1001, 2), 60));
        ip(&["link", "del", "v0"]);
        assert_eq!(asked(&mut host).await, vm(1), "at once: the socket says that it is gone");
        pair("v0", "v1");
        assert_eq!(asked(&mut host).await, vm(1), "at once: the kernel says that there is one of this name");
        // It is another VM's, whatever libvirt still says of the first.
        let later = SystemClock.now();
        host.runs(2, later, Some(later), &["v0"]).await;
        captured(&host, 2).await;
        host.runs(1, start, None, &["v0"]).await;
        Sender::new("v1").send(&udp((1002, 2), 60));
        let facts = host.stop(root.path()).await;
        let of: Vec<_> = flows(root.path()).iter().map(|flow| (flow.domain, flow.orig_port)).collect();
        assert_eq!(of.len(), 2, "{of:?}");
        assert!(of.contains(&(vm(1), 1001)) && of.contains(&(vm(2), 1002)), "{of:?}");
        let of_taps = |n| facts.coverage.iter().filter(move |c| c.domain == Some(vm(n)) && c.tap.is_some());
        let spans: Vec<_> = of_taps(1).map(|c| (c.state.to_string(), c.from, c.to)).collect();
        assert!(spans.iter().any(|(state, ..)| state == "ok"), "{spans:?}");
        assert!(spans.iter().all(|(state, _, to)| state != "ok" || *to <= later), "{spans:?}");
        assert!(
            spans.iter().any(|(state, ..)| state.contains("belongs to a tap of a VM that began later")),
            "{spans:?}"
        );
        let spans: Vec<_> = of_taps(2).map(|c| (c.state.to_string(), c.from, c.to)).collect();
        assert_eq!(
            spans[0].0, "lost(unknown number, no-capture)",
            "from its beginning until the socket was open: {spans:?}"
        );
        assert_eq!((spans[1].0.as_str(), spans[1].1), ("ok", spans[0].2), "{spans:?}");
    });
}

#[test]
fn what_passed_before_the_socket_was_open_is_not_said_to_be_seen() {
    in_isolation(async {
        let root = tempfile::tempdir().unwrap();
        let host = Host::start(root.path());
        pair("v0", "v1");
        let began = SystemClock.now() - Duration::from_secs(5);
        host.runs(1, began, Some(began), &["v0", "gone0"]).await;
        captured(&host, 1).await;
        let open = SystemClock.now();
        let facts = host.stop(root.path()).await;
        let of = |tap: &str| {
            let of = facts.coverage.iter().filter(|c| c.tap.as_ref().is_some_and(|name| name.as_str() == tap));
            of.map(|c| (c.state.to_string(), c.from, c.to)).collect::<Vec<_>>()
        };
        let spans = of("v0");
        assert_eq!((spans[0].0.as_str(), spans[0].1), ("lost(unknown number, no-capture)", began));
        assert!(spans[0].2 <= open && spans[1].1 == spans[0].2 && spans[1].0 == "nodata", "{spans:?}");
        assert!(of("gone0")[0].0.contains("interface gone0 does not exist"), "{:?}", of("gone0"));
    });
}

/// One VM's tap has more to say than the ledger takes, another VM's agent talks without end; a third one's few words are all kept,
/// and so is every record of the loud one: its tap waits.
#[tokio::test(flavor = "multi_thread")]
async fn one_vm_floods_and_no_other_notices() {
    const LOUD: u16 = 15_000;
    let root = tempfile::tempdir().unwrap();
    let host = Host::start(root.path());
    let (_one, two, three) =
        (host.boot(root.path(), 1).await, host.boot(root.path(), 2).await, host.boot(root.path(), 3).await);
    let (mut chatty, mut agent) = (Agent::meet(&two, 1).await, Agent::meet(&three, 1).await);
    let loud = host.tap(1);
    let flood = std::thread::spawn(move || loud.send_all((0..LOUD).map(record).collect()));
    let chat = tokio::spawn(async move {
        for uid in 0..3000 {
            chatty.state(end(100_000 + uid, Exit::Code(0))).await;
        }
        chatty
    });
    for uid in 0..50_u16 {
        host.flow(3, 2000 + uid, |_| {}).await;
        assert_eq!(agent.say(start(&claim(0, 1), uid.into())).await, None);
    }
    host.settled().await;
    let before = flood.is_finished();
    let chatty = chat.await.unwrap();
    assert_eq!(tokio::task::spawn_blocking(move || flood.join().unwrap()).await.unwrap(), 0, "nothing was too much");
    host.stop(root.path()).await;
    drop(chatty);
    let kept = flows(root.path());
    assert_eq!(kept.iter().filter(|flow| flow.domain == vm(3)).count(), 50, "(the flood was over: {before})");
    assert_eq!(kept.iter().filter(|flow| flow.domain == vm(1)).count(), usize::from(LOUD));
}
