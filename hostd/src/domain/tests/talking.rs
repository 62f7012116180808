//! Talking to libvirt's own test driver, which emits real lifecycle events without any QEMU. Its default node is one per
//! process and shared by every connection, so these tests take turns.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{Receiver, error::TryRecvError};
use vestigo_model::{DomainUuid, HostId, StopReason};
use virt::{connect::Connect, domain::Domain};

use super::super::{Change, DomainError, Hypervisor, Options, Site, VoMap};

const URI: &str = "test:///default";

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next(changes: &mut Receiver<Change>) -> Change {
    let start = Instant::now();
    loop {
        match changes.try_recv() {
            Ok(change) => return change,
            Err(TryRecvError::Empty) if start.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("no change: {error}"),
        }
    }
}

#[test]
fn hears_lifecycle_events_and_inspects() {
    let _turn = turn();
    let (hypervisor, mut changes) = Hypervisor::connect(URI, &Options::default()).unwrap();
    assert_eq!(next(&mut changes), Change::Resync);
    let running = hypervisor.list_running().unwrap();
    let other = Connect::open(Some(URI)).unwrap();
    let test = Domain::lookup_by_name(&other, "test").unwrap();
    let uuid = DomainUuid(test.get_uuid().unwrap());
    assert_eq!(running, [uuid]);

    let site = Site { host: HostId::new("hv1").unwrap(), vos: VoMap::default() };
    let seen = hypervisor.inspect(uuid, &site).unwrap();
    assert!(seen.running && seen.agent_socket.is_none());
    assert_eq!((seen.instance.name.as_str(), seen.instance.domain), ("test", uuid));

    let began = Instant::now();
    test.destroy().unwrap();
    let stopped = next(&mut changes);
    println!("event after {} us", began.elapsed().as_micros());
    assert!(
        matches!(stopped, Change::Stopped { domain, why: StopReason::Destroyed, .. } if domain == uuid),
        "{stopped:?}"
    );
    assert!(matches!(hypervisor.ensure_channel(uuid, "/run".as_ref()), Err(DomainError::NotRunning(_))));
    test.create().unwrap();
    let started = next(&mut changes);
    assert!(matches!(started, Change::Started { domain, .. } if domain == uuid), "{started:?}");
    test.suspend().unwrap();
    test.resume().unwrap();
    assert!(matches!(next(&mut changes), Change::Changed { .. }));
    let unknown = DomainUuid(uuid::Uuid::from_u128(1));
    assert!(matches!(hypervisor.inspect(unknown, &site), Err(DomainError::Gone(_))));
}

#[test]
fn an_overflow_is_counted_and_ends_in_a_resync() {
    let _turn = turn();
    let (hypervisor, mut changes) = Hypervisor::connect(URI, &Options { queue: 2, ..Options::default() }).unwrap();
    let other = Connect::open(Some(URI)).unwrap();
    let test = Domain::lookup_by_name(&other, "test").unwrap();
    for _ in 0..5 {
        test.suspend().unwrap();
        test.resume().unwrap();
    }
    let start = Instant::now();
    while hypervisor.dropped_events() == 0 && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(hypervisor.dropped_events() > 0);
    assert_eq!(next(&mut changes), Change::Resync, "the first one, from connecting");
    while next(&mut changes) != Change::Resync {}
}

#[test]
fn an_unreachable_libvirt_is_one_clear_sentence() {
    let error = Hypervisor::connect("qemu+unix:///system?socket=/nonexistent/sock", &Options::default()).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("/nonexistent/sock"), "{message}");
    assert!(!message.contains('\n'));
}

#[test]
fn dropping_the_handle_takes_the_callbacks_back() {
    let _turn = turn();
    for _ in 0..20 {
        let (hypervisor, mut changes) = Hypervisor::connect(URI, &Options::default()).unwrap();
        assert_eq!(next(&mut changes), Change::Resync);
        drop(hypervisor);
        let start = Instant::now();
        // The queue closes when the last registration has given its sink back.
        while changes.try_recv() != Err(TryRecvError::Disconnected) {
            assert!(start.elapsed() < Duration::from_secs(10), "the sink is still held");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
